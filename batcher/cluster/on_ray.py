"""Shards as Ray tasks, the hub as a Ray actor; the only module that imports Ray. Touches: the cluster.

A task is tried again for as long as its worker or node dies, and never for an exception: what fails by
itself is told as a value. The hub stands on the driver's machine and begins anew should it die.
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

from batcher.cluster.hub import Hub, Reply, Told, Turn
from batcher.cluster.link import Unreachable
from batcher.cluster.worker import Done, Shard, ShardJob, work
from batcher.errors import JobError
from batcher.job.job import Job
from batcher.money import spending
from batcher.money.account import Account
from batcher.money.budget import Amount
from batcher.money.spending import Spent

__all__ = ["RayCluster"]

_PATIENCE_SECONDS = 2.0
# How a client of HTTP/2 begins, which a head speaks: a preface, and settings without any (RFC 9113, 3.4).
_HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))


class _Actor:
    """The hub, as Ray keeps it."""

    def __init__(self, job: Job, folder: Path, spent: Spent | None) -> None:
        self._account = None
        self._folder, self._anew = folder, False
        if spent is not None:
            recorded = spending.recorded(folder, spent)
            self._account, self._anew = Account(job, folder, recorded), recorded != spent
        budget = None if self._account is None else self._account.budget
        self._hub = Hub(job.limits, job.total, job.row_timeout, budget=budget)

    async def turn(self, told: Turn) -> Reply:
        return self._hub.turn(told)

    async def leave(self, attempt: int) -> None:
        self._hub.leave(attempt)

    async def told(self) -> Told:
        return self._hub.told()

    async def end(self) -> Told:
        if self._account is not None:
            if self._anew:  # What became of all that the hub before lent is not known here.
                self._account.budget.known(Amount(*spending.known(self._folder)))
            self._account.close()
        return self._hub.told()

    async def stop(self) -> None:
        self._hub.stop()


def _task(errand: ShardJob, shard: Shard, hub: Any) -> Done:
    """One attempt at a shard, in a process of a worker's."""
    import uvloop
    from ray.exceptions import RayError

    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    attempt = time.time_ns()

    async def call(turn: Turn) -> Reply:
        try:
            reply: Reply = await hub.turn.remote(turn)
        except RayError as error:
            raise Unreachable(str(error)) from None
        return reply

    async def whole() -> Done:
        try:
            return await work(errand, shard, attempt, call)
        finally:
            hub.leave.remote(attempt)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(whole())


class RayCluster:
    """A cluster, joined for one run.

    Args:
        job: What was asked; its `on` names the cluster.
        token: Names the run.

    Attributes:
        workers: How many shards can run at once.
    """

    def __init__(self, job: Job, token: str) -> None:
        self._job, self.token = job, token
        self.workers = 1
        self._hub: Any = None

    def join(self) -> None:
        """Joins it, or starts one on this machine.

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
            address = (self._job.on or "").partition("=")[2] or os.environ.get("RAY_ADDRESS")
            alone: dict[str, object] = {}
            if address is None:  # Of its own it listens on loopback only.
                address = "local"
                alone = {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
            else:
                _check_reachable(self._job.on, address)
            try:
                with _own_signals():
                    ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **alone)
            except (ConnectionError, RuntimeError, ValueError) as error:
                first = str(error).splitlines()[0]
                raise JobError(
                    f"--on {self._job.on}: the cluster cannot be reached: {first.rstrip('.')}. If it wants a token (Ray "
                    "makes ~/.ray/auth_token), set RAY_AUTH_MODE=token."
                ) from None
        # It tells of dead workers on standard output, where a summary may be; they are tried again.
        ray._private.worker._worker_logs_enabled = False  # noqa: SLF001 (there is no other way)
        self._here = NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self._task = ray.remote(_task).options(num_cpus=1, max_retries=-1, retry_exceptions=False)
        self.workers = max(1, int(ray.cluster_resources().get("CPU", 1)))

    def begin(self, folder: Path, spent: Spent | None) -> None:
        """As of `Cluster`."""
        how = {"num_cpus": 0, "max_restarts": -1, "max_concurrency": 1000}
        actor = self._ray.remote(_Actor).options(**how, scheduling_strategy=self._here)
        self._end_hub()
        self._hub = actor.remote(self._job, folder.resolve(), spent)

    def _end_hub(self) -> None:
        if self._hub is not None:
            with contextlib.suppress(Exception):
                self._ray.kill(self._hub)

    def leave(self) -> None:
        """Leaves it; what still runs there ends."""
        self._end_hub()
        if self._joined:
            self._ray.shutdown()

    async def run(self, errand: ShardJob, shard: Shard) -> Done:
        """Runs a shard to its end, through as many deaths as it takes."""
        from ray.exceptions import RayError

        try:
            done: Done = await self._task.remote(errand, shard, self._hub)
        except RayError as error:  # Not the death of a worker, which is tried again.
            last = str(error).strip().splitlines()[-1]
            why = "pip install 'batcher[ray]' on every machine, in one version"
            return Done(
                (), JobError(f"--on {self._job.on}: a worker cannot begin ({last}); {why}.")
            )
        return done

    async def told(self) -> Told | None:
        """As of `Cluster`."""
        told: Told | None = await self._asked(self._hub.told.remote())
        return told

    async def end(self) -> Told | None:
        """As of `Cluster`."""
        told: Told | None = await self._asked(self._hub.end.remote())
        return told

    async def stop(self) -> None:
        """Nothing new is to be sent by any worker."""
        await self._asked(self._hub.stop.remote())

    async def _asked(self, reference: Any) -> Any:
        from ray.exceptions import RayError

        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return await reference
        except (RayError, TimeoutError):
            return None


def _check_reachable(on: str | None, address: str) -> None:
    """Ray itself tries for minutes.

    Raises:
        JobError: Nobody answers there.
    """
    if address.startswith("ray://"):
        raise JobError(
            f"--on {on}: give HOST:PORT of the head (ray start --head says it), on a machine of the cluster."
        )
    host, _, port = address.rpartition(":")
    if port.isdecimal():
        try:
            with socket.create_connection(
                (host.strip("[]"), int(port)), _PATIENCE_SECONDS
            ) as line:
                line.sendall(_HTTP2)
                answer = line.recv(9)
        except OSError as error:
            raise JobError(f"--on {on}: nobody answers there: {error}") from None
        if answer[3:4] != b"\x04":  # A frame of settings.
            raise JobError(f"--on {on}: what answers there is no head of a Ray cluster.")


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Ray's way of ending a driver at SIGTERM is not ours."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
