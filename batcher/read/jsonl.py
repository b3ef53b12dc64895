"""JSONL, plain or compressed: a line is a row. Touches: files, the network."""

from __future__ import annotations

from array import array
from collections.abc import Generator, Iterator

from batcher.read import object_store, text
from batcher.read.files import InputFile
from batcher.read.json_text import decode
from batcher.read.reader import ALL, Format, Record, Span, TextReader, row_of
from batcher.read.text import BOM, InvalidRecord
from batcher.records import Row

__all__ = ["INDEX_EVERY", "READER", "lines"]

INDEX_EVERY = 4096
"""Lines between two entries of a line index."""
_HEAD_BYTES = 4096


class _JsonlReader(TextReader):
    """Reads JSONL. A blank line has a position but no row, so that it moves no other row."""

    def examine(
        self, path: str, encoding: str | None, _delimiter: str | None
    ) -> tuple[Format | None, list[str]]:
        text.check_packing(path)
        head = text.head(path, text.SAMPLE_BYTES if encoding is not None else _HEAD_BYTES)
        # A line that is not UTF-8 fails alone; only UTF-16 cannot be split into lines at all.
        if encoding is None and not text.may_be_utf16(head):
            return None, []
        found, notes = text.encoding_of(path, head, encoding)
        return Format("jsonl", found) if found else None, notes

    def contents(self, file: InputFile) -> Iterator[tuple[int, bytes | Record | None]]:
        number = 0
        try:
            for number, line in enumerate(lines(file.path, encoding=file.format.encoding), 1):
                yield number, None if not line or line.isspace() else line
        except InvalidRecord as damage:
            yield number + 1, Record(number + 1, None, str(damage))

    def rows(
        self, span: Span, _columns: frozenset[str] | None
    ) -> Generator[Row, None, tuple[int, int]]:
        file, folder = span.file, span.folder
        wanted = span.next_wanted(span.first)
        number = offset = rows = 0
        index: array[int] | None = array("q")
        known = span.line_index.get(file.path)
        if known and span.limit == ALL:
            # With a limit it matters how many of the skipped lines are blank, which is not known.
            at = min((wanted - span.first) // INDEX_EVERY, len(known) - 1)
            number, offset, index = at * INDEX_EVERY, known[at], None
        try:
            for line in lines(file.path, offset, index, file.format.encoding):
                position = span.first + number
                number += 1
                if not line or line.isspace():
                    if position >= wanted:
                        wanted = span.next_wanted(position + 1)
                    continue
                if rows == span.limit:
                    return number, rows
                rows += 1
                if position < wanted:
                    continue
                where = f"{file.name}:{number}"
                try:
                    row = Row(position, where, decode(line), folder=folder)
                except InvalidRecord:
                    row = row_of(position, where, line, folder)
                yield row
                wanted = span.next_wanted(position + 1)
        except InvalidRecord as damage:
            position = span.first + number
            if position >= span.next_wanted(position) and rows < span.limit:
                record = Record(number + 1, None, str(damage))
                yield row_of(position, f"{file.name}:{number + 1}", record, folder)
            return number + 1, rows + 1
        if index:
            span.line_index[file.path] = index
        return number, rows

    def is_whole(self, file: InputFile, size: int) -> bool:
        if file.format.encoding or text.is_packed(file.path):
            return False
        with object_store.opened(file.path) as opened:
            opened.seek(size - 1)
            return size > 0 and opened.read(1) == b"\n"


READER = _JsonlReader()


def lines(
    path: str, offset: int = 0, index: array[int] | None = None, encoding: str = ""
) -> Iterator[bytes]:
    r"""Yields every physical line, blank ones too, without its line end.

    Lines end at \n alone: U+2028 and its relatives are text.

    Args:
        path: The file.
        offset: Where to begin, at the start of a line; only in a plain file of UTF-8.
        index: Gets the offset of every `INDEX_EVERY`th line, likewise.
        encoding: Encoding of the text; "" for UTF-8.

    Raises:
        InvalidRecord: The compressed stream is cut or broken; the lines before it were yielded.
    """
    first = offset == 0
    split = bool(encoding) or text.is_packed(path)
    for line in _split(path, encoding) if split else _plain(path, offset, index):
        found = line.rstrip(b"\r\n")
        if first:
            found, first = found.removeprefix(BOM), False
        yield found


def _plain(path: str, offset: int, index: array[int] | None) -> Iterator[bytes]:
    with object_store.opened(path) as file:
        file.seek(offset)
        if index is None:
            yield from file
            return
        for number, line in enumerate(file):
            if not number % INDEX_EVERY:
                index.append(offset)
            offset += len(line)
            yield line


def _split(path: str, encoding: str) -> Iterator[bytes]:
    rest = b""
    for block in text.blocks(path, encoding):
        *whole, rest = (rest + block).split(b"\n")
        yield from whole
    if rest:
        yield rest
