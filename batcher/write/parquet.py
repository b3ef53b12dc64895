"""The output as Parquet: the input's columns in their types, then the result's. Touches: files.

It is one file, or a folder of parts that together are the same.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
import pyarrow.parquet as pq

from batcher.write import atomic, parts
from batcher.write.columns import COLUMNS, TIME, renames, result_names
from batcher.write.results import Confirm, ResultReader, Written
from batcher.write.schema_types import Shape

__all__ = ["Block", "NotOfType", "result_schema", "write_parquet"]

_GROUP_BYTES = 16 << 20
_GROUP_ROWS = 32 << 10
_PART_BYTES = 512 << 20
_TIME = pa.timestamp("ms", "UTC")
_RESULT = pa.schema(
    (name, _TIME if column.type == TIME else pa.type_for_alias(column.type))
    for name, column in COLUMNS.items()
)
_JOURNAL = pa.schema(
    pa.field(field.name, pa.int64()) if field.type == _TIME else field for field in _RESULT
)
"""The same as they are in the journal, where a time is a number."""

Line = tuple[int, int, bytes]
"""Index of its row in a block, sample, and the line."""


def result_schema() -> pa.Schema:
    """The columns of an answer alone, for batches that are converted."""
    names = result_names(keep_raw=False, shown=("tool_calls", "logprobs"))
    return pa.schema([_RESULT.field(name) for name in names])


class Block(NamedTuple):
    """Rows of the input.

    Attributes:
        positions: Of each row.
        arrays: One a column.
        names: The `custom_id` of each row, None where it has none.
    """

    positions: list[int]
    arrays: list[pa.Array]
    names: list[str | None]

    @property
    def row_bytes(self) -> int:
        """The mean size of a row, without what a dictionary holds, which rows share."""
        held = (a.indices if pa.types.is_dictionary(a.type) else a for a in self.arrays)
        return int(sum(array.nbytes for array in held)) // len(self.positions)


class NotOfType(ValueError):
    """A value of `parsed` does not fit its type: it is too large, or was checked by another schema."""


def write_parquet(
    path: Path,
    blocks: Iterator[Block],
    schema: pa.Schema,
    reader: ResultReader,
    *,
    keep_raw: bool,
    parsed: Shape | None = None,
    as_json: Collection[str] = (),
    confirm: Confirm = lambda _written: None,
) -> Written:
    """Writes an output as Parquet.

    Args:
        path: The output; without the suffix `.parquet` it is a folder of parts.
        blocks: The rows of the input, with one array for each field of `schema`.
        schema: The input's columns.
        reader: Finds the lines.
        keep_raw: Whether there is a `response` column.
        parsed: Of the `parsed` column; None for none.
        as_json: Input columns that hold JSON as text.
        confirm: Called before the old output is replaced.

    Raises:
        NotOfType: A value of `parsed` is not of its type.
        OutputError: The disk refuses.
    """
    layout = _Layout(schema, reader.shown, as_json, parsed, keep_raw=keep_raw)
    written = Written(renamed=layout.renamed)
    with _writer(path, layout.schema) as writer:
        groups = _Groups(writer, written)
        for block in blocks:
            lines: list[Line] = []
            pending, own = 0, block.row_bytes
            for at, sample, line in reader.lines(block.positions):
                if line is None:
                    written.missing += 1
                    continue
                lines.append((at, sample, line))
                pending += len(line) + own
                if pending >= _GROUP_BYTES // 4:
                    groups.add(layout.table(block, lines), pending)
                    lines, pending = [], 0
            if lines:
                groups.add(layout.table(block, lines), pending)
        groups.flush()
        confirm(written)
    return written


class _Groups:
    """Collects tables to row groups of some 16 MB, and writes these."""

    def __init__(self, writer: pq.ParquetWriter | _Parts, written: Written) -> None:
        self._writer, self._written = writer, written
        self._held: list[pa.Table] = []
        self._bytes = self._rows = 0

    def add(self, table: pa.Table, size: int) -> None:
        """Takes a table of about so many bytes."""
        self._held.append(table)
        self._bytes, self._rows = self._bytes + size, self._rows + len(table)
        if self._bytes >= _GROUP_BYTES or self._rows >= _GROUP_ROWS:
            self.flush()

    def flush(self) -> None:
        """Writes what is held."""
        if not self._held:
            return
        table = pa.concat_tables(self._held)
        self._held.clear()
        self._bytes = self._rows = 0
        self._writer.write_table(table, row_group_size=_GROUP_ROWS)
        for item in pc.value_counts(table["status"]).to_pylist():
            self._written.statuses[item["values"]] += item["counts"]


@contextlib.contextmanager
def _writer(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter | _Parts]:
    if path.suffix == ".parquet":
        with (
            atomic.replacing(path) as file,
            pq.ParquetWriter(file, schema, compression="zstd") as writer,
        ):
            yield writer
    else:
        with parts.replacing(path) as folder, contextlib.ExitStack() as opened:
            yield _Parts(folder, schema, opened)


class _Parts:
    """Writes files in a folder; begins a new one when one has reached `_PART_BYTES`."""

    def __init__(self, folder: Path, schema: pa.Schema, opened: contextlib.ExitStack) -> None:
        self._folder = folder
        self._schema = schema
        self._opened = opened
        self._count = 0
        self._begin()

    def _begin(self) -> None:
        self._opened.close()
        path = self._folder / parts.file_name(self._count)
        self._file = self._opened.enter_context(atomic.synced_file(path))
        writer = pq.ParquetWriter(self._file, self._schema, compression="zstd")
        self._writer = self._opened.enter_context(writer)
        self._count += 1

    def write_table(self, table: pa.Table, row_group_size: int) -> None:
        for at in range(0, len(table), row_group_size):
            if self._file.tell() >= _PART_BYTES:
                self._begin()
            self._writer.write_table(table.slice(at, row_group_size))


class _Layout:
    """Which columns the output has, and how a table of them is made.

    Attributes:
        schema: Of the output.
        renamed: Input columns that get another name.
    """

    def __init__(
        self,
        schema: pa.Schema,
        shown: Sequence[str],
        as_json: Collection[str],
        parsed: Shape | None,
        *,
        keep_raw: bool,
    ) -> None:
        custom_id = schema.get_field_index("custom_id")
        if custom_id >= 0 and ("custom_id" in as_json or not _is_text(schema.types[custom_id])):
            custom_id = -1  # Only one of strings is the same as the result's and not repeated.
        self._kept = [at for at in range(len(schema)) if at != custom_id]
        self.renamed = renames(schema.names[at] for at in self._kept)
        self._parsed = parsed
        shown = [*shown, *(["parsed"] if parsed else [])]
        self._names = result_names(keep_raw=keep_raw, shown=shown)
        results = [_RESULT.field(name) for name in self._names]
        if parsed is not None:
            results[self._names.index("parsed")] = pa.field("parsed", parsed.type)
        own = [schema.field(at) for at in self._kept]
        renamed = (pa.field(self.renamed.get(field.name, field.name), field.type) for field in own)
        self.schema = pa.schema([*renamed, *results])

    def table(self, block: Block, lines: Sequence[Line]) -> pa.Table:
        """The output rows of some lines of a block."""
        places, samples, texts = zip(*lines, strict=True)
        found = pj.read_json(
            io.BytesIO(b"\n".join(texts) + b"\n"),
            pj.ReadOptions(use_threads=False, block_size=max(1 << 20, 2 * max(map(len, texts)))),
            pj.ParseOptions(explicit_schema=_JOURNAL, unexpected_field_behavior="ignore"),
        )
        results: dict[str, Any] = {name: _column(name, found[name]) for name in self._names}
        names, positions = block.names, block.positions
        results["row"] = pa.array([positions[at] for at in places], pa.int64())
        results["sample"] = pa.array(samples, pa.int32())
        results["custom_id"] = pa.array(
            [str(positions[at]) if (name := names[at]) is None else name for at in places],
            pa.string(),
        )
        if self._parsed is not None:
            try:
                results["parsed"] = self._parsed.array(found["parsed"].to_pylist())
            except pa.ArrowInvalid:
                raise NotOfType from None
        take = pa.array(places, pa.int64())
        own = (block.arrays[at].take(take) for at in self._kept)
        return pa.Table.from_arrays([*own, *results.values()], schema=self.schema)


def _column(name: str, values: pa.ChunkedArray) -> pa.ChunkedArray:
    """The values of an output column, from the field of the journal."""
    column = COLUMNS[name]
    if column.missing is not None:
        values = pc.fill_null(values, column.missing)
    if column.null is not None:
        values = pc.if_else(pc.equal(values, column.null), None, values)
    return values.cast(_TIME) if column.type == TIME else values


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
