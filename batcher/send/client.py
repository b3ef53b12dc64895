"""One HTTP exchange, and nothing about chat. Touches: the network.

aiohttp makes the connections (names, TLS, which of them are still good) and reads the answers; the
request itself is one write of bytes that are the same each time but for the body. Its client session
takes twice as long for each request, and looks up the environment's proxies in a thread each time; it
is used where there is a proxy. `tests/send/test_client.py` holds both to the same behaviour.

aiohttp's exceptions end here: what goes wrong below HTTP comes out as `NoAnswer`.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import resource
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from itertools import chain
from types import TracebackType
from typing import Self
from urllib.request import getproxies, proxy_bypass

import aiohttp
import msgspec
from aiohttp import StreamReader
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDict
from yarl import URL

from batcher.endpoint import Endpoint, is_loopback
from batcher.errors import BadResponse, NoAnswer
from batcher.records import Outcome, clean
from batcher.send.stream import is_done, is_finished

__all__ = ["Client", "Reply", "open_files"]

_CONNECT_SECONDS = 30.0
_KEEP_SECONDS = 15.0  # As aiohttp does: servers close what is idle for longer.
# A server that goes down while it works on requests closes connections, too, but not at once.
_LOST_FEW, _LOST_PART, _LOST_SECONDS, _MADE_ENOUGH = 3, 0.05, 0.5, 1000
_MOST_BYTES = 64 << 20
_MOST_HEADER_BYTES = 64 << 10
_TOO_LONG = f"the answer is longer than {_MOST_BYTES:,} bytes"
_WARM_AT_ONCE = 100
_END_SECONDS = 0.2  # For the end of a stream after its last event; else the connection is closed.
_USAGE_SECONDS = 5.0  # For its end after the reason why the answer ended.
_TIMES, _TAIL = 256, 128
_JOINED_BYTES = 64 << 10  # Up to here one copy is cheaper than two writes.
_CODING = "content-encoding"
_ESCAPED = r"\\{1,8}"  # Without a bound, a long run of them would be read again from each of them.
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")
_CONNECTING = aiohttp.ClientTimeout(total=None, connect=_CONNECT_SECONDS)


class Reply(msgspec.Struct, frozen=True, gc=False):
    """What the server sent.

    Attributes:
        status: HTTP status.
        headers: As received, names in any case.
        body: Decompressed.
        came: When it came: (bytes of the body by then, seconds since it was asked), the first few
            hundred times; only of a stream.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    came: Sequence[tuple[int, float]] = ()

    def seconds_to(self, place: int) -> float | None:
        """After how many seconds the body was there up to a place; None when it is not known."""
        return next((seconds for size, seconds in self.came if size >= place), None)


