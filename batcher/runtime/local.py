"""The backend of this process: one engine, one journal. Touches: files, the network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from batcher.job.job import Job
from batcher.limits.concurrency import MOST
from batcher.runtime.backend import Backend, Ended, Work
from batcher.runtime.channel import ChannelStatus
from batcher.runtime.config import EngineConfig
from batcher.runtime.engine import Engine
from batcher.runtime.sink import ResultSink
from batcher.send.connections import open_files
from batcher.write.journal import Journal

__all__ = ["LocalBackend", "open_local"]

_OTHER_FILES = 64  # Besides connections: journal, input, output, what libraries open.


class LocalBackend(Backend):
    """Sends from this process.

    Args:
        say: Gets sentences for the user.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._engine: Engine | None = None
        self._journal: Journal | None = None
        self._stopped = False
        self._why: Exception | None = None

    async def run(self, work: Work) -> Ended:
        """As `Backend.run`."""
        loop = asyncio.get_running_loop()
        account = work.account

        def alarm() -> None:
            loop.call_soon_threadsafe(self.stop)

        try:
            journal = Journal(work.folder, alarm, run=work.run)
            try:
                sink = ResultSink(work.summary, journal, work.emit)
                engine = Engine(
                    self._config(work, journal),
                    work.plan,
                    sink,
                    budget=None if account is None else account.budget,
                    dedupe=work.dedupe,
                )
                self._engine, self._journal = engine, journal
                if self._stopped:
                    engine.stop(self._why)
                try:
                    await engine.run()
                finally:
                    for traffic in engine.traffic:
                        work.summary.add_traffic(*traffic)
                    work.summary.add_total_traffic(engine.total_limit_used)
            finally:
                await asyncio.shield(asyncio.to_thread(journal.close))
        finally:
            if account is not None:
                account.close()
        return Ended(
            engine.stopped,
            engine.closed,
            sink.all_ok,
            {**work.dialects, **engine.dialects},
            journal.put_back,
        )

    def stop(self, why: Exception | None = None) -> None:
        """As `Backend.stop`."""
        if not self._stopped:
            self._stopped, self._why = True, why
        if self._engine is not None:
            self._engine.stop(why)

    def snapshot(self) -> Mapping[str, ChannelStatus]:
        """As `Backend.snapshot`."""
        return {} if self._engine is None else self._engine.snapshot()

    @property
    def in_flight(self) -> int:
        """Requests in flight."""
        return 0 if self._engine is None else self._engine.in_flight

    def journal_removed(self) -> bool:
        """As `Backend.journal_removed`."""
        return self._journal is not None and self._journal.removed

    def _config(self, work: Work, journal: Journal) -> EngineConfig:
        models = work.summary.models.items()
        return EngineConfig(
            self._within_open_files(work.job),
            work.endpoint,
            work.rows,
            work.prices,
            work.dialects,
            proven={
                model
                for model, totals in models
                if any(n and outcome.answered for outcome, n in totals.earlier.items())
            },
            earlier_result=journal.at,
        )

    def _within_open_files(self, job: Job) -> Job:
        """The job, with no more requests in flight than the process may have open files."""
        allowed = open_files()
        most = max(1, allowed - _OTHER_FILES)
        asked = sum(job.limits(model).concurrency or MOST for model in job.models or ("",))
        if min(asked, job.total_concurrency or asked) <= most:
            return job
        self._say(
            f"This process may have {allowed:,} files open, so at most {most:,} requests are in flight "
            f"at once; for more, raise the limit first: ulimit -n {asked + _OTHER_FILES}"
        )
        return replace(job, total_concurrency=most)


@asynccontextmanager
async def open_local(
    job: Job, folder: Path, say: Callable[[str], None]
) -> AsyncIterator[LocalBackend]:
    """The backend of a job that names no cluster."""
    del folder  # Of interest to backends that share it.
    assert job.on is None, "a caller whose jobs may name a cluster passes `open_backend`"
    yield LocalBackend(say)
