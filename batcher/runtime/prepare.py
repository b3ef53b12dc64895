"""Everything between a job and its first request: inputs, earlier answers, the plan. Touches: files."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from batcher.batches import batch_file
from batcher.errors import JobError
from batcher.job.endpoint import Endpoint
from batcher.job.job import Job
from batcher.live.format import counted
from batcher.plan.preflight import pictures_of, preflight
from batcher.plan.requests import Plan
from batcher.plan.resume import Resumed, resume
from batcher.plan.settings import settings_of
from batcher.read import copies, line_index, object_store
from batcher.read.files import InputFile, expand, notes_of
from batcher.read.inputs import Inputs
from batcher.runtime.run_folder import keep_output
from batcher.write.manifest import Manifest, Pictures

__all__ = ["Preparation", "Prepared", "rooted", "touched"]

_DRAWN = "drawn"
_FORMAT_ROWS = 100
# Of the columns that no prompt uses: a quarter of a second of reading before a run. `check` reads all.
_TYPE_BYTES = 256 << 20


@dataclass(frozen=True)
class Prepared:
    """What a run is about to do.

    Attributes:
        plan: Which requests are still to send.
        resumed: What earlier runs left.
        rows: Number of input rows.
    """

    inputs: Inputs
    plan: Plan
    resumed: Resumed
    rows: int


@dataclass(frozen=True)
class Preparation:
    """Prepares a job in its run folder.

    Attributes:
        output: Path of the output, absolute.
        say: Gets sentences for the user.
        go_on: Called now and then in a worker thread; what it raises ends the work.
    """

    job: Job
    folder: Path
    output: Path
    say: Callable[[str], None]
    go_on: Callable[[], None]

    async def inputs(self, rows: Any, working_folder: str) -> Inputs:
        """The input files; stdin and rows from Python are copied into the run folder first.

        Args:
            rows: From Python, in place of `job.inputs`; None for none.
            working_folder: Where relative paths of images begin in rows that come from no file.

        Raises:
            JobError: No input is named, or one cannot be read.
        """
        job = self.job
        images = job.images
        files: list[InputFile]
        if rows is not None:
            files = [await asyncio.to_thread(copies.rows, self.folder, rows, self.go_on)]
        elif job.inputs == ("-",):
            files = [await asyncio.to_thread(copies.stdin, self.folder, self.go_on)]
        elif not job.inputs:
            raise JobError("No input: name a file, a glob or a folder, or - for JSONL on stdin.")
        elif "-" in job.inputs:
            raise JobError("stdin (-) goes alone; it cannot be mixed with files.")
        else:
            find = partial(expand, encoding=job.text_encoding, delimiter=job.cell_delimiter)
            files = await asyncio.to_thread(find, job.inputs, job.output)
            for note in notes_of(files):
                self.say(note)
        if images is None and any(file.pin.copied for file in files):
            images = working_folder
        return Inputs(files, job.limit, job.drawn, images=images)

    def plan(self, inputs: Inputs, endpoint: Endpoint, batch_run: str = "") -> Prepared:
        """Compares the inputs with earlier runs; writes nothing but a copy of an output that may be the last.

        Args:
            inputs: The rows.
            endpoint: Where requests go.
            batch_run: ID that the answers of a batch were written under just now; "" for none.

        Raises:
            SettingsChanged: Paid answers match no longer, and the job does not say what to do.
            JobError: No row can be sent, or the inputs cannot be read.
        """
        job, settings = self.job, settings_of(self.job, endpoint.name)
        if not job.dry_run:
            inputs.set_line_index(line_index.load(self.folder, inputs.pins))
        resumed = resume(job, settings, self.folder, inputs, self.say, self.go_on, batch_run)
        manifest = resumed.manifest
        manifest.set_batch(self._writes_batch_lines(inputs))
        plan = Plan(job, settings, inputs, resumed.winners, stopped=resumed.stopped)
        if resumed.damaged and not job.dry_run:
            self.keep_output()
        rows = manifest.epochs[-1].rows
        if rows is None or not inputs.whole or job.dry_run:
            rows = self._read_all(inputs, plan, manifest)
        return Prepared(inputs, plan, resumed, rows)

    def _read_all(self, inputs: Inputs, plan: Plan, manifest: Manifest) -> int:
        """Reads every row once before the first request, and notes what the input was; how many rows."""
        job, epoch = self.job, manifest.epochs[-1]
        found = preflight(inputs, plan, self.go_on)
        for note in found.notes:
            self.say(note)
        inputs.scan(plan.prompter.columns, _TYPE_BYTES if not job.dry_run else 1 << 62, self.go_on)
        for sentence in inputs.losses():
            self.say(sentence)
        if found.pictures and (epoch.pictures is None or epoch.pictures.rows < found.rows):
            # The manifest does not say which rows were drawn: their answers are found by key next time.
            digest = found.pictures if inputs.drawn is None else _DRAWN
            epoch.set_pictures(Pictures(found.rows, digest))
        if inputs.whole and not job.dry_run:
            inputs.set_pins([file.with_digest(self.go_on).pin for file in inputs.files])
            epoch.count(found.rows, msgspec.to_builtins(inputs.pins))
        if (name := inputs.touched()) is not None:
            raise JobError(f"{name} was written while it was read; run the same command again.")
        return found.rows

    def _writes_batch_lines(self, inputs: Inputs) -> bool:
        """Whether the output holds lines of a batch: as `--format` says, else as the first input rows are."""
        job = self.job
        if job.format is not None or not (job.output == "-" or job.output.endswith(".jsonl")):
            return job.format == "openai"
        rows = [row.columns for row in islice(inputs.rows(batch_file.NAMES), _FORMAT_ROWS)]
        known = [columns for columns in rows if columns is not None]
        return bool(known) and all(map(batch_file.is_request, known))

    def take_batch(self, inputs: Inputs, endpoint: Endpoint) -> str:
        """Writes the answers of `--from-batch` into the journal; the ID of their run, "" when there are none.

        Raises:
            JobError: A file is no output of a batch, or names none of the rows.
        """
        job, run = self.job, secrets.token_hex(6)
        plan = Plan(job, settings_of(job, endpoint.name), inputs)
        taken, others = batch_file.take_answers(job, plan, inputs, self.folder, run)
        if taken:
            answers = counted(taken, "answer is", "answers are")
            other = f", {others:,} of which name another model" if others else ""
            self.say(f"{answers} taken from {', '.join(job.from_batch)}{other}.")
        return run if taken else ""

    def keep_output(self) -> None:
        """Keeps a copy of the present output, as it may hold answers that the journal lost."""
        if (path := keep_output(self.output, self.folder)) is not None:
            self.say(f"The output as it is stays in {path}.")


def touched(inputs: Inputs, manifest: Manifest) -> str | None:
    """Which input file, or "A picture", changed since the run began; None for nothing."""
    if (name := inputs.touched()) is not None:
        return name
    known = manifest.epochs[-1].pictures
    if known is None or known.digest == _DRAWN:
        return None
    same = pictures_of(inputs, known.rows, lambda: None) == known.digest
    return None if same else "A picture"


def rooted(job: Job) -> Job:
    """The job with absolute paths where files are opened more than once: a program may change its folder."""

    def absolute(path: str | None) -> str | None:
        return path if path is None or object_store.is_object(path) else os.path.abspath(path)

    def at_file(text: str | None) -> str | None:
        return f"@{os.path.abspath(text[1:])}" if text is not None and text[:1] == "@" else text

    inline = (job.schema or "{").lstrip().startswith("{")
    return replace(
        job,
        prompt=at_file(job.prompt),
        system=at_file(job.system),
        schema=job.schema if inline else absolute(job.schema),
        images=absolute(job.images),
    )
