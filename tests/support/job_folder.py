"""A job with its input and run folder, without an engine: what was answered is written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from batcher.job.job import Job
from batcher.plan.requests import Plan
from batcher.plan.resume import Resumed, resume
from batcher.plan.settings import settings_of
from batcher.read.files import expand
from batcher.read.inputs import Inputs
from batcher.records import Outcome, Result
from batcher.write.lines import line_of
from tests.support.program import write_jsonl

URL = "https://gateway.test/v1/chat/completions"


class JobFolder:
    """A job of the model m on `in.jsonl`.

    Attributes:
        said: What a person was told.
        inputs: The rows, as the last `resume` read them.
        plan: What is still to be sent, as of that.
    """

    def __init__(self, at: Path, rows: list[dict[str, Any]], **asked: Any) -> None:
        self.at = at
        self.output = at / "out.jsonl"
        self.folder = at / "out.jsonl.run"
        self.folder.mkdir(mode=0o700)
        self.asked = {"models": ["m"], "output": str(self.output), **asked}
        self.said: list[str] = []
        self.write(rows)

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Writes the input anew."""
        write_jsonl(self.at / "in.jsonl", rows)

    def job(self, **more: Any) -> Job:
        """What is asked."""
        return Job.of(**{**self.asked, **more})

    def resume(self, **more: Any) -> Resumed:
        """Where a run begins, recorded as a run does before it sends."""
        self.said.clear()
        job = self.job(**more)
        settings = settings_of(job, URL)
        inputs = self.inputs = Inputs(expand([str(self.at / "in.jsonl")]), job.limit, job.drawn)
        found = resume(job, settings, self.folder, inputs, self.said.append, lambda: None)
        epoch = found.manifest.epochs[-1]
        inputs.files = [file.with_digest(lambda: None) for file in inputs.files]
        epoch.inputs = msgspec.to_builtins(inputs.pins)
        epoch.rows = inputs.count()
        found.manifest.save(self.folder)
        if found.moved is not None:
            found.moved.save(self.folder)
        winners = found.winners
        self.plan = Plan(job, settings, inputs, winners, stopped=found.stopped)
        return found

    def pending(self, **more: Any) -> list[tuple[int, int]]:
        """(row, slot) of all that a run would send."""
        self.resume(**more)
        return self.left()

    def left(self) -> list[tuple[int, int]]:
        """The same, as of the last `resume`."""
        return [
            (of.prompt.row, s) for batch in self.plan.batches() for of in batch for s in of.slots
        ]

    def results(self, answers: Mapping[tuple[int, int], Outcome], **more: Any) -> list[Result]:
        """Results of the plan's requests, by row and slot."""
        made, plan = [], Plan(self.job(), settings_of(self.job(), URL), self.inputs)
        for row in self.inputs.rows():
            for slot, model in enumerate(plan.slots):
                if (status := answers.get((row.position, slot))) is None:
                    continue
                asked = plan.request(plan.sampled(plan.prompt(row), slot), model)
                known = {
                    name: getattr(asked, name)
                    for name in ("row", "model", "sample", "key", "custom_id")
                }
                told = {"attempts": 1, "content": f"{model} to {row.columns}", "created_at": 1000}
                made.append(Result(**{**known, **told, "status": status, **more}))
        return made

    def keep(self, run: Resumed, results: list[Result], number: int = 1) -> Path:
        """Writes a segment of the journal."""
        path = self.folder / f"journal-{number:06}.jsonl"
        lines = (line_of(msgspec.json.encode(result), run.run) for result in results)
        path.write_bytes(b"".join(lines))
        return path

    def end(self, run: Resumed) -> None:
        """Records that a run ended."""
        run.manifest.saw([int(p.stem[-6:]) for p in sorted(self.folder.glob("journal-*.jsonl"))])
        run.manifest.end(run.run, wrote=True)
        run.manifest.save(self.folder)

    def answered(self, *rows: int, number: int = 1, ended: bool = True, **more: Any) -> Resumed:
        """A run that answered these rows in all slots."""
        run = self.resume()
        slots = range(len(self.plan.slots))
        self.keep(
            run, self.results({(r, s): Outcome.OK for r in rows for s in slots}, **more), number
        )
        if ended:
            self.end(run)
        return run
