"""What an engine is told before it starts. Touches: nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from batcher.job.endpoint import Endpoint
from batcher.job.job import Job
from batcher.money.prices import Prices
from batcher.records import Result
from batcher.send.dialect import RequestDialect

if TYPE_CHECKING:
    from batcher.runtime.gateway import OpenGateway

__all__ = ["EngineConfig"]


@dataclass(frozen=True)
class EngineConfig:
    """What an engine needs to know before it sends anything.

    Attributes:
        job: What was asked.
        endpoint: Where requests go.
        rows: How many rows there are at most.
        prices: Known prices, by model.
        dialects: How models took requests in earlier runs.
        proven: Models that answered in an earlier run of this output.
        earlier_result: Reads a result of an earlier run by (segment, offset, length).
        open_gateway: Makes what sends requests; None for `HttpGateway`.
    """

    job: Job
    endpoint: Endpoint
    rows: int
    prices: Prices = field(default_factory=Prices)
    dialects: Mapping[str, RequestDialect] = field(default_factory=dict)
    proven: Collection[str] = ()
    earlier_result: Callable[[int, int, int], Result | None] = lambda *_at: None
    open_gateway: OpenGateway | None = None
