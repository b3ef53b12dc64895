"""The input files as one long list of rows, whatever their formats. Touches: files.

A row's position counts over all files in order. In JSONL every physical line has a position, blank
ones too, so a blank line moves no other row and `sed -n` finds what an error names.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from batcher.errors import JobError
from batcher.read import csv, jsonl, parquet
from batcher.records import Row

__all__ = ["SUFFIXES", "InputFile", "Inputs", "expand"]

SUFFIXES = {
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".jsonl.zst": "jsonl",
    ".parquet": "parquet",
    ".csv": "csv",
}
_BLOCK_ROWS = 2000
_BLOCK_BYTES = 16 << 20
_raw_columns: Any = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


@dataclass(frozen=True)
class InputFile:
    """One input file, pinned by size and time.

    Attributes:
        path: As it is opened.
        name: As it is shown to people.
        kind: jsonl, parquet or csv.
        size: Bytes.
        mtime_ns: Time of the last change; 0 for a copy of stdin or of an iterable, where the time
            says nothing.
        digest: For such a copy, a hash of its content; else "".
    """

    path: str
    name: str
    kind: str
    size: int
    mtime_ns: int
    digest: str = ""

    @property
    def pin(self) -> dict[str, object]:
        """What must be equal for the rows to be the same rows."""
        name = self.name if self.digest else os.path.abspath(self.path)
        return {"path": name, "size": self.size, "mtime_ns": self.mtime_ns, "digest": self.digest}


def expand(paths: Sequence[str]) -> list[InputFile]:
    """Files named by the arguments: files, globs in sorted order, folders by their known suffixes.

    Raises:
        JobError: Something named is not there, cannot be read, or is of no known format.
    """
    found: list[str] = []
    for path in paths:
        if os.path.isdir(path):
            inside = sorted(
                str(entry)
                for entry in Path(path).rglob("*")
                if entry.is_file() and _kind(entry.name) and not _hidden(entry, path)
            )
            if not inside:
                raise JobError(f"{path}: the folder holds no {', '.join(SUFFIXES)} file.")
            found += inside
        elif os.path.exists(path):
            found.append(path)
        elif glob.has_magic(path):
            matched = sorted(
                match for match in glob.glob(path, recursive=True) if os.path.isfile(match)
            )
            if not matched:
                raise JobError(f"{path}: no file matches.")
            found += matched
        else:
            raise JobError(f"{path}: there is no such file.")
    return [_pinned(path) for path in found]


def _hidden(entry: Path, root: str) -> bool:
    """Whether a file is no input: hidden, or inside the run folder of an earlier output."""
    parts = entry.relative_to(root).parts
    return any(part.startswith((".", "_")) or part.endswith(".run") for part in parts)


def _pinned(path: str) -> InputFile:
    kind = _kind(path)
    if kind is None:
        raise JobError(
            f"{path}: its format is not known by its name; rename it to end in one of "
            f"{', '.join(SUFFIXES)}."
        )
    try:
        with open(path, "rb"):
            stat = os.stat(path)
    except OSError as error:
        raise JobError(f"{path}: it cannot be read: {error.strerror}.") from None
    return InputFile(path, path, kind, stat.st_size, stat.st_mtime_ns)


def _kind(path: str) -> str | None:
    return next((kind for suffix, kind in SUFFIXES.items() if path.endswith(suffix)), None)


def _always(_position: int) -> bool:
    return True


@dataclass
class Inputs:
    """All rows of all files, in order; every method reads the files anew.

    Attributes:
        files: In order.
        limit: Only so many rows, None for all.
        positions: Number of positions seen by the last whole reading; 0 before one.
    """

    files: list[InputFile]
    limit: int | None = None
    positions: int = field(default=0, init=False)

    @property
    def pins(self) -> list[dict[str, object]]:
        """What `run.json` keeps to know the same input again."""
        return [file.pin for file in self.files]

    def rows(
        self,
        columns: frozenset[str] | None = None,
        start: int = 0,
        wanted: Callable[[int], bool] = _always,
    ) -> Iterator[Row]:
        """Rows from position `start` on that are `wanted`; the others are not even decoded.

        Args:
            columns: Columns that are needed; None for all. Only Parquet makes use of it.
            start: First position.
            wanted: Told a position, says whether that row is needed.

        Raises:
            JobError: A file vanished, or is not what its name says.
        """
        first, left = 0, self.limit if self.limit is not None else -1
        for file in self.files:
            reader = {"jsonl": _jsonl_rows, "csv": _csv_rows}.get(file.kind)
            source = (
                reader(file, first, wanted)
                if reader
                else _parquet_rows(file, first, wanted, columns, start)
            )
            position = first - 1
            try:
                for position, row in source:
                    if left == 0:
                        self.positions = position
                        return
                    if row is _BLANK:
                        continue
                    left -= 1
                    if row is not None and position >= start:
                        yield row
            except (OSError, pa.ArrowException) as error:
                raise JobError(f"{file.name}: it cannot be read: {error}.") from None
            first = position + 1
        self.positions = first

    def dicts(self) -> Iterator[tuple[list[int], list[dict[str, Any]]]]:
        """Blocks of (positions, columns with JSON values) for JSONL output.

        Values of JSONL input are `msgspec.Raw`, so that numbers stay as they were written. An
        unreadable row has no columns.
        """
        for positions, rows in self._blocks():
            if isinstance(rows, pa.RecordBatch):
                yield positions, rows.to_pylist()
            else:
                yield (
                    positions,
                    [_raw(row) if isinstance(row, bytes) else row or {} for row in rows],
                )

    def native(
        self,
    ) -> Iterator[tuple[list[int], pa.RecordBatch | list[dict[str, object] | None]]]:
        """Blocks of (positions, record batch for Parquet, else decoded columns)."""
        for positions, rows in self._blocks():
            if isinstance(rows, pa.RecordBatch):
                yield positions, rows
            else:
                yield positions, [_decoded(row) if isinstance(row, bytes) else row for row in rows]

    def _blocks(self) -> Iterator[tuple[list[int], pa.RecordBatch | list[Any]]]:
        first, left = 0, self.limit if self.limit is not None else 1 << 62
        for file in self.files:
            if left <= 0:
                return
            if file.kind == "parquet":
                position = first
                for at, batch in parquet.batches(file.path):
                    if left <= 0:
                        return
                    batch = batch.slice(0, min(left, batch.num_rows))
                    left -= batch.num_rows
                    position = first + at + batch.num_rows
                    yield list(range(first + at, position)), batch
                first = position
                continue
            positions: list[int] = []
            rows: list[Any] = []
            size = 0
            position = first - 1
            for position, row in _raw_rows(file, first):
                if row is _BLANK:
                    continue
                if left <= 0:
                    break
                left -= 1
                positions.append(position)
                rows.append(row)
                size += len(row) if isinstance(row, bytes) else 200
                if len(rows) >= _BLOCK_ROWS or size >= _BLOCK_BYTES:
                    yield positions, rows
                    positions, rows, size = [], [], 0
            if rows:
                yield positions, rows
            first = position + 1

    def changed(self) -> str | None:
        """Name of a file that is not the one that was pinned any more, if there is one."""
        for file in self.files:
            try:
                stat = os.stat(file.path)
            except OSError:
                return file.name
            if stat.st_size != file.size or (file.mtime_ns and stat.st_mtime_ns != file.mtime_ns):
                return file.name
        return None


_BLANK = Row(-1, "", None)
_BODIES = frozenset({"messages", "body"})


def _jsonl_rows(
    file: InputFile, first: int, wanted: Callable[[int], bool]
) -> Iterator[tuple[int, Row | None]]:
    number = 0
    try:
        for number, line in enumerate(jsonl.lines(file.path), 1):
            position = first + number - 1
            if not line or line.isspace():
                yield position, _BLANK
            elif not wanted(position):
                yield position, None
            else:
                where = f"{file.name}:{number}"
                try:
                    yield position, Row(position, where, jsonl.decode(line))
                except jsonl.Damaged as error:
                    yield position, Row(position, where, None, f"{where}: {error}")
    except jsonl.Damaged as error:
        where, position = f"{file.name}:{number + 1}", first + number
        cut = Row(position, where, None, f"{where}: {error}")
        yield position, cut if wanted(position) else None


def _csv_rows(
    file: InputFile, first: int, wanted: Callable[[int], bool]
) -> Iterator[tuple[int, Row | None]]:
    for position, (line, columns, error) in enumerate(csv.records(file.path), first):
        if wanted(position):
            where = f"{file.name}:{line}"
            values: dict[str, object] | None = columns
            yield position, Row(position, where, values, error and f"{where}: {error}")
        else:
            yield position, None


def _parquet_rows(
    file: InputFile,
    first: int,
    wanted: Callable[[int], bool],
    columns: frozenset[str] | None,
    start: int,
) -> Iterator[tuple[int, Row | None]]:
    names: list[str] | None = None
    if columns is not None:
        have = parquet.schema(file.path).names
        # One column at least, or the batches would not know their length.
        names = [name for name in have if name in columns] or have[:1]
    skip = min(max(0, start - first), parquet.count(file.path))
    yield from ((first + row, None) for row in range(skip))
    for at, batch in parquet.batches(file.path, names, skip):
        position = first + at
        if not any(wanted(position + offset) for offset in range(batch.num_rows)):
            yield from ((position + offset, None) for offset in range(batch.num_rows))
            continue
        for offset, values in enumerate(batch.to_pylist()):
            place = position + offset
            if not wanted(place):
                yield place, None
                continue
            for name in _BODIES & values.keys():
                values[name] = parquet.without_nulls(values[name])
            yield place, Row(place, f"{file.name} row {at + offset}", values)


def _raw_rows(file: InputFile, first: int) -> Iterator[tuple[int, Any]]:
    """(position, line as bytes | columns | None for an unreadable one | _BLANK)."""
    if file.kind == "csv":
        for position, (_line, columns, _error) in enumerate(csv.records(file.path), first):
            yield position, columns
        return
    number = -1
    try:
        for number, line in enumerate(jsonl.lines(file.path)):
            yield first + number, _BLANK if not line or line.isspace() else line
    except jsonl.Damaged:
        yield first + number + 1, None


def _raw(line: bytes) -> dict[str, Any]:
    if _decoded(line) is None:
        return {}
    columns: dict[str, Any] = _raw_columns(line)
    return columns


def _decoded(line: bytes) -> dict[str, object] | None:
    try:
        return jsonl.decode(line)
    except jsonl.Damaged:
        return None
