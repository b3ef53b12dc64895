"""May this request still be paid for: reserved before it is sent, settled after. Touches: nothing itself.

What a request may cost at most is set aside before it goes: its prompt with a margin, and all of the
tokens that its answer may have. So the sum of what is spent and what is in flight never exceeds the
budget, whatever the concurrency. A request that does not fit waits until others are settled; when
none is in flight and it still does not fit, the run stops.

A kill leaves nobody to settle. Therefore what is committed is recorded, in steps of a hundredth of
the budget, before it is sent (`claim`), and the next run begins with that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from decimal import Decimal
from typing import NamedTuple

from batcher.errors import RunStopped
from batcher.send.gate import Closed

__all__ = ["Amount", "Budget", "Hold"]

_STEPS = 100


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


NOTHING = Amount(Decimal(0), 0)
_ENDLESS = Amount(Decimal("Infinity"), 1 << 62)


class Budget:
    """What all runs of an output may spend together.

    Args:
        dollars: At most; None for no bound.
        tokens: Likewise, prompt and answer.
        spent: By earlier runs.
        claim: Records that so much may be spent before anything of it is; in a thread.

    Attributes:
        ends: Called once, with what ends the run, when nothing more can be paid for.
        perhaps: A part of what is spent: of requests that got no answer, or one without usage.
    """

    def __init__(
        self,
        dollars: Decimal | None,
        tokens: int | None,
        spent: Amount,
        claim: Callable[[Amount], None],
    ) -> None:
        self._most = Amount(
            _ENDLESS.dollars if dollars is None else dollars,
            _ENDLESS.tokens if tokens is None else tokens,
        )
        steps = (dollars or Decimal(0)) / _STEPS, (tokens or 0) // _STEPS + 1
        self._step = Amount(*steps)
        self._claim = claim
        self._committed = spent
        self._claimed = spent
        self._flying = 0
        self._closed = False
        self._changed = asyncio.Event()
        self._claiming = asyncio.Lock()
        self.ends: Callable[[Exception], None] = lambda _why: None
        self.perhaps = NOTHING

    @property
    def committed(self) -> Amount:
        """What is spent, and what those in flight may still cost."""
        return self._committed

    async def enter(self, amount: Amount) -> Hold:
        """Sets an amount aside, waiting for others to be settled where it does not fit.

        Raises:
            Closed: It does not fit, or the run is stopping.
        """
        while not self._committed.plus(amount).within(self._most):
            if not self._flying and not self._closed:
                self.stop(
                    RunStopped(
                        f"{self.told}; the next request may take {_shown(amount, self._most)}. Go on "
                        "with a larger one."
                    )
                )
            if self._closed:
                raise Closed
            self._changed.clear()
            await self._changed.wait()
        if self._closed:
            raise Closed
        self._committed = self._committed.plus(amount)
        self._flying += 1
        hold = Hold(self, amount)
        try:
            while not self._committed.within(self._claimed):
                async with self._claiming:
                    if not self._committed.within(self._claimed):
                        claimed = self._committed.plus(self._step)
                        await asyncio.to_thread(self._claim, claimed)
                        self._claimed = claimed
        except BaseException:
            hold.settle()
            raise
        return hold

    def settled(self, reserved: Amount, used: Amount, perhaps: Amount) -> None:
        """What a request used in place of what was set aside for it, and what of that is not known."""
        self._committed = self._committed.minus(reserved).plus(used)
        self._flying -= 1
        self.perhaps = self.perhaps.plus(perhaps)
        self._changed.set()

    @property
    def in_dollars(self) -> bool:
        """Whether dollars are bounded."""
        return self._most.dollars != _ENDLESS.dollars

    def stop(self, why: Exception) -> None:
        """Nothing more is paid for."""
        if not self._closed:
            self.close()
            self.ends(why)

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
        return "; ".join(parts)


class Hold:
    """What is set aside for one request; whole until it is told what became of it.

    Attributes:
        amount: What was set aside.
    """

    __slots__ = ("_budget", "_perhaps", "_used", "amount")

    def __init__(self, budget: Budget, amount: Amount) -> None:
        self._budget = budget
        self.amount = amount
        self._used = self._perhaps = NOTHING

    def sent(self) -> None:
        """From here on it may be billed."""
        self._used = self._perhaps = self.amount

    def refused(self) -> None:
        """It was answered, and not with what costs money."""
        self._used = self._perhaps = NOTHING

    def used(self, dollars: Decimal | None, tokens: int | None) -> None:
        """What was billed; what is not told stays as it was set aside."""
        self._perhaps = Amount(
            self.amount.dollars if dollars is None else Decimal(0),
            self.amount.tokens if tokens is None else 0,
        )
        self._used = Amount(dollars or Decimal(0), tokens or 0).plus(self._perhaps)

    def settle(self) -> None:
        """Ends it."""
        self._budget.settled(self.amount, self._used, self._perhaps)


def _said(flag: str, spent: str, most: str, perhaps: str, *, maybe: bool) -> str:
    unknown = f", {perhaps} of it perhaps, by requests that got no answer" if maybe else ""
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
