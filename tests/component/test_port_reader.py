"""The promises of the port `Reader`, held by each format in `formats.READERS`."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from batcher.errors import JobError
from batcher.read import formats, json_text, object_store
from batcher.read.files import InputFile, expand, grown
from batcher.read.inputs import Inputs
from batcher.read.reader import Reader

ROWS = [{"id": str(n), "text": f'a, {n}\n"quoted" é {"x" * n}'} for n in range(50)]
PACK = {"": bytes, ".gz": gzip.compress, ".zst": lambda c: pa.compress(c, "zstd", asbytes=True)}


def of_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def of_csv(rows):
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, ["id", "text"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def of_parquet(rows):
    file = io.BytesIO()
    columns = {name: [row[name] for row in rows] for name in ("id", "text")}
    pq.write_table(pa.table(columns), file, row_group_size=7)
    return file.getvalue()


@dataclass(frozen=True)
class Case:
    """One format.

    Attributes:
        name: Of a file.
        write: Makes the content of some rows.
        damaged: Ten rows, of which row 3 alone cannot be used.
        grows: Whether rows can be written behind a file without changing those before.
    """

    name: str
    write: Callable[[list[dict[str, str]]], bytes]
    damaged: bytes
    grows: bool = False


def lines_damaged():
    lines = of_lines(ROWS[:10]).splitlines(keepends=True)
    return b"".join([*lines[:3], b'{"id": \xff}\n', *lines[4:]])


def objects_damaged():
    return lines_damaged().replace(b"\n", b"\n\n").replace(b"{", b"{\n")


def array_damaged():
    return b"[%b]" % b",".join(lines_damaged().splitlines())


def csv_damaged():
    rows = [{"id": str(n), "text": "x"} for n in range(10)]
    return of_csv(rows).replace(b"3,x\n", b"3,x,y\n")


def parquet_damaged():
    ids = [str(n).encode() if n != 3 else b"\xff" for n in range(10)]
    file = io.BytesIO()
    pq.write_table(
        pa.table({"id": pa.array(ids, pa.binary()).view(pa.string()), "text": ["x"] * 10}), file
    )
    return file.getvalue()


CASES = {
    "jsonl": Case("a.jsonl", of_lines, lines_damaged(), grows=True),
    "json": Case("a.json", lambda rows: json.dumps(rows).encode(), array_damaged()),
    "objects": Case(
        "a.json",
        lambda rows: "\n\n".join(json.dumps(row, indent=1) for row in rows).encode(),
        objects_damaged(),
    ),
    "csv": Case("a.csv", of_csv, csv_damaged()),
    "parquet": Case("a.parquet", of_parquet, parquet_damaged()),
}
each = pytest.mark.parametrize("kind", formats.READERS)


def test_each_format_has_its_case():
    """A new format is held to the same promises."""
    assert CASES.keys() == formats.READERS.keys()


def opened(folder, kind, content, name="") -> InputFile:
    path = folder / (name or CASES[kind].name)
    path.write_bytes(content)
    (file,) = expand([str(path)])
    assert file.kind == kind
    return file


def read_blocks(reader: Reader, file: InputFile, first, columns=None):
    """(positions, rows as dicts, what the generator returns)."""
    blocks, positions, rows = reader.blocks(file, first, lambda *_: None, columns), [], []
    while True:
        try:
            some, block = next(blocks)
        except StopIteration as end:
            return positions, rows, end.value
        positions += some
        given = block.to_pylist() if isinstance(block, pa.RecordBatch) else block
        rows += [json_text.recover(row)[0] if isinstance(row, bytes) else row for row in given]


@each
@pytest.mark.parametrize("size", [0, 1, 50])
def test_rows_blocks_and_count_agree(tmp_path, kind, size):
    """Answers meet their rows by position alone."""
    if kind == "objects" and not size:
        return  # A file without anything in it is an empty array.
    file = opened(tmp_path, kind, CASES[kind].write(ROWS[:size]))
    rows = list(Inputs([file]).rows())
    assert [row.columns for row in rows] == ROWS[:size]
    assert [row.position for row in rows] == list(range(size))
    assert not any(row.error or row.note for row in rows)
    positions, found, end = read_blocks(file.reader, file, 100)
    assert found == ROWS[:size]
    assert positions == list(range(100, 100 + size))
    assert (end, file.reader.count(file)) == (size, size)


@each
def test_positions_count_over_files_and_a_limit_over_rows(tmp_path, kind):
    """A limit ends inside of any file."""
    files = [
        opened(tmp_path, kind, CASES[kind].write(ROWS[:size]), f"{size}{CASES[kind].name}")
        for size in (3, 8, 5)
    ]
    every = [row.position for row in Inputs(files).rows()]
    assert len(every) == 16
    for limit in (0, 2, 3, 10, 11, 16, 20):
        inputs = Inputs(files, limit)
        assert [row.position for row in inputs.rows()] == every[:limit]
        assert [at for block, _rows in inputs.native() for at in block] == every[:limit]


@each
def test_only_the_rows_that_are_wanted_come(tmp_path, kind):
    """A resumed run decodes nothing else."""
    file = opened(tmp_path, kind, CASES[kind].write(ROWS))
    settled = bytes(n % 3 > 0 for n in range(40))
    found = [row.columns for row in Inputs([file]).rows(start=5, settled=settled)]
    assert found == [row for n, row in enumerate(ROWS) if n >= 5 and not (n < 40 and n % 3)]


@each
def test_needed_columns_are_there(tmp_path, kind):
    """Others may be."""
    file = opened(tmp_path, kind, CASES[kind].write(ROWS[:5]))
    for columns in (frozenset({"text"}), frozenset({"text", "none"}), frozenset({"none"})):
        rows = list(Inputs([file]).rows(columns))
        assert len(rows) == 5
        wanted = columns & {"text"}
        assert [{name: row.columns[name] for name in wanted} for row in rows] == [
            {name: row[name] for name in wanted} for row in ROWS[:5]
        ]
    _positions, found, _end = read_blocks(file.reader, file, 0, ["text"])
    assert [row["text"] for row in found] == [row["text"] for row in ROWS[:5]]


@each
def test_one_damaged_row_is_that_row_alone(tmp_path, kind):
    """Its place is named, and the rows around it keep theirs."""
    file = opened(tmp_path, kind, CASES[kind].damaged)
    rows = list(Inputs([file]).rows())
    assert [row.position for row in rows] == list(range(10))
    assert [row.position for row in rows if row.error] == [3]
    assert rows[3].error.startswith(f"{rows[3].where}: ")
    assert rows[3].where.startswith(file.name)
    assert [row.columns["id"] for row in rows if not row.error] == [
        str(n) for n in range(10) if n != 3
    ]
    assert read_blocks(file.reader, file, 0)[2] == 10


@each
def test_a_cut_file_says_so(tmp_path, kind):
    """At once, or in a row that cannot be used."""
    content = CASES[kind].write(ROWS)
    path = tmp_path / f"cut{CASES[kind].name}"
    path.write_bytes(content[: len(content) // 2])
    try:
        files = expand([str(path)])
    except JobError as error:
        assert str(path) in str(error)  # noqa: PT017 (a refusal is one of two right ways)
        return
    rows = list(Inputs(files).rows())
    whole = next(n for n, row in enumerate(rows) if row.error)
    assert 0 < whole < 50
    assert [row.columns for row in rows[:whole]] == ROWS[:whole]
    assert all(row.error for row in rows[whole:])


@each
def test_what_is_written_behind_a_file_is_told_from_a_change(tmp_path, kind):
    """Answers stay with their rows only where these cannot have changed."""
    old = opened(tmp_path, kind, CASES[kind].write(ROWS[:5])).with_digest(lambda: None)
    content = (tmp_path / CASES[kind].name).read_bytes()
    assert old.reader.is_whole(old, len(content)) is CASES[kind].grows
    new = opened(tmp_path, kind, CASES[kind].write(ROWS[:9]))
    assert grown([old.pin], [new]) is (True if CASES[kind].grows else None)
    assert [row.columns for row in Inputs([new]).rows()] == ROWS[:9]
    other = opened(tmp_path, kind, CASES[kind].write(ROWS[5:14]))
    assert grown([old.pin], [other]) is None


@each
@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_holds_the_same_rows(tmp_path, kind, suffix):
    """Where the format may be compressed; else its name is refused."""
    name = CASES[kind].name + suffix
    packed = PACK[suffix](CASES[kind].write(ROWS))
    if not formats.READERS[kind].packed:
        assert formats.kind_of(name) is None
        return
    file = opened(tmp_path, kind, packed, name)
    assert [row.columns for row in Inputs([file]).rows()] == ROWS
    assert read_blocks(file.reader, file, 0)[1] == ROWS
    assert not file.reader.is_whole(file, len(packed))
    (tmp_path / name).write_bytes(packed[:-5])
    *_, last = Inputs([file]).rows()
    assert "cut or broken" in last.error


@each
def test_a_pinned_file_is_read_the_same_at_the_next_start(tmp_path, kind):
    """How it is read is in its pin where its name does not tell."""
    file = opened(tmp_path, kind, CASES[kind].write(ROWS))
    again = InputFile.of_pin(file.pin, tmp_path)
    assert (again.kind, again.format) == (file.kind, file.format)
    assert [row.columns for row in Inputs([again]).rows()] == ROWS


@each
def test_a_schema_names_the_columns(tmp_path, kind):
    """Where the format has one."""
    file = opened(tmp_path, kind, CASES[kind].write(ROWS[:2]))
    schema = file.reader.schema(file)
    assert schema is None or schema.names == ["id", "text"]


@each
def test_an_object_of_storage_holds_the_same_rows(tmp_path, monkeypatch, kind):
    """A URL goes wherever a path does."""
    files = SubTreeFileSystem(str(tmp_path), LocalFileSystem())
    monkeypatch.setattr(object_store, "_client", lambda _scheme, _bucket: files)
    path = tmp_path / "bucket" / CASES[kind].name
    path.parent.mkdir()
    path.write_bytes(CASES[kind].write(ROWS))
    (file,) = expand([f"s3://bucket/{path.name}"])
    assert file.kind == kind
    assert [row.columns for row in Inputs([file]).rows()] == ROWS
    assert read_blocks(file.reader, file, 0)[1] == ROWS
    assert file.reader.count(file) == len(ROWS)
