"""One pass of sending: the backend over a plan, then copies for equal requests. Touches: files, the clock.

Its many imports are the parts that a backend is given: it builds the `Work`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from batcher.errors import OutputError, RunStopped
from batcher.job.endpoint import Endpoint
from batcher.job.job import Job
from batcher.live.progress import Snapshot
from batcher.live.summary import Summary
from batcher.money.account import Account, opened
from batcher.money.prices import Prices
from batcher.plan.dedupe import Deduplicator
from batcher.runtime.backend import Backend, Ended, Work
from batcher.runtime.costs import with_larger_budget
from batcher.runtime.duplicates import copy_answers
from batcher.runtime.prepare import Preparation, Prepared
from batcher.runtime.run_folder import RunFolder
from batcher.runtime.sink import Emit, ResultSink
from batcher.runtime.watchers import Watch, watched
from batcher.send.dialect import RequestDialect
from batcher.write.journal import Journal

__all__ = ["Sending", "Setup", "deduplicator"]


@dataclass(frozen=True)
class Setup:
    """What a run works with, the same in every pass."""

    folder: RunFolder
    backend: Backend
    preparation: Preparation
    endpoint: Endpoint
    prices: Prices


class Sending:
    """Sends what a plan says is still to send.

    Args:
        job: What was asked.
        setup: What the run works with.
        prepared: The plan.
        summary: Gets every result.
        say: Gets sentences for the user.
        emit: Awaited with each result and its prompt.

    Attributes:
        all_ok: Whether every row that ended is `ok`.
    """

    def __init__(
        self,
        job: Job,
        setup: Setup,
        prepared: Prepared,
        summary: Summary,
        say: Callable[[str], None],
        emit: Emit | None,
    ) -> None:
        self._job, self._setup, self._prepared = job, setup, prepared
        self._summary, self._say, self._emit = summary, say, emit
        self._dedupe = deduplicator(job, prepared, setup.folder.path)
        self._stopped = False
        self._stop_copying = asyncio.Event()
        self.all_ok = True

    @property
    def held_back(self) -> Mapping[str, int]:
        """Requests that equal another one and are not sent, by model; "" for any model."""
        return {} if self._dedupe is None else self._dedupe.waiting

    def stop(self) -> None:
        """Sends and copies nothing new; waits for requests in flight."""
        self._stopped = True
        self._setup.backend.stop()
        self._stop_copying.set()

    async def run(
        self,
        cut_off: int,
        state: Callable[[], Snapshot],
        watch: Watch,
        seconds_left: float | None,
    ) -> None:
        """Sends, and shows and guards the run meanwhile.

        Args:
            cut_off: Requests that the run before left in flight.
            state: Gives the present state.
            watch: Shows it.
            seconds_left: From the start of the run to the deadline; None for none.

        Raises:
            RunStopped: The budget is spent, the deadline over, or a model cannot be reached.
            JobError: No request can be answered.
            OutputError: The journal cannot be written, or the run folder is lost.
        """
        folder, backend = self._setup.folder, self._setup.backend
        account = await opened(self._job, self._setup.prices, folder.path, cut_off)
        work = self._work(account)
        try:
            async with watched(backend, folder, state, watch, self._deadline(seconds_left)):
                ended = await backend.run(work)
                self._keep_dialects(work, ended)
                if (what := folder.check(journal_removed=backend.journal_removed())) is not None:
                    where = folder.where_answers_are(ended.rescued)
                    raise OutputError(f"{what}, so nothing more was sent. {where}")
                self.all_ok = ended.all_ok
                # Rows that are written as they finish cannot be written later.
                if self._job.output == "-" or not (ended.stopped or self._stopped):
                    await self._copy_answers(work)
        finally:
            if account is not None:
                self._summary.add_budget(account.budget.told)
        if isinstance(ended.stopped, RunStopped) and account is not None and account.budget.spent:
            answers = self._prepared.rows * self._prepared.plan.slots.per_row
            raise with_larger_budget(
                ended.stopped, self._job, account, self._summary, state(), answers
            )
        if ended.stopped is not None:
            raise ended.stopped
        if ended.given_up:
            self._say(ended.given_up)

    def _work(self, account: Account | None) -> Work:
        setup, resumed = self._setup, self._prepared.resumed
        known = resumed.manifest.dialects_at(setup.endpoint.name)
        return Work(
            job=self._job,
            endpoint=setup.endpoint,
            plan=self._prepared.plan,
            folder=setup.folder.path,
            run=resumed.run,
            rows=self._prepared.rows,
            summary=self._summary,
            prices=setup.prices,
            account=account,
            dedupe=self._dedupe,
            dialects={model: RequestDialect(*dialect) for model, dialect in known.items()},
            emit=self._emit,
        )

    def _deadline(self, seconds_left: float | None) -> tuple[float, RunStopped] | None:
        """(seconds that are left, why the run stops then)."""
        if seconds_left is None:
            return None
        text = self._job.deadline or ""
        dated = "T" in text or " " in text  # A date does not come again; a length or an hour does.
        why = RunStopped(
            f"--deadline {text}: it is over, so nothing more is sent.",
            instead={"--deadline": None} if dated else {},
        )
        return max(0.0, seconds_left - self._summary.seconds), why

    async def _copy_answers(self, work: Work) -> None:
        """Gives requests that were held back the answers of their equals."""
        if self._dedupe is None or not self._dedupe.waiting:
            return
        if self._stopped:  # Only a new Ctrl-C ends what is copied after a stop.
            self._stop_copying.clear()
        loop, stop = asyncio.get_running_loop(), self._stop_copying

        def alarm() -> None:
            loop.call_soon_threadsafe(stop.set)

        journal = Journal(work.folder, alarm, run=work.run)
        sink = ResultSink(self._summary, journal, self._emit)
        try:
            await copy_answers(self._dedupe, self._prepared.inputs, sink, stop)
        finally:
            await asyncio.shield(asyncio.to_thread(journal.close))
        self.all_ok &= sink.all_ok

    def _keep_dialects(self, work: Work, ended: Ended) -> None:
        """Notes in `run.json` how models take requests."""
        if ended.dialects != work.dialects:
            manifest = self._prepared.resumed.manifest
            manifest.set_dialects(work.endpoint.name, ended.dialects)
            with contextlib.suppress(OSError):  # The next run finds out again.
                manifest.save(work.folder)


def deduplicator(job: Job, prepared: Prepared, folder: Path) -> Deduplicator | None:
    """Holds back requests that equal another one; None where each is sent."""
    if job.dedupe is False:
        return None
    return Deduplicator(job, prepared.plan, folder, prepared.rows)
