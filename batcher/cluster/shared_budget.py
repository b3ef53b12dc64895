"""One budget for all workers: the hub keeps it, and lends what each request may take at most. Touches: nothing itself.

The hub holds the very budget that a run on one machine has. A worker's request waits for its part
before it stands in line for the limits, one turn for each; without the hub nothing is paid for. What a
lost worker was lent counts as spent, until it comes back and tells what became of it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from batcher.limits.port import Closed
from batcher.money.budget import NOTHING, Amount, LocalBudget, Reservation

__all__ = ["BudgetServer", "ReserveRequest", "SharedBudget", "Spends"]


class ReserveRequest(NamedTuple):
    """A request that wants to be paid for; as `LocalBudget.enter` takes it."""

    number: int
    model: str
    most: Amount
    again: bool


class ReserveReply(NamedTuple):
    """What a worker was lent and has not settled."""

    number: int
    model: str
    amount: Amount


class Settled(NamedTuple):
    """What became of a request: as `LocalBudget.settled`; `more` as `LocalBudget.took_more`, if it did."""

    of: ReserveReply
    used: Amount
    perhaps: Amount
    more: tuple[Amount, Amount] | None


class Spends(NamedTuple):
    """What a worker tells.

    Attributes:
        pleas: What came since the last turn; all there is when `lent` is told.
        gone: Numbers of what wants nothing any more.
        settled: What ended; told until it was heard.
        lent: What it has, or had and never told the end of; only when everything is told anew.
    """

    pleas: Sequence[ReserveRequest] = ()
    gone: Sequence[int] = ()
    settled: Sequence[Settled] = ()
    lent: Sequence[ReserveReply] | None = None


class SharedBudget:
    """The budget as a worker has it; see `send.budget.Purse`.

    Args:
        in_dollars: Whether dollars are bounded.
        wake: Called when there is something to tell.
    """

    def __init__(self, in_dollars: bool, wake: Callable[[], None]) -> None:
        self.in_dollars = in_dollars
        self._wake = wake
        self._numbers = itertools.count()
        self._line: dict[int, tuple[ReserveRequest, asyncio.Future[Reservation]]] = {}
        self._lent: dict[Reservation, int] = {}
        self._pleas: list[ReserveRequest] = []
        self._gone: list[int] = []
        self._settled: list[Settled] = []
        self._perhaps_heard: Sequence[Settled] = ()
        self._more: dict[str, tuple[Amount, Amount]] = {}
        self._closed = False
        self._on_stop: Callable[[Exception], None] = lambda _why: None

    async def enter(self, most: Amount, model: str = "", *, again: bool = False) -> Reservation:
        """As `LocalBudget.enter`.

        Raises:
            Closed: It does not fit, or the run is stopping.
        """
        if self._closed:
            raise Closed
        number = next(self._numbers)
        plea = ReserveRequest(number, model, most, again)
        lent: asyncio.Future[Reservation] = asyncio.get_running_loop().create_future()
        self._line[number] = plea, lent
        self._pleas.append(plea)
        self._wake()
        try:
            return await lent
        except asyncio.CancelledError:
            if self._line.pop(number, None) is not None:
                self._gone.append(number)
                self._wake()
            elif not (lent.cancelled() or lent.exception()):
                lent.result().settle()  # It was not sent.
            raise

    def settled(self, hold: Reservation, used: Amount, perhaps: Amount) -> None:
        """As `LocalBudget.settled`."""
        more = self._more.pop(hold.model, None)
        lent = ReserveReply(self._lent.pop(hold), hold.model, hold.amount)
        self._settled.append(Settled(lent, used, perhaps, more))
        self._wake()

    def took_more(self, model: str, used: Amount, most: Amount) -> None:
        """As `LocalBudget.took_more`."""
        self._more[model] = used, most

    def on_stop(self, callback: Callable[[Exception], None]) -> None:
        """As `LocalBudget.on_stop`."""
        self._on_stop = callback

    def stop(self, why: Exception) -> None:
        """Nothing more is paid for, by this worker; it tells the driver why."""
        if not self._closed:
            self.close()
            self._on_stop(why)

    def close(self) -> None:
        """Those who wait are let go."""
        self._closed = True
        for number, (_plea, lent) in self._line.items():
            if not lent.done():
                lent.set_exception(Closed())
            self._gone.append(number)
        self._line.clear()

    # For the link

    @property
    def waiting(self) -> bool:
        """Whether a request wants to be paid for."""
        return bool(self._line)

    @property
    def owes(self) -> bool:
        """Whether the hub is still to be told something."""
        return bool(self._settled or self._perhaps_heard or self._gone)

    def tell(self, *, anew: bool) -> Spends:
        """What is to be told with the next turn."""
        lent = None
        if (
            anew
        ):  # What a hub before perhaps heard of is not told to another one: it would count twice.
            self._pleas, self._gone = [plea for plea, _lent in self._line.values()], []
            lent = [
                ReserveReply(number, hold.model, hold.amount)
                for hold, number in self._lent.items()
            ]
            lent += [one.of for one in self._settled]
        told = Spends(self._pleas, self._gone, [*self._perhaps_heard, *self._settled], lent)
        self._perhaps_heard = ()
        self._pleas, self._gone, self._settled = [], [], []
        return told

    def unheard(self, told: Spends) -> None:
        """What was told was perhaps not heard."""
        self._perhaps_heard = told.settled

    def hear(self, lent: Sequence[tuple[int, Amount]]) -> None:
        """What the hub lends."""
        for number, amount in lent:
            plea, waits = self._line.pop(number, (None, None))
            if plea is None or waits is None or waits.cancelled():
                self._gone.append(number)
            else:
                hold = Reservation(self, plea.model, amount)
                self._lent[hold] = number
                waits.set_result(hold)


class _Borrower:
    """What the hub knows of an attempt at a shard.

    Attributes:
        pleas: What waits.
        lent: What it has and has not settled, and
        lost: what it had when it was given up; it counts as spent.
        to_tell: What it was lent and has not been told.
    """

    def __init__(self) -> None:
        self.pleas: dict[int, asyncio.Task[None]] = {}
        self.lent: dict[int, Reservation] = {}
        self.lost: dict[int, Reservation] = {}
        self.to_tell: list[tuple[int, Amount]] = []


class BudgetServer:
    """The budget as the hub has it.

    Args:
        budget: What all may spend.
        over: Called when nothing more is paid for.

    Attributes:
        why: What ended the run, if this did.
    """

    def __init__(self, budget: LocalBudget, over: Callable[[], None]) -> None:
        self.budget = budget
        self._over = over
        self._borrowers: dict[int, _Borrower] = {}
        self.why: Exception | None = None
        budget.on_stop(self._ends)

    def turn(self, attempt: int, told: Spends) -> Sequence[tuple[int, Amount]]:
        """One worker's call; (number, amount) of what it is lent."""
        of = self._borrowers.setdefault(attempt, _Borrower())
        if told.lent is not None:
            self._begin_anew(of, told.lent, told.settled)
        for (number, *_), used, perhaps, more in told.settled:
            hold = of.lent.pop(number, None)
            if hold is None and (lost := of.lost.pop(number, None)) is not None:
                hold = self.budget.found(lost)
            if hold is not None:
                if more is not None:
                    self.budget.took_more(hold.model, *more)
                self.budget.settled(hold, used, perhaps)
        for number in told.gone:
            if (task := of.pleas.pop(number, None)) is not None:
                task.cancel()
            elif (hold := of.lent.pop(number, None)) is not None:
                self.budget.settled(hold, NOTHING, NOTHING)
        for plea in told.pleas:
            of.pleas[plea.number] = asyncio.get_running_loop().create_task(self._lend(of, plea))
        lent, of.to_tell = of.to_tell, []
        return lent

    def lost(self, attempt: int) -> None:
        """A worker is reckoned with no longer: it may have sent all that it was lent."""
        if (of := self._borrowers.get(attempt)) is not None:
            self._let_go(of)
            for number, hold in of.lent.items():
                self.budget.settled(hold, hold.amount, hold.amount)
                of.lost[number] = hold
            of.lent.clear()

    def _begin_anew(
        self, of: _Borrower, lent: Sequence[ReserveReply], settled: Sequence[Settled]
    ) -> None:
        """A worker that is new here, or of which a turn or its answer went astray."""
        self._let_go(of)
        has = {one.number for one in lent} | {one.of.number for one in settled}
        for number in of.lent.keys() - has:  # It never heard of it.
            self.budget.settled(of.lent.pop(number), NOTHING, NOTHING)
        for number, model, amount in lent:
            if number in of.lent:
                continue
            if (lost := of.lost.pop(number, None)) is not None:
                of.lent[number] = self.budget.found(lost)
            else:  # Lent by the hub before, which recorded that it was.
                of.lent[number] = self.budget.adopt(model, amount)

    def _let_go(self, of: _Borrower) -> None:
        for task in of.pleas.values():
            task.cancel()
        of.pleas.clear()
        for number, _amount in of.to_tell:
            self.budget.settled(of.lent.pop(number), NOTHING, NOTHING)
        of.to_tell.clear()

    async def _lend(self, of: _Borrower, plea: ReserveRequest) -> None:
        try:
            hold = await self.budget.enter(plea.most, plea.model, again=plea.again)
        except Closed:
            return
        del of.pleas[plea.number]
        of.lent[plea.number] = hold
        of.to_tell.append((plea.number, hold.amount))

    def _ends(self, why: Exception) -> None:
        self.why = why
        self._over()
