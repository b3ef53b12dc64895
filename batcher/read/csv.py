"""CSV with a header line, to columns of text. Touches: files, the network.

A quote that is never closed swallows the rows behind it in any parser. Here the record in which that shows is
split again: its first line becomes a row that cannot be read, and the lines behind it are rows of their own.
A record is split when

- it ends in an error, or in more than `_MAX_CHARACTERS`, or with the file, or
- it spans more than `_MANY_LINES` lines that each have as many delimiters as the header.
"""

from __future__ import annotations

import csv
import io
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice

from batcher.errors import JobError
from batcher.read import text
from batcher.read.files import InputFile
from batcher.read.reader import Format, Record, TextReader
from batcher.read.text import InvalidRecord

__all__ = ["DELIMITERS", "READER", "delimiter_of", "header", "records"]

csv.field_size_limit(sys.maxsize)

DELIMITERS = ",;\t|"
"""The delimiters that are detected, the likeliest first."""

_MAX_CHARACTERS = 8 << 20
"""Of a record from its second line on; no model takes as much."""
_MANY_LINES = 10
_SAMPLE_BYTES = 64 << 10
_SAMPLE_RECORDS = 50
_SHORT = "fewer cells than the header has, and the missing ones are null"


class _CsvReader(TextReader):
    """Reads CSV: each row is a dict of text."""

    text_cells = True

    def examine(
        self, path: str, encoding: str | None, delimiter: str | None
    ) -> tuple[Format | None, list[str]]:
        text.check_packing(path)
        head = text.head(path, text.SAMPLE_BYTES)
        found, notes = text.encoding_of(path, head, encoding)
        default = "\t" if path.endswith((".tsv", ".tsv.gz", ".tsv.zst")) else ","
        start = head[:_SAMPLE_BYTES].decode(found or "utf-8", "replace").removeprefix("\ufeff")
        used = delimiter or delimiter_of(start, default)
        if used != default and delimiter is None:
            name = "tab" if used == "\t" else f"{used!r}"
            notes.append(f"its cells are separated by {name}; give --delimiter if that is wrong")
        _names, more = header(path, found, used)
        return Format("csv", found, used), notes + more

    def contents(self, file: InputFile) -> Iterator[tuple[int, bytes | Record | None]]:
        form = file.format
        for record in records(file.path, form.encoding, form.delimiter or ","):
            yield record.place, record


READER = _CsvReader()


def delimiter_of(start: str, default: str) -> str:
    """Detects the delimiter of a file.

    It is the one that splits the header into two columns or more and the most lines into as many; of
    equals the default, then the first of `DELIMITERS`.

    Args:
        start: The first lines; the last may be cut.
        default: What the file's name says.
    """
    lines = start.splitlines(keepends=True)
    if lines and (given := _excel_delimiter(lines[0])):
        return given
    best, most = default, 0.0
    for delimiter in dict.fromkeys((default, *DELIMITERS)):
        reader = csv.reader(lines, delimiter=delimiter)
        try:
            widths = [len(cells) for cells in islice(reader, _SAMPLE_RECORDS) if cells]
        except csv.Error:
            continue
        if not widths or widths[0] < 2:
            continue
        share = widths.count(widths[0]) / len(widths)
        if share > most:
            best, most = delimiter, share
    return best


def header(path: str, encoding: str = "", delimiter: str = ",") -> tuple[list[str], list[str]]:
    """Reads (names of the columns, notes for the user); no names of an empty file.

    Raises:
        JobError: The header cannot be read.
    """
    with text.opened(path, encoding) as file:
        return _header(path, _Lines(file, delimiter), encoding)


