"""All that the journal says of one row: every result, of every run. Touches: files (reads)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np

from batcher.records import Result
from batcher.write import index
from batcher.write.manifest import Manifest
from batcher.write.segment import loaded, segments

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
    wanted = b'"custom_id":' + msgspec.json.encode(name)
    placed = _placed_from(folder)
    for number, path in segments(folder):
        if number < placed:
            continue
        with path.open("rb") as file:
            for line in file:
                if wanted in line and index.checked(text := line.rstrip(b"\n")):
                    named = _named(text)
                    if named.custom_id == name:
                        rows.add(named.row)
    told: set[tuple[int, int]] = set()  # What was kept stands in each later epoch again.
    for segment in loaded(folder, placed):
        entries = segment.entries
        for entry in entries[np.isin(entries["row"], list(rows))]:
            at = int(entry["segment"]), int(entry["offset"]), int(entry["length"])
            if at[:2] in told:
                continue
            told.add(at[:2])
            yield from (
                _of_row(result, int(entry["row"]), int(entry["sample"]), name)
                for result in _at(folder, *at)
            )


class _Named(msgspec.Struct):
    """The names of a line, also of one that refers to an answer elsewhere."""

    row: int
    custom_id: str


_named = msgspec.json.Decoder(_Named).decode


def _of_row(result: Result, row: int, sample: int, name: str) -> Result:
    """The result at its present place: one kept from an earlier input carries its old names."""
    own = result.custom_id != str(result.row)
    custom_id = name if not name.isdecimal() else result.custom_id if own else str(row)
    return msgspec.structs.replace(result, row=row, sample=sample, custom_id=custom_id)


def _placed_from(folder: Path) -> int:
    """Number of the first segment whose positions are those of the present input."""
    manifest = Manifest.load(folder)
    first = 1
    for before, after in pairwise(manifest.epochs if manifest else ()):
        if before.inputs != after.inputs:
            first = after.first_segment
    return first


def _at(folder: Path, segment: int, offset: int, length: int) -> Iterator[Result]:
    file = os.open(folder / f"journal-{segment:06}.jsonl", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield from _result(os.pread(file, length, offset))
    finally:
        os.close(file)


def _result(line: bytes) -> Iterator[Result]:
    if index.checked(line):
        yield _decode(line)
