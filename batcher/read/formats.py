"""The formats of input files: which suffix is which, and how each becomes rows. Touches: files, the network.

A format is a `Reader`; to add one, write it and name it in `READERS`.

pyarrow takes a quarter of a start, so it is imported where there is Parquet to read.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from batcher.read import csv, json_array, jsonl, text
from batcher.read.text import Damaged
from batcher.records import Row

if TYPE_CHECKING:
    import pyarrow as pa

    from batcher.read.files import InputFile
    from batcher.read.parquet import Lost

__all__ = [
    "ALL",
    "NAMES",
    "READERS",
    "SUFFIXES",
    "Block",
    "Format",
    "Reader",
    "Span",
]

ALL = 1 << 62
"""More rows than there are."""
_BLOCK_ROWS = 2000
_BLOCK_BYTES = 4 << 20
_LOOK = 1 << 20
_LOOK_LINES = 64 << 10
_BODIES = frozenset({"messages", "body"})

Block = tuple[list[int], "pa.RecordBatch | list[Any]"]
"""(positions, a record batch, or for each row its JSON text, its columns or None)."""


class Format(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the bytes of a file are read.

    Attributes:
        kind: Name of its reader.
        encoding: Of its text; "" for UTF-8.
        delimiter: Of CSV.
    """

    kind: str
    encoding: str = ""
    delimiter: str = ""


@dataclass(frozen=True)
class Span:
    """One file's part of the rows.

    Attributes:
        folder: Where the paths of pictures begin.
        first: Position of its first row.
        left: How many rows are still allowed.
        wanted: The first position from a given one on that is needed.
        marks: By path of a file, where some of its lines begin (`Inputs.marks`).
        lost: Told of cells that cannot be read.
    """

    file: InputFile
    folder: str
    first: int
    left: int
    wanted: Callable[[int], int]
    marks: dict[str, array[int]]
    lost: Lost


class Reader(Protocol):
    """A format."""

    suffixes: tuple[str, ...]
    """How names of such files end, packed ones included."""

    def examined(
        self, path: str, encoding: str | None, delimiter: str | None
    ) -> tuple[Format | None, list[str]]:
        """(how a file is read, where its name does not tell; what a person should know of that).

        Only its beginning decides, so that it is the same at each start.

        Args:
            path: The file.
            encoding: As asked, "" for UTF-8; None to find it.
            delimiter: Likewise.

        Raises:
            JobError: It is not of this format, or not of what was asked.
        """

    def rows(
        self, span: Span, columns: frozenset[str] | None
    ) -> Generator[Row, None, tuple[int, int]]:
        """Those rows that are wanted; returns how many positions and rows there are, wanted or not."""

    def blocks(self, file: InputFile, first: int, lost: Lost) -> Generator[Block, None, int]:
        """All rows of a file whose first position is `first`; returns how many positions there are.

        `lost` is told of cells that cannot be read, which are null.
        """

    def count(self, file: InputFile) -> int:
        """How many rows there are; nothing is decoded."""


def _packed(*suffixes: str) -> tuple[str, ...]:
    return tuple(f"{suffix}{end}" for suffix in suffixes for end in ("", ".gz", ".zst"))


class _Text:
    """What the formats of text have in common."""

    suffixes: tuple[str, ...] = ()

    def _contents(self, file: InputFile) -> Iterator[tuple[int, Any]]:
        """(place in the file, JSON text | `csv.Record` | Damaged | None for a place without a row)."""
        raise NotImplementedError  # Each format of text has its own.

    def _where(self, file: InputFile, place: int) -> str:
        return f"{file.name}:{place}"

    def rows(
        self, span: Span, _columns: frozenset[str] | None
    ) -> Generator[Row, None, tuple[int, int]]:
        rows = 0
        wanted = span.wanted(span.first)
        for place, content in self._contents(span.file):
            if rows == span.left:
                break
            position = span.first + rows
            rows += 1
            if position < wanted:
                continue
            yield _row(position, self._where(span.file, place), content, span.folder)
            wanted = span.wanted(position + 1)
        return rows, rows

    def blocks(self, file: InputFile, first: int, _lost: Lost) -> Generator[Block, None, int]:
        positions: list[int] = []
        rows: list[Any] = []
        size = 0
        position = first - 1
        for position, (_place, content) in enumerate(self._contents(file), first):
            if content is None:
                continue
            positions.append(position)
            if isinstance(content, bytes):
                rows.append(content)
                size += len(content)
            else:
                columns = content.columns if isinstance(content, csv.Record) else None
                rows.append(columns)
                size += 200 + sum(len(str(value)) for value in (columns or {}).values())
            if len(rows) >= _BLOCK_ROWS or size >= _BLOCK_BYTES:
                yield positions, rows
                positions, rows, size = [], [], 0
        if rows:
            yield positions, rows
        return position + 1 - first

    def count(self, file: InputFile) -> int:
        return sum(content is not None for _place, content in self._contents(file))


