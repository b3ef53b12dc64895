"""CSV as spreadsheets write it."""

import csv as standard

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.errors import JobError
from batcher.read import csv
from batcher.read.files import expand
from batcher.read.inputs import Inputs


def records(path, content):
    path.write_bytes(content)
    return list(csv.records(str(path)))


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.tuples(st.text(), st.text()), max_size=5))
def test_any_text_survives_in_a_cell(tmp_path_factory, rows):
    """Commas, quotes and line ends are ordinary in prompts."""
    path = tmp_path_factory.mktemp("rows") / "a.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        standard.writer(file).writerows([("a", "b"), *rows])
    found = [columns for _line, columns, _error in csv.records(str(path))]
    assert found == [{"a": a, "b": b} for a, b in rows]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"1", "1 fields where the header has 2"),
        (b"1,2,3", "3 fields where the header has 2"),
        (b'"1"x,2', "not CSV (',' expected after '\"')"),
        (b"caf\xe9,2", "not UTF-8"),
    ],
)
def test_a_damaged_record_costs_that_record_alone(tmp_path, record, reason):
    """One bad line among a million is no reason to send nothing."""
    found = records(tmp_path / "a.csv", b"a,b\n1,2\n" + record + b"\n3,4\n")
    assert found == [
        (2, {"a": "1", "b": "2"}, None),
        (3, None, reason),
        (4, {"a": "3", "b": "4"}, None),
    ]


def test_a_quote_that_is_never_closed_is_one_unreadable_row(tmp_path):
    """What it swallowed must not vanish without a word."""
    assert records(tmp_path / "a.csv", b'a,b\n1,2\n"3,4\n5,6\n')[1:] == [
        (4, None, "not CSV (unexpected end of data)")
    ]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", []),
        (b"a,b\n", []),
        (b"\xef\xbb\xbfa,b\r\n1,2\r\n", [(2, {"a": "1", "b": "2"}, None)]),
        (b"a,b\n\n1,2\n\n\n", [(3, {"a": "1", "b": "2"}, None)]),
        (b"a,b\n1,2", [(2, {"a": "1", "b": "2"}, None)]),
        (b'a,b\n"x\ny\nz",2\n', [(4, {"a": "x\ny\nz", "b": "2"}, None)]),
    ],
    ids=["empty", "header alone", "from Excel", "blank lines", "no last newline", "long cell"],
)
def test_spreadsheets_may_write_it_their_way(tmp_path, content, found):
    """A mark before the header is no part of the first column's name."""
    assert records(tmp_path / "a.csv", content) == found


@pytest.mark.parametrize(
    "header",
    [b'"a"b,c', "Größe,c".encode("latin-1"), b"a,a"],
    ids=["bad quotes", "not UTF-8", "one name twice"],
)
def test_a_header_that_cannot_be_used_stops_the_job_before_it_starts(tmp_path, header):
    """Else it is a traceback, names that no file can hold, or a column that is lost."""
    path = tmp_path / "a.csv"
    path.write_bytes(header + b"\n1,2\n")
    with pytest.raises(JobError, match="header"):
        list(Inputs(expand([str(path)])).rows())
