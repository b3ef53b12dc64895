"""A worker's line to the hub: the limits of each model as the engine wants them. Touches: the clock.

What enters is told with the next call, and what may go comes back with one of the next. A call that
gets no answer for two seconds leaves the worker alone: for some seconds it goes on at half of its part
of the last pace that it knew, and with half of its places; then it waits until the hub answers again.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

from batcher.cluster.hub import (
    ALONE_SECONDS,
    SAFE,
    SLICE,
    Flying,
    Grant,
    Line,
    Reply,
    Turn,
    View,
    Want,
)
from batcher.cluster.shared_budget import SharedBudget, Spends
from batcher.job.job import Limits
from batcher.limits.gate import Gate, KeyGate
from batcher.limits.port import Closed, ExchangeOutcome, Pace, Ticket
from batcher.records import Result

__all__ = ["Link", "SharedGate", "Unreachable"]

_PATIENCE_SECONDS = 2.0
_STALE_SECONDS = 1.0
_FIRST_PLACES = 16
_LAST_TURNS = 3
_DELAY = 0.1
_DRIFT = 1e-4  # Seconds a second by which clocks of two machines may part.
_NOT_YET = View(_FIRST_PLACES, "", 0.0, refusing=False, pace=Pace(None, None, _FIRST_PLACES))


class Unreachable(Exception):
    """The hub gave no answer."""


class _Given(Ticket, frozen=True):
    """A ticket of the hub's, with its number."""

    number: int


class _Entry(NamedTuple):
    place: asyncio.Future[tuple[Ticket, float]]
    tokens: float
    most: float | None


