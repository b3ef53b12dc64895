"""Rows that exist only once, kept so that a run can be resumed."""

import gzip
import json
import os
import stat
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.errors import JobError
from batcher.read import copies
from batcher.read.inputs import Inputs

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(), inside, max_size=3),
    max_leaves=5,
)  # fmt: skip


def kept(file):
    return [row.columns for row in Inputs([file]).rows()]


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.dictionaries(st.text(), VALUES, max_size=3), max_size=4))
def test_rows_from_python_are_read_as_they_were_given(tmp_path_factory, rows):
    """A generator can be read only once, a run reads its input twice."""
    assert kept(copies.rows(tmp_path_factory.mktemp("run"), iter(rows))) == rows


@pytest.mark.parametrize("kind", ["table", "batches"])
def test_a_table_keeps_its_types(tmp_path, kind):
    """Whatever speaks Arrow: pandas, polars, DuckDB."""
    table = pa.table({"a": pa.array([1, None], pa.int8()), "b": [b"x", b""]})
    given_rows = table if kind == "table" else table.to_reader()
    file = copies.rows(tmp_path, given_rows)
    ((_positions, batch),) = Inputs([file]).native()
    assert (file.kind, batch.schema, batch.to_pylist()) == (
        "parquet", table.schema, table.to_pylist(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ("text", "must be an iterable of dicts or a table, not str"),
        ({"a": 1}, "must be an iterable of dicts or a table, not dict"),
        (7, "must be an iterable of dicts or a table, not int"),
        ([{}, ["a"]], "item 2 is a list, not a dict"),
        ([{}, {"a": "\ud800"}], "item 2 cannot be kept as JSON"),
        (pa.table({"a": pa.array([{}], pa.struct([]))}), "cannot be kept as Parquet"),
    ],
    ids=["text", "dict", "number", "list inside", "half a character", "empty struct"],
)
def test_what_cannot_be_rows_is_refused_by_its_number(tmp_path, rows, reason):
    """A mistake in a script is found before anything is sent."""
    with pytest.raises(JobError, match=reason):
        copies.rows(tmp_path, rows)


def test_an_iterable_that_fails_keeps_its_error_and_the_copy_of_before(tmp_path):
    """The caller's own bug is the caller's to see; the run it had can still be resumed."""
    file = copies.rows(tmp_path, [{"n": 1}])

    def failing():
        yield {"n": 2}
        raise KeyError("theirs")

    with pytest.raises(KeyError, match="theirs"):
        copies.rows(tmp_path, failing())
    assert kept(file) == [{"n": 1}]


def test_a_copy_is_known_by_its_content_alone(tmp_path):
    """The same rows given again continue the run, others do not."""
    pins = [copies.rows(tmp_path, rows).pin for rows in ([{"n": 1}], [{"n": 1}], [{"n": 2}])]
    assert pins[0] == pins[1] != pins[2]


def test_nobody_else_may_read_the_copy(tmp_path):
    """What came through a pipe was on no disk before."""
    file = copies.rows(tmp_path, [{"n": 1}])
    (path,) = tmp_path.iterdir()
    assert str(path) == file.path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_standard_input_is_kept_byte_by_byte(tmp_path, monkeypatch):
    """A damaged line must stay the damaged line it was."""
    content = b'{"n":1}\r\n\n{"n":\xff}\nno end'
    reading, writing = os.pipe()
    os.write(writing, content)
    os.close(writing)
    with open(reading) as piped:
        monkeypatch.setattr("sys.stdin", piped)
        file = copies.stdin(tmp_path)
    assert Path(file.path).read_bytes() == content
    assert [row.where for row in Inputs([file]).rows()] == ["stdin:1", "stdin:3", "stdin:4"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"id,text\n1,a\n", "write CSV to a file"),
        (b'[{"prompt": "a"}]', "jq -c"),
        (gzip.compress(b'{"prompt": "a"}', mtime=0), "zcat"),
        ('{"prompt": "a"}'.encode("utf-16"), "not UTF-8"),
        (b"", ""),
        (b'\n{"prompt": "a"}\n', ""),
        (b'oops\n{"prompt": "a"}\n', ""),
    ],
)
def test_what_is_no_jsonl_on_stdin_says_how_it_is_read(tmp_path, monkeypatch, content, why):
    """Else each row is unreadable, which tells nobody what to do."""
    (tmp_path / "piped").write_bytes(content)
    with open(tmp_path / "piped") as piped:
        monkeypatch.setattr("sys.stdin", piped)
        if not why:
            copies.stdin(tmp_path)
            return
        with pytest.raises(JobError, match=why):
            copies.stdin(tmp_path)


@pytest.mark.parametrize("stdin", [None, SimpleNamespace(isatty=lambda: True)])
def test_a_terminal_is_no_input(tmp_path, monkeypatch, stdin):
    """Else the command would seem to hang."""
    monkeypatch.setattr("sys.stdin", stdin)
    with pytest.raises(JobError, match="pipe JSONL into it"):
        copies.stdin(tmp_path)


def test_short_floats_of_numpy_keep_the_digits_they_were_meant_with(tmp_path):
    """0.1 in 32 bits is 0.10000000149011612 in 64, which nobody wrote."""
    row = {"a": np.float32(0.1), "b": np.array([0.1, 2], np.float32), "c": np.float16(0.1)}
    copy = copies.rows(tmp_path, [row])
    assert json.loads(Path(copy.path).read_bytes()) == {"a": 0.1, "b": [0.1, 2.0], "c": 0.1}


def test_a_table_that_is_nested_too_deeply_for_parquet_is_refused(tmp_path):
    """Before anything is paid for: pyarrow writes such a file, and cannot read it any more."""
    kind = pa.int64()
    for _ in range(40):
        kind = pa.list_(kind)
    with pytest.raises(JobError, match="'a' is nested more deeply"):
        copies.rows(tmp_path, pa.table({"a": pa.nulls(1, kind)}))
