"""Dollars per million tokens; the cost of a Usage. Touches: files (reads `--prices`).

Where a price comes from, the first that knows the model: `--prices FILE`, the gateway's own
catalogue, the package `genai-prices` for the providers whose addresses it knows. What the gateway
says a request did cost goes before all. A model without a price has no cost, not a cost of 0.

An answer is priced by the service tier that served it, and prompt tokens written to the provider's
cache by their own price. Where a source knows the input price but not these, the cost is unknown:
a write costs what other input costs with some providers, 1.25 or 2 times as much with others.
"""

from __future__ import annotations

import csv
import io
import json
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import msgspec

from batcher.errors import JobError
from batcher.records import Usage, tier_of

__all__ = [
    "HOUR",
    "MILLION",
    "Bill",
    "Price",
    "Prices",
    "cost_of",
    "is_free",
    "of_catalogue",
    "of_file",
]

MILLION = 1_000_000
HOUR = b'"1h"'  # The `ttl` of a `cache_control`, in the bytes of a request.
_TOO_CHEAP = Decimal(
    "0.001"
)  # Dollars for a million tokens, that is; the cheapest cost ten times as much.


class Price(msgspec.Struct, frozen=True):
    """What a model costs, in dollars per million tokens.

    Attributes:
        cached: Of prompt tokens read from the provider's cache; None when that is not told: then
            they cost what others do.
        cache_write: Of prompt tokens written to the provider's cache; None when that is not known.
        cache_write_1h: Of those that it keeps for an hour; likewise.
        source: Where it comes from and of when, for people.
        max_output: Tokens of its longest answer; None when that is not told.
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
        held = self
        for over, price in self.tiers:
            if prompt_tokens > over:
                held = price
        return held

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
        body: The request, which tells how long its writes are kept where the usage does not.

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
                return None  # Some of them may be kept for an hour, and it is not told how many.
            hour = 0
        hour = min(hour, written)
        for tokens, per in ((written - hour, price.cache_write), (hour, price.cache_write_1h)):
            if tokens:
                if per is None:
                    return None
                dollars += tokens * per
    return (dollars + (prompt - cached - written) * price.input) / MILLION


def is_free(model: str) -> bool:
    """Whether a model's name says that it is free, as OpenRouter and AiHubMix name them."""
    return model.endswith((":free", "-free"))


class Bill:
    """What the answers of one model cost: by the gateway's own word where it gives it, else by a price.

    Args:
        price: Of its tokens; None when it is not known.
        free: Whether it is free by its name, where no price is known.

    Attributes:
        told: Dollars that the gateway said answers cost.
        priced: What the price would have made of these; None when there is none, or not all told
            their tokens.
        unpriced: Answers without a cost though the model's price is known, by the price that is
            missing, as a name in `--prices`.
    """

    def __init__(self, price: Price | None, *, free: bool = False) -> None:
        self.price = price
        self._free = free if price is None else not (price.input or price.output)
        self.told: Decimal | None = None
        self.priced: Decimal | None = None if price is None else Decimal(0)
        self.unpriced: dict[str, int] = {}

    def of(self, usage: Usage, body: bytes = b"") -> Usage:
        """The usage with its cost; `body` is the request."""
        price = self.price
        if price is not None and usage.service_tier is not None:
            price = price.at(usage.service_tier)
        by_price = None if price is None else cost_of(usage, price, body)
        if usage.cost_usd == 0 and not self._free and usage.completion_tokens != 0:
            # What a gateway cannot price, or bills elsewhere, it often gives as 0.
            usage = msgspec.structs.replace(usage, cost_usd=None)
        if usage.cost_usd is None:
            if by_price is None:
                self._note_missing(usage, price)
                return usage
            return msgspec.structs.replace(usage, cost_usd=float(by_price))
        self.told = (self.told or 0) + Decimal(str(usage.cost_usd))
        if self.priced is not None:
            self.priced = None if by_price is None else self.priced + by_price
        return usage

    def _note_missing(self, usage: Usage, price: Price | None) -> None:
        """Counts an answer that told its tokens, and of which some have no price."""
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
        """Whether the price says something else than the gateway does, by more than one part in a hundred."""
        if self.told is None or self.priced is None:
            return False
        return abs(self.told - self.priced) > max(self.told, self.priced) / 100


