"""Which results of earlier runs still count. Touches: files (reads)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from batcher.job.job import Job
from batcher.plan.answer_cache import AnswerCache, claim
from batcher.plan.changes import at_stake, changes, check_models, is_kept
from batcher.plan.preflight import pictures_of
from batcher.plan.requests import Plan
from batcher.plan.settings import Settings
from batcher.plan.unplaced import Journal, at_last_places, free_entries, unplaced
from batcher.read import object_store
from batcher.read.files import Pin, grown, same_files
from batcher.read.inputs import Inputs
from batcher.write import index
from batcher.write.entries import present_entries, written_by
from batcher.write.latest import LatestResults, places_of
from batcher.write.lines import segments
from batcher.write.manifest import Asked, Epoch, Manifest, now
from batcher.write.moved import Moved
from batcher.write.names import journal_file

__all__ = ["Resumed", "resume"]


@dataclass(frozen=True)
class Resumed:
    """Where a run begins.

    Attributes:
        manifest: Its last epoch is the present one; not saved yet.
        winners: What is answered, by position.
        run: ID of the run that begins.
        moved: Which answers belong to other rows than before; None when that is saved already.
        damaged: Whether answers are gone from the journal.
        stopped: (segment, offset, length) of answers that a stopped run was about to have repaired,
            by row, model and sample.
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
    """Finds what is answered: by position what runs of the present epoch wrote, all else by key.

    Args:
        job: The job.
        settings: Its settings.
        folder: The run folder, locked.
        inputs: The input as it is now; its files get the digests that are known.
        say: Called with sentences for the user.
        go_on: Called now and then; what it raises ends the work.
        taken: ID of the run under which the answers of a batch were just written, for these rows.

    Raises:
        SettingsChanged: Paid answers do not match any more, and `job.changed` does not say what to do.
        JobError: `run.json` is damaged or of a newer version.
    """
    begun = _Resume(job, settings, folder, inputs, say, go_on)
    manifest, epoch = begun.manifest, begun.enter_epoch()
    if taken:
        epoch.open.append(taken)
    begun.decide_stale(epoch)
    found = begun.find_by_position(epoch)
    damaged = begun.report_damage()
    begun.settle_models(found.dropped)
    begun.report_unknown_runs(found.runs)
    run = manifest.begin()
    moved = begun.find_by_key(epoch, run, found) if found.unplaced else None
    return Resumed(manifest, found.latest, run, moved, damaged, found.stopped)


class _Found(NamedTuple):
    """What is in the journal.

    Attributes:
        latest: What is answered, by position.
        moved: Which answers belong to other rows than they did when they were written.
        stopped: As in `Resumed`.
        dropped: How many answers there are of models that are not asked any more.
        runs: IDs of all runs that wrote something.
        unplaced: How many answers are of no row that is known.
    """

    latest: LatestResults
    moved: Moved
    stopped: dict[tuple[int, str, int], tuple[int, int, int]]
    dropped: dict[str, int]
    runs: set[str]
    unplaced: int


