"""What the simulated gateway offers and how it behaves. Touches: nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from math import exp, inf
from statistics import NormalDist
from typing import get_args

from batcher.simulate.faults import check_shares
from batcher.simulate.meters import Charge, MeterKind

__all__ = ["MODELS", "SimulatedModel", "Simulation"]

_NORMAL = NormalDist()


@dataclass(frozen=True)
class SimulatedModel:
    """One model: how good, how fast, how dear; prices are dollars per million tokens.

    Attributes:
        quality: Share of questions that it answers right.
        median_s: Median time until it begins to write, in seconds; lognormal.
        sigma: Spread of the logarithm of that time.
        cached_price: Price of prompt tokens that are read from cache.
        tokens_per_s: Tokens that it writes in a second; infinite is no time for writing.
        schemas: Whether it takes a `response_format` with a JSON Schema; else only "json_object".
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
    tokens_per_s: float = inf
    schemas: bool = True

    @property
    def write_price(self) -> Decimal:
        """Price of prompt tokens that are written to the cache, where these are billed: OpenAI's factor."""
        return self.input_price * Decimal("1.25")

    def latency_s(self, point: float, completion: int) -> float:
        """Seconds that an answer of `completion` tokens takes.

        Args:
            point: Where in the distribution, above 0 and below 1; 0.5 is the median.
            completion: Tokens of the answer.
        """
        begin = self.median_s * exp(self.sigma * _NORMAL.inv_cdf(point))
        return begin + completion / self.tokens_per_s


def _model(
    name: str,
    quality: float,
    median_s: float,
    sigma: float,
    speed: float,
    *prices: str,
    schemas: bool = True,
) -> SimulatedModel:
    price, cached, output = map(Decimal, prices)
    return SimulatedModel(
        name, quality, median_s, sigma, price, cached, output, tokens_per_s=speed, schemas=schemas
    )


MODELS = (
    _model("sim-small", 0.80, 0.15, 0.4, 250, "0.10", "0.025", "0.40", schemas=False),
    _model("sim-medium", 0.90, 0.45, 0.4, 120, "0.50", "0.125", "2.00"),
    _model("sim-large", 0.97, 1.20, 0.5, 60, "3.00", "0.75", "12.00"),
)


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """How the gateway behaves. Raises ValueError for settings that make no sense."""

    host: str = "127.0.0.1"
    """Address that it listens on. Default: 127.0.0.1."""

    port: int = 0
    """Port that it listens on; 0, the default, takes a free one."""

    seed: int = 0
    """Answers, latencies and faults follow from it. Default: 0."""

    speed: float = 1.0
    """How many times faster than real it answers; 0 is at once. Default: 1."""

    rpm: float | None = None
    """Requests a minute that each model takes; more are answered 429. Default: no limit."""

    tpm: float | None = None
    """Tokens a minute that each model takes; more are answered 429. Default: no limit."""

    rpm_by_model: Mapping[str, float | None] = field(default_factory=dict)
    """Requests a minute for single models, over `rpm`."""

    tpm_by_model: Mapping[str, float | None] = field(default_factory=dict)
    """Tokens a minute for single models, over `tpm`."""

    meter: MeterKind = "bucket-60s"
    """How limits are metered: a bucket or a fixed window, of 60 s or 1 s. Default: bucket-60s."""

    charge: Charge = "output"
    """Tokens charged: as they came out, or prompt + max_tokens up front. Default: output."""

    headers: bool = True
    """Tell of the limits in x-ratelimit-* and retry-after. Default: yes."""

    max_in_flight: int | None = None
    """Requests at once that are taken; more are answered 503. Default: no bound."""

    faults: Mapping[str, float] = field(default_factory=dict)
    """Share of requests, 0 to 1, that suffer a fault, by its name. Default: none."""

    cache_writes: bool = False
    """Bill prompt tokens that are written to the cache at 1.25 times the price. Default: no."""

    api_key: str | None = None
    """The key that is wanted, else 401. Default: any, or none."""

    models: tuple[SimulatedModel, ...] = MODELS
    """The models on offer. Default: sim-small, sim-medium, sim-large."""

    def __post_init__(self) -> None:
        check_shares(self.faults)
        if not 0 <= self.port < 1 << 16:  # Past that, uvloop takes the rest of a division.
            raise ValueError(f"port {self.port}: it must be from 0 to 65535")
        if not 0 <= self.speed < inf:
            raise ValueError(f"speed {self.speed}: it must be 0 or more")
        if self.max_in_flight is not None and self.max_in_flight < 1:
            raise ValueError(f"max_in_flight {self.max_in_flight}: it must be 1 or more")
        for name, value, kinds in (
            ("meter", self.meter, get_args(MeterKind)),
            ("charge", self.charge, get_args(Charge)),
        ):
            if value not in kinds:
                raise ValueError(f"{name} {value!r}: it must be one of {', '.join(kinds)}")
        known = {model.id for model in self.models}
        for name in {*self.rpm_by_model, *self.tpm_by_model} - known:
            raise ValueError(f"a limit for {name!r}; the models are {', '.join(sorted(known))}")
        for limit in (
            self.rpm, self.tpm, *self.rpm_by_model.values(), *self.tpm_by_model.values()
        ):  # fmt: skip
            if limit is not None and not 0 < limit < inf:
                raise ValueError(f"a limit of {limit} a minute: it must be above 0")

    def limits(self, model: str) -> tuple[float | None, float | None]:
        """Requests and tokens a minute of one model."""
        return self.rpm_by_model.get(model, self.rpm), self.tpm_by_model.get(model, self.tpm)
