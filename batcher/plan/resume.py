"""What earlier runs of an output left, and which of it still counts. Touches: files (reads)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from batcher.errors import JobError
from batcher.job import Job
from batcher.plan.earlier import Earlier
from batcher.plan.requests import Plan, Settings
from batcher.read.files import Pin, grown
from batcher.read.inputs import Inputs
from batcher.write import index
from batcher.write.manifest import Asked, Epoch, Manifest, now
from batcher.write.segment import segments
from batcher.write.winners import ANSWERED, Winners, slots_of

__all__ = ["Resumed", "SettingsChanged", "resume"]


class SettingsChanged(JobError):
    """Settings changed so that answers already paid for match no longer; ask what to do."""


@dataclass(frozen=True)
class Resumed:
    """Where a run begins.

    Attributes:
        manifest: With the present epoch at its end; not saved yet.
        winners: What holds by position.
        earlier: What may be found by key; None when there is nothing.
    """

    manifest: Manifest
    winners: Winners
    earlier: Earlier | None


def resume(
    job: Job,
    settings: Settings,
    folder: Path,
    inputs: Inputs,
    say: Callable[[str], None],
    go_on: Callable[[], None],
) -> Resumed:
    """What is answered already: by position within the epoch, by key across epochs.

    Args:
        job: What is asked now.
        settings: Its settings.
        folder: The run folder, locked.
        inputs: What is to be read now.
        say: Told what a person should know, in sentences.
        go_on: Called now and then; what it raises ends the work.

    Raises:
        SettingsChanged: Paid answers match no longer, and `job.changed` does not say what to do.
        JobError: `run.json` is damaged or of a newer version.
    """
    manifest = None if job.overwrite else Manifest.load(folder)
    manifest = manifest or Manifest(output=Path(job.output).name)
    files = [] if job.overwrite else segments(folder)
    last = manifest.epochs[-1] if manifest.epochs else None
    pins = inputs.pins
    old = [] if last is None else msgspec.convert(last.inputs, list[Pin])
    grew = None if last is None else grown(old, inputs.files, go_on)
    if grew is not None:  # What is the same need not be hashed again.
        for n, (before, pin) in enumerate(zip(old, pins, strict=False)):
            if pin.size == before.size:
                pins[n] = msgspec.structs.replace(pin, digest=before.digest)
    same = last is not None and last.settings == settings
    if last is not None and last.accepts and job.changed == "resend":
        same = False  # What was kept once is to be sent after all.
    if last is not None and same and grew is not None:
        epoch = last
        epoch.inputs = msgspec.to_builtins(pins)
        if grew:
            epoch.rows = None
    else:
        number = max((number for number, _ in files), default=0) + 1
        epoch = Epoch(
            inputs=msgspec.to_builtins(pins),
            settings=dict(settings),
            first_segment=number,
            started=now(),
            accepts=last.accepts if last is not None and same else [],
        )
        manifest.epochs.append(epoch)
    if last is not None and not same:
        accepted = [last.settings, *last.accepts]
        every = []
        for number, path in files:
            go_on()
            every.append(index.load(path, number))
        lost = _stale(Plan(job, settings, inputs, None, Earlier(every), accepted), go_on)
        if lost:
            kept = _decided(job, _changes(last.settings, settings), lost, say)
            if kept:
                epoch.accepts, epoch.keeps = accepted, grew is not None
    winners = Winners(len(job.models or ("",)), folder, epoch.rows or 0, places=False)
    first = manifest.trusted_from
    bad = 0
    dropped: Counter[str] = Counter()
    for number, path in files:  # One at a time: there may be gigabytes of them.
        go_on()
        segment = index.load(path, number)
        bad += segment.bad
        slots = slots_of(segment.models, job.models)
        if number >= first:
            winners.add(segment.entries, slots)
        for model in np.flatnonzero(slots < 0).tolist():
            of = segment.entries[segment.entries["model"] == model]
            dropped[segment.models[model]] += int(ANSWERED[of["outcome"]].sum())
    if bad:
        say(f"{bad} torn or damaged journal lines are left out; their rows are sent again.")
    _settle_models(job, manifest.asked, dropped, say)
    manifest.asked = Asked(
        models=job.models, route=job.route, limit=job.limit, keep_raw=job.keep_raw
    )
    earlier = None
    if any(number < first for number, _ in files):
        earlier = Earlier(
            [index.load(path, number) for number, path in files if number < first],
            [index.load(path, number) for number, path in files if number >= first],
        )
    return Resumed(manifest, winners, earlier if earlier is None or len(earlier) else None)


def _stale(plan: Plan, go_on: Callable[[], None]) -> int:
    """How many answers are to requests that the settings before would have sent, and these not."""
    stale = 0
    for batch in plan.batches():
        go_on()
        stale += sum(todo.stale for todo in batch)
    return stale


def _changes(before: Settings, after: Settings) -> str:
    names = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    told = sorted(names - {"--param"})
    if "--param" in names:
        old, new = before.get("--param") or {}, after.get("--param") or {}
        fields = sorted(n for n in {*old, *new} if old.get(n, ...) != new.get(n, ...))
        told.append(f"--param {'/'.join(fields)}")
    return ", ".join(told)


def _decided(job: Job, changes: str, lost: int, say: Callable[[str], None]) -> bool:
    """Whether the old answers are kept."""
    answers = "1 answer paid for matches" if lost == 1 else f"{lost:,} answers paid for match"
    if not changes:
        say(f"{lost:,} kept answers are let go; those rows are sent again.")
        return False
    what = f"{changes} changed since the last run: {answers} no longer"
    if job.changed is None:
        raise SettingsChanged(
            f"{what}. Send those rows again with --changed resend, keep their old answers with "
            "--changed keep, or use another --output."
        )
    kept = job.changed == "keep"
    say(f"{what}; {'they are kept' if kept else 'those rows are sent again'}.")
    return kept


def _settle_models(
    job: Job, asked: Asked, dropped: Counter[str], say: Callable[[str], None]
) -> None:
    """Models that are asked no more: their answers leave the output, which must be meant."""
    gone = {model: dropped[model] for model in asked.models if dropped[model]}
    if not gone or not job.models:
        return
    told = ", ".join(f"{n:,} of {model}" for model, n in gone.items())
    new = [model for model in job.models if model not in asked.models]
    if not new or job.changed == "resend":
        say(f"Answers of models that are not asked any more leave the output: {told}.")
        return
    what = (
        f"--model changed since the last run: the answers paid for leave the output ({told}), and "
        f"all rows are sent to {', '.join(new)}"
    )
    both = " ".join(f"-m {model}" for model in (*gone, *job.models))
    if job.changed == "keep":
        raise JobError(f"{what}; to keep the old answers, ask for them as well: {both}.")
    raise SettingsChanged(
        f"{what}. Go on with --changed resend, keep both with {both}, or use another --output."
    )
