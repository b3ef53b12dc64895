"""One model in a run: its queue, its workers, its health. Touches: the clock."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

from batcher.limits.port import RateLimiter
from batcher.money.bill import Bill, is_free
from batcher.records import Outcome, Prompt, Result
from batcher.runtime.config import EngineConfig
from batcher.runtime.health import Health
from batcher.runtime.row_queue import MemoryBudget, RowQueue
from batcher.send.attempt import SendChannel
from batcher.send.dialect import ModelDialect
from batcher.send.estimate import TimeoutEstimator, TokenEstimator

__all__ = ["ChannelStatus", "ModelChannel", "ModelTraffic", "new_channel"]

_REFUSED_AT_ONCE_SECONDS = 5.0


class ChannelStatus(NamedTuple):
    """A model at one moment, for the live view.

    Attributes:
        in_flight: Requests in flight.
        waiting: Requests that wait for a limit or a backoff.
        waiting_for: What the first of them waits for.
        longest: (age in seconds, name of the row) of the oldest request in flight.
    """

    in_flight: int
    waiting: int
    waiting_for: str
    longest: tuple[float, str] | None


class ModelTraffic(NamedTuple):
    """One model's figures that no single row has; as in `Summary.add_traffic`."""

    model: str
    limit_used: float | None
    waited: Mapping[str, float]
    bill: Bill
    given_up: str


class ModelChannel:
    """One model in a run of the engine.

    Args:
        model: Model ID.
        place: Of the model among those asked.
        sending: What the sender knows of it.
        queue: Its rows; that of all models in a split.
        memory: For its large requests, also where the queue is not its own.
        health: Whether it answers.

    Attributes:
        workers: How many tasks send its rows.
        started: Whether all its workers may start: a first response came, or takes its time.
        retrying: Tasks that send failed rows again.
        keeps_rows: Whether it was closed and left rows pending.
        turn: Held by the one worker that looks for a free slot before it takes a row (split).
    """

    def __init__(
        self,
        model: str,
        place: int,
        sending: SendChannel,
        queue: RowQueue,
        memory: MemoryBudget,
        health: Health,
    ) -> None:
        self.model = model
        self.place = place
        self.sending = sending
        self.limiter = sending.limiter
        self.queue = queue
        self.memory = memory
        self.health = health
        self.workers = 0
        self.started = False
        self.keeps_rows = False
        self.retrying: set[asyncio.Task[None]] = set()
        self._doubt_settled = asyncio.Event()
        self.turn = asyncio.Lock()

    def status(self) -> ChannelStatus:
        """The model at this moment."""
        now, limiter = self.health.clock(), self.limiter
        ages = [(now - since, name) for name, since in self.sending.in_flight.values()]
        if limiter.waiting and limiter.waits_for:
            cause = limiter.waits_for
        elif self.retrying:
            cause = "retry"
        else:
            cause = "" if self.started else "first answer"
        # Some retries are in flight, some wait for a limit, some for a backoff.
        waiting = max(limiter.waiting, len(self.retrying) - limiter.in_flight)
        return ChannelStatus(limiter.in_flight, waiting, cause, max(ages, default=None))

    def traffic(self) -> ModelTraffic:
        """The figures that no single row has."""
        limiter, sending = self.limiter, self.sending
        given_up = sending.dialect.given_up
        return ModelTraffic(self.model, limiter.share(), limiter.waited, sending.bill, given_up)

    def settle_doubt(self) -> None:
        """Ends a doubt about the model, if nothing in flight can prove it wrong any more."""
        if self.health.in_doubt:
            self.health.settle_doubt(sent for _name, sent in self.sending.in_flight.values())
        if self.health.in_doubt:
            self._doubt_settled.clear()
        else:
            self._doubt_settled.set()

    async def doubt_settled(self) -> None:
        """Waits while the model is in doubt."""
        while self.health.in_doubt:
            await self._doubt_settled.wait()

    def start(self) -> bool:
        """Allows all its workers; returns whether that is new."""
        was, self.started = self.started, True
        return not was

    def keep_rows(self) -> None:
        """Notes that it was closed and left rows pending."""
        self.keeps_rows = True

    def begin_work(self) -> None:
        """Counts one more worker."""
        self.workers += 1

    def end_work(self) -> None:
        """Counts one worker less."""
        self.workers -= 1

    @property
    def wanted_workers(self) -> int:
        """How many workers it should have: one until the first response, or while that takes its time."""
        if self.queue.drained:
            return 0
        return self.limiter.max_in_flight if self.started else 1

    def lost(self, error: str) -> Result:
        """The result that closes a model from which nothing will come, with no row of its own."""
        return Result(
            row=0,
            model=self.model,
            sample=0,
            key="0" * 32,
            status=Outcome.RATE_LIMITED if self.limiter.refusing else Outcome.CONNECTION,
            custom_id="",
            error=error,
        )

    def release(self, prompt: Prompt) -> None:
        """Releases the memory of a prompt that was taken for this model."""
        if self.memory.release(prompt):
            self.queue.wake()

    @property
    def busy(self) -> bool:
        """Whether answers may still come: workers end with the rows."""
        return not self.health.closed and bool(self.workers or self.retrying)

    @property
    def may_answer(self) -> bool:
        """Whether a request is in flight that was not refused at once."""
        now = self.health.clock()
        return any(
            now - sent > _REFUSED_AT_ONCE_SECONDS
            for _name, sent in self.sending.in_flight.values()
        )


def new_channel(
    config: EngineConfig,
    model: str,
    place: int,
    limiter: RateLimiter,
    queue: RowQueue,
    memory: MemoryBudget,
) -> ModelChannel:
    """A channel that knows what earlier runs found out about its model."""
    sending = SendChannel(
        limiter,
        TokenEstimator(),
        TimeoutEstimator(config.job.fixed_timeout),
        {},
        ModelDialect(config.dialects.get(model)),
        Bill(config.prices.of(model), free=is_free(model)),
    )
    clock = asyncio.get_running_loop().time  # `time.monotonic`, but in tests.
    health = Health(clock, proven=model in config.proven)
    return ModelChannel(model, place, sending, queue, memory, health)