class Prices:
    """All that is known of prices.

    Args:
        told: Of `--prices`.
        catalogue: Of the gateway.
        package: Of whoever sells under the gateway's address, as `of_package` gives it.
    """

    def __init__(
        self,
        told: Mapping[str, Price] | None = None,
        catalogue: Mapping[str, Price] | None = None,
        package: Callable[[str], Price | None] = lambda _model: None,
    ) -> None:
        self._told = told or {}
        self._sources = [self._told.get, (catalogue or {}).get, package]

    def of(self, model: str) -> Price | None:
        """The price of a model; None when nothing tells it."""
        known = self._known(model)
        if not known:
            return None
        longest = next((price.max_output for price in known if price.max_output), None)
        context = next((price.context for price in known if price.context), None)
        served = {tier: of for price in reversed(known) for tier, of in price.served.items()}
        own = f"{model}@"
        served |= {
            name.removeprefix(own): of for name, of in self._told.items() if name.startswith(own)
        }
        return msgspec.structs.replace(
            known[0], max_output=longest, context=context, served=served
        )

    def conflicts(self, models: Iterable[str]) -> list[str]:
        """A sentence for each of these models of which the sources say different things."""
        said = []
        for model in models:
            known = self._known(model)
            if len({(price.input, price.output) for price in known}) > 1:
                told = ", ".join(f"{_shown(price)} by {price.source}" for price in known)
                said.append(f"{model}: {told}; the first counts.")
        return said

    def _known(self, model: str) -> list[Price]:
        return [price for source in self._sources if (price := source(model)) is not None]


def of_file(path: str) -> dict[str, Price]:
    """Prices from a TOML, JSON or CSV file: for each model `input`, `output` and perhaps other fields.

    A name such as `gpt-5@flex` is a model at a service tier.

    Raises:
        JobError: It cannot be read, or says something else.
    """
    try:
        content = Path(path).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise JobError(f"--prices {path}: it cannot be read: {why}.") from None
    try:
        data: Any
        if path.endswith(".toml"):
            data = tomllib.loads(content, parse_float=Decimal)
        elif path.endswith(".json"):
            data = json.loads(content, parse_float=Decimal, object_pairs_hook=_once)
        elif path.endswith(".csv"):
            rows = list(csv.DictReader(io.StringIO(content), skipinitialspace=True))
            if any(not row.get("model") for row in rows):
                raise ValueError("it has no column 'model', or a row without one")
            data = _once([(row.pop("model"), row) for row in rows])
        else:
            raise ValueError("name it .toml, .json or .csv")
    except (ValueError, RecursionError) as error:
        raise JobError(f"--prices {path}: {error}.") from None
    source = f"{path} of {time.strftime('%Y-%m-%d', time.localtime(Path(path).stat().st_mtime))}"
    if not isinstance(data, dict) or not data:
        raise JobError(f"--prices {path}: there are no models in it.")
    return {model: _told(path, model, of, source) for model, of in data.items()}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Names to values, no name twice."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name} stands in it twice")
        found[name] = value
    return found


def _told(path: str, model: str, of: Any, source: str) -> Price:
    needed = ("input", "output")
    known = (*needed, "cached", "cache_write", "cache_write_1h")
    if not isinstance(of, dict):
        raise JobError(f"--prices {path}: {model}: it must have input and output.")
    if unknown := [name for name in of if name not in known]:
        raise JobError(
            f"--prices {path}: {model}: {unknown[0]!r} is none of {', '.join(known)} (dollars per "
            "million tokens)."
        )
    numbers = {name: _number(of.get(name)) for name in known}
    if any(0 < (numbers[name] or 0) < _TOO_CHEAP for name in needed):
        raise JobError(
            f"--prices {path}: {model}: these are dollars a token, as it seems; write dollars per million "
            "tokens."
        )
    for name in known:
        if numbers[name] is None and (name in needed or of.get(name) not in (None, "")):
            raise JobError(
                f"--prices {path}: {model}: {name} is {of.get(name)!r}, and must be dollars per "
                "million tokens."
            )
    return Price(**numbers, source=source)  # type: ignore[arg-type]


