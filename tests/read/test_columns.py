"""Types of the input's columns, found by reading."""

import datetime as dt
import json
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.errors import JobError
from batcher.read import spool
from batcher.read.columns import Columns, Misfit
from batcher.read.inputs import Inputs

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=10)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inside: st.lists(inside, max_size=3)
    | st.dictionaries(st.text("abc", min_size=1, max_size=2), inside, max_size=3),
    max_leaves=5,
)  # fmt: skip
rows = st.lists(
    st.none() | st.dictionaries(st.sampled_from("xyz"), values), min_size=1, max_size=8
)


def table(blocks):
    """What comes out of two readings, a mixed column made JSON text where that is needed."""
    mixed = set()
    while True:
        columns = Columns.found_in(iter(blocks), mixed)
        try:
            made = [list(columns.arrays(block)) for _positions, block in blocks]
        except Misfit as misfit:
            again = misfit.name in mixed
            mixed.add(misfit.name)
            if not again:
                continue
            raise
        return columns, [
            dict(zip(columns.types, (array.to_pylist() for array in arrays), strict=True))
            for arrays in made
        ]


@given(st.lists(rows, min_size=1, max_size=3))
def test_no_value_is_lost_or_changed(blocks):
    """Whatever the rows hold, each value comes out: as itself, or as JSON text of itself."""
    columns, out = table([([], block) for block in blocks])
    for block, made in zip(blocks, out, strict=True):
        for at, row in enumerate(block):
            for name in columns.types:
                value, got = (row or {}).get(name), made[name][at]
                if name in columns.as_json and got is not None:
                    got = json.loads(got)
                assert _same(value, got), (name, value, got)


def _same(value, got):
    """Equal, but for the fields of a struct that a row does not have, which are null."""
    if isinstance(value, dict) and isinstance(got, dict):
        return all(_same(value.get(k), got.get(k)) for k in {*value, *got})
    if isinstance(value, list) and isinstance(got, list):
        return len(value) == len(got) and all(map(_same, value, got))
    if isinstance(value, bool) or isinstance(got, bool):
        return value is got
    return value == got


def test_types_of_parquet_stay_as_they_are():
    """Timestamps, decimals, dictionaries and nested values come out as they went in."""
    batch = pa.record_batch({
        "when": pa.array([dt.datetime(2026, 1, 1)], pa.timestamp("us")),
        "much": pa.array([Decimal("1.50")], pa.decimal128(9, 2)),
        "word": pa.array(["a"]).dictionary_encode(),
        "deep": pa.array([[{"a": 1}]]),
    })  # fmt: skip
    columns = Columns.found_in(iter([([0], batch)]))
    assert columns.types == dict(zip(batch.schema.names, batch.schema.types, strict=True))
    assert [array.to_pylist() for array in columns.arrays(batch)] == [
        column.to_pylist() for column in batch.columns
    ]


def test_rows_of_python_are_copied_once_and_read_twice(tmp_path):
    """A generator can be read only once; the columns are joined at the end."""
    file = spool.rows(tmp_path, ({"n": n} for n in range(3)))
    again = spool.rows(tmp_path, ({"n": n} for n in range(3)))
    assert file.pin == again.pin
    assert [row.columns for row in Inputs([file]).rows()] == [{"n": 0}, {"n": 1}, {"n": 2}]
    arrow = spool.rows(tmp_path, pa.table({"n": [0, 1]}))
    assert [row.columns for row in Inputs([arrow]).rows()] == [{"n": 0}, {"n": 1}]


@pytest.mark.parametrize(
    ("given_", "why"),
    [
        (5, "must be an iterable"),
        ({"a": 1}, "must be an iterable"),
        ([1], "item 1 is a int"),
        ([{"a": "\ud800"}], "item 1 cannot be kept"),
    ],
)
def test_rows_that_are_none_are_an_error_with_their_number(tmp_path, given_, why):
    """Not a traceback from the depths."""
    with pytest.raises(JobError, match=why):
        spool.rows(tmp_path, given_)
