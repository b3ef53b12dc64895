"""CSV as spreadsheets write it."""

import csv as standard
import gzip

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.errors import JobError
from batcher.read import csv
from batcher.read.files import expand, notes_of
from batcher.read.inputs import Inputs


def records(path, content):
    path.write_bytes(content)
    return list(csv.records(str(path)))


def opened(path, content, **asked):
    """(rows as columns or errors, what is said)."""
    path.write_bytes(content)
    files = expand([str(path)], **asked)
    rows = [row.error or row.columns for row in Inputs(files).rows()]
    return rows, [note.removeprefix(f"{path}: ") for note in notes_of(files)]


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.tuples(st.text(), st.text()), max_size=5))
def test_any_text_survives_in_a_cell(tmp_path_factory, rows):
    """Commas, quotes and line ends are ordinary in prompts."""
    path = tmp_path_factory.mktemp("rows") / "a.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        standard.writer(file).writerows([("a", "b"), *rows])
    found = [record.columns for record in csv.records(str(path))]
    assert found == [{"a": a, "b": b} for a, b in rows]


@pytest.mark.parametrize(
    ("record", "columns", "reason"),
    [
        (b"1,2,3", {"a": "1", "b": "2"}, "3 cells where the header has 2"),
        (b" ", {"a": " ", "b": None}, "1 cells where the header has 2"),
        (b",", {"a": "", "b": ""}, "all its cells are empty"),
        (b'1,"1"x', {"a": "1", "b": None}, "not CSV (',' expected after '\"')"),
        (b'"1"x,2', {"a": None, "b": None}, "not CSV (',' expected after '\"')"),
        (b'"1 ""a""","1"x', {"a": '1 "a"', "b": None}, "not CSV (',' expected after '\"')"),
        (b"caf\xe9,2", {"a": None, "b": "2"}, "not UTF-8 in 'a'"),
    ],
)
def test_a_damaged_record_costs_that_record_alone(tmp_path, record, columns, reason):
    """One bad line among a million is no reason to send nothing; what could be read is kept."""
    found = records(tmp_path / "a.csv", b"a,b\n1,2\n" + record + b"\n3,4\n")
    assert found == [
        (2, {"a": "1", "b": "2"}, "", ""),
        (3, columns, reason, ""),
        (4, {"a": "3", "b": "4"}, "", ""),
    ]


def test_missing_cells_are_null_and_empty_ones_too_many_do_no_harm(tmp_path):
    """Spreadsheets leave out the last cells of a row, or write delimiters for cells that are not there."""
    found = records(tmp_path / "a.csv", b"a,b\n1\n2,3,,\n")
    assert [record.columns for record in found] == [{"a": "1", "b": None}, {"a": "2", "b": "3"}]
    assert [bool(record.error) for record in found] == [False, False]
    assert [bool(record.note) for record in found] == [True, False]


def table(rows, stray):
    lines = [f'{n},"text, {n}",label' for n in range(rows)]
    for at, text in stray.items():
        lines[at] = text
    return ("n,text,label\n" + "\n".join(lines) + "\n").encode()


@pytest.mark.parametrize(
    "stray",
    [
        {10: '10,"never closed,label'},
        {10: '10,"opens,label', 400: '400,closes",LABEL'},
        {10: '10,opens,"label', 400: '400,closes,label"'},
        {10: '10,"a,label', 11: '11,"b,label', 12: '12,"c,label'},
        {499: '499,"at the end,label'},
    ],
    ids=["never closed", "closed far below", "in the last cell", "three", "last row"],
)
def test_a_stray_quote_costs_its_own_row(tmp_path, stray):
    """Every program reads 490 rows as one here, and the answers to them are missing."""
    content = table(500, stray)
    if 400 in stray:  # The other rows have no quotes, which would close it before.
        content = content.replace(b'"text, ', b"text ").replace(b'",label\n', b",label\n")
    found = records(tmp_path / "a.csv", content)
    assert [record.place for record in found] == list(range(2, 502))
    bad = {record.place - 2: record for record in found if record.error}
    assert bad.keys() == {at for at, text in stray.items() if "closes" not in text}
    for at, record in bad.items():
        assert record.columns["n"] == str(at)
        assert "the quote that opens here" in record.error or "not CSV" in record.error


def test_a_quote_that_is_never_closed_takes_no_more_memory_than_a_long_cell(tmp_path, monkeypatch):
    """It took four times the rest of the file."""
    monkeypatch.setattr(csv, "_MAX_CHARACTERS", 1000)
    content = b'n,text,label\n0,x,y\n1,"opens,y\n' + b"2,x,y\n" * 498
    found = records(tmp_path / "a.csv", content)
    assert [record.place for record in found] == list(range(2, 502))
    assert [record.place for record in found if record.error] == [3]


