"""What all workers of a run share: the limits, the places, the word that it is over. Touches: the clock.

It holds the very gates that a run on one machine has, so that every decision is the same. A worker
calls once a slice of time, 20 to 250 ms by how many they are: it tells which requests stand in its
line and what came of those that went, and is told which of them may go, at what time. What was let
go with a pace is sent after a constant delay, so that a slice is as even as the gate was.

A worker that is not heard of is reckoned with no longer: its places are free, and its part of the
pace is that of the others but for what it may take without the hub. Should it only have slept, it
tells what it has under way, and stops where a later attempt at its shard has begun. A hub that begins
anew saves up nothing, and is told by the workers what is in flight and which pace they knew.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from batcher.cluster.shared_budget import BudgetServer, Spends
from batcher.job.job import Limits
from batcher.limits.gate import Gate, KeyGate
from batcher.limits.port import Closed, ExchangeOutcome, Pace, Ticket
from batcher.money.budget import Amount, BudgetState, LocalBudget
from batcher.records import Result

__all__ = [
    "ALONE_SECONDS",
    "SAFE",
    "SLICE",
    "Flying",
    "Grant",
    "Hub",
    "Line",
    "Reply",
    "Told",
    "Turn",
    "View",
    "Want",
]

SLICE = 0.25
_QUICK, _QUICK_EACH = 0.02, 0.002  # So that all together call no more than 500 times a second.
_PACED_SECONDS = 2.0
_LATE_SECONDS = 1.5
_CALL_SECONDS = 3.0  # After which a worker knows that there is no hub.
# What a worker takes without the hub: this much of its part of the pace, for so long.
SAFE, ALONE_SECONDS = 0.5, 10.0
_PACED = frozenset({"requests", "tokens", "429"})


class Want(NamedTuple):
    """A request that stands in line; `most` as in `Gate.enter`."""

    number: int
    model: str
    tokens: float
    most: float | None


class Flying(NamedTuple):
    """A request under way, told to a hub that does not know of it."""

    number: int
    model: str
    ticket: Ticket


class Line(NamedTuple):
    """How a worker stands with a model, for whoever watches: `longest` is (age, row)."""

    retrying: int
    longest: tuple[float, str] | None


class Turn(NamedTuple):
    """What a worker tells.

    Attributes:
        shard: Which shard it works on, and
        attempt: which attempt at it this is; a larger number is a later one.
        wants: What came to its line since the last turn.
        gone: Numbers of what left the line, or of what was let go and not sent.
        heard: What came of those that went, by number.
        ended: Rows that ended, without what was answered.
        lines: How it stands, by model.
        flying, paces: What is under way, and the paces it was told; only when asked for.
        spends: What it tells of the budget.
        serial: Counts the turns of an attempt. One that was overtaken by a later one is not heard.
    """

    shard: int
    attempt: int
    wants: Sequence[Want] = ()
    gone: Sequence[int] = ()
    heard: Sequence[tuple[int, ExchangeOutcome]] = ()
    ended: Sequence[Result] = ()
    lines: Mapping[str, Line] = {}
    flying: Sequence[Flying] | None = None
    paces: Mapping[str, Pace] = {}
    spends: Spends = Spends()
    serial: int = 0


class Grant(NamedTuple):
    """A request that may go: at once, or, when it waited for a pace, at that pace."""

    number: int
    ticket: Ticket
    paced: bool


class View(NamedTuple):
    """How a model's gate stands.

    Attributes:
        places: How many a worker may have in flight.
        waits_for: What the first in line of them all waits for.
        silent: As `Gate.silent` says.
        refusing: Whether what came last was a refusal.
        pace: What is let through, to all workers together.
    """

    places: int
    waits_for: str
    silent: float
    refusing: bool
    pace: Pace


class Reply(NamedTuple):
    """What the hub answers.

    Attributes:
        known: False when the worker has to tell everything anew; then there is nothing else.
        now: Its clock.
        granted: What may go.
        views: By model.
        stop: Nothing new is to be sent.
        after: Seconds after which the next turn is useful.
        workers: How many there are.
        lent: (number, amount) of what may be paid for.
    """

    known: bool
    now: float
    granted: Sequence[Grant] = ()
    views: Mapping[str, View] = {}
    stop: bool = False
    after: float = SLICE
    workers: int = 1
    lent: Sequence[tuple[int, Amount]] = ()


class ToldModel(NamedTuple):
    """What the driver is told of a model: see `Gate`."""

    in_flight: int
    waiting: int
    waits_for: str
    retrying: int
    longest: tuple[float, str] | None
    waited: Mapping[str, float]
    share: float | None


class Told(NamedTuple):
    """What the driver is told.

    Attributes:
        models: How each stands.
        ended: Rows that ended; told once.
        share: Of the key's limit that was used.
        budget: How it stands, and
        why: what ended the run, if the budget did.
    """

    models: Mapping[str, ToldModel]
    ended: Sequence[Result]
    share: float | None
    budget: BudgetState | None
    why: Exception | None


class _Worker:
    """What the hub knows of an attempt at a shard.

    Attributes:
        seen: When it called last.
        there: Whether it is reckoned with; else it has to tell everything anew.
        line: What stands in line for it.
        granted: What it is to be told.
        out: What it was granted and has not told the end of.
        share: The part of the pace that it may take alone, and
        lent: up to when the hub left it that.
    """

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.seen = 0.0
        self.there = True
        self.lent = self.share = 0.0
        self.line: dict[int, asyncio.Task[None]] = {}
        self.granted: list[Grant] = []
        self.out: dict[int, tuple[str, Ticket]] = {}
        self.lines: Mapping[str, Line] = {}


class Hub:
    """The gates of a run.

    Args:
        limits: What is told of each model.
        total: What is told of the key.
        row_timeout: Of the job.
        clock: In seconds.
        budget: What may be spent; None for no bound.
    """

    def __init__(
        self,
        limits: Callable[[str], Limits],
        total: Limits,
        row_timeout: float,
        clock: Callable[[], float] = time.monotonic,
        budget: LocalBudget | None = None,
    ) -> None:
        self._lender = None if budget is None else BudgetServer(budget, self.stop)
        self._limits = limits
        self._key = KeyGate(total, clock)
        self._gates: dict[str, Gate] = {}
        self._alive: set[str] = set()
        self._paced: dict[str, float] = {}
        self._row_timeout = row_timeout
        self._clock = clock
        self._workers: dict[int, _Worker] = {}
        self._latest: dict[int, int] = {}
        self._serials: dict[int, int] = {}
        self._ended: list[Result] = []
        self._stopped = False

    # For workers

    def turn(self, told: Turn) -> Reply:
        """One worker's call."""
        now = self._clock()
        if told.serial < self._serials.get(told.attempt, 0):
            return Reply(known=False, now=now)  # Nobody waits for it any more.
        self._serials[told.attempt] = told.serial + 1
        self._miss(now)
        worker = self._workers.get(told.attempt)
        if worker is None or not worker.there or told.flying is not None:
            if told.flying is None:
                return Reply(known=False, now=now)
            worker = self._meet(told, now)
        worker.seen = now
        self._ended += told.ended
        worker.lines = told.lines
        for number, heard in told.heard:
            self._leave(worker, number, heard)
        for number in told.gone:
            if (task := worker.line.pop(number, None)) is not None:
                task.cancel()
            else:
                self._leave(worker, number, ExchangeOutcome("unsent"))
        for want in told.wants:
            task = asyncio.get_running_loop().create_task(self._stand(worker, want))
            worker.line[want.number] = task
        granted, worker.granted = worker.granted, []
        lender = self._lender
        lent = () if lender is None else lender.turn(told.attempt, told.spends)
        superseded = self._latest[worker.shard] > told.attempt
        return Reply(
            known=True,
            now=now,
            granted=granted,
            views={model: self._view(model, gate) for model, gate in self._gates.items()},
            stop=self._stopped or superseded,
            after=self._after(),
            workers=len(self._workers),
            lent=lent,
        )

    def leave(self, attempt: int) -> None:
        """A worker is done with its shard."""
        if attempt in self._workers:
            self._give_up(attempt)

    def _give_up(self, attempt: int) -> None:
        self._forget(self._workers.pop(attempt))
        if self._lender is not None:
            self._lender.lost(attempt)

    def _meet(self, told: Turn, now: float) -> _Worker:
        """A worker that is new here, or that was taken for lost."""
        if (before := self._workers.pop(told.attempt, None)) is not None:
            self._forget(before)
        worker = self._workers[told.attempt] = _Worker(told.shard)
        self._latest[told.shard] = max(told.attempt, self._latest.get(told.shard, 0))
        for attempt, other in list(self._workers.items()):
            if (
                other.shard == told.shard
                and attempt < self._latest[told.shard]
                and not other.there
            ):
                self._give_up(attempt)
        for model, pace in told.paces.items():
            if model not in self._gates:
                self._gate(model).begin_at(pace)
        for number, model, ticket in told.flying or ():
            adopted = self._gate(model).adopt(ticket.tokens, ticket.most)
            worker.out[number] = model, adopted
        worker.seen = now
        return worker

    async def _stand(self, worker: _Worker, want: Want) -> None:
        try:
            ticket = await self._gate(want.model).enter(want.tokens, want.most)
        except Closed:
            return
        worker.line.pop(want.number, None)
        worker.out[want.number] = want.model, ticket
        now = self._clock()
        if ticket.cause in _PACED:
            self._paced[want.model] = now
        # One that need not wait is not to go before those that did.
        paced = now - self._paced.get(want.model, float("-inf")) < _PACED_SECONDS
        worker.granted.append(Grant(want.number, ticket, paced))

    def _leave(self, worker: _Worker, number: int, heard: ExchangeOutcome) -> None:
        model, ticket = worker.out.pop(number, (None, None))
        if model is not None and ticket is not None:
            if heard.kind == "answered":
                self._alive.add(model)
            self._gate(model).leave(ticket, heard)

    def _gate(self, model: str) -> Gate:
        gate = self._gates.get(model)
        if gate is None:
            gate = self._gates[model] = Gate(self._limits(model), self._key, self._clock)
            if self._stopped:
                gate.close()
        return gate

    def _view(self, model: str, gate: Gate) -> View:
        # Twice its part: shards end, and lines are of different lengths.
        places = min(gate.places, 2 * -(-gate.places // max(1, len(self._workers))))
        silent = gate.silent(self._row_timeout, alive=model in self._alive)
        return View(places, gate.waits_for, silent, gate.refusing, gate.pace())

    def _after(self) -> float:
        return min(SLICE, max(_QUICK, _QUICK_EACH * len(self._workers)))

    def _miss(self, now: float) -> None:
        """Gives what workers had that are not heard of to the others, but for what they may take alone."""
        for attempt, worker in list(self._workers.items()):
            if not worker.there and self._latest[worker.shard] == attempt:
                self._lend(worker, now)
            if now - worker.seen > ALONE_SECONDS + _CALL_SECONDS:
                self._give_up(attempt)
            elif now - worker.seen > _LATE_SECONDS and worker.there:
                worker.there = False
                worker.lent, worker.share = now, SAFE / len(self._workers)
                self._forget(worker)

    def _lend(self, worker: _Worker, now: float) -> None:
        seconds = (now - worker.lent) * worker.share
        worker.lent = now
        for gate in self._gates.values():
            pace = gate.pace()
            gate.lend((pace.requests or 0.0) * seconds, (pace.tokens or 0.0) * seconds)

    def _forget(self, worker: _Worker) -> None:
        for task in worker.line.values():
            task.cancel()
        worker.line.clear()
        worker.granted.clear()
        for number in list(worker.out):
            self._leave(worker, number, ExchangeOutcome("unsent"))

    # For the driver

    def stop(self) -> None:
        """Nothing new is let go."""
        self._stopped = True
        if self._lender is not None:
            self._lender.budget.close()
        for gate in self._gates.values():
            gate.close()

    def told(self) -> Told:
        """How things stand."""
        self._miss(self._clock())
        ended, self._ended = self._ended, []
        lines = [worker.lines for worker in self._workers.values()]
        models = {}
        for model, gate in self._gates.items():
            of = [line[model] for line in lines if model in line]
            models[model] = ToldModel(
                gate.in_flight,
                gate.waiting,
                gate.waits_for,
                sum(line.retrying for line in of),
                max((line.longest for line in of if line.longest), default=None),
                dict(gate.waited),
                gate.share(),
            )
        budget = why = None
        if self._lender is not None:
            budget, why = self._lender.budget.state, self._lender.why
        return Told(models, ended, self._key.share(), budget, why)
