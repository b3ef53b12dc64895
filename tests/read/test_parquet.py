"""Parquet in pieces that fit the memory."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.read import parquet


def written(path, rows, group=7):
    table = pa.table({"n": range(rows), "text": [f"{n:04}" for n in range(rows)]})
    pq.write_table(table, path, row_group_size=group)
    return str(path)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(0, 40), group=st.integers(1, 50), start=st.integers(0, 50))
def test_row_groups_that_are_not_needed_are_left_out(tmp_path_factory, rows, group, start):
    """A resumed run reads from the row group on in which it goes on."""
    path = written(tmp_path_factory.mktemp("rows") / "a.parquet", rows, group)
    found = [
        (at + offset, n)
        for at, batch in parquet.batches(path, None, lambda at, n: at + n > start)
        for offset, n in enumerate(batch.column("n").to_pylist())
    ]
    assert found == [
        (n, n) for n in range(rows if start >= rows else start // group * group, rows)
    ]
    assert parquet.count(path) == rows


def test_rows_come_in_small_batches_when_they_are_large(tmp_path, monkeypatch):
    """One huge row group must not be held whole."""
    monkeypatch.setattr(parquet, "_BATCH_BYTES", 100)
    path = written(tmp_path / "a.parquet", rows=500, group=500)
    assert max(batch.num_rows for _at, batch in parquet.batches(path)) < 20


def test_only_the_named_columns_are_read_in_the_order_of_the_file(tmp_path):
    """Wide files are mostly columns that no prompt needs."""
    path = written(tmp_path / "a.parquet", rows=1)
    names = [b.schema.names for _at, b in parquet.batches(path, ["text", "nothing", "n"])]
    assert names == [["n", "text"]]
    assert [b.schema.names for _at, b in parquet.batches(path, ["text"])] == [["text"]]


@pytest.mark.parametrize(
    ("value", "left"),
    [
        ({"role": "user", "content": "a", "name": None}, {"role": "user", "content": "a"}),
        ({"content": None, "tool_calls": [{"id": None}]}, {"content": None, "tool_calls": [{}]}),
        ([{"a": None}, None, 0, "", False], [{}, None, 0, "", False]),
        (None, None),
    ],
)
def test_only_fields_that_are_null_are_left_out(value, left):
    """Gateways refuse `name: null`, and want `content: null` beside tool calls."""
    assert parquet.without_nulls(value) == left


def test_a_short_float_is_the_number_that_was_meant():
    """0.1 in 32 bits is 0.10000000149011612 in 64, which nobody wrote."""
    float32 = pa.float32()
    values = {
        "a": pa.array([0.1, None], float32),
        "b": pa.array([[0.1], []], pa.list_(float32)),
        "c": pa.array([{"x": 0.3, "y": 0.1}, None], pa.struct({"x": float32, "y": pa.float64()})),
        "d": pa.array([0.1, 1e300]),
    }
    first, second = parquet.dicts(pa.RecordBatch.from_pydict(values))
    assert first == {"a": 0.1, "b": [0.1], "c": {"x": 0.3, "y": 0.1}, "d": 0.1}
    assert second == {"a": None, "b": [], "c": None, "d": 1e300}
