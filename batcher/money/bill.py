"""What the answers of one model cost. Touches: nothing."""

from __future__ import annotations

from decimal import Decimal

import msgspec

from batcher.money.prices import Price, cost_of
from batcher.records import Usage

__all__ = ["Bill", "is_free"]


def is_free(model: str) -> bool:
    """Whether a model's name says that it is free, as OpenRouter and AiHubMix name them."""
    return model.endswith((":free", "-free"))


class Bill:
    """Costs of one model's answers: as the gateway reports them, else by a price.

    Args:
        price: Of its tokens; None when it is not known.
        free: Whether it is free by its name, where no price is known.

    Attributes:
        price: As given.
        reported: Dollars that the gateway reported for answers.
        priced: Dollars that the same answers cost by the price; None when there is none, or not all
            reported their tokens.
        unpriced: Counts of answers without a cost though the model's price is known, by the missing
            price's name in `--prices`.
    """

    def __init__(self, price: Price | None, *, free: bool = False) -> None:
        self.price = price
        self._free = free if price is None else not (price.input or price.output)
        self.reported: Decimal | None = None
        self.priced: Decimal | None = None if price is None else Decimal(0)
        self.unpriced: dict[str, int] = {}

    def add(self, usage: Usage, body: bytes = b"") -> Usage:
        """The usage of one answer with its cost; `body` is the request."""
        price = self.price
        if price is None and usage.cost_usd is None:
            return usage
        if price is not None and usage.service_tier is not None:
            price = price.at(usage.service_tier)
        by_price = None if price is None else cost_of(usage, price, body)
        if usage.cost_usd == 0 and not self._free and usage.completion_tokens != 0:
            # Gateways often report 0 for what they cannot price, or bill elsewhere.
            usage = msgspec.structs.replace(usage, cost_usd=None)
        if usage.cost_usd is None:
            if by_price is None:
                self._count_unpriced(usage, price)
                return usage
            return msgspec.structs.replace(usage, cost_usd=float(by_price))
        self.reported = (self.reported or 0) + Decimal(str(usage.cost_usd))
        if self.priced is not None:
            self.priced = None if by_price is None else self.priced + by_price
        return usage

    def _count_unpriced(self, usage: Usage, price: Price | None) -> None:
        """Counts an answer that reported its tokens, some of which have no price."""
        if self.price is None or usage.prompt_tokens is None or usage.completion_tokens is None:
            return
        if price is None:
            missing = f"@{usage.service_tier}"
        else:
            known = price.for_prompt(usage.prompt_tokens).cache_write
            missing = "cache_write" if known is None else "cache_write_1h"
        self.unpriced[missing] = self.unpriced.get(missing, 0) + 1

    @property
    def differs(self) -> bool:
        """Whether the price and the gateway's reports differ by more than one part in a hundred."""
        if self.reported is None or self.priced is None:
            return False
        return abs(self.reported - self.priced) > max(self.reported, self.priced) / 100
