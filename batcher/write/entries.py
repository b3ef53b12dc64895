"""The entries of a whole journal: all of them, or those of the present rows. Touches: files (reads)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from batcher.write import sidecar
from batcher.write.index import Segment
from batcher.write.lines import segments
from batcher.write.moved import Moved

__all__ = ["load_all", "load_present", "present_entries", "written_by"]


def load_all(folder: Path, *, keep: bool = False) -> Iterator[Segment]:
    """All segments in order, one at a time, as there may be gigabytes of them.

    Args:
        folder: The run folder.
        keep: As in `sidecar.load`.
    """
    for number, path in segments(folder):
        yield sidecar.load(path, number, keep=keep)


def load_present(folder: Path, runs: Collection[str], *, keep: bool = False) -> Iterator[Segment]:
    """The same, with only those entries that are known to be of the present rows.

    Args:
        folder: The run folder.
        runs: IDs of the runs that asked for the present rows.
        keep: As in `sidecar.load`.
    """
    moved = Moved.load(folder, runs)
    for segment in load_all(folder, keep=keep):
        segment.entries = present_entries(segment, runs, moved)
        yield segment


def present_entries(segment: Segment, runs: Collection[str], moved: Moved) -> Any:
    """Entries that moved to a present row, then entries of lines that one of the runs wrote."""
    own, there = written_by(segment, runs), moved.of(segment)[1]
    entries = segment.entries if own.all() else segment.entries[own]
    return np.concatenate([there, entries]) if len(there) else entries


def written_by(segment: Segment, runs: Collection[str]) -> Any:
    """For each entry, whether one of these runs wrote its line."""
    return np.array([run in runs for run in segment.runs], np.bool_)[segment.entries["run"]]
