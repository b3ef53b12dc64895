"""A worker's connection to the hub. Touches: the clock.

A request that joins a line is reported with the next call, and may go with the reply to a later one. A call
without a reply for two seconds leaves the worker alone: for some seconds it goes on at half of its part of the last
pace that it knew, and with half of its requests in flight; then it waits until the hub replies again.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from batcher.cluster.messages import (
    ALONE_SECONDS,
    SLICE_SECONDS,
    InFlightRequest,
    ModelStatus,
    QueuedRequest,
    Reply,
    Report,
)
from batcher.cluster.shared_budget import BudgetReport, SharedBudget
from batcher.cluster.shared_gate import UNKNOWN, SharedGate
from batcher.limits.port import ExchangeOutcome, Pace
from batcher.records import Result

__all__ = ["Link", "Unreachable"]

_REPLY_SECONDS = 2.0
_LAST_REPORTS = 3
_DELAY = 0.1
_DRIFT = 1e-4  # Seconds per second by which the clocks of two machines may diverge.


class Unreachable(Exception):
    """The hub did not reply."""


class Link:
    """One attempt at a shard, as the hub knows it.

    Args:
        call: Sends a report to the hub; raises `Unreachable`.
        shard: The number of the shard.
        attempt: The attempt at it; later ones have larger numbers.
        on_stop: Called once, when nothing new is to be sent.
        models: The state of each model at this worker.
        clock: In seconds.
        in_dollars: Whether the budget has a bound in dollars; None without a budget.

    Attributes:
        budget: What may be spent; None for no bound.
        alone: Whether the hub does not reply.
    """

    def __init__(
        self,
        call: Callable[[Report], Awaitable[Reply]],
        shard: int,
        attempt: int,
        on_stop: Callable[[], None],
        models: Callable[[], Mapping[str, ModelStatus]] = dict,
        clock: Callable[[], float] = time.monotonic,
        in_dollars: bool | None = None,
    ) -> None:
        self._call = call
        self._shard, self._attempt = shard, attempt
        self._on_stop, self._models = on_stop, models
        self._clock = clock
        self._gates: dict[str, SharedGate] = {}
        self._numbers, self._serials = itertools.count(), itertools.count()
        self._news = asyncio.Event()
        self.budget = None if in_dollars is None else SharedBudget(in_dollars, self._news.set)
        self._queued: list[QueuedRequest] = []
        self._dropped: list[int] = []
        self._outcomes: list[tuple[int, ExchangeOutcome]] = []
        self._ended: list[Result] = []
        self._offset: float | None = None  # How far the hub's clock is ahead of ours, at least.
        self._replied_at = 0.0
        self._workers = 1
        self._known = self._stopped = False  # Known: the hub knows all that was reported before.
        self.alone, self._alone_since = False, 0.0

    def gate(self, model: str) -> SharedGate:
        """The limits of a model."""
        gate = self._gates.get(model)
        if gate is None:
            gate = self._gates[model] = SharedGate(self, model, self._clock)
        return gate

    def ended(self, result: Result) -> None:
        """Reports the result of a row to the driver."""
        self._ended.append(result)
        self._news.set()

    async def run(self) -> None:
        """Calls the hub until cancelled."""
        while True:
            after = await self.report()
            began = self._clock()
            waiting = any(gate.waiting for gate in self._gates.values())
            if not waiting and not (self.budget is not None and self.budget.waiting):
                try:
                    async with asyncio.timeout(SLICE_SECONDS):
                        await self._news.wait()
                except TimeoutError:
                    continue
            await asyncio.sleep(max(0.0, began + after - self._clock()))

    async def report(self) -> float:
        """Makes one call; seconds until the next one is useful."""
        report = self._take_report()
        try:
            async with asyncio.timeout(_REPLY_SECONDS):
                reply = await self._call(report)
        except (Unreachable, TimeoutError):
            # The hub may have received all of it or nothing: the next report repeats it.
            self._unconfirmed(report)
            self._go_alone()
            return SLICE_SECONDS
        if not reply.known:
            self._unconfirmed(report)
            return 0.0
        self._take_reply(reply)
        return reply.after

    async def close(self) -> None:
        """Reports what became of the last requests."""
        for _try in range(_LAST_REPORTS):
            await self.report()
            if self._known and not (self.budget is not None and self.budget.unreported):
                break

    def _unconfirmed(self, report: Report) -> None:
        self._known = False
        self._ended[:0] = report.ended
        if self.budget is not None:
            self.budget.unconfirmed(report.budget)

    def _take_report(self) -> Report:
        """All that there is to report; everything, if the hub does not know this worker."""
        self._news.clear()
        everything, gates = not self._known, self._gates
        in_flight: Sequence[InFlightRequest] | None = None
        paces: Mapping[str, Pace] = {}
        if everything:
            in_flight = [one for gate in gates.values() for one in gate.requests_in_flight()]
            paces = {
                m: gate.status.pace for m, gate in gates.items() if gate.status is not UNKNOWN
            }
            self._queued = [one for gate in gates.values() for one in gate.requests_in_line()]
            self._dropped, self._outcomes = [], []
        report = Report(
            self._shard,
            self._attempt,
            self._queued,
            self._dropped,
            self._outcomes,
            self._ended,
            self._models(),
            in_flight,
            paces,
            BudgetReport() if self.budget is None else self.budget.report(everything=everything),
            next(self._serials),
        )
        self._queued, self._dropped, self._outcomes, self._ended = [], [], [], []
        self._known = True
        return report

    def _take_reply(self, reply: Reply) -> None:
        now = self._clock()
        offset = reply.now - now
        if self._offset is not None:
            offset = max(offset, self._offset - _DRIFT * (now - self._replied_at))
        self._offset, self._replied_at = offset, now
        self._workers = reply.workers
        if self.alone:
            self.alone = False
            # Requests that joined the line during this call were reported to nobody.
            self._known = False
            for gate in self._gates.values():
                gate.leave_to_hub()
        for model, status in reply.gates.items():
            self.gate(model).update(status)
        for grant in reply.granted:
            due = now
            if grant.paced:
                # By the hub's clock, and later than calls take: the time of the reply does not matter.
                due = max(now, grant.ticket.sent_at - offset + reply.after + _DELAY)
            if not any(gate.grant(grant, due) for gate in self._gates.values()):
                self._dropped.append(grant.number)
        if self.budget is not None:
            self.budget.reserved(reply.reserved)
        if reply.stop and not self._stopped:
            self._stopped = True
            self._on_stop()

    def _go_alone(self) -> None:
        if not self.alone:
            self.alone, self._alone_since = True, self._clock()
            for gate in self._gates.values():
                gate.go_alone(self._workers)
        elif self._clock() - self._alone_since > ALONE_SECONDS - _REPLY_SECONDS:
            for gate in self._gates.values():
                gate.leave_to_hub()  # Requests wait in the line of a hub that does not reply.

    # For its gates

    def next_number(self) -> int:
        """The number of the next request."""
        return next(self._numbers)

    def queue(self, request: QueuedRequest) -> None:
        """Reports a request that joined a line."""
        self._queued.append(request)
        self._news.set()

    def over(self, number: int, outcome: ExchangeOutcome) -> None:
        """Reports how a request ended."""
        if outcome.kind == "unsent":
            self._dropped.append(number)
        else:
            self._outcomes.append((number, outcome))
        self._news.set()
