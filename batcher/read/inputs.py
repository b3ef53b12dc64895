"""The input files as one long list of rows, whatever their formats. Touches: files.

A row's position counts over all files in order. In JSONL every physical line has a position, blank
ones too, so a blank line moves no other row and `sed -n` finds what an error names.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from batcher.errors import JobError
from batcher.read import jsonl, object_store
from batcher.read.files import InputFile, Pin
from batcher.read.formats import ALL, READERS, Span
from batcher.records import Row

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Inputs"]

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
    _lost: dict[tuple[str, str, str], int] = field(default_factory=dict, init=False, repr=False)
    _said: int = field(default=0, init=False, repr=False)

    @property
    def pins(self) -> list[Pin]:
        """What `run.json` keeps to know the same input again."""
        return [file.pin for file in self.files]

    def schemas(self) -> list[pa.Schema] | None:
        """The columns of each file, where all are Parquet; else None."""
        if any(file.kind != "parquet" for file in self.files):
            return None
        from batcher.read import parquet

        return [parquet.schema(file.path) for file in self.files]

    def losses(self) -> list[str]:
        """What could not be read since this was last asked, in sentences: a column of a file each."""
        new = [*self._lost.items()][self._said :]
        self._said = len(self._lost)
        return [
            f"{name}: the column {column!r} {why}, first in row {row}; such cells are null."
            for (name, column, why), row in new
        ]

    def _lose(self, file: InputFile, column: str, rows: Sequence[int], why: str) -> None:
        self._lost.setdefault((file.name, column, why), rows[0])

    def look(self, known: Collection[str], most_bytes: int, go_on: Callable[[], None]) -> None:
        """Reads the columns of local Parquet files that are not `known`, for `losses`.

        Args:
            known: Columns that are read anyway.
            most_bytes: How much to read, once it is unpacked.
            go_on: Called now and then; what it raises ends the reading.
        """
        for file in self.files:
            if file.kind != "parquet" or object_store.is_object(file.path):
                continue
            from batcher.read import parquet

            names = [name for name in parquet.schema(file.path).names if name not in known]
            lost = partial(self._lose, file)
            for _at, batch in parquet.batches(file.path, names, lost=lost) if names else ():
                go_on()
                most_bytes -= batch.nbytes
                if most_bytes <= 0:
                    return

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
        first, left = 0, ALL if self.limit is None else self.limit
        for file in self.files:
            folder = file.folder if self.images is None else self.images
            lost = partial(self._lose, file)
            span = Span(file, folder, first, left, wanted, self.marks, lost)
            try:
                positions, rows = yield from READERS[file.kind].rows(span, columns)
            except OSError as error:
                raise JobError(
                    f"{file.name}: it cannot be read: {object_store.why(error)}."
                ) from None
            first += positions
            left -= rows
            if left <= 0:
                return

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
        self, as_json: Collection[str] = ()
    ) -> Iterator[tuple[list[int], pa.RecordBatch | list[dict[str, object] | None]]]:
        """Blocks of (positions, record batch for Parquet, else decoded columns).

        Of JSON, the columns in `as_json` are `msgspec.Raw`, with every digit that stands there.
        """
        for positions, rows in self._drawn_blocks():
            if not isinstance(rows, list):
                yield positions, rows
                continue
            decoded = [_decoded(row) if isinstance(row, bytes) else row for row in rows]
            if as_json:
                for line, columns in zip(rows, decoded, strict=True):
                    if columns is not None and isinstance(line, bytes):
                        raw = _raw(line)
                        columns.update({name: raw[name] for name in raw.keys() & as_json})
            yield positions, decoded

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
        first, left = 0, ALL if self.limit is None else self.limit
        for file in self.files:
            blocks = READERS[file.kind].blocks(file, first, partial(self._lose, file))
            while True:
                if left <= 0:
                    return
                try:
                    positions, rows = next(blocks)
                except StopIteration as end:
                    first += end.value
                    break
                if len(positions) > left:
                    positions = positions[:left]
                    rows = rows[:left]
                left -= len(positions)
                yield positions, rows

    def count(self) -> int:
        """Number of rows in all files, whatever the limit; nothing is decoded."""
        return sum(READERS[file.kind].count(file) for file in self.files)

    def touched(self) -> str | None:
        """Name of a file that is not the one that was pinned, or was written or touched since, if any."""
        return next((file.name for file in self.files if file.touched()), None)

    def rewritten(self) -> str | None:
        """Name of a file that has another size or time now, or is gone; of a copy that is not the same one."""
        return next(
            (of.name for of in self.files if (of.touched() if of.pin.copied else of.rewritten())),
            None,
        )

    def changed(self) -> str | None:
        """Name of a file that is not known to hold what it held when it was pinned; pins the others anew."""
        for number, file in enumerate(self.files):
            again = file.again()
            if again is None:
                return file.name
            self.files[number] = again
        return None


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


def _raw(line: bytes) -> dict[str, Any]:
    try:
        jsonl.decode(line)
    except jsonl.Damaged:
        made = jsonl.salvaged(line)[0]
        if made is None:
            return {}
        line = made
    columns: dict[str, Any] = _raw_columns(jsonl.shallow(line))
    return columns


def _decoded(line: bytes) -> dict[str, object] | None:
    try:
        return jsonl.decode(line)
    except jsonl.Damaged:
        made = jsonl.salvaged(line)[0]
        return None if made is None else jsonl.decode(made)
