"""A cluster of one process: shards are tasks of this loop, the hub is called directly."""

from __future__ import annotations

import itertools
from pathlib import Path

from batcher.cluster.hub import Hub
from batcher.cluster.messages import HubStatus, Reply, Report
from batcher.cluster.worker import Shard, ShardEnded, ShardJob, work
from batcher.job.job import Job
from batcher.money.account import Account
from batcher.money.spending import Spent


class InProcessCluster:
    """A `Cluster` without a cluster.

    Attributes:
        shards: Every shard that was handed out.
        dies: How many of the next shards lose their first worker once it has sent all.
    """

    def __init__(self, job: Job, token: str, workers: int = 2) -> None:
        self.job, self.token, self.workers = job, token, workers
        self.shards: list[Shard] = []
        self.dies = 0
        self._attempts = itertools.count(1)

    def begin(self, folder: Path, spent: Spent | None) -> None:
        """Starts the hub."""
        self._account = None if spent is None else Account(self.job, folder, spent)
        budget = None if self._account is None else self._account.budget
        self._hub = Hub(self.job.limits, self.job.total, self.job.row_timeout, budget=budget)

    async def run(self, job: ShardJob, shard: Shard) -> ShardEnded:
        """Runs a shard to its end."""
        self.shards.append(shard)
        if self.dies:
            self.dies -= 1
            await self._attempt(job, shard)  # Whatever it would have said is lost with it.
        return await self._attempt(job, shard)

    async def _attempt(self, job: ShardJob, shard: Shard) -> ShardEnded:
        number = next(self._attempts)

        async def call(report: Report) -> Reply:
            return self._hub.report(report)

        try:
            return await work(job, shard, number, call)
        finally:
            self._hub.leave(number)

    async def status(self) -> HubStatus:
        """The state of the hub."""
        return self._hub.status()

    async def end(self) -> HubStatus:
        """The last state of the hub."""
        if self._account is not None:
            self._account.close()
        return self._hub.status()

    async def stop(self) -> None:
        """Lets no worker send anything new."""
        self._hub.stop()