def test_a_long_cell_of_many_lines_is_no_stray_quote(tmp_path):
    """Letters and tables stand in cells."""
    letter = "Dear all,\n" + "a line, with a comma\n" * 50 + "one without\n"
    inside = "x,y\n" * 30
    path = tmp_path / "a.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        standard.writer(file).writerows([("n", "text"), ("1", letter), ("2", inside), ("3", "z")])
    found = [record.columns["text"] for record in csv.records(str(path))]
    assert found == [letter, inside, "z"]


def test_a_broken_cell_of_many_lines_is_one_unreadable_row(tmp_path):
    """Its lines are no rows: none of them is sent."""
    content = b'n,a,b\n1,"Dear all,\nhe said "hi" there\nbye",x\n2,y,z\n'
    found = records(tmp_path / "a.csv", content)
    assert [record.place for record in found if not record.error] == [5]
    assert found[0].columns == {"n": "1", "a": None, "b": None}


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", []),
        (b"a,b\n", []),
        (b"\xef\xbb\xbfa,b\r\n1,2\r\n", [(2, {"a": "1", "b": "2"})]),
        (b"a,b\n\n1,2\n\n\n", [(3, {"a": "1", "b": "2"})]),
        (b"a,b\n1,2", [(2, {"a": "1", "b": "2"})]),
        (b"a,b\r1,2\r", [(2, {"a": "1", "b": "2"})]),
        (b'a,b\n"x\ny\nz",2\n3,4\n', [(2, {"a": "x\ny\nz", "b": "2"}), (5, {"a": "3", "b": "4"})]),
        (b"sep=,\na,b\n1,2\n", [(3, {"a": "1", "b": "2"})]),
        (b"a,b\n1\0,2\n", [(2, {"a": "1\0", "b": "2"})]),
    ],
    ids=["empty", "header alone", "from Excel", "blank lines", "no last newline", "old Mac",
         "long cell", "sep", "NUL"],
)  # fmt: skip
def test_spreadsheets_may_write_it_their_way(tmp_path, content, found):
    """A mark before the header is no part of the first column's name; a row is where it begins."""
    told = records(tmp_path / "a.csv", content)
    assert [(record.place, record.columns) for record in told] == found
    assert not any(record.error or record.note for record in told)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"a;b\n1,5;2\n3;4\n", "by ';'"),
        ("a.csv", b"a\tb\n1\t2\n", "by tab"),
        ("a.csv", b"a|b\n1|2\n", "by '|'"),
        ("a.csv", b"sep=;\na;b\n1;2\n", "by ';'"),
        ("a.csv", b'a,"b;c",d\n1,2,3\n', ""),
        ("a.csv", b"text;a,b\n1,2\n3,4\n", ""),
        ("a.csv", b"a\n1;2\n", ""),
        ("a.tsv", b"a\tb, c\n1\t2\n", ""),
        ("a.tsv", b"a,b\n1,2\n", "by ','"),
    ],
)
def test_the_delimiter_is_the_one_that_the_header_and_most_lines_have(
    tmp_path, name, content, said
):
    """Excel writes semicolons wherever a comma is the decimal point."""
    rows, notes = opened(tmp_path / name, content)
    assert all(isinstance(row, dict) for row in rows)
    assert [said in note for note in notes] == [True] * bool(said)


def test_a_delimiter_that_was_asked_for_is_taken(tmp_path):
    """Detection may be wrong."""
    rows, notes = opened(tmp_path / "a.csv", b"a,b;c\n1,2;3\n", delimiter=";")
    assert rows == [{"a,b": "1,2", "c": "3"}]
    assert notes == []


TEXT = "id,text\n1,Größe “naïve” café\n"


@pytest.mark.parametrize(
    ("encoding", "found"),
    [("utf-8", ""), ("utf-8-sig", ""), ("cp1252", "cp1252"), ("utf-16", "utf-16"),
     ("utf-16-le", "utf-16-le"), ("utf-16-be", "utf-16-be"), ("utf-32", "utf-32")],
)  # fmt: skip
def test_an_encoding_is_found_and_named(tmp_path, encoding, found):
    """Excel writes Windows-1252 and UTF-16; junk would be paid for."""
    rows, notes = opened(tmp_path / "a.csv", TEXT.encode(encoding))
    assert rows == [{"id": "1", "text": "Größe “naïve” café"}]
    assert notes == ([f"read as {found}; give --encoding if that is wrong."] if found else [])


@pytest.mark.parametrize("end", ["csv.gz", "csv.zst", "tsv.gz"])
def test_a_packed_file_is_read_like_a_plain_one(tmp_path, end):
    """Detection looks at what is inside."""
    content = TEXT.replace(",", "\t" if "tsv" in end else ",").encode("cp1252")
    pack = gzip.compress if end.endswith("gz") else lambda c: pa.compress(c, "zstd", asbytes=True)
    rows, notes = opened(tmp_path / f"a.{end}", pack(content))
    assert rows == [{"id": "1", "text": "Größe “naïve” café"}]
    assert "read as cp1252" in notes[0]