def records(path: str, encoding: str = "", delimiter: str = ",") -> Iterator[Record]:
    """Yields every record; blank lines are none.

    Args:
        path: The file.
        encoding: Encoding of its text; "" for UTF-8.
        delimiter: Between two cells.

    Raises:
        JobError: The header cannot be read.
    """
    with text.opened(path, encoding) as file:
        lines = _Lines(file, delimiter)
        names, _notes = _header(path, lines, encoding)
        width = len(names)
        doubt = False  # Whether the next record may be the rest of one whose quotes are wrong.
        while True:
            cells, error = lines.record()
            if cells is None and not error:
                if lines.damage:
                    yield Record(lines.number, None, lines.damage)
                return
            number, held = lines.number, lines.held
            if (error or len(held) > 1) and (
                reason := _split_reason(held, width, delimiter, error, cells)
            ):
                first = _leading_cells(held[0], delimiter)
                lines.put_back()
                yield Record(number, _columns(names, first), reason)
            elif error:
                doubt = True
                first = _leading_cells(held[0], delimiter)
                yield Record(number, _columns(names, first), f"not CSV ({error})")
            elif cells:
                yield _record(
                    number, names, cells, encoding or "UTF-8", doubt=doubt or lines.split
                )
                doubt &= len(cells) != width


def _record(
    number: int, names: list[str], cells: list[str], encoding: str, *, doubt: bool
) -> Record:
    """The record of some cells; with `doubt`, cells that are missing are an error and no mere note."""
    error = note = ""
    width = len(names)
    columns = _columns(names, cells)
    too_many, too_few = any(cells[width:]), len(cells) < width
    if too_many or (too_few and (doubt or not any(map(str.strip, cells)))):
        error = f"{len(cells)} cells where the header has {width}"
    elif too_few:
        note = _SHORT
    content = "".join(cells)
    if not content and width > 1:  # Spreadsheets write such rows behind the last one.
        error = error or "all its cells are empty"
    elif not content.isascii():
        for name, value in columns.items():
            if value is not None and _is_broken(str(value)):
                error = error or f"not {encoding} in {name!r}"
                columns[name] = None
    return Record(number, columns, error, note)


class _Lines:
    """Splits a file into records; the lines of the current record can be put back.

    Attributes:
        number: Number of the first line of the current record.
        held: The lines of the record.
        split: Whether they were part of a record that was put back.
        damage: Why the file cannot be read further; "" when it can.
    """

    def __init__(self, file: io.TextIOWrapper, delimiter: str) -> None:
        self.number = 1
        self.held: list[str] = []
        self.split = False
        self.damage = ""
        self._delimiter = delimiter
        self._file = file
        self._again: deque[str] = deque()
        self._restart()

    def _restart(self) -> None:
        self._reader = csv.reader(self._feed(), strict=True, delimiter=self._delimiter)

    def peek(self) -> str:
        """Returns the file's first line, which is read again."""
        line = next(self._feed(), "")
        self.held.clear()
        if line:
            self._again.append(line)
        return line

    def skip(self) -> None:
        """Leaves out the line that `peek` returned."""
        self._again.popleft()
        self.number += 1

    def record(self) -> tuple[list[str] | None, str]:
        """Reads (cells, "") of the next record, (None, why not), or (None, "") at the end."""
        self.number += len(self.held)
        self.held.clear()
        self.split = bool(self._again)
        try:
            return next(self._reader), ""
        except StopIteration:
            return None, ""
        except csv.Error as error:
            self._restart()
            return None, str(error)

    def put_back(self) -> None:
        """Reads all lines of the record but its first again, as records of their own."""
        self._again.extendleft(reversed(self.held[1:]))
        del self.held[1:]
        self._restart()

    def _feed(self) -> Iterator[str]:
        held, again, file = self.held, self._again, self._file
        size = 0
        while True:
            if again:
                line = again.popleft()
            else:
                try:
                    line = next(file, "")
                except InvalidRecord as damage:
                    self.damage, line = str(damage), ""
                if not line:
                    return
            if held:
                size += len(line)
                if size > _MAX_CHARACTERS:
                    again.appendleft(line)
                    raise csv.Error(_TOO_LONG)
            else:
                size = 0
            held.append(line)
            yield line


_TOO_LONG = f"a quoted cell of more than {_MAX_CHARACTERS >> 20} MB over several lines"
_AT_END = "unexpected end of data"  # In the words of the csv module.


