"""Parquet to record batches in bounded memory. Touches: files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batcher.errors import JobError
from batcher.read import object_store

__all__ = [
    "Lost",
    "batches",
    "check",
    "check_names",
    "count",
    "dicts",
    "plain",
    "plain_batch",
    "schema",
    "values",
    "without_nulls",
]

# With pyarrow's defaults a file of one large row group is held whole: 510 MB against 10 MB.
_LEAN = {"pre_buffer": False, "buffer_size": 1 << 20}
_BATCH_BYTES = 4 << 20
_BATCH_ROWS = 1000
_LOOK_ROWS = 16
_POWERS = np.array([float(f"1e{power}") for power in range(23)])
Lost = Callable[[str, Sequence[int], str], None]


def schema(path: str) -> pa.Schema:
    """Names and types of the columns, from the footer, as `plain` gives them."""
    found = pq.read_schema(object_store.source(path))
    return pa.schema([field.with_type(plain(field.type)) for field in found])


def count(path: str) -> int:
    """Number of rows, from the footer."""
    return int(pq.read_metadata(object_store.source(path)).num_rows)


def batches(
    path: str,
    columns: Sequence[str] | None = None,
    needed: Callable[[int, int], bool] = lambda _first, _rows: True,
    lost: Lost = lambda _column, _rows, _why: None,
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Record batches as (row of the first record in this file, batch).

    A cell that cannot be read is null: one that is not UTF-8, or one in a damaged part of the file.

    Args:
        path: The file.
        columns: Only these columns, read in the file's order; None for all.
        needed: Told a row group's first row and its length; one that is not needed is not read.
        lost: Told what cannot be read, before the batch it is in: the column, the rows of this file in
            order, and why.

    Raises:
        OSError: The file cannot be read, or holds what Parquet cannot.
    """
    try:
        yield from _batches(path, columns, needed, lost)
    except pa.ArrowException as error:
        raise OSError(str(error)) from None


def _batches(
    path: str, columns: Sequence[str] | None, needed: Callable[[int, int], bool], lost: Lost
) -> Iterator[tuple[int, pa.RecordBatch]]:
    with pq.ParquetFile(object_store.source(path), **_LEAN) as file:
        footer = file.metadata
        names = [n for n in file.schema_arrow.names if columns is None or n in columns]
        end = 0
        for group in range(footer.num_row_groups):
            held = footer.row_group(group)
            at, end = end, end + held.num_rows
            if not needed(at, held.num_rows):
                continue
            size = _batch_rows(file, group, names)
            try:
                for batch in file.iter_batches(size, row_groups=[group], columns=names):
                    yield at, _sound(batch, at, lost)
                    at += batch.num_rows
            except (OSError, pa.ArrowException) as error:
                if _of_the_disk(error):
                    raise
                for first, batch in _by_column(file, group, names, end, lost):
                    if (rest := batch.slice(max(0, at - first))).num_rows:
                        yield max(at, first), _sound(rest, max(at, first), lost)


def _batch_rows(file: pq.ParquetFile, group: int, names: list[str]) -> int:
    """How many rows of a row group are some megabytes."""
    held = file.metadata.row_group(group)
    mean = held.total_byte_size / max(1, held.num_rows)
    if held.num_rows > _BATCH_ROWS:
        # The footer counts a text that is repeated once; the first rows show what rows take in memory.
        with contextlib.suppress(OSError, pa.ArrowException, StopIteration):
            few = next(file.iter_batches(_LOOK_ROWS, row_groups=[group], columns=names))
            mean = max(mean, few.nbytes / max(1, few.num_rows))
    return max(1, min(_BATCH_ROWS, int(_BATCH_BYTES / max(1, mean))))


def _of_the_disk(error: BaseException) -> bool:
    """Whether reading failed, and not what was read is damaged."""
    return isinstance(error, OSError) and error.errno is not None


