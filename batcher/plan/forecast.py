"""What a job will take, before anything is sent: requests, tokens, money, time. Touches: nothing.

Nothing of a model's answers is known then, so a cost is told for the prompts, and a bound for the
answers where `max_tokens` gives one.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal

import numpy as np

from batcher.job import Limits
from batcher.prices import Price
from batcher.records import Prompt

__all__ = ["Forecast", "counted"]

_BYTES = 4
_FEWEST, _MOST = 2, 6
"""Bytes a token has: English text and code about 4, Korean and base64 near 2, plain words up to 6."""


def counted(requests: int) -> str:
    """A number of requests, in words."""
    return "1 request" if requests == 1 else f"{requests:,} requests"


class _Share:
    """One model's part."""

    def __init__(self) -> None:
        self.requests = self.bytes = self.bound = self.unbound = 0

    def add(self, prompt: Prompt) -> None:
        self.requests += 1
        self.bytes += len(prompt.fields) - prompt.excess
        if prompt.max_tokens is None:
            self.unbound += 1
        else:
            self.bound += prompt.max_tokens


class Forecast:
    """Adds up what is to be sent.

    Args:
        slots: Model by slot; "" where rows name their own.
        one: Whether a row is answered by one of the models, each of which is then told all of it.

    Attributes:
        errors: Why rows cannot be sent.
        requests: How many will be.
    """

    def __init__(self, slots: tuple[str, ...], *, one: bool) -> None:
        self._slots = slots
        self._one = one
        self._models: dict[str, _Share] = {}
        self._prompts = array("q")
        self.errors: list[str] = []
        self.requests = 0

    def add(self, prompt: Prompt, slots: Sequence[int], samples: int) -> None:
        """Counts one row.

        Args:
            prompt: What it asks.
            slots: Where it may be sent.
            samples: Of how many samples these are.
        """
        if prompt.error is not None:
            self.errors.append(prompt.error)
            return
        self.requests += samples if self._one else len(slots)
        self._prompts.append(hash((prompt.fields, prompt.model)))
        for slot in slots:
            model = self._slots[slot] or prompt.model or ""
            self._models.setdefault(model, _Share()).add(prompt)

    @property
    def twins(self) -> int:
        """Rows that ask what an earlier row asks."""
        hashes = np.frombuffer(self._prompts, np.int64) if self._prompts else np.empty(0, np.int64)
        return len(hashes) - len(np.unique(hashes))

    def lines(
        self, price_of: Callable[[str], Price | None], limits_of: Callable[[str], Limits]
    ) -> Iterator[str]:
        """A sentence or two for each model."""
        for model, share in self._models.items():
            tokens, most = share.bytes / _BYTES, share.bytes / _FEWEST
            told = (
                f"{model}: {counted(share.requests)}{' at most' if self._one else ''}, about "
                f"{_rough(tokens)} prompt tokens ({_rough(share.bytes / _MOST)} to {_rough(most)})"
            )
            yield f"{told}{_money(share, price_of(model))}{_time(share, limits_of(model))}."


def _money(share: _Share, price: Price | None) -> str:
    if price is None:
        return "; its price is not known"
    per = price.input / 1_000_000
    low, mid, high = (Decimal(share.bytes) / size * per for size in (_MOST, _BYTES, _FEWEST))
    prompts = f", {_dollars(mid)} ({_dollars(low)} to {_dollars(high)})"
    if share.unbound:
        return f"{prompts}, and ${price.output.normalize():f} for a million tokens of answers"
    return f"{prompts}, and at most {_dollars(share.bound * price.output / 1_000_000)} for answers"


def _time(share: _Share, limits: Limits) -> str:
    minutes = [
        share.requests / limits.rpm if limits.rpm else 0.0,
        share.bytes / _BYTES / limits.tpm if limits.tpm else 0.0,
    ]
    longest = max(minutes)
    if not longest:
        return ""
    which = "--rpm" if minutes[0] == longest else "--tpm"
    spelled = f"{longest / 60:,.1f} h" if longest >= 120 else f"{longest:,.1f} min"
    return f"; {spelled} or more at {which}"


def _rough(number: float) -> str:
    """Two digits of it."""
    if number < 100:
        return f"{number:.0f}"
    digits = len(str(int(number))) - 2
    return f"{round(number / 10**digits) * 10**digits:,}"


def _dollars(dollars: Decimal) -> str:
    return f"${dollars:,.2f}" if dollars >= 1 else f"${float(dollars):.2g}" if dollars else "$0"
