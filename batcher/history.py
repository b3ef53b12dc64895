"""All that the journal says of one row: every result, of every run. Touches: files (reads)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import msgspec

from batcher.records import Result
from batcher.write import index
from batcher.write.manifest import Manifest
from batcher.write.segment import segments

__all__ = ["results_of"]

_decode = msgspec.json.Decoder(Result).decode


def results_of(folder: Path, name: str) -> Iterator[Result]:
    """Results of the row with this position or `custom_id`, oldest first.

    May be called beside a running process; nothing is written.

    Args:
        folder: The run folder.
        name: Position in decimal, or `custom_id`.
    """
    position = int(name) if name.isascii() and name.isdecimal() else -1
    wanted = b'"custom_id":' + msgspec.json.encode(name)
    placed = _placed_from(folder)
    for number, path in segments(folder):
        seen = set()
        if position >= 0 and number >= placed:
            entries = index.load(path, number, keep=False).entries
            for entry in entries[entries["row"] == position]:
                at = int(entry["segment"]), int(entry["offset"]), int(entry["length"])
                seen.add(at)
                yield from _at(folder, *at)
        offset = 0
        with path.open("rb") as file:
            for line in file:
                text = line.rstrip(b"\n")
                at = (number, offset, len(text))
                offset += len(line)
                if wanted in text and at not in seen and b'"at":[' not in text:
                    yield from (
                        result
                        for result in _result(text)
                        if result.custom_id == name
                        and (number >= placed or result.custom_id != str(result.row))
                    )


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