def _by_column(
    file: pq.ParquetFile, group: int, names: list[str], end: int, lost: Lost
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """A damaged row group, each column by itself: one is null from where it cannot be read any more."""
    schema = pa.schema([file.schema_arrow.field(name) for name in names])
    readers: dict[str, Iterator[pa.RecordBatch] | None] = {
        name: file.iter_batches(_LOOK_ROWS, row_groups=[group], columns=[name]) for name in names
    }
    at = end - file.metadata.row_group(group).num_rows
    while at < end:
        rows, arrays = min(_LOOK_ROWS, end - at), []
        for name, kind in zip(names, schema.types, strict=True):
            array = None
            if (reader := readers[name]) is not None:
                try:
                    array = next(reader).column(name)
                    if len(array) != rows:
                        raise OSError("there are not as many values as rows")
                except (OSError, pa.ArrowException, StopIteration) as error:
                    if _of_the_disk(error):
                        raise
                    why = str(error) or "it ends too early"
                    lost(name, range(at, end), f"is damaged ({why.splitlines()[0].rstrip('.')})")
                    readers[name] = array = None
            arrays.append(pa.nulls(rows, kind) if array is None else array)
        yield at, pa.RecordBatch.from_arrays(arrays, schema=schema)
        at += rows


def _sound(batch: pa.RecordBatch, at: int, lost: Lost) -> pa.RecordBatch:
    """The batch in plain types, null where a cell is not what its type says."""
    arrays = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        column = _plain_array(column)
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            column, broken = _whole_cells(column)
            if broken:
                lost(name, [at + row for row in broken], "is not UTF-8")
        arrays.append(column)
    return pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)


def _whole_cells(column: pa.Array) -> tuple[pa.Array, list[int]]:
    """The column with null in the place of cells that are not valid, and which these are."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        values, broken = _whole_cells(column.dictionary.take(column.indices))
        values = values.dictionary_encode()
        indices = values.indices.cast(kind.index_type)
        return pa.DictionaryArray.from_arrays(
            indices, values.dictionary, ordered=kind.ordered
        ), broken
    broken = []
    for row in range(len(column)):
        try:
            column.take(pa.array([row])).validate(full=True)
        except pa.ArrowInvalid:
            broken.append(row)
    kept = pa.array([None if row in {*broken} else row for row in range(len(column))], pa.int64())
    return column.take(kept), broken


def check(path: str) -> None:
    """Whether the columns can be told apart by their names.

    Raises:
        JobError: Two have one name, or it is no Parquet.
    """
    try:
        names = pq.read_schema(object_store.source(path)).names
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
    """The type without views and runs, with which pyarrow can do little; polars has all texts as views.

    >>> plain(pa.list_(pa.string_view())), plain(pa.run_end_encoded(pa.int32(), pa.bool_()))
    (ListType(list<item: string>), DataType(bool))
    """
    types = pa.types
    if types.is_string_view(kind):
        return pa.string()
    if types.is_binary_view(kind):
        return pa.binary()
    if types.is_run_end_encoded(kind):
        return plain(kind.value_type)
    if types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, plain(kind.value_type), kind.ordered)
    if types.is_struct(kind):
        return pa.struct([field.with_type(plain(field.type)) for field in kind])
    if types.is_list(kind) or types.is_list_view(kind):
        return pa.list_(kind.value_field.with_type(plain(kind.value_type)))
    if types.is_large_list(kind) or types.is_large_list_view(kind):
        return pa.large_list(kind.value_field.with_type(plain(kind.value_type)))
    if types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(plain(kind.value_type)), kind.list_size)
    if types.is_map(kind):
        return pa.map_(plain(kind.key_type), plain(kind.item_type))
    return kind


def plain_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with the types that `plain` gives."""
    arrays = [_plain_array(column) for column in batch.columns]
    return pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)


def _plain_array(array: pa.Array) -> pa.Array:
    types, kind = pa.types, plain(array.type)
    if kind == array.type:
        return array
    if types.is_dictionary(kind):
        values = array.dictionary.cast(kind.value_type, safe=False)
        return pa.DictionaryArray.from_arrays(array.indices, values, ordered=kind.ordered)
    if types.is_run_end_encoded(array.type):
        return _plain_array(pc.run_end_decode(array))
    if types.is_list_view(array.type) or types.is_large_list_view(array.type):
        # pyarrow 26 casts a view to an array that is not valid.
        ends = pc.cumulative_sum(pc.fill_null(pc.list_value_length(array), 0))
        offsets = pa.concat_arrays([pa.array([0], ends.type), ends])
        made = pa.ListArray if types.is_list(kind) else pa.LargeListArray
        values = _plain_array(array.flatten())
        return made.from_arrays(offsets, values, type=kind, mask=array.is_null())
    # A view that is not UTF-8 becomes a text that is not.
    return array.cast(kind, safe=False)


