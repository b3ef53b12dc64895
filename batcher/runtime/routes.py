"""How the models of a job share its rows: the whole difference between `each`, `fallback` and `split`.

Touches: the clock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Literal

from batcher.plan.requests import Requests
from batcher.records import Outcome, Prompt, Result
from batcher.runtime.channel import ModelChannel
from batcher.runtime.row_queue import MemoryBudget, RowQueue
from batcher.send.retry import FATAL
from batcher.send.sender import FailedAttempt

__all__ = ["Fallback", "Route", "Split", "route_of"]

_POLL_SECONDS = 0.02
_Sample = tuple[int, int]  # Row and sample.


class Route:
    """`each`: every model answers every row.

    Args:
        channels: The models of the run; those that come later are added to it.
        plan: Tells which slots a row is still to be sent to.
        add_workers: Starts workers of a model that may have ended before it had a row.
    """

    shares_rows = False
    """Whether all models take their rows from one queue."""

    def __init__(
        self,
        channels: Mapping[str, ModelChannel],
        plan: Requests,
        add_workers: Callable[[ModelChannel], None],
    ) -> None:
        self._channels = channels
        self._plan = plan
        self._add_workers = add_workers

    def queue(self, memory: MemoryBudget) -> RowQueue:
        """The queue of a new channel."""
        return RowQueue(memory)

    def take(self, channel: ModelChannel) -> Awaitable[Prompt | None]:
        """The channel's next row, with its memory reserved; None when it will get no more."""
        return channel.queue.take()

    def last_failure(self, _prompt: Prompt) -> FailedAttempt | None:
        """How a row failed at its last attempt, if it comes from another model; then it is forgotten."""
        return None

    def retry_elsewhere(self, _prompt: Prompt, _failed: FailedAttempt) -> bool:
        """Puts a failed row back for all models; False where its own model tries it again."""
        return False

    def next_queue(
        self, _channel: ModelChannel, _prompt: Prompt, _result: Result
    ) -> RowQueue | None:
        """The queue that a row goes to once it has this result; None when the result is its last."""
        return None

    def pass_on(self, queue: RowQueue, prompt: Prompt) -> None:
        """Puts a row into a queue that workers may have left."""
        queue.put(prompt)
        for channel in self._channels.values():
            if channel.queue is queue:
                self._add_workers(channel)

    def follower(self, _channel: ModelChannel) -> ModelChannel | None:
        """The model that gets the rows which this one does not answer."""
        return None

    def close_queues(self, queues: list[RowQueue], *, reading: bool) -> None:
        """A pass over the input has ended: no more rows come to these queues from the reader.

        Args:
            queues: Those that the pass fed.
            reading: Whether another pass goes on.
        """
        del reading
        for queue in queues:
            queue.close()

    def close_drained(self, _channel: ModelChannel) -> None:
        """A worker or a retry has ended, with no pass over the input going on."""

    def unsent(self) -> Iterator[tuple[Prompt, FailedAttempt]]:
        """Rows that failed and are not sent again, because the run stopped."""
        yield from ()


class Fallback(Route):
    """`fallback`: a model answers the rows that those before it did not."""

    async def take(self, channel: ModelChannel) -> Prompt | None:
        """As in `Route`; waits while the next model has more rows than it can take."""
        follower = self.follower(channel)
        while follower is not None and follower.queue.full:
            await follower.queue.wait_for_space()
        return await channel.queue.take()

    def next_queue(self, channel: ModelChannel, prompt: Prompt, result: Result) -> RowQueue | None:
        """The queue of the next model that is still to answer the row."""
        if result.status is Outcome.OK:
            return None
        pending = self._plan.pending(prompt.row)
        after = self.follower(channel)
        while after is not None:
            if self._plan.slots.slot(after.place, prompt.sample) in pending:
                return after.queue
            after = self.follower(after)
        return None

    def follower(self, channel: ModelChannel) -> ModelChannel | None:
        """The next model."""
        channels = list(self._channels.values())
        return channels[channel.place + 1] if channel.place + 1 < len(channels) else None

    def close_queues(self, queues: list[RowQueue], *, reading: bool) -> None:
        """Closes the first model's queue: those of the others get rows from the one before."""
        del queues
        if not reading and self._channels:
            first = next(iter(self._channels.values()))
            first.queue.close()
            self.close_drained(first)

    def close_drained(self, channel: ModelChannel) -> None:
        """Closes the next model's queue once nothing can come from this one."""
        follower = self.follower(channel)
        at_work = bool(channel.workers or channel.retrying)
        if follower is None or follower.queue.closed or at_work or not channel.queue.drained:
            return
        follower.queue.close()
        self.close_drained(follower)


