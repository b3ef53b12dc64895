"""Many files as one list of rows."""

import gzip
import os
import subprocess

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.errors import JobError
from batcher.read import jsonl, parquet
from batcher.read.files import InputFile, Pin, expand, grown
from batcher.read.inputs import Inputs

WHOLE = [
    b'{"n":1}',
    b'{"n":"x"}',
    b"7",
    b'{"n":"\xff","m":1}',
    b'{"n":NaN}',
    b'{"n":1e999,"m":"\\ud800"}',
]
LINES = st.sampled_from([*WHOLE, b"", b"  ", b"{"])
RECORDS = st.sampled_from([b"1,2", b"", b"1", b'"x\ny",2', b'"x"y,2', b"\xff,2", b'1,"', b"1,2,3"])
FILES = st.lists(
    st.tuples(st.sampled_from(["jsonl", "jsonl.gz", "ndjson"]), st.lists(LINES, max_size=6))
    | st.tuples(st.sampled_from(["csv", "csv.gz"]), st.lists(RECORDS, max_size=6))
    | st.tuples(st.just("json"), st.lists(st.sampled_from(WHOLE), max_size=6))
    | st.tuples(st.just("parquet"), st.lists(st.just(b""), max_size=9)),
    max_size=3,
)
LIMIT = st.none() | st.integers(0, 9)


def written(folder, files, limit=None):
    paths = []
    for number, (kind, records) in enumerate(files):
        path = folder / f"{number}.{kind}"
        if kind == "parquet":
            table = pa.table({"n": pa.array(range(len(records)), pa.int64())})
            pq.write_table(table, path, row_group_size=4)
        else:
            content = b"".join(record + b"\n" for record in records)
            if kind == "json":
                content = b"[%b]" % b",".join(records)
            content = b"n,m\n" + content if kind.startswith("csv") else content
            path.write_bytes(gzip.compress(content) if kind.endswith("gz") else content)
        paths.append(str(path))
    return Inputs(expand(paths), limit)


