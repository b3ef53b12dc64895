"""The input files as one long list of rows, whatever their formats. Touches: files.

A row's position counts over all files in order. In JSONL every physical line has a position, blank
ones too, so a blank line moves no other row and `sed -n` finds what an error names.

pyarrow takes a quarter of a start, so it is imported where there is Parquet to read.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from batcher import objects
from batcher.errors import JobError
from batcher.read import csv, jsonl
from batcher.read.files import InputFile, Pin
from batcher.records import Row

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Inputs"]

_BLOCK_ROWS = 2000
_BLOCK_BYTES = 16 << 20
_raw_columns: Any = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


@dataclass
class Inputs:
    """All rows of all files, in order; every method reads the files anew.

    Attributes:
        files: In order.
        limit: Only so many rows, None for all.
        drawn: Only so many rows, drawn by chance, and the seed of that; None for all.
        images: Where the paths of pictures begin; None where the file is that names them.
        marks: By path of a plain JSONL file, where every 4096th line begins; what the first
            whole reading finds, so that later ones can begin in the middle.
    """

    files: list[InputFile]
    limit: int | None = None
    drawn: tuple[int, int] | None = None
    images: str | None = None
    marks: dict[str, array[int]] = field(default_factory=dict)
    _left_out: bytes | None = field(default=None, init=False, repr=False)

    @property
    def pins(self) -> list[Pin]:
        """What `run.json` keeps to know the same input again."""
        return [file.pin for file in self.files]

    def schema(self) -> pa.Schema | None:
        """The columns, where all files are Parquet and have the same ones; else None."""
        if any(file.kind != "parquet" for file in self.files):
            return None
        from batcher.read import parquet

        found = [parquet.schema(file.path) for file in self.files]
        return found[0] if found and all(found[0] == other for other in found) else None

    def rows(
        self, columns: frozenset[str] | None = None, start: int = 0, settled: bytes = b""
    ) -> Iterator[Row]:
        """Rows from position `start` on; those that are settled are not even decoded.

        Args:
            columns: Columns that are needed; None for all. Only Parquet makes use of it.
            start: First position.
            settled: By position, not zero where the row is not needed; past its end all are.

        Raises:
            JobError: A file vanished, or is not what its name says.
            RunStopped: Object storage does not give one that it had.
        """

        def wanted(position: int) -> int:
            """The first position from here on that is needed."""
            position = max(position, start)
            if position >= len(settled):
                return position
            found = settled.find(b"\0", position)
            return len(settled) if found < 0 else found

        if self.drawn is not None:
            settled = _either(self.left_out(), settled)
        first, left = 0, _ALL if self.limit is None else self.limit
        for file in self.files:
            folder = file.folder if self.images is None else self.images
            span = _Span(file, folder, first, left, wanted)
            try:
                if file.kind == "parquet":
                    positions, rows = yield from _parquet_rows(span, columns)
                elif file.kind == "csv":
                    positions, rows = yield from _csv_rows(span)
                else:
                    positions, rows = yield from self._jsonl_rows(span)
            except OSError as error:
                raise JobError(f"{file.name}: it cannot be read: {objects.why(error)}.") from None
            first += positions
            left -= rows
            if left <= 0:
                return

    def _jsonl_rows(self, span: _Span) -> Generator[Row, None, tuple[int, int]]:
        file, folder = span.file, span.folder
        wanted = span.wanted(span.first)
        number = offset = rows = 0
        marks: array[int] | None = array("q")
        known = self.marks.get(file.path)
        if known and span.left == _ALL:
            # How many of the lines before are blank is not known, so not with a limit.
            at = min((wanted - span.first) // jsonl.MARK, len(known) - 1)
            number, offset, marks = at * jsonl.MARK, known[at], None
        try:
            for line in jsonl.lines(file.path, offset, marks):
                position = span.first + number
                number += 1
                if not line or line.isspace():
                    if position >= wanted:
                        wanted = span.wanted(position + 1)
                    continue
                if rows == span.left:
                    return number, rows
                rows += 1
                if position < wanted:
                    continue
                where = f"{file.name}:{number}"
                try:
                    yield Row(position, where, jsonl.decode(line), folder=folder)
                except jsonl.Damaged as error:
                    yield Row(position, where, None, f"{where}: {error}")
                wanted = span.wanted(position + 1)
        except jsonl.Damaged as error:
            position, where = span.first + number, f"{file.name}:{number + 1}"
            if position >= span.wanted(position) and rows < span.left:
                yield Row(position, where, None, f"{where}: {error}")
            return number + 1, rows + 1
        if marks:
            self.marks[file.path] = marks
        return number, rows

    @property
    def whole(self) -> bool:
        """Whether all rows are meant."""
        return self.limit is None and self.drawn is None

    def left_out(self) -> bytes:
        """By position, not zero where a row is not asked for, and no longer than to the last that is.

        Each position has a number that looks like chance, and the lowest are drawn: of more rows,
        or of an input that grew, most are the same ones, so that their answers are there already.
        """
        if self._left_out is None:
            asked = bytearray()
            for positions, _rows in self._blocks():
                asked.extend(bytes(positions[-1] + 1 - len(asked)))
                for position in positions:
                    asked[position] = 1
            out = np.frombuffer(asked, np.uint8) == 0
            if self.drawn is not None:
                at = np.flatnonzero(~out)
                number, seed = self.drawn
                out[:] = True
                begin = _chance(np.array([seed], np.uint64))
                lots = _chance(at.astype(np.uint64) + begin)
                out[at[np.argsort(lots, kind="stable")[:number]]] = False
            self._left_out = out.tobytes()
        return self._left_out

    def dicts(self) -> Iterator[tuple[list[int], list[dict[str, Any]]]]:
        """Blocks of (positions, columns with JSON values) for JSONL output.

        Values of JSONL input are `msgspec.Raw`, so that numbers stay as they were written. An
        unreadable row has no columns.
        """
        for positions, rows in self._drawn_blocks():
            if not isinstance(rows, list):
                from batcher.read import parquet

                yield positions, parquet.dicts(rows)
            else:
                yield (
                    positions,
                    [_raw(row) if isinstance(row, bytes) else row or {} for row in rows],
                )

    def native(
        self,
    ) -> Iterator[tuple[list[int], pa.RecordBatch | list[dict[str, object] | None]]]:
        """Blocks of (positions, record batch for Parquet, else decoded columns)."""
        for positions, rows in self._drawn_blocks():
            if not isinstance(rows, list):
                yield positions, rows
            else:
                yield positions, [_decoded(row) if isinstance(row, bytes) else row for row in rows]

    def _drawn_blocks(self) -> Iterator[tuple[list[int], pa.RecordBatch | list[Any]]]:
        if self.drawn is None:
            yield from self._blocks()
            return
        out = self.left_out()
        for positions, rows in self._blocks():
            kept = [at for at, position in enumerate(positions) if not out[position]]
            if kept:
                some = [rows[at] for at in kept] if isinstance(rows, list) else rows.take(kept)
                yield [positions[at] for at in kept], some

    def _blocks(self) -> Iterator[tuple[list[int], pa.RecordBatch | list[Any]]]:
        first, left = 0, self.limit if self.limit is not None else 1 << 62
        for file in self.files:
            if left <= 0:
                return
            if file.kind == "parquet":
                from batcher.read import parquet

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

    def count(self) -> int:
        """Number of rows in all files, whatever the limit; nothing is decoded."""
        rows = 0
        for file in self.files:
            if file.kind == "parquet":
                from batcher.read import parquet

                rows += parquet.count(file.path)
            else:
                rows += sum(row is not _BLANK for _position, row in _raw_rows(file, 0))
        return rows

    def changed(self) -> str | None:
        """Name of a file that is not the one that was pinned any more, if there is one."""
        return next((file.name for file in self.files if file.changed()), None)


def _either(some: bytes, others: bytes) -> bytes:
    """Not zero where one of them is not, as long as the first."""
    a, b = np.frombuffer(some, np.uint8), np.frombuffer(others[: len(some)], np.uint8)
    return (a | np.pad(b, (0, len(a) - len(b)))).tobytes()


def _chance(numbers: Any) -> Any:
    """A number for each that looks like chance (SplitMix64; Steele, Lea and Flood 2014)."""
    z = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


_ALL = 1 << 62
_BLANK = Row(-1, "", None)
_BODIES = frozenset({"messages", "body"})


@dataclass(frozen=True)
class _Span:
    """One file's part of the rows.

    Attributes:
        folder: Where the paths of pictures begin.
        first: Position of its first row.
        left: How many rows are still allowed.
        wanted: The first position from a given one on that is needed.
    """

    file: InputFile
    folder: str
    first: int
    left: int
    wanted: Callable[[int], int]


def _csv_rows(span: _Span) -> Generator[Row, None, tuple[int, int]]:
    rows, folder = 0, span.folder
    wanted = span.wanted(span.first)
    for line, columns, error in csv.records(span.file.path):
        if rows == span.left:
            break
        position = span.first + rows
        rows += 1
        if position < wanted:
            continue
        where = f"{span.file.name}:{line}"
        yield Row(position, where, columns, error and f"{where}: {error}", folder)
        wanted = span.wanted(position + 1)
    return rows, rows


def _parquet_rows(
    span: _Span, columns: frozenset[str] | None
) -> Generator[Row, None, tuple[int, int]]:
    from batcher.read import parquet

    path, folder = span.file.path, span.folder
    count = min(parquet.count(path), span.left)
    names: list[str] | None = None
    if columns is not None:
        have = parquet.schema(path).names
        # One column at least, or the batches would not know their length.
        names = [name for name in have if name in columns] or have[:1]

    def needed(at: int, rows: int) -> bool:
        return span.wanted(span.first + at) < span.first + at + rows and at < count

    for at, batch in parquet.batches(path, names, needed):
        batch = batch.slice(0, max(0, count - at))
        if not needed(at, batch.num_rows):
            continue
        wanted = span.wanted(span.first + at)
        for offset, values in enumerate(parquet.dicts(batch)):
            position = span.first + at + offset
            if position < wanted:
                continue
            for name in _BODIES & values.keys():
                values[name] = parquet.without_nulls(values[name])
            where = f"{span.file.name} row {at + offset}"
            yield Row(position, where, values, folder=folder)
            wanted = span.wanted(position + 1)
    return count, count


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
