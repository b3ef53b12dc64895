"""One HTTP exchange, and nothing about chat. Touches: the network.

aiohttp makes the connections (names, TLS, proxies) and parses the answers. The request is one write of
bytes that differ in the body only: half of what aiohttp's client session takes.

aiohttp's exceptions end here: what goes wrong below HTTP becomes `NoAnswer`.
"""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

import aiohttp
import msgspec
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDict
from yarl import URL

from batcher.errors import BadResponse, NoAnswer, RequestError
from batcher.job.endpoint import Endpoint, proxy_of
from batcher.records import Outcome
from batcher.send.bodies import AnswerMemory, BodyReader, StreamSilent
from batcher.send.connections import CONNECT_SECONDS, ConnectionPool
from batcher.send.redact import Redactor

__all__ = ["NO_ROOM", "Client", "Reply"]

NO_ROOM = "the answer does not fit into the memory of this machine"

_MAX_HEADER_BYTES = 64 << 10
_JOINED_BYTES = 64 << 10  # Up to here one copy is cheaper than two writes.
_MAX_INTERIM = 1000  # 1xx responses to one request; some servers send one every second.
_PROXY = "the proxy of the environment (HTTPS_PROXY)"
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")


class Reply(msgspec.Struct, frozen=True, gc=False):
    """What the server sent.

    Attributes:
        status: HTTP status.
        headers: As received, names in any case.
        body: Decompressed.
        times: Of a stream, when it came: (bytes of the body by then, seconds since it was asked for), the
            first few hundred times.
        done: To be called when the body is no longer used, which makes room for other large answers.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    times: Sequence[tuple[int, float]] = ()
    done: Callable[[], None] = lambda: None

    def seconds_to(self, position: int) -> float | None:
        """Seconds until the body had come up to a position; None when that is not known."""
        return next((seconds for size, seconds in self.times if size >= position), None)


class Client:
    """Sends requests to one address; an async context manager.

    Args:
        endpoint: Address and key.
        clear: Awaited before a large answer is received: returns when there is room for its result.

    Attributes:
        reached: Whether anything there ever answered in HTTP.
        unreached_since: When the first request began that did not reach it (monotonic clock); None
            without one.

    Raises:
        JobError: The environment names a proxy that cannot be used.
    """

    def __init__(
        self, endpoint: Endpoint, *, clear: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self._url = URL(endpoint.url)
        self._headers = CIMultiDict({"Content-Type": "application/json", "User-Agent": "batcher"})
        self._headers.update(endpoint.headers)
        if endpoint.key:
            self._headers["Authorization"] = f"Bearer {endpoint.key}"
        self._proxy = proxy_of(endpoint.url, os.environ)
        self._redactor = Redactor(endpoint, self._proxy)
        self._memory = AnswerMemory(clear)
        self._pool: ConnectionPool | None = None
        self._in_flight = 0
        self.reached = False
        self.unreached_since: float | None = None

    async def __aenter__(self) -> Self:
        proxy, login = self._proxy, {} if self._proxy is None else self._proxy.headers
        request = aiohttp.ClientRequest(
            "POST",
            self._url,
            headers=self._headers,
            proxy=None if proxy is None else URL(proxy.url),
            proxy_headers=login,
        )
        self._pool = ConnectionPool(request)
        target = self._url.raw_path_qs
        lines = [f"{name}: {value}" for name, value in request.headers.items()
                 if name.lower() not in ("content-length", "transfer-encoding")]  # fmt: skip
        if proxy is not None and self._url.scheme == "http":  # Of https it only sees a tunnel.
            target = str(self._url)
            lines += [f"{name}: {value}" for name, value in login.items()]
        lines.insert(0, f"POST {target} HTTP/1.1")
        self._head = "\r\n".join((*lines, "Content-Length: ")).encode()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            await self._pool.close()

    async def warm(self, count: int) -> None:
        """Opens so many connections ahead of the requests."""
        if self._pool is not None:
            await self._pool.warm(count)

    def redact(self, status: int, body: bytes) -> bytes:
        """A body that was put together from a stream, without the key."""
        return self._redactor.body(status, body)

    async def post(self, body: bytes, timeout: float, idle: float | None = None) -> Reply:  # noqa: ASYNC109
        """Sends the body and reads the whole answer, of at most 64 MB.

        A redirect is not followed: it would carry the key, or turn the POST into a GET.

        Args:
            body: The exact bytes.
            timeout: Seconds for the whole exchange, however slowly bytes come.
            idle: Seconds without a byte, after which a stream is given up; None for no stream.

        Raises:
            NoAnswer: Connection or time; `outcome` says which.
            BadResponse: The answer is too large or its compression is broken.
        """
        if self._pool is None:
            raise RuntimeError("Client is used outside of its `async with`")
        began = time.monotonic()
        self._in_flight += 1
        try:
            return await self._exchange(self._pool, body, timeout, idle, began)
        except MemoryError:
            raise BadResponse(NO_ROOM) from None
        except (aiohttp.ClientError, HttpProcessingError, StreamSilent, OSError) as error:
            raise self._translated(error, timeout, idle, began) from None
        finally:
            self._in_flight -= 1

    async def _exchange(
        self,
        pool: ConnectionPool,
        body: bytes,
        timeout: float,  # noqa: ASYNC109 (a deadline that costs less than asyncio's)
        idle: float | None,
        began: float,
    ) -> Reply:
        """What aiohttp's session would do, without what is the same for every request."""
        connection = pool.reuse(began)
        if connection is None:
            connection = await pool.connect(timeout, alone=self._in_flight == 1)
        transport, protocol = connection.transport, connection.protocol
        answering, reader = False, None
        times: Sequence[tuple[int, float]] = ()
        try:
            if not connection.is_open:
                raise aiohttp.ServerDisconnectedError
            transport.set_protocol(protocol)
            connection.set_deadline(
                began + timeout, began if connection.reused else time.monotonic()
            )
            # A new parser each time: half a head that came unasked is no part of the next answer.
            protocol.set_response_params(
                read_until_eof=True,
                max_line_size=_MAX_HEADER_BYTES,
                max_field_size=_MAX_HEADER_BYTES,
            )
            head = b"%b%d\r\n\r\n" % (self._head, len(body))
            if len(body) <= _JOINED_BYTES:
                transport.write(head + body)
            else:
                transport.writelines((head, body))
            message, payload = await protocol.read()
            answering = self.reached = True
            interim = 0
            while 100 <= message.code <= 199:  # Not the answer yet.
                interim += 1
                if interim > _MAX_INTERIM or message.code == 101:
                    raise NoAnswer(
                        f"instead of an answer came HTTP {message.code} ({interim:,} times)"
                    )
                message, payload = await protocol.read()
            if idle is None and payload.is_eof():
                answer = payload.read_nowait()
            else:
                reader = BodyReader(self._memory, connection, message.headers)
                if idle is None:
                    answer = await reader.read(payload)
                else:
                    answer, times = await reader.read_stream(payload, began, idle)
            now = time.monotonic()
            if connection.expired and not (message.chunked or "Content-Length" in message.headers):
                raise TimeoutError  # The deadline made its end.
        except BaseException as error:
            if reader is not None:
                reader.close()
            connection.drop()
            if not isinstance(error, Exception):
                raise
            if connection.expired and not isinstance(error, BadResponse | StreamSilent):
                raise TimeoutError from None
            if isinstance(error, aiohttp.ClientConnectionError | OSError) and not answering:
                pool.lose(connection, began)
            raise
        if not pool.release(connection, body, answer, now):
            if reader is not None:
                reader.close()
            raise NoAnswer(
                "the server sends more answers than it is asked for; this may be another's"
            )
        status, redactor = message.code, self._redactor
        headers = redactor.headers(status, message.headers, message.raw_headers)
        answer = redactor.body(status, answer)
        if reader is None:
            return Reply(status, headers, answer)
        return Reply(status, headers, answer, times, reader.close)

    def _translated(
        self, error: Exception, timeout: float, idle: float | None, began: float
    ) -> RequestError:
        """What went wrong, in our own terms; the first that fits, as aiohttp's errors are of several kinds."""
        said = self._redactor.error
        match error:
            case aiohttp.ConnectionTimeoutError():
                return self._unreached(_late("connection", min(timeout, CONNECT_SECONDS)), began)
            case StreamSilent():
                return _late("more of the answer", idle or 0.0)
            case TimeoutError():
                return _late("whole answer", timeout)
            case aiohttp.ClientPayloadError() if "content-encoding" in str(error):
                return BadResponse(f"the answer cannot be unpacked: {said(error)}")
            case aiohttp.ClientPayloadError():
                return NoAnswer(f"the answer was cut: {said(error)}")
            case aiohttp.ClientHttpProxyError():
                refused = NoAnswer(f"{_PROXY} refuses: {error.status} {said(error.message)}")
                if error.status == 407:
                    refused = NoAnswer(f"{refused}; it wants another user and password")
                    refused.lasting = True
                return self._unreached(refused, began)
            case aiohttp.ClientResponseError() | HttpProcessingError():
                if "content-encoding" in error.message:
                    return BadResponse(f"the answer cannot be unpacked: {said(error.message)}")
                strange = NoAnswer(f"the answer is no HTTP: {said(error.message)}")
                return self._unreached(strange, began, sent=True)
            case aiohttp.ClientConnectorError():
                advice = _advice(error)
                where = "" if self._proxy is None else f" to {_PROXY}"
                failed = NoAnswer(f"no connection{where}: {said(error)}{advice}")
                failed.lasting = bool(advice)
                return self._unreached(failed, began)
            case _:
                return NoAnswer(f"no connection: {said(error)}")

    def _unreached(self, error: NoAnswer, began: float, *, sent: bool = False) -> NoAnswer:
        """The error of a request behind which nothing was found that speaks HTTP."""
        error.sent = sent
        if self.unreached_since is None:
            self.unreached_since = began
        return error


def _late(what: str, seconds: float) -> NoAnswer:
    return NoAnswer(f"no {what} within {seconds:g} s", outcome=Outcome.TIMEOUT)


def _advice(error: aiohttp.ClientConnectorError) -> str:
    """What to do where time alone does not help; "" where it may."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "; a certificate of your own is named by the variable SSL_CERT_FILE"
    if isinstance(error.os_error, ssl.SSLError) and error.os_error.reason in _NO_TLS:
        return "; there is no TLS: is the address one of http:// ?"
    if isinstance(error.os_error, socket.gaierror) and error.os_error.errno == socket.EAI_NONAME:
        return "; there is no host of that name"
    return ""