class Split(Route):
    """`split`: one model answers each row, whichever can send it at once and did not just fail it.

    Rows are in one queue for all models, also between the attempts of one row: a row that waited at
    one model would be held up there while another is idle.
    """

    shares_rows = True

    def __init__(
        self,
        channels: Mapping[str, ModelChannel],
        plan: Requests,
        add_workers: Callable[[ModelChannel], None],
    ) -> None:
        super().__init__(channels, plan, add_workers)
        self._queue = RowQueue(MemoryBudget())
        self._refused: dict[_Sample, set[str]] = {}  # Models that refuse whatever they are sent.
        # The last attempt, and when the same model may try again (monotonic clock).
        self._failed: dict[_Sample, tuple[Prompt, FailedAttempt, float]] = {}

    def queue(self, memory: MemoryBudget) -> RowQueue:
        """The queue of all channels."""
        del memory
        return self._queue

    async def take(self, channel: ModelChannel) -> Prompt | None:
        """The next row that this model can send at once."""
        async with channel.turn:
            while not (channel.health.closed or self._queue.drained):
                if (prompt := self.pick(channel)) is not None:
                    return prompt
                # A rate limit frees a slot by time alone, and tells nobody. One worker of each model looks.
                await asyncio.sleep(_POLL_SECONDS)
        return None

    def pick(self, channel: ModelChannel) -> Prompt | None:
        """Takes the first row that this model can send at once, if there is one."""
        limiter, sending = channel.limiter, channel.sending

        def fits(prompt: Prompt) -> bool:
            size = len(prompt.fields) - prompt.image_bytes
            return (
                self._may_send(channel, (prompt.row, prompt.sample))
                and channel.memory.fits(prompt)
                and limiter.free(*sending.tokens.tokens(size, prompt.max_tokens))
            )

        picked = self._queue.pick(fits) if limiter.free(0.0) else None
        if picked is not None:
            channel.memory.reserve(picked)
        return picked

    def last_failure(self, prompt: Prompt) -> FailedAttempt | None:
        """How the row failed at its last attempt; then it is forgotten."""
        failed = self._failed.pop((prompt.row, prompt.sample), None)
        return None if failed is None else failed[1]

    def retry_elsewhere(self, prompt: Prompt, failed: FailedAttempt) -> bool:
        """Puts the row back: any other model may try it at once, this one after its wait."""
        until = time.monotonic() + failed.wait
        self._failed[prompt.row, prompt.sample] = prompt, failed, until
        self.pass_on(self._queue, prompt)
        return True

    def next_queue(
        self, channel: ModelChannel, _prompt: Prompt, result: Result
    ) -> RowQueue | None:
        """The common queue, if this model refuses whatever it is sent and another one works."""
        if result.status in FATAL:
            refused = self._refused.setdefault((result.row, result.sample), set())
            refused.add(channel.model)
            if self._others_work(refused):
                return self._queue
        self._refused.pop((result.row, result.sample), None)
        return None

    def unsent(self) -> Iterator[tuple[Prompt, FailedAttempt]]:
        """Rows that failed and are not sent again, because the run stopped."""
        for prompt, failed, _until in self._failed.values():
            yield prompt, failed

    def _may_send(self, channel: ModelChannel, sample: _Sample) -> bool:
        refused = self._refused.get(sample)
        if refused and channel.model in refused and self._others_work(refused):
            return False
        failed = self._failed.get(sample)
        if failed is None or failed[1].request.model != channel.model:
            return True
        return time.monotonic() >= failed[2]

    def _others_work(self, refused: set[str]) -> bool:
        """Whether a model is open that did not refuse."""
        channels = self._channels.values()
        return any(not other.health.closed and other.model not in refused for other in channels)


def route_of(
    name: Literal["each", "fallback", "split"],
) -> type[Route]:
    """The route that a job names."""
    return {"each": Route, "fallback": Fallback, "split": Split}[name]
