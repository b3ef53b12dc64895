"""Prices from `--prices FILE`, a gateway's list and the package genai-prices. Touches: files (reads)."""

from __future__ import annotations

import csv
import io
import json
import time
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import msgspec

from batcher.errors import JobError
from batcher.money.prices import MILLION, Price
from batcher.records import tier_of

__all__ = ["catalogue_prices", "file_prices", "package_prices"]

# Dollars per million tokens; the cheapest models cost ten times as much.
_TOO_CHEAP = Decimal("0.001")


def file_prices(path: str) -> dict[str, Price]:
    """Prices from a TOML, JSON or CSV file: for each model `input`, `output` and perhaps other fields.

    A name such as `gpt-5@flex` is a model at a service tier.

    Raises:
        JobError: It cannot be read, or does not hold prices.
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
    return {model: _file_price(path, model, fields, source) for model, fields in data.items()}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Names to values, no name twice."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name} is set twice")
        found[name] = value
    return found


def _file_price(path: str, model: str, fields: Any, source: str) -> Price:
    needed = ("input", "output")
    known = (*needed, "cached", "cache_write", "cache_write_1h")
    if not isinstance(fields, dict):
        raise JobError(f"--prices {path}: {model}: it must have input and output.")
    if unknown := [name for name in fields if name not in known]:
        raise JobError(
            f"--prices {path}: {model}: {unknown[0]!r} is none of {', '.join(known)} (dollars per "
            "million tokens)."
        )
    numbers = {name: _number(fields.get(name)) for name in known}
    if any(0 < (numbers[name] or 0) < _TOO_CHEAP for name in needed):
        raise JobError(
            f"--prices {path}: {model}: these look like dollars per token. Write dollars per million "
            "tokens."
        )
    for name in known:
        if numbers[name] is None and (name in needed or fields.get(name) not in (None, "")):
            raise JobError(
                f"--prices {path}: {model}: {name} is {fields.get(name)!r}, and must be dollars per "
                "million tokens."
            )
    return Price(**numbers, source=source)  # type: ignore[arg-type]


def catalogue_prices(data: Any, date: str) -> dict[str, Price]:
    """Prices from a gateway's list of models; models without a price are left out.

    Two dialects: AiHubMix's `pricing.input`, dollars per million tokens, with `max_output`; and
    OpenRouter's `pricing.prompt`, dollars per token, with `top_provider.max_completion_tokens`.
    A write to the cache that is cheaper than other input (Gemini's at OpenRouter) is a surcharge, or
    was not filled in: then the price of writes is not known.
    """
    listed = data.get("data") if isinstance(data, dict) else None
    source = f"the gateway's catalogue of {date}"
    found = {}
    for model in listed if isinstance(listed, list) else ():
        pricing = model.get("pricing") if isinstance(model, dict) else None
        if not isinstance(pricing, dict):
            continue
        name = model.get("model_id") or model.get("id")
        if "prompt" in pricing:
            factor, names = MILLION, ("prompt", "completion", "input_cache_read")
            writes = "input_cache_write"
        else:
            factor, names, writes = 1, ("input", "output", "cache_read"), "cache_write"
        numbers = (_number(pricing.get(field)) for field in (*names, writes, f"{writes}_1h"))
        input_, output, cached, *written = (n if n is None else n * factor for n in numbers)
        if not isinstance(name, str) or input_ is None or output is None:
            continue
        if not input_ and not output and "free" not in name:
            continue  # Not filled in, rather than given away.
        write, hour = (None if n is None or n < input_ else n for n in written)
        provider = model.get("top_provider")
        inside = provider.get("max_completion_tokens") if isinstance(provider, dict) else None
        bounds = _count(model.get("max_output") or inside), _count(model.get("context_length"))
        found[name] = Price(
            input_, output, cached, source, *bounds, cache_write=write, cache_write_1h=hour
        )
    return found


def package_prices(url: str) -> Callable[[str], Price | None]:
    """Prices of the package `genai-prices`, where it is installed and knows whose address this is.

    Another seller may take another price for the same model, so the address decides, too. A model that
    is billed by the hour of the day, or by something that no usage reports, has no price.
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

    def price_of(model: str) -> Price | None:
        try:
            _provider, known = snapshot.find_provider_model(model, None, None, url)
        except LookupError:
            return None
        variants = known.price_variants or []
        periods = known.prices if isinstance(known.prices, list) else []
        constraints = [p.constraint for p in periods] + [v.constraint for v in variants]
        if any(isinstance(constraint, TimeOfDateConstraint) for constraint in constraints):
            return None
        price = _package_price(known.get_prices(now), source)
        if price is None:
            return None
        served = {}
        for variant in variants:
            tier = tier_of(variant.when.get("service_tier"))
            begun = variant.constraint is None or variant.constraint.active(now)
            if tier is not None and len(variant.when) == 1 and begun:
                at_tier = _package_price(known.get_prices(now, variant.when), source)
                if at_tier is not None:
                    served[tier] = at_tier
        return msgspec.structs.replace(price, context=known.context_window, served=served)

    return price_of


def _package_price(prices: Any, source: str) -> Price | None:
    """The price in a `ModelPrice` of genai-prices; None when it bills more than usage reports."""
    fields = {name: value for name, value in vars(prices).items() if value is not None}
    if fields.keys() & _NOT_IN_USAGE or not {"input_mtok", "output_mtok"} <= fields.keys():
        return None

    def above(tokens: int) -> Price:
        numbers = {name: _price_above(value, tokens) for name, value in fields.items()}
        return Price(
            numbers["input_mtok"],
            numbers["output_mtok"],
            numbers.get("cache_read_mtok"),
            source,
            cache_write=numbers.get("cache_write_mtok"),
            cache_write_1h=numbers.get("cache_write_1h_mtok"),
        )

    starts = {tier.start for value in fields.values() for tier in getattr(value, "tiers", ())}
    tiers = tuple((start, above(start + 1)) for start in sorted(starts))
    return msgspec.structs.replace(above(0), tiers=tiers)


_NOT_IN_USAGE = frozenset({"requests_kcount", "output_reasoning_mtok", "output_citation_mtok"})


def _price_above(price: Any, tokens: int) -> Decimal:
    """A price that may depend on the length of the prompt."""
    number: Decimal = getattr(price, "base", price)
    for tier in getattr(price, "tiers", ()):
        if tokens > tier.start:
            number = tier.price
    return number


def _count(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number else None


def _number(value: Any) -> Decimal | None:
    """A price in any notation; None for anything else."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = Decimal(str(value).strip())
    except InvalidOperation:
        return None
    return number if number.is_finite() and number >= 0 else None
