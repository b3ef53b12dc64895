"""Dollars per million tokens, and the cost of a usage. Touches: nothing.

The first source that knows the model gives its price: `--prices FILE`, the gateway's own catalogue, the
package `genai-prices` for the providers whose addresses it knows. The cost that a gateway reports for a
request goes before all prices. A model without a price has no cost, not a cost of 0.

An answer is priced by the service tier that served it, and prompt tokens written to the provider's cache
by their own price. Where a source knows the input price but not these, the cost is unknown: a write
costs as much as other input with some providers, 1.25 or 2 times as much with others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal

import msgspec

from batcher.records import Usage

__all__ = ["HOUR", "MILLION", "Price", "Prices", "cost_of"]

MILLION = 1_000_000
HOUR = b'"1h"'  # The `ttl` of a `cache_control`, in the bytes of a request.


class Price(msgspec.Struct, frozen=True):
    """What a model costs, in dollars per million tokens.

    Attributes:
        cached: Of prompt tokens read from the provider's cache; None when it is not known: then they
            cost as much as others.
        cache_write: Of prompt tokens written to the provider's cache; None when that is not known.
        cache_write_1h: Of those that it keeps for an hour; likewise.
        source: Where it comes from and of when, for people.
        max_output: Tokens of its longest answer; None when it is not known.
        context: Tokens that prompt and answer may have together; likewise.
        tiers: Prices of requests whose prompts have more than so many tokens, the longest last.
        served: Prices by the service tier that served the request, such as "flex"; this one is
            that of the default tier.
    """

    input: Decimal
    output: Decimal
    cached: Decimal | None = None
    source: str = ""
    max_output: int | None = None
    context: int | None = None
    tiers: tuple[tuple[int, Price], ...] = ()
    cache_write: Decimal | None = None
    cache_write_1h: Decimal | None = None
    served: dict[str, Price] = {}

    def for_prompt(self, prompt_tokens: int) -> Price:
        """The price of a request with a prompt of so many tokens."""
        found = self
        for over, price in self.tiers:
            if prompt_tokens > over:
                found = price
        return found

    def at(self, tier: str | None) -> Price | None:
        """The price at a service tier; None when it is not known. A tier of None is the default."""
        return self if tier is None else self.served.get(tier)

    @property
    def saved(self) -> Decimal:
        """Dollars that a token read from the cache is cheaper."""
        return Decimal(0) if self.cached is None else (self.input - self.cached) / MILLION


def cost_of(usage: Usage, price: Price, body: bytes = b"") -> Decimal | None:
    """Dollars, exact; None when the tokens were not reported, or their price is not known.

    Reasoning tokens are a part of the completion's; cached and written ones are parts of the
    prompt's: none counts twice.

    Args:
        usage: Of one answer.
        price: Of the service tier that served it.
        body: The request; it shows how long its writes are kept where the usage does not.

    >>> price = Price(Decimal(2), Decimal(8), Decimal("0.5"), cache_write=Decimal("2.5"))
    >>> cost_of(Usage(1000, 100, 1100, cached_tokens=400, reasoning_tokens=90), price)
    Decimal('0.0022')
    >>> cost_of(Usage(1000, 100, 1100, cached_tokens=400, cache_write_tokens=200), price)
    Decimal('0.0023')
    """
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    if prompt is None or completion is None:
        return None
    price = price.for_prompt(prompt)
    cached = min(usage.cached_tokens or 0, prompt)
    cheap = price.input if price.cached is None else price.cached
    written = min(usage.cache_write_tokens or 0, prompt - cached)
    dollars = cached * cheap + completion * price.output
    if written:
        hour = usage.cache_write_1h_tokens
        if hour is None:
            if HOUR in body and price.cache_write != price.cache_write_1h:
                return None  # Some of them may be kept for an hour, and the number is not known.
            hour = 0
        hour = min(hour, written)
        for tokens, per in ((written - hour, price.cache_write), (hour, price.cache_write_1h)):
            if tokens:
                if per is None:
                    return None
                dollars += tokens * per
    return (dollars + (prompt - cached - written) * price.input) / MILLION


class Prices:
    """All that is known of prices.

    Args:
        configured: From `--prices`.
        catalogue: From the gateway.
        package: Of the seller at the gateway's address, as `package_prices` gives it.
    """

    def __init__(
        self,
        configured: Mapping[str, Price] | None = None,
        catalogue: Mapping[str, Price] | None = None,
        package: Callable[[str], Price | None] = lambda _model: None,
    ) -> None:
        self._configured = configured or {}
        self._sources = [self._configured.get, (catalogue or {}).get, package]

    def of(self, model: str) -> Price | None:
        """The price of a model; None when it is not known."""
        known = self._known(model)
        if not known:
            return None
        longest = next((price.max_output for price in known if price.max_output), None)
        context = next((price.context for price in known if price.context), None)
        served = {tier: at for price in reversed(known) for tier, at in price.served.items()}
        own = f"{model}@"
        served |= {
            name.removeprefix(own): at
            for name, at in self._configured.items()
            if name.startswith(own)
        }
        return msgspec.structs.replace(
            known[0], max_output=longest, context=context, served=served
        )

    def conflicts(self, models: Iterable[str]) -> list[str]:
        """A sentence for each of these models whose sources differ."""
        conflicts = []
        for model in models:
            known = self._known(model)
            if len({(price.input, price.output) for price in known}) > 1:
                all_prices = ", ".join(f"{_shown(price)} by {price.source}" for price in known)
                conflicts.append(f"{model}: {all_prices}; the first counts.")
        return conflicts

    def _known(self, model: str) -> list[Price]:
        return [price for source in self._sources if (price := source(model)) is not None]


def _shown(price: Price) -> str:
    return f"${price.input.normalize():f} + ${price.output.normalize():f} a million tokens"
