"""The output as Parquet: the input's columns in their types, then the result's. Touches: files.

It is one file, or a folder of parts that together are the same.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
import pyarrow.parquet as pq

from batcher.write.columns import COLUMNS, renames, result_names
from batcher.write.parts import name_of
from batcher.write.results import Confirm, ResultReader, Written, synced, whole, whole_folder
from batcher.write.schema_types import Shape

__all__ = ["Block", "NotOfType", "result_schema", "write_parquet"]

_GROUP_BYTES = 16 << 20
_GROUP_ROWS = 32 << 10
_PART_BYTES = 512 << 20
_TIME = pa.timestamp("ms", "UTC")
_RESULT = pa.schema(
    (name, _TIME if kind.startswith("timestamp") else pa.type_for_alias(kind))
    for name, kind in COLUMNS.items()
)
_JOURNAL = pa.schema(
    pa.field(field.name, pa.int64()) if field.name == "created_at" else field for field in _RESULT
)
"""The same as they stand in the journal, where time is a number."""


def result_schema() -> pa.Schema:
    """Columns of results alone: those that every output has, and what answers may have besides."""
    names = result_names(keep_raw=False, shown=("tool_calls", "logprobs"))
    return pa.schema([_RESULT.field(name) for name in names])


class Block(NamedTuple):
    """Rows of the input.

    Attributes:
        positions: Of each row.
        arrays: One for each column.
        names: The `custom_id` of each row, None for none.
    """

    positions: list[int]
    arrays: list[pa.Array]
    names: list[str | None]

    @property
    def row_bytes(self) -> int:
        """The mean size of a row; what a dictionary holds is shared, and not counted."""
        held = (a.indices if pa.types.is_dictionary(a.type) else a for a in self.arrays)
        return int(sum(array.nbytes for array in held)) // len(self.positions)


class NotOfType(ValueError):
    """A value of `parsed` is not of its type: too large, or checked by another schema."""


def write_parquet(
    path: Path,
    blocks: Iterator[Block],
    schema: pa.Schema,
    picks: ResultReader,
    *,
    keep_raw: bool,
    parsed: Shape | None = None,
    as_json: Collection[str] = (),
    confirm: Confirm = lambda _written: None,
) -> Written:
    """Writes Parquet; see `Written`.

    `confidences`, `tool_calls`, `logprobs` and `copied` are there when any row has them.

    Args:
        path: The output; without the suffix `.parquet` it is a folder of parts.
        blocks: The input's rows, with one array for each field of `schema`.
        schema: The input's columns.
        picks: Finds the lines.
        keep_raw: Whether there is a `response` column.
        parsed: Of the `parsed` column; None for none.
        as_json: Columns that hold JSON as text.
        confirm: Told what is written, before it takes the place of the old file; what it raises
            leaves that as it is.

    Raises:
        NotOfType: A value of `parsed` is not of its type.
        OutputError: The disk refuses.
    """
    written = Written()
    custom_id = schema.get_field_index("custom_id")
    # One of texts is not repeated: the result's has the same.
    same = custom_id >= 0 and "custom_id" not in as_json and _is_text(schema.types[custom_id])
    kept = [i for i in range(len(schema)) if not (same and i == custom_id)]
    renamed = renames(schema.names[i] for i in kept)
    written.renamed = renamed
    fields = [pa.field(renamed.get(name := schema.names[i], name), schema.types[i]) for i in kept]
    shown = [*picks.shown, *(["parsed"] if parsed else [])]
    names = result_names(keep_raw=keep_raw, shown=shown)
    results = [_RESULT.field(name) for name in names]
    if parsed is not None:
        results[names.index("parsed")] = pa.field("parsed", parsed.type)
    out = pa.schema([*fields, *results])
    table = partial(_table, out, kept, names, parsed)
    with _writer(path, out) as writer:
        held: list[pa.Table] = []
        size = rows = 0
        for block in blocks:
            places: list[int] = []
            samples: list[int] = []
            lines: list[bytes] = []
            pending, own = 0, block.row_bytes
            for place, sample, line in picks.lines(block.positions):
                if line is None:
                    written.missing += 1
                    continue
                places.append(place)
                samples.append(sample)
                lines.append(line)
                pending += len(line) + own
                if pending >= _GROUP_BYTES // 4:
                    held.append(table(block, places, samples, lines))
                    size, rows = size + pending, rows + len(places)
                    places, samples, lines, pending = [], [], [], 0
                    if size >= _GROUP_BYTES:
                        _flush(writer, held, written)
                        held, size, rows = [], 0, 0
            if lines:
                held.append(table(block, places, samples, lines))
                size, rows = size + pending, rows + len(places)
            if size >= _GROUP_BYTES or rows >= _GROUP_ROWS:
                _flush(writer, held, written)
                held, size, rows = [], 0, 0
        _flush(writer, held, written)
        confirm(written)
    return written


@contextlib.contextmanager
def _writer(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter | _Parts]:
    if path.suffix == ".parquet":
        with whole(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
            yield writer
    else:
        with whole_folder(path) as folder, contextlib.ExitStack() as opened:
            yield _Parts(folder, schema, opened)


class _Parts:
    """A writer of files in a folder: what has come to `_PART_BYTES` is followed by another one."""

    def __init__(self, folder: Path, schema: pa.Schema, opened: contextlib.ExitStack) -> None:
        self._folder = folder
        self._schema = schema
        self._opened = opened
        self._count = 0
        self._begin()

    def _begin(self) -> None:
        self._opened.close()
        self._file = self._opened.enter_context(synced(self._folder / name_of(self._count)))
        writer = pq.ParquetWriter(self._file, self._schema, compression="zstd")
        self._writer = self._opened.enter_context(writer)
        self._count += 1

    def write_table(self, table: pa.Table, row_group_size: int) -> None:
        for at in range(0, len(table), row_group_size):
            if self._file.tell() >= _PART_BYTES:
                self._begin()
            self._writer.write_table(table.slice(at, row_group_size))


def _flush(writer: pq.ParquetWriter | _Parts, held: list[pa.Table], written: Written) -> None:
    if not held:
        return
    table = pa.concat_tables(held)
    writer.write_table(table, row_group_size=_GROUP_ROWS)
    written.rows += table.num_rows
    for item in pc.value_counts(table["status"]).to_pylist():
        written.statuses[item["values"]] += item["counts"]


def _table(
    out: pa.Schema,
    kept: list[int],
    names: list[str],
    parsed: Shape | None,
    block: Block,
    places: list[int],
    samples: list[int],
    lines: list[bytes],
) -> pa.Table:
    """One block of output rows."""
    found = pj.read_json(
        io.BytesIO(b"\n".join(lines) + b"\n"),
        pj.ReadOptions(use_threads=False, block_size=max(1 << 20, 2 * max(map(len, lines)))),
        pj.ParseOptions(explicit_schema=_JOURNAL, unexpected_field_behavior="ignore"),
    )
    take = pa.array(places, pa.int64())
    results: dict[str, Any] = {name: found[name] for name in names}
    names_of, positions = block.names, block.positions
    results["row"] = pa.array([positions[place] for place in places], pa.int64())
    results["sample"] = pa.array(samples, pa.int32())
    results["custom_id"] = pa.array(
        [str(positions[p]) if (n := names_of[p]) is None else n for p in places], pa.string()
    )
    if parsed is not None:
        try:
            results["parsed"] = parsed.array(found["parsed"].to_pylist())
        except pa.ArrowInvalid:
            raise NotOfType from None
    results["attempts"] = pc.fill_null(found["attempts"], 0)
    if "copied" in results:
        results["copied"] = pc.fill_null(found["copied"], False)
    results["created_at"] = found["created_at"].cast(_TIME)
    results["model"] = pc.if_else(pc.equal(found["model"], ""), None, found["model"])
    return pa.Table.from_arrays(
        [*(block.arrays[i].take(take) for i in kept), *(results[name] for name in names)],
        schema=out,
    )


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
