"""Parquet to record batches in bounded memory. Touches: files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batcher import objects
from batcher.errors import JobError

__all__ = [
    "batches",
    "check",
    "check_names",
    "count",
    "dicts",
    "plain",
    "plain_batch",
    "schema",
    "without_nulls",
]

# With pyarrow's defaults a file of one large row group is held whole: 510 MB against 10 MB.
_LEAN = {"pre_buffer": False, "buffer_size": 1 << 20}
_BATCH_BYTES = 16 << 20
_BATCH_ROWS = 1000


def schema(path: str) -> pa.Schema:
    """Names and types of the columns, from the footer, as `plain` gives them."""
    found = pq.read_schema(objects.source(path))
    return pa.schema([field.with_type(plain(field.type)) for field in found])


def count(path: str) -> int:
    """Number of rows, from the footer."""
    return int(pq.read_metadata(objects.source(path)).num_rows)


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

    Raises:
        OSError: The file cannot be read, or holds what Parquet cannot.
    """
    try:
        yield from _batches(path, columns, needed)
    except pa.ArrowException as error:
        raise OSError(str(error)) from None


def _batches(
    path: str, columns: Sequence[str] | None, needed: Callable[[int, int], bool]
) -> Iterator[tuple[int, pa.RecordBatch]]:
    with pq.ParquetFile(objects.source(path), **_LEAN) as file:
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
                yield at, plain_batch(batch)
                at += batch.num_rows


def check(path: str) -> None:
    """Whether the columns can be told apart by their names.

    Raises:
        JobError: Two have one name, or it is no Parquet.
    """
    try:
        names = pq.read_schema(objects.source(path)).names
    except (OSError, pa.ArrowException) as error:
        why = str(error).rstrip(".")
        raise JobError(f"{path}: it cannot be read as Parquet: {why}.") from None
    check_names(names, path)


def check_names(names: Sequence[str], where: str) -> None:
    """Whether columns can be told apart; raises JobError when two have one name."""
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise JobError(f"{where}: it has two columns named {twice!r}; rename one.")


def plain(kind: pa.DataType) -> pa.DataType:
    """The type without views, with which pyarrow can do little; polars has all its texts so.

    >>> plain(pa.list_(pa.string_view()))
    ListType(list<item: string>)
    """
    types = pa.types
    if types.is_string_view(kind):
        return pa.string()
    if types.is_binary_view(kind):
        return pa.binary()
    if types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, plain(kind.value_type), kind.ordered)
    if types.is_struct(kind):
        return pa.struct([field.with_type(plain(field.type)) for field in kind])
    if types.is_list(kind) or types.is_large_list(kind):
        made = pa.list_ if types.is_list(kind) else pa.large_list
        return made(kind.value_field.with_type(plain(kind.value_type)))
    return kind


def plain_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with the types that `plain` gives."""
    arrays = [_plain_array(column) for column in batch.columns]
    return pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)


def _plain_array(array: pa.Array) -> pa.Array:
    kind = plain(array.type)
    if kind == array.type:
        return array
    if pa.types.is_dictionary(kind):
        values = array.dictionary.cast(kind.value_type)
        return pa.DictionaryArray.from_arrays(array.indices, values, ordered=kind.ordered)
    return array.cast(kind)


def _is_short(kind: pa.DataType) -> bool:
    """Whether there are floats of 32 or 16 bits in it."""
    if pa.types.is_nested(kind):
        return any(_is_short(kind.field(n).type) for n in range(kind.num_fields))
    return bool(pa.types.is_float32(kind) or pa.types.is_float16(kind))


def _shortest(value: Any, kind: pa.DataType) -> Any:
    """The number that is written as the one of 32 or 16 bits: 0.1, and not 0.10000000149011612."""
    if isinstance(value, float):
        if pa.types.is_float32(kind):
            return float(str(np.float32(value)))
        return float(str(np.float16(value))) if pa.types.is_float16(kind) else value
    if isinstance(value, dict) and pa.types.is_struct(kind):
        return {name: _shortest(inside, kind.field(name).type) for name, inside in value.items()}
    if isinstance(value, list) and kind.num_fields == 1:
        return [_shortest(inside, kind.field(0).type) for inside in value]
    return value


def dicts(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows as Python values; a time that Python has none for is text, as ISO 8601 has it."""
    columns = [
        [_value(cell) for cell in column] if _nanoseconds(column.type) else _values(column)
        for column in batch.columns
    ]
    names = batch.schema.names
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _nanoseconds(kind: pa.DataType) -> bool:
    """Whether there are nanoseconds in it; Python itself counts microseconds."""
    if pa.types.is_nested(kind):
        return any(_nanoseconds(kind.field(n).type) for n in range(kind.num_fields))
    temporal = pa.types.is_timestamp(kind) or pa.types.is_time(kind) or pa.types.is_duration(kind)
    return bool(temporal) and kind.unit == "ns"


def _values(column: pa.Array) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError):  # A year past 9999.
        return [_value(cell) for cell in column]
    if _is_short(column.type):
        return [_shortest(value, column.type) for value in values]
    return values


def _value(cell: pa.Scalar) -> Any:
    if not cell.is_valid:
        return None
    if isinstance(cell, pa.StructScalar):
        return {name: _value(inside) for name, inside in cell.items()}
    if isinstance(cell, pa.ListScalar | pa.LargeListScalar | pa.FixedSizeListScalar):
        return [_value(inside) for inside in cell.values]
    if not _nanoseconds(cell.type):
        try:
            return cell.as_py()
        except (ValueError, OverflowError):
            return cell.value  # The number that stands there: days, seconds or parts of them.
    if pa.types.is_duration(cell.type):
        return cell.value
    return str(cell.cast(pa.string()).as_py()).replace(" ", "T", 1)


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
