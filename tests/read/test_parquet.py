"""Parquet in pieces that fit the memory."""

from hashlib import sha256

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.read import arrow, parquet


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
    first, second = arrow.dicts(pa.RecordBatch.from_pydict(values))
    assert first == {"a": 0.1, "b": [0.1], "c": {"x": 0.3, "y": 0.1}, "d": 0.1}
    assert second == {"a": None, "b": [], "c": None, "d": 1e300}


def not_utf8(rows, *broken):
    """A column of texts, some of which are no texts."""
    cells = [b"\xff" if n in broken else b"%d" % n for n in range(rows)]
    return pa.array(cells, pa.binary()).view(pa.string())


@pytest.mark.parametrize(
    "column",
    [
        not_utf8(30, 3, 25),
        not_utf8(30, 3, 25).dictionary_encode(),
        pa.StructArray.from_arrays([not_utf8(30, 3, 25)], ["x"]),
        pa.ListArray.from_arrays(range(31), not_utf8(30, 3, 25)),
        not_utf8(30, 3, 25).view(pa.binary()).cast(pa.binary_view()).view(pa.string_view()),
    ],
    ids=lambda column: str(column.type)[:10],
)
def test_a_cell_that_is_not_utf8_is_null_and_told(tmp_path, column):
    """It stands in a column that nobody looked at, and the answers are paid for."""
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"n": range(30), "text": column}), path, row_group_size=20)
    told = []
    rows = [
        row
        for _at, batch in parquet.batches(path, report=lambda *lost: told.append(lost))
        for row in arrow.dicts(batch)
    ]
    assert [row["n"] for row in rows] == [*range(30)]
    assert [n for n, row in enumerate(rows) if row["text"] is None] == [3, 25]
    assert told == [("text", [3], "is not UTF-8"), ("text", [25], "is not UTF-8")]


def test_a_damaged_page_costs_the_cells_from_there_on_and_no_other(tmp_path):
    """One bad block of a disk must not cost what was paid for."""
    path = tmp_path / "a.parquet"
    texts = [sha256(b"%d" % n).hexdigest() for n in range(4000)]
    table = pa.table({"n": range(4000), "text": texts})
    pq.write_table(
        table,
        path,
        row_group_size=2000,
        data_page_size=4000,
        write_batch_size=50,
        use_dictionary=False,
        compression="gzip",
    )
    chunk = pq.read_metadata(path).row_group(0).column(1)
    content = bytearray(path.read_bytes())
    middle = chunk.data_page_offset + chunk.total_compressed_size // 2
    content[middle : middle + 3000] = bytes(3000)
    path.write_bytes(content)
    told = []
    rows = [
        (at + offset, row)
        for at, batch in parquet.batches(str(path), report=lambda *lost: told.append(lost))
        for offset, row in enumerate(arrow.dicts(batch))
    ]
    assert [(at, row["n"]) for at, row in rows] == [(n, n) for n in range(4000)]
    [(name, lost, why)] = told
    assert name == "text"
    assert "damaged" in why
    assert 0 < lost[0] < lost[-1] == 1999
    for at, row in rows:
        assert row["text"] == (None if at in lost else texts[at])


@pytest.mark.parametrize(
    ("column", "cells"),
    [
        (pa.array([0.1, None, float("nan"), 1e-40], pa.float32()), [0.1, None, None, 1e-40]),
        (pa.array([0.1, 16777216], pa.float32()), [0.1, 16777216.0]),
        (pa.array([0.1], pa.float16()), [0.1]),
        (pa.array([float("inf"), 0.1]), [None, 0.1]),
        (pa.array([[0.1], None], pa.list_(pa.float32())), [[0.1], None]),
        (
            pa.array([[("lang", "de")], None, []], pa.map_(pa.string(), pa.string())),
            [{"lang": "de"}, None, {}],
        ),
        (pa.array([[(1, {"x": 0.1})]], pa.map_(pa.int8(), pa.struct([("x", pa.float32())]))),
         [{"1": {"x": 0.1}}]),
        (pa.array([[("a", 1), ("a", 2)]], pa.map_(pa.string(), pa.int8())), [[("a", 1), ("a", 2)]]),
        (pa.array([1, None], pa.timestamp("ns", "UTC")), ["1970-01-01T00:00:00.000000001Z", None]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)  # fmt: skip
def test_cells_are_what_json_would_have(column, cells):
    """They stand in prompts, where each digit more is paid for, and a map has names."""
    assert arrow.values(column) == cells
    assert arrow.values(pa.concat_arrays([column, column]).slice(1)) == (cells + cells)[1:]


@settings(max_examples=25, deadline=None)
@given(cells=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_a_short_float_has_the_digits_of_its_shortest_text(cells):
    """As numpy prints it."""
    array = pa.array(cells, pa.float32())
    texts = array.to_numpy(zero_copy_only=False).astype(str)
    assert arrow.values(array) == [float(text) for text in texts]


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_view(pa.string_view()), pa.large_list_view(pa.int8()), pa.list_(pa.binary_view()),
        pa.map_(pa.string_view(), pa.string_view()), pa.list_(pa.string_view(), 2),
    ],
    ids=str,
)  # fmt: skip
def test_views_become_what_others_can_read(kind):
    """polars has all its texts as views."""
    cells = [["1", "2"], None, ["3", "4"]]
    if pa.types.is_map(kind):
        cells = [[("a", "1")], None, []]
    elif pa.types.is_large_list_view(kind):
        cells = [[1, 2], None, []]
    elif pa.types.is_list(kind):
        cells = [[b"1"], None, []]
    batch = arrow.plain_batch(pa.record_batch({"a": pa.array(cells, kind)}))
    batch.validate(full=True)
    assert "view" not in str(batch.schema.field("a").type)
    assert batch.column("a").to_pylist() == cells
