"""Reads rows ahead of the workers, and hands them to the queues of their models. Touches: files (reads).

One pass over the input feeds all queues. A queue that is full while another is empty gets a pass of its
own, so that a slow model never holds up the others and nothing piles up in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from typing import TypeVar

from batcher.plan.dedupe import Deduplicator
from batcher.plan.requests import PendingRow, Requests
from batcher.records import Outcome, Prompt, Result
from batcher.runtime.channel import ModelChannel
from batcher.runtime.routes import Route
from batcher.runtime.row_queue import RowQueue
from batcher.runtime.sink import Sink

__all__ = ["Prefetcher", "in_thread"]

_T = TypeVar("_T")


class _Pass:
    """One pass over the input.

    Attributes:
        queues: Those that it feeds.
        main: Whether it is the first, which feeds the queues of models that come later, too.
        space: Set when a row leaves one of its queues.
    """

    def __init__(self, queues: list[RowQueue], *, main: bool) -> None:
        self.queues = queues
        self.main = main
        self.space = asyncio.Event()


class Prefetcher:
    """The reading side of an engine.

    Args:
        plan: Which requests are to be sent.
        route: Tells where a row goes first.
        sink: Takes the results of rows that cannot be read.
        open_channel: The channel of a model, by its ID and place.
        stop: Ends all passes.
        dedupe: Which requests wait for the answer of an equal one; None for none.

    Attributes:
        read_all: Whether the main pass has ended.
    """

    def __init__(
        self,
        plan: Requests,
        route: Route,
        sink: Sink,
        open_channel: Callable[[str, int], ModelChannel],
        stop: asyncio.Event,
        dedupe: Deduplicator | None = None,
    ) -> None:
        self._plan = plan
        self._route = route
        self._sink = sink
        self._open_channel = open_channel
        self._stop = stop
        self._dedupe = dedupe
        self._passes = 0
        self._pass_of: dict[RowQueue, _Pass] = {}
        self._queue_of: dict[str, RowQueue] = {}
        self.read_all = False

    @property
    def reading(self) -> bool:
        """Whether a pass goes on."""
        return self._passes > 0

    async def run(self, queues: list[RowQueue], on_end: Callable[[], None]) -> None:
        """Makes the main pass, and those that part from it.

        Args:
            queues: Those of the models that are known.
            on_end: Called at the end of each pass, once its queues are closed.
        """
        self._on_end = on_end
        async with asyncio.TaskGroup() as self._group:
            self._start(queues, 0, None)

    def _start(self, queues: list[RowQueue], row: int, place: int | None) -> None:
        """Starts a pass from a row on, for all models or the one at a place."""
        started = _Pass(queues, main=not self._pass_of)
        for queue in queues:
            self._attach(queue, started)
        self._passes += 1
        self._group.create_task(self._read(started, row, place))

    def _attach(self, queue: RowQueue, to: _Pass) -> None:
        self._pass_of[queue] = to
        queue.share_space(to.space)

    async def _read(self, this: _Pass, row: int, place: int | None) -> None:
        try:
            async with aclosing(in_thread(self._batches(row, place), self._stop)) as batches:
                async for batch in batches:
                    for pending in batch:
                        if self._stop.is_set():
                            return
                        if not self._put_single(this, pending):
                            await self._hand_out(this, pending)
        finally:
            self._passes -= 1
            self.read_all |= this.main
            own = [queue for queue in this.queues if self._pass_of[queue] is this]
            self._route.close_queues(own, reading=self.reading)
            self._on_end()

    def _batches(self, row: int, place: int | None) -> Iterator[list[PendingRow]]:
        for batch in self._plan.batches(row, place):
            if self._dedupe is not None:
                for pending in batch:
                    self._dedupe.look(pending.prompt)
            yield batch

    def _put_single(self, this: _Pass, pending: PendingRow) -> bool:
        """Puts a row that has one slot, without a wait; returns whether it could. Most rows are like that."""
        prompt, slots = pending
        if len(slots) > 1 or prompt.error is not None:
            return False
        plan, [slot] = self._plan, slots
        queue = self._queue_of.get(plan.slots.model(slot, prompt.model))
        if queue is None or queue.full or self._pass_of[queue] is not this:
            return False
        if plan.slots.samples > 1:
            prompt = plan.sampled(prompt, slot)
        if self._dedupe is None or self._dedupe.fresh(prompt, slot):
            queue.put(prompt)
        return True

    async def _hand_out(self, this: _Pass, pending: PendingRow) -> None:
        """Puts one row into the queues of its models, and waits where they are full."""
        prompt, plan = pending.prompt, self._plan
        slots = plan.slots.sent_first(pending.slots)
        if prompt.error is not None:
            for slot in slots:
                model = plan.slots.model(slot)
                if self._feeds(this, model):
                    sampled = plan.sampled(prompt, slot)
                    await self._sink.put(_unreadable(sampled, model), sampled)
            return
        for place, of_model in plan.slots.by_place(slots):
            await self._put(this, prompt, place, tuple(of_model))

    async def _put(self, this: _Pass, prompt: Prompt, place: int, slots: tuple[int, ...]) -> None:
        """Puts all samples of a row for one model at once: a new pass would read them all again."""
        plan = self._plan
        model = plan.slots.model(slots[0], prompt.model)
        queue = self._queue_of.get(model)
        if queue is None:
            queue = self._queue_of[model] = self._open_channel(model, place).queue
            if queue not in self._pass_of:
                self._attach(queue, this)
                this.queues.append(queue)
        while queue.full and self._pass_of[queue] is this and not self._stop.is_set():
            if any(not other for other in this.queues if other is not queue):
                this.queues.remove(queue)
                self._start([queue], prompt.row, place if plan.slots.models[0] else None)
                return
            await queue.wait_for_space()
        if self._pass_of[queue] is not this:
            return
        for slot in slots:
            sampled = plan.sampled(prompt, slot)
            if self._dedupe is None or self._dedupe.fresh(sampled, slot):
                queue.put(sampled)

    def _feeds(self, this: _Pass, model: str) -> bool:
        """Whether this pass speaks for the model, and not one that the model's queue left it for."""
        queue = self._queue_of.get(model)
        return this.main if queue is None else self._pass_of.get(queue, this) is this


def _unreadable(prompt: Prompt, model: str) -> Result:
    return Result(
        row=prompt.row,
        model=model,
        sample=prompt.sample,
        key="0" * 32,
        status=Outcome.UNREADABLE,
        custom_id=prompt.custom_id,
        error=prompt.error,
    )


async def in_thread(batches: Iterator[_T], stop: asyncio.Event) -> AsyncGenerator[_T, None]:
    """Yields what an iterator yields, one item ahead: a thread of its own runs the iterator."""
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1, thread_name_prefix="reader") as thread:
        ahead = loop.run_in_executor(thread, partial(next, batches, None))
        try:
            while not stop.is_set() and (batch := await ahead) is not None:
                ahead = loop.run_in_executor(thread, partial(next, batches, None))
                yield batch
        finally:
            await asyncio.wait([ahead])
            ahead.exception()
