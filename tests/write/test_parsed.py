"""JSON Schemas as Arrow types, and values in them."""

import json

import jsonschema_rs
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.write import schema_types
from batcher.write.schema_types import shape_of

TEXT = pa.string()
NODE = {
    "$ref": "#/$defs/Node",
    "$defs": {
        "Node": {"properties": {"n": {"type": "integer"}, "next": {"$ref": "#/$defs/Node"}}}
    },
}


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        ({"type": "string", "enum": ["a", "b"]}, TEXT),
        ({"enum": ["a", "b", None]}, TEXT),
        ({"enum": ["a", 1]}, TEXT),
        ({"const": 3}, pa.int64()),
        ({"type": ["number", "null"]}, pa.float64()),
        ({"type": ["integer", "number"]}, pa.float64()),
        ({"type": ["integer", "string"]}, TEXT),
        ({"anyOf": [{"type": "boolean"}, {"type": "null"}]}, pa.bool_()),
        ({"oneOf": [{"type": "boolean"}, {"type": "null"}]}, TEXT),
        ({}, TEXT),
        ({"type": "object"}, TEXT),
        ({"type": "object", "properties": {"a": {}}, "additionalProperties": True}, TEXT),
        ({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "object"}}},
         pa.struct({"a": pa.int64(), "b": TEXT})),
        ({"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
         pa.list_(pa.list_(pa.float64()))),
        ({"type": "array"}, pa.list_(TEXT)),
        (NODE, pa.struct({"n": pa.int64(), "next": TEXT})),
        ({"$ref": "http://x/y"}, TEXT),
    ],
)  # fmt: skip
def test_a_schema_has_one_type(schema, kind):
    """It is JSON text when no other type matches."""
    assert shape_of(schema).type == kind


def test_values_are_converted_without_loss():
    """An integer becomes a float where the schema says number; a value without a type becomes JSON text."""
    shape = shape_of(
        {
            "properties": {
                "n": {"type": "number"},
                "any": {},
                "tags": {"type": "array", "items": {"type": "string"}},
            }
        }
    )
    values = [{"n": 1, "any": {"x": [1, None]}, "tags": ["a"]}, {"n": None}, None]
    texts = [None if value is None else json.dumps(value) for value in values]
    assert shape.array(texts).to_pylist() == [
        {"n": 1.0, "any": '{"x":[1,null]}', "tags": ["a"]},
        {"n": None, "any": None, "tags": None},
        None,
    ]


@pytest.mark.parametrize("number", [1 << 63, -(1 << 70)])
def test_a_number_that_is_too_large_is_refused(number):
    """The writer then makes a column of text."""
    with pytest.raises((pa.ArrowInvalid, OverflowError)):
        shape_of({"type": "integer"}).array([str(number)])


leaves = st.sampled_from([
    {"type": "string"}, {"type": "integer", "minimum": -9, "maximum": 9}, {"type": "boolean"},
    {"enum": ["a", "b"]}, {"type": "object"}, {"anyOf": [{"type": "integer", "maximum": 9}, {"type": "null"}]},
])  # fmt: skip
schemas = st.recursive(
    leaves,
    lambda inside: (
        inside.map(lambda of: {"type": "array", "items": of, "maxItems": 3})
        | st.dictionaries(st.sampled_from("abc"), inside, min_size=1).map(
            lambda of: {"type": "object", "properties": of, "required": sorted(of)}
        )
    ),
    max_leaves=5,
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["a", "b", "c"]),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.sampled_from("abc"), inside),
    max_leaves=8,
)


@given(schemas, st.lists(values, max_size=20))
def test_each_value_of_the_schema_fits_the_column(schema, found):
    """Or the writer would fail at an answer that passed its check."""
    valid = [value for value in found if jsonschema_rs.is_valid(schema, value)]
    column = shape_of(schema).array([json.dumps(value) for value in valid])
    assert len(column) == len(valid)
    assert [value is None for value in column.to_pylist()] == [value is None for value in valid]


def test_what_is_nested_too_deeply_for_parquet_is_text(tmp_path):
    """pyarrow writes such a file but cannot read it."""
    lists, objects = {"type": "integer"}, {"type": "integer"}
    for _ in range(900):
        lists = {"type": "array", "items": lists}
        objects = {"type": "object", "properties": {"x": objects}, "additionalProperties": False}
    table = pa.table(
        {
            "lists": pa.nulls(1, shape_of(lists).type),
            "objects": pa.nulls(1, shape_of(objects).type),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    assert pq.read_schema(tmp_path / "a.parquet").types == table.schema.types
    deep = "[" * 5000 + "]" * 5000
    assert schema_types.TEXT.array([deep, None]).to_pylist() == [deep, None]
