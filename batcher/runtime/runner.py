"""A job from its first check to its last word. Touches: files.

`Runner.run` is the order of things, read from top to bottom: lock the run folder, prepare a plan, send, write
the output. Three promises hold it together: a job that cannot be done fails before anything is sent, what was
paid for is in the journal before anything else happens to it, and the output appears whole or not at all.

It imports more modules than others, as it is the one place that knows every stage.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from batcher.errors import IncompleteOutput, JobError, OutputError, RunStopped
from batcher.job.endpoint import Endpoint
from batcher.job.job import Job
from batcher.live.progress import Phase, Progress, Snapshot
from batcher.live.summary import Summary
from batcher.money.account import known_prices
from batcher.money.price_sources import file_prices
from batcher.money.prices import Prices
from batcher.read import copies, line_index, object_store
from batcher.runtime.backend import Backend, OpenBackend
from batcher.runtime.costs import project
from batcher.runtime.dry_run import dry_run
from batcher.runtime.embedded import simulated_gateway
from batcher.runtime.local import open_local
from batcher.runtime.output import check_output
from batcher.runtime.prepare import Preparation, Prepared, rooted, touched
from batcher.runtime.run_folder import RunFolder, locked, requests_cut_off
from batcher.runtime.sending import Sending, Setup, deduplicator
from batcher.runtime.sink import Emit
from batcher.runtime.snapshot import heartbeat, snapshot
from batcher.runtime.watchers import Watch
from batcher.write import overwrite, status
from batcher.write.lines import segments

__all__ = ["Report", "Runner"]

_REPAIRS = 2


@dataclass(frozen=True)
class Report:
    """How a run ended.

    Attributes:
        summary: Outcomes, tokens and money, by model.
        exit_status: 0 every row is ok, 3 some rows are not, 130 interrupted.
        output: The output file; None when it was not written.
        message: A last sentence for the user.
    """

    summary: Summary
    exit_status: int
    output: str | None
    message: str


class Runner:
    """One run of a job.

    Args:
        job: What was asked.
        rows: Rows from Python in place of `job.inputs`: dicts, or an object with the Arrow stream
            interface.
        say: Gets sentences for the user while the run goes on.
        emit: Awaited with each result and its prompt.
        watch: Shows the run until it is cancelled. Default: the live view on stderr, unless the job is
            quiet.
        open_backend: Opens what sends the requests. Default: this process.

    Attributes:
        summary: Outcomes, tokens and money so far.
        batch: Whether the output holds lines of a batch; known before the first of them.
    """

    def __init__(
        self,
        job: Job,
        *,
        rows: Any = None,
        say: Callable[[str], None] = lambda _text: None,
        emit: Emit | None = None,
        watch: Watch | None = None,
        open_backend: OpenBackend = open_local,
    ) -> None:
        if job.images and not (object_store.is_object(job.images) or os.path.isdir(job.images)):
            raise JobError(f"--images {job.images}: there is no such folder.")
        self._job, self._working_folder = rooted(job), os.getcwd()
        self._rows, self._say, self._emit = rows, say, emit
        self._watch = watch or (lambda state: Progress(state, quiet=job.quiet).run())
        self._open_backend = open_backend
        self._output = Path(os.path.abspath(object_store.here(job.output)))
        self._listed_prices = {} if job.prices is None else file_prices(job.prices)
        self._seconds_left = job.seconds_left(datetime.now())
        self.summary = Summary(time.monotonic, job.models)
        self.batch = False
        self._phase: Phase = "checking"
        self._interrupted = self._abandoned = False
        self._given_up = 0  # Requests in flight when the run was abandoned.
        self._all_ok = True
        self._answers: int | None = None  # That each model is to give, once it is known.
        self._backend: Backend | None = None
        self._sending: Sending | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # What the user may do meanwhile

    def stop(self) -> str:
        """The first Ctrl-C: sends nothing new, waits for requests in flight, keeps their answers.

        An output that is being written is still finished. May be called from any thread. Returns what
        the run waits for, in words.
        """
        if self._phase == "writing output":
            return "the output is being written"
        begun = self._phase == "running"
        self._interrupted, self._phase = True, "stopping"
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop_sending)
        return "waiting for what is in flight" if begun else "nothing was sent yet"

    def abandon(self) -> None:
        """The second Ctrl-C: gives up requests in flight, and an output that is being written; the old one stays."""
        self._abandoned = True
        self._given_up = 0 if self._backend is None else self._backend.in_flight

    # The order of things

    async def run(self) -> Report:
        """Runs the job.

        Raises:
            BatcherError: It cannot be done as asked, or ended early; `exit_status` says which.
        """
        self._loop = asyncio.get_running_loop()
        try:
            if self._job.output == "-":
                with tempfile.TemporaryDirectory(prefix="batcher-") as temporary:
                    return await self._in_folder(RunFolder(Path(temporary)))
            named = Path(
                object_store.here(self._job.output)
            )  # As the user wrote it, for messages.
            check_output(named, named.parent / f"{named.name}.run", self._job)
            with locked(self._output, dry_run=self._job.dry_run) as folder:
                return await self._in_folder(folder)
        finally:
            if self.summary.status == "running":  # It ended before anything was sent.
                self.summary.finish("interrupted" if self._interrupted else "failed")

    async def _in_folder(self, folder: RunFolder) -> Report:
        """Prepares, then sends and writes; or, for a dry run, says what would be sent."""
        job = self._job
        async with contextlib.AsyncExitStack() as stack:
            backend = None
            if (
                not job.dry_run
            ):  # Before anything is read: workers of a killed run may still write.
                opening = self._open_backend(job, folder.path, self._say)
                backend = self._backend = await stack.enter_async_context(opening)
            endpoint = Endpoint("", "simulated:") if job.simulate else job.endpoint()
            preparation = Preparation(job, folder.path, self._output, self._say, self._go_on)
            inputs = await preparation.inputs(self._rows, self._working_folder)
            batch_run = ""
            if job.from_batch and backend is not None:
                batch_run = await asyncio.to_thread(preparation.take_batch, inputs, endpoint)
            prepared, prices = await asyncio.gather(
                asyncio.to_thread(preparation.plan, inputs, endpoint, batch_run),
                self._prices(endpoint),
            )
            self.batch = prepared.resumed.manifest.asked.batch
            self._answers = prepared.rows * job.samples
            if job.simulate:  # Only the gateway itself knows its prices.
                endpoint = await stack.enter_async_context(simulated_gateway())
                prices = await self._prices(endpoint)
            if backend is None:
                dedupe = deduplicator(job, prepared, folder.path)
                exit_status, text = await asyncio.to_thread(
                    dry_run, preparation, prepared, dedupe, prices, self.summary
                )
                return Report(self.summary, exit_status, None, text)
            setup = Setup(folder, backend, preparation, endpoint, prices)
            return await self._answer(setup, prepared)

    async def _answer(self, setup: Setup, prepared: Prepared) -> Report:
        """Sends and writes the output; --overwrite sets earlier results aside until there are new ones."""
        folder, plan = setup.folder.path, prepared.plan
        replaces = self._job.overwrite and overwrite.set_aside(folder)
        cut_off = 0 if self._job.overwrite else requests_cut_off(folder, self._say)
        for slot, model in enumerate(plan.slots):
            for outcome, n in plan.settled(slot).items():
                self.summary.add_earlier(model, outcome, n)
        ended = "failed"
        try:
            report = await self._until_whole(setup, prepared, cut_off, replaces=replaces)
            ended = "interrupted" if report.exit_status == 130 else "done"
        except RunStopped:
            ended = "stopped"
            raise
        except asyncio.CancelledError:
            ended = "interrupted"
            raise
        finally:
            if self.summary.status == "running":
                self.summary.finish(ended)
            given_up = {"given_up": self._given_up} if ended == "interrupted" else {}
            status.save(folder, {**heartbeat(self._state()), **given_up, "state": ended})
            # Of a folder that was moved the earlier results moved along; they are settled when it is back.
            if replaces and setup.folder.check() is None:
                if _any_answer(self.summary):
                    overwrite.forget(folder)
                else:
                    overwrite.restore(folder)
                    self._say("Nothing was answered; the results from before are kept.")
        return report

    async def _until_whole(
        self, setup: Setup, prepared: Prepared, cut_off: int, *, replaces: bool
    ) -> Report:
        """Sends and writes the output; again where answers turn out to be damaged."""
        for repairs_left in reversed(range(_REPAIRS + 1)):
            try:
                return await self._once(setup, prepared, cut_off, replaces=replaces)
            except IncompleteOutput as error:
                if not repairs_left:
                    raise IncompleteOutput(f"{error}, again; see to the disk.") from None
                self._say(
                    f"{error}; answers are matched to rows again, and what is lost is sent again."
                )
            setup.preparation.keep_output()
            again = replace(
                setup.preparation,
                job=replace(self._job, overwrite=False),
                say=lambda _text: None,  # The user has read all of it.
            )
            inputs = prepared.inputs
            if await asyncio.to_thread(inputs.touched) is not None:
                inputs = await again.inputs(self._rows, self._working_folder)
            prepared = await asyncio.to_thread(again.plan, inputs, setup.endpoint)
            self._answers, cut_off = prepared.rows * self._job.samples, 0
        raise AssertionError("the last pass returns or raises")

    async def _once(
        self, setup: Setup, prepared: Prepared, cut_off: int, *, replaces: bool
    ) -> Report:
        """Records what is asked, sends, records what the input was, writes the output."""
        folder, inputs, resumed = setup.folder.path, prepared.inputs, prepared.resumed
        manifest, last = resumed.manifest, resumed.manifest.last
        if setup.backend.many_writers:
            manifest.share_numbers()
        manifest.save(folder)
        if resumed.moved is not None:
            resumed.moved.save(folder)
        line_index.save(folder, inputs.pins, inputs.line_index)
        if not replaces:
            copies.sweep(folder, inputs.pins)
        if not self._interrupted:
            self._phase = "running"
            self._sending = sending = Sending(
                self._job, setup, prepared, self.summary, self._say, self._emit
            )
            await sending.run(cut_off, self._state, self._watch, self._seconds_left)
            self._all_ok = sending.all_ok
        manifest.saw([number for number, _path in segments(folder)])
        changed = await asyncio.to_thread(touched, inputs, manifest)
        if changed is None:
            wrote = manifest.last > last or resumed.moved is not None
            manifest.end(resumed.run, wrote=wrote)
        manifest.save(folder)
        if replaces and not self._interrupted and not _any_answer(self.summary):
            raise JobError(f"Not one row was answered{_first_error(self.summary)}.")
        return await self._finish(setup, prepared, changed)

    async def _finish(self, setup: Setup, prepared: Prepared, changed: str | None) -> Report:
        """Writes the output from the journal and the inputs.

        Raises:
            IncompleteOutput: An answer cannot be read, or an input changed while the run went on.
            OutputError: The output cannot be written.
        """
        job, folder, inputs = self._job, setup.folder.path, prepared.inputs
        if self._interrupted:
            self.summary.finish("interrupted")
            kept = "kept" if job.output != "-" else "written"
            return Report(self.summary, 130, None, f"Interrupted; what was answered is {kept}.")
        self._phase = "writing output"
        status.save(
            folder, heartbeat(self._state())
        )  # From here on a kill finds nothing in flight.
        if job.output == "-":
            self.summary.finish("done")
            return Report(self.summary, 0 if self._all_ok else 3, "-", "")
        if (name := inputs.rewritten()) is not None:
            raise OutputError(
                f"{name} changed while the run was going on, so its rows and the answers cannot be "
                f"put together; all answers are in {folder}. Run the same command again."
            )
        if changed is not None:
            raise IncompleteOutput(f"{changed} was touched while the run was going on")
        from batcher.write.finish import export  # Brings pyarrow, which would hold up the start.

        manifest = prepared.resumed.manifest
        written = await asyncio.to_thread(
            partial(export, self._output, folder, inputs, manifest, manifest.runs, locked=True),
            say=self._say,
            go_on=partial(self._go_on_writing, setup.folder),
        )
        where = object_store.here(job.output)
        if object_store.is_object(job.output):
            await asyncio.to_thread(object_store.put, str(self._output), job.output)
            where += f", and uploaded to {job.output}"
        self.summary.finish("done" if written.all_ok else "some rows are not ok")
        if not (inputs.whole or manifest.asked.batch) and job.route == "each" and job.models:
            await asyncio.to_thread(project, self.summary, self._output, inputs, job)
        text = f"{written.rows:,} rows in {where}."
        return Report(self.summary, 0 if written.all_ok else 3, job.output, text)

    # What these steps ask

    def _stop_sending(self) -> None:
        if self._sending is not None:
            self._sending.stop()
        elif self._backend is not None:
            self._backend.stop()

    def _go_on(self) -> None:
        """Ends work in another thread when the run was interrupted."""
        if self._interrupted:
            raise RunStopped("Interrupted before anything was sent.")

    def _go_on_writing(self, folder: RunFolder) -> None:
        if (what := folder.check()) is not None:
            raise OutputError(
                f"{what}, so no output was written; move it back and run the same command again."
            )
        if self._abandoned:
            raise RunStopped("Interrupted while the output was written.")

    async def _prices(self, endpoint: Endpoint) -> Prices:
        return await known_prices(self._job, self._listed_prices, endpoint, self._say)

    def _state(self) -> Snapshot:
        """The present state, for the live view and `status.json`."""
        channels = {} if self._backend is None else self._backend.snapshot()
        held_back = {} if self._sending is None else self._sending.held_back
        route = self._job.route
        return snapshot(self._phase, channels, self.summary, self._answers, held_back, route)


def _first_error(summary: Summary) -> str:
    """The text of the first failure, to be put behind a sentence."""
    errors = [text for model in summary.models.values() for text in model.examples.values()]
    return f": {errors[0]}" if errors else ""


def _any_answer(summary: Summary) -> bool:
    models = summary.models.values()
    return any(outcome.answered for model in models for outcome in model.outcomes)