def _split_reason(
    held: Sequence[str], width: int, delimiter: str, error: str, cells: list[str] | None
) -> str:
    """Why the lines of a record have to be read one by one; "" when they do not."""
    rest = held[1:]
    if error in (_TOO_LONG, _AT_END):
        until = (
            f"in {_MAX_CHARACTERS >> 20} MB" if error == _TOO_LONG else "to the end of the file"
        )
        return f"the quote that opens here is not closed {until}"
    if not rest or width < 2:
        return ""
    last = f"line {len(rest)} after it"
    if error:
        rows = sum(
            line.count(delimiter) == width - 1 or _width(line, delimiter) == width for line in rest
        )
        if rows * 2 < len(rest):
            return ""
        return f"the quote that opens here ends in the wrong place, in {last}, which begins another row"
    many = len(rest) >= _MANY_LINES or (cells is not None and len(cells) != width)
    if many and all(line.count(delimiter) == width - 1 for line in held):
        return f"the quote that opens here closes only in {last}, and each line between looks like a row of its own"
    return ""


def _width(line: str, delimiter: str) -> int:
    """How many cells a line has by itself; 0 where it is no record."""
    try:
        return len(next(csv.reader([line], strict=True, delimiter=delimiter), []))
    except csv.Error:
        return 0


def _leading_cells(line: str, delimiter: str) -> list[str]:
    """The cells of a line before the one whose quotes are wrong."""
    cells: list[str] = []
    at = 0
    while True:
        if line.startswith('"', at):
            end = line.find('"', at + 1)
            while end >= 0 and line.startswith('"', end + 1):
                end = line.find('"', end + 2)
            behind = line[end + 1 : end + 2]
            if end < 0 or behind not in ("", delimiter, "\r", "\n"):
                return cells
            cells.append(line[at + 1 : end].replace('""', '"'))
            at = end + 1
        else:
            end = line.find(delimiter, at)
            cells.append(line[at:].rstrip("\r\n") if end < 0 else line[at:end])
            at = len(line) if end < 0 else end
        if not line.startswith(delimiter, at):
            return cells
        at += 1


def _columns(names: Sequence[str], cells: Sequence[str]) -> dict[str, object]:
    """The cells by name; null where there is none."""
    columns: dict[str, object] = dict(zip(names, cells, strict=False))
    if len(columns) < len(names):
        columns |= dict.fromkeys(names[len(cells) :])
    return columns


def _header(path: str, lines: _Lines, encoding: str) -> tuple[list[str], list[str]]:
    if _excel_delimiter(lines.peek()):
        lines.skip()
    cells, error = lines.record()
    while cells == [] and not error:
        cells, error = lines.record()
    if error:
        raise JobError(f"{path}:{lines.number}: its header cannot be read ({error}).")
    if cells is None:
        return [], []
    if any(map(_is_broken, cells)):
        raise JobError(f"{path}: its header is not {encoding or 'UTF-8'}.")
    return _unique_names(cells)


def _unique_names(cells: Sequence[str]) -> tuple[list[str], list[str]]:
    """(names of the columns, none empty and none twice; notes on those that were changed)."""
    names: list[str] = []
    empty: list[str] = []
    repeated: list[str] = []
    taken = {cell for cell in cells if cell.strip()}
    for place, cell in enumerate(cells, 1):
        name = first = cell if cell.strip() else f"column_{place}"
        number = 1
        while name in names or (name != cell and name in taken):
            number += 1
            name = f"{first}_{number}"
        if name != cell:
            (repeated if cell.strip() else empty).append(name)
        names.append(name)
    return names, [
        f"{what}, and {'is' if len(of) == 1 else 'are'} called {', '.join(of[:5])}"
        f"{', …' if len(of) > 5 else ''}"
        for what, of in (
            ("a column has no name" if len(empty) == 1 else "columns have no name", empty),
            ("a column has the name of another" if len(repeated) == 1 else
             "columns have names of others", repeated),
        )
        if of
    ]  # fmt: skip


def _excel_delimiter(line: str) -> str:
    """The delimiter that a first line such as `sep=;` gives to Excel; "" when it gives none."""
    line = line.rstrip("\r\n").removeprefix("\ufeff")
    if line.startswith('"') and line.endswith('"'):
        line = line[1:-1]
    return line[4:] if line[:4].lower() == "sep=" and len(line) == 5 else ""


def _is_broken(value: str) -> bool:
    """Whether a byte of it was not in the encoding."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return True
    return False
