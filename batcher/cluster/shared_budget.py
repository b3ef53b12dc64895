"""One budget for all workers: the hub holds it and reserves what each request may take. Touches: nothing.

The hub holds the same budget as a run on one machine. A worker's request waits for its reservation before it joins
the line for the limits, one report for each; without the hub nothing is paid for. What was reserved for a lost
worker counts as spent, until the worker comes back and reports what became of it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from batcher.limits.port import Closed
from batcher.money.budget import NOTHING, Amount, LocalBudget, Reservation

__all__ = ["BudgetReport", "BudgetServer", "ReserveRequest", "SharedBudget"]


class ReserveRequest(NamedTuple):
    """A request that needs a reservation; as `LocalBudget.enter` takes it."""

    number: int
    model: str
    most: Amount
    again: bool


class Held(NamedTuple):
    """A reservation of a worker."""

    number: int
    model: str
    amount: Amount


class Settled(NamedTuple):
    """A reservation that is over: as `LocalBudget.settled`; `more` as `LocalBudget.took_more`, if it did."""

    held: Held
    used: Amount
    perhaps: Amount
    more: tuple[Amount, Amount] | None


class BudgetReport(NamedTuple):
    """What a worker reports about the budget.

    Attributes:
        requests: Requests since the last report; all that wait if `held` is set.
        dropped: Numbers of requests that need no reservation any more.
        settled: Reservations that are over; reported until the hub has answered.
        held: All reservations whose end the hub may not know; only in a report of everything.
    """

    requests: Sequence[ReserveRequest] = ()
    dropped: Sequence[int] = ()
    settled: Sequence[Settled] = ()
    held: Sequence[Held] | None = None


class SharedBudget:
    """The budget as a worker has it: a `money.budget.Budget`.

    Args:
        in_dollars: Whether dollars are bounded.
        wake: Called when there is something to report.
    """

    def __init__(self, in_dollars: bool, wake: Callable[[], None]) -> None:
        self.in_dollars = in_dollars
        self._wake = wake
        self._numbers = itertools.count()
        self._line: dict[int, tuple[ReserveRequest, asyncio.Future[Reservation]]] = {}
        self._held: dict[Reservation, int] = {}
        self._requests: list[ReserveRequest] = []
        self._dropped: list[int] = []
        self._settled: list[Settled] = []
        self._unconfirmed: Sequence[Settled] = ()  # Of a report that was perhaps not received.
        self._more: dict[str, tuple[Amount, Amount]] = {}
        self._closed = False
        self._on_stop: Callable[[Exception], None] = lambda _why: None

    def on_stop(self, callback: Callable[[Exception], None]) -> None:
        """As `LocalBudget.on_stop`."""
        self._on_stop = callback

    async def enter(self, most: Amount, model: str = "", *, again: bool = False) -> Reservation:
        """As `LocalBudget.enter`.

        Raises:
            Closed: It does not fit, or the run is stopping.
        """
        if self._closed:
            raise Closed
        number = next(self._numbers)
        request = ReserveRequest(number, model, most, again)
        reserved: asyncio.Future[Reservation] = asyncio.get_running_loop().create_future()
        self._line[number] = request, reserved
        self._requests.append(request)
        self._wake()
        try:
            return await reserved
        except asyncio.CancelledError:
            if self._line.pop(number, None) is not None:
                self._dropped.append(number)
                self._wake()
            elif not (reserved.cancelled() or reserved.exception()):
                reserved.result().settle()  # It was not sent.
            raise

    def settled(self, hold: Reservation, used: Amount, perhaps: Amount) -> None:
        """As `LocalBudget.settled`."""
        more = self._more.pop(hold.model, None)
        held = Held(self._held.pop(hold), hold.model, hold.amount)
        self._settled.append(Settled(held, used, perhaps, more))
        self._wake()

    def took_more(self, model: str, used: Amount, most: Amount) -> None:
        """As `LocalBudget.took_more`."""
        self._more[model] = used, most

    def stop(self, why: Exception) -> None:
        """Stops paying in this worker, which reports the reason to the driver."""
        if not self._closed:
            self.close()
            self._on_stop(why)

    def close(self) -> None:
        """Requests that wait get `Closed`."""
        self._closed = True
        for number, (_request, reserved) in self._line.items():
            if not reserved.done():
                reserved.set_exception(Closed())
            self._dropped.append(number)
        self._line.clear()

    # For the link

    @property
    def waiting(self) -> bool:
        """Whether a request waits for its reservation."""
        return bool(self._line)

    @property
    def unreported(self) -> bool:
        """Whether there is something that the hub has not confirmed."""
        return bool(self._settled or self._unconfirmed or self._dropped)

    def report(self, *, everything: bool) -> BudgetReport:
        """Takes what there is to report."""
        held = None
        if everything:
            # What an earlier hub perhaps received is not reported as new to another one: it would count twice.
            self._requests = [request for request, _reserved in self._line.values()]
            self._dropped = []
            held = [Held(number, one.model, one.amount) for one, number in self._held.items()]
            held += [one.held for one in self._settled]
        settled = [*self._unconfirmed, *self._settled]
        report = BudgetReport(self._requests, self._dropped, settled, held)
        self._requests, self._dropped, self._settled = [], [], []
        self._unconfirmed = ()
        return report

    def unconfirmed(self, report: BudgetReport) -> None:
        """A report was perhaps not received."""
        self._unconfirmed = report.settled

    def reserved(self, granted: Sequence[tuple[int, Amount]]) -> None:
        """The hub granted reservations."""
        for number, amount in granted:
            request, reserved = self._line.pop(number, (None, None))
            if request is None or reserved is None or reserved.cancelled():
                self._dropped.append(number)
            else:
                hold = Reservation(self, request.model, amount)
                self._held[hold] = number
                reserved.set_result(hold)


class _Borrower:
    """What the hub knows about an attempt at a shard.

    Attributes:
        waiting: Requests that wait for their reservations.
        held: Its reservations.
        lost: Those that it had when it was given up; they count as spent.
        granted: Reservations for its next reply.
    """

    def __init__(self) -> None:
        self.waiting: dict[int, asyncio.Task[None]] = {}
        self.held: dict[int, Reservation] = {}
        self.lost: dict[int, Reservation] = {}
        self.granted: list[tuple[int, Amount]] = []


class BudgetServer:
    """The budget as the hub has it.

    Args:
        budget: The budget of the run.
        on_stop: Called when nothing more is paid for.

    Attributes:
        why: Why the budget ended the run, if it did.
    """

    def __init__(self, budget: LocalBudget, on_stop: Callable[[], None]) -> None:
        self.budget = budget
        self.why: Exception | None = None
        self._on_stop = on_stop
        self._borrowers: dict[int, _Borrower] = {}
        budget.on_stop(self._stop)

    def report(self, attempt: int, report: BudgetReport) -> Sequence[tuple[int, Amount]]:
        """Takes a worker's report; (number, amount) of each reservation that was granted to it."""
        borrower = self._borrowers.setdefault(attempt, _Borrower())
        if report.held is not None:
            self._reconcile(borrower, report.held, report.settled)
        for (number, *_), used, perhaps, more in report.settled:
            hold = borrower.held.pop(number, None)
            if hold is None and (lost := borrower.lost.pop(number, None)) is not None:
                hold = self.budget.found(lost)
            if hold is not None:
                if more is not None:
                    self.budget.took_more(hold.model, *more)
                self.budget.settled(hold, used, perhaps)
        for number in report.dropped:
            if (task := borrower.waiting.pop(number, None)) is not None:
                task.cancel()
            elif (hold := borrower.held.pop(number, None)) is not None:
                self.budget.settled(hold, NOTHING, NOTHING)
        for request in report.requests:
            task = asyncio.get_running_loop().create_task(self._reserve(borrower, request))
            borrower.waiting[request.number] = task
        granted, borrower.granted = borrower.granted, []
        return granted

    def lost(self, attempt: int) -> None:
        """A worker is given up: it may have sent every request that had a reservation."""
        if (borrower := self._borrowers.get(attempt)) is not None:
            self._forget_line(borrower)
            for number, hold in borrower.held.items():
                self.budget.settled(hold, hold.amount, hold.amount)
                borrower.lost[number] = hold
            borrower.held.clear()

    def _reconcile(
        self, borrower: _Borrower, held: Sequence[Held], settled: Sequence[Settled]
    ) -> None:
        """Takes a report of everything: the worker is new here, or a report or a reply was lost."""
        self._forget_line(borrower)
        has = {one.number for one in held} | {one.held.number for one in settled}
        for number in borrower.held.keys() - has:  # The worker never received it.
            self.budget.settled(borrower.held.pop(number), NOTHING, NOTHING)
        for number, model, amount in held:
            if number in borrower.held:
                continue
            if (lost := borrower.lost.pop(number, None)) is not None:
                borrower.held[number] = self.budget.found(lost)
            else:  # Reserved by the hub before this one, which recorded it.
                borrower.held[number] = self.budget.adopt(model, amount)

    def _forget_line(self, borrower: _Borrower) -> None:
        for task in borrower.waiting.values():
            task.cancel()
        borrower.waiting.clear()
        for number, _amount in borrower.granted:
            self.budget.settled(borrower.held.pop(number), NOTHING, NOTHING)
        borrower.granted.clear()

    async def _reserve(self, borrower: _Borrower, request: ReserveRequest) -> None:
        try:
            hold = await self.budget.enter(request.most, request.model, again=request.again)
        except Closed:
            return
        del borrower.waiting[request.number]
        borrower.held[request.number] = hold
        borrower.granted.append((request.number, hold.amount))

    def _stop(self, why: Exception) -> None:
        self.why = why
        self._on_stop()
