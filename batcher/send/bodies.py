"""Reads the body of a response, within bounds of bytes and silence. Touches: the network."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping

import aiohttp
from aiohttp import StreamReader

from batcher.errors import BadResponse
from batcher.send.connections import Connection
from batcher.send.sse import is_done, is_finished

__all__ = ["AnswerMemory", "BodyReader", "StreamSilent"]

_MAX_BYTES = 64 << 20
# Beyond the first bytes of each, what answers hold in memory together until they are in the journal.
_SMALL_BYTES, _ALL_BYTES = 1 << 20, 128 << 20
_END_SECONDS = 0.2  # For the end of a stream after its last event; else the connection is closed.
_USAGE_SECONDS = 5.0  # For its end after the `finish_reason`.
_LATE_SECONDS = 1.0
_MAX_TIMES, _TAIL_BYTES = 256, 128


class StreamSilent(Exception):
    """A stream brought nothing for too long."""


class AnswerMemory:
    """Memory that large answers hold together until they are read; the next one waits.

    Args:
        clear: Awaited first: returns when the results of earlier ones are out of memory.
    """

    def __init__(self, clear: Callable[[], Awaitable[None]] | None) -> None:
        self._clear = clear
        self._taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self, size: int) -> None:
        """Waits until there are so many bytes; for one answer alone there always are."""
        if self._clear is not None:
            await self._clear()
        while self._taken and self._taken + size > _ALL_BYTES:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter
        self._taken += size

    def give(self, size: int) -> None:
        """Gives them back; all that wait look again."""
        self._taken -= size
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)


class BodyReader:
    """Reads one body that did not arrive together with its headers.

    Args:
        memory: What a large body takes its share of, until `close`.
        connection: Its deadline stands still while the body waits for memory.
        headers: Of the response.

    Raises:
        BadResponse: The headers say that it is too long.
    """

    def __init__(
        self, memory: AnswerMemory, connection: Connection, headers: Mapping[str, str]
    ) -> None:
        self._memory = memory
        self._connection = connection
        self._taken = 0
        length = headers.get("Content-Length", "")
        self._length = int(length) if length.isdecimal() else _MAX_BYTES
        if self._length > _MAX_BYTES:
            raise BadResponse(
                f"the answer is {self._length:,} bytes long; {_MAX_BYTES:,} is the most"
            )
        if "Content-Encoding" in headers:
            self._length = _MAX_BYTES

    async def read(self, content: StreamReader) -> bytes:
        """The whole body.

        Raises:
            BadResponse: It is too long.
        """
        chunks, size = [], 0
        async for chunk in content.iter_any():
            size += len(chunk)
            await self._take(size)
            chunks.append(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def read_stream(
        self, content: StreamReader, began: float, idle: float
    ) -> tuple[bytes, list[tuple[int, float]]]:
        """The body of a stream, which may stay open after its last event, and when it came.

        Args:
            content: Where it comes from.
            began: When it was asked for (monotonic clock).
            idle: Seconds without a byte, after which it is given up.

        Raises:
            BadResponse: It is too long.
            StreamSilent: It was given up.
        """
        chunks: list[bytes] = []
        times: list[tuple[int, float]] = []
        size, tail, timeout, complete = 0, b"", idle, False
        while True:
            before, asked = content.total_bytes, time.monotonic()
            try:
                async with asyncio.timeout(timeout):
                    chunk = await content.readany()
            except TimeoutError:
                late = time.monotonic() - asked - timeout > _LATE_SECONDS
                if late or content.total_bytes > before or content.is_eof():
                    continue  # The process was stopped: what came meanwhile is to be read.
                if not complete:
                    raise StreamSilent from None
                break
            except (aiohttp.ClientError, OSError):
                if not complete:
                    raise
                break  # The answer is there, though its end did not come.
            if not chunk:
                break
            size += len(chunk)
            await self._take(size)
            chunks.append(chunk)
            if len(times) < _MAX_TIMES:
                times.append((size, time.monotonic() - began))
            end = tail + chunk
            if is_done(end):
                timeout, complete = min(idle, _END_SECONDS), True
            elif not complete and is_finished(end):  # The usage is still to come.
                timeout, complete = min(idle, _USAGE_SECONDS), True
            tail = end[-_TAIL_BYTES:]
        return b"".join(chunks), times

    async def _take(self, size: int) -> None:
        """Waits for memory before the body becomes large."""
        if size > _MAX_BYTES:
            raise BadResponse(f"the answer is longer than {_MAX_BYTES:,} bytes")
        if size > _SMALL_BYTES and not self._taken:
            left = self._connection.pause_deadline(time.monotonic())
            await self._memory.take(self._length)
            self._taken = self._length
            now = time.monotonic()
            self._connection.set_deadline(now + left, now)

    def close(self) -> None:
        """The body is not needed any more."""
        self._memory.give(self._taken)
        self._taken = 0
