"""May this request still be paid for: reserved before it is sent, settled after. Touches: nothing itself.

What a request may cost at most is set aside before it goes: its prompt with a margin, and all of the
tokens that its answer may have. So the sum of what is spent and what is in flight never exceeds the
budget, whatever the concurrency. A request that does not fit waits until others are settled; when
none is in flight and it still does not fit, the run stops.

That holds while no bill is above what was set aside for it. Who bills more, as prices, bounds or
prompts are not what they were told to be, exceeds a budget by that much once: from then on as much
more is set aside for the model's requests.

A kill leaves nobody to settle. Therefore what is committed is recorded before it is sent (`claim`),
with what is likely to be committed in the next quarter of a second, and the next run begins with that.
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
_STEPS = 100  # Of a budget, that are claimed at once at most.
_CLAIM_SECONDS = 0.25


class Amount(NamedTuple):
    """Dollars and tokens, of one request or of many."""

    dollars: Decimal
    tokens: int

    def plus(self, other: Amount) -> Amount:
        """Both together."""
        return Amount(self.dollars + other.dollars, self.tokens + other.tokens)

    def minus(self, other: Amount) -> Amount:
        """What is left of it."""
        return Amount(self.dollars - other.dollars, self.tokens - other.tokens)

    def within(self, other: Amount) -> bool:
        """Whether neither part is above the other's."""
        return self.dollars <= other.dollars and self.tokens <= other.tokens

    def times(self, factor: Decimal) -> Amount:
        """So many times as much; tokens rounded up."""
        dollars = (self.dollars * factor).quantize(_DIGITS, ROUND_UP)
        return Amount(dollars, math.ceil(self.tokens * factor))

    def over(self, other: Amount) -> Decimal:
        """How many times the other it is, by whichever part is more."""
        parts = ((self.dollars, other.dollars), (Decimal(self.tokens), Decimal(other.tokens)))
        return max((mine / its for mine, its in parts if its), default=Decimal(1))


NOTHING = Amount(Decimal(0), 0)
_ENDLESS = Amount(Decimal("Infinity"), 1 << 62)


class Budget(Protocol):
    """What the sender needs of a budget, and all that a shared one has to implement: as of `LocalBudget`."""

    @property
    def in_dollars(self) -> bool:
        """Whether dollars are bounded."""

    async def enter(self, most: Amount, model: str = "", *, again: bool = False) -> Reservation:
        """Sets an amount aside, waiting for others to be settled where it does not fit."""

    def settled(self, hold: Reservation, used: Amount, perhaps: Amount) -> None:
        """What a request used in place of what was set aside for it."""

    def took_more(self, model: str, used: Amount, most: Amount) -> None:
        """A bill was above what was set aside."""

    def stop(self, why: Exception) -> None:
        """Nothing more is paid for."""

    def on_stop(self, callback: Callable[[Exception], None]) -> None:
        """Calls back once, with what ends the run, when nothing more can be paid for."""

    def close(self) -> None:
        """Those who wait are let go."""


class BudgetState(NamedTuple):
    """How a budget stands, for a copy of it elsewhere: attributes of `LocalBudget`."""

    committed: Amount
    perhaps: Amount
    spent: bool
    refused: Amount
    factors: dict[str, Decimal]


