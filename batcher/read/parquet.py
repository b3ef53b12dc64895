"""Parquet to record batches in bounded memory. Touches: files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["batches", "count", "schema", "without_nulls"]

# With pyarrow's defaults a file of one large row group is held whole: 510 MB against 10 MB.
_LEAN = {"pre_buffer": False, "buffer_size": 1 << 20}
_BATCH_BYTES = 16 << 20
_BATCH_ROWS = 1000


def schema(path: str) -> pa.Schema:
    """Names and types of the columns, from the footer."""
    return pq.read_schema(path)


def count(path: str) -> int:
    """Number of rows, from the footer."""
    return int(pq.read_metadata(path).num_rows)


def batches(
    path: str, columns: Sequence[str] | None = None, start: int = 0
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Record batches as (row of the first record in this file, batch), from row `start` on.

    Args:
        path: The file.
        columns: Only these columns, read in the file's order; None for all.
        start: Row to begin at; whole row groups before it are not read.
    """
    with pq.ParquetFile(path, **_LEAN) as file:
        footer = file.metadata
        rows, groups = 0, []
        first = None
        size = 0
        for group in range(footer.num_row_groups):
            held = footer.row_group(group)
            if rows + held.num_rows > start:
                first = rows if first is None else first
                groups.append(group)
                size += held.total_byte_size
            rows += held.num_rows
        if not groups or first is None:
            return
        names = None if columns is None else [n for n in file.schema_arrow.names if n in columns]
        mean = max(1, size // max(1, rows - first))
        batch_rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // mean))
        at = first
        for batch in file.iter_batches(batch_rows, row_groups=groups, columns=names):
            end = at + batch.num_rows
            if end > start:
                skip = max(0, start - at)
                yield at + skip, batch.slice(skip)
            at = end


def without_nulls(value: Any) -> Any:
    """A message or body without its null fields, `content` excepted.

    Parquet gives every struct all fields of its type, so that a message without a `name` comes out
    with `name: null`, which gateways refuse.
    """
    if isinstance(value, dict):
        return {
            name: without_nulls(inside)
            for name, inside in value.items()
            if inside is not None or name == "content"
        }
    if isinstance(value, list):
        return [without_nulls(inside) for inside in value]
    return value
