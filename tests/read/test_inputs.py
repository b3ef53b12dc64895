"""Files of every kind as one long list of rows."""

import csv
import gzip
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batcher.errors import JobError
from batcher.read import jsonl
from batcher.read.inputs import Inputs, expand

LINES = [
    b'{"n": 0}',
    b"",
    b'{"n": 2}\r',
    b'{"n": ',
    b"[1]",
    b"   ",
    b'{"n": 6, "t": "\xe2\x80\xa8 line separator is text"}',
    b'{"n": 7, "t": "\xff"}',
    b'{"n": 8}',
]


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


PACKED = {"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.zst": zstd}


def rows_of(path, **options):
    return list(Inputs(expand([str(path)])).rows(**options))


@pytest.mark.parametrize("suffix", PACKED)
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_every_line_keeps_its_place(tmp_path, suffix, bom):
    """A damaged line moves no other, a blank one is no row, and a BOM is no text."""
    path = tmp_path / f"in.{suffix}"
    path.write_bytes(PACKED[suffix](bom + b"\n".join(LINES)))
    rows = rows_of(path)
    assert [row.position for row in rows] == [0, 2, 3, 4, 6, 7, 8]
    assert [row.columns and row.columns["n"] for row in rows] == [0, 2, None, None, 6, None, 8]
    assert [f"in.{suffix}:{n}: {why}" in (row.error or "") for row, n, why in zip(
        [rows[2], rows[3], rows[5]], [4, 5, 8], ["not JSON", "not a JSON object but a list", "not UTF-8"],
        strict=True,
    )] == [True] * 3  # fmt: skip


@pytest.mark.parametrize("suffix", ["jsonl.gz", "jsonl.zst"])
def test_a_cut_compressed_file_ends_in_a_row_with_a_reason(tmp_path, suffix):
    """What could be read is read; the rest is said, not left out."""
    rng = os.urandom(200_000).hex()
    lines = b"".join(
        json.dumps({"n": n, "t": rng[n : n + 400]}).encode() + b"\n" for n in range(500)
    )
    packed = PACKED[suffix](lines)
    path = tmp_path / f"in.{suffix}"
    path.write_bytes(packed[: len(packed) * 2 // 3])
    rows = rows_of(path)
    assert rows[-1].columns is None
    assert "cut or broken" in rows[-1].error
    assert [row.columns["n"] for row in rows[:-1]] == list(range(len(rows) - 1))


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=20)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=5), inside, max_size=3),
    max_leaves=6,
)  # fmt: skip


@given(st.dictionaries(st.text(max_size=8), values, max_size=5))
def test_whatever_json_holds_is_read_as_it_is(row):
    """Big numbers, nested values, strange letters."""
    assert jsonl.decode(json.dumps(row).encode()) == row


def files(folder, rows: int):
    """The same rows in each kind of file; returns the paths."""
    data = [{"n": n, "text": f'row "{n}", with\ncomma'} for n in range(rows)]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    with (folder / "b.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["n", "text"])
        writer.writeheader()
        writer.writerows(data)
    pq.write_table(pa.Table.from_pylist(data, pa.schema([("n", pa.int64()), ("text", pa.string())])),
                   folder / "c.parquet", row_group_size=7)  # fmt: skip
    return [str(folder / name) for name in ("a.jsonl", "b.csv", "c.parquet")]


@given(
    rows=st.integers(1, 30),
    start=st.integers(0, 100),
    limit=st.none() | st.integers(1, 100),
    wanted=st.sets(st.integers(0, 90)),
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_part_of_the_rows_is_that_part_of_all_rows(tmp_path, rows, start, limit, wanted):
    """A second start reads only what is left, and must find the same rows there."""
    inputs = Inputs(expand(files(tmp_path, rows)), limit)
    everything = list(inputs.rows())
    assert len(everything) == min(3 * rows, limit or 3 * rows)
    part = list(inputs.rows(frozenset({"n"}), start, lambda row: row in wanted))
    expected = [r for r in everything if r.position >= start and r.position in wanted]
    assert [(r.position, r.where) for r in part] == [(r.position, r.where) for r in expected]
    assert [int(r.columns["n"]) for r in part] == [int(r.columns["n"]) for r in expected]
    blocks = [position for positions, _rows in inputs.native() for position in positions]
    assert blocks == [row.position for row in everything]


def test_folders_and_globs_are_read_in_sorted_order_without_what_is_not_input(tmp_path):
    """Hidden files, earlier outputs' run folders and unknown suffixes are no input."""
    for name in ("b.jsonl", "a.jsonl", ".hidden.jsonl", "notes.txt"):
        (tmp_path / name).write_text('{"prompt": "x"}\n')
    (tmp_path / "out.jsonl.run").mkdir()
    (tmp_path / "out.jsonl.run" / "journal-000001.jsonl").write_text("{}\n")
    found = [os.path.basename(file.path) for file in expand([str(tmp_path)])]
    assert found == ["a.jsonl", "b.jsonl"]
    assert [os.path.basename(f.path) for f in expand([str(tmp_path / "*.jsonl")])] == found


@pytest.mark.parametrize("name", ["gone.jsonl", "none*.jsonl", "odd.txt", "empty"])
def test_what_cannot_be_input_is_said_by_name(tmp_path, name):
    """One sentence, before anything is sent."""
    (tmp_path / "odd.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(JobError, match=name.replace("*", r"\*")):
        expand([str(tmp_path / name)])


def test_a_file_that_is_not_what_its_name_says_is_an_error(tmp_path):
    """Not an endless run of unreadable rows."""
    path = tmp_path / "in.parquet"
    path.write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(JobError, match=r"in\.parquet: it cannot be read"):
        rows_of(path)


def test_csv_rows_that_do_not_fit_their_header_are_rows_with_a_reason(tmp_path):
    """Quotes, line ends inside them, and records of another length."""
    (tmp_path / "in.csv").write_bytes(b'\xef\xbb\xbfa,b\n1,"two\nlines"\n3\n\n4,\xff\n5,6\n')
    rows = rows_of(tmp_path / "in.csv")
    assert [row.columns for row in rows] == [
        {"a": "1", "b": "two\nlines"}, None, None, {"a": "5", "b": "6"},
    ]  # fmt: skip
    assert "in.csv:4: 1 fields where the header has 2" in rows[1].error
    assert "not UTF-8" in rows[2].error


def test_a_file_that_changed_is_noticed(tmp_path):
    """Its rows and the answers could not be put together any more."""
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "x"}\n')
    inputs = Inputs(expand([str(path)]))
    assert inputs.changed() is None
    path.write_text('{"prompt": "y and more"}\n')
    assert inputs.changed() == str(path)