def of_catalogue(data: Any, date: str) -> dict[str, Price]:
    """Prices from what a gateway lists; models of which it tells none are left out.

    Two dialects: AiHubMix's `pricing.input`, dollars per million tokens, with `max_output`; and
    OpenRouter's `pricing.prompt`, dollars per token, with `top_provider.max_completion_tokens`.
    A write to the cache that is cheaper than other input (Gemini's at OpenRouter) is a surcharge, or
    was not filled in: its price is not known.
    """
    listed = data.get("data") if isinstance(data, dict) else None
    source = f"the gateway's catalogue of {date}"
    found = {}
    for of in listed if isinstance(listed, list) else ():
        pricing = of.get("pricing") if isinstance(of, dict) else None
        if not isinstance(pricing, dict):
            continue
        name = of.get("model_id") or of.get("id")
        if "prompt" in pricing:
            factor, names = MILLION, ("prompt", "completion", "input_cache_read")
            writes = "input_cache_write"
        else:
            factor, names, writes = 1, ("input", "output", "cache_read"), "cache_write"
        numbers = (_number(pricing.get(of)) for of in (*names, writes, f"{writes}_1h"))
        input_, output, cached, *written = (of if of is None else of * factor for of in numbers)
        if not isinstance(name, str) or input_ is None or output is None:
            continue
        if not input_ and not output and "free" not in name:
            continue  # Not filled in, rather than given away.
        write, hour = (None if of is None or of < input_ else of for of in written)
        provider = of.get("top_provider")
        inside = provider.get("max_completion_tokens") if isinstance(provider, dict) else None
        bounds = _whole(of.get("max_output") or inside), _whole(of.get("context_length"))
        found[name] = Price(
            input_, output, cached, source, *bounds, cache_write=write, cache_write_1h=hour
        )
    return found


def of_package(url: str) -> Callable[[str], Price | None]:
    """Prices of the package `genai-prices`, where it is installed and knows whose address this is.

    A model's name alone says nothing of what another seller takes for it. Of a model that is billed
    by the hour of the day, or by what no usage tells, it gives none.
    """
    if not url.startswith("https:"):
        return lambda _model: None  # It takes its time to import.
    try:
        import genai_prices
        from genai_prices.data_snapshot import get_snapshot
        from genai_prices.types import TimeOfDateConstraint
    except ImportError:
        return lambda _model: None
    snapshot, now = get_snapshot(), datetime.now(UTC)
    source = f"genai-prices {genai_prices.__version__}"

    def of(model: str) -> Price | None:
        try:
            _provider, known = snapshot.find_provider_model(model, None, None, url)
        except LookupError:
            return None
        variants = known.price_variants or []
        periods = known.prices if isinstance(known.prices, list) else []
        constraints = [of.constraint for of in periods] + [of.constraint for of in variants]
        if any(isinstance(constraint, TimeOfDateConstraint) for constraint in constraints):
            return None
        price = _of_model(known.get_prices(now), source)
        if price is None:
            return None
        served = {}
        for variant in variants:
            tier = tier_of(variant.when.get("service_tier"))
            begun = variant.constraint is None or variant.constraint.active(now)
            if tier is not None and len(variant.when) == 1 and begun:
                at_tier = _of_model(known.get_prices(now, variant.when), source)
                if at_tier is not None:
                    served[tier] = at_tier
        return msgspec.structs.replace(price, context=known.context_window, served=served)

    return of


def _of_model(prices: Any, source: str) -> Price | None:
    """A `ModelPrice` of genai-prices as a price; None when usage does not tell all that it bills."""
    told = {name: of for name, of in vars(prices).items() if of is not None}
    if told.keys() & _UNTOLD or not {"input_mtok", "output_mtok"} <= told.keys():
        return None

    def above(tokens: int) -> Price:
        numbers = {name: _of_tier(of, tokens) for name, of in told.items()}
        return Price(
            numbers["input_mtok"],
            numbers["output_mtok"],
            numbers.get("cache_read_mtok"),
            source,
            cache_write=numbers.get("cache_write_mtok"),
            cache_write_1h=numbers.get("cache_write_1h_mtok"),
        )

    starts = {tier.start for of in told.values() for tier in getattr(of, "tiers", ())}
    tiers = tuple((start, above(start + 1)) for start in sorted(starts))
    return msgspec.structs.replace(above(0), tiers=tiers)


_UNTOLD = frozenset({"requests_kcount", "output_reasoning_mtok", "output_citation_mtok"})


def _of_tier(price: Any, tokens: int) -> Decimal:
    """A price that may depend on the length of the prompt."""
    number: Decimal = getattr(price, "base", price)
    for tier in getattr(price, "tiers", ()):
        if tokens > tier.start:
            number = tier.price
    return number


def _whole(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number else None


def _number(value: Any) -> Decimal | None:
    """A price, however it is written; None for what is none."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = Decimal(str(value).strip())
    except InvalidOperation:
        return None
    return number if number.is_finite() and number >= 0 else None


def _shown(price: Price) -> str:
    return f"${price.input.normalize():f} + ${price.output.normalize():f} a million tokens"