def _row(position: int, where: str, content: Any, folder: str) -> Row:
    columns: dict[str, object] | None = None
    note = ""
    if isinstance(content, bytes):
        try:
            return Row(position, where, jsonl.decode(content), folder=folder)
        except Damaged:
            made, error, note = jsonl.salvaged(content)
            columns = None if made is None else jsonl.decode(made)
    elif isinstance(content, csv.Record):
        columns, error, note = content.columns, content.error, content.note
    else:
        error = str(content)
    return Row(position, where, columns, f"{where}: {error}" if error else None, folder, note)


def _encoding(path: str, head: bytes, asked: str | None, notes: list[str]) -> str:
    if asked is not None:
        return text.readable(path, head, asked)
    whole = len(head) < _LOOK and not text.is_packed(path)
    found = text.encoding_of(path, head, whole=whole)
    if found:
        notes.append(f"read as {found}; give --encoding if that is wrong")
    return found


class _Jsonl(_Text):
    """A line a row; a blank line has a position as well, so that it moves no other row."""

    suffixes = _packed(".jsonl", ".ndjson")

    def examined(
        self, path: str, encoding: str | None, delimiter: str | None
    ) -> tuple[Format | None, list[str]]:
        del delimiter
        text.check_packing(path)
        head = text.look(path, _LOOK if encoding is not None else 4096)
        notes: list[str] = []
        # A line that is no UTF-8 is that row's failure; only UTF-16 cannot be read as lines at all.
        if encoding is not None or head.startswith((b"\xff", b"\xfe")) or 0 in head:
            found = _encoding(path, head, encoding, notes)
            return Format("jsonl", found) if found else None, notes
        return None, notes

    def _contents(self, file: InputFile) -> Iterator[tuple[int, Any]]:
        number = 0
        try:
            for number, line in enumerate(
                jsonl.lines(file.path, encoding=file.format.encoding), 1
            ):
                yield number, None if not line or line.isspace() else line
        except Damaged as damage:
            yield number + 1, damage

    def rows(
        self, span: Span, _columns: frozenset[str] | None
    ) -> Generator[Row, None, tuple[int, int]]:
        file, folder = span.file, span.folder
        wanted = span.wanted(span.first)
        number = offset = rows = 0
        encoding = file.format.encoding
        marks: array[int] | None = array("q")
        known = span.marks.get(file.path)
        if known and span.left == ALL:
            # How many of the lines before are blank is not known, so not with a limit.
            at = min((wanted - span.first) // jsonl.MARK, len(known) - 1)
            number, offset, marks = at * jsonl.MARK, known[at], None
        try:
            for line in jsonl.lines(file.path, offset, marks, encoding):
                position = span.first + number
                number += 1
                if not line or line.isspace():
                    if position >= wanted:
                        wanted = span.wanted(position + 1)
                    continue
                if rows == span.left:
                    return number, rows
                rows += 1
                if position < wanted:
                    continue
                where = f"{file.name}:{number}"
                try:
                    row = Row(position, where, jsonl.decode(line), folder=folder)
                except Damaged:
                    row = _row(position, where, line, folder)
                yield row
                wanted = span.wanted(position + 1)
        except Damaged as damage:
            position = span.first + number
            if position >= span.wanted(position) and rows < span.left:
                yield _row(position, f"{file.name}:{number + 1}", damage, folder)
            return number + 1, rows + 1
        if marks:
            span.marks[file.path] = marks
        return number, rows


class _Json(_Text):
    """The elements of one array, or objects one behind the other.

    Args:
        array: Whether it is an array.
    """

    def __init__(self, *, array: bool) -> None:
        self._array = array
        self.suffixes = _packed(".json") if array else ()

    def examined(
        self, path: str, encoding: str | None, delimiter: str | None
    ) -> tuple[Format | None, list[str]]:
        del delimiter
        text.check_packing(path)
        head = text.look(path, _LOOK)
        notes: list[str] = []
        odd = encoding is not None or head.startswith((b"\xff", b"\xfe")) or 0 in head[:4096]
        found = _encoding(path, head, encoding, notes) if odd else ""
        if found:
            head = head.decode(found, "ignore").encode()
        start = head.removeprefix(text.BOM).lstrip()
        if not start or start.startswith(b"["):
            return Format("json", found), notes
        line, end, behind = start.partition(b"\n")
        try:
            jsonl.decode(jsonl.salvaged(line)[0] or line)
            lines = bool(end and behind.strip())
        except Damaged:
            lines = False
        if lines:
            notes.append("it holds no JSON array but a JSON object a line, and is read as .jsonl")
            return Format("jsonl", found), notes
        notes.append(
            "it holds no JSON array; each object in it is a row. If the rows are a list inside of one, take "
            f"them out: jq -c '.NAME[]' {path} > rows.jsonl"
        )
        return Format("objects", found), notes

    def _contents(self, file: InputFile) -> Iterator[tuple[int, Any]]:
        blocks = text.blocks(file.path, file.format.encoding)
        return enumerate(json_array.elements(blocks, array=self._array))

    def _where(self, file: InputFile, place: int) -> str:
        return f"{file.name} item {place}"


class _Csv(_Text):
    """Cells of text under a header line."""

    suffixes = _packed(".csv", ".tsv")

    def examined(
        self, path: str, encoding: str | None, delimiter: str | None
    ) -> tuple[Format | None, list[str]]:
        text.check_packing(path)
        head = text.look(path, _LOOK)
        notes: list[str] = []
        found = _encoding(path, head, encoding, notes)
        default = "\t" if path.endswith(_packed(".tsv")) else ","
        told = delimiter or csv.delimiter_of(
            head[:_LOOK_LINES].decode(found or "utf-8", "replace").removeprefix("\ufeff"), default
        )
        if told != default and delimiter is None:
            name = "tab" if told == "\t" else f"{told!r}"
            notes.append(f"its cells are parted by {name}; give --delimiter if that is wrong")
        _names, more = csv.header(path, found, told)
        return Format("csv", found, told), notes + more

    def _contents(self, file: InputFile) -> Iterator[tuple[int, Any]]:
        form = file.format
        for record in csv.records(file.path, form.encoding, form.delimiter or ","):
            yield record.line, record


class _Parquet:
    """Record batches, of which only the needed columns are read."""

    suffixes: tuple[str, ...] = (".parquet",)

    def examined(
        self, path: str, encoding: str | None, delimiter: str | None
    ) -> tuple[Format | None, list[str]]:
        del encoding, delimiter
        from batcher.read import parquet

        parquet.check(path)
        return None, []

    def rows(
        self, span: Span, columns: frozenset[str] | None
    ) -> Generator[Row, None, tuple[int, int]]:
        from batcher.read import parquet

        path, folder = span.file.path, span.folder
        count = min(parquet.count(path), span.left)
        names: list[str] | None = None
        if columns is not None:
            have = parquet.schema(path).names
            # One column at least, or the batches would not know their length.
            names = [name for name in have if name in columns] or have[:1]

        def needed(at: int, rows: int) -> bool:
            return span.wanted(span.first + at) < span.first + at + rows and at < count

        spans: list[tuple[Sequence[int], str]] = []

        def lost(column: str, rows: Sequence[int], why: str) -> None:
            span.lost(column, rows, why)
            spans.append((rows, f"the column {column!r} {why}"))

        for at, batch in parquet.batches(path, names, needed, lost):
            batch = batch.slice(0, max(0, count - at))
            if not needed(at, batch.num_rows):
                continue
            wanted = span.wanted(span.first + at)
            for offset, values in enumerate(parquet.dicts(batch)):
                number = at + offset
                position = span.first + number
                if position < wanted:
                    continue
                for name in _BODIES & values.keys():
                    values[name] = parquet.without_nulls(values[name])
                where = f"{span.file.name} row {number}"
                why = next((why for rows, why in spans if number in rows), None)
                yield Row(position, where, values, why and f"{where}: {why}", folder)
                wanted = span.wanted(position + 1)
            spans[:] = [lost for lost in spans if lost[0][-1] >= at + batch.num_rows]
        return count, count

    def blocks(self, file: InputFile, first: int, lost: Lost) -> Generator[Block, None, int]:
        from batcher.read import parquet

        for at, batch in parquet.batches(file.path, lost=lost):
            yield list(range(first + at, first + at + batch.num_rows)), batch
        return parquet.count(file.path)

    def count(self, file: InputFile) -> int:
        from batcher.read import parquet

        return parquet.count(file.path)


READERS: dict[str, Reader] = {
    "jsonl": _Jsonl(),
    "json": _Json(array=True),
    "objects": _Json(array=False),
    "csv": _Csv(),
    "parquet": _Parquet(),
}
SUFFIXES = {suffix: kind for kind, of in READERS.items() for suffix in of.suffixes}
"""How a name ends, and the format that says so."""
NAMES = ".jsonl, .ndjson, .json, .csv, .tsv (each also with .gz or .zst) or .parquet"
"""The same for people."""
