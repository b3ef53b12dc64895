"""The input files as one list of rows, whatever their formats. Touches: files, the network.

A row's position counts over all files in order. In JSONL every physical line has a position, blank
ones too, so a blank line moves no other row and `sed -n` finds what an error names.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from batcher.errors import JobError
from batcher.read import json_text, object_store
from batcher.read.files import InputFile, Pin
from batcher.read.reader import ALL, Block, Span
from batcher.read.text import InvalidRecord
from batcher.records import Row

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Inputs"]


@dataclass
class Inputs:
    """All rows of all files, in order; every method reads the files anew.

    Attributes:
        files: The files, in order.
        limit: How many rows to read; None for all.
        drawn: (how many rows to draw at random, seed); None for all.
        images: Where relative image paths begin; None for the folder of the file that names them.
        line_index: By path of a plain JSONL file, where every 4096th line begins. The first whole
            reading fills it, so that later ones can begin in the middle.
    """

    files: list[InputFile]
    limit: int | None = None
    drawn: tuple[int, int] | None = None
    images: str | None = None
    line_index: dict[str, array[int]] = field(default_factory=dict)
    _left_out: bytes | None = field(default=None, init=False, repr=False)
    _losses: dict[tuple[str, str, str], int] = field(default_factory=dict, init=False, repr=False)
    _reported: int = field(default=0, init=False, repr=False)

    @property
    def pins(self) -> list[Pin]:
        """What `run.json` keeps to recognize the same input."""
        return [file.pin for file in self.files]

    def set_pins(self, pins: Sequence[Pin]) -> None:
        """Sets what each file is known by."""
        self.files = [replace(file, pin=pin) for file, pin in zip(self.files, pins, strict=True)]

    def set_line_index(self, line_index: dict[str, array[int]]) -> None:
        """Sets where lines begin, as an earlier run found it."""
        self.line_index = line_index

    @property
    def whole(self) -> bool:
        """Whether all rows are meant."""
        return self.limit is None and self.drawn is None

    def schemas(self) -> list[pa.Schema] | None:
        """The columns of each file; None where a format does not tell them before its rows are read."""
        found: list[pa.Schema] = []
        for file in self.files:
            if (schema := file.reader.schema(file)) is None:
                return None
            found.append(schema)
        return found

    def losses(self) -> list[str]:
        """Takes the messages about cells that could not be read since the last call, one a column and file."""
        new = [*self._losses.items()][self._reported :]
        self._reported = len(self._losses)
        return [
            f"{name}: the column {column!r} {why}, first in row {row}; such cells are null."
            for (name, column, why), row in new
        ]

    def _lose(self, file: InputFile, column: str, rows: Sequence[int], why: str) -> None:
        self._losses.setdefault((file.name, column, why), rows[0])

    def scan(self, known: Collection[str], max_bytes: int, go_on: Callable[[], None]) -> None:
        """Reads the columns of local Parquet files that no prompt uses, to find damage before a run.

        Args:
            known: Columns that are read anyway.
            max_bytes: How much to read, in memory.
            go_on: Called now and then; what it raises ends the reading.
        """
        for file in self.files:
            schema = file.reader.schema(file)
            if schema is None or object_store.is_object(file.path):
                continue
            names = [name for name in schema.names if name not in known]
            blocks = file.reader.blocks(file, 0, partial(self._lose, file), names)
            for _positions, rows in blocks if names else ():
                go_on()
                max_bytes -= 0 if isinstance(rows, list) else rows.nbytes
                if max_bytes <= 0:
                    return

    def rows(
        self, columns: frozenset[str] | None = None, start: int = 0, settled: bytes = b""
    ) -> Iterator[Row]:
        """Yields rows from position `start` on; those that are settled are not even decoded.

        Args:
            columns: Columns that are needed; None for all. Only Parquet leaves out the others.
            start: First position.
            settled: By position, not zero where the row is not needed; past its end all are.

        Raises:
            JobError: A file vanished, or is not what its name says.
            RunStopped: Object storage stopped serving a file.
        """

        def next_wanted(position: int) -> int:
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
            report = partial(self._lose, file)
            span = Span(file, folder, first, left, next_wanted, self.line_index, report)
            try:
                positions, rows = yield from file.reader.rows(span, columns)
            except OSError as error:
                raise JobError(
                    f"{file.name}: it cannot be read: {object_store.why(error)}."
                ) from None
            first += positions
            left -= rows
            if left <= 0:
                return

    def left_out(self) -> bytes:
        """By position, not zero where a row is not asked for; no longer than to the last that is.

        Each position has a pseudorandom number, and the lowest are drawn. So most rows stay the same
        when more are drawn, or when the input grows, and their answers are there already.
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
                offset = _random(np.array([seed], np.uint64))
                lots = _random(at.astype(np.uint64) + offset)
                out[at[np.argsort(lots, kind="stable")[:number]]] = False
            self._left_out = out.tobytes()
        return self._left_out

    def dicts(self) -> Iterator[tuple[list[int], list[dict[str, Any]]]]:
        """Yields blocks of (positions, columns with JSON values) for JSONL output.

        Values of JSONL input are `msgspec.Raw`, so that numbers keep their digits. An unreadable row
        has no columns.
        """
        for positions, rows in self._drawn_blocks():
            if not isinstance(rows, list):
                from batcher.read import arrow

                yield positions, arrow.dicts(rows)
            else:
                yield (
                    positions,
                    [
                        json_text.decode_raw(row) if isinstance(row, bytes) else row or {}
                        for row in rows
                    ],
                )

    def native(
        self, as_json: Collection[str] = ()
    ) -> Iterator[tuple[list[int], pa.RecordBatch | list[dict[str, object] | None]]]:
        """Yields blocks of (positions, record batch for Parquet, else decoded columns).

        The columns of JSON input in `as_json` are `msgspec.Raw`, with every digit that was written.
        """
        for positions, rows in self._drawn_blocks():
            if not isinstance(rows, list):
                yield positions, rows
                continue
            decoded = [_decoded(row) if isinstance(row, bytes) else row for row in rows]
            if as_json:
                for line, columns in zip(rows, decoded, strict=True):
                    if columns is not None and isinstance(line, bytes):
                        raw = json_text.decode_raw(line)
                        columns.update({name: raw[name] for name in raw.keys() & as_json})
            yield positions, decoded

    def _drawn_blocks(self) -> Iterator[Block]:
        if self.drawn is None:
            yield from self._blocks()
            return
        out = self.left_out()
        for positions, rows in self._blocks():
            kept = [at for at, position in enumerate(positions) if not out[position]]
            if kept:
                some = [rows[at] for at in kept] if isinstance(rows, list) else rows.take(kept)
                yield [positions[at] for at in kept], some

    def _blocks(self) -> Iterator[Block]:
        first, left = 0, ALL if self.limit is None else self.limit
        for file in self.files:
            blocks = file.reader.blocks(file, first, partial(self._lose, file))
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
        """Counts the rows in all files, whatever the limit, without decoding them."""
        return sum(file.reader.count(file) for file in self.files)

    def touched(self) -> str | None:
        """Names a file that was replaced, written or touched since it was pinned, if any."""
        return next((file.name for file in self.files if file.touched()), None)

    def rewritten(self) -> str | None:
        """Names a file whose size or time is another one now, or that is gone; a copy if it was touched."""
        return next(
            (
                file.name
                for file in self.files
                if (file.touched() if file.pin.copied else file.rewritten())
            ),
            None,
        )

    def changed(self) -> str | None:
        """Names a file that may not hold what it held when it was pinned; pins the others anew."""
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


def _random(numbers: Any) -> Any:
    """Hashes each number to a pseudorandom one (SplitMix64; Steele, Lea and Flood 2014)."""
    z = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _decoded(line: bytes) -> dict[str, object] | None:
    try:
        return json_text.decode(line)
    except InvalidRecord:
        return json_text.recover(line)[0]