@settings(max_examples=80, deadline=None)
@given(files=FILES, limit=LIMIT, start=st.integers(0, 20), done=st.sets(st.integers(0, 20)))
def test_reading_a_part_is_reading_all_and_leaving_out(
    tmp_path_factory, files, limit, start, done
):
    """A resumed run asks for the rows that are missing, and must get exactly these.

    Marks may be known by then, so that it begins in the middle of a file.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl, "INDEX_EVERY", 2)
        inputs = written(tmp_path_factory.mktemp("in"), files, limit)
        every = list(inputs.rows())
        # A blank line has no result, so it is never settled.
        done &= {row.position for row in every}
        settled = bytes(position in done for position in range(max(done, default=-1) + 1))
        for _ in range(2):
            part = list(inputs.rows(start=start, settled=settled))
            assert part == [r for r in every if r.position >= start and r.position not in done]


@settings(max_examples=80, deadline=None)
@given(files=FILES, limit=LIMIT)
def test_what_is_asked_and_what_is_written_are_the_same_rows(tmp_path_factory, files, limit):
    """Answers meet their rows by position alone."""
    inputs = written(tmp_path_factory.mktemp("in"), files, limit)
    asked = [(row.position, row.columns) for row in inputs.rows()]
    native = []
    for positions, rows in inputs.native():
        rows = rows.to_pylist() if isinstance(rows, pa.RecordBatch) else rows
        native += zip(positions, rows, strict=True)
    assert native == asked
    dicts = [pair for block in inputs.dicts() for pair in zip(*block, strict=True)]
    assert [(at, sorted(columns)) for at, columns in dicts] == [
        (at, sorted(columns or {})) for at, columns in asked
    ]


@settings(max_examples=40, deadline=None)
@given(files=FILES, limit=st.integers(0, 9))
def test_a_limit_takes_the_first_rows(tmp_path_factory, files, limit):
    """Blank lines are not counted, unreadable rows are: they come out too."""
    inputs = written(tmp_path_factory.mktemp("in"), files)
    every = list(inputs.rows())
    assert list(Inputs(inputs.files, limit).rows()) == every[:limit]


def test_an_error_names_the_line_that_sed_shows(tmp_path):
    """A person opens the file there; blank and damaged lines must not shift it."""
    inputs = written(
        tmp_path, [("jsonl", [b"", b'{"n":1}', b"{"]), ("csv", [b"1,2", b"", b"1"]),
                   ("parquet", [b""]), ("jsonl", [b" ", b"7"])],
    )  # fmt: skip
    found = [(row.position, row.where.rsplit("/", 1)[1]) for row in inputs.rows()]
    assert found == [
        (1, "0.jsonl:2"), (2, "0.jsonl:3"), (3, "1.csv:2"), (4, "1.csv:4"),
        (5, "2.parquet row 0"), (7, "3.jsonl:2"),
    ]  # fmt: skip
    errors = [row.error or row.note for row in inputs.rows() if row.error or row.note]
    assert [error.rpartition("/")[2][:13] for error in errors] == [
        "0.jsonl:3: no", "fewer cells t", "3.jsonl:2: no",
    ]  # fmt: skip


def cut(folder):
    path = folder / "cut.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"n":1}\n' * 9)[:-6])
    return Inputs(expand([str(path)]))


def test_a_cut_file_ends_in_an_unreadable_row(tmp_path):
    """That rows are missing must show in the output."""
    *_, last = cut(tmp_path).rows()
    assert last.columns is None
    assert last.where in last.error
    assert "cut or broken" in last.error
    assert [positions[-1] for positions, _rows in cut(tmp_path).native()] == [last.position]


def test_a_cut_is_not_told_to_who_did_not_ask(tmp_path):
    """A resumed run has already written that row."""
    assert list(cut(tmp_path).rows(settled=bytes([1] * 100))) == []


def test_numbers_of_jsonl_come_out_as_they_were_written(tmp_path):
    """1.10 is a price and 12345678901234567890 an ID."""
    line = b'{"a":1.10,"b":12345678901234567890123,"c":{"d":1E5}}'
    ((_positions, (columns,)),) = written(tmp_path, [("jsonl", [line])]).dicts()
    assert {name: bytes(raw) for name, raw in columns.items()} == {
        "a": b"1.10", "b": b"12345678901234567890123", "c": b'{"d":1E5}',
    }  # fmt: skip


def test_of_parquet_only_needed_columns_are_read(tmp_path):
    """Also where a file has none of them: its rows are still rows."""
    path = tmp_path / "a.parquet"
    messages = [{"role": "user", "content": None, "name": None}]
    pq.write_table(pa.table({"id": [1, 2], "messages": [messages, None], "x": ["", ""]}), path)
    inputs = Inputs(expand([str(path)]))
    assert [row.columns for row in inputs.rows(frozenset({"messages", "prompt"}))] == [
        {"messages": [{"role": "user", "content": None}]}, {"messages": None},
    ]  # fmt: skip
    assert [row.columns for row in inputs.rows(frozenset({"prompt"}))] == [{"id": 1}, {"id": 2}]


def test_a_row_group_that_nobody_wants_is_not_even_opened(tmp_path, monkeypatch):
    """Resuming near the end of a large file must not read it from the start."""
    inputs = written(tmp_path, [("parquet", [b""] * 9)])
    read = []
    batches = parquet.batches

    def noted(*args, **named):
        for at, batch in batches(*args, **named):
            read.append(at)
            yield at, batch

    monkeypatch.setattr(parquet, "batches", noted)
    assert [row.position for row in inputs.rows(start=8)] == [8]
    assert [row.position for row in inputs.rows(settled=b"\1" * 8)] == [8]
    assert read == [8, 8]


def test_a_folder_gives_its_data_files_in_order_and_none_of_our_own(tmp_path):
    """A second run must not take the first one's journal for input."""
    for name in ("b.csv", "a.jsonl.gz", "sub/c.parquet", "sub/d.jsonl.zst", "z.jsonl", "notes.txt",
                 ".hidden.jsonl", "_tmp/e.jsonl", "out.jsonl.run/journal-000001.jsonl"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    pq.write_table(pa.table({"n": [1]}), tmp_path / "sub/c.parquet")
    found = [os.path.relpath(file.path, tmp_path) for file in expand([str(tmp_path)])]
    assert found == ["a.jsonl.gz", "b.csv", "sub/c.parquet", "sub/d.jsonl.zst", "z.jsonl"]
    inside = expand([str(tmp_path)], str(tmp_path / "sub" / ".." / "z.jsonl"))
    assert "z.jsonl" not in {os.path.relpath(file.path, tmp_path) for file in inside}
    matched = expand([str(tmp_path / "z.jsonl"), str(tmp_path / "*.c*"), str(tmp_path / "[ab].*")])
    assert [file.kind for file in matched] == ["jsonl", "csv", "jsonl", "csv"]


def test_a_name_with_brackets_is_a_file_before_it_is_a_pattern(tmp_path):
    """Browsers call a second download `a[1].jsonl`."""
    (tmp_path / "a[1].jsonl").touch()
    (tmp_path / "a1.jsonl").touch()
    (file,) = expand([str(tmp_path / "a[1].jsonl")])
    assert file.name.endswith("a[1].jsonl")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nothing.jsonl", "there is no such file"),
        ("*.jsonl", "no file matches"),
        ("empty", "the folder holds no .jsonl"),
        ("a.txt", "unknown format"),
        ("*.txt", "unknown format"),
        ("A.JSONL", "unknown format"),
    ],
)
def test_a_path_that_names_no_input_is_refused_with_its_name(tmp_path, name, reason):
    """A typing error is found before anything is sent."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").touch()
    (tmp_path / "A.JSONL").touch()
    with pytest.raises(JobError, match=reason) as refused:
        expand([str(tmp_path / name)])
    assert str(refused.value).startswith(str(tmp_path))


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_file_that_changed_since_is_named(tmp_path, kind):
    """Answers of yesterday's rows must not be put beside today's."""
    inputs = written(tmp_path, [(kind, [b""])])
    (file,) = inputs.files
    assert inputs.changed() is None
    os.utime(file.path, ns=(0, file.pin.mtime_ns + 1))
    assert inputs.changed() == file.name
    os.unlink(file.path)
    assert inputs.changed() == file.name
    with pytest.raises(JobError, match="it cannot be read"):
        list(inputs.rows())


def test_a_parquet_file_that_is_none_is_refused(tmp_path):
    """An error page saved under that name, for one."""
    path = tmp_path / "a.parquet"
    path.write_text("<html>")
    with pytest.raises(JobError, match=r"a\.parquet: it cannot be read"):
        list(Inputs(expand([str(path)])).rows())


def test_two_columns_of_one_name_are_said_before_anything_is_paid(tmp_path):
    """No output could hold both."""
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(JobError, match="two columns named 'text'"):
        expand([str(tmp_path / "a.parquet")])


def test_times_that_python_has_none_for_are_text(tmp_path):
    """pandas counts nanoseconds; and some dates are past the year 9999."""
    moment = pa.array([1, None], pa.timestamp("ns"))
    columns = {
        "ns": moment, "zone": pa.array([1, None], pa.timestamp("ns", "UTC")),
        "far": pa.array([253402300800000, None], pa.timestamp("ms")),
        "clock": pa.array([1, None], pa.time64("ns")), "long": pa.array([1, None], pa.duration("ns")),
        "list": pa.array([[1], None], pa.list_(pa.timestamp("ns"))),
        "inside": pa.StructArray.from_arrays([moment], ["at"]),
    }  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    first, second = (row.columns for row in Inputs(expand([str(tmp_path / "a.parquet")])).rows())
    at = "1970-01-01T00:00:00.000000001"
    assert first == {"ns": at, "zone": f"{at}Z", "far": 253402300800000, "list": [at],
                     "clock": "00:00:00.000000001", "long": 1, "inside": {"at": at}}  # fmt: skip
    assert second == {**dict.fromkeys(columns), "inside": {"at": None}}


def test_the_same_file_is_known_again_from_another_folder(tmp_path, monkeypatch):
    """Where the command was typed is no part of what was asked."""
    inputs = written(tmp_path, [("jsonl", [])])
    monkeypatch.chdir(tmp_path)
    assert Inputs(expand(["0.jsonl"])).pins == inputs.pins


def hashed(*names):
    return [file.with_digest(lambda: None) for file in expand(list(names))]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("", False),
        ("cp -p a.jsonl c && mv c a.jsonl", False),
        ("touch a.jsonl", False),
        ("echo '{}' >> a.jsonl", True),
        ("sed -i s/1/2/ a.jsonl", None),
        ("touch -r a.jsonl t && sed -i s/1/2/ a.jsonl && touch -r t a.jsonl", None),
        ("sed -i 1d a.jsonl", None),
        ("sed -i '1i {}' a.jsonl", None),
        ("echo '{}' > a.jsonl", None),
    ],
)
def test_rows_are_known_again_by_their_bytes(tmp_path, monkeypatch, change, found):
    """Copied, touched or longer is the same rows; edited is not, whatever its times say."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"n":1}\n{"n":1}\n')
    pins = [file.pin for file in hashed("a.jsonl")]
    subprocess.run(["sh", "-c", change], check=True)
    assert grown(pins, expand(["a.jsonl"])) is found


