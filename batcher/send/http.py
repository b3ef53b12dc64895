"""One HTTP exchange, and nothing about chat. Touches: the network.

aiohttp makes the connections (names, TLS, proxies) and reads the answers; the request itself is one
write of bytes that are the same each time but for the body: half of what aiohttp's client session takes.

HTTP/1.1 does not say which request a response belongs to. A server that sends one too many would have
it taken for the answer to the next request on that connection, so a connection rests a moment before it
is used again, and after the first byte that a host sends unasked no connection to it is used twice; once
it sent something on a new one, new ones rest as well.

aiohttp's exceptions end here: what goes wrong below HTTP comes out as `NoAnswer`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import chain
from types import TracebackType
from typing import Self

import aiohttp
import msgspec
from aiohttp import StreamReader
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDict
from yarl import URL

from batcher.errors import BadResponse, NoAnswer
from batcher.job.endpoint import Endpoint, proxy_of
from batcher.records import Outcome, clean
from batcher.send.sse import is_done, is_finished

__all__ = ["NO_ROOM", "Client", "Reply", "open_files"]

NO_ROOM = "the answer does not fit into the memory of this machine"

_CONNECT_SECONDS = 30.0
_KEEP_SECONDS = 15.0  # As aiohttp does: servers close what is idle for longer.
# A server that goes down while it works on requests closes connections, too, but not at once.
_LOST_FEW, _LOST_PART, _LOST_SECONDS, _MADE_ENOUGH = 3, 0.05, 0.5, 1000
_MOST_BYTES = 64 << 20
_MOST_HEADER_BYTES = 64 << 10
# Beyond the first bytes, what answers may hold in memory together before they are in the journal.
_SMALL_BYTES, _ALL_BYTES = 1 << 20, 128 << 20
_TOO_LONG = f"the answer is longer than {_MOST_BYTES:,} bytes"
_WARM_AT_ONCE = 100
_END_SECONDS = 0.2  # For the end of a stream after its last event; else the connection is closed.
_USAGE_SECONDS = 5.0  # For its end after the reason why the answer ended.
_TIMES, _TAIL = 256, 128
_JOINED_BYTES = 64 << 10  # Up to here one copy is cheaper than two writes.
_CODING = "content-encoding"
_OF_PROXY = "the proxy of the environment (HTTPS_PROXY)"
_ESCAPED = r"\\{1,8}"  # Without a bound, a long run of them would be read again from each of them.
# How long a connection rests before it is used again: with other requests in flight, and with none, when
# the next one has to wait for it. So many rest at most; beyond that the one that rested longest is used.
_REST_SECONDS, _LONE_REST_SECONDS, _MOST_RESTING = 0.02, 0.005, 64
_EARLY_REST_SECONDS = 0.1  # Of a new one, to a host that sent something before it was asked.
_WATCHED_FIRST = 100  # Of so many connections it is seen whether answers come unasked.
_MOST_INTERIM = 1000  # 1xx responses to one request; some servers send one every second.
_LATE_SECONDS, _GRACE_SECONDS = 1.0, 5.0
# An answer that names itself: a second one with the same bytes is a copy.
_NAMED = re.compile(rb'"id"\s*:\s*"[^"]{16}')
_NAMED_WITHIN = 2048
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
        done: To be called when the body is no longer used, which makes room for other large answers.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    came: Sequence[tuple[int, float]] = ()
    done: Callable[[], None] = lambda: None

    def seconds_to(self, place: int) -> float | None:
        """After how many seconds the body was there up to a place; None when it is not known."""
        return next((seconds for size, seconds in self.came if size >= place), None)


class Client:
    """A pool of connections to one address; an async context manager.

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
        # "none" or "dummy" is no secret, but a word that answers may have.
        self._key = key if _is_secret(key := endpoint.key or "") else ""
        self._key_bytes = self._key.encode()
        self._by_chance = not _is_random(self._key)
        self._anyhow = _written(self._key)
        kept = [secret for secret in endpoint.secrets if _is_secret(secret)]
        self._secrets = [_written(secret) for secret in kept]
        self._secrets_by_chance = not all(map(_is_random, kept))
        self._anchor = max(re.findall(rb"[A-Za-z0-9]+", self._key_bytes), key=len, default=b"")
        self._proxy = proxy_of(endpoint.url, os.environ)
        login = () if self._proxy is None else self._proxy.login or ()
        self._logins = [word for word in (*login[1:], *self._tokens()) if len(word) > 3]
        self._memory = _Memory(_ALL_BYTES, clear)
        self._connector: aiohttp.TCPConnector | None = None
        # Those that rest, the longest first, and those that did, the last one last.
        self._resting: deque[_Connection] = deque()
        self._rested: list[_Connection] = []
        self._in_flight = 0
        # How often one was used again, how often that failed, and how many were made since.
        self._reused = self._lost = self._made = 0
        self._keeps, self._sends_unasked, self._sends_early = True, False, False
        self.reached = False
        self.unreached_since: float | None = None

    async def __aenter__(self) -> Self:
        open_files()
        self._loop = asyncio.get_running_loop()
        self._connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=300)
        # What a connection is asked for with, and what each request begins with.
        proxy, login = self._proxy, {} if self._proxy is None else self._proxy.headers
        self._request = aiohttp.ClientRequest(
            "POST",
            self._url,
            headers=self._headers,
            proxy=None if proxy is None else URL(proxy.url),
            proxy_headers=login,
        )
        target = self._url.raw_path_qs
        lines = [f"{name}: {value}" for name, value in self._request.headers.items()
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
        for idle in (*self._resting, *self._rested):
            idle.close()
        if self._connector is not None:
            await self._connector.close()

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
        if self._connector is None:
            raise RuntimeError("Client is used outside of its `async with`")
        connecting = _CONNECTING
        if timeout < _CONNECT_SECONDS:
            connecting = aiohttp.ClientTimeout(total=None, connect=timeout)
        began = time.monotonic()
        self._in_flight += 1
        try:
            return await self._exchange(body, connecting, timeout, idle, began)
        except aiohttp.ConnectionTimeoutError:
            raise self._unreached(
                _late("connection", min(timeout, _CONNECT_SECONDS)), began
            ) from None
        except _Silent:
            raise _late("more of the answer", idle or 0.0) from None
        except TimeoutError:
            raise _late("whole answer", timeout) from None
        except MemoryError:
            raise BadResponse(NO_ROOM) from None
        except aiohttp.ClientPayloadError as error:
            if _CODING in str(error):
                raise BadResponse(f"the answer cannot be unpacked: {self._told(error)}") from None
            raise NoAnswer(f"the answer was cut: {self._told(error)}") from None
        except aiohttp.ClientHttpProxyError as error:
            told = f"{error.status} {self._told(error.message)}"
            refused = NoAnswer(f"{_OF_PROXY} refuses: {told}")
            if error.status == 407:
                refused = NoAnswer(f"{refused}; it wants another user and password")
                refused.lasting = True
            raise self._unreached(refused, began) from None
        except (aiohttp.ClientResponseError, HttpProcessingError) as error:
            if _CODING in error.message:
                raise BadResponse(
                    f"the answer cannot be unpacked: {self._told(error.message)}"
                ) from None
            strange = NoAnswer(f"the answer is no HTTP: {self._told(error.message)}")
            raise self._unreached(strange, began, sent=True) from None
        except aiohttp.ClientConnectorError as error:
            mended_by = _mended_by(error)
            where = "" if self._proxy is None else f" to {_OF_PROXY}"
            failed = NoAnswer(f"no connection{where}: {self._told(error)}{mended_by}")
            failed.lasting = bool(mended_by)
            raise self._unreached(failed, began) from None
        except (aiohttp.ClientError, ssl.SSLError, OSError) as error:
            raise NoAnswer(f"no connection: {self._told(error)}") from None
        finally:
            self._in_flight -= 1

    def _unreached(self, error: NoAnswer, began: float, *, sent: bool = False) -> NoAnswer:
        """The error of a request behind which nothing was found that speaks HTTP."""
        error.sent = sent
        if self.unreached_since is None:
            self.unreached_since = began
        return error

    async def warm(self, count: int) -> None:
        """Opens so many connections ahead of the requests, a hundred at a time.

        What fails here fails again with a request, and is told then.
        """
        turns = asyncio.Semaphore(_WARM_AT_ONCE)

        async def one() -> None:
            async with turns:
                with contextlib.suppress(aiohttp.ClientError, OSError):
                    opened = await self._connect(_CONNECTING)
                    opened.rests(time.monotonic())
                    self._resting.append(opened)

        await asyncio.gather(*(one() for _ in range(count)))

    async def _exchange(
        self,
        body: bytes,
        connecting: aiohttp.ClientTimeout,
        timeout: float,  # noqa: ASYNC109 (a deadline that costs less than asyncio's)
        idle: float | None,
        began: float,
    ) -> Reply:
        """What aiohttp's session would do, without what is the same for every request."""
        opened = self._idle_one(began)
        if opened is None and self._resting and self._in_flight == 1:
            # A server of one thread may serve no second connection while it keeps the first.
            await asyncio.sleep(_LONE_REST_SECONDS)
            opened = self._idle_one(time.monotonic(), _LONE_REST_SECONDS)
        if reused := opened is not None:
            self._reused += 1
        else:
            opened = await self._connect(connecting)
            self._made += 1
            if self._made > _MADE_ENOUGH:
                self._made = self._reused = self._lost = 0
                self._keeps = True
        transport, protocol = opened.transport, opened.protocol
        heard, share = False, None
        proved = False
        try:
            if not reused and (self._sends_unasked or self._made <= _WATCHED_FIRST):
                opened.rests(time.monotonic())
                await asyncio.sleep(_LONE_REST_SECONDS)
                if proved := self._sends_early:
                    await asyncio.sleep(_EARLY_REST_SECONDS)
            if not reused and (opened.unasked or (opened.fresh and protocol.should_close)):
                self._sends_early = True
                self._unasked()
                raise _unsent(NoAnswer("the server sends an answer before it is asked"))
            if not opened.fresh:
                raise aiohttp.ServerDisconnectedError
            transport.set_protocol(protocol)
            now = began if reused else time.monotonic()
            opened.wanted_by(began + timeout, now)
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
            heard = self.reached = True
            interim = 0
            while 100 <= message.code <= 199:  # Not the answer yet.
                interim += 1
                if interim > _MOST_INTERIM or message.code == 101:
                    raise NoAnswer(
                        f"instead of an answer came HTTP {message.code} ({interim:,} times)"
                    )
                message, payload = await protocol.read()
            came: list[tuple[int, float]] = []
            if idle is None and payload.is_eof():
                answer = payload.read_nowait()
            else:
                share = _Share(self._memory, opened, message.headers)
                if idle is None:
                    answer = await _bounded(payload, share)
                else:
                    answer, came = await _streamed(payload, share, began, idle)
            now = time.monotonic()
            if opened.expired and not (message.chunked or "Content-Length" in message.headers):
                raise TimeoutError  # Its end is one that the deadline made.
        except BaseException as error:
            if share is not None:
                share.give()
            opened.drop()
            if not isinstance(error, Exception):
                raise
            if opened.expired and not isinstance(error, BadResponse | _Silent):
                raise TimeoutError from None
            lost = isinstance(error, aiohttp.ClientConnectionError | OSError) and not heard
            if reused and lost and time.monotonic() - began < _LOST_SECONDS:
                self._distrust()
            raise
        if len(protocol):  # A second response came with the first one.
            self._unasked()
        if (
            reused
            and answer == opened.last
            and body != opened.asked  # A gateway's cache answers an equal request so.
            and _NAMED.search(answer, 0, _NAMED_WITHIN)
        ):
            self._unasked()  # It was sent twice, and the second time too late to be noticed at once.
        if (reused and self._sends_unasked) or (self._sends_early and not proved):
            opened.drop()
            if share is not None:
                share.give()
            raise NoAnswer(
                "the server sends more answers than it is asked for; this may be another's"
            )
        # A request that was answered before all of it was sent would be the next one's beginning.
        keeps = self._keeps and not self._sends_unasked
        if protocol.should_close or transport.get_write_buffer_size() or not keeps:
            opened.drop()
        else:
            opened.last = answer if len(answer) <= _JOINED_BYTES else b""
            opened.asked = body if len(body) <= _JOINED_BYTES else b""
            opened.rests(now)
            self._resting.append(opened)
        reply = self._reply(message.code, message.headers, message.raw_headers, answer, came)
        return reply if share is None else msgspec.structs.replace(reply, done=share.give)

    def _idle_one(self, now: float, rest: float = _REST_SECONDS) -> _Connection | None:
        """One that may be used again; the one used last, so that those not needed any more grow old."""
        resting, rested = self._resting, self._rested
        while resting and (now - resting[0].since >= rest or len(resting) > _MOST_RESTING):
            rested.append(resting.popleft())
        while rested:
            opened = rested.pop()
            if not opened.fresh or now - opened.since >= _KEEP_SECONDS:
                opened.close()
            elif opened.readable:  # Its end, or what nobody asked for: the loop will see.
                opened.since = now
                resting.append(opened)
            else:
                return opened
        return None

    def _unasked(self) -> None:
        """The host sent what nobody asked for: from now on each request has a connection of its own."""
        self._sends_unasked = True
        for opened in (*self._resting, *self._rested):
            opened.close()
        self._resting.clear()
        self._rested.clear()

    def _distrust(self) -> None:
        """A connection that was used again was closed without an answer: the others may be, too.

        A server that closes after each answer without saying so is given a new one each time; after a
        thousand of them it is tried once more.
        """
        for opened in (*self._resting, *self._rested):
            opened.close()
        self._resting.clear()
        self._rested.clear()
        self._lost += 1
        self._made = 0
        self._keeps = self._lost < _LOST_FEW or self._lost < _LOST_PART * self._reused

    async def _connect(self, within: aiohttp.ClientTimeout) -> _Connection:
        assert self._connector is not None
        try:
            connection = await self._connector.connect(self._request, [], within)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError from error
        return _Connection(connection, self._loop, self._unasked)

    def _told(self, error: BaseException | str) -> str:
        """What an error says, without the key: some quote what was received."""
        text: str = clean(" ".join((str(error) or type(error).__name__).split()))
        if self._anyhow is not None:
            text = self._anyhow.sub(b"[key]", text.encode()).decode()
        for word in self._logins:
            text = text.replace(word, "[password]")
        return self._without_secrets(text.encode()).decode()[:300]

    def _tokens(self) -> list[str]:
        """What the proxy is sent, without the word `Basic`."""
        sent = {} if self._proxy is None else self._proxy.headers
        return [value.partition(" ")[2] for value in sent.values()]

    def without_keys(self, status: int, body: bytes) -> bytes:
        """A body without the key and secret headers; also for one that was put together from pieces.

        What may stand in an answer by chance, such as 00000000, is left in it.
        """
        if key := self._key_bytes:
            is_answer = self._by_chance and 200 <= status < 300
            is_answer = is_answer and (b'"choices"' in body or b'"error"' not in body)
            if not is_answer and key in body:
                body = body.replace(key, b"[key]")
            # Nobody writes letters and digits in another way, or only in an error.
            if (
                not is_answer
                and self._anyhow is not None
                and (b"\\u" in body or b"\\/" in body)
                and (self._anchor in body or (status >= 400 and len(body) <= _JOINED_BYTES))
            ):
                body = self._anyhow.sub(b"[key]", body)
        if self._secrets:
            is_answer = 200 <= status < 300 and (b'"choices"' in body or b'"error"' not in body)
            if not (is_answer and self._secrets_by_chance):
                body = self._without_secrets(body)
        return body

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
        """The reply without the key, which some gateways repeat in their errors, or in a header."""
        head = b"".join(chain.from_iterable(raw))
        if not head.isascii():  # Bytes that are no UTF-8 could not be written anywhere.
            headers = CIMultiDict((name, clean(value)) for name, value in headers.items())
        if (key := self._key_bytes) and key in head:
            headers = CIMultiDict(
                (name, value.replace(self._key, "[key]")) for name, value in headers.items()
            )
        if self._secrets and self._without_secrets(head) != head:
            headers = CIMultiDict(
                (name, self._without_secrets(value.encode()).decode())
                for name, value in headers.items()
            )
        body = self.without_keys(status, body)
        if status >= 300:  # Perhaps of the proxy.
            for word in self._logins:
                body = body.replace(word.encode(), b"[password]")
                if word.encode() in head:
                    headers = CIMultiDict(
                        (name, value.replace(word, "[password]"))
                        for name, value in headers.items()
                    )
        return Reply(status, headers, body, came)


class _Connection:
    """An open connection, which is aborted when the time of its request is over.

    Its timer stays from one request to the next and looks, when it fires, whether it should have: so
    hardly any request sets one.

    Args:
        connection: As aiohttp made it.
        loop: The running one.
        unasked: Called when something comes while no request is in flight on it.

    Attributes:
        transport: Of the connection, as
        protocol: is this, which reads answers.
        since: Since when it is idle (monotonic clock).
        asked: The last request that went over it, unless it was long.
        last: The answer to it, unless it was long.
        expired: Whether it was aborted because the time was over.
        unasked: Whether something came while no request was in flight.
    """

    __slots__ = (
        "_fires", "_guard", "_loop", "_poll", "_until", "_watch",
        "asked", "connection", "expired", "last", "protocol", "since", "transport", "unasked",
    )  # fmt: skip

    def __init__(
        self,
        connection: Connection,
        loop: asyncio.AbstractEventLoop,
        unasked: Callable[[], None],
    ) -> None:
        if connection.transport is None or connection.protocol is None:
            raise aiohttp.ServerDisconnectedError
        self.connection = connection
        self.transport = connection.transport
        self.protocol = connection.protocol
        self.since = time.monotonic()
        self.asked = self.last = b""
        self.expired = self.unasked = False
        self._loop = loop
        self._until = self._fires = float("inf")
        self._watch: asyncio.TimerHandle | None = None
        self._guard = _Guard(self, unasked)
        self._poll: select.poll | None = None

    @property
    def fresh(self) -> bool:
        """Whether a request can go over it after its rest."""
        return not self.transport.is_closing()

    @property
    def readable(self) -> bool:
        """Whether the system holds something that the loop has not read yet."""
        if self._poll is None:
            sock = self.transport.get_extra_info("socket")
            if sock is None:
                return False
            self._poll = select.poll()
            self._poll.register(sock.fileno(), select.POLLIN)
        return bool(self._poll.poll(0))

    def wanted_by(self, until: float, now: float) -> None:
        """A request goes, which is to be answered by then (monotonic clock)."""
        self._until = until
        if until < self._fires:
            self._stop()
            self._fires = until
            self._watch = self._loop.call_later(max(0.0, until - now), self._look)

    def _look(self) -> None:
        now = time.monotonic()
        late = now - self._fires
        self._watch, self._fires = None, float("inf")
        if self._until <= now and late > _LATE_SECONDS:
            # The process was stopped (a signal, a laptop's lid): what came meanwhile is to be read.
            self.wanted_by(now + _GRACE_SECONDS, now)
        elif self._until <= now:
            self.expired = True
            self.transport.abort()
        elif self._until < float("inf"):
            self.wanted_by(self._until, now)

    def stop_clock(self, now: float) -> float:
        """Its request waits for us; how many seconds it has left."""
        left = self._until - now
        self._until = float("inf")
        return left

    def rests(self, now: float) -> None:
        """Its request was answered; what comes from now on is unasked."""
        self.since, self._until = now, float("inf")
        self.transport.set_protocol(self._guard)

    def _stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()

    def close(self) -> None:
        """Closes it."""
        self._stop()
        self.connection.close()

    def drop(self) -> None:
        """Closes it, and waits for nobody to take what was not sent yet."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        self.close()


class _Guard(asyncio.Protocol):
    """Reads an idle connection, on which nothing should come but its end."""

    def __init__(self, opened: _Connection, unasked: Callable[[], None]) -> None:
        self._opened = opened
        self._unasked = unasked

    def data_received(self, data: bytes) -> None:
        """Some servers end an idle connection with a 408, which harms nobody."""
        if data[9:12] != b"408":
            self._opened.unasked = True
            self._unasked()
        self._opened.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tells aiohttp, which keeps book of its connections."""
        self._opened.protocol.connection_lost(exc)


class _Memory:
    """What large answers may take together, until they are read; the next one waits.

    Args:
        most: Bytes.
        clear: Awaited first: returns when the results of earlier ones are out of memory.
    """

    def __init__(self, most: int, clear: Callable[[], Awaitable[None]] | None) -> None:
        self._most = most
        self._clear = clear
        self._taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self, size: int) -> None:
        """Waits until there are so many bytes; for one answer alone there always are."""
        if self._clear is not None:
            await self._clear()
        while self._taken and self._taken + size > self._most:
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


