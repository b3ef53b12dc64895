"""Which backend a job runs on: one line for each way of sending. Touches: files, the network."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from batcher.job.job import Job
from batcher.runtime.backend import Backend
from batcher.runtime.local import open_local

__all__ = ["open_backend"]


@asynccontextmanager
async def open_backend(
    job: Job, folder: Path, say: Callable[[str], None]
) -> AsyncIterator[Backend]:
    """The backend that a job names: this process, or the cluster of `--on`.

    Workers of an earlier run in the folder have stopped when it yields.

    Raises:
        JobError: The cluster cannot be reached.
    """
    if job.on is None:
        async with open_local(job, folder, say) as local:
            yield local
        return
    # Most runs need none of these.
    from batcher.cluster.driver import ClusterBackend
    from batcher.cluster.on_ray import RayCluster
    from batcher.cluster.worker import owned

    with owned(folder) as token:
        cluster = RayCluster(job, token)
        cluster.join()  # In this thread: Ray wants the one that began it to stay.
        try:
            yield ClusterBackend(cluster)
        finally:
            cluster.leave()