class _Resume:
    """The steps of `resume`, in their order.

    Attributes:
        manifest: What `run.json` holds; the steps change it.
    """

    def __init__(
        self,
        job: Job,
        settings: Settings,
        folder: Path,
        inputs: Inputs,
        say: Callable[[str], None],
        go_on: Callable[[], None],
    ) -> None:
        self._job, self._settings, self._folder = job, settings, folder
        self._inputs, self._say, self._go_on = inputs, say, go_on
        manifest = None if job.overwrite else Manifest.load(folder)
        self.manifest = manifest or Manifest(output=Path(job.output).name)
        if object_store.is_object(job.output):
            self.manifest.uploaded = job.output
        files = [] if job.overwrite else segments(folder)
        self._journal = Journal(files, go_on, keep=not job.dry_run)
        self._moved = Moved() if job.overwrite else Moved.load(folder)
        self._last = self.manifest.epochs[-1] if self.manifest.epochs else None
        self._same = self._last is not None and self._last.settings == settings
        if self._last is not None and self._last.accepts and job.changed == "resend":
            self._same = False  # Answers that were kept once are to be sent after all.
        if self.manifest.edited:
            say(
                f"{folder / 'run.json'} is not as it was written. Answers are found by what was sent, and "
                "changed settings are not noticed."
            )

    def enter_epoch(self) -> Epoch:
        """Continues the last epoch where its rows and settings are the present ones, else begins one."""
        last, manifest, inputs = self._last, self.manifest, self._inputs
        before = [] if last is None else msgspec.convert(last.inputs, list[Pin])
        grew = None if last is None else grown(before, inputs.files, self._go_on)
        pins = inputs.pins
        if grew is not None:  # What is the same need not be hashed again.
            for n, (old, pin) in enumerate(zip(before, pins, strict=False)):
                if pin.size == old.size:
                    pins[n] = msgspec.structs.replace(pin, digest=old.digest)
        inputs.set_pins(pins)
        if last is not None and grew is not None and self._images_changed(last):
            grew = None
        # With fewer samples there are spare answers, which only a search by key gives to other rows.
        spare = manifest.asked.samples > self._job.samples
        if last is None or not self._same or grew is None or spare:
            epoch = Epoch(
                inputs=msgspec.to_builtins(pins), settings=dict(self._settings), started=now()
            )
            if last is not None and self._same:
                epoch.accepts = last.accepts
                epoch.gives_up, epoch.gave_up = last.gives_up, last.gave_up
            manifest.epochs.append(epoch)
            return epoch
        # What a killed run read is only known where no file was touched since.
        if same_files(before, pins):
            last.runs += last.open
        elif last.open:
            self._say(
                "The input was touched since a run that did not end; answers are found by what was sent."
            )
            manifest.strange += last.open
        last.open = []
        last.inputs = msgspec.to_builtins(pins)
        if grew:
            last.rows = None
        return last

    def _images_changed(self, last: Epoch) -> bool:
        """Whether the same rows show other images now."""
        known = last.pictures
        return (
            known is not None
            and pictures_of(self._inputs, known.rows, self._go_on) != known.digest
        )

    def decide_stale(self, epoch: Epoch) -> None:
        """Asks what becomes of answers to requests of earlier settings, or records what was decided."""
        job, last = self._job, self._last
        if last is None or not (settings := at_stake(job, last, same=self._same)):
            return
        kept = False
        cache = AnswerCache(segment.entries for segment in self._journal.segments())
        plan = Plan(job, self._settings, self._inputs)
        if stale := claim(plan, cache, settings, self._go_on):
            since = "an earlier run" if self._same else "the last run"
            what = changes(settings[0], self._settings)
            kept = is_kept(job, what, since, stale, self._say)
        if kept:
            epoch.accepts = (
                settings  # Found by key, so that an exact answer goes before a kept one.
            )
        limit = job.limit if job.sample is None else 0
        epoch.gives_up, epoch.gave_up = ([], None) if kept else (settings, limit)

    def find_by_position(self, epoch: Epoch) -> _Found:
        """Reads the results that the epoch's runs wrote, and those that were matched to its rows."""
        job, runs = self._job, self.manifest.runs
        latest = LatestResults(
            len(job.models or ("",)),
            self._folder,
            epoch.rows or 0,
            samples=job.samples,
            places=False,
        )
        moved = self._moved if self._moved.run in runs else Moved()
        gone: dict[str, list[Any]] = {
            model: [] for model in self.manifest.asked.models if model not in job.models
        }
        stopped: dict[tuple[int, str, int], tuple[int, int, int]] = {}
        seen: set[str] = set()
        left_over = 0
        for segment in self._journal.segments():  # One at a time: there may be gigabytes of them.
            for entry in index.stopped(segment.entries[written_by(segment, runs)]):
                model = segment.models[int(entry["model"])]
                request = int(entry["row"]), model, int(entry["sample"])
                place = int(entry["segment"]), int(entry["offset"]), int(entry["length"])
                stopped[request] = place
            known = index.last_words(present_entries(segment, runs, moved))
            latest.add(known, places_of(segment.models, job.models))
            left = segment.entries["outcome"][unplaced(segment, runs, moved)]
            left_over += int(np.count_nonzero(index.ANSWERED[left]))
            seen.update(segment.runs)
            for number, model in enumerate(segment.models):
                if model in gone:
                    entries = segment.entries[segment.entries["model"] == number]
                    gone[model].append(entries["row"][index.ANSWERED[entries["outcome"]]])
        dropped = {
            model: len(np.unique(np.concatenate(rows))) for model, rows in gone.items() if rows
        }
        return _Found(latest, moved, stopped, dropped, seen, left_over)

    def report_damage(self) -> bool:
        """Says once what is wrong with the journal; returns whether there is anything."""
        journal, manifest, say = self._journal, self.manifest, self._say
        missing = manifest.gone(journal.numbers)
        manifest.missing += missing
        manifest.saw(journal.numbers)
        for name in [journal_file(number) for number in missing]:
            say(f"{name} is gone; the answers in it are lost, and their rows are sent again.")
        for name in journal.cut:
            say(
                f"{name} became shorter; the answers cut off are lost, and their rows are sent again."
            )
        if journal.bad:
            places = "one place" if journal.bad == 1 else f"{journal.bad:,} places"
            say(f"The journal is torn or damaged in {places}; the answers there are sent again.")
        return bool(missing or journal.cut or journal.bad)

    def settle_models(self, dropped: Mapping[str, int]) -> None:
        """Checks that answers which leave the output may do so, and records what is asked now."""
        job, manifest = self._job, self.manifest
        check_models(job, manifest.asked, dropped, self._say)
        if job.keep_raw and not manifest.asked.keep_raw and self._journal.numbers:
            self._say(
                "--keep-raw: answers of earlier runs were kept without it; their response is null."
            )
        manifest.asked = Asked(
            models=job.models,
            route=job.route,
            limit=job.limit,
            drawn=job.drawn,
            samples=job.samples,
            keep_raw=job.keep_raw,
            parsed={"type": "string"} if job.labels is not None else job.expected[0],
        )

    def report_unknown_runs(self, seen: set[str]) -> None:
        """Says once that the journal holds runs which `run.json` does not know."""
        manifest = self.manifest
        known = {run for epoch in manifest.epochs for run in (*epoch.runs, *epoch.open)}
        unknown = seen - {"", *manifest.strange, *known}
        if unknown and not manifest.edited:
            self._say(
                "The journal holds answers of runs that run.json does not know (is it an older copy?); they are "
                "found by what was sent."
            )
        manifest.strange += sorted(unknown)

    def find_by_key(self, epoch: Epoch, run: str, found: _Found) -> Moved | None:
        """Gives answers of unknown rows to present rows that ask the same; None where there are none."""
        runs, moved, inputs = self.manifest.runs, found.moved, self._inputs
        plan = Plan(self._job, self._settings, inputs, found.latest)
        if inputs.whole and epoch.rows and plan.all_settled(epoch.rows):
            return None
        cache = AnswerCache(
            at_last_places(segment, self._moved)[free]
            for segment, free in free_entries(self._journal, runs, moved)
        )
        claim(plan, cache, epoch.accepts, self._go_on)
        if not len(taken := cache.taken()):
            return None
        del cache
        matched = moved.more(run, self._journal.segments(), taken)
        for segment in self._journal.segments():
            there = matched.of(segment)[1]
            found.latest.add(there, places_of(segment.models, self._job.models))
        return matched
