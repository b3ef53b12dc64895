"""The Arrow type of a JSON Schema, and values converted to it. Touches: nothing.

A schema that no Arrow type matches (several types, open objects, recursion) becomes JSON text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

__all__ = ["TEXT", "Shape", "shape_of"]

_DEEPEST = 24  # pyarrow cannot read a Parquet schema of more than 100 levels; a list takes three.

_text = msgspec.json.Encoder().encode
_SCALARS = {
    "string": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "null": pa.null(),
}


class Shape(NamedTuple):
    """How values of a schema are stored.

    Attributes:
        type: The Arrow type.
        fit: Converts a value to what the type takes; never called with None.
    """

    type: pa.DataType
    fit: Callable[[Any], Any]

    def array(self, texts: Sequence[str | None]) -> pa.Array:
        """An array of values that are given as JSON text.

        Raises:
            pa.ArrowInvalid: A value is not of the type: it is too large, or was checked by another schema.
        """
        if self is TEXT:  # Not decoded, so it may be nested to any depth.
            return pa.array(texts, pa.string())
        values = (None if text is None else msgspec.json.decode(text) for text in texts)
        try:
            return pa.array([None if v is None else self.fit(v) for v in values], self.type)
        except (OverflowError, AttributeError, TypeError, ValueError, RecursionError) as error:
            raise pa.ArrowInvalid(str(error)) from None


def shape_of(schema: Mapping[str, Any]) -> Shape:
    """The shape of a JSON Schema.

    >>> shape_of({"type": "array", "items": {"type": ["integer", "null"]}}).type
    ListType(list<item: int64>)
    """
    return _shape(schema, schema, (), 0)


TEXT = Shape(pa.string(), lambda value: _text(value).decode())
"""Any JSON, as text."""


def _same(value: Any) -> Any:
    return value


def _shape(schema: Any, root: Mapping[str, Any], above: tuple[str, ...], level: int) -> Shape:
    if not isinstance(schema, Mapping) or level > _DEEPEST:
        return TEXT
    if isinstance(ref := schema.get("$ref"), str):
        if ref in above or not ref.startswith("#/"):
            return TEXT
        return _shape(_pointed(root, ref), root, (*above, ref), level + 1)
    if schema.keys() & {"oneOf", "allOf", "not", "if"}:
        return TEXT
    if isinstance(options := schema.get("anyOf"), list):  # A type or null, as pydantic writes it.
        real = [option for option in options if option != {"type": "null"}]
        return _shape(real[0], root, above, level + 1) if len(real) == 1 else TEXT
    kinds = _kinds(schema)
    if len(kinds) != 1:
        return TEXT
    kind = kinds.pop()
    if kind == "array":
        item = _shape(schema.get("items"), root, above, level + 1)
        return Shape(
            pa.list_(item.type), lambda values: [_or_none(item, value) for value in values]
        )
    if kind == "object":
        return _struct(schema, root, above, level)
    return Shape(_SCALARS[kind], float if kind == "number" else _same)


def _struct(
    schema: Mapping[str, Any], root: Mapping[str, Any], above: tuple[str, ...], level: int
) -> Shape:
    properties = schema.get("properties")
    if not isinstance(properties, Mapping) or not properties:
        return TEXT
    if schema.get("additionalProperties", False) is not False or "patternProperties" in schema:
        return TEXT
    fields = {name: _shape(item, root, above, level + 1) for name, item in properties.items()}

    def fit(value: Mapping[str, Any]) -> dict[str, Any]:
        return {name: _or_none(shape, value.get(name)) for name, shape in fields.items()}

    return Shape(pa.struct([pa.field(name, shape.type) for name, shape in fields.items()]), fit)


def _or_none(shape: Shape, value: Any) -> Any:
    return None if value is None else shape.fit(value)


def _kinds(schema: Mapping[str, Any]) -> set[str]:
    """The types a schema allows besides null."""
    declared = schema.get("type")
    if declared is None and isinstance(values := schema.get("enum"), list):
        declared = [_kind_of(value) for value in values]
    elif declared is None and "const" in schema:
        declared = _kind_of(schema["const"])
    elif declared is None and "properties" in schema:
        declared = "object"
    elif declared is None and "items" in schema:
        declared = "array"
    kinds = {declared} if isinstance(declared, str) else set(declared or ())
    if kinds == {"integer", "number"}:
        return {"number"}
    return kinds - {"null"} if len(kinds) > 1 else kinds


def _kind_of(value: Any) -> str:
    if value is None:
        return "null"
    for kind, name in (
        (bool, "boolean"),
        (int, "integer"),
        (float, "number"),
        (str, "string"),
        (list, "array"),
    ):
        if isinstance(value, kind):
            return name
    return "object"


def _pointed(root: Mapping[str, Any], ref: str) -> Any:
    at: Any = root
    for part in ref[2:].split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        at = at.get(name) if isinstance(at, Mapping) else None
    return at
