"""The Arrow types of the input's columns: those of Parquet, and inferred from the rows of other formats.

Files may differ in the type of a column. Where one Arrow type holds all values unchanged, the column has
that type; else it is a column of JSON text, with the JSON that JSONL output would have.

Touches: nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import msgspec
import pyarrow as pa

from batcher.read import arrow

__all__ = ["Block", "Columns", "Misfit", "is_deep", "names_in", "unified"]

type_json = pa.string()
Block = tuple[list[int], "pa.RecordBatch | list[dict[str, object] | None]"]
_MAX_DEPTH = 24
"""Levels of nesting in a type; pyarrow cannot read a schema of more than 100, and a list takes three."""
_MAX_FIELDS = 64
_json = msgspec.json.Encoder(decimal_format="number", enc_hook=str).encode


class Misfit(ValueError):
    """A column has values that its inferred type cannot hold.

    Attributes:
        name: The column, which has to become JSON text.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Columns:
    """Names and types of all input columns.

    Attributes:
        types: Name to type, in order of first appearance; JSON text for the names in `as_json`.
        as_json: Columns whose rows disagree, or whose values no Arrow type holds.
    """

    def __init__(self, as_json: Iterable[str] = ()) -> None:
        self.types: dict[str, pa.DataType] = {}
        self.as_json: set[str] = set(as_json)

    @classmethod
    def found_in(cls, blocks: Iterable[Block], as_json: Iterable[str] = ()) -> Columns:
        """Infers the types from all blocks; `as_json` are columns known to need JSON text."""
        columns = cls(as_json)
        for _positions, rows in blocks:
            if isinstance(rows, pa.RecordBatch):
                columns._add(rows.schema)
            else:
                columns._infer(rows)
        return columns

    @classmethod
    def of_schemas(cls, schemas: Iterable[pa.Schema], as_json: Iterable[str] = ()) -> Columns:
        """The columns of Parquet files, without their rows."""
        columns = cls(as_json)
        for schema in schemas:
            columns._add(schema)
        return columns

    def _add(self, schema: pa.Schema) -> None:
        for name, kind in zip(schema.names, schema.types, strict=True):
            self._unify(name, kind)

    def _infer(self, rows: Sequence[dict[str, object] | None]) -> None:
        names = dict.fromkeys(name for row in rows if row for name in row)
        for name in names:
            if name in self.as_json:
                self.types.setdefault(name, type_json)
                continue
            given = [row.get(name) if row else None for row in rows]
            try:
                values = pa.array(given)
            except (pa.ArrowException, OverflowError, UnicodeEncodeError):
                self._mixed(name)
                continue
            if (
                is_deep(values.type)
                or _awkward(values.type)
                or _has_bools_among_numbers(given, values)
            ):
                self._mixed(name)
            else:
                self._unify(name, values.type)

    def _unify(self, name: str, kind: pa.DataType) -> None:
        have = self.types.get(name)
        if name in self.as_json:
            self.types.setdefault(name, type_json)
        elif have is None:
            self.types[name] = kind
        elif have != kind:
            both = unified(have, kind)
            if both is None or _awkward(both):
                self._mixed(name)
            else:
                self.types[name] = both

    def _mixed(self, name: str) -> None:
        self.as_json.add(name)
        self.types[name] = type_json

    def arrays(self, rows: pa.RecordBatch | list[dict[str, object] | None]) -> Iterator[pa.Array]:
        """Yields one array per column of a block's rows, in the types found.

        In columns of JSON text a value may be `msgspec.Raw`, which is copied unchanged.

        Raises:
            Misfit: A type cannot hold a value: a nested value of another type, an integer among
                floats that no float equals, a time out of the range of a finer unit.
        """
        if not isinstance(rows, pa.RecordBatch):
            for name, kind in self.types.items():
                values = [row.get(name) if row else None for row in rows]
                try:
                    yield pa.array(_texts(values) if name in self.as_json else values, kind)
                except (pa.ArrowException, OverflowError, UnicodeEncodeError):
                    raise Misfit(name) from None
            return
        have = set(rows.schema.names)
        for name, kind in self.types.items():
            if name not in have:
                yield pa.nulls(rows.num_rows, kind)
            elif name in self.as_json:
                yield pa.array(_texts(arrow.values(rows.column(name))), kind)
            elif (column := rows.column(name)).type == kind:
                yield column
            else:
                try:
                    yield column.cast(kind)
                except pa.ArrowException:
                    raise Misfit(name) from None


def names_in(rows: pa.RecordBatch | list[dict[str, object] | None]) -> list[str | None]:
    """The `custom_id` of each row as text, whatever the type of its column."""
    if isinstance(rows, pa.RecordBatch):
        known = "custom_id" in rows.schema.names
        names = arrow.values(rows.column("custom_id")) if known else [None] * rows.num_rows
    else:
        own = (row.get("custom_id") if row else None for row in rows)
        names = [msgspec.json.decode(n) if isinstance(n, msgspec.Raw) else n for n in own]
    return [None if name is None else str(name) for name in names]


def _texts(values: Collection[Any]) -> list[str | None]:
    return [None if v is None or v == _NULL else _json(v).decode() for v in values]


_NULL = msgspec.Raw(b"null")


