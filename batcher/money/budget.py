"""The budget: reserves an amount before each request and settles it after. Touches: nothing itself.

A reservation is what a request may cost at most (`money.reserve`). So the sum of what is spent and what
is in flight never exceeds the budget, whatever the concurrency. A request that does not fit waits until
others are settled; when none is in flight and it still does not fit, the run stops.

That holds while no bill is above its reservation. A model that bills more, because prices, bounds or
prompts are not what they seemed, exceeds the budget by that much once: from then on its requests reserve
as much more.

A kill leaves nothing settled. Therefore the committed amount is recorded before a request is sent
(`claim`), with what the next quarter of a second will probably commit, and the next run begins with that.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from decimal import ROUND_UP, Decimal
from typing import NamedTuple, Protocol

from batcher.errors import BatcherError, RunStopped
from batcher.limits.port import Closed

__all__ = ["NOTHING", "Amount", "Budget", "BudgetState", "Reservation"]

_DIGITS = Decimal("1e-12")
_STEPS = 100  # A claim is at most this part of the budget ahead.
_CLAIM_SECONDS = 0.25


class Amount(NamedTuple):
    """Dollars and tokens, of one request or of many."""

    dollars: Decimal
    tokens: int

    def plus(self, other: Amount) -> Amount:
        """The sum."""
        return Amount(self.dollars + other.dollars, self.tokens + other.tokens)

    def minus(self, other: Amount) -> Amount:
        """The difference."""
        return Amount(self.dollars - other.dollars, self.tokens - other.tokens)

    def within(self, other: Amount) -> bool:
        """Whether neither part is above the other's."""
        return self.dollars <= other.dollars and self.tokens <= other.tokens

    def times(self, factor: Decimal) -> Amount:
        """The product; tokens rounded up."""
        dollars = (self.dollars * factor).quantize(_DIGITS, ROUND_UP)
        return Amount(dollars, math.ceil(self.tokens * factor))

    def over(self, other: Amount) -> Decimal:
        """The larger of the two ratios to another amount."""
        parts = ((self.dollars, other.dollars), (Decimal(self.tokens), Decimal(other.tokens)))
        return max((own / other for own, other in parts if other), default=Decimal(1))


NOTHING = Amount(Decimal(0), 0)
_UNBOUNDED = Amount(Decimal("Infinity"), 1 << 62)


class Budget(Protocol):
    """What the sender needs of a budget; `LocalBudget` and the cluster's share of one implement it."""

    @property
    def in_dollars(self) -> bool:
        """Whether dollars are bounded."""

    async def enter(self, most: Amount, model: str = "", *, again: bool = False) -> Reservation:
        """Reserves an amount, waiting for others to be settled where it does not fit."""

    def settled(self, hold: Reservation, used: Amount, perhaps: Amount) -> None:
        """Replaces a reservation by what the request used."""

    def took_more(self, model: str, used: Amount, most: Amount) -> None:
        """A bill was above its reservation."""

    def stop(self, why: Exception) -> None:
        """Reserves nothing more."""

    def on_stop(self, callback: Callable[[Exception], None]) -> None:
        """Calls back once, with the error that ends the run, when nothing more can be paid for."""

    def close(self) -> None:
        """Waiting requests get `Closed`."""


class BudgetState(NamedTuple):
    """The state of a `LocalBudget`, for a copy of it elsewhere."""

    committed: Amount
    perhaps: Amount
    spent: bool
    refused: Amount
    factors: dict[str, Decimal]


