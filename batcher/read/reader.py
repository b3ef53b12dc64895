"""The port of an input format: `Reader`, and the records that it exchanges with `Inputs`. Touches: files, the network.

A new format is one file with a `Reader` in it and one line in the table of `formats`. A format of text derives
from `TextReader` and brings no more than `examine` and `contents`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import msgspec

from batcher.read import json_text
from batcher.read.text import InvalidRecord
from batcher.records import Row

if TYPE_CHECKING:
    import pyarrow as pa

    from batcher.read.files import InputFile

__all__ = [
    "ALL",
    "Block",
    "Format",
    "Reader",
    "Record",
    "ReportLoss",
    "Span",
    "TextReader",
    "row_of",
]

ALL = 1 << 62
"""A limit that no file reaches."""
_BLOCK_ROWS = 2000
_BLOCK_BYTES = 4 << 20

Block = tuple[list[int], "pa.RecordBatch | list[Any]"]
"""(positions, a record batch, or for each row its JSON text, its columns or None)."""

ReportLoss = Callable[[str, Sequence[int], str], None]
"""Takes a column, the rows of the file whose cells in it cannot be read, and the reason."""


class Format(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the bytes of a file are read.

    Attributes:
        kind: Name of its reader in `formats`.
        encoding: Encoding of its text; "" for UTF-8.
        delimiter: Between the cells of CSV.
    """

    kind: str
    encoding: str = ""
    delimiter: str = ""


@dataclass(frozen=True)
class Span:
    """The rows to read of one file.

    Attributes:
        folder: Where relative image paths begin.
        first: Position of the file's first row.
        limit: How many rows may be read.
        next_wanted: Takes a position and returns the first one from there on that is needed.
        line_index: By path, where some lines of a file begin; a reader may add its file (`Inputs.line_index`).
        report: Called for cells that cannot be read, before the row that they are in.
    """

    file: InputFile
    folder: str
    first: int
    limit: int
    next_wanted: Callable[[int], int]
    line_index: dict[str, array[int]]
    report: ReportLoss


class Reader(ABC):
    """Reads the files of one format."""

    text_cells: ClassVar[bool] = False
    """Whether every value is text, so that numbers and lists in it have to be parsed."""

    @abstractmethod
    def examine(
        self, path: str, encoding: str | None, delimiter: str | None
    ) -> tuple[Format | None, list[str]]:
        """Decides by the beginning of a file how it is read, so that each start decides the same.

        Args:
            path: The file.
            encoding: As given by the user, "" for UTF-8; None to detect it.
            delimiter: Likewise.

        Returns:
            The format, None where the file's name says all; and notes for the user.

        Raises:
            JobError: The file is not of this format, or not what the user says it is.
        """

    @abstractmethod
    def rows(
        self, span: Span, columns: frozenset[str] | None
    ) -> Generator[Row, None, tuple[int, int]]:
        """Yields the rows that are wanted.

        Args:
            span: Which rows.
            columns: The columns that are needed, None for all; a reader may give more.

        Returns:
            How many positions and rows the file has, wanted or not.
        """

    @abstractmethod
    def blocks(
        self,
        file: InputFile,
        first: int,
        report: ReportLoss,
        columns: Collection[str] | None = None,
    ) -> Generator[Block, None, int]:
        """Yields all rows of a file whose first position is `first`; returns how many positions it has.

        Cells that cannot be read are null and reported. The arguments are as in `rows`.
        """

    @abstractmethod
    def count(self, file: InputFile) -> int:
        """Counts the rows without decoding them."""

    def schema(self, _file: InputFile) -> pa.Schema | None:
        """Names and types of the columns; None where only reading all rows tells."""
        return None

    def is_whole(self, _file: InputFile, _size: int) -> bool:
        """Whether the first `size` bytes are whole rows, which bytes behind them cannot change."""
        return False


class TextReader(Reader):
    """What the formats of text share."""

    @abstractmethod
    def contents(self, file: InputFile) -> Iterator[tuple[int, bytes | Record | None]]:
        """Yields (place in the file, JSON text | Record | None for a place without a row)."""

    def where(self, file: InputFile, place: int) -> str:
        """Names a place in the file for people."""
        return f"{file.name}:{place}"

    def rows(
        self, span: Span, _columns: frozenset[str] | None
    ) -> Generator[Row, None, tuple[int, int]]:
        """Reads all columns."""
        rows = 0
        wanted = span.next_wanted(span.first)
        for place, content in self.contents(span.file):
            if rows == span.limit:
                break
            position = span.first + rows
            rows += 1
            if position < wanted:
                continue
            yield row_of(position, self.where(span.file, place), content, span.folder)
            wanted = span.next_wanted(position + 1)
        return rows, rows

    def blocks(
        self,
        file: InputFile,
        first: int,
        _report: ReportLoss,
        _columns: Collection[str] | None = None,
    ) -> Generator[Block, None, int]:
        """Reads all columns."""
        positions: list[int] = []
        rows: list[Any] = []
        size = 0
        position = first - 1
        for position, (_place, content) in enumerate(self.contents(file), first):
            if content is None:
                continue
            positions.append(position)
            if isinstance(content, bytes):
                rows.append(content)
                size += len(content)
            else:
                rows.append(content.columns)
                size += 200 + sum(len(str(value)) for value in (content.columns or {}).values())
            if len(rows) >= _BLOCK_ROWS or size >= _BLOCK_BYTES:
                yield positions, rows
                positions, rows, size = [], [], 0
        if rows:
            yield positions, rows
        return position + 1 - first

    def count(self, file: InputFile) -> int:
        """Counts the places that have a row."""
        return sum(content is not None for _place, content in self.contents(file))


class Record(NamedTuple):
    """One record of a text file.

    Attributes:
        place: Where in the file it begins: a line from 1, or an item from 0.
        columns: Null where a cell is missing or cannot be read; None where nothing can be read.
        error: Why the record cannot be used; "" when it can.
        note: What was read differently from how it is written; "" for nothing.
    """

    place: int
    columns: dict[str, object] | None
    error: str = ""
    note: str = ""


def row_of(position: int, where: str, content: bytes | Record | None, folder: str) -> Row:
    """Makes the row of a place's content, as `TextReader.contents` yields it."""
    columns: dict[str, object] | None = None
    error = note = ""
    if isinstance(content, bytes):
        try:
            return Row(position, where, json_text.decode(content), folder=folder)
        except InvalidRecord:
            columns, error, note = json_text.recover(content)
    elif content is not None:
        _place, columns, error, note = content
    return Row(position, where, columns, f"{where}: {error}" if error else None, folder, note)
