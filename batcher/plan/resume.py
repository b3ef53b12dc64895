"""What earlier runs of an output left, and which of it still counts. Touches: files (reads)."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from batcher.errors import JobError
from batcher.job.job import Job
from batcher.plan.preflight import pictures_of
from batcher.plan.previous import AnswerCache
from batcher.plan.requests import Plan, Settings
from batcher.read import object_store
from batcher.read.files import Pin, grown, same_files
from batcher.read.inputs import Inputs
from batcher.write import index, sidecar
from batcher.write.entries import present_entries, written_by
from batcher.write.latest import LatestResults, places_of
from batcher.write.lines import segments
from batcher.write.manifest import Asked, Epoch, Manifest, now
from batcher.write.moved import Moved
from batcher.write.names import journal_file

__all__ = ["Resumed", "SettingsChanged", "resume"]


class SettingsChanged(JobError):
    """Settings changed so that answers already paid for match no longer; ask what to do."""


@dataclass(frozen=True)
class Resumed:
    """Where a run begins.

    Attributes:
        manifest: With the present epoch at its end; not saved yet.
        winners: What is answered, by position.
        run: ID of the run that begins.
        moved: Which answers belong to other rows than before; None when that is kept already.
        damaged: Whether answers that there were are gone from the journal.
        stopped: Where the last answer stands (segment, offset, length) that was to be sent back when
            a run was stopped, by row, model and sample.
    """

    manifest: Manifest
    winners: LatestResults
    run: str
    moved: Moved | None
    damaged: bool
    stopped: dict[tuple[int, str, int], tuple[int, int, int]]


def resume(
    job: Job,
    settings: Settings,
    folder: Path,
    inputs: Inputs,
    say: Callable[[str], None],
    go_on: Callable[[], None],
    taken: str = "",
) -> Resumed:
    """What is answered already: by position what runs of the epoch wrote, all else by key.

    Args:
        job: What is asked now.
        settings: Its settings.
        folder: The run folder, locked.
        inputs: What is to be read now.
        say: Told what a person should know, in sentences.
        go_on: Called now and then; what it raises ends the work.
        taken: ID that the answers of a batch were just written under, for the rows of these inputs.

    Raises:
        SettingsChanged: Paid answers match no longer, and `job.changed` does not say what to do.
        JobError: `run.json` is damaged or of a newer version.
    """
    manifest = None if job.overwrite else Manifest.load(folder)
    manifest = manifest or Manifest(output=Path(job.output).name)
    if object_store.is_object(job.output):
        manifest.uploaded = job.output
    files = [] if job.overwrite else segments(folder)
    read = _Reader(files, go_on, keep=not job.dry_run)
    before = Moved() if job.overwrite else Moved.load(folder)
    if manifest.edited:
        say(
            f"{folder / 'run.json'} is not as it was written. Answers are found by what was sent, and "
            "changed settings are not noticed."
        )
    last = manifest.epochs[-1] if manifest.epochs else None
    pins = inputs.pins
    old = [] if last is None else msgspec.convert(last.inputs, list[Pin])
    grew = None if last is None else grown(old, inputs.files, go_on)
    if grew is not None:  # What is the same need not be hashed again.
        for n, (was, pin) in enumerate(zip(old, pins, strict=False)):
            if pin.size == was.size:
                pins[n] = msgspec.structs.replace(pin, digest=was.digest)
    inputs.files = [replace(file, pin=pin) for file, pin in zip(inputs.files, pins, strict=True)]
    if grew is not None and last is not None and _other_pictures(last, inputs, go_on):
        grew = None
    same = last is not None and last.settings == settings
    if last is not None and last.accepts and job.changed == "resend":
        same = False  # What was kept once is to be sent after all.
    # With fewer samples there are answers to spare, which only a search by key gives away.
    spare = manifest.asked.samples > job.samples
    if last is not None and same and grew is not None and not spare:
        epoch = last
        # Of a run that was killed it is known what it read only where no file was touched since.
        if same_files(old, pins):
            epoch.runs += epoch.open
        elif epoch.open:
            say(
                "The input was touched since a run that did not end; answers are found by what was sent."
            )
            manifest.strange += epoch.open
        epoch.open = []
        epoch.inputs = msgspec.to_builtins(pins)
        if grew:
            epoch.rows = None
    else:
        epoch = Epoch(
            inputs=msgspec.to_builtins(pins),
            settings=dict(settings),
            started=now(),
            accepts=last.accepts if last is not None and same else [],
            gives_up=last.gives_up if last is not None and same else [],
            gave_up=last.gave_up if last is not None and same else None,
        )
        manifest.epochs.append(epoch)
    if taken:
        epoch.open.append(taken)
    if last is not None and (found := _at_stake(job, last, same=same)):
        kept = False
        every = AnswerCache(segment.entries for segment in read.all())
        if lost := _stale(Plan(job, settings, inputs, None, every, found), go_on):
            since = "an earlier run" if same else "the last run"
            kept = _decided(job, _changes(found[0], settings), since, lost, say)
        if kept:
            epoch.accepts = found  # Found by key, so that an exact answer goes before a kept one.
        del every
        told_of = job.limit if job.sample is None else 0
        epoch.gives_up, epoch.gave_up = ([], None) if kept else (found, told_of)
    models = len(job.models or ("",))
    winners = LatestResults(models, folder, epoch.rows or 0, samples=job.samples, places=False)
    runs = manifest.runs
    moved = before if before.run in runs else Moved()
    gone: dict[str, list[Any]] = {
        model: [] for model in manifest.asked.models if model not in job.models
    }
    stopped: dict[tuple[int, str, int], tuple[int, int, int]] = {}
    strange: set[str] = set()
    unplaced = 0
    for segment in read.all():  # One at a time: there may be gigabytes of them.
        for entry in index.stopped(segment.entries[written_by(segment, runs)]):
            model = segment.models[int(entry["model"])]
            of = int(entry["row"]), model, int(entry["sample"])
            stopped[of] = int(entry["segment"]), int(entry["offset"]), int(entry["length"])
        known = index.last_words(present_entries(segment, runs, moved))
        winners.add(known, places_of(segment.models, job.models))
        left = segment.entries["outcome"][_unplaced(segment, runs, moved)]
        unplaced += int(np.count_nonzero(index.ANSWERED[left]))
        strange.update(segment.runs)
        for place, model in enumerate(segment.models):
            if model in gone:
                of = segment.entries[segment.entries["model"] == place]
                gone[model].append(of["row"][index.ANSWERED[of["outcome"]]])
    damaged = _tell_damage(read, manifest, say)
    dropped = {model: len(np.unique(np.concatenate(of))) for model, of in gone.items() if of}
    _settle_models(job, manifest.asked, dropped, say)
    if job.keep_raw and not manifest.asked.keep_raw and read.numbers:
        say("--keep-raw: answers of earlier runs were kept without it; their response is null.")
    manifest.asked = Asked(
        models=job.models,
        route=job.route,
        limit=job.limit,
        drawn=job.drawn,
        samples=job.samples,
        keep_raw=job.keep_raw,
        parsed={"type": "string"} if job.labels is not None else job.expected[0],
    )
    strange -= {
        "",
        *manifest.strange,
        *(run for of in manifest.epochs for run in (*of.runs, *of.open)),
    }
    if strange and not manifest.edited:
        say(
            "The journal holds answers of runs that run.json does not know (is it an older copy?); they are "
            "found by what was sent."
        )
    manifest.strange += sorted(strange)
    run = manifest.begin()
    healed = None
    plan = Plan(job, settings, inputs, winners)
    if unplaced and not (inputs.whole and epoch.rows and plan.all_settled(epoch.rows)):
        earlier = AnswerCache(
            _at_last_places(segment, before)[free] for segment, free in _free(read, runs, moved)
        )
        for _batch in Plan(job, settings, inputs, winners, earlier, epoch.accepts).batches():
            go_on()
        if len(found := earlier.taken()):
            del earlier
            healed = moved.more(run, read.all(), found)
            for segment in read.all():
                there = healed.of(segment)[1]
                winners.add(there, places_of(segment.models, job.models))
    return Resumed(manifest, winners, run, healed, damaged, stopped)


def _unplaced(segment: index.Segment, runs: Collection[str], moved: Moved) -> Any:
    """Which entries are of no present row, as far as it is known."""
    return ~(moved.of(segment)[0] | written_by(segment, runs))


def _free(
    read: _Reader, runs: Collection[str], moved: Moved
) -> Iterator[tuple[index.Segment, Any]]:
    """Each segment, and which entries are of no present row; a line that was copied is one answer, and counts once."""
    lines = np.sort(np.concatenate([_lines(segment) for segment in read.all()]))
    copied = np.unique(lines[1:][lines[1:] == lines[:-1]])
    del lines
    used: set[int] = set()
    for segment in read.all() if len(copied) else ():
        placed = _lines(segment)[~_unplaced(segment, runs, moved)]
        used.update(placed[np.isin(placed, copied)].tolist())
    for segment in read.all():
        free = _unplaced(segment, runs, moved)
        if len(copied):
            of = _lines(segment)
            for at in np.flatnonzero(free & np.isin(of, copied)):
                free[at] = int(of[at]) not in used
                used.add(int(of[at]))
        yield segment, free


def _lines(segment: index.Segment) -> Any:
    """What each line is known by wherever it stands: run, row, sample, outcome and key."""
    entries = segment.entries
    runs = np.array([zlib.crc32(run.encode()) for run in segment.runs], "<u8")
    found = runs[entries["run"]]
    for name in ("row", "sample", "outcome"):
        found = found * np.uint64(0x9E3779B97F4A7C15) + entries[name].astype("<u8")
    return found ^ entries["key_high"]


def _at_last_places(segment: index.Segment, before: Moved) -> Any:
    """The entries, those that moved at the rows that they were of last: equal rows keep an answer each."""
    last, there = before.of(segment)
    entries = segment.entries.copy()
    entries[last] = there
    return entries


class _Reader:
    """Reads segments, as often as asked, and counts once what is wrong with them.

    Attributes:
        numbers: Of all segments.
        bad: Places in the journal that hold no line of ours.
        cut: Names of segments that became shorter.
    """

    def __init__(
        self, files: list[tuple[int, Path]], go_on: Callable[[], None], *, keep: bool
    ) -> None:
        self._go_on = go_on
        self._files, self._keep = files, keep
        self.numbers = [number for number, _path in files]
        self._heard: set[int] = set()
        self.bad = 0
        self.cut: list[str] = []

    def all(self) -> Iterator[index.Segment]:
        """The segments in order, one at a time."""
        for number, path in self._files:
            segment = sidecar.load(path, number, keep=self._keep)
            self._go_on()
            if number not in self._heard:  # Damage is told with the reading that leaves a sidecar.
                self._heard.add(number)
                self.bad += segment.bad
                self.cut += [path.name] if segment.cut else []
            yield segment


def _other_pictures(last: Epoch, inputs: Inputs, go_on: Callable[[], None]) -> bool:
    """Whether the same rows show other pictures now."""
    known = last.pictures
    return known is not None and pictures_of(inputs, known.rows, go_on) != known.digest


def _at_stake(job: Job, last: Epoch, *, same: bool) -> list[dict[str, Any]]:
    """Settings whose answers this run may give up without anybody having said so; newest first."""
    if not same:
        return [last.settings, *last.accepts, *last.gives_up]
    more = last.gave_up is not None and (job.limit is None or job.limit > last.gave_up)
    return last.gives_up if more else []


def _tell_damage(read: _Reader, manifest: Manifest, say: Callable[[str], None]) -> bool:
    """Says once what is wrong with the journal; whether there is anything."""
    missing = manifest.gone(read.numbers)
    manifest.missing += missing
    manifest.saw(read.numbers)
    for name in [journal_file(number) for number in missing]:
        say(f"{name} is gone; the answers in it are lost, and their rows are sent again.")
    for name in read.cut:
        say(f"{name} became shorter; the answers cut off are lost, and their rows are sent again.")
    if read.bad:
        places = "one place" if read.bad == 1 else f"{read.bad:,} places"
        say(f"The journal is torn or damaged in {places}; what stood there is sent again.")
    return bool(missing or read.cut or read.bad)


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


def _decided(job: Job, changes: str, since: str, lost: int, say: Callable[[str], None]) -> bool:
    """Whether the old answers are kept."""
    answers = "1 answer paid for matches" if lost == 1 else f"{lost:,} answers paid for match"
    if not changes:
        say(f"{lost:,} kept answers are let go; those rows are sent again.")
        return False
    what = f"{changes} changed since {since}: {answers} no longer"
    if job.changed is None:
        raise SettingsChanged(
            f"{what}. Send those rows again with --changed resend, keep their old answers with "
            "--changed keep, or use another --output."
        )
    kept = job.changed == "keep"
    say(f"{what}; {'they are kept' if kept else 'those rows are sent again'}.")
    return kept


def _settle_models(
    job: Job, asked: Asked, dropped: Mapping[str, int], say: Callable[[str], None]
) -> None:
    """Models that are asked no more: their answers leave the output, which must be meant."""
    gone = {model: n for model, n in dropped.items() if n}
    if asked.samples > job.samples:
        say(f"--samples {job.samples}: answers beyond that leave the output.")
    if asked.route == "each" != job.route and len({*asked.models} & {*job.models}) > 1:
        say(f"--route {job.route}: of a row with several answers one stays in the output.")
    if not gone or not job.models:
        return
    told = ", ".join(f"{n:,} of {model}" for model, n in gone.items())
    # With one answer a row, the rows of a model that is gone have none.
    one = not job.route == asked.route == "each"
    takers = [model for model in job.models if one or model not in asked.models]
    if not takers or job.changed == "resend":
        say(f"Answers of models that are not asked any more leave the output: {told}.")
        return
    what = (
        f"--model changed since the last run: the answers paid for leave the output ({told}), and "
        f"rows without an answer of {' or '.join(takers)} are sent there"
    )
    both = " ".join(f"-m {model}" for model in (*gone, *job.models))
    if job.changed == "keep":
        raise JobError(f"{what}; to keep the old answers, ask for them as well: {both}.")
    raise SettingsChanged(
        f"{what}. Go on with --changed resend, keep both with {both}, or use another --output."
    )
