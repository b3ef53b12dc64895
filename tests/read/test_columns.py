"""Types found in rows that never promised any."""

import json
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

import msgspec
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from batcher.read import arrow
from batcher.read.columns import Columns, Misfit, names_in
from batcher.write import jsonl

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
    assert Columns.of_schemas([two.schema]).types == {"a": pa.int64(), "b": pa.string()}


def test_text_of_parquet_is_json_too_where_another_file_disagrees():
    """Else "1" and 1 look the same, and x is no JSON."""
    one, two = pa.record_batch({"a": ["1", "x"]}), pa.record_batch({"a": [1]})
    _columns, arrays = table([one, two])
    texts = [text for (array,) in arrays for text in array.to_pylist()]
    assert texts == ['"1"', '"x"', "1"]


SEEN = datetime(2024, 5, 1, 12, 30, tzinfo=UTC)
LEAVES = [
    *((kind(), n) for kind in (pa.int8, pa.int16, pa.int32, pa.int64) for n in (7, -7)),
    *((kind(), 7) for kind in (pa.uint8, pa.uint16, pa.uint32, pa.uint64)),
    (pa.int64(), 2**53 + 1), (pa.uint64(), 2**63), (pa.int64(), -(2**63)),
    (pa.float16(), 0.5), (pa.float32(), 0.1), (pa.float64(), 0.1), (pa.float64(), 2.0**60),
    (pa.bool_(), True), (pa.null(), None), (pa.uuid(), b"u" * 16),
    (pa.string(), "1"), (pa.string(), "é\n"), (pa.large_string(), "b"), (pa.string_view(), "c"),
    (pa.binary(), b"\xff"), (pa.large_binary(), b"d"), (pa.binary(2), b"ee"),
    (pa.decimal128(5, 2), Decimal("1.10")), (pa.decimal128(38, 0), Decimal(10**37)),
    (pa.decimal128(38, 38), Decimal("0." + "1" * 38)), (pa.decimal32(5, 1), Decimal("1.5")),
    (pa.date32(), date(2024, 5, 1)), (pa.date32(), date(9999, 1, 1)),
    *((pa.timestamp(unit, zone), SEEN if zone else SEEN.replace(tzinfo=None))
      for unit in ("s", "ms", "us", "ns") for zone in (None, "UTC", "Europe/Berlin")),
    (pa.timestamp("us"), datetime(9999, 1, 1)),
    (pa.time32("s"), time(1)), (pa.time64("us"), time(1, 2, 3, 4)), (pa.time64("ns"), time(1)),
    (pa.duration("s"), timedelta(days=10**6)), (pa.duration("ns"), timedelta(microseconds=5)),
]  # fmt: skip


