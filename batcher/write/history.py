"""All that the journal says of one row: every result, of every run. Touches: files (reads)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import msgspec
import numpy as np

from batcher.read.files import InputFile, Pin
from batcher.read.inputs import Inputs
from batcher.records import Result
from batcher.write import index
from batcher.write.manifest import Manifest
from batcher.write.moved import Moved
from batcher.write.names import journal_file
from batcher.write.segment import placed, segments

__all__ = ["results_of"]

_decode = msgspec.json.Decoder(Result).decode


def results_of(folder: Path, name: str) -> Iterator[Result]:
    """Results of the row with this position or `custom_id`, oldest first.

    May be called beside a running process; nothing is written.

    Args:
        folder: The run folder.
        name: Position in decimal, or `custom_id`.
    """
    rows = {int(name)} if name.isascii() and name.isdecimal() else set()
    manifest = Manifest.load(folder)
    runs = _runs(manifest)
    rows.update(_named(folder, runs, name))
    moved = Moved.load(folder, runs).parts
    if manifest is not None and moved:  # Lines of those that moved carry old names.
        rows.update(_named_now(folder, manifest, name))
    told: set[tuple[int, int]] = (
        set()
    )  # An answer of other settings may have moved to its own row.
    for segment in placed(folder, runs):
        entries = segment.entries
        for entry in entries[np.isin(entries["row"], list(rows))]:
            at = int(entry["segment"]), int(entry["offset"]), int(entry["length"])
            if at[:2] not in told:
                told.add(at[:2])
                for result in _at(folder, *at):
                    if bytes.fromhex(result.key)[:8] == entry["key_high"].tobytes():
                        yield _of_row(result, int(entry["row"]), int(entry["sample"]), name)


def _named(folder: Path, runs: set[str], name: str) -> Iterator[int]:
    """Rows of this name, by the lines of runs that asked for the present rows."""
    wanted = b'"custom_id":' + msgspec.json.encode(name)
    for _number, path in segments(folder):
        with path.open("rb") as file:
            for line in file:
                if wanted in line and index.checked(text := line.rstrip(b"\n")):
                    found = _decode(text)
                    if found.custom_id == name and index.run_of(text) in runs:
                        yield found.row


def _named_now(folder: Path, manifest: Manifest, name: str) -> Iterator[int]:
    """Rows of this name, by the input, where it is still that of the last run."""
    pins = msgspec.convert(manifest.epochs[-1].inputs, list[Pin])
    inputs = Inputs([InputFile.of_pin(pin, folder) for pin in pins])
    if inputs.changed() is None:
        for row in inputs.rows(frozenset({"custom_id"})):
            if row.columns is not None and str(row.columns.get("custom_id")) == name:
                yield row.position


def _of_row(result: Result, row: int, sample: int, name: str) -> Result:
    """The result at its present place: one kept from an earlier input carries its old names."""
    own = result.custom_id != str(result.row)
    custom_id = name if not name.isdecimal() else result.custom_id if own else str(row)
    return msgspec.structs.replace(result, row=row, sample=sample, custom_id=custom_id)


def _runs(manifest: Manifest | None) -> set[str]:
    """IDs of the runs that asked for the present rows, whatever their settings were."""
    epochs = manifest.epochs if manifest else []
    same = takewhile(lambda epoch: epoch.inputs == epochs[-1].inputs, reversed(epochs))
    return {run for epoch in same for run in (*epoch.runs, *epoch.open)}


def _at(folder: Path, segment: int, offset: int, length: int) -> Iterator[Result]:
    file = os.open(folder / journal_file(segment), os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield from _result(os.pread(file, length, offset))
    finally:
        os.close(file)


def _result(line: bytes) -> Iterator[Result]:
    if index.checked(line):
        yield _decode(line)