def unified(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Finds a type that holds the values of both unchanged; None where there is none.

    Single values may still be out of its range, which a cast finds: integers of more than 53 bits beside
    floats, signed integers beside unsigned ones of 64 bits, far times beside nanoseconds.

    >>> unified(pa.int32(), pa.float32()), unified(pa.int64(), pa.string())
    (DataType(double), None)
    >>> unified(pa.dictionary(pa.int8(), pa.string()), pa.large_string())
    DataType(large_string)
    """
    types = pa.types
    if one == other or types.is_null(other):
        return one
    if types.is_null(one):
        return other
    if types.is_dictionary(one) or types.is_dictionary(other):
        return unified(*(k.value_type if types.is_dictionary(k) else k for k in (one, other)))
    for kinds in (_numbers, _bytes, _times, _nested):
        if (found := kinds(one, other)) is not None:
            return found
    return None


def _numbers(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    types, both = pa.types, (one, other)
    floats, integers = map(types.is_floating, both), map(types.is_integer, both)
    decimals, whole = [*map(types.is_decimal, both)], [*integers]
    if any(found := [*floats]):
        if all(found):
            return max(both, key=lambda kind: kind.bit_width)
        return pa.float64() if any(whole) else None
    if all(whole):
        signed = [*map(types.is_signed_integer, both)]
        if signed[0] == signed[1]:
            return max(both, key=lambda kind: kind.bit_width)
        return pa.int64()
    if any(decimals) and all(d or w for d, w in zip(decimals, whole, strict=True)):
        # 64 bits are up to 20 digits.
        digits = [
            (k.precision - k.scale, k.scale) if types.is_decimal(k) else (20, 0) for k in both
        ]
        scale = max(0, *(after for _before, after in digits))
        precision = max(before for before, _after in digits) + scale
        if precision > 76:
            return None
        return (pa.decimal128 if precision <= 38 else pa.decimal256)(precision, scale)
    return None


def _bytes(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    types, both = pa.types, (one, other)
    text = [types.is_string(k) or types.is_large_string(k) for k in both]
    binary = [
        types.is_binary(k) or types.is_large_binary(k) or types.is_fixed_size_binary(k)
        for k in both
    ]
    large = any(types.is_large_string(k) or types.is_large_binary(k) for k in both)
    if all(text):
        return pa.large_string()
    if all(binary):
        return pa.large_binary() if large else pa.binary()
    return None


def _times(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    types, both = pa.types, (one, other)
    stamps = [*map(types.is_timestamp, both)]
    dates = [*map(types.is_date, both)]
    if all(dates):
        return pa.date32()
    if any(stamps) and all(s or d for s, d in zip(stamps, dates, strict=True)):
        zones = {k.tz for k in both if types.is_timestamp(k)}
        if any(dates) and zones != {None}:  # A date has no time zone.
            return None
        if len(zones) > 1:
            if None in zones:
                return None
            zones = {"UTC"}  # The instants are the same in each zone.
        return pa.timestamp(_finer(both), zones.pop())
    if all(map(types.is_duration, both)):
        return pa.duration(_finer(both))
    if all(map(types.is_time, both)):
        unit = _finer(both)
        return pa.time32(unit) if unit in ("s", "ms") else pa.time64(unit)
    return None


def _finer(kinds: Iterable[pa.DataType]) -> str:
    units = {k.unit for k in kinds if not pa.types.is_date(k)}
    return next(unit for unit in ("ns", "us", "ms", "s") if unit in units)


def _nested(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    types, both = pa.types, (one, other)
    if all(map(types.is_struct, both)):
        fields = {field.name: field.type for field in one}
        if len(fields) < one.num_fields or len({f.name for f in other}) < other.num_fields:
            return None
        for field in other:
            kind = unified(fields.get(field.name, pa.null()), field.type)
            if kind is None:
                return None
            fields[field.name] = kind
        return pa.struct(list(fields.items()))
    if all(map(types.is_map, both)):
        key, item = unified(one.key_type, other.key_type), unified(one.item_type, other.item_type)
        return None if key is None or item is None else pa.map_(key, item)
    if all(
        types.is_list(k) or types.is_large_list(k) or types.is_fixed_size_list(k) for k in both
    ):
        item = unified(one.value_type, other.value_type)
        if item is None:
            return None
        return (pa.large_list if any(map(types.is_large_list, both)) else pa.list_)(item)
    return None


def is_deep(kind: pa.DataType) -> bool:
    """Whether a type is nested more than `_MAX_DEPTH` levels deep."""
    level = [kind]
    for _ in range(_MAX_DEPTH):
        level = [k.field(i).type for k in level for i in range(k.num_fields)]
    return bool(level)


def _has_bools_among_numbers(given: list[object], values: Any) -> bool:
    """Whether Arrow turned a bool into a number, as it does beside floats."""
    if pa.types.is_floating(values.type) or pa.types.is_integer(values.type):
        return any(isinstance(value, bool) for value in given)
    if pa.types.is_nested(values.type):
        return any(map(_became_number, given, values.to_pylist()))
    return False


def _became_number(given: object, found: object) -> bool:
    if isinstance(given, dict) and isinstance(found, dict):
        return any(_became_number(value, found.get(name)) for name, value in given.items())
    if isinstance(given, list) and isinstance(found, list):
        return any(map(_became_number, given, found))
    return isinstance(given, bool) and not isinstance(found, bool)


def _awkward(kind: pa.DataType) -> bool:
    """Whether a type holds a struct of no or very many fields, which is no use in a table."""
    if pa.types.is_struct(kind):
        inside = [kind.field(i).type for i in range(kind.num_fields)]
        return not 0 < len(inside) <= _MAX_FIELDS or any(_awkward(k) for k in inside)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _awkward(kind.value_type)
    return False