def alike(value):
    """A value in which null fields are none at all, and a day is its beginning."""
    if isinstance(value, dict):
        return {name: alike(v) for name, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [alike(v) for v in value]
    if isinstance(value, date) and not isinstance(value, datetime):
        return datetime.combine(value, time())
    return value


def nested(cells):
    """A (type, value) of lists, maps, structs and dictionaries around one."""

    def around(cell):
        kind, value = cell
        if isinstance(kind, pa.UuidType):  # pyarrow makes no nested one of Python values.
            return st.just(cell)
        found = [
            (pa.list_(kind), [value, None]),
            (pa.large_list(kind), []),
            (pa.list_(kind, 1), [value]),
            (pa.struct([("x", kind)]), {"x": value}),
            (pa.struct([("y", kind), ("x", pa.int8())]), {"y": value, "x": 1}),
            (pa.map_(pa.string(), kind), [("k", value)]),
        ]
        if pa.types.is_string(kind) or pa.types.is_int64(kind):
            found.append((pa.dictionary(pa.int8(), kind), value))
        return st.sampled_from(found)

    return cells.flatmap(around)


@settings(max_examples=100, deadline=None)
@given(
    cells=st.lists(
        st.recursive(st.sampled_from(LEAVES), nested, max_leaves=3), min_size=2, max_size=3
    )
)
@example(cells=[(pa.int64(), 2**53 + 1), (pa.float64(), 0.5)])
@example(cells=[(pa.dictionary(pa.int8(), pa.string()), "a"), (pa.string(), "b")])
def test_whatever_types_files_give_a_column_no_value_is_lost(cells):
    """Shards of one export often differ: a column of integers with a null is one of floats."""
    batches = [
        arrow.plain_batch(pa.record_batch({"a": pa.array([value, None], kind)}))
        for kind, value in cells
    ]
    columns, found = table(batches)
    assert list(columns.types) == ["a"]
    for batch, (array,) in zip(batches, found, strict=True):
        assert array.type == columns.types["a"]
        given = batch.column("a")
        if columns.as_json:
            value, none = array.to_pylist()
            of_jsonl = jsonl._encode(arrow.values(given)[0])
            assert (value or "null", none) == (of_jsonl.decode(), None)
        else:
            assert alike(array.to_pylist()) == alike(given.to_pylist())


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (pa.int8(), pa.uint16(), pa.int64()),
        (pa.int64(), pa.float32(), pa.float64()),
        (pa.dictionary(pa.int8(), pa.string()), pa.string(), pa.string()),
        (pa.string(), pa.large_string(), pa.large_string()),
        (pa.null(), pa.struct([("x", pa.int8())]), pa.struct([("x", pa.int8())])),
        (pa.timestamp("s", "UTC"), pa.timestamp("us", "Europe/Berlin"), pa.timestamp("us", "UTC")),
        (pa.timestamp("us"), pa.timestamp("us", "UTC"), None),
        (pa.date32(), pa.timestamp("ms"), pa.timestamp("ms")),
        (pa.decimal128(5, 2), pa.int32(), pa.decimal128(22, 2)),
        (pa.decimal128(5, 2), pa.float64(), None),
        (pa.bool_(), pa.int8(), None),
        (pa.string(), pa.binary(), None),
        (pa.list_(pa.int8()), pa.list_(pa.int16(), 2), pa.list_(pa.int16())),
        (
            pa.struct([("x", pa.int8())]),
            pa.struct([("y", pa.string()), ("x", pa.int16())]),
            pa.struct([("x", pa.int16()), ("y", pa.string())]),
        ),
        (pa.map_(pa.string(), pa.int8()), pa.struct([("x", pa.int8())]), None),
    ],
    ids=str,
)
def test_two_types_become_one_that_holds_both(one, other, both):
    """None is a column of JSON text."""
    for first, second in ((one, other), (other, one)):
        columns = Columns.of_schemas([pa.schema([("a", first)]), pa.schema([("a", second)])])
        found = columns.types["a"]
        assert (
            found == both
            or (both is None and columns.as_json == {"a"})
            or (pa.types.is_struct(found) and {*found} == {*both})
        )


def test_identifiers_beyond_a_float_keep_their_digits():
    """Joins by them would pair the wrong rows."""
    one = pa.record_batch({"custom_id": [2**53 + 1, 1]})
    two = pa.record_batch({"custom_id": [2.0**53, 1.0]})
    columns, found = table([one, two])
    assert [text for (array,) in found for text in array.to_pylist()] == [
        "9007199254740993", "1", "9007199254740992.0", "1.0",
    ]  # fmt: skip
    assert columns.as_json == {"custom_id"}
    assert [names_in(one), names_in(two)] == [
        ["9007199254740993", "1"], ["9007199254740992.0", "1.0"],
    ]  # fmt: skip


def test_a_column_of_json_has_the_digits_that_stand_in_the_line():
    """1.10 and 1e400 are no floats of Python's."""
    raw = msgspec.Raw(b"1.10")
    columns = Columns.found_in([([0], [{"a": "x"}]), ([1], [{"a": 1}])])
    assert columns.as_json == {"a"}
    assert next(columns.arrays([{"a": raw}, {"a": msgspec.Raw(b"null")}, {}])).to_pylist() == [
        "1.10", None, None,
    ]  # fmt: skip