class LocalBudget:
    """What all runs of an output may spend together.

    Args:
        dollars: At most; None for no bound.
        tokens: Likewise, prompt and answer.
        spent: By earlier runs.
        claim: Records that so much may be spent before anything of it is; in a thread. What it raises
            ends the run.
        perhaps: A part of what earlier runs spent, as `perhaps` below.
        clock: In seconds.

    Attributes:
        perhaps: A part of what is spent: what requests without an answer, or answers without usage,
            may have cost.
        spent: Whether the run ended as a request did not fit.
        refused: What that one would have taken.
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
            _ENDLESS.dollars if dollars is None else dollars,
            _ENDLESS.tokens if tokens is None else tokens,
        )
        self._widest = Amount(
            _ENDLESS.dollars if dollars is None else dollars / _STEPS,
            _ENDLESS.tokens if tokens is None else tokens // _STEPS + 1,
        )
        self._claim = claim
        self._clock = clock
        self._claimed_at = clock()
        self._step = NOTHING
        self._factors: dict[str, Decimal] = {}
        self._committed = spent
        self._claimed = spent
        self._flying = self._owed = 0
        self._closed = False
        self._changed = asyncio.Event()
        self._claiming = asyncio.Lock()
        self._on_stop: Callable[[Exception], None] = lambda _why: None
        self.perhaps = perhaps
        self.spent, self.refused = False, NOTHING

    @property
    def committed(self) -> Amount:
        """What is spent, and what those in flight may still cost."""
        return self._committed

    async def enter(self, most: Amount, model: str = "", *, again: bool = False) -> Reservation:
        """Sets an amount aside, waiting for others to be settled where it does not fit.

        Args:
            most: What a request may take by what is told of it.
            model: Where it goes; more is set aside where others took more.
            again: Whether its row has an answer already that is not what was asked for: such go
                before others, or a row would be begun that can be ended as little.

        Raises:
            Closed: It does not fit, or the run is stopping.
        """
        self._owed += again
        try:
            amount = await self._fits(most, model, again=again)
        finally:
            self._owed -= again
            if again and not self._owed:
                self._changed.set()
        if self._closed:
            raise Closed
        self._committed = self._committed.plus(amount)
        self._flying += 1
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
        """What to set aside, once there is room for it."""
        while (self._owed and not again) or not self._committed.plus(
            amount := self._aside(most, model)
        ).within(self._most):
            # Those that wait with an answer end the run, if it comes to that.
            ends = not self._flying and (again or not self._owed)
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
        return self._aside(most, model)

    def settled(self, hold: Reservation, used: Amount, perhaps: Amount) -> None:
        """What a request used in place of what was set aside for it, and what of that is not known."""
        self._committed = self._committed.minus(hold.amount).plus(used)
        self._flying -= 1
        self.perhaps = self.perhaps.plus(perhaps)
        self._changed.set()

    def adopt(self, model: str, amount: Amount) -> Reservation:
        """What was set aside before a restart, and is in what is spent."""
        self._flying += 1
        return Reservation(self, model, amount)

    def found(self, lost: Reservation) -> Reservation:
        """What was settled as perhaps spent is in flight still."""
        self.perhaps = self.perhaps.minus(lost.amount)
        return self.adopt(lost.model, lost.amount)

    def known(self, spent: Amount) -> None:
        """What of all that is committed is known to be spent; the rest is perhaps."""
        besides = self._committed.minus(spent)
        self.perhaps = Amount(
            max(self.perhaps.dollars, besides.dollars), max(self.perhaps.tokens, besides.tokens)
        )

    @property
    def state(self) -> BudgetState:
        """How it stands."""
        return BudgetState(
            self._committed, self.perhaps, self.spent, self.refused, dict(self._factors)
        )

    def become(self, state: BudgetState) -> None:
        """Stands as another one does."""
        self._committed, self.perhaps, self.spent, self.refused, self._factors = state

    def _aside(self, most: Amount, model: str) -> Amount:
        factor = self._factors.get(model)
        return most if factor is None else most.times(factor)

    def took_more(self, model: str, used: Amount, most: Amount) -> None:
        """A bill was above what was set aside, and above what would be by now."""
        times = used.over(most)
        if times > self._factors.get(model, 1):
            self._factors[model] = times

    def _next_claim(self) -> Amount:
        """What is committed, and as much more as was since the last claim, by the time that took."""
        now = self._clock()
        pace = Decimal(min(2.0, _CLAIM_SECONDS / max(now - self._claimed_at, 1e-3)))
        grown = self._committed.minus(self._claimed).plus(self._step).times(pace)
        self._claimed_at = now
        self._step = Amount(
            min(grown.dollars, self._widest.dollars), min(grown.tokens, self._widest.tokens)
        )
        held, most = self._committed, self._most
        ahead = held.plus(self._step)
        # Not beyond the budget, which only bills above what was set aside for them exceed.
        return Amount(
            max(held.dollars, min(ahead.dollars, most.dollars)),
            max(held.tokens, min(ahead.tokens, most.tokens)),
        )

    @property
    def in_dollars(self) -> bool:
        """Whether dollars are bounded."""
        return self._most.dollars != _ENDLESS.dollars

    def on_stop(self, callback: Callable[[Exception], None]) -> None:
        """Calls back once, with what ends the run, when nothing more can be paid for."""
        self._on_stop = callback

    def stop(self, why: Exception) -> None:
        """Nothing more is paid for."""
        if not self._closed:
            self.close()
            self._on_stop(why)

    def close(self) -> None:
        """Those who wait are let go."""
        self._closed = True
        self._changed.set()

    @property
    def told(self) -> str:
        """How much of it is spent, in words."""
        parts = []
        if self.in_dollars:
            of = [self._committed.dollars, self._most.dollars, self.perhaps.dollars]
            parts.append(_said("--max-cost", *map(_dollars, of), maybe=bool(of[2])))
        if self._most.tokens != _ENDLESS.tokens:
            counts = [self._committed.tokens, self._most.tokens, self.perhaps.tokens]
            told = (f"{count:,}" for count in counts)
            parts.append(_said("--max-total-tokens", *told, maybe=bool(counts[2])))
        parts += [
            f"answers of {model} took up to {times:.3g} times what its price, its prompts and max_tokens allow"
            for model, times in self._factors.items()
        ]
        return "; ".join(parts)


class Reservation:
    """What is set aside for one request; whole until it is told what became of it.

    Attributes:
        amount: What was set aside.
        model: Where it goes.
    """

    __slots__ = ("_budget", "_perhaps", "_used", "amount", "model")

    def __init__(self, budget: Budget, model: str, amount: Amount) -> None:
        self._budget = budget
        self.model = model
        self.amount = amount
        self._used = self._perhaps = NOTHING

    def sent(self) -> None:
        """From here on it may be billed."""
        self._used = self._perhaps = self.amount

    def refused(self) -> None:
        """It was answered, and not with what costs money."""
        self._used = self._perhaps = NOTHING

    def used(
        self, dollars: Decimal | None, tokens: int | None, most: Callable[[], Amount] | None = None
    ) -> None:
        """What was billed; what is not told stays as it was set aside.

        Args:
            dollars: By its bill.
            tokens: Likewise.
            most: What would be set aside for it now; asked where the bill is above what was.
        """
        told = Amount(dollars or Decimal(0), tokens or 0)
        if not told.within(self.amount):
            self._budget.took_more(self.model, told, most() if most else self.amount)
        self._perhaps = Amount(
            self.amount.dollars if dollars is None else Decimal(0),
            self.amount.tokens if tokens is None else 0,
        )
        self._used = told.plus(self._perhaps)

    def settle(self) -> None:
        """Ends it."""
        self._budget.settled(self, self._used, self._perhaps)


def _said(flag: str, spent: str, most: str, perhaps: str, *, maybe: bool) -> str:
    unknown = f", {perhaps} of it perhaps, where no answer or no usage came" if maybe else ""
    return f"{flag}: {spent} of {most} spent{unknown}"


def _dollars(dollars: Decimal) -> str:
    return f"${dollars:,.2f}" if dollars >= 1 else f"${float(dollars):.3g}"


def _shown(amount: Amount, most: Amount) -> str:
    parts = []
    if most.dollars != _ENDLESS.dollars:
        parts.append(_dollars(amount.dollars))
    if most.tokens != _ENDLESS.tokens:
        parts.append(f"{amount.tokens:,} tokens")
    return " and ".join(parts)