class _Share:
    """One answer's part of that memory.

    Args:
        memory: Of which it takes.
        opened: Whose time does not run while it waits.
        headers: Of the answer.

    Raises:
        BadResponse: The answer says that it is too long.
    """

    def __init__(self, memory: _Memory, opened: _Connection, headers: Mapping[str, str]) -> None:
        self._memory = memory
        self._opened = opened
        self._taken = 0
        told = headers.get("Content-Length", "")
        self._length = int(told) if told.isdecimal() else _MOST_BYTES
        if self._length > _MOST_BYTES:
            raise BadResponse(
                f"the answer is {self._length:,} bytes long; {_MOST_BYTES:,} is the most"
            )
        if _CODING in headers:
            self._length = _MOST_BYTES

    async def take(self, size: int) -> None:
        """There are so many bytes of the answer; waits before there are many.

        Raises:
            BadResponse: They are too many.
        """
        if size > _MOST_BYTES:
            raise BadResponse(_TOO_LONG)
        if size > _SMALL_BYTES and not self._taken:
            left = self._opened.stop_clock(time.monotonic())
            await self._memory.take(self._length)
            self._taken = self._length
            now = time.monotonic()
            self._opened.wanted_by(now + left, now)

    def give(self) -> None:
        """The answer is not needed any more."""
        self._memory.give(self._taken)
        self._taken = 0


class _Silent(Exception):
    """Nothing came for too long."""


async def _streamed(
    content: StreamReader, share: _Share, began: float, idle: float
) -> tuple[bytes, list[tuple[int, float]]]:
    """The body of a stream, which may not end after its last event; and when it came."""
    chunks: list[bytes] = []
    came: list[tuple[int, float]] = []
    size, tail, patience, whole = 0, b"", idle, False
    while True:
        before, asked = content.total_bytes, time.monotonic()
        try:
            async with asyncio.timeout(patience):
                chunk = await content.readany()
        except TimeoutError:
            late = time.monotonic() - asked - patience > _LATE_SECONDS
            if late or content.total_bytes > before or content.is_eof():
                continue  # The process was stopped: what came meanwhile is to be read.
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
        await share.take(size)
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


async def _bounded(content: StreamReader, share: _Share) -> bytes:
    chunks, size = [], 0
    async for chunk in content.iter_any():
        size += len(chunk)
        await share.take(size)
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


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