def test_another_encoding_or_delimiter_makes_other_rows(tmp_path, monkeypatch):
    """The same bytes, and an answer to each row under its old place."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_bytes("a;b\né;2,5\n".encode("cp1252"))
    pins = [file.pin for file in hashed("a.csv")]
    assert grown(pins, expand(["a.csv"])) is False
    assert grown(pins, expand(["a.csv"], encoding="iso8859-1")) is None
    assert grown(pins, expand(["a.csv"], delimiter=",")) is None
    kept = msgspec.convert(msgspec.to_builtins(pins), list[Pin])
    (row,) = Inputs([InputFile.of_pin(pin, tmp_path) for pin in kept]).rows()
    assert row.columns == {"a": "é", "b": "2,5"}
    assert grown(kept, expand(["a.csv"])) is False


def test_files_behind_the_old_ones_are_rows_added(tmp_path, monkeypatch):
    """Tomorrow's file in the same folder must not make today's answers move."""
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text('{"n":1}\n')
    pins = [file.pin for file in hashed("a.jsonl")]
    assert grown(pins, expand(["a.jsonl", "b.jsonl"])) is True
    assert grown([*pins, *pins], expand(["a.jsonl"])) is None


def test_a_last_line_without_its_end_may_have_changed(tmp_path, monkeypatch):
    """What is appended then belongs to a row that was already sent."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"n":1}')
    pins = [file.pin for file in hashed("a.jsonl")]
    (tmp_path / "a.jsonl").write_text('{"n":1}\n{"n":2}\n')
    assert grown(pins, expand(["a.jsonl"])) is None