class Client:
    """A pool of connections to one address; an async context manager.

    Args:
        endpoint: Address and key.
        direct: Whether requests go past aiohttp's session; by default they do without a proxy.
    """

    def __init__(self, endpoint: Endpoint, *, direct: bool | None = None) -> None:
        self._url = URL(endpoint.url)
        self._headers = CIMultiDict({"Content-Type": "application/json", "User-Agent": "batcher"})
        self._headers.update(endpoint.headers)
        if endpoint.key:
            self._headers["Authorization"] = f"Bearer {endpoint.key}"
        # "none" or "dummy" is no secret, but a word that answers may have.
        self._key = key if _is_secret(key := endpoint.key or "") else ""
        self._key_bytes = self._key.encode()
        self._by_chance = not _is_random(self._key)
        self._anyhow = _written(self._key)
        kept = [secret for secret in endpoint.secrets if _is_secret(secret)]
        self._secrets = [_written(secret) for secret in kept]
        self._secrets_by_chance = not all(map(_is_random, kept))
        self._direct = not _behind_proxy(self._url) if direct is None else direct
        self._session: aiohttp.ClientSession | None = None
        self._idle: list[_Open] = []
        # How often one was used again, how often that failed, and how many were made since.
        self._reused = self._lost = self._made = 0
        self._keeps = True

    async def __aenter__(self) -> Self:
        open_files()
        self._loop = asyncio.get_running_loop()
        self._connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=300)
        self._session = aiohttp.ClientSession(
            connector=self._connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
            trust_env=not is_loopback(self._url.host or ""),
            max_line_size=_MOST_HEADER_BYTES,
            max_field_size=_MOST_HEADER_BYTES,
        )
        # What a connection is asked for with, and what each request begins with.
        self._request = aiohttp.ClientRequest("POST", self._url, headers=self._headers)
        lines = [f"POST {self._url.raw_path_qs} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in self._request.headers.items()
                  if name.lower() not in ("content-length", "transfer-encoding")]  # fmt: skip
        self._head = "\r\n".join((*lines, "Content-Length: ")).encode()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for idle in self._idle:
            idle.close()
        if self._session is not None:
            await self._session.close()

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
        if self._session is None:
            raise RuntimeError("Client is used outside of its `async with`")
        connecting = _CONNECTING
        if timeout < _CONNECT_SECONDS:
            connecting = aiohttp.ClientTimeout(total=None, connect=timeout)
        exchange = self._exchange if self._direct else self._by_session
        try:
            return await exchange(body, connecting, timeout, idle)
        except aiohttp.ConnectionTimeoutError:
            raise _unsent(_late("connection", min(timeout, _CONNECT_SECONDS))) from None
        except _Silent:
            raise _late("more of the answer", idle or 0.0) from None
        except TimeoutError:
            raise _late("whole answer", timeout) from None
        except aiohttp.ClientPayloadError as error:
            if _CODING in str(error):
                raise BadResponse(f"the answer cannot be unpacked: {self._told(error)}") from None
            raise NoAnswer(f"the answer was cut: {self._told(error)}") from None
        except aiohttp.ClientHttpProxyError as error:
            told = f"{error.status} {self._told(error.message)}"
            raise _unsent(NoAnswer(f"the proxy of the environment refuses: {told}")) from None
        except (aiohttp.ClientResponseError, HttpProcessingError) as error:
            if _CODING in error.message:
                raise BadResponse(
                    f"the answer cannot be unpacked: {self._told(error.message)}"
                ) from None
            raise NoAnswer(f"the answer is no HTTP: {self._told(error.message)}") from None
        except aiohttp.ClientConnectorError as error:
            mended_by = _mended_by(error)
            failed = NoAnswer(f"no connection: {self._told(error)}{mended_by}")
            failed.lasting = bool(mended_by)
            raise _unsent(failed) from None
        except (aiohttp.ClientError, ssl.SSLError, OSError) as error:
            raise NoAnswer(f"no connection: {self._told(error)}") from None

    async def warm(self, count: int) -> None:
        """Opens so many connections ahead of the requests, a hundred at a time.

        What fails here fails again with a request, and is told then.
        """
        if not self._direct:
            return
        turns = asyncio.Semaphore(_WARM_AT_ONCE)

        async def one() -> None:
            async with turns:
                with contextlib.suppress(aiohttp.ClientError, OSError):
                    self._idle.append(await self._connect(_CONNECTING))

        await asyncio.gather(*(one() for _ in range(count)))

    async def _exchange(
        self,
        body: bytes,
        connecting: aiohttp.ClientTimeout,
        timeout: float,  # noqa: ASYNC109 (a deadline that costs less than asyncio's)
        idle: float | None,
    ) -> Reply:
        """What aiohttp's session would do, without what is the same for every request."""
        began = time.monotonic()
        opened = self._idle_one(began)
        if reused := opened is not None:
            self._reused += 1
        else:
            opened = await self._connect(connecting)
            self._made += 1
            if self._made > _MADE_ENOUGH:
                self._made = self._reused = self._lost = 0
                self._keeps = True
        transport, protocol = opened.connection.transport, opened.connection.protocol
        heard = False
        try:
            if protocol is None or transport is None:
                raise aiohttp.ServerDisconnectedError
            opened.wanted_by(began + timeout, began if reused else time.monotonic())
            # A new parser each time: half a head that came unasked is no part of the next answer.
            protocol.set_response_params(
                read_until_eof=True,
                max_line_size=_MOST_HEADER_BYTES,
                max_field_size=_MOST_HEADER_BYTES,
            )
            head = b"%b%d\r\n\r\n" % (self._head, len(body))
            if len(body) <= _JOINED_BYTES:
                transport.write(head + body)
            else:
                transport.writelines((head, body))
            message, payload = await protocol.read()
            heard = True
            while 100 <= message.code <= 199 and message.code != 101:  # Not the answer yet.
                message, payload = await protocol.read()
            came: list[tuple[int, float]] = []
            if idle is not None:
                answer, came = await _streamed(payload, message.headers, began, idle)
            elif payload.is_eof():
                answer = payload.read_nowait()
            else:
                answer = await _bounded(payload, message.headers)
            now = time.monotonic()
            if now - began >= timeout:  # An end that the deadline made is none.
                raise TimeoutError
        except Exception as error:
            opened.drop()
            took = time.monotonic() - began
            if took >= timeout and not isinstance(error, BadResponse | _Silent):
                raise TimeoutError from None
            lost = isinstance(error, aiohttp.ClientConnectionError | OSError) and not heard
            if reused and lost and took < _LOST_SECONDS:
                self._distrust()
            raise
        except BaseException:
            opened.drop()
            raise
        # A request that was answered before all of it was sent would be the next one's beginning.
        if protocol.should_close or transport.get_write_buffer_size() or not self._keeps:
            opened.drop()
        else:
            opened.rests(now)
            self._idle.append(opened)
        return self._reply(message.code, message.headers, message.raw_headers, answer, came)

    def _idle_one(self, now: float) -> _Open | None:
        """The one that was used last, so that those not needed any more grow old."""
        while self._idle:
            opened = self._idle.pop()
            if opened.fresh and now - opened.since < _KEEP_SECONDS:
                return opened
            opened.close()
        return None

    def _distrust(self) -> None:
        """A connection that was used again was closed without an answer: the others may be, too.

        A server that closes after each answer without saying so is given a new one each time; after a
        thousand of them it is tried once more.
        """
        while self._idle:
            self._idle.pop().close()
        self._lost += 1
        self._made = 0
        self._keeps = self._lost < _LOST_FEW or self._lost < _LOST_PART * self._reused

    async def _connect(self, within: aiohttp.ClientTimeout) -> _Open:
        try:
            connection = await self._connector.connect(self._request, [], within)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError from error
        return _Open(connection, self._loop)

    async def _by_session(
        self,
        body: bytes,
        connecting: aiohttp.ClientTimeout,
        timeout: float,  # noqa: ASYNC109
        idle: float | None,
    ) -> Reply:
        assert self._session is not None
        began = time.monotonic()
        came: list[tuple[int, float]] = []
        async with (
            asyncio.timeout(timeout),
            self._session.post(
                self._url, data=body, allow_redirects=False, timeout=connecting
            ) as response,
        ):
            try:
                if idle is None:
                    answer = await _bounded(response.content, response.headers)
                else:
                    answer, came = await _streamed(response.content, response.headers, began, idle)
            except (BadResponse, _Silent):
                response.close()
                raise
            if not response.content.at_eof():
                response.close()
            return self._reply(
                response.status, response.headers, response.raw_headers, answer, came
            )

    def _told(self, error: BaseException | str) -> str:
        """What an error says, without the key: some quote what was received."""
        text: str = clean(" ".join((str(error) or type(error).__name__).split()))
        if self._anyhow is not None:
            text = self._anyhow.sub(b"[key]", text.encode()).decode()
        return self._without_secrets(text.encode()).decode()[:300]

    def _without_secrets(self, text: bytes) -> bytes:
        """Without what secret headers hold, which some gateways repeat as they do the key."""
        for secret in filter(None, self._secrets):
            text = secret.sub(b"[secret]", text)
        return text

    def _reply(
        self,
        status: int,
        headers: Mapping[str, str],
        raw: Sequence[tuple[bytes, bytes]],
        body: bytes,
        came: Sequence[tuple[int, float]],
    ) -> Reply:
        """The reply without the key, which some gateways repeat in their errors, or in a header.

        What may stand in an answer by chance, such as 00000000, is left in it.
        """
        head = b"".join(chain.from_iterable(raw))
        if not head.isascii():  # Bytes that are no UTF-8 could not be written anywhere.
            headers = CIMultiDict((name, clean(value)) for name, value in headers.items())
        if key := self._key_bytes:
            is_answer = self._by_chance and 200 <= status < 300
            is_answer = is_answer and (b'"choices"' in body or b'"error"' not in body)
            if not is_answer and key in body:
                body = body.replace(key, b"[key]")
            if not is_answer and self._anyhow is not None and (b"\\u" in body or b"\\/" in body):
                body = self._anyhow.sub(b"[key]", body)
            if key in head:
                headers = CIMultiDict(
                    (name, value.replace(self._key, "[key]")) for name, value in headers.items()
                )
        if self._secrets:
            is_answer = 200 <= status < 300 and (b'"choices"' in body or b'"error"' not in body)
            if not (is_answer and self._secrets_by_chance):
                body = self._without_secrets(body)
            if self._without_secrets(head) != head:
                headers = CIMultiDict(
                    (name, self._without_secrets(value.encode()).decode())
                    for name, value in headers.items()
                )
        return Reply(status, headers, body, came)


