"""Shards as Ray tasks, the hub as a Ray actor; the only module that imports Ray. Touches: the cluster.

Ray runs a task again each time its worker or node dies, and never for an exception: a shard that fails
returns a value. The hub is on the driver's machine; Ray restarts it when it dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from batcher.cluster.hub import Hub
from batcher.cluster.link import Unreachable
from batcher.cluster.messages import HubStatus, Reply, Report
from batcher.cluster.worker import Shard, ShardEnded, ShardJob, work
from batcher.errors import JobError
from batcher.job.job import Job
from batcher.money import spending
from batcher.money.account import Account
from batcher.money.budget import Amount
from batcher.money.spending import Spent

__all__ = ["RayCluster"]

_ANSWER_SECONDS = 2.0
# The first bytes of an HTTP/2 client, which is what a Ray head serves: a preface, and a SETTINGS frame without
# any (RFC 9113, 3.4).
_HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))


class _HubActor:
    """The hub, as a Ray actor. A restart makes a new one with the same arguments."""

    def __init__(self, job: Job, folder: Path, spent: Spent | None) -> None:
        self._folder = folder
        self._account: Account | None = None
        self._restarted = False
        if spent is not None:
            recorded = spending.recorded(folder, spent)
            self._account, self._restarted = Account(job, folder, recorded), recorded != spent
        budget = None if self._account is None else self._account.budget
        self._hub = Hub(job.limits, job.total, job.row_timeout, budget=budget)

    async def report(self, report: Report) -> Reply:
        return self._hub.report(report)

    async def leave(self, attempt: int) -> None:
        self._hub.leave(attempt)

    async def status(self) -> HubStatus:
        return self._hub.status()

    async def end(self) -> HubStatus:
        if self._account is not None:
            if (
                self._restarted
            ):  # Nothing is known of the reservations that the hub before it made.
                self._account.budget.known(Amount(*spending.known(self._folder)))
            self._account.close()
        return self._hub.status()

    async def stop(self) -> None:
        self._hub.stop()


def _task(shard_job: ShardJob, shard: Shard, hub: Any) -> ShardEnded:
    """One attempt at a shard, in a worker process."""
    import uvloop
    from ray.exceptions import RayError

    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    attempt = time.time_ns()

    async def call(report: Report) -> Reply:
        try:
            reply: Reply = await hub.report.remote(report)
        except RayError as error:
            raise Unreachable(str(error)) from None
        return reply

    async def whole() -> ShardEnded:
        try:
            return await work(shard_job, shard, attempt, call)
        finally:
            hub.leave.remote(attempt)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(whole())


class RayCluster:
    """A Ray cluster, joined for one run: a `Cluster` of `cluster.driver`.

    Args:
        job: Its `on` names the cluster.
        token: Names the run.

    Attributes:
        workers: How many shards run at once.
    """

    def __init__(self, job: Job, token: str) -> None:
        self._job, self.token = job, token
        self.workers = 1
        self._hub: Any = None

    def join(self) -> None:
        """Joins the cluster, or starts one on this machine.

        Raises:
            JobError: Ray is not installed, or the cluster cannot be reached.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError:
            raise JobError("--on ray: Ray is not installed; pip install 'batcher[ray]'.") from None
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._ray = ray
        self._joined = not ray.is_initialized()
        if self._joined:
            self._connect()
        # Ray would report dead workers on standard output, where a summary may be; their shards run again.
        ray._private.worker._worker_logs_enabled = False  # noqa: SLF001 (Ray has no public switch)
        self._here = NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self._task = ray.remote(_task).options(num_cpus=1, max_retries=-1, retry_exceptions=False)
        self.workers = max(1, int(ray.cluster_resources().get("CPU", 1)))

    def _connect(self) -> None:
        address = (self._job.on or "").partition("=")[2] or os.environ.get("RAY_ADDRESS")
        local: dict[str, object] = {}
        if address is None:  # A cluster of this machine alone listens on loopback only.
            address = "local"
            local = {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
        else:
            _check_reachable(self._job.on, address)
        try:
            with _own_signals():
                self._ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **local)
        except (ConnectionError, RuntimeError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise JobError(
                f"--on {self._job.on}: the cluster cannot be reached: {first.rstrip('.')}. If it wants a token (Ray "
                "makes ~/.ray/auth_token), set RAY_AUTH_MODE=token."
            ) from None

    def begin(self, folder: Path, spent: Spent | None) -> None:
        """As `Cluster.begin`."""
        options = {"num_cpus": 0, "max_restarts": -1, "max_concurrency": 1000}
        actor = self._ray.remote(_HubActor).options(**options, scheduling_strategy=self._here)
        self._end_hub()
        self._hub = actor.remote(self._job, folder.resolve(), spent)

    def _end_hub(self) -> None:
        if self._hub is not None:
            with contextlib.suppress(Exception):
                self._ray.kill(self._hub)

    def leave(self) -> None:
        """Leaves the cluster; tasks that still run there end."""
        self._end_hub()
        if self._joined:
            self._ray.shutdown()

    async def run(self, job: ShardJob, shard: Shard) -> ShardEnded:
        """As `Cluster.run`."""
        from ray.exceptions import RayError

        try:
            ended: ShardEnded = await self._task.remote(job, shard, self._hub)
        except RayError as error:  # Not the death of a worker: Ray runs the task again then.
            last = str(error).strip().splitlines()[-1]
            advice = "pip install 'batcher[ray]' on every machine, in one version"
            return ShardEnded(
                (), JobError(f"--on {self._job.on}: a worker cannot begin ({last}); {advice}.")
            )
        return ended

    async def status(self) -> HubStatus | None:
        """As `Cluster.status`."""
        status: HubStatus | None = await self._answer(self._hub.status.remote())
        return status

    async def end(self) -> HubStatus | None:
        """As `Cluster.end`."""
        status: HubStatus | None = await self._answer(self._hub.end.remote())
        return status

    async def stop(self) -> None:
        """As `Cluster.stop`."""
        await self._answer(self._hub.stop.remote())

    async def _answer(self, reference: Any) -> Any:
        """The result of a call of the hub; None while the hub does not answer."""
        from ray.exceptions import RayError

        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await reference
        except (RayError, TimeoutError):
            return None


def _check_reachable(on: str | None, address: str) -> None:
    """Connects once, as `ray.init` itself would try for minutes.

    Raises:
        JobError: No Ray head answers at the address.
    """
    if address.startswith("ray://"):
        raise JobError(
            f"--on {on}: give HOST:PORT of the head (ray start --head says it), on a machine of the cluster."
        )
    host, _, port = address.rpartition(":")
    if port.isdecimal():
        try:
            with socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS) as line:
                line.sendall(_HTTP2)
                answer = line.recv(9)
        except OSError as error:
            raise JobError(f"--on {on}: nobody answers there: {error}") from None
        if answer[3:4] != b"\x04":  # The type of a SETTINGS frame.
            raise JobError(f"--on {on}: what answers there is no head of a Ray cluster.")


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Puts back the handler of SIGTERM that `ray.init` replaces: batcher ends a run in its own order."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
