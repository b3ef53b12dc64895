"""A job from its first check to its last word: lock, plan, engine, output. Touches: files.

The order of things is the promise: what cannot be done is said before anything is sent, what was
paid for is in the journal before anything else is done with it, and the output appears whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from batcher.engine import Emit, Engine
from batcher.errors import JobError, OutputError
from batcher.finish import export, slots_of, trusted_from
from batcher.job import Endpoint, Job
from batcher.plan import Earlier, Plan, settings_of
from batcher.read import spool
from batcher.read.inputs import InputFile, Inputs, expand
from batcher.records import Outcome
from batcher.report.progress import Progress, Snapshot, State
from batcher.report.summary import Summary
from batcher.watch import snapshot
from batcher.write import index
from batcher.write.journal import Journal, Lock, segments
from batcher.write.manifest import Epoch, Manifest, now
from batcher.write.winners import Winners

__all__ = ["Report", "Runner", "SettingsChanged"]


class SettingsChanged(JobError):
    """Settings changed so that answers already paid for match no longer; ask what to do."""


@dataclass(frozen=True)
class Report:
    """How a run ended.

    Attributes:
        summary: What came out, by model.
        exit_status: 0 every row ok, 3 some rows are not, 4 stopped, 130 interrupted.
        output: The output file; None when it was not written.
        message: The last word to the user.
    """

    summary: Summary
    exit_status: int
    output: str | None
    message: str


class Runner:
    """One run of a job.

    Args:
        job: What was asked.
        rows: Rows given from Python instead of `job.inputs`: dicts, or anything that speaks the
            Arrow stream interface.
        say: Told what a person should know while the run goes on, in sentences.
        emit: Awaited with each result and its prompt as it comes.
        console: Where the live view goes; stderr by default.
        clock: A monotonic clock, in seconds.
    """

    def __init__(
        self,
        job: Job,
        *,
        rows: Any = None,
        say: Callable[[str], None] = lambda _text: None,
        emit: Emit | None = None,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._job = job
        self._rows = rows
        self._say = say
        self._emit = emit
        self._console = console
        self._state: State = "checking"
        self._plan: Plan | None = None
        self._engine: Engine | None = None
        self._interrupted = False
        self.summary = Summary(clock, job.models)
        self._surveyed: int | None = None

    def stop(self) -> None:
        """The first Ctrl-C: send nothing new, wait for what is in flight, write it."""
        self._interrupted = True
        self._state = "stopping"
        if self._plan is not None:
            self._plan.abandoned = True
        if self._engine is not None:
            self._engine.stop()

    async def run(self) -> Report:
        """Runs the job.

        Raises:
            BatcherError: It ended early, or cannot be done; `exit_status` says which.
        """
        job = self._job
        if job.output == "-":
            with tempfile.TemporaryDirectory(prefix="batcher-") as temporary:
                return await self._locked(Path(temporary))
        output = Path(job.output)
        folder = output.with_name(output.name + ".run")
        _check_output(output, folder, overwrite=job.overwrite)
        new = not folder.exists()
        lock = Lock(folder)
        try:
            if job.overwrite:
                _forget(folder)
            return await self._locked(folder)
        finally:
            lock.release()
            if new and {entry.name for entry in folder.iterdir()} <= {"LOCK"}:
                shutil.rmtree(folder)  # Nothing was begun: leave nothing behind.

    async def _locked(self, folder: Path) -> Report:
        inputs = self._inputs(folder)
        async with contextlib.AsyncExitStack() as stack:
            endpoint = (
                self._job.endpoint() if not self._job.simulate else Endpoint("", "simulated:")
            )
            epoch, manifest, winners, earlier = self._resume(folder, inputs, endpoint)
            plan = self._plan = Plan(self._job, endpoint.name, inputs, winners, earlier)
            del winners, earlier  # The plan took what it needs; the rest is much.
            self._surveyed = epoch.rows
            if epoch.rows is None or inputs.limit is not None or self._job.dry_run:
                await asyncio.to_thread(self._survey, plan, inputs, epoch)
            if self._job.dry_run:
                return self._dry(plan, epoch)
            manifest.save(folder)
            self._count_earlier(plan)
            if self._job.simulate:
                endpoint = await stack.enter_async_context(_simulated())
            await self._send(folder, endpoint, plan)
        return await self._finish(folder, inputs, epoch, manifest)

    # Before

    def _inputs(self, folder: Path) -> Inputs:
        """The input files; stdin and rows from Python are copied into the run folder first."""
        job = self._job
        files: list[InputFile]
        if self._rows is not None:
            files = [spool.rows(folder, self._rows)]
        elif job.inputs == ("-",):
            files = [spool.stdin(folder)]
        elif not job.inputs:
            raise JobError("No input: name a file, a glob or a folder, or - for JSONL on stdin.")
        elif "-" in job.inputs:
            raise JobError("stdin (-) goes alone; it cannot be mixed with files.")
        else:
            files = expand(job.inputs)
        return Inputs(files, job.limit)

    def _resume(
        self, folder: Path, inputs: Inputs, endpoint: Endpoint
    ) -> tuple[Epoch, Manifest, Winners, Earlier | None]:
        """What is answered already: by position within the epoch, by key across epochs."""
        settings = msgspec.to_builtins(settings_of(self._job, endpoint.name))
        manifest = Manifest.load(folder) or Manifest(output=Path(self._job.output).name)
        files = segments(folder)
        last = manifest.epochs[-1] if manifest.epochs else None
        same_input = last is not None and last.inputs == inputs.pins
        if last is None or last.settings != settings or not same_input:
            number = max((number for number, _ in files), default=0) + 1
            epoch = Epoch(
                inputs=inputs.pins, settings=settings, first_segment=number, started=now()
            )
            manifest.epochs.append(epoch)
        else:
            epoch = last
        if last is not None and epoch is not last and last.settings != settings:
            self._settle_change(last, epoch, inputs, files, endpoint, same_input=same_input)
        first = trusted_from(manifest)
        winners = Winners(len(self._job.models or ("",)), folder, epoch.rows or 0)
        bad = 0
        for number, path in files:  # One at a time: there may be gigabytes of them.
            if number >= first:
                segment = index.load(path, number)
                winners.add(segment.entries, slots_of(segment.models, self._job.models))
                bad += segment.bad
        if bad:
            self._say(
                f"{bad} torn or damaged journal lines are left out; their rows are sent again."
            )
        earlier = None
        if any(number < first for number, _ in files):
            before = [index.load(path, number) for number, path in files if number < first]
            since = [index.load(path, number) for number, path in files if number >= first]
            earlier = Earlier(before, since)
        return epoch, manifest, winners, earlier

    def _settle_change(
        self,
        last: Epoch,
        epoch: Epoch,
        inputs: Inputs,
        files: list[tuple[int, Path]],
        endpoint: Endpoint,
        *,
        same_input: bool,
    ) -> None:
        """Changed settings: say which, and how many paid answers match no longer."""
        earlier = Earlier([index.load(path, number) for number, path in files])
        if not len(earlier):
            return
        matched = 0
        for batch in Plan(self._job, endpoint.name, inputs, None, earlier).batches():
            matched += sum(len(todo.kept) for todo in batch)
        lost = len(earlier) - matched
        if lost <= 0:
            return
        names = sorted(
            name
            for name in {*last.settings, *epoch.settings}
            if last.settings.get(name) != epoch.settings.get(name)
        )
        what = f"{', '.join(names)} changed since the last run: {lost:,} answers paid for match no longer"
        if self._job.changed is None:
            raise SettingsChanged(
                f"{what}. Send those rows again with --changed resend, keep their old answers with "
                "--changed keep, or use another --output."
            )
        if self._job.changed == "keep":
            if not same_input:
                raise JobError(
                    f"{what}, and the input changed as well, so --changed keep cannot tell which "
                    "answer belongs to which row; use --changed resend, or another --output."
                )
            epoch.keeps = True
            self._say(f"{what}; they are kept.")
        else:
            self._say(f"{what}; those rows are sent again.")

    def _survey(self, plan: Plan, inputs: Inputs, epoch: Epoch) -> None:
        rows = plan.survey()
        if inputs.limit is None:
            epoch.rows = rows
        self._surveyed = rows

    def _dry(self, plan: Plan, epoch: Epoch) -> Report:
        """Renders every row and says what is wrong; sends nothing."""
        errors, requests, size = [], 0, 0
        for batch in plan.batches():
            for todo in batch:
                if todo.prompt.error is not None:
                    errors.append(todo.prompt.error)
                else:
                    requests += len(todo.slots) if self._job.route == "each" else 1
                    size += len(todo.prompt.fields) * len(todo.slots)
        for error in errors[:20]:
            self._say(error)
        if len(errors) > 20:
            self._say(f"… and {len(errors) - 20:,} more.")
        self.summary.finish("checked")
        text = (
            f"{self._surveyed or 0:,} rows read, {len(errors):,} of them unreadable; "
            f"{requests:,} requests to send, about {size // 4:,} prompt tokens. Nothing was sent."
        )
        return Report(self.summary, 3 if errors else 0, None, text)

    def _count_earlier(self, plan: Plan) -> None:
        for slot, model in enumerate(plan.slots):
            for outcome, n in plan.settled(slot).items():
                self.summary.add_earlier(model, outcome, n)

    # During

    async def _send(self, folder: Path, endpoint: Endpoint, plan: Plan) -> None:
        journal = Journal(folder)
        engine = self._engine = Engine(
            self._job, endpoint, plan, journal, self.summary, self._emit
        )
        self._state = "running"
        progress = Progress(self._snapshot, quiet=self._job.quiet, console=self._console)
        watching = asyncio.create_task(progress.run())
        try:
            await engine.run()
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
            await asyncio.shield(asyncio.to_thread(journal.close))
        if engine.stopped is not None:
            raise engine.stopped

    def _snapshot(self) -> Snapshot:
        lanes = self._engine.lanes if self._engine is not None else []
        return snapshot(self._state, lanes, self.summary, self._surveyed)

    # After

    async def _finish(
        self, folder: Path, inputs: Inputs, epoch: Epoch, manifest: Manifest
    ) -> Report:
        job = self._job
        if self._interrupted:
            self.summary.finish("interrupted")
            return Report(self.summary, 130, None, "Interrupted; what was answered is kept.")
        self._state = "writing output"
        if job.output == "-":
            self.summary.finish("done")
            bad = any(not _all_ok(of.outcomes) for of in self.summary.models.values())
            return Report(self.summary, 3 if bad else 0, "-", "")
        if (name := inputs.changed()) is not None:
            raise OutputError(
                f"{name} changed while the run was going on, so its rows and the answers cannot be "
                f"put together; all answers are in {folder}. Run the same command again."
            )
        written = await asyncio.to_thread(export, job, folder, inputs, manifest, self._say)
        self.summary.finish("done" if written.all_ok else "some rows are not ok")
        text = f"{written.rows:,} rows in {job.output}"
        if written.missing:
            raise OutputError(
                f"{text}, but {written.missing:,} are missing; run the same command again."
            )
        return Report(self.summary, 0 if written.all_ok else 3, job.output, text + ".")


def _all_ok(outcomes: dict[Outcome, int]) -> bool:
    return not any(n for outcome, n in outcomes.items() if outcome is not Outcome.OK)


def _check_output(output: Path, folder: Path, *, overwrite: bool) -> None:
    """Whether the output can be written, and is ours if it is there."""
    parent = output.parent
    if output.is_dir():
        raise JobError(
            f"{output}: it is a folder; name a file in it, such as {output / 'out.jsonl'}."
        )
    if not parent.is_dir():
        raise JobError(f"{output}: there is no folder {parent}; make it first.")
    if not os.access(parent, os.W_OK):
        raise JobError(f"{output}: the folder {parent} cannot be written.")
    if folder.exists() and not folder.is_dir():
        raise JobError(f"{folder}: it is in the way of the run folder; move it.")
    if output.exists() and not (folder / "run.json").exists() and not overwrite:
        raise JobError(
            f"{output} is there already and batcher has no record of having written it; choose "
            "another --output, move it away, or replace it with --overwrite."
        )


def _forget(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.name != "LOCK" and entry.is_file():
            entry.unlink()


@contextlib.asynccontextmanager
async def _simulated() -> AsyncIterator[Endpoint]:
    """The embedded gateway, a process of its own that ends with this one."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "batcher",
        "simulate",
        "--port",
        "0",
        "--until-stdin-closes",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode().strip()
        if not line.startswith("http"):
            raise JobError("The simulated gateway did not start; see what it says above.")
        yield Endpoint(f"{line}/chat/completions", "simulated:")
    finally:
        if process.stdin is not None:
            process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
