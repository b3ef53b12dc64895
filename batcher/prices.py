"""Dollars per million tokens; the cost of a Usage. Touches: files (reads `--prices`).

Where a price comes from, the first that knows the model: `--prices FILE`, the gateway's own
catalogue, the package `genai-prices` for the providers whose addresses it knows. What the gateway
says a request did cost goes before all. A model without a price has no cost, not a cost of 0.
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
from batcher.records import Usage

__all__ = ["Bill", "Price", "Prices", "cost_of", "of_catalogue", "of_file"]

_MILLION = 1_000_000
_TOO_CHEAP = Decimal(
    "0.001"
)  # Dollars for a million tokens, that is; the cheapest cost ten times as much.


class Price(msgspec.Struct, frozen=True):
    """What a model costs, in dollars per million tokens.

    Attributes:
        cached: Of prompt tokens read from the provider's cache; None when that is not told: then
            they cost what others do.
        source: Where it comes from and of when, for people.
        max_output: Tokens of its longest answer; None when that is not told.
        context: Tokens that prompt and answer may have together; likewise.
        tiers: Prices of requests whose prompts have more than so many tokens, the longest last.
    """

    input: Decimal
    output: Decimal
    cached: Decimal | None = None
    source: str = ""
    max_output: int | None = None
    context: int | None = None
    tiers: tuple[tuple[int, Price], ...] = ()

    def of(self, prompt_tokens: int) -> Price:
        """The price of a request with a prompt of so many tokens."""
        held = self
        for over, price in self.tiers:
            if prompt_tokens > over:
                held = price
        return held

    @property
    def saved(self) -> Decimal:
        """Dollars that a token read from the cache is cheaper."""
        return Decimal(0) if self.cached is None else (self.input - self.cached) / _MILLION


def cost_of(usage: Usage, price: Price) -> Decimal | None:
    """Dollars, exact; None when the tokens were not told.

    Reasoning tokens are a part of the completion's, cached ones of the prompt's: neither counts twice.

    >>> price = Price(Decimal(2), Decimal(8), Decimal("0.5"))
    >>> cost_of(Usage(1000, 100, 1100, cached_tokens=400, reasoning_tokens=90), price)
    Decimal('0.0022')
    """
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    if prompt is None or completion is None:
        return None
    price = price.of(prompt)
    cached = min(usage.cached_tokens or 0, prompt)
    cheap = price.input if price.cached is None else price.cached
    fresh = (prompt - cached) * price.input
    return (fresh + cached * cheap + completion * price.output) / _MILLION


class Bill:
    """What the answers of one model cost: by the gateway's own word where it gives it, else by a price.

    Args:
        price: Of its tokens; None when it is not known.

    Attributes:
        told: Dollars that the gateway said answers cost.
        priced: What the price would have made of these; None when there is none, or not all told
            their tokens.
    """

    def __init__(self, price: Price | None) -> None:
        self.price = price
        self.told: Decimal | None = None
        self.priced: Decimal | None = None if price is None else Decimal(0)

    def of(self, usage: Usage) -> Usage:
        """The usage with its cost."""
        by_price = None if self.price is None else cost_of(usage, self.price)
        if usage.cost_usd is None:
            if by_price is None:
                return usage
            return msgspec.structs.replace(usage, cost_usd=float(by_price))
        self.told = (self.told or 0) + Decimal(str(usage.cost_usd))
        if self.priced is not None:
            self.priced = None if by_price is None else self.priced + by_price
        return usage

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
        self._sources = [(told or {}).get, (catalogue or {}).get, package]

    def of(self, model: str) -> Price | None:
        """The price of a model; None when nothing tells it."""
        known = self._known(model)
        if not known:
            return None
        longest = next((price.max_output for price in known if price.max_output), None)
        context = next((price.context for price in known if price.context), None)
        return msgspec.structs.replace(known[0], max_output=longest, context=context)

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
    """Prices from a TOML, JSON or CSV file: for each model `input`, `output`, perhaps `cached`.

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
    known = ("input", "output", "cached")
    if not isinstance(of, dict):
        raise JobError(f"--prices {path}: {model}: it must have input and output.")
    if unknown := [name for name in of if name not in known]:
        raise JobError(
            f"--prices {path}: {model}: {unknown[0]!r} is none of {', '.join(known)} (dollars per "
            "million tokens)."
        )
    numbers = {name: _number(of.get(name)) for name in known}
    if any(0 < (numbers[name] or 0) < _TOO_CHEAP for name in ("input", "output")):
        raise JobError(
            f"--prices {path}: {model}: these are dollars a token, as it seems; write dollars per million "
            "tokens."
        )
    for name in known:
        if numbers[name] is None and (name != "cached" or of.get(name) not in (None, "")):
            raise JobError(
                f"--prices {path}: {model}: {name} is {of.get(name)!r}, and must be dollars per "
                "million tokens."
            )
    return Price(numbers["input"], numbers["output"], numbers["cached"], source)  # type: ignore[arg-type]


def of_catalogue(data: Any, date: str) -> dict[str, Price]:
    """Prices from what a gateway lists; models of which it tells none are left out.

    Two dialects: AiHubMix's `pricing.input`, dollars per million tokens, with `max_output`; and
    OpenRouter's `pricing.prompt`, dollars per token, with `top_provider.max_completion_tokens`.
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
            factor, names = _MILLION, ("prompt", "completion", "input_cache_read")
        else:
            factor, names = 1, ("input", "output", "cache_read")
        input_, output, cached = (_number(pricing.get(name)) for name in names)
        if not isinstance(name, str) or input_ is None or output is None:
            continue
        if not input_ and not output and "free" not in name:
            continue  # Not filled in, rather than given away.
        cached = None if cached is None else cached * factor
        provider = of.get("top_provider")
        inside = provider.get("max_completion_tokens") if isinstance(provider, dict) else None
        bounds = _whole(of.get("max_output") or inside), _whole(of.get("context_length"))
        found[name] = Price(input_ * factor, output * factor, cached, source, *bounds)
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
        periods = known.prices if isinstance(known.prices, list) else []
        if any(isinstance(period.constraint, TimeOfDateConstraint) for period in periods):
            return None
        told = {name: of for name, of in vars(known.get_prices(now)).items() if of is not None}
        if told.keys() & _UNTOLD or not {"input_mtok", "output_mtok"} <= told.keys():
            return None

        def above(tokens: int) -> Price:
            numbers = {name: _of_tier(of, tokens) for name, of in told.items()}
            cached = numbers.get("cache_read_mtok")
            return Price(numbers["input_mtok"], numbers["output_mtok"], cached, source)

        starts = {tier.start for of in told.values() for tier in getattr(of, "tiers", ())}
        tiers = tuple((start, above(start + 1)) for start in sorted(starts))
        return msgspec.structs.replace(above(0), context=known.context_window, tiers=tiers)

    return of


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
