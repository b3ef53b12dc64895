"""The limits of a model that several workers share, as one worker's engine uses them. Touches: the clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from batcher.cluster.messages import (
    ALONE_SHARE,
    GateStatus,
    Grant,
    InFlightRequest,
    QueuedRequest,
)
from batcher.job.job import Limits
from batcher.limits.gate import Gate, KeyGate
from batcher.limits.port import Closed, ExchangeOutcome, Pace, Ticket

__all__ = ["UNKNOWN", "SharedGate"]

_STALE_SECONDS = 1.0
_FIRST_PLACES = 16
_UNSENT = ExchangeOutcome("unsent")

UNKNOWN = GateStatus(_FIRST_PLACES, "", 0.0, refusing=False, pace=Pace(None, None, _FIRST_PLACES))
"""The status of a gate before the hub's first reply."""


class _Link(Protocol):
    """What a gate needs of the worker's link: see `cluster.link.Link`."""

    alone: bool

    def next_number(self) -> int:
        """The number of the next request."""

    def queue(self, request: QueuedRequest) -> None:
        """Reports a request that joined a line."""

    def over(self, number: int, outcome: ExchangeOutcome) -> None:
        """Reports how a request ended."""


class _HubTicket(Ticket, frozen=True):
    """A ticket that the hub gave, with the number of its request."""

    number: int


class _Entry(NamedTuple):
    """A request in line; its future holds the ticket and the time from which on it may be sent."""

    granted: asyncio.Future[tuple[Ticket, float]]
    tokens: float
    most: float | None


class SharedGate:
    """The limits of one model, which the hub holds: a `RateLimiter`.

    Attributes:
        status: What the hub said last.
    """

    def __init__(self, link: _Link, model: str, clock: Callable[[], float]) -> None:
        self._link, self._model, self._clock = link, model, clock
        self._line: dict[int, _Entry] = {}
        self._in_flight: dict[int, Ticket] = {}  # By the hub's leave.
        self._alone_in_flight = 0
        self._own: Gate | None = None  # While the worker is alone.
        self._serving: asyncio.Task[None] | None = None
        self._closed = False
        self.status = UNKNOWN
        self.waited: dict[str, float] = {}

    @property
    def refusing(self) -> bool:
        """Whether the last exchange without an answer was a refusal, at any worker."""
        return self.status.refusing

    @property
    def max_in_flight(self) -> int:
        """How many requests of this worker may be in flight, and in line."""
        return self.status.max_in_flight

    @property
    def in_flight(self) -> int:
        """How many requests of this worker are in flight."""
        return len(self._in_flight) + self._alone_in_flight

    @property
    def waiting(self) -> int:
        """How many requests of this worker stand in line."""
        return len(self._line)

    @property
    def waits_for(self) -> str:
        """What the first in line of all workers waits for."""
        return "the limits" if self._link.alone else self.status.waits_for

    async def enter(self, tokens: float, most: float | None = None) -> Ticket:
        """Waits until a request may be sent; see `RateLimiter.enter`."""
        while not self._closed:
            number = self._link.next_number()
            granted: asyncio.Future[tuple[Ticket, float]] = (
                asyncio.get_running_loop().create_future()
            )
            self._line[number] = _Entry(granted, tokens, most)
            if self._own is None:
                self._link.queue(QueuedRequest(number, self._model, tokens, most))
            else:
                self._serve(self._own)
            try:
                ticket, due = await granted
                if (early := due - self._clock()) > 0.0:
                    await asyncio.sleep(early)
            except asyncio.CancelledError:
                if granted.done() and not granted.cancelled() and not granted.exception():
                    self.leave(granted.result()[0], _UNSENT)
                elif self._line.pop(number, None) is not None:
                    self._link.over(number, _UNSENT)
                raise
            if self._clock() - due <= _STALE_SECONDS and not self._closed:
                return ticket
            self.leave(
                ticket, _UNSENT
            )  # The process slept: the grant may belong to others by now.
        raise Closed

    def leave(self, ticket: Ticket, outcome: ExchangeOutcome) -> None:
        """Ends the exchange that a ticket was given for."""
        if isinstance(ticket, _HubTicket):
            self._in_flight.pop(ticket.number, None)
            self._link.over(ticket.number, outcome)
        else:
            self._alone_in_flight -= 1
            if self._own is not None:
                self._own.leave(ticket, outcome)

    def close(self) -> None:
        """Lets nothing new in; requests in line get `Closed`."""
        self._closed = True
        for number, entry in self._line.items():
            if not entry.granted.done():
                entry.granted.set_exception(Closed())
            self._link.over(number, _UNSENT)
        self._line.clear()
        if self._own is not None:
            self._own.close()

    def free(self, _tokens: float, _most: float | None = None) -> bool:
        """Whether a request would be let in at once, as far as this worker knows."""
        paced = (self.status.pace.requests, self.status.pace.tokens) != (None, None)
        return not self._line and (not paced or self.in_flight < self.max_in_flight)

    def silent(self, _most: float, *, alive: bool) -> float:
        """As the hub says; without it, 0.0."""
        del alive
        return 0.0 if self._link.alone else self.status.silent

    def share(self) -> float | None:
        """None: the hub knows it, and tells the driver."""
        return None

    # For the link

    def requests_in_line(self) -> Sequence[QueuedRequest]:
        """Requests that wait."""
        return [
            QueuedRequest(number, self._model, entry.tokens, entry.most)
            for number, entry in self._line.items()
            if not entry.granted.done()
        ]

    def requests_in_flight(self) -> Sequence[InFlightRequest]:
        """Requests in flight by the hub's leave."""
        return [
            InFlightRequest(number, self._model, ticket)
            for number, ticket in self._in_flight.items()
        ]

    def update(self, status: GateStatus) -> None:
        """Takes what the hub says about the model."""
        self.status = status

    def grant(self, grant: Grant, due: float) -> bool:
        """Lets a request go from a time on; False if it does not wait in this line."""
        entry = self._line.pop(grant.number, None)
        if entry is None or entry.granted.done():
            return False
        given = grant.ticket
        ticket = _HubTicket(given.tokens, given.sent_at, given.cause, given.most, grant.number)
        self._in_flight[grant.number] = ticket
        entry.granted.set_result((ticket, due))
        return True

    def go_alone(self, workers: int) -> None:
        """Goes on without the hub, at a safe part of the last known pace."""
        share = ALONE_SHARE / max(1, workers)
        requests, tokens, max_in_flight = self.status.pace
        limits = Limits(
            rpm=None if requests is None else requests * share * 60,
            tpm=None if tokens is None else tokens * share * 60,
            concurrency=max(1, int(max_in_flight * share)),
        )
        self._own = Gate(limits, KeyGate(Limits(), self._clock), self._clock)
        if self._closed:
            self._own.close()
        self._serve(self._own)

    def leave_to_hub(self) -> None:
        """Goes on with the hub, which gets the requests in line with the next report."""
        self._own = None
        if self._serving is not None:
            self._serving.cancel()
            self._serving = None

    def _serve(self, own: Gate) -> None:
        if self._serving is None and self._line:
            self._serving = asyncio.get_running_loop().create_task(self._let_in(own))

    async def _let_in(self, own: Gate) -> None:
        while self._line:
            number, entry = next(iter(self._line.items()))
            try:
                ticket = await own.enter(entry.tokens, entry.most)
            except Closed:
                break
            if self._line.pop(number, None) is None or entry.granted.done():
                own.leave(ticket, _UNSENT)
                continue
            self._alone_in_flight += 1
            entry.granted.set_result((ticket, self._clock()))
        self._serving = None
