"""What the simulated gateway offers and how it behaves. Touches: nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

from batcher.simulate.faults import check_shares

__all__ = ["MODELS", "SimulatedModel", "Simulation"]


@dataclass(frozen=True)
class SimulatedModel:
    """One model: how good, how fast, how dear.

    Attributes:
        quality: Share of questions that it answers right.
        median_s: Median time of an answer, in seconds.
        sigma: Spread of the logarithm of that time.
        input_price: Dollars per million prompt tokens; `cached_price` for those read from cache.
    """

    id: str
    quality: float
    median_s: float
    sigma: float
    input_price: Decimal
    cached_price: Decimal
    output_price: Decimal
    context_length: int = 128_000
    max_output: int = 16_384


MODELS = (
    SimulatedModel(
        "sim-small", 0.80, 0.15, 0.4, Decimal("0.10"), Decimal("0.025"), Decimal("0.40")
    ),
    SimulatedModel(
        "sim-medium", 0.90, 0.40, 0.4, Decimal("0.50"), Decimal("0.125"), Decimal("2.00")
    ),
    SimulatedModel(
        "sim-large", 0.97, 1.00, 0.5, Decimal("3.00"), Decimal("0.75"), Decimal("12.00")
    ),
)


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """How the gateway behaves.

    Attributes:
        port: 0 takes a free one.
        speed: How many times faster than real it answers; 0 is at once.
        rpm: Requests a minute per model; None is no limit. `tpm` the same for tokens.
        meter: How it meters (see `meters`).
        charge: Whether tokens are charged as they came out, or as prompt + max_tokens up front.
        headers: Whether it tells of its limits in `x-ratelimit-*` and `retry-after`.
        max_in_flight: Above it requests are answered 503; None is no bound.
        faults: Name of a fault to its share of requests (see `faults`).
        api_key: The key it wants; None takes any or none.
    """

    host: str = "127.0.0.1"
    port: int = 0
    seed: int = 0
    speed: float = 1.0
    rpm: float | None = None
    tpm: float | None = None
    meter: Literal["bucket-60s", "bucket-1s", "window-60s", "window-1s"] = "bucket-60s"
    charge: Literal["output", "max-tokens"] = "output"
    headers: bool = True
    max_in_flight: int | None = None
    faults: Mapping[str, float] = field(default_factory=dict)
    api_key: str | None = None
    models: tuple[SimulatedModel, ...] = MODELS

    def __post_init__(self) -> None:
        check_shares(self.faults)
        if self.speed < 0:
            raise ValueError(f"speed {self.speed}: it must be 0 or more")