class Link:
    """One attempt at a shard, as the hub knows it.

    Args:
        call: Makes a turn; raises `Unreachable`.
        shard: Which shard.
        attempt: Which attempt at it; later ones have larger numbers.
        on_stop: Called once, when nothing new is to be sent.
        lines: Tells how the worker stands, by model.
        clock: In seconds.
        in_dollars: Whether the budget is one in dollars; None without one.

    Attributes:
        budget: What may be spent; None for no bound.
    """

    def __init__(
        self,
        call: Callable[[Turn], Awaitable[Reply]],
        shard: int,
        attempt: int,
        on_stop: Callable[[], None],
        lines: Callable[[], Mapping[str, Line]] = dict,
        clock: Callable[[], float] = time.monotonic,
        in_dollars: bool | None = None,
    ) -> None:
        self._call = call
        self._shard, self._attempt = shard, attempt
        self._on_stop, self._lines = on_stop, lines
        self._clock = clock
        self._gates: dict[str, SharedGate] = {}
        self._numbers, self._serials = itertools.count(), itertools.count()
        self._new = asyncio.Event()
        self.budget = None if in_dollars is None else SharedBudget(in_dollars, self._new.set)
        self._wants: list[Want] = []
        self._gone: list[int] = []
        self._heard: list[tuple[int, ExchangeOutcome]] = []
        self._ended: list[Result] = []
        self._ahead: float | None = None  # How far the hub's clock is ahead of ours, at least.
        self._turned = 0.0
        self._workers = 1
        self._known = self._stopped = False
        self.alone, self._alone_since = False, 0.0

    def gate(self, model: str) -> SharedGate:
        """The limits of a model."""
        gate = self._gates.get(model)
        if gate is None:
            gate = self._gates[model] = SharedGate(self, model, self._clock)
        return gate

    def ended(self, result: Result) -> None:
        """Tells the driver of a row."""
        self._ended.append(result)
        self._new.set()

    async def run(self) -> None:
        """Calls the hub until cancelled."""
        while True:
            after = await self.turn()
            began = self._clock()
            standing = any(gate.waiting for gate in self._gates.values())
            standing |= self.budget is not None and self.budget.waiting
            if not standing:
                try:
                    async with asyncio.timeout(SLICE):
                        await self._new.wait()
                except TimeoutError:
                    continue
            await asyncio.sleep(max(0.0, began + after - self._clock()))

    async def turn(self) -> float:
        """One call; how many seconds until the next makes sense."""
        turn = self._told()
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                reply = await self._call(turn)
        except (Unreachable, TimeoutError):
            # It may have heard all of it or nothing: the next one tells it anew.
            self._unheard(turn)
            self._be_alone()
            return SLICE
        if not reply.known:
            self._unheard(turn)
            return 0.0
        self._hear(reply)
        return reply.after

    async def close(self) -> None:
        """Tells what came of the last ones."""
        for _try in range(_LAST_TURNS):
            await self.turn()
            if self._known and not (self.budget is not None and self.budget.owes):
                break

    def _unheard(self, turn: Turn) -> None:
        self._known = False
        self._ended[:0] = turn.ended
        if self.budget is not None:
            self.budget.unheard(turn.spends)

    def _told(self) -> Turn:
        self._new.clear()
        anew = not self._known
        flying: Sequence[Flying] | None = None
        if anew:
            gates = self._gates.values()
            flying = [flying for gate in gates for flying in gate.flying()]
            self._wants = [want for gate in gates for want in gate.line()]
            self._gone, self._heard = [], []
        turn = Turn(
            self._shard,
            self._attempt,
            self._wants,
            self._gone,
            self._heard,
            self._ended,
            self._lines(),
            flying,
            self._paces() if anew else {},
            Spends() if self.budget is None else self.budget.tell(anew=anew),
            next(self._serials),
        )
        self._wants, self._gone, self._heard, self._ended = [], [], [], []
        self._known = True
        return turn

    def _paces(self) -> Mapping[str, Pace]:
        gates = self._gates.items()
        return {model: gate.view.pace for model, gate in gates if gate.view is not _NOT_YET}

    def _hear(self, reply: Reply) -> None:
        now = self._clock()
        ahead = reply.now - now
        if self._ahead is not None:
            ahead = max(ahead, self._ahead - _DRIFT * (now - self._turned))
        self._ahead, self._turned = ahead, now
        self._workers = reply.workers
        if self.alone:
            self.alone = False
            # What came to the line while this call was under way was told to nobody.
            self._known = False
            for gate in self._gates.values():
                gate.be_together()
        for model, view in reply.views.items():
            self.gate(model).view = view
        for grant in reply.granted:
            due = now
            if grant.paced:
                # By the hub's clock, and later than calls take: when they come changes nothing.
                due = max(now, grant.ticket.sent_at - self._ahead + reply.after + _DELAY)
            if not any(gate.give(grant, due) for gate in self._gates.values()):
                self._gone.append(grant.number)
        if self.budget is not None:
            self.budget.hear(reply.lent)
        if reply.stop and not self._stopped:
            self._stopped = True
            self._on_stop()

    def _be_alone(self) -> None:
        if not self.alone:
            self.alone, self._alone_since = True, self._clock()
            for gate in self._gates.values():
                gate.be_alone(self._workers)
        elif self._clock() - self._alone_since > ALONE_SECONDS - _PATIENCE_SECONDS:
            for gate in self._gates.values():
                gate.be_together()  # It stands in the line of a hub that does not answer.

    # For its gates

    def number(self) -> int:
        """The next number for a request."""
        return next(self._numbers)

    def want(self, want: Want) -> None:
        """A request came to the line."""
        self._wants.append(want)
        self._new.set()

    def leave(self, number: int, heard: ExchangeOutcome | None) -> None:
        """A request is over; None where it was not sent."""
        if heard is None:
            self._gone.append(number)
        else:
            self._heard.append((number, heard))
        self._new.set()