def dicts(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows as Python values that JSON has, see `values`."""
    names = batch.schema.names
    return [
        dict(zip(names, row, strict=True)) for row in zip(*map(values, batch.columns), strict=True)
    ]


def values(array: pa.Array) -> list[Any]:
    """The cells as Python values, as JSON would have them.

    A map is a dict; its keys are texts. A float of 32 or 16 bits has the digits that tell it from its
    neighbours, and no more; NaN and infinity, which JSON does not have, are None. A time that Python has
    none for is text, as ISO 8601 has it.
    """
    kind, types = array.type, pa.types
    if types.is_dictionary(kind):
        return values(array.dictionary.take(array.indices))
    if types.is_floating(kind):
        return _floats(array)
    if types.is_struct(kind):
        columns = [values(field) for field in array.flatten()]
        names = [field.name for field in kind]
        rows = zip(*columns, strict=True) if columns else ((),) * len(array)
        found: list[Any] = [dict(zip(names, row, strict=True)) for row in rows]
    elif types.is_map(kind):
        ends = array.offsets.to_pylist()
        first, count = ends[0], ends[-1] - ends[0]
        keys = values(array.keys.slice(first, count))
        pairs = [*zip(keys, values(array.items.slice(first, count)), strict=True)]
        found = [_mapped(pairs[a - first : b - first]) for a, b in pairwise(ends)]
    elif types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inside = values(array.flatten())
        found, at = [], 0
        for length in pc.fill_null(pc.list_value_length(array), 0).to_pylist():
            found.append(inside[at : at + length])
            at += length
    elif (types.is_timestamp(kind) or types.is_time(kind)) and kind.unit == "ns":
        return [t and t.replace(" ", "T", 1) for t in array.cast(pa.string()).to_pylist()]
    elif types.is_duration(kind) and kind.unit == "ns":
        found = array.cast(pa.int64()).to_pylist()
    else:
        return _cells(array)
    if array.null_count:
        for row, valid in enumerate(array.is_valid().to_pylist()):
            if not valid:
                found[row] = None
    return found


def _cells(array: pa.Array) -> list[Any]:
    try:
        found: list[Any] = array.to_pylist()
    except (ValueError, OverflowError):  # A year past 9999.
        return [_cell(cell) for cell in array]
    return found


def _cell(cell: pa.Scalar) -> Any:
    try:
        return cell.as_py()
    except (ValueError, OverflowError):
        return cell.value  # The number that stands there: days, seconds or parts of them.


def _mapped(pairs: list[tuple[Any, Any]]) -> dict[str, Any] | list[tuple[Any, Any]]:
    """A dict of the pairs of a map; the pairs where two keys are one text."""
    found = {key if isinstance(key, str) else _key(key): value for key, value in pairs}
    return found if len(found) == len(pairs) else pairs


def _key(key: Any) -> str:
    text = msgspec.json.encode(key, enc_hook=str).decode()
    return text[1:-1] if text.startswith('"') else text


def _floats(array: pa.Array) -> list[Any]:
    if pc.all(pc.is_finite(array)).as_py() is False:
        array = pc.if_else(pc.is_finite(array), array, None)
    if array.type.bit_width == 64:
        return _cells(array)
    found: list[Any] = _shortest(array.to_numpy(zero_copy_only=False)).tolist()
    if array.null_count:
        return [
            f if valid else None
            for f, valid in zip(found, array.is_valid().to_pylist(), strict=True)
        ]
    return found


def _shortest(floats: Any) -> Any:
    """Floats of 64 bits with as few digits as tell those of 32 or 16 bits from their neighbours.

    Six digits always survive a float of 32 bits, and nine always suffice. Up to 10**22 a power of ten
    is exact, and so is what it divides; what is farther away is found by its text.
    """
    wide = floats.astype(np.float64)
    found = wide.copy()
    with np.errstate(all="ignore"):
        size = np.nan_to_num(np.floor(np.log10(np.abs(wide))), neginf=0.0).astype(np.int64)
        for digits in range(9, 5, -1) if floats.dtype == np.float32 else range(5, 0, -1):
            up, down = (_POWERS[np.clip(sign * (digits - 1 - size), 0, 22)] for sign in (1, -1))
            near = np.rint(wide * up / down) / up * down
            found = np.where(near.astype(floats.dtype) == floats, near, found)
    far = (np.abs(size) > 13) & np.isfinite(wide)
    found[far] = [float(str(number)) for number in floats[far]]
    return found


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
