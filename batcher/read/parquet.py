"""Parquet to record batches in bounded memory. Touches: files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
    path: str,
    columns: Sequence[str] | None = None,
    needed: Callable[[int, int], bool] = lambda _first, _rows: True,
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Record batches as (row of the first record in this file, batch).

    Args:
        path: The file.
        columns: Only these columns, read in the file's order; None for all.
        needed: Told a row group's first row and its length; one that is not needed is not read.
    """
    with pq.ParquetFile(path, **_LEAN) as file:
        footer = file.metadata
        names = None if columns is None else [n for n in file.schema_arrow.names if n in columns]
        at = 0
        for group in range(footer.num_row_groups):
            held = footer.row_group(group)
            if not needed(at, held.num_rows):
                at += held.num_rows
                continue
            mean = max(1, held.total_byte_size // max(1, held.num_rows))
            batch_rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // mean))
            for batch in file.iter_batches(batch_rows, row_groups=[group], columns=names):
                yield at, batch
                at += batch.num_rows


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
