"""The journal's answers whose rows are not known. Touches: files (reads)."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from batcher.write import index, sidecar
from batcher.write.entries import written_by
from batcher.write.moved import Moved

__all__ = ["Journal", "at_last_places", "free_entries", "unplaced"]


class Journal:
    """The segments, read as often as needed; what is wrong with them is counted once.

    Attributes:
        numbers: Of all segments.
        bad: How many places hold no valid line.
        cut: Names of segments that became shorter.
    """

    def __init__(
        self, files: list[tuple[int, Path]], go_on: Callable[[], None], *, keep: bool
    ) -> None:
        self._go_on = go_on
        self._files, self._keep = files, keep
        self.numbers = [number for number, _path in files]
        self._seen: set[int] = set()
        self.bad = 0
        self.cut: list[str] = []

    def segments(self) -> Iterator[index.Segment]:
        """Yields the segments in order, one at a time."""
        for number, path in self._files:
            segment = sidecar.load(path, number, keep=self._keep)
            self._go_on()
            if number not in self._seen:  # The first reading leaves a sidecar without the damage.
                self._seen.add(number)
                self.bad += segment.bad
                self.cut += [path.name] if segment.cut else []
            yield segment


def unplaced(segment: index.Segment, runs: Collection[str], moved: Moved) -> Any:
    """Which entries are of no row that is known."""
    return ~(moved.of(segment)[0] | written_by(segment, runs))


def free_entries(
    journal: Journal, runs: Collection[str], moved: Moved
) -> Iterator[tuple[index.Segment, Any]]:
    """Yields each segment, and which entries are of no row that is known; copies of a line count once."""
    lines = np.sort(np.concatenate([_lines(segment) for segment in journal.segments()]))
    copied = np.unique(lines[1:][lines[1:] == lines[:-1]])
    del lines
    used: set[int] = set()
    for segment in journal.segments() if len(copied) else ():
        placed = _lines(segment)[~unplaced(segment, runs, moved)]
        used.update(placed[np.isin(placed, copied)].tolist())
    for segment in journal.segments():
        free = unplaced(segment, runs, moved)
        if len(copied):
            lines = _lines(segment)
            for at in np.flatnonzero(free & np.isin(lines, copied)):
                free[at] = int(lines[at]) not in used
                used.add(int(lines[at]))
        yield segment, free


def _lines(segment: index.Segment) -> Any:
    """A hash of each line, the same wherever the line is: of its run, row, sample, outcome and key."""
    entries = segment.entries
    runs = np.array([zlib.crc32(run.encode()) for run in segment.runs], "<u8")
    found = runs[entries["run"]]
    for name in ("row", "sample", "outcome"):
        found = found * np.uint64(0x9E3779B97F4A7C15) + entries[name].astype("<u8")
    return found ^ entries["key_high"]


def at_last_places(segment: index.Segment, before: Moved) -> Any:
    """The entries at the rows that they were given last, so that each of equal rows keeps its answer."""
    last, there = before.of(segment)
    entries = segment.entries.copy()
    entries[last] = there
    return entries
