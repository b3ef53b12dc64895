"""Estimates what a job takes before anything is sent: requests, tokens, money, time. Touches: nothing.

Answers are not known then: the cost is that of the prompts, and a bound for the answers where `max_tokens` sets
one.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal

import numpy as np

from batcher.job.job import Limits
from batcher.live.format import counted
from batcher.money.prices import Price
from batcher.records import Prompt
from batcher.write.slots import Slots

__all__ = ["Forecast"]

PriceOf = Callable[[str], Price | None]
LimitsOf = Callable[[str], Limits]

_BYTES = 4
_FEWEST, _MOST = 2, 6
"""Bytes per token: English and code about 4, Korean and Japanese 2 to 5 by tokenizer, plain words up to 6. Base64
has 1.5, and is not meant to be in a prompt (`scripts/bench tokens`)."""


class _Share:
    """The figures of one model."""

    def __init__(self) -> None:
        self.requests = self.bytes = self.bound = self.unbound = 0

    def add(self, prompt: Prompt, bound: int | None) -> None:
        self.requests += 1
        self.bytes += len(prompt.fields) - prompt.image_bytes
        if bound is None:
            self.unbound += 1
        else:
            self.bound += bound

    @property
    def tokens(self) -> tuple[float, float, float]:
        """(about, from, to) tokens of the prompts."""
        return self.bytes / _BYTES, self.bytes / _MOST, self.bytes / _FEWEST


class Forecast:
    """Adds up what is to be sent.

    Where one model's answer is enough for a row, each model gets the figures of the whole job.

    Args:
        slots: The slots of each row.
        reask: How often an answer that is not what was asked for is sent back.
        max_tokens: Up to which bound a truncated answer is asked for again; None for never.

    Attributes:
        errors: Why rows cannot be sent.
        requests: How many requests will be sent.
    """

    def __init__(self, slots: Slots, *, reask: int = 0, max_tokens: int | None = None) -> None:
        self._slots = slots
        self._reask = reask
        self._max_tokens = max_tokens
        self._models: dict[str, _Share] = {}
        self._prompts = array("q")
        self.errors: list[str] = []
        self.requests = 0

    def add(self, prompt: Prompt, slots: Sequence[int]) -> None:
        """Counts a row that may be sent to these slots."""
        if prompt.error is not None:
            self.errors.append(prompt.error)
            return
        self.requests += len(self._slots.sent_first(slots))
        self._prompts.append(hash((prompt.fields, prompt.model)))
        for slot in slots:
            model = self._slots.model(slot, prompt.model)
            self._models.setdefault(model, _Share()).add(prompt, self._answers(prompt.max_tokens))

    def _answers(self, bound: int | None) -> int | None:
        """Bound of the tokens of all answers to a request together, those that are discarded too."""
        if bound is None:
            return None
        longest = every = bound
        while self._max_tokens is not None and longest < self._max_tokens:
            longest = min(self._max_tokens, 2 * longest)
            every += longest
        return every + self._reask * longest

    @property
    def repeated(self) -> int:
        """How many rows ask what an earlier row asks."""
        hashes = np.frombuffer(self._prompts, np.int64) if self._prompts else np.empty(0, np.int64)
        return len(hashes) - len(np.unique(hashes))

    def lines(self, price_of: PriceOf, limits_of: LimitsOf) -> Iterator[str]:
        """Yields a sentence or two for each model."""
        for model, share in self._models.items():
            about, low, high = map(_rough, share.tokens)
            facts = (
                f"{model}: {counted(share.requests, 'request')}{' at most' if self._slots.one else ''}, about "
                f"{about} prompt tokens ({low} to {high})"
            )
            yield f"{facts}{_money(share, price_of(model))}{_time(share, limits_of(model))}."
            if share.unbound and "claude" in model.lower():
                yield (
                    f"{model}: {counted(share.unbound, 'request')} without max_tokens; gateways such as AiHubMix cut Claude's "
                    "answers at 4,096 tokens then. Set --param max_tokens=N."
                )

    def asdict(self, price_of: PriceOf, limits_of: LimitsOf) -> dict[str, object]:
        """The same for `--json`; None where something is not known."""
        models = {}
        for model, share in self._models.items():
            price, limits = price_of(model), limits_of(model)
            dollars = None if price is None else _of_prompts(share, price)
            most = None if price is None or share.unbound else _of_answers(share, price)
            minutes, _which = _minutes(share, limits)
            models[model] = {
                "requests": share.requests,
                "prompt_tokens": _range(share.tokens),
                "prompt_cost_usd": dollars and _range(dollars),
                "answer_tokens_at_most": None if share.unbound else share.bound,
                "answer_cost_usd_at_most": most and float(most),
                "minutes_at_least": minutes or None,
                "price": None if price is None else price.source,
            }
        return {
            "requests": self.requests,
            "unreadable": len(self.errors),
            "equal_to_an_earlier_row": self.repeated,
            "models": models,
        }


def _range(numbers: Sequence[float | Decimal]) -> dict[str, float]:
    about, low, high = (float(f"{number:.6g}") for number in numbers)
    return {"about": about, "from": low, "to": high}


def _of_prompts(share: _Share, price: Price) -> list[Decimal]:
    """(about, from, to) dollars; where long prompts have another price, by the mean length."""
    per = price.for_prompt(int(share.tokens[0] / share.requests)).input
    return [Decimal(tokens) * per / 1_000_000 for tokens in share.tokens]


def _of_answers(share: _Share, price: Price) -> Decimal:
    return share.bound * price.for_prompt(int(share.tokens[0] / share.requests)).output / 1_000_000


def _money(share: _Share, price: Price | None) -> str:
    if price is None:
        return "; its price is not known"
    about, low, high = map(_dollars, _of_prompts(share, price))
    prompts = f", {about} ({low} to {high})"
    if share.unbound:
        return f"{prompts}, and ${price.output.normalize():f} for a million tokens of answers"
    return f"{prompts}, and at most {_dollars(_of_answers(share, price))} for answers"


def _minutes(share: _Share, limits: Limits) -> tuple[float, str]:
    """(minutes that the configured limits make it take at least, the flag of that limit); 0 without limits."""
    by_requests = share.requests / limits.rpm if limits.rpm else 0.0
    by_tokens = share.tokens[0] / limits.tpm if limits.tpm else 0.0
    return max((by_requests, "--rpm"), (by_tokens, "--tpm"))


def _time(share: _Share, limits: Limits) -> str:
    minutes, which = _minutes(share, limits)
    if not minutes:
        return ""
    spelled = f"{minutes / 60:,.1f} h" if minutes >= 120 else f"{minutes:,.1f} min"
    return f"; {spelled} or more at {which}"


def _rough(number: float) -> str:
    """The number with two significant digits."""
    if number < 100:
        return f"{number:.0f}"
    digits = len(str(int(number))) - 2
    return f"{round(number / 10**digits) * 10**digits:,}"


def _dollars(dollars: Decimal) -> str:
    return f"${dollars:,.2f}" if dollars >= 1 else f"${float(dollars):.2g}" if dollars else "$0"
