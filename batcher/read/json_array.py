"""JSON arrays, and JSON objects one after another, read element by element. Touches: files, the network.

An element is its bytes, whatever they are: `json_text.decode` tells whether it is a row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import ClassVar

from batcher.read import json_text, text
from batcher.read.files import InputFile
from batcher.read.reader import Format, Record, TextReader
from batcher.read.text import BOM, InvalidRecord

__all__ = ["ARRAY", "OBJECTS", "elements"]

_MAX_BYTES = 512 << 20
"""Size of an element: an array that lost a bracket must not fill the memory."""
# A line end inside of a string means a missing quote: JSON has none there. The quantifiers are possessive, so
# that no text makes them slow.
_STRING = rb'"[^"\\\n]*+(?:\\.[^"\\\n]*+)*+"'
_BETWEEN = re.compile(rb'(?:[^"\[\]{},]++|%b)*+(["\[\]{},])' % _STRING, re.DOTALL)
_INSIDE = re.compile(rb'(?:[^"\[\]{}]++|%b)*+(["\[\]{}])' % _STRING, re.DOTALL)
_REST = re.compile(rb'[^"\\\n]*+(?:\\.[^"\\\n]*+)*+(\\?)(["\n]?)', re.DOTALL)
_SPACE = b" \t\r\n"


class _ArrayReader(TextReader):
    """Reads .json files: the elements of one array are the rows.

    A file that turns out to hold objects is read as JSONL where it has one on each line, else by
    `OBJECTS`.
    """

    _array: ClassVar[bool] = True

    def examine(
        self, path: str, encoding: str | None, _delimiter: str | None
    ) -> tuple[Format | None, list[str]]:
        text.check_packing(path)
        head = text.head(path, text.SAMPLE_BYTES)
        found, notes = "", list[str]()
        if encoding is not None or text.may_be_utf16(head):
            found, notes = text.encoding_of(path, head, encoding)
        if found:
            head = head.decode(found, "ignore").encode()
        start = head.removeprefix(BOM).lstrip()
        if not start or start.startswith(b"["):
            return Format("json", found), notes
        line, end, rest = start.partition(b"\n")
        if end and rest.strip() and _is_object(line):
            notes.append("it holds no JSON array but a JSON object a line, and is read as .jsonl")
            return Format("jsonl", found), notes
        notes.append(
            "it holds no JSON array; each object in it is a row. If the rows are a list inside of one, take "
            f"them out: jq -c '.NAME[]' {path} > rows.jsonl"
        )
        return Format("objects", found), notes

    def contents(self, file: InputFile) -> Iterator[tuple[int, bytes | Record | None]]:
        blocks = text.blocks(file.path, file.format.encoding)
        for number, element in enumerate(elements(blocks, array=self._array)):
            if isinstance(element, bytes):
                yield number, element
            else:
                yield number, Record(number, None, str(element))

    def where(self, file: InputFile, place: int) -> str:
        return f"{file.name} item {place}"


class _ObjectsReader(_ArrayReader):
    """Reads JSON objects one after another."""

    _array = False


ARRAY, OBJECTS = _ArrayReader(), _ObjectsReader()


def _is_object(line: bytes) -> bool:
    try:
        json_text.decode(json_text.repair(line)[0] or line)
    except InvalidRecord:
        return False
    return True


def elements(blocks: Iterable[bytes], *, array: bool) -> Iterator[bytes | InvalidRecord]:
    """Yields each element, or why it is none.

    Args:
        blocks: The text in pieces.
        array: Whether the elements are inside of `[` … `]`; else they follow one another.
    """
    scan = _Scan(1 if array else 0)
    try:
        for block in blocks:
            yield from scan.block(block)
    except InvalidRecord as damage:
        yield damage
        return
    yield from scan.end()


class _Scan:
    """Finds where elements end.

    Args:
        base: How many brackets are open between two elements: 1 in an array, else 0.
    """

    def __init__(self, base: int) -> None:
        self._base = base
        self._depth = 0
        self._in_string = self._escaped = False
        self._first = True
        self._closed = False  # The array.
        self._held: list[bytes] = []
        self._size = 0

    def block(self, block: bytes) -> Iterator[bytes | InvalidRecord]:
        if self._first:
            block, self._first = block.removeprefix(BOM), False
        at = start = 0
        while at < len(block):
            if self._in_string:
                at = self._string(block, at)
                continue
            found = (_INSIDE if self._depth > self._base else _BETWEEN).match(block, at)
            if found is None:
                break
            begin, at = found.span(1)
            token = found[1]
            if token == b'"':
                self._in_string = True
            elif token in b"[{":
                self._depth += 1
                if self._depth == self._base and not self._closed:  # The array's own.
                    start = at
                    self._held.clear()
                    self._size = 0
            elif token == b",":
                if self._depth == 1 == self._base and not self._closed:
                    yield self._element(block[start:begin])
                    start = at
            elif self._depth > self._base or (token == b"]" and self._depth == 1):
                self._depth -= 1
                if self._base and not self._depth:
                    last = self._element(block[start:begin])
                    start = at
                    self._closed = True
                    if not isinstance(last, bytes) or last:
                        yield last
                elif not self._base and not self._depth:
                    yield self._element(block[start:at])
                    start = at
        self._hold(block[start:])

    def end(self) -> Iterator[bytes | InvalidRecord]:
        """Reports what is left after the last element."""
        left = self._element(b"")
        if isinstance(left, InvalidRecord) or left:
            if self._base and self._closed:
                yield InvalidRecord("there is more text behind the end of the array")
            else:
                yield InvalidRecord(
                    "the file ends in the middle of it" if self._depth else "not JSON"
                )
        elif self._base and not self._closed and self._depth:
            yield InvalidRecord("the file ends before the array does")

    def _string(self, block: bytes, at: int) -> int:
        """Skips the rest of a string, as far as it is in the block."""
        if self._escaped:
            self._escaped = False
            return at + 1
        found = _REST.match(block, at)
        assert found is not None
        self._escaped = bool(found[1])
        self._in_string = not found[2]
        return found.end()

    def _hold(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > _MAX_BYTES:
            self._held.clear()
        elif part:
            self._held.append(part)

    def _element(self, part: bytes) -> bytes | InvalidRecord:
        self._hold(part)
        whole, size = b"".join(self._held), self._size
        self._held.clear()
        self._size = 0
        if size > _MAX_BYTES:
            return InvalidRecord(
                f"longer than {_MAX_BYTES >> 20} MB; is a bracket before it not closed?"
            )
        whole = whole.strip(_SPACE)
        return whole if self._base else whole.lstrip(b", \t\r\n")
