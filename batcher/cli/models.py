"""`batcher models`: what a gateway offers, with prices where it tells. Touches: the network, the terminal."""

from __future__ import annotations

import asyncio
import json as json_
from typing import Annotated

from cyclopts import Parameter

from batcher.job.endpoint import Endpoint
from batcher.job.job import Job
from batcher.live.format import UNKNOWN, counted, whole
from batcher.live.terminal import in_line, say
from batcher.money.price_sources import catalogue_prices, file_prices, package_prices
from batcher.money.prices import Price, Prices

__all__ = ["models"]

_HEADS = ("model", "context", "longest answer", "input", "cached", "cache write", "output")


def models(
    match: str = "",
    /,
    *,
    base_url: str | None = None,
    api_key_env: str | None = None,
    header: Annotated[
        tuple[str, ...], Parameter(negative_iterable="", consume_multiple=False)
    ] = (),
    prices: str | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """List the models that a gateway offers; prices in dollars per million tokens, where they are known.

    Args:
        match: Only those with this text in their ID.
        base_url: Address of the gateway, as for run.
        api_key_env: Name of the environment variable that holds the key, as for run.
        header: NAME=VALUE or 'NAME=$VARIABLE', as for run; repeatable.
        prices: File of prices, as for run.
        json: Print JSON, one object a model.
    """
    told = {} if prices is None else file_prices(prices)
    endpoint = Job(
        output="-", base_url=base_url, api_key_env=api_key_env, headers=header
    ).endpoint()
    names, known = asyncio.run(_asked(endpoint, told))
    if not names:
        those = "; these are those of --prices" if told else ""
        say(f"batcher: the gateway lists no models{those}.", error=True)
        names = sorted(told)
    rows = [(name, known.of(name)) for name in names if match.lower() in name.lower()]
    if json:
        for name, price in rows:
            say(json_.dumps(_object(name, price)))
        return 0
    lines = [_HEADS, *(_cells(name, price) for name, price in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *others in lines:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        say("  ".join((first.ljust(widths[0]), *cells)))
    unpriced = sum(price is None for _name, price in rows)
    sources = {price.source for _name, price in rows if price is not None}
    tail = f"{counted(len(rows), 'model')}, {unpriced:,} without a known price"
    say("; ".join((tail, *sorted(sources))) + ".", error=True)
    return 0


async def _asked(endpoint: Endpoint, told: dict[str, Price]) -> tuple[list[str], Prices]:
    from batcher.money import catalogue  # Brings aiohttp.

    def warn(text: str) -> None:
        say(f"batcher: {text}", error=True)

    names, listed = await asyncio.gather(
        catalogue.names(endpoint), catalogue.fetch(endpoint, warn)
    )
    package = package_prices(endpoint.url)
    return names, Prices(told, catalogue_prices(*listed) if listed else None, package)


def _cells(name: str, price: Price | None) -> tuple[str, ...]:
    clean = in_line(name)
    if price is None:
        return (clean, *[UNKNOWN] * (len(_HEADS) - 1))
    counts = (price.context, price.max_output)
    dollars = (price.input, price.cached, price.cache_write, price.output)
    return (
        clean,
        *map(whole, counts),
        *(UNKNOWN if of is None else f"{of.normalize():f}" for of in dollars),
    )


def _object(name: str, price: Price | None) -> dict[str, object]:
    if price is None:
        return {"model": name}
    return {
        "model": name,
        "context": price.context,
        "max_output": price.max_output,
        "input": float(price.input),
        "cached": None if price.cached is None else float(price.cached),
        "cache_write": None if price.cache_write is None else float(price.cache_write),
        "output": float(price.output),
        "source": price.source,
    }
