"""Waits until the limits allow; the only place that waits for a limit. Touches: the clock.

One gate per model, one above all of them for the key: a request needs a place in both. Waiters of
one gate stand in line; the gates of other models are not held up by it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from batcher.job import Limits
from batcher.send.limits import Allowance, Concurrency

__all__ = ["Closed", "Door", "Gate", "KeyGate", "Ticket"]


class Ticket(NamedTuple):
    """The right to one HTTP exchange; `tokens` are reserved until `leave` settles them."""

    tokens: float


class Door(Protocol):
    """What the engine needs of a limit, and all that a shared one has to implement."""

    async def enter(self, tokens: float) -> Ticket:
        """Waits until one request of so many tokens may be sent."""

    def leave(self, ticket: Ticket, used: float | None) -> None:
        """The exchange is over; `used` tokens were charged, None when that is not known."""

    def answered(self) -> None:
        """The server answered in time."""

    def overloaded(self) -> None:
        """The server is overloaded, or did not answer in time."""

    def pause(self, seconds: float) -> None:
        """The server asked to send nothing for so long."""

    def close(self) -> None:
        """Nothing new is let in; whoever waits gets `Closed`."""


class Closed(Exception):
    """The run stops; what stood in line was not sent."""


class _Level:
    """One set of allowances: for a model, or for the key."""

    def __init__(self, limits: Limits, concurrency: Concurrency, now: float) -> None:
        self.requests = Allowance(limits.rpm, now) if limits.rpm else None
        self.tokens = Allowance(limits.tpm, now) if limits.tpm else None
        self.concurrency = concurrency
        self.in_flight = 0

    def wait(self, tokens: float, now: float) -> tuple[float, str]:
        """(seconds until allowed, what is waited for); infinite when all places are taken."""
        if self.in_flight >= self.concurrency.limit:
            return float("inf"), "a free place"
        longest, cause = 0.0, ""
        if self.requests and (wait := self.requests.wait(1, now)) > longest:
            longest, cause = wait, "requests"
        if self.tokens and (wait := self.tokens.wait(tokens, now)) > longest:
            longest, cause = wait, "tokens"
        return longest, cause

    def take(self, tokens: float, now: float) -> None:
        self.in_flight += 1
        if self.requests:
            self.requests.take(1, now)
        if self.tokens:
            self.tokens.take(tokens, now)

    def leave(self, reserved: float, used: float | None, now: float) -> None:
        self.in_flight -= 1
        if self.tokens and used is not None:
            self.tokens.settle(reserved, used, now)


class KeyGate:
    """What all models of one key share; wakes the models' gates when there is room again."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._level = _Level(limits, Concurrency(limits.concurrency or 1 << 30), clock())
        self._gates: list[Gate] = []

    def join(self, gate: Gate) -> _Level:
        """Adds a model's gate below this one."""
        self._gates.append(gate)
        return self._level

    def room(self) -> None:
        """A place of the key is free again: every model's line may look; turns rotate."""
        if self._level.concurrency.limit < 1 << 30:
            self._gates.append(self._gates.pop(0))
            for gate in tuple(self._gates):
                gate.look()


class Gate:
    """The gate of one model.

    Attributes:
        in_flight: Requests under way.
        waiting: Requests that stand in line.
        waits_for: What the first of them waits for, in a word for people.
    """

    def __init__(
        self, limits: Limits, key: KeyGate, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self.concurrency = Concurrency(limits.concurrency)
        self._own = _Level(limits, self.concurrency, clock())
        self._key = key
        self._shared = key.join(self)
        self._line: deque[tuple[asyncio.Future[None], float]] = deque()
        self._shut_until = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self.waits_for = ""

    @property
    def in_flight(self) -> int:
        """Requests under way."""
        return self._own.in_flight

    @property
    def waiting(self) -> int:
        """Requests that stand in line."""
        return len(self._line)

    async def enter(self, tokens: float) -> Ticket:
        """Waits until one request of so many tokens may be sent."""
        if self._closed:
            raise Closed
        if not self._line and self._admit(tokens, self._clock()) == 0.0:
            return Ticket(tokens)
        place = asyncio.get_running_loop().create_future()
        self._line.append((place, tokens))
        self.look()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and not place.exception():
                self.leave(Ticket(tokens), 0.0)
            else:
                self._line = deque(pair for pair in self._line if pair[0] is not place)
                self.look()
            raise
        return Ticket(tokens)

    def leave(self, ticket: Ticket, used: float | None) -> None:
        """Frees the place and settles the tokens; None keeps the reservation as used."""
        now = self._clock()
        self._own.leave(ticket.tokens, used, now)
        self._shared.leave(ticket.tokens, used, now)
        if self._line:
            self.look()
        self._key.room()

    def answered(self) -> None:
        """The server answered in time: there may be room for more at once."""
        self.concurrency.answered(self._own.in_flight, self._clock())

    def overloaded(self) -> None:
        """The server is overloaded: fewer at once."""
        self.concurrency.overloaded(self._clock())

    def pause(self, seconds: float) -> None:
        """Shuts this model's gate for so long, from now; a shorter pause never shortens it."""
        self._shut_until = max(self._shut_until, self._clock() + seconds)

    def close(self) -> None:
        """Nothing new is let in; whoever waits gets `Closed`."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for place, _tokens in self._line:
            if not place.done():
                place.set_exception(Closed())
        self._line.clear()

    def look(self) -> None:
        """Lets in whoever is allowed now, and sets the timer for the next."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._line:
            place, tokens = self._line[0]
            if place.done():
                self._line.popleft()
                continue
            wait = self._admit(tokens, self._clock())
            if wait > 0.0:
                if wait < float("inf"):
                    self._timer = asyncio.get_running_loop().call_later(wait, self.look)
                return
            self._line.popleft()
            place.set_result(None)
        self.waits_for = ""

    def _admit(self, tokens: float, now: float) -> float:
        """Takes a place in both levels and returns 0.0, or returns the seconds to wait."""
        shut = self._shut_until - now
        own, cause = self._own.wait(tokens, now)
        shared, shared_cause = self._shared.wait(tokens, now)
        wait = max(own, shared, shut, 0.0)
        if wait > 0.0:
            self.waits_for = "429" if shut >= wait else cause if own >= shared else shared_cause
            return wait
        self._own.take(tokens, now)
        self._shared.take(tokens, now)
        return 0.0