def test_a_cut_file_ends_in_an_unreadable_row(tmp_path):
    """A broken download must not look like a short file."""
    content = gzip.compress(b"a,b\n" + b"".join(b"%d,x\n" % n for n in range(5000)))
    rows, _notes = opened(tmp_path / "a.csv.gz", content[:-2000])
    assert len(rows) > 100
    assert "cut or broken" in rows[-1]
    assert rows[:100] == [{"a": str(n), "b": "x"} for n in range(100)]


def test_one_bad_byte_does_not_make_it_another_encoding(tmp_path):
    """Its row is unreadable; before it, after it and at the next start the rows are the same."""
    content = ("a,b\n" + "é,ü\n" * 10).encode() + b"\xe9,x\n" + "ö,ä\n".encode()
    rows, notes = opened(tmp_path / "a.csv", content)
    assert notes == []
    assert rows[10].endswith(":12: not UTF-8 in 'a'")
    assert rows[11] == {"a": "ö", "b": "ä"}
    long = b"a,b\n" + b"x,y\n" * (csv_look // 4) + b"\xe9,x\n"
    rows, notes = opened(tmp_path / "a.csv", long)
    assert (notes, len(rows)) == ([], csv_look // 4 + 1)
    assert "not UTF-8" in rows[-1]


csv_look = 1 << 20


@pytest.mark.parametrize(
    ("encoding", "asked", "reason"),
    [
        ("gb18030", None, "its bytes fit: gb18030"),
        ("cp1251", None, "its encoding cannot be detected"),
        ("utf-8", "utf-16", "it is not utf-16"),
        ("utf-16-le", "", "it looks like UTF-16"),
        ("utf-16", "cp1252", "it looks like UTF-16"),
        ("gb18030", "shift_jis", "is not shift_jis"),
    ],
)
def test_an_encoding_that_cannot_be_is_refused(tmp_path, encoding, asked, reason):
    """Nobody pays for mojibake."""
    text = "名称,内容\n一," + "发票问题需要退款\n" * 9
    if encoding == "cp1251":
        text = "имя,текст\n" * 9
    if encoding.startswith("utf"):
        text = TEXT
    (tmp_path / "a.csv").write_bytes(text.encode(encoding))
    with pytest.raises(JobError, match=reason):
        expand([str(tmp_path / "a.csv")], encoding=asked)


def test_an_encoding_that_was_asked_for_is_taken(tmp_path):
    """Chinese Excel writes GB 18030."""
    rows, notes = opened(
        tmp_path / "a.csv", "名称,内容\n一,发票\n".encode("gb18030"), encoding="gb18030"
    )
    assert (rows, notes) == ([{"名称": "一", "内容": "发票"}], [])


def test_utf_16_without_a_mark_is_read_by_its_nulls(tmp_path):
    """Whoever asks for UTF-16 need not know the order of its bytes."""
    (tmp_path / "a.csv").write_bytes(TEXT.encode("utf-16-be"))
    (row,) = Inputs(expand([str(tmp_path / "a.csv")], encoding="utf-16")).rows()
    assert row.columns["text"] == "Größe “naïve” café"


def test_columns_without_a_name_of_their_own_get_one(tmp_path):
    """Said once; no column is lost."""
    rows, notes = opened(tmp_path / "a.csv", b"id,,id,column_2,id_2,\n1,2,3,4,5,6\n")
    assert list(rows[0]) == ["id", "column_2_2", "id_3", "column_2", "id_2", "column_6"]
    assert list(rows[0].values()) == list("123456")
    assert notes == [
        "columns have no name, and are called column_2_2, column_6.",
        "a column has the name of another, and is called id_3.",
    ]


@pytest.mark.parametrize(
    "header", [b'"a"b,c', b'n,"never closed'], ids=["bad quotes", "a stray quote"]
)
def test_a_header_that_cannot_be_used_stops_the_job_before_it_starts(tmp_path, header):
    """Else it is a traceback, or names that no file can hold."""
    path = tmp_path / "a.csv"
    path.write_bytes(header + b"\n1,2\n")
    with pytest.raises(JobError, match="header"):
        expand([str(path)])


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.csv", gzip.compress(b"a\n1\n", mtime=0), "gzip data; rename it to end in .gz"),
        ("a.csv.gz", b"a\n1\n", "its content is not compressed"),
        ("a.jsonl.zst", gzip.compress(b"{}", mtime=0), "but it is gzip data"),
        ("a.csv", b"PK\x03\x04...", "Excel workbook"),
    ],
)
def test_a_name_that_says_something_else_than_the_content_is_refused(
    tmp_path, name, content, reason
):
    """Else each row of it is unreadable, or a traceback."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(JobError, match=reason):
        expand([str(tmp_path / name)])
