"""A pool of connections to one address, and when one may be used again. Touches: the network.

HTTP/1.1 does not say which request a response belongs to. A response too many would be taken for the
answer to the next request on its connection. So a connection rests a moment before it is used again,
and anything that arrives meanwhile was not asked for. After the first such byte no connection to the
host is used twice; once the host sent something on a new connection, new ones rest as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import resource
import select
import time
from collections import deque
from collections.abc import Callable

import aiohttp
from aiohttp.connector import Connection as AiohttpConnection

from batcher.errors import NoAnswer

__all__ = ["CONNECT_SECONDS", "Connection", "ConnectionPool", "open_files"]

CONNECT_SECONDS = 30.0

_KEEP_SECONDS = 15.0  # As aiohttp does: servers close what is idle for longer.
# How long a connection rests before it is used again: with other requests in flight, and with none, when
# the next one has to wait for it. So many rest at most; beyond that the one that rested longest is used.
_REST_SECONDS, _LONE_REST_SECONDS, _MAX_RESTING = 0.02, 0.005, 64
_EARLY_REST_SECONDS = 0.1  # Of a new one, to a host that sent something before it was asked.
_WATCHED_FIRST = 100  # So many new connections rest before their first request.
# A server that shuts down while it works on requests closes connections, too, but not at once.
_LOST_SECONDS, _MAX_LOST, _MAX_LOST_SHARE, _FORGIVE_AFTER = 0.5, 3, 0.05, 1000
_WARM_AT_ONCE = 100
_LATE_SECONDS, _GRACE_SECONDS = 1.0, 5.0
_REMEMBERED_BYTES = 64 << 10
# An answer that has an ID of its own: a second one with the same bytes is a copy.
_WITH_ID = re.compile(rb'"id"\s*:\s*"[^"]{16}')
_ID_WITHIN = 2048
_CONNECTING = aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS)


class Connection(asyncio.Protocol):
    """An open connection, which is aborted at the deadline of its request.

    While it is idle it reads itself (as asyncio's protocol), as nothing should arrive then but its end.

    Its timer outlives a request and looks, when it fires, whether it should have: so hardly any request
    sets one.

    Args:
        connection: As aiohttp made it.
        loop: The running one.
        on_unasked: Called when bytes arrive while no request is in flight on it.

    Attributes:
        transport: Of the connection.
        protocol: Reads answers from it.
        idle_since: Since when it has no request (monotonic clock).
        expired: Whether it was aborted at its deadline.
        unasked: Whether bytes arrived while no request was in flight.
        reused: Whether it had a request before; set by the pool.
        proven: Whether it rested long enough for a host that sends something early; set by the pool.
    """

    __slots__ = (
        "_connection", "_deadline", "_fires_at", "_last_answer", "_last_body", "_loop", "_on_unasked", "_poll",
        "_timer", "expired", "idle_since", "protocol", "proven", "reused", "transport", "unasked",
    )  # fmt: skip

    def __init__(
        self,
        connection: AiohttpConnection,
        loop: asyncio.AbstractEventLoop,
        on_unasked: Callable[[], None],
    ) -> None:
        if connection.transport is None or connection.protocol is None:
            raise aiohttp.ServerDisconnectedError
        self._connection = connection
        self.transport = connection.transport
        self.protocol = connection.protocol
        self.idle_since = time.monotonic()
        self.expired = self.unasked = self.reused = self.proven = False
        self._last_body = self._last_answer = b""
        self._loop = loop
        self._deadline = self._fires_at = float("inf")
        self._timer: asyncio.TimerHandle | None = None
        self._on_unasked = on_unasked
        self._poll: select.poll | None = None

    @property
    def is_open(self) -> bool:
        """Whether a request can go over it after its rest."""
        return not self.transport.is_closing()

    def has_input(self) -> bool:
        """Whether the system holds bytes that the loop has not read yet."""
        if self._poll is None:
            sock = self.transport.get_extra_info("socket")
            if sock is None:
                return False
            self._poll = select.poll()
            self._poll.register(sock.fileno(), select.POLLIN)
        return bool(self._poll.poll(0))

    def set_deadline(self, deadline: float, now: float) -> None:
        """A request goes, which is to be answered by then (monotonic clock)."""
        self._deadline = deadline
        if deadline < self._fires_at:
            self._stop_timer()
            self._fires_at = deadline
            self._timer = self._loop.call_later(max(0.0, deadline - now), self._fire)

    def pause_deadline(self, now: float) -> float:
        """Stops the clock of a request that waits for us; returns the seconds that it has left."""
        left = self._deadline - now
        self._deadline = float("inf")
        return left

    def _fire(self) -> None:
        now = time.monotonic()
        late = now - self._fires_at
        self._timer, self._fires_at = None, float("inf")
        if self._deadline <= now and late > _LATE_SECONDS:
            # The process was stopped (a signal, a laptop's lid): what came meanwhile is to be read.
            self.set_deadline(now + _GRACE_SECONDS, now)
        elif self._deadline <= now:
            self.expired = True
            self.transport.abort()
        elif self._deadline < float("inf"):
            self.set_deadline(self._deadline, now)

    def rest(self, now: float) -> None:
        """Its request was answered; whatever arrives from now on was not asked for."""
        self.idle_since, self._deadline = now, float("inf")
        self.transport.set_protocol(self)

    def data_received(self, data: bytes) -> None:
        """Unasked bytes; some servers end an idle connection with a 408, which is harmless."""
        if data[9:12] != b"408":
            self.unasked = True
            self._on_unasked()
        self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Passes it on to aiohttp, which counts its connections."""
        self.protocol.connection_lost(exc)

    def remember(self, body: bytes, answer: bytes) -> None:
        """Keeps its last request and answer, unless they are long."""
        self._last_body = body if len(body) <= _REMEMBERED_BYTES else b""
        self._last_answer = answer if len(answer) <= _REMEMBERED_BYTES else b""

    def is_repeated(self, body: bytes, answer: bytes) -> bool:
        """Whether an answer is a copy of the last one, to another request.

        A gateway's cache answers an equal request with equal bytes.
        """
        return (
            answer == self._last_answer
            and body != self._last_body
            and _WITH_ID.search(answer, 0, _ID_WITHIN) is not None
        )

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def close(self) -> None:
        """Closes it."""
        self._stop_timer()
        self._connection.close()

    def drop(self) -> None:
        """Closes it without waiting for the server to take what was not sent yet."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        self.close()


class ConnectionPool:
    """Connections to one address.

    Args:
        request: What aiohttp is asked for a connection with.
    """

    def __init__(self, request: aiohttp.ClientRequest) -> None:
        self._request = request
        self._loop = asyncio.get_running_loop()
        self._connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=300)
        # Those that rest, the longest first, and those that did, the last one last.
        self._resting: deque[Connection] = deque()
        self._rested: list[Connection] = []
        # How often one was used again, how often that failed, and how many were made since.
        self._reused = self._lost = self._made = 0
        self._reuses, self._sends_unasked, self._sends_early = True, False, False

    async def close(self) -> None:
        """Closes all that are idle, and makes no more."""
        for idle in (*self._resting, *self._rested):
            idle.close()
        await self._connector.close()

    async def warm(self, count: int) -> None:
        """Opens so many connections ahead of the requests, a hundred at a time.

        A failure here comes again with a request, and is reported then.
        """
        turns = asyncio.Semaphore(_WARM_AT_ONCE)

        async def one() -> None:
            async with turns:
                with contextlib.suppress(aiohttp.ClientError, OSError):
                    opened = await self._connect(_CONNECTING)
                    opened.rest(time.monotonic())
                    self._resting.append(opened)

        await asyncio.gather(*(one() for _ in range(count)))

    def reuse(self, now: float, rest: float | None = None) -> Connection | None:
        """A connection that may be used again; the one used last, so that spare ones grow old.

        Args:
            now: The monotonic clock.
            rest: Seconds that it must have rested; None for what is usual.
        """
        rest = _REST_SECONDS if rest is None else rest
        resting, rested = self._resting, self._rested
        while resting and (now - resting[0].idle_since >= rest or len(resting) > _MAX_RESTING):
            rested.append(resting.popleft())
        while rested:
            connection = rested.pop()
            if not connection.is_open or now - connection.idle_since >= _KEEP_SECONDS:
                connection.close()
            elif connection.has_input():  # Its end, or unasked bytes: the loop will see.
                connection.rest(now)
                resting.append(connection)
            else:
                self._reused += 1
                connection.reused = True
                return connection
        return None

    async def connect(self, within: float, *, alone: bool) -> Connection:
        """A connection for the next request, most often a new one.

        Args:
            within: Seconds for it to open.
            alone: Whether no other request is in flight. Then one that rests is waited for: a server of
                one thread may serve no second connection while it keeps the first.

        Raises:
            NoAnswer: The server sends an answer before it is asked.
            aiohttp.ClientError: As aiohttp reports it.
        """
        if alone and self._resting:
            await asyncio.sleep(_LONE_REST_SECONDS)
            if (connection := self.reuse(time.monotonic(), _LONE_REST_SECONDS)) is not None:
                return connection
        timeout = _CONNECTING
        if within < CONNECT_SECONDS:
            timeout = aiohttp.ClientTimeout(total=None, connect=within)
        connection = await self._connect(timeout)
        self._made += 1
        if self._made > _FORGIVE_AFTER:
            self._made = self._reused = self._lost = 0
            self._reuses = True
        try:
            await self._watch(connection)
        except BaseException:
            connection.drop()
            raise
        return connection

    async def _watch(self, connection: Connection) -> None:
        """Lets a new connection rest, where that is needed, and sees whether something arrives."""
        if self._sends_unasked or self._made <= _WATCHED_FIRST:
            connection.rest(time.monotonic())
            await asyncio.sleep(_LONE_REST_SECONDS)
            if self._sends_early:
                connection.proven = True
                await asyncio.sleep(_EARLY_REST_SECONDS)
        if connection.unasked or (connection.is_open and connection.protocol.should_close):
            self._sends_early = True
            self._stop_reuse()
            error = NoAnswer("the server sends an answer before it is asked")
            error.sent = False
            raise error

    async def _connect(self, within: aiohttp.ClientTimeout) -> Connection:
        try:
            connection = await self._connector.connect(self._request, [], within)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError from error
        return Connection(connection, self._loop, self._stop_reuse)

    def release(self, connection: Connection, body: bytes, answer: bytes, now: float) -> bool:
        """Takes a connection back, behind the answer to `body`.

        Returns:
            False when the answer may be that to another request.
        """
        protocol = connection.protocol
        # A second response came with the first one, or the first one was sent twice and the second
        # came too late to be noticed at once.
        if len(protocol) or (connection.reused and connection.is_repeated(body, answer)):
            self._stop_reuse()
        if (connection.reused and self._sends_unasked) or (
            self._sends_early and not connection.proven
        ):
            connection.drop()
            return False
        reuses = self._reuses and not self._sends_unasked
        # A request that was answered before all of it was sent would be the next one's beginning.
        if protocol.should_close or connection.transport.get_write_buffer_size() or not reuses:
            connection.drop()
        else:
            connection.remember(body, answer)
            connection.rest(now)
            self._resting.append(connection)
        return True

    def lose(self, connection: Connection, since: float) -> None:
        """Notes a connection that closed without an answer to the request sent then (monotonic clock).

        If it was used again, the others may be closed, too. A server that closes after each answer
        without saying so is given a new one each time; after a thousand of them reuse is tried again.
        """
        if not connection.reused or time.monotonic() - since >= _LOST_SECONDS:
            return
        self._close_idle()
        self._lost += 1
        self._made = 0
        self._reuses = self._lost < _MAX_LOST or self._lost < _MAX_LOST_SHARE * self._reused

    def _stop_reuse(self) -> None:
        """The host sent bytes unasked: from now on each request has a connection of its own."""
        self._sends_unasked = True
        self._close_idle()

    def _close_idle(self) -> None:
        for idle in (*self._resting, *self._rested):
            idle.close()
        self._resting.clear()
        self._rested.clear()


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
