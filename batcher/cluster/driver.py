"""A run on a cluster, from the driver: shards out, results in; stands where an engine would. Touches: files, the clock.

The driver reads, renders and plans as ever, so that every row is known by what it was known by before;
what it hands out is requests. It is told of every row that ended, without what was answered: that stands
in the journal, which all machines share.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Protocol

from batcher.cluster.hub import Told
from batcher.cluster.worker import BLOCK, Done, Shard, ShardJob
from batcher.errors import JobError, RunStopped
from batcher.job.endpoint import Endpoint
from batcher.job.job import Job
from batcher.live.summary import Summary
from batcher.money.account import Account
from batcher.money.prices import Price, Prices
from batcher.money.spending import Spent
from batcher.plan.dedupe import Deduplicator
from batcher.plan.requests import PendingRow, Plan, Settings
from batcher.records import Outcome, Prompt, Result
from batcher.runtime.channel import ChannelStatus
from batcher.runtime.engine import in_thread
from batcher.runtime.sink import Emit
from batcher.write.lines import segments

__all__ = ["Cluster", "Driver"]

_LOOK_SECONDS = 0.5
_FIRST_SECONDS = 10.0
_SHARD_ROWS, _LEAST_ROWS = 5000, 50
_SHARD_BYTES = 32 << 20
_EACH = 4  # Shards for each worker, so that none waits long for the last.


class Cluster(Protocol):
    """What runs shards elsewhere.

    Attributes:
        workers: How many at once.
        token: Names the run.
    """

    workers: int
    token: str

    async def run(self, errand: ShardJob, shard: Shard) -> Done:
        """Runs a shard to its end, through as many deaths as it takes."""

    def begin(self, folder: Path, spent: Spent | None) -> None:
        """Starts the hub.

        Args:
            folder: The run folder.
            spent: What earlier runs of it spent; None without a budget.
        """

    async def told(self) -> Told | None:
        """As `Hub.told`; None while it does not answer."""

    async def end(self) -> Told | None:
        """The same, when all workers are done; records what was spent."""

    async def stop(self) -> None:
        """Nothing new is to be sent by any worker."""


class _Lane:
    """One model's way, for whoever watches."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.stands = ChannelStatus(0, 0, "", None)


