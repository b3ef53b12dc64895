"""The reserve rule: what one request may cost and use at most. Touches: nothing.

The sender reserves this much of the budget before a request goes, and a run that follows a kill assumes
this much for each request that the kill left in flight.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec

from batcher.errors import JobError
from batcher.money.budget import Amount
from batcher.money.prices import HOUR, MILLION, Price
from batcher.records import Request, tier_of

__all__ = ["max_amount", "max_cost", "no_price", "requested_tier"]

# A write to the cache costs at most this many times the input price, when the provider keeps it for minutes
# or for an hour: the factors of Anthropic and OpenAI, the highest that a provider documents.
_MAX_WRITE_FACTOR, _MAX_HOUR_FACTOR = Decimal("1.25"), Decimal(2)


def max_amount(
    request: Request, price: Price | None, prompt: int, answer: int | None, *, in_dollars: bool
) -> Amount:
    """What to reserve for a request.

    Args:
        request: What will be sent.
        price: Of its model.
        prompt: Upper bound of the prompt's tokens.
        answer: Upper bound of the answer's tokens; None for the longest answer of the model.
        in_dollars: Whether the budget bounds dollars; else an unknown price does not matter.

    Raises:
        JobError: The price or the length of the answer is not known, so no budget can be kept.
    """
    if price is None and in_dollars:
        raise JobError(no_price(request.model, None))
    if answer is None and price is not None:
        answer = price.max_output
    if answer is None:
        raise JobError(
            f"How long the answer to {request.custom_id} by {request.model} may be is not known, so "
            "no budget can be kept; set --param max_tokens=N."
        )
    dollars = None if price is None else max_cost(price, prompt, answer, request.body)
    if dollars is None and in_dollars:
        raise JobError(no_price(request.model, requested_tier(request.body)))
    return Amount(dollars or Decimal(0), prompt + answer)


def max_cost(price: Price, prompt: int, answer: int, body: bytes) -> Decimal | None:
    """Dollars that a request costs at most; None when the price of its service tier is not known.

    The whole prompt may be written to the cache, and a request for another tier may be served by the
    default one.

    >>> price = Price(Decimal(2), Decimal(8), Decimal("0.5"))
    >>> max_cost(price, 1000, 100, b""), max_cost(price, 1000, 100, b'{"service_tier":"flex"}')
    (Decimal('0.0033'), None)
    """
    default = _max_cost(price, prompt, answer, body)
    if (tier := requested_tier(body)) is None:
        return default
    at_tier = price.at(tier)
    return None if at_tier is None else max(default, _max_cost(at_tier, prompt, answer, body))


def _max_cost(price: Price, prompt: int, answer: int, body: bytes) -> Decimal:
    price = price.for_prompt(prompt)
    write, factor = price.cache_write, _MAX_WRITE_FACTOR
    if HOUR in body:
        write, factor = price.cache_write_1h, _MAX_HOUR_FACTOR
    dearest = max(price.input, price.input * factor if write is None else write)
    return (prompt * dearest + answer * price.output) / MILLION


class _Tier(msgspec.Struct):
    service_tier: Any = None


_decode_tier = msgspec.json.Decoder(_Tier).decode


def requested_tier(body: bytes) -> str | None:
    """The service tier that a request asks for; None for the default one.

    >>> requested_tier(b'{"model":"m","service_tier":"flex"}')
    'flex'
    >>> requested_tier(b'{"service_tier":"auto"}')
    """
    return tier_of(_decode_tier(body).service_tier) if b'"service_tier"' in body else None


def no_price(model: str, tier: str | None) -> str:
    """Why `--max-cost` cannot be kept: the price of a model, or of its service tier, is not known."""
    if tier is None:
        return f"--max-cost: the price of {model} is not known; add {model} to --prices."
    return (
        f"--max-cost: the price of {model} at the service tier {tier} is not known; add "
        f"{model}@{tier} to --prices."
    )
