"""All results of one row, of every run. Touches: files (reads)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import msgspec
import numpy as np

from batcher.read.files import InputFile, Pin
from batcher.read.inputs import Inputs
from batcher.records import Result
from batcher.write.entries import load_present
from batcher.write.lines import LineReader, decode, run_of, sound_lines
from batcher.write.manifest import Manifest
from batcher.write.moved import Moved

__all__ = ["results_of"]


def results_of(folder: Path, name: str) -> Iterator[Result]:
    """Results of the row with this position or `custom_id`, oldest first.

    May be called while a run is at work; writes nothing.

    Args:
        folder: The run folder.
        name: Position in decimal, or `custom_id`.
    """
    rows = {int(name)} if name.isascii() and name.isdecimal() else set()
    manifest = Manifest.load(folder)
    runs = _runs(manifest)
    rows.update(_rows_by_line(folder, runs, name))
    moved = Moved.load(folder, runs).parts
    if manifest is not None and moved:  # The lines of answers that moved hold old names.
        rows.update(_rows_by_input(folder, manifest, name))
    # An answer of other settings may have moved to the row it already had: each line counts once.
    seen: set[tuple[int, int]] = set()
    with LineReader(folder) as reader:
        for segment in load_present(folder, runs):
            entries = segment.entries
            for entry in entries[np.isin(entries["row"], list(rows))]:
                place = int(entry["segment"]), int(entry["offset"])
                if place in seen:
                    continue
                seen.add(place)
                key = entry["key_high"].tobytes().hex().encode()
                result = reader.result(*place, int(entry["length"]), key)
                if result is not None:
                    yield _renamed(result, int(entry["row"]), int(entry["sample"]), name)


def _rows_by_line(folder: Path, runs: set[str], name: str) -> Iterator[int]:
    """Rows with this custom_id in lines of runs that asked for the present rows."""
    field = b'"custom_id":' + msgspec.json.encode(name)
    for line in sound_lines(folder):
        if field in line and run_of(line) in runs:
            result = decode(line)
            if result.custom_id == name:
                yield result.row


def _rows_by_input(folder: Path, manifest: Manifest, name: str) -> Iterator[int]:
    """Rows with this custom_id in the input, if that is still the one of the last run."""
    pins = msgspec.convert(manifest.epochs[-1].inputs, list[Pin])
    inputs = Inputs([InputFile.of_pin(pin, folder) for pin in pins])
    if inputs.changed() is None:
        for row in inputs.rows(frozenset({"custom_id"})):
            if row.columns is not None and str(row.columns.get("custom_id")) == name:
                yield row.position


def _renamed(result: Result, row: int, sample: int, name: str) -> Result:
    """The result with its present row and names: one kept from an earlier input holds its old ones."""
    own = result.custom_id != str(result.row)
    custom_id = name if not name.isdecimal() else result.custom_id if own else str(row)
    return msgspec.structs.replace(result, row=row, sample=sample, custom_id=custom_id)


def _runs(manifest: Manifest | None) -> set[str]:
    """IDs of the runs that asked for the present rows, with whatever settings."""
    epochs = manifest.epochs if manifest else []
    same = takewhile(lambda epoch: epoch.inputs == epochs[-1].inputs, reversed(epochs))
    return {run for epoch in same for run in (*epoch.runs, *epoch.open)}
