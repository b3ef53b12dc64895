"""Types found in rows that never promised any."""

import json

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from batcher.read.columns import Columns, Misfit

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([2**53 + 1, -(2**53) - 1, 2**63, 2**64, 0.5]) | st.text(max_size=3),
    lambda inside: st.lists(inside, max_size=3)
    | st.dictionaries(st.sampled_from("xy"), inside, max_size=2),
    max_leaves=4,
)  # fmt: skip
ROWS = st.none() | st.dictionaries(st.sampled_from("abc"), VALUES)


def blocks(*rows):
    """Each list of rows as a block of its own."""
    return [([0] * len(block), block) for block in rows]


def table(rows):
    """The columns as the output file would get them, block by block."""
    mixed = set()
    while True:
        columns = Columns.found_in(blocks(*rows), mixed)
        try:
            arrays = [list(columns.arrays(block)) for block in rows]
        except Misfit as misfit:
            again = misfit.name in mixed
            mixed.add(misfit.name)
            if again:
                raise
        else:
            return columns, arrays


def bare(value):
    """A value in a form where True is not 1, and null fields are none at all."""
    if isinstance(value, dict):
        return {name: bare(v) for name, v in value.items() if v is not None}
    if isinstance(value, list):
        return [bare(v) for v in value]
    return str(value) if isinstance(value, bool) else value


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(st.lists(ROWS, min_size=1, max_size=3), max_size=3))
@example(rows=[[{"a": {"x": 2**60 + 1}}], [{"a": {"x": 0.5}}]])
@example(rows=[[{"a": 0.5}], [{"a": 2**53 + 1}]])
@example(rows=[[{"a": {}}], [{"a": {"x": {}}}]])
def test_whatever_the_rows_hold_no_value_is_lost(rows):
    """The input's columns stand beside the answers, and they are the user's data."""
    columns, arrays = table(rows)
    for block, held in zip(rows, arrays, strict=True):
        for (name, kind), array in zip(columns.types.items(), held, strict=True):
            assert array.type == kind
            found = array.to_pylist()
            if name in columns.as_json:
                found = [None if text is None else json.loads(text) for text in found]
            assert [bare(value) for value in found] == [
                bare((row or {}).get(name)) for row in block
            ]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2], pa.int64()),
        ([1, 2.5], pa.float64()),
        ([None, "x"], pa.string()),
        ([None], pa.null()),
        ([True, None], pa.bool_()),
        ([[], [1]], pa.list_(pa.int64())),
        ([{"x": 1}, {"y": "a"}], pa.struct([("x", pa.int64()), ("y", pa.string())])),
    ],
    ids=str,
)
def test_rows_that_agree_give_a_typed_column(values, kind):
    """A number that comes out as text is of no use in a dataframe."""
    rows = [{"a": value} for value in values]
    assert Columns.found_in(blocks(rows)).types == {"a": kind}
    assert Columns.found_in(blocks(*[[row] for row in rows])).types == {"a": kind}


@pytest.mark.parametrize(
    "values",
    [
        [1, "1"],
        [1, True],
        [[1], {"x": 1}],
        [{"x": 1}, {"x": "1"}],
        [{}],
        [{f"f{n}": n for n in range(65)}],
        [2**70],
        [0.5, 2**53 + 1],
    ],
    ids=lambda values: str(values)[:20],
)
def test_rows_that_disagree_give_a_column_of_json(values):
    """1 and "1" must still be told apart; 2**53 + 1 must not become another number."""
    rows = [{"a": value} for value in values]
    for given_blocks in ([rows], [[row] for row in rows]):
        columns, arrays = table(given_blocks)
        assert columns.as_json == {"a"}
        texts = [text for (array,) in arrays for text in array.to_pylist()]
        assert [json.loads(text) for text in texts] == values


def test_columns_stand_in_the_order_of_first_sight():
    """A reader finds them where the file has them; an unreadable row has none."""
    rows = [[None, {"b": 1}], [{"c": "x", "b": 2, "a": None}]]
    columns, arrays = table(rows)
    assert list(columns.types) == ["b", "c", "a"]
    assert [[array.to_pylist() for array in held] for held in arrays] == [
        [[None, 1], [None, None], [None, None]],
        [[2], ["x"], [None]],
    ]


def test_parquet_files_of_different_columns_become_one_table():
    """Yesterday's export may lack a column, or have counted in smaller integers."""
    one = pa.record_batch({"a": pa.array([1], pa.int32())})
    two = pa.record_batch({"a": pa.array([2], pa.int64()), "b": ["x"]})
    columns, arrays = table([one, two, [{"c": True}]])
    assert columns.types == {"a": pa.int64(), "b": pa.string(), "c": pa.bool_()}
    assert [[array.to_pylist() for array in held] for held in arrays] == [
        [[1], [None], [None]],
        [[2], ["x"], [None]],
        [[None], [None], [True]],
    ]
    assert Columns.of_schema(two.schema).types == {"a": pa.int64(), "b": pa.string()}


def test_text_of_parquet_is_json_too_where_another_file_disagrees():
    """Else "1" and 1 look the same, and x is no JSON."""
    one, two = pa.record_batch({"a": ["1", "x"]}), pa.record_batch({"a": [1]})
    _columns, arrays = table([one, two])
    texts = [text for (array,) in arrays for text in array.to_pylist()]
    assert texts == ['"1"', '"x"', "1"]
