"""CSV and its relatives with a header line to dicts of text. Touches: files.

A quote that is never closed swallows the rows behind it, whatever reads the file. Here the record in which
that shows is taken apart again: its first line is a row that cannot be read, and the lines behind it are read
as rows of their own. A record counts as such when

- it ends in an error, or in more than `_MOST` characters, or with the file, or
- it goes over more than `_MANY_LINES` lines that each have as many delimiters as the header has.
"""

from __future__ import annotations

import csv
import io
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from batcher.errors import JobError
from batcher.read import text
from batcher.read.text import Damaged

__all__ = ["DELIMITERS", "Record", "delimiter_of", "header", "records"]

csv.field_size_limit(sys.maxsize)

DELIMITERS = ",;\t|"
"""What is looked for, in this order."""

_MOST = 8 << 20
"""Characters of a record from its second line on; no model takes as much."""
_MANY_LINES = 10
_LOOK_RECORDS = 50
_SHORT = "fewer cells than the header has, and the missing ones are null"


class Record(NamedTuple):
    """One record.

    Attributes:
        line: Of the file, where it begins; from 1.
        columns: Null where a cell is missing or cannot be read; None where there is nothing to be read.
        error: Why it cannot be used; "" when it can.
        note: What was read otherwise than it stands there; "" for nothing.
    """

    line: int
    columns: dict[str, object] | None
    error: str = ""
    note: str = ""


def delimiter_of(head: str, default: str) -> str:
    """The delimiter of a file by the beginning of its text.

    The one counts that parts the header into two columns or more and the most lines into as many;
    of equals the default, then the first of `DELIMITERS`.

    Args:
        head: Some first lines; the last may be cut.
        default: What the file's name says.
    """
    lines = head.splitlines(keepends=True)
    if lines and (told := _separator(lines[0])):
        return told
    best, most = default, 0.0
    for delimiter in dict.fromkeys((default, *DELIMITERS)):
        reader = csv.reader(lines, delimiter=delimiter)
        try:
            found = [len(values) for values in islice(reader, _LOOK_RECORDS) if values]
        except csv.Error:
            continue
        if not found or found[0] < 2:
            continue
        alike = found.count(found[0]) / len(found)
        if alike > most:
            best, most = delimiter, alike
    return best


def header(path: str, encoding: str = "", delimiter: str = ",") -> tuple[list[str], list[str]]:
    """(names of the columns, what is to be said of them); no names for an empty file.

    Raises:
        JobError: It cannot be read.
    """
    with text.opened(path, encoding) as file:
        return _header(path, _Lines(file, delimiter), encoding)


def records(path: str, encoding: str = "", delimiter: str = ",") -> Iterator[Record]:
    """Every record; blank lines are none.

    Args:
        path: The file.
        encoding: Of its text; "" for UTF-8.
        delimiter: What stands between two cells.

    Raises:
        JobError: The header cannot be read.
    """
    with text.opened(path, encoding) as file:
        lines = _Lines(file, delimiter)
        names, _notes = _header(path, lines, encoding)
        width = len(names)
        doubt = False  # Whether what comes may be the rest of a row whose quotes are wrong.
        while True:
            values, error = lines.record()
            if values is None and not error:
                if lines.damage:
                    yield Record(lines.line, None, lines.damage)
                return
            held, line, apart = lines.held, lines.line, lines.apart
            if error or len(held) > 1:
                stray = _stray(held, width, delimiter, error, values)
                if stray:
                    lines.put_back()
                    yield Record(line, _known(names, _leading(held[0], delimiter)), stray)
                    continue
            if error:
                doubt = True
                cells = _leading(held[0], delimiter)
                yield Record(line, _known(names, cells), f"not CSV ({error})")
                continue
            if not values:
                continue
            note = ""
            if len(values) != width:
                if len(values) > width:
                    if any(values[width:]):
                        error = f"{len(values)} cells where the header has {width}"
                elif apart or doubt or not any(map(str.strip, values)):
                    error = f"{len(values)} cells where the header has {width}"
                else:
                    note = _SHORT
                columns = _known(names, values)
            else:
                doubt = False
                columns = dict(zip(names, values, strict=True))
            whole = "".join(values)
            if not whole and width > 1:  # Spreadsheets write such rows behind the last one.
                error = error or "all its cells are empty"
            elif not whole.isascii():
                for name, value in columns.items():
                    if value is not None and _broken(str(value)):
                        error = error or f"not {encoding or 'UTF-8'} in {name!r}"
                        columns[name] = None
            yield Record(line, columns, error, note)