class SharedGate:
    """The limits of one model, of which the hub holds the truth; see `send.gate.Door`."""

    def __init__(self, link: Link, model: str, clock: Callable[[], float]) -> None:
        self._link, self._model, self._clock = link, model, clock
        self._line: dict[int, _Entry] = {}
        self._flying: dict[int, Ticket] = {}
        self._own: Gate | None = None  # While it is alone.
        self._serving: asyncio.Task[None] | None = None
        self._closed = False
        self.view = _NOT_YET
        self.waited: dict[str, float] = {}
        self.alone_in_flight = 0

    @property
    def refusing(self) -> bool:
        """Whether what came last was a refusal, to whichever worker."""
        return self.view.refusing

    @property
    def places(self) -> int:
        """How many this worker may have in flight, and in line."""
        return self.view.places

    @property
    def in_flight(self) -> int:
        """Requests of this worker under way."""
        return len(self._flying) + self.alone_in_flight

    @property
    def waiting(self) -> int:
        """Its requests that stand in line."""
        return len(self._line)

    @property
    def waits_for(self) -> str:
        """What the first in line of all workers waits for."""
        return "the limits" if self._link.alone else self.view.waits_for

    async def enter(self, tokens: float, most: float | None = None) -> Ticket:
        """Waits until one request of so many tokens may be sent.

        Raises:
            Closed: The run stops.
        """
        while True:
            if self._closed:
                raise Closed
            number = self._link.number()
            place: asyncio.Future[tuple[Ticket, float]] = (
                asyncio.get_running_loop().create_future()
            )
            self._line[number] = _Entry(place, tokens, most)
            if self._own is None:
                self._link.want(Want(number, self._model, tokens, most))
            else:
                self._serve(self._own)
            try:
                ticket, due = await place
                if (early := due - self._clock()) > 0.0:
                    await asyncio.sleep(early)
            except asyncio.CancelledError:
                if place.done() and not place.cancelled() and not place.exception():
                    self.leave(place.result()[0], ExchangeOutcome("unsent"))
                elif self._line.pop(number, None) is not None:
                    self._link.leave(number, None)
                raise
            if self._clock() - due <= _STALE_SECONDS and not self._closed:
                return ticket
            # The process slept: what it was granted then is nobody's any more.
            self.leave(ticket, ExchangeOutcome("unsent"))

    def give(self, grant: Grant, due: float) -> bool:
        """Lets a request go; False when it is none of this line."""
        entry = self._line.pop(grant.number, None)
        if entry is None or entry.place.done():
            return False
        given = grant.ticket
        ticket = _Given(given.tokens, given.sent_at, given.cause, given.most, grant.number)
        self._flying[grant.number] = ticket
        entry.place.set_result((ticket, due))
        return True

    def leave(self, ticket: Ticket, heard: ExchangeOutcome) -> None:
        """The exchange is over."""
        if isinstance(ticket, _Given):
            self._flying.pop(ticket.number, None)
            self._link.leave(ticket.number, None if heard.kind == "unsent" else heard)
        else:
            self.alone_in_flight -= 1
            if self._own is not None:
                self._own.leave(ticket, heard)

    def close(self) -> None:
        """Nothing new is let in; whoever waits gets `Closed`."""
        self._closed = True
        for number, entry in self._line.items():
            if not entry.place.done():
                entry.place.set_exception(Closed())
            self._link.leave(number, None)
        self._line.clear()
        if self._own is not None:
            self._own.close()

    def free(self, _tokens: float, _most: float | None = None) -> bool:
        """Whether a request would be let in at once, as far as is known here."""
        paced = (self.view.pace.requests, self.view.pace.tokens) != (None, None)
        return not self._line and (not paced or self.in_flight < self.places)

    def silent(self, _most: float, *, alive: bool) -> float:
        """As the hub says; while there is none, never."""
        del alive
        return 0.0 if self._link.alone else self.view.silent

    def share(self) -> float | None:
        """The hub knows it, and tells the driver."""
        return None

    # For the link

    def line(self) -> Sequence[Want]:
        """What stands in line."""
        return [
            Want(number, self._model, entry.tokens, entry.most)
            for number, entry in self._line.items()
            if not entry.place.done()
        ]

    def flying(self) -> Sequence[Flying]:
        """What is under way by the hub's leave."""
        return [Flying(number, self._model, ticket) for number, ticket in self._flying.items()]

    def be_alone(self, workers: int) -> None:
        """Goes on with a safe part of what it knew last."""
        share = SAFE / max(1, workers)
        pace = self.view.pace
        requests, tokens = (
            None if p is None else p * share * 60 for p in (pace.requests, pace.tokens)
        )
        places = max(1, int(pace.places * share))
        told = Limits(rpm=requests, tpm=tokens, concurrency=places)
        self._own = Gate(told, KeyGate(Limits(), self._clock), self._clock)
        if self._closed:
            self._own.close()
        self._serve(self._own)

    def be_together(self) -> None:
        """The hub answers again: it was told what stands in line."""
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
            if self._line.pop(number, None) is None or entry.place.done():
                own.leave(ticket, ExchangeOutcome("unsent"))
                continue
            self.alone_in_flight += 1
            entry.place.set_result((ticket, self._clock()))
        self._serving = None
