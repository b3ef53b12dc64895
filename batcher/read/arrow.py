"""Arrow types and arrays in forms that the rest of the program can use: plain types, JSON values. Touches: nothing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batcher.errors import JobError

__all__ = ["check_names", "dicts", "plain", "plain_array", "plain_batch", "values"]

_POWERS = np.array([float(f"1e{power}") for power in range(23)])


def check_names(names: Sequence[str], where: str) -> None:
    """Checks that columns can be told apart; raises JobError when two have one name."""
    if len(set(names)) < len(names):
        name = next(name for name in names if names.count(name) > 1)
        raise JobError(f"{where}: it has two columns named {name!r}; rename one.")


def plain(kind: pa.DataType) -> pa.DataType:
    """Replaces views and runs in a type, which pyarrow hardly supports; polars writes all text as views.

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
    """Converts a batch to the types that `plain` gives."""
    arrays = [plain_array(column) for column in batch.columns]
    return pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)


def plain_array(array: pa.Array) -> pa.Array:
    """Converts an array to the type that `plain` gives."""
    types, kind = pa.types, plain(array.type)
    if kind == array.type:
        return array
    if types.is_dictionary(kind):
        values = array.dictionary.cast(kind.value_type, safe=False)
        return pa.DictionaryArray.from_arrays(array.indices, values, ordered=kind.ordered)
    if types.is_run_end_encoded(array.type):
        return plain_array(pc.run_end_decode(array))
    if types.is_list_view(array.type) or types.is_large_list_view(array.type):
        # pyarrow 26 casts a view to an array that is not valid.
        ends = pc.cumulative_sum(pc.fill_null(pc.list_value_length(array), 0))
        offsets = pa.concat_arrays([pa.array([0], ends.type), ends])
        made = pa.ListArray if types.is_list(kind) else pa.LargeListArray
        values = plain_array(array.flatten())
        return made.from_arrays(offsets, values, type=kind, mask=array.is_null())
    # A view of invalid UTF-8 becomes text of invalid UTF-8.
    return array.cast(kind, safe=False)


def dicts(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Converts the rows to Python values that JSON has, see `values`."""
    names = batch.schema.names
    return [
        dict(zip(names, row, strict=True)) for row in zip(*map(values, batch.columns), strict=True)
    ]


def values(array: pa.Array) -> list[Any]:
    """Converts the cells to Python values that JSON has.

    A map becomes a dict with text keys. A float of 32 or 16 bits gets the digits that tell it from its
    neighbours, and no more. NaN and infinity, which JSON does not have, become None. A time that
    Python's types cannot hold becomes text in ISO 8601.
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
        found = [_dict_of(pairs[a - first : b - first]) for a, b in pairwise(ends)]
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
        return cell.value  # The number itself: of days, seconds or parts of them.


def _dict_of(pairs: list[tuple[Any, Any]]) -> dict[str, Any] | list[tuple[Any, Any]]:
    """The pairs of a map as a dict; unchanged where two keys have the same text."""
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
    """Floats of 64 bits with the fewest digits that tell floats of 32 or 16 bits from their neighbours.

    A float of 32 bits keeps six digits, and nine always suffice. Powers of ten are exact up to 10**22,
    and so are quotients by them; numbers farther out are converted through their text.
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