class _Lines:
    """Lines of a file, taken record by record; those of the present record can be put back.

    Attributes:
        line: Number of the first line of the present record.
        held: Its lines.
        apart: Whether it was part of one that was put back.
        damage: Why the file cannot be read further; "" when it can.
    """

    def __init__(self, file: io.TextIOWrapper, delimiter: str) -> None:
        self.line = 1
        self.held: list[str] = []
        self.apart = False
        self.damage = ""
        self._delimiter = delimiter
        self._file = file
        self._again: deque[str] = deque()
        self._begin()

    def _begin(self) -> None:
        self._reader = csv.reader(self._feed(), strict=True, delimiter=self._delimiter)

    def first(self) -> str:
        """The first line of all, which is read again."""
        line = next(self._feed(), "")
        self.held.clear()
        if line:
            self._again.append(line)
        return line

    def skip(self) -> None:
        """Leaves a line out."""
        self._again.popleft()
        self.line += 1

    def record(self) -> tuple[list[str] | None, str]:
        """(cells, "") of the next record, (None, why not), or (None, "") at the end."""
        self.line += len(self.held)
        self.held.clear()
        self.apart = bool(self._again)
        try:
            return next(self._reader), ""
        except StopIteration:
            return None, ""
        except csv.Error as error:
            self._begin()
            return None, str(error)

    def put_back(self) -> None:
        """All lines of the present record but the first are to be read again, as records of their own."""
        self._again.extendleft(reversed(self.held[1:]))
        del self.held[1:]
        self._begin()

    def _feed(self) -> Iterator[str]:
        held, again, file = self.held, self._again, self._file
        size = 0
        while True:
            if again:
                line = again.popleft()
            else:
                try:
                    line = next(file, "")
                except Damaged as damage:
                    self.damage, line = str(damage), ""
                if not line:
                    return
            if held:
                size += len(line)
                if size > _MOST:
                    again.appendleft(line)
                    raise csv.Error(_TOO_MUCH)
            else:
                size = 0
            held.append(line)
            yield line


_TOO_MUCH = f"a quoted cell of more than {_MOST >> 20} MB over several lines"
_AT_END = "unexpected end of data"  # In the words of the csv module.


def _stray(
    held: Sequence[str], width: int, delimiter: str, error: str, values: list[str] | None
) -> str:
    """Why the lines of a record are to be read one by one; "" when they are not."""
    rest = held[1:]
    if error in (_TOO_MUCH, _AT_END):
        until = f"in {_MOST >> 20} MB" if error == _TOO_MUCH else "to the end of the file"
        return f"the quote that opens here is not closed {until}"
    if not rest or width < 2:
        return ""
    last = f"line {len(rest)} after it"
    if error:
        alike = sum(
            line.count(delimiter) == width - 1 or _cells(line, delimiter) == width for line in rest
        )
        if alike * 2 < len(rest):
            return ""
        return f"the quote that opens here ends in the wrong place, in {last}, which begins another row"
    if len(rest) >= _MANY_LINES or (values is not None and len(values) != width):
        parts = width - 1
        if all(line.count(delimiter) == parts for line in held):
            return (
                f"the quote that opens here closes only in {last}, and each line between looks like a row "
                "of its own"
            )
    return ""


def _cells(line: str, delimiter: str) -> int:
    """How many cells a line has alone; 0 where it is none."""
    try:
        return len(next(csv.reader([line], strict=True, delimiter=delimiter), []))
    except csv.Error:
        return 0


def _leading(line: str, delimiter: str) -> list[str]:
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


def _known(names: Sequence[str], cells: Sequence[str]) -> dict[str, object]:
    """The columns as far as there are cells."""
    return {name: cells[n] if n < len(cells) else None for n, name in enumerate(names)}


def _header(path: str, lines: _Lines, encoding: str) -> tuple[list[str], list[str]]:
    if _separator(lines.first()):
        lines.skip()
    values, error = lines.record()
    while values == [] and not error:
        values, error = lines.record()
    if error:
        raise JobError(f"{path}:{lines.line}: its header cannot be read ({error}).")
    if values is None:
        return [], []
    if any(map(_broken, values)):
        raise JobError(f"{path}: its header is not {encoding or 'UTF-8'}.")
    return _named(values)


def _named(values: Sequence[str]) -> tuple[list[str], list[str]]:
    """(names, each of them once and none empty; what is to be said of that)."""
    names: list[str] = []
    empty: list[str] = []
    again: list[str] = []
    taken = {value for value in values if value.strip()}
    for place, value in enumerate(values, 1):
        name = first = value if value.strip() else f"column_{place}"
        number = 1
        while name in names or (name != value and name in taken):
            number += 1
            name = f"{first}_{number}"
        if name != value:
            (again if value.strip() else empty).append(name)
        names.append(name)
    return names, [
        f"{what}, and {'is' if len(of) == 1 else 'are'} called {', '.join(of[:5])}"
        f"{', …' if len(of) > 5 else ''}"
        for what, of in (
            ("a column has no name" if len(empty) == 1 else "columns have no name", empty),
            ("a column has the name of another" if len(again) == 1 else
             "columns have names of others", again),
        )
        if of
    ]  # fmt: skip


def _separator(line: str) -> str:
    """The delimiter that a first line such as `sep=;` tells to Excel; "" when it is none."""
    told = line.rstrip("\r\n").removeprefix("\ufeff")
    if told.startswith('"') and told.endswith('"'):
        told = told[1:-1]
    return told[4:] if told[:4].lower() == "sep=" and len(told) == 5 else ""


def _broken(value: str) -> bool:
    """Whether a byte of it was none of the encoding."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return True
    return False