class _Open:
    """An open connection, which is aborted when the time of its request is over.

    Its timer stays from one request to the next and looks, when it fires, whether it should have: so
    hardly any request sets one.

    Attributes:
        since: Since when it is idle (monotonic clock).
    """

    __slots__ = ("_fires", "_loop", "_until", "_watch", "connection", "since")

    def __init__(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        self.connection = connection
        self.since = time.monotonic()
        self._loop = loop
        self._until = self._fires = float("inf")
        self._watch: asyncio.TimerHandle | None = None

    @property
    def fresh(self) -> bool:
        """Whether a request can go over it; what came while it was idle would be taken for its answer."""
        protocol = self.connection.protocol
        return protocol is not None and protocol.is_connected() and not protocol.should_close

    def wanted_by(self, until: float, now: float) -> None:
        """A request goes, which is to be answered by then (monotonic clock)."""
        self._until = until
        if until < self._fires:
            self._stop()
            self._fires = until
            self._watch = self._loop.call_later(max(0.0, until - now), self._look)

    def _look(self) -> None:
        now = time.monotonic()
        self._watch, self._fires = None, float("inf")
        if self._until <= now:
            if self.connection.transport is not None:
                self.connection.transport.abort()
        elif self._until < float("inf"):
            self.wanted_by(self._until, now)

    def rests(self, now: float) -> None:
        """Its request was answered."""
        self.since, self._until = now, float("inf")

    def _stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()

    def close(self) -> None:
        """Closes it."""
        self._stop()
        self.connection.close()

    def drop(self) -> None:
        """Closes it, and waits for nobody to take what was not sent yet."""
        transport = self.connection.transport
        if transport is not None and transport.get_write_buffer_size():
            transport.abort()
        self.close()


class _Silent(Exception):
    """Nothing came for too long."""


async def _streamed(
    content: StreamReader, headers: Mapping[str, str], began: float, idle: float
) -> tuple[bytes, list[tuple[int, float]]]:
    """The body of a stream, which may not end after its last event; and when it came."""
    _check_length(headers)
    chunks: list[bytes] = []
    came: list[tuple[int, float]] = []
    size, tail, patience, whole = 0, b"", idle, False
    while True:
        try:
            async with asyncio.timeout(patience):
                chunk = await content.readany()
        except TimeoutError:
            if not whole:
                raise _Silent from None
            break
        except (aiohttp.ClientError, OSError):
            if not whole:
                raise
            break  # What came is the answer, though it was not told that it is all.
        if not chunk:
            break
        size += len(chunk)
        if size > _MOST_BYTES:
            raise BadResponse(_TOO_LONG)
        chunks.append(chunk)
        if len(came) < _TIMES:
            came.append((size, time.monotonic() - began))
        seen = tail + chunk
        if is_done(seen):
            patience, whole = min(idle, _END_SECONDS), True
        elif not whole and is_finished(seen):  # The usage is still to come.
            patience, whole = min(idle, _USAGE_SECONDS), True
        tail = seen[-_TAIL:]
    return b"".join(chunks), came


async def _bounded(content: StreamReader, headers: Mapping[str, str]) -> bytes:
    _check_length(headers)
    chunks, size = [], 0
    async for chunk in content.iter_any():
        size += len(chunk)
        if size > _MOST_BYTES:
            raise BadResponse(_TOO_LONG)
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _check_length(headers: Mapping[str, str]) -> None:
    length = headers.get("Content-Length", "")
    if length.isdecimal() and int(length) > _MOST_BYTES:
        raise BadResponse(f"the answer is {int(length):,} bytes long; {_MOST_BYTES:,} is the most")


def _behind_proxy(url: URL) -> bool:
    host = url.host or ""
    return url.scheme in getproxies() and not (is_loopback(host) or proxy_bypass(host))


def _late(what: str, seconds: float) -> NoAnswer:
    return NoAnswer(f"no {what} within {seconds:g} s", outcome=Outcome.TIMEOUT)


def _unsent(error: NoAnswer) -> NoAnswer:
    error.sent = False
    return error


def _mended_by(error: aiohttp.ClientConnectorError) -> str:
    """What to do where time alone does not help; "" where it may."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "; a certificate of your own is named by the variable SSL_CERT_FILE"
    if isinstance(error.os_error, ssl.SSLError) and error.os_error.reason in _NO_TLS:
        return "; there is no TLS: is the address one of http:// ?"
    if isinstance(error.os_error, socket.gaierror) and error.os_error.errno == socket.EAI_NONAME:
        return "; there is no host of that name"
    return ""


def _is_secret(key: str) -> bool:
    return len(key) >= 8 and not key.isalpha()


def _is_random(key: str) -> bool:
    """Whether no answer has these letters by chance; "00000000" and "sk-no-key-required" are no secrets."""
    return len(key) >= 16 and len(set(key)) >= 10 and any(char.isdigit() for char in key)


def _written(key: str) -> re.Pattern[bytes] | None:
    r"""Finds the key, also where JSON writes \u002d or \/, and an error quotes that; None without."""
    chars = (
        rf"(?:{re.escape(char)}|{_ESCAPED}u{ord(char):04x}{f'|{_ESCAPED}/' if char == '/' else ''})"
        for char in key
    )
    return re.compile("".join(chars).encode(), re.IGNORECASE) if key else None


def open_files() -> int:
    """How many files this process may have open, after asking the system for all it may ask for.

    A thousand connections need more than most systems allow at first.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for want in (65_536, 10_240, 4_096):  # macOS says that there is no limit, and allows 10,240.
        if soft < want and (hard == resource.RLIM_INFINITY or soft < hard):
            most = want if hard == resource.RLIM_INFINITY else min(want, hard)
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
                return most
    return soft
