"""What all workers of a run share: the limits, the slots, the budget, and the stop. Touches: the clock.

The hub holds the same gates as a run on one machine, so it decides in the same way. A worker calls every 20 to
250 ms, depending on how many there are: it reports which requests joined its line and how others ended, and gets
the requests that may go, with the time at which each may. A request that waited for a pace is sent after a constant
delay, so that the requests of a slice are as even as the gate made them.

A worker that stops calling is given up: its slots are free, and its part of the pace goes to the others, except
for what it may take without the hub. If it only slept, it reports what it has in flight, and stops if a later
attempt at its shard has begun. A hub that restarts saves up nothing; the workers report what is in flight and the
pace that they knew.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from batcher.cluster.messages import (
    ALONE_SECONDS,
    ALONE_SHARE,
    SLICE_SECONDS,
    GateStatus,
    Grant,
    HubStatus,
    ModelStatus,
    QueuedRequest,
    Reply,
    Report,
    SharedModelStatus,
)
from batcher.cluster.shared_budget import BudgetServer
from batcher.job.job import Limits
from batcher.limits.gate import Gate, KeyGate
from batcher.limits.port import Closed, ExchangeOutcome, Ticket
from batcher.money.budget import LocalBudget
from batcher.records import Result

__all__ = ["Hub"]

_QUICK, _QUICK_EACH = 0.02, 0.002  # Seconds: all workers together call at most 500 times a second.
_PACED_SECONDS = 2.0
_LATE_SECONDS = 1.5
_CALL_SECONDS = 3.0  # After which a worker knows that there is no hub.
_PACED = frozenset({"requests", "tokens", "429"})
_UNSENT = ExchangeOutcome("unsent")


class _Worker:
    """What the hub knows about an attempt at a shard.

    Attributes:
        seen: When it called last.
        known: Whether its requests are counted; else it has to report everything anew.
        line: Its requests in line.
        granted: Requests that may go, for its next reply.
        in_flight: Requests that were granted and have not been reported as over.
        models: As it reported them.
        alone_share: The part of the pace that it may take alone.
        alone_until: Up to when the gates were charged for that.
    """

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.seen = 0.0
        self.known = True
        self.line: dict[int, asyncio.Task[None]] = {}
        self.granted: list[Grant] = []
        self.in_flight: dict[int, tuple[str, Ticket]] = {}
        self.models: Mapping[str, ModelStatus] = {}
        self.alone_until = self.alone_share = 0.0


class Hub:
    """The gates and the budget of a run.

    Args:
        limits: The configured limits of a model.
        total: The configured limits of the key.
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
        self._budget = None if budget is None else BudgetServer(budget, self.stop)
        self._limits = limits
        self._key = KeyGate(total, clock)
        self._gates: dict[str, Gate] = {}
        self._answering: set[str] = set()
        self._paced_at: dict[str, float] = {}
        self._row_timeout = row_timeout
        self._clock = clock
        self._workers: dict[int, _Worker] = {}  # By attempt.
        self._latest: dict[int, int] = {}  # The latest attempt at each shard.
        self._serials: dict[int, int] = {}
        self._ended: list[Result] = []
        self._stopped = False

    # For workers

    def report(self, report: Report) -> Reply:
        """Takes a worker's report and answers it."""
        now, attempt = self._clock(), report.attempt
        if report.serial < self._serials.get(attempt, 0):
            return Reply(
                known=False, now=now
            )  # A call that was given up; its worker does not wait for it.
        self._serials[attempt] = report.serial + 1
        self._check_workers(now)
        worker = self._workers.get(attempt)
        if worker is None or not worker.known or report.in_flight is not None:
            if report.in_flight is None:
                return Reply(known=False, now=now)
            worker = self._welcome(report)
        worker.seen, worker.models = now, report.models
        self._ended += report.ended
        self._apply(worker, report)
        granted, worker.granted = worker.granted, []
        return Reply(
            known=True,
            now=now,
            granted=granted,
            gates={model: self._gate_status(model, gate) for model, gate in self._gates.items()},
            stop=self._stopped or self._latest[worker.shard] > attempt,
            after=min(SLICE_SECONDS, max(_QUICK, _QUICK_EACH * len(self._workers))),
            workers=len(self._workers),
            reserved=() if self._budget is None else self._budget.report(attempt, report.budget),
        )

    def leave(self, attempt: int) -> None:
        """A worker is done with its shard."""
        if attempt in self._workers:
            self._give_up(attempt)

    def _apply(self, worker: _Worker, report: Report) -> None:
        for number, outcome in report.outcomes:
            self._leave(worker, number, outcome)
        for number in report.dropped:
            if (task := worker.line.pop(number, None)) is not None:
                task.cancel()
            else:
                self._leave(worker, number, _UNSENT)
        for request in report.queued:
            task = asyncio.get_running_loop().create_task(self._enter(worker, request))
            worker.line[request.number] = task

    def _welcome(self, report: Report) -> _Worker:
        """Adds a worker that is new here, or that was given up."""
        attempt, shard = report.attempt, report.shard
        if (before := self._workers.pop(attempt, None)) is not None:
            self._forget(before)
        worker = self._workers[attempt] = _Worker(shard)
        self._latest[shard] = max(attempt, self._latest.get(shard, 0))
        for earlier, other in list(self._workers.items()):
            if other.shard == shard and earlier < self._latest[shard] and not other.known:
                self._give_up(earlier)
        for model, pace in report.paces.items():
            if model not in self._gates:
                self._gate(model).begin_at(pace)
        for number, model, ticket in report.in_flight or ():
            worker.in_flight[number] = model, self._gate(model).adopt(ticket.tokens, ticket.most)
        return worker

    async def _enter(self, worker: _Worker, request: QueuedRequest) -> None:
        number, model, tokens, most = request
        try:
            ticket = await self._gate(model).enter(tokens, most)
        except Closed:
            return
        worker.line.pop(number, None)
        worker.in_flight[number] = model, ticket
        now = self._clock()
        if ticket.cause in _PACED:
            self._paced_at[model] = now
        # A request that need not wait must not overtake those that did.
        paced = now - self._paced_at.get(model, float("-inf")) < _PACED_SECONDS
        worker.granted.append(Grant(number, ticket, paced))

    def _leave(self, worker: _Worker, number: int, outcome: ExchangeOutcome) -> None:
        model, ticket = worker.in_flight.pop(number, (None, None))
        if model is not None and ticket is not None:
            if outcome.kind == "answered":
                self._answering.add(model)
            self._gate(model).leave(ticket, outcome)

    def _gate(self, model: str) -> Gate:
        gate = self._gates.get(model)
        if gate is None:
            gate = self._gates[model] = Gate(self._limits(model), self._key, self._clock)
            if self._stopped:
                gate.close()
        return gate

    def _gate_status(self, model: str, gate: Gate) -> GateStatus:
        # Twice the worker's part: shards end, and lines differ in length.
        max_in_flight = min(
            gate.max_in_flight, 2 * -(-gate.max_in_flight // max(1, len(self._workers)))
        )
        silent = gate.silent(self._row_timeout, alive=model in self._answering)
        return GateStatus(max_in_flight, gate.waits_for, silent, gate.refusing, gate.pace())

    # Workers that stop calling

    def _check_workers(self, now: float) -> None:
        """Gives what belongs to workers that stopped calling to the others, except for what they may take alone."""
        for attempt, worker in list(self._workers.items()):
            if not worker.known and self._latest[worker.shard] == attempt:
                self._charge_alone(worker, now)
            if now - worker.seen > ALONE_SECONDS + _CALL_SECONDS:
                self._give_up(attempt)
            elif now - worker.seen > _LATE_SECONDS and worker.known:
                worker.known = False
                worker.alone_until, worker.alone_share = now, ALONE_SHARE / len(self._workers)
                self._forget(worker)

    def _charge_alone(self, worker: _Worker, now: float) -> None:
        seconds = (now - worker.alone_until) * worker.alone_share
        worker.alone_until = now
        for gate in self._gates.values():
            pace = gate.pace()
            gate.lend((pace.requests or 0.0) * seconds, (pace.tokens or 0.0) * seconds)

    def _give_up(self, attempt: int) -> None:
        self._forget(self._workers.pop(attempt))
        if self._budget is not None:
            self._budget.lost(attempt)

    def _forget(self, worker: _Worker) -> None:
        for task in worker.line.values():
            task.cancel()
        worker.line.clear()
        worker.granted.clear()
        for number in list(worker.in_flight):
            self._leave(worker, number, _UNSENT)

    # For the driver

    def stop(self) -> None:
        """Lets nothing new go."""
        self._stopped = True
        if self._budget is not None:
            self._budget.budget.close()
        for gate in self._gates.values():
            gate.close()

    def status(self) -> HubStatus:
        """The state of the run."""
        self._check_workers(self._clock())
        ended, self._ended = self._ended, []
        budget = self._budget
        return HubStatus(
            {model: self._model_status(model, gate) for model, gate in self._gates.items()},
            ended,
            self._key.share(),
            None if budget is None else budget.budget.state,
            None if budget is None else budget.why,
        )

    def _model_status(self, model: str, gate: Gate) -> SharedModelStatus:
        workers = [one.models[model] for one in self._workers.values() if model in one.models]
        return SharedModelStatus(
            gate.in_flight,
            gate.waiting,
            gate.waits_for,
            sum(one.retrying for one in workers),
            max((one.longest for one in workers if one.longest), default=None),
            dict(gate.waited),
            gate.share(),
        )
