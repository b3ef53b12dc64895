"""The input's columns with their Arrow types: known for Parquet, found by reading for the rest.

Touches: nothing. A column whose rows disagree in type becomes a JSON text column.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
import pyarrow as pa

__all__ = ["Block", "Columns", "Misfit"]

type_json = pa.string()
Block = tuple[list[int], "pa.RecordBatch | list[dict[str, object] | None]"]
_MANY_FIELDS = 64
_EXACT = 1 << 53
_json = msgspec.json.Encoder(decimal_format="string", enc_hook=str).encode


class Misfit(ValueError):
    """Values of a column do not fit the type that was found for it.

    Attributes:
        name: The column, to be made JSON text.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Columns:
    """Names and types of all input columns, found block by block.

    Attributes:
        types: Name to type, in order of first sight; JSON text for the names in `as_json`.
        as_json: Columns whose rows disagree, or whose values no Arrow type holds.
    """

    def __init__(self) -> None:
        self.types: dict[str, pa.DataType] = {}
        self.as_json: set[str] = set()
        self._large: set[str] = set()

    @classmethod
    def found_in(cls, blocks: Iterable[Block], as_json: Iterable[str] = ()) -> Columns:
        """Reads all blocks; `as_json` are columns already known to be mixed."""
        columns = cls()
        columns.as_json.update(as_json)
        for _positions, rows in blocks:
            if isinstance(rows, pa.RecordBatch):
                for name, kind in zip(rows.schema.names, rows.schema.types, strict=True):
                    columns._unify(name, kind)
            else:
                columns._infer(rows)
        for name, kind in columns.types.items():
            # An integer past 2**53 in a column of floats would come out as another number.
            if pa.types.is_floating(kind) and name in columns._large:
                columns.as_json.add(name)
            if name in columns.as_json:
                columns.types[name] = type_json
        return columns

    @classmethod
    def of_schema(cls, schema: pa.Schema) -> Columns:
        """The columns of a single Parquet file, without reading its rows."""
        columns = cls()
        columns.types = dict(zip(schema.names, schema.types, strict=True))
        return columns

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
            if _truths_among_numbers(given, values):
                self._mixed(name)
                continue
            if pa.types.is_integer(values.type) and _beyond(values):
                self._large.add(name)
            self._unify(name, values.type)

    def _unify(self, name: str, kind: pa.DataType) -> None:
        have = self.types.get(name)
        if name in self.as_json:
            return
        if _awkward(kind):
            self._mixed(name)
        elif have is None or pa.types.is_null(have):
            self.types[name] = kind
        elif have != kind and not pa.types.is_null(kind):
            one, other = pa.schema([(name, have)]), pa.schema([(name, kind)])
            try:
                merged = pa.unify_schemas([one, other], promote_options="permissive")
            except pa.ArrowException:
                self._mixed(name)
            else:
                self.types[name] = merged.field(0).type
                if _awkward(self.types[name]):
                    self._mixed(name)

    def _mixed(self, name: str) -> None:
        self.as_json.add(name)
        self.types[name] = type_json

    def arrays(self, rows: pa.RecordBatch | list[dict[str, object] | None]) -> Iterator[pa.Array]:
        """One array per column, in the types found, of one block's rows.

        Raises:
            Misfit: A column holds what its type cannot (nested values past the sample's types).
        """
        if not isinstance(rows, pa.RecordBatch):
            for name, kind in self.types.items():
                values = [row.get(name) if row else None for row in rows]
                if name in self.as_json:
                    values = [None if v is None else _json(v).decode() for v in values]
                try:
                    yield pa.array(values, kind)
                except (pa.ArrowException, OverflowError, UnicodeEncodeError):
                    raise Misfit(name) from None
            return
        have = set(rows.schema.names)
        for name, kind in self.types.items():
            if name not in have:
                yield pa.nulls(rows.num_rows, kind)
            elif name in self.as_json:
                values = rows.column(name).to_pylist()
                yield pa.array([None if v is None else _json(v).decode() for v in values], kind)
            elif (column := rows.column(name)).type == kind:
                yield column
            else:
                try:
                    yield column.cast(kind)
                except pa.ArrowException:
                    raise Misfit(name) from None


def _truths_among_numbers(given: list[object], values: Any) -> bool:
    """Whether Arrow took a truth value for a number, as it does beside floats."""
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


def _beyond(values: Any) -> bool:
    numbers = [v for v in values.to_pylist() if v is not None]
    return bool(numbers) and (max(numbers) > _EXACT or min(numbers) < -_EXACT)


def _awkward(kind: pa.DataType) -> bool:
    """Whether a type is nothing a table should have: structs of no or very many fields."""
    if pa.types.is_struct(kind):
        inside = [kind.field(i).type for i in range(kind.num_fields)]
        return not 0 < len(inside) <= _MANY_FIELDS or any(_awkward(k) for k in inside)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _awkward(kind.value_type)
    return False