class Driver:
    """Sends what a plan says is still to send, by a cluster.

    Args:
        cluster: Who works.
        job: What was asked.
        settings: Of the plan.
        endpoint: Where requests go.
        plan: What is to be sent.
        folder: The run folder, which all workers share.
        summary: Adds up results.
        rows: How many rows there are at most.
        emit: Awaited with each result and its prompt as it comes.
        prices: What is known of them.
        twins: As for an engine.
        account: What may be spent; None for no bound.
        run: ID that each line of the journal names.

    Attributes:
        stopped: Why the run ends early, once it does.
        all_ok: Whether every row that ended so far was answered `ok`.
    """

    def __init__(
        self,
        cluster: Cluster,
        job: Job,
        settings: Settings,
        endpoint: Endpoint,
        plan: Plan,
        folder: Path,
        summary: Summary,
        rows: int,
        emit: Emit | None,
        prices: Prices,
        twins: Deduplicator | None,
        account: Account | None,
        run: str,
    ) -> None:
        self._cluster, self._job, self._plan, self._account = cluster, job, plan, account
        self._folder, self._summary, self._emit = folder, summary, emit
        self._prices, self._twins = prices, twins
        in_dollars = None if account is None else account.budget.in_dollars
        self._errand = ShardJob(
            job, settings, endpoint, str(folder.resolve()), run, cluster.token, in_dollars
        )
        each = rows // (_EACH * max(1, cluster.workers))
        self._most = -(-rows // job.shards) if job.shards else min(max(each, _LEAST_ROWS), _SHARD_ROWS)  # fmt: skip
        self._stop, self._answered = asyncio.Event(), asyncio.Event()
        self._lanes: dict[str, _Lane] = {model: _Lane(model) for model in job.models}
        self._told: set[tuple[int, str, int]] = set()  # Of shards that have not ended.
        self._at_work: dict[int, Prompt | None] = {}  # By row, the prompt where somebody wants it.
        self._closed: dict[str, None] = {}
        self.stopped: Exception | None = None
        self.all_ok = True

    # As an engine

    def stop(self, why: Exception | None = None) -> None:
        """Sends nothing new; what is in flight is waited for and written."""
        if self.stopped is None:
            self.stopped = why
        self._stop.set()
        self._answered.set()

    @property
    def closed(self) -> str:
        """Which models were given up on the way, and why."""
        return " ".join(self._closed)

    @property
    def equals(self) -> Mapping[str, int]:
        """How many requests wait for the answer of an equal one, by model ("" for any)."""
        return {} if self._twins is None else self._twins.waiting

    def snapshot(self) -> dict[str, ChannelStatus]:
        """How each model stands, for whoever watches."""
        return {model: lane.stands for model, lane in self._lanes.items()}

    async def run(self) -> None:
        """Until every request has a result, or the run is stopped.

        Raises:
            OutputError: The journal cannot be written.
        """
        spent = None if self._account is None else self._account.spent
        self._cluster.begin(self._folder, spent)
        looking = asyncio.create_task(self._look())
        room = asyncio.Semaphore(2 * max(1, self._cluster.workers))
        tasks: set[asyncio.Task[None]] = set()
        try:
            async with aclosing(in_thread(self._shards(), self._stop)) as ahead:
                async for shard in ahead:
                    await room.acquire()
                    if self._stop.is_set():
                        break
                    self._begin(shard)
                    task = asyncio.create_task(self._run(shard, room))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                    # A key that is wrong, or a model that is not there, is to cost one worker's first rows.
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._answered.wait(), _FIRST_SECONDS)
            while tasks:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await looking
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._heed(await self._cluster.end())
        if isinstance(self.stopped, JobError) and self._any_answer():
            self.stopped = RunStopped(str(self.stopped))

    # Shards

    def _shards(self) -> Iterator[Shard]:
        """What is to be sent, in parts."""
        last = max((number for number, _path in segments(self._folder)), default=0)
        first = (last // BLOCK + 1) * BLOCK + 1
        todos: list[PendingRow] = []
        size = number = 0
        for batch in self._plan.batches():
            for todo in batch:
                if self._twins is not None:
                    self._twins.look(todo.prompt)
                    todo = todo._replace(slots=self._twins.among(todo))
                if not todo.slots:
                    continue
                todos.append(todo)
                size += len(todo.prompt.fields)
                if len(todos) >= self._most or size >= _SHARD_BYTES:
                    yield self._shard(number, first, todos)
                    number, first, todos, size = number + 1, first + BLOCK, [], 0
        if todos:
            yield self._shard(number, first, todos)

    def _shard(self, number: int, first: int, todos: list[PendingRow]) -> Shard:
        rows = {todo.prompt.row for todo in todos}
        stopped = {name: at for name, at in self._plan.stopped.items() if name[0] in rows}
        models = self._job.models or {todo.prompt.model or "" for todo in todos}
        prices: dict[str, Price] = {}
        for model in models:
            if (price := self._prices.of(model)) is not None:
                prices[model] = price
        return Shard(number, first, todos, stopped, prices)

    def _begin(self, shard: Shard) -> None:
        for todo in shard.todos:
            self._at_work[todo.prompt.row] = None if self._emit is None else todo.prompt

    async def _run(self, shard: Shard, room: asyncio.Semaphore) -> None:
        try:
            done = await self._cluster.run(self._errand, shard)
        finally:
            room.release()
        for result in done.ended:
            await self._hear(result)
        for todo in shard.todos:
            self._at_work.pop(todo.prompt.row, None)
        rows = {todo.prompt.row for todo in shard.todos}
        self._told = {name for name in self._told if name[0] not in rows}
        if done.closed:
            self._closed[done.closed] = None
        if done.stopped is not None and not self._stop.is_set():
            if not isinstance(done.stopped, JobError | RunStopped):
                self.stop()
                raise done.stopped
            self.stop(done.stopped)

    # Results

    async def _hear(self, result: Result) -> None:
        name = result.row, result.model, result.sample
        if name in self._told or result.row not in self._at_work:
            return
        self._told.add(name)
        self._summary.add(result)
        self.all_ok &= result.status is Outcome.OK or self._job.route != "each"
        if result.status.answered:
            self._answered.set()
        prompt = self._at_work[result.row]
        if self._emit is not None and prompt is not None:
            await self._emit(prompt, result)

    async def _look(self) -> None:
        """Asks the hub how things stand, and tells it when they are to end; until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if self._stop.is_set():
                await self._cluster.stop()  # Again and again: it may have begun anew.
            await self._heed(await self._cluster.told())

    async def _heed(self, told: Told | None) -> None:
        if told is None:
            return
        for result in told.ended:
            await self._hear(result)
        for model, of in told.models.items():
            lane = self._lanes.setdefault(model, _Lane(model))
            waiting = max(of.waiting, of.retrying)
            cause = of.waits_for if of.waiting else "retry" if of.retrying else ""
            lane.stands = ChannelStatus(of.in_flight, waiting, cause, of.longest)
            summary = self._summary.models[model]
            summary.limit_used, summary.waited = of.share, dict(of.waited)
        self._summary.total_limit_used = told.share
        if self._account is not None and told.budget is not None:
            self._account.budget.become(told.budget)
        if told.why is not None:
            self.stop(told.why)

    def _any_answer(self) -> bool:
        models = self._summary.models.values()
        return any(outcome.answered for of in models for outcome in of.outcomes)