class LocalBudget:
    """The budget of an output, for all of its runs.

    Args:
        dollars: At most; None for no bound.
        tokens: Likewise, prompt and answer.
        spent: By earlier runs.
        claim: Records an amount before anything of it is spent; runs in a thread. What it raises ends the
            run.
        perhaps: The part of `spent` that is not certain, as below.
        clock: In seconds.

    Attributes:
        perhaps: The part of the committed amount that is not certain: what requests without an answer, or
            answers without usage, may have cost.
        spent: Whether the run ended because a request did not fit.
        refused: The amount of that request.
    """

    def __init__(
        self,
        dollars: Decimal | None,
        tokens: int | None,
        spent: Amount,
        claim: Callable[[Amount], None],
        perhaps: Amount = NOTHING,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = Amount(
            _UNBOUNDED.dollars if dollars is None else dollars,
            _UNBOUNDED.tokens if tokens is None else tokens,
        )
        self._max_step = Amount(
            _UNBOUNDED.dollars if dollars is None else dollars / _STEPS,
            _UNBOUNDED.tokens if tokens is None else tokens // _STEPS + 1,
        )
        self._claim = claim
        self._clock = clock
        self._claimed_at = clock()
        self._step = NOTHING
        self._factors: dict[str, Decimal] = {}
        self._committed = spent
        self._claimed = spent
        self._in_flight = self._repairs_waiting = 0
        self._closed = False
        self._changed = asyncio.Event()
        self._claiming = asyncio.Lock()
        self._on_stop: Callable[[Exception], None] = lambda _why: None
        self.perhaps = perhaps
        self.spent, self.refused = False, NOTHING

    @property
    def committed(self) -> Amount:
        """What is spent and reserved."""
        return self._committed

    async def enter(self, most: Amount, model: str = "", *, again: bool = False) -> Reservation:
        """Reserves an amount, waiting for others to be settled where it does not fit.

        Args:
            most: What the request may take.
            model: Where it goes; more is reserved where others took more.
            again: Whether its row has an answer already that is not usable. Such a row goes before others:
                else a new row would begin that cannot be finished either.

        Raises:
            Closed: It does not fit, or the run is stopping.
        """
        self._repairs_waiting += again
        try:
            amount = await self._fits(most, model, again=again)
        finally:
            self._repairs_waiting -= again
            if again and not self._repairs_waiting:
                self._changed.set()
        if self._closed:
            raise Closed
        self._committed = self._committed.plus(amount)
        self._in_flight += 1
        hold = Reservation(self, model, amount)
        try:
            while not self._committed.within(self._claimed):
                async with self._claiming:
                    if not self._committed.within(self._claimed):
                        claimed = self._next_claim()
                        await asyncio.to_thread(self._claim, claimed)
                        self._claimed = claimed
        except BaseException as error:
            hold.settle()
            if isinstance(error, OSError | BatcherError):
                self.stop(error)  # What is in flight was paid for, and is waited for.
                raise Closed from None
            raise
        return hold

    async def _fits(self, most: Amount, model: str, *, again: bool) -> Amount:
        """What to reserve, once there is room for it."""
        while (self._repairs_waiting and not again) or not self._committed.plus(
            amount := self._with_factor(most, model)
        ).within(self._most):
            # If rows with an answer wait, one of them ends the run.
            ends = not self._in_flight and (again or not self._repairs_waiting)
            if ends and not self._closed:
                self.stop(
                    RunStopped(
                        f"{self.told}; the next request may take {_shown(amount, self._most)}."
                    )
                )
                self.refused, self.spent = amount, True
            if self._closed:
                raise Closed
            self._changed.clear()
            await self._changed.wait()
        return self._with_factor(most, model)

    def settled(self, hold: Reservation, used: Amount, perhaps: Amount) -> None:
        """Replaces a reservation by what the request used, `perhaps` being the uncertain part of it."""
        self._committed = self._committed.minus(hold.amount).plus(used)
        self._in_flight -= 1
        self.perhaps = self.perhaps.plus(perhaps)
        self._changed.set()

    def adopt(self, model: str, amount: Amount) -> Reservation:
        """Takes over a reservation from before a restart, which the committed amount already holds."""
        self._in_flight += 1
        return Reservation(self, model, amount)

    def found(self, lost: Reservation) -> Reservation:
        """Takes back a reservation that was settled as perhaps spent: its request is still in flight."""
        self.perhaps = self.perhaps.minus(lost.amount)
        return self.adopt(lost.model, lost.amount)

    def known(self, spent: Amount) -> None:
        """Notes which part of the committed amount is certainly spent; the rest is `perhaps`."""
        besides = self._committed.minus(spent)
        self.perhaps = Amount(
            max(self.perhaps.dollars, besides.dollars), max(self.perhaps.tokens, besides.tokens)
        )

    @property
    def state(self) -> BudgetState:
        """The state, for `become`."""
        return BudgetState(
            self._committed, self.perhaps, self.spent, self.refused, dict(self._factors)
        )

    def become(self, state: BudgetState) -> None:
        """Takes over the state of another budget."""
        self._committed, self.perhaps, self.spent, self.refused, self._factors = state

    def _with_factor(self, most: Amount, model: str) -> Amount:
        factor = self._factors.get(model)
        return most if factor is None else most.times(factor)

    def took_more(self, model: str, used: Amount, most: Amount) -> None:
        """A bill was above its reservation; `most` is what would be reserved now."""
        times = used.over(most)
        if times > self._factors.get(model, 1):
            self._factors[model] = times

    def _next_claim(self) -> Amount:
        """The committed amount, and as much ahead as the recent pace needs until the next claim."""
        now = self._clock()
        pace = Decimal(min(2.0, _CLAIM_SECONDS / max(now - self._claimed_at, 1e-3)))
        grown = self._committed.minus(self._claimed).plus(self._step).times(pace)
        self._claimed_at = now
        self._step = Amount(
            min(grown.dollars, self._max_step.dollars), min(grown.tokens, self._max_step.tokens)
        )
        held, most = self._committed, self._most
        ahead = held.plus(self._step)
        # Not beyond the budget, which only bills above their reservations exceed.
        return Amount(
            max(held.dollars, min(ahead.dollars, most.dollars)),
            max(held.tokens, min(ahead.tokens, most.tokens)),
        )

    @property
    def in_dollars(self) -> bool:
        """Whether dollars are bounded."""
        return self._most.dollars != _UNBOUNDED.dollars

    def on_stop(self, callback: Callable[[Exception], None]) -> None:
        """Calls back once, with the error that ends the run, when nothing more can be paid for."""
        self._on_stop = callback

    def stop(self, why: Exception) -> None:
        """Reserves nothing more."""
        if not self._closed:
            self.close()
            self._on_stop(why)

    def close(self) -> None:
        """Waiting requests get `Closed`."""
        self._closed = True
        self._changed.set()

    @property
    def told(self) -> str:
        """How much of it is spent, for people."""
        parts = []
        if self.in_dollars:
            amounts = [self._committed.dollars, self._most.dollars, self.perhaps.dollars]
            parts.append(_spent_of("--max-cost", *map(_dollars, amounts), maybe=bool(amounts[2])))
        if self._most.tokens != _UNBOUNDED.tokens:
            counts = [self._committed.tokens, self._most.tokens, self.perhaps.tokens]
            shown = (f"{count:,}" for count in counts)
            parts.append(_spent_of("--max-total-tokens", *shown, maybe=bool(counts[2])))
        parts += [
            f"answers of {model} took up to {times:.3g} times what its price, its prompts and max_tokens allow"
            for model, times in self._factors.items()
        ]
        return "; ".join(parts)


class Reservation:
    """The amount reserved for one request.

    Attributes:
        amount: What was reserved.
        model: Where it goes.
    """

    __slots__ = ("_budget", "_perhaps", "_used", "amount", "model")

    def __init__(self, budget: Budget, model: str, amount: Amount) -> None:
        self._budget = budget
        self.model = model
        self.amount = amount
        self._used = self._perhaps = NOTHING

    def sent(self) -> None:
        """From now on the request may be billed."""
        self._used = self._perhaps = self.amount

    def refused(self) -> None:
        """The request was answered, and not billed."""
        self._used = self._perhaps = NOTHING

    def used(
        self, dollars: Decimal | None, tokens: int | None, most: Callable[[], Amount] | None = None
    ) -> None:
        """The request was billed; a part that is not reported stays as it was reserved.

        Args:
            dollars: As billed; None when not reported.
            tokens: Likewise.
            most: What would be reserved for it now; called when the bill is above the reservation.
        """
        billed = Amount(dollars or Decimal(0), tokens or 0)
        if not billed.within(self.amount):
            self._budget.took_more(self.model, billed, most() if most else self.amount)
        self._perhaps = Amount(
            self.amount.dollars if dollars is None else Decimal(0),
            self.amount.tokens if tokens is None else 0,
        )
        self._used = billed.plus(self._perhaps)

    def settle(self) -> None:
        """Ends the reservation."""
        self._budget.settled(self, self._used, self._perhaps)


def _spent_of(flag: str, spent: str, most: str, perhaps: str, *, maybe: bool) -> str:
    unknown = f", {perhaps} of it perhaps, where no answer or no usage came" if maybe else ""
    return f"{flag}: {spent} of {most} spent{unknown}"


def _dollars(dollars: Decimal) -> str:
    return f"${dollars:,.2f}" if dollars >= 1 else f"${float(dollars):.3g}"


def _shown(amount: Amount, most: Amount) -> str:
    parts = []
    if most.dollars != _UNBOUNDED.dollars:
        parts.append(_dollars(amount.dollars))
    if most.tokens != _UNBOUNDED.tokens:
        parts.append(f"{amount.tokens:,} tokens")
    return " and ".join(parts)
