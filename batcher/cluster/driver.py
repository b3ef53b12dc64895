"""The backend that sends from a cluster: shards go out, results come in. Touches: files, the clock.

The driver reads, renders and plans as a local run does, so a request has the same key wherever it is
sent from. Workers get finished requests. The driver learns how each row ended, but not its answer: that is
in the journal, in the run folder that all machines share.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import ClassVar, Protocol

from batcher.cluster.messages import HubStatus
from batcher.cluster.worker import SEGMENTS, Shard, ShardEnded, ShardJob
from batcher.errors import JobError, RunStopped
from batcher.money.spending import Spent
from batcher.plan.requests import PendingRow
from batcher.plan.settings import settings_of
from batcher.records import Outcome, Prompt, Result
from batcher.runtime.backend import Backend, Ended, Work
from batcher.runtime.channel import ChannelStatus
from batcher.runtime.feed import in_thread
from batcher.write.lines import segments

__all__ = ["Cluster", "ClusterBackend"]

_ASK_SECONDS = 0.5
_FIRST_SECONDS = 10.0
_SHARD_ROWS, _MIN_SHARD_ROWS = 5000, 50
_SHARD_BYTES = 32 << 20
_SHARDS_PER_WORKER = 4  # So that no worker waits long for the last shard of another.


class Cluster(Protocol):
    """Runs shards in other processes; the port for another cluster engine.

    Attributes:
        workers: How many shards run at once.
        token: Names the run; a worker stops when the run folder holds another one.
    """

    workers: int
    token: str

    async def run(self, job: ShardJob, shard: Shard) -> ShardEnded:
        """Runs a shard to its end, through any number of worker deaths."""

    def begin(self, folder: Path, spent: Spent | None) -> None:
        """Starts the hub.

        Args:
            folder: The run folder.
            spent: What earlier runs spent; None without a budget.
        """

    async def status(self) -> HubStatus | None:
        """The state of the hub; None while it does not answer."""

    async def end(self) -> HubStatus | None:
        """The last state of the hub, once all shards have ended; records what was spent."""

    async def stop(self) -> None:
        """Lets no worker send anything new."""


class ClusterBackend(Backend):
    """Sends from a cluster.

    Args:
        cluster: Runs the shards; joined already.
    """

    many_writers: ClassVar[bool] = True

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._driver: _Driver | None = None
        self._stopped = False
        self._why: Exception | None = None

    async def run(self, work: Work) -> Ended:
        """As `Backend.run`."""
        self._driver = driver = _Driver(self._cluster, work)
        if self._stopped:
            driver.stop(self._why)
        await driver.run()
        return Ended(driver.stopped, " ".join(driver.given_up), driver.all_ok, work.dialects)

    def stop(self, why: Exception | None = None) -> None:
        """As `Backend.stop`."""
        if not self._stopped:
            self._stopped, self._why = True, why
        if self._driver is not None:
            self._driver.stop(why)

    def snapshot(self) -> Mapping[str, ChannelStatus]:
        """As `Backend.snapshot`."""
        return {} if self._driver is None else self._driver.channels


class _Driver:
    """One run of a plan on a cluster.

    Attributes:
        channels: The state of each model.
        stopped: Why requests are left, once it is known.
        given_up: Sentences on models that workers gave up, each once.
        all_ok: Whether every row that ended is `ok`.
    """

    def __init__(self, cluster: Cluster, work: Work) -> None:
        self._cluster, self._work = cluster, work
        self._shard_job = ShardJob(
            job=work.job,
            settings=settings_of(work.job, work.endpoint.name),
            endpoint=work.endpoint,
            folder=str(work.folder.resolve()),
            run=work.run,
            token=cluster.token,
            in_dollars=None if work.account is None else work.account.budget.in_dollars,
        )
        self._stop, self._first_answer = asyncio.Event(), asyncio.Event()
        # Results may come twice, from the hub and with the shard: (row, model, sample) of shards at work.
        self._counted: set[tuple[int, str, int]] = set()
        # By row of a shard at work; the prompt only where results are emitted with theirs.
        self._prompts: dict[int, Prompt | None] = {}
        self.channels = {model: ChannelStatus(0, 0, "", None) for model in work.job.models}
        self.stopped: Exception | None = None
        self.given_up: dict[str, None] = {}
        self.all_ok = True

    def stop(self, why: Exception | None = None) -> None:
        """As `Backend.stop`."""
        if self.stopped is None:
            self.stopped = why
        self._stop.set()
        self._first_answer.set()

    async def run(self) -> None:
        """As `Backend.run`."""
        account = self._work.account
        self._cluster.begin(self._work.folder, None if account is None else account.spent)
        following = asyncio.create_task(self._follow())
        tasks: set[asyncio.Task[None]] = set()
        try:
            await self._hand_out(tasks)
            if tasks:  # One may have failed while others were still handed out.
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
                for task in done:
                    task.result()
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._observe(await self._cluster.end())
        models = self._work.summary.models.values()
        answered = any(outcome.answered for model in models for outcome in model.outcomes)
        if isinstance(self.stopped, JobError) and answered:
            self.stopped = RunStopped(str(self.stopped))

    # Shards

    async def _hand_out(self, tasks: set[asyncio.Task[None]]) -> None:
        """Starts a task for each shard, two for each worker at once."""
        free = asyncio.Semaphore(2 * max(1, self._cluster.workers))
        async with aclosing(in_thread(self._shards(), self._stop)) as ahead:
            async for shard in ahead:
                await free.acquire()
                if self._stop.is_set():
                    break
                for pending in shard.rows:
                    prompt = None if self._work.emit is None else pending.prompt
                    self._prompts[pending.prompt.row] = prompt
                task = asyncio.create_task(self._run_shard(shard, free))
                tasks.add(task)
                # A wrong key or a model that does not exist costs one worker's first rows, not all workers'.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._first_answer.wait(), _FIRST_SECONDS)

    def _shards(self) -> Iterator[Shard]:
        work = self._work
        last = max((number for number, _path in segments(work.folder)), default=0)
        first = (last // SEGMENTS + 1) * SEGMENTS + 1
        most = self._rows_per_shard()
        rows: list[PendingRow] = []
        size = number = 0
        for batch in work.plan.batches():
            for row in batch:
                if work.dedupe is not None:
                    work.dedupe.look(row.prompt)
                    row = row._replace(slots=work.dedupe.among(row))
                if not row.slots:
                    continue
                rows.append(row)
                size += len(row.prompt.fields)
                if len(rows) >= most or size >= _SHARD_BYTES:
                    yield self._shard(number, first, rows)
                    number, first, rows, size = number + 1, first + SEGMENTS, [], 0
        if rows:
            yield self._shard(number, first, rows)

    def _rows_per_shard(self) -> int:
        rows, shards = self._work.rows, self._work.job.shards
        if shards is not None:
            return -(-rows // shards)
        share = rows // (_SHARDS_PER_WORKER * max(1, self._cluster.workers))
        return min(max(share, _MIN_SHARD_ROWS), _SHARD_ROWS)

    def _shard(self, number: int, first: int, rows: list[PendingRow]) -> Shard:
        work, positions = self._work, {row.prompt.row for row in rows}
        models = work.job.models or {row.prompt.model or "" for row in rows}
        known = {model: work.prices.of(model) for model in models}
        return Shard(
            number,
            first,
            rows,
            stopped={n: at for n, at in work.plan.stopped.items() if n[0] in positions},
            prices={model: price for model, price in known.items() if price is not None},
        )

    async def _run_shard(self, shard: Shard, free: asyncio.Semaphore) -> None:
        try:
            ended = await self._cluster.run(self._shard_job, shard)
        finally:
            free.release()
        for result in ended.results:
            await self._count(result)
        positions = {row.prompt.row for row in shard.rows}
        for row in positions:
            self._prompts.pop(row, None)
        self._counted = {name for name in self._counted if name[0] not in positions}
        if ended.given_up:
            self.given_up[ended.given_up] = None
        if ended.stopped is not None and not self._stop.is_set():
            if not isinstance(ended.stopped, JobError | RunStopped):
                self.stop()
                raise ended.stopped
            self.stop(ended.stopped)

    # Results

    async def _count(self, result: Result) -> None:
        """Adds a result to the summary, once."""
        name = result.row, result.model, result.sample
        if name in self._counted or result.row not in self._prompts:
            return
        self._counted.add(name)
        self._work.summary.add(result)
        self.all_ok &= result.status is Outcome.OK or self._work.job.route != "each"
        if result.status.answered:
            self._first_answer.set()
        prompt = self._prompts[result.row]
        if self._work.emit is not None and prompt is not None:
            await self._work.emit(prompt, result)

    async def _follow(self) -> None:
        """Asks the hub for its state until cancelled. A poll: the hub is in another process, and may restart."""
        while True:
            await asyncio.sleep(_ASK_SECONDS)
            if self._stop.is_set():
                await self._cluster.stop()  # Each time: the hub may have restarted since.
            await self._observe(await self._cluster.status())

    async def _observe(self, status: HubStatus | None) -> None:
        if status is None:
            return
        for result in status.ended:
            await self._count(result)
        summary, account = self._work.summary, self._work.account
        for model, state in status.models.items():
            waiting = max(state.waiting, state.retrying)
            cause = state.waits_for if state.waiting else "retry" if state.retrying else ""
            self.channels[model] = ChannelStatus(state.in_flight, waiting, cause, state.longest)
            summary.add_traffic(model, state.share, state.waited)
        summary.add_total_traffic(status.share)
        if account is not None and status.budget is not None:
            account.budget.become(status.budget)
        if status.why is not None:
            self.stop(status.why)
