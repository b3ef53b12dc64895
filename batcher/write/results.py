"""The output file: the journal's lines in input order, whole or not there at all. Touches: files."""

from __future__ import annotations

import contextlib
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
import pyarrow.parquet as pq

from batcher.errors import OutputError
from batcher.records import Result
from batcher.write import columns, index
from batcher.write.winners import Winners

__all__ = ["Confirm", "Picks", "Written", "write_jsonl", "write_parquet"]

_GROUP_BYTES = 8 << 20
_GROUP_ROWS = 32 << 10
_decode = msgspec.json.Decoder(Result).decode


@dataclass
class Written:
    """What was written.

    Attributes:
        rows: Output rows.
        missing: Results that are not there yet and were left out.
        statuses: Rows by status.
        renamed: Input columns that got another name.
    """

    rows: int = 0
    missing: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    renamed: dict[str, str] = field(default_factory=dict)


Confirm = Callable[[Written], None]


class Picks:
    """Finds the journal lines of input rows; a context manager that holds the segments open.

    Args:
        folder: The run folder.
        winners: Where the lines are.
        route: `each` gives a row one line a slot; the others one line in all, the best.
        go_on: Called for every block of rows; what it raises ends the writing.

    Attributes:
        damaged: Numbers of segments that do not hold what their index says.
        lost: Lines that are not what they were.
    """

    def __init__(
        self,
        folder: Path,
        winners: Winners,
        route: str,
        slots: int,
        go_on: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder = folder
        self._winners = winners
        self._one = route != "each"
        self._slots = range(slots)
        self._go_on = go_on
        self._files: dict[int, int] = {}
        self.damaged: set[int] = set()
        self.lost = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            os.close(file)

    @property
    def shown(self) -> list[str]:
        """The optional columns that some line has."""
        bits = {"tool_calls": index.TOOL_CALLS, "logprobs": index.LOGPROBS}
        return [name for name, bit in bits.items() if self._winners.extras & bit]

    def lines(self, positions: Sequence[int]) -> Iterator[tuple[int, bytes | None]]:
        """(place in `positions`, line without newline, or None when there is none) in order."""
        self._go_on()
        for place, row in enumerate(positions):
            if self._one:
                yield place, self._best(row)
            else:
                for slot in self._slots:
                    yield place, self._line(row, slot)

    def _best(self, row: int) -> bytes | None:
        found: bytes | None = None
        rank = -1
        for slot in self._slots:
            states = self._winners.outcomes(slot)
            state = int(states[row]) if row < len(states) else 0
            if not state:
                continue
            outcome = index.OUTCOMES[state - 1]
            better = 2 if outcome.value == "ok" else 1 if outcome.answered else 0
            # An answer that is ok; else the last model's, an unusable answer before a failure.
            if better > rank or better == rank < 2:
                line = self._line(row, slot)
                if line is not None:
                    found, rank = line, better
        return found

    def _line(self, row: int, slot: int) -> bytes | None:
        segment, offset, length = self._winners.at(row, slot)
        if not length:
            return None
        file = self._files.get(segment)
        if file is None:
            path = self._folder / f"journal-{segment:06}.jsonl"
            file = self._files[segment] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        line = os.pread(file, length, offset)
        if index.checked(line):
            return line
        self.damaged.add(segment)
        self.lost += 1
        return None


def write_jsonl(
    path: Path,
    blocks: Iterator[tuple[list[int], list[dict[str, Any]]]],
    picks: Picks,
    *,
    keep_raw: bool,
    confirm: Confirm = lambda _written: None,
) -> Written:
    """Writes JSONL; see `Written` and `write_parquet`. Raises OutputError when the disk refuses."""
    written = Written()
    with _whole(path) as file:
        for positions, rows in blocks:
            for row in rows:
                for name in row.keys() & columns.NAMES.keys():
                    if name not in written.renamed:
                        new = columns.renames(dict.fromkeys(row)).get(name) or ""
                        written.renamed[name] = new
            for place, line in picks.lines(positions):
                if line is None:
                    written.missing += 1
                    continue
                result = _of_row(_decode(line), positions[place], rows[place])
                file.write(columns.json_row(rows[place], result, keep_raw=keep_raw) + b"\n")
                written.rows += 1
                written.statuses[result.status.value] += 1
        confirm(written)
    written.renamed.pop("custom_id", None)
    return written


def _of_row(result: Result, position: int, row: dict[str, Any]) -> Result:
    """The result at its present place: one kept from an earlier input carries its old names."""
    name = row.get("custom_id")
    if isinstance(name, msgspec.Raw):
        name = msgspec.json.decode(name)
    custom_id = str(position) if name is None else str(name)
    if result.row == position and result.custom_id == custom_id:
        return result
    return msgspec.structs.replace(result, row=position, custom_id=custom_id)


def write_parquet(
    path: Path,
    blocks: Iterator[tuple[list[int], list[pa.Array]]],
    schema: pa.Schema,
    picks: Picks,
    *,
    keep_raw: bool,
    confirm: Confirm = lambda _written: None,
) -> Written:
    """Writes Parquet with the input's columns in their types; see `Written`.

    `tool_calls` and `logprobs` are there when any row has them.

    Args:
        path: The output.
        blocks: (positions, one array for each field of `schema`).
        schema: The input's columns.
        picks: Finds the lines.
        keep_raw: Whether there is a `response` column.
        confirm: Told what is written, before it takes the place of the old file; what it raises
            leaves that as it is.
    """
    written = Written()
    renamed = columns.renames(dict(zip(schema.names, schema.types, strict=True)))
    written.renamed = {old: new for old, new in renamed.items() if new is not None}
    shown = [renamed.get(name, name) for name in schema.names]
    kept = [i for i, name in enumerate(shown) if name is not None]
    fields = [pa.field(shown[i], schema.types[i]) for i in kept]
    names = columns.result_names(keep_raw=keep_raw, shown=picks.shown)
    out = pa.schema([*fields, *(columns.RESULT.field(name) for name in names)])
    custom_id = schema.get_field_index("custom_id")
    with _whole(path) as file, pq.ParquetWriter(file, out, compression="zstd") as writer:
        held: list[pa.Table] = []
        size = rows = 0
        for positions, arrays in blocks:
            own = arrays[custom_id].to_pylist() if custom_id >= 0 else [None] * len(positions)
            places: list[int] = []
            lines: list[bytes] = []
            pending = 0
            for place, line in picks.lines(positions):
                if line is None:
                    written.missing += 1
                    continue
                places.append(place)
                lines.append(line)
                pending += len(line)
                if pending >= _GROUP_BYTES // 4:
                    held.append(_table(out, arrays, kept, places, lines, positions, own, names))
                    size, rows = size + pending, rows + len(places)
                    places, lines, pending = [], [], 0
            if lines:
                held.append(_table(out, arrays, kept, places, lines, positions, own, names))
                size, rows = size + pending, rows + len(places)
            if size >= _GROUP_BYTES or rows >= _GROUP_ROWS:
                _flush(writer, held, written)
                held, size, rows = [], 0, 0
        _flush(writer, held, written)
        confirm(written)
    return written


def _flush(writer: pq.ParquetWriter, held: list[pa.Table], written: Written) -> None:
    if not held:
        return
    table = pa.concat_tables(held)
    writer.write_table(table, row_group_size=_GROUP_ROWS)
    written.rows += table.num_rows
    for item in pc.value_counts(table["status"]).to_pylist():
        written.statuses[item["values"]] += item["counts"]


def _table(
    out: pa.Schema,
    arrays: list[pa.Array],
    kept: list[int],
    places: list[int],
    lines: list[bytes],
    positions: list[int],
    own: list[Any],
    names: list[str],
) -> pa.Table:
    """One block of output rows."""
    found = pj.read_json(
        io.BytesIO(b"\n".join(lines) + b"\n"),
        pj.ReadOptions(use_threads=False, block_size=max(1 << 20, 2 * max(map(len, lines)))),
        pj.ParseOptions(explicit_schema=columns.JOURNAL, unexpected_field_behavior="ignore"),
    )
    take = pa.array(places, pa.int64())
    results: dict[str, Any] = {name: found[name] for name in names}
    results["row"] = pa.array([positions[place] for place in places], pa.int64())
    results["custom_id"] = pa.array(
        [str(positions[p]) if own[p] is None else str(own[p]) for p in places], pa.string()
    )
    results["created_at"] = found["created_at"].cast(pa.timestamp("ms", "UTC"))
    results["model"] = pc.if_else(pc.equal(found["model"], ""), None, found["model"])
    return pa.Table.from_arrays(
        [*(arrays[i].take(take) for i in kept), *(results[name] for name in names)], schema=out
    )


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when all of it is on the disk, and not before.

    Raises:
        OutputError: The disk refuses.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb", buffering=1 << 20) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OutputError(
                f"{path}: it cannot be written: {error.strerror or error}. All answers are in "
                f"{path}.run; make room and run the same command again."
            ) from None
        raise
