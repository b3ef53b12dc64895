"""The elements of a JSON array, or one JSON value after another, without reading the whole. Touches: nothing.

An element comes as its bytes, whatever they are: whether it is a row is for `jsonl.decode` to say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from batcher.read.text import BOM, Damaged

__all__ = ["elements"]

_MOST = 512 << 20
"""Bytes of an element: an array that lost a bracket must not fill the memory."""
# A line end inside of a string is a missing quote: JSON has none there. The quantifiers are possessive, so that
# no text makes them slow.
_STRING = rb'"[^"\\\n]*+(?:\\.[^"\\\n]*+)*+"'
_BETWEEN = re.compile(rb'(?:[^"\[\]{},]++|%b)*+(["\[\]{},])' % _STRING, re.DOTALL)
_INSIDE = re.compile(rb'(?:[^"\[\]{}]++|%b)*+(["\[\]{}])' % _STRING, re.DOTALL)
_REST = re.compile(rb'[^"\\\n]*+(?:\\.[^"\\\n]*+)*+(\\?)(["\n]?)', re.DOTALL)
_SPACE = b" \t\r\n"


def elements(blocks: Iterable[bytes], *, array: bool) -> Iterator[bytes | Damaged]:
    """Each element, or why it is none.

    Args:
        blocks: The text in pieces.
        array: Whether the elements stand in `[` … `]`; else one behind the other.
    """
    scan = _Scan(1 if array else 0)
    try:
        for block in blocks:
            yield from scan.block(block)
    except Damaged as damage:
        yield damage
        return
    yield from scan.end()


class _Scan:
    """Finds where elements end.

    Args:
        base: How many brackets are open between two elements.
    """

    def __init__(self, base: int) -> None:
        self._base = base
        self._depth = 0
        self._in_text = self._escaped = False
        self._first = True
        self._closed = False  # The array.
        self._held: list[bytes] = []
        self._size = 0

    def block(self, block: bytes) -> Iterator[bytes | Damaged]:
        if self._first:
            block, self._first = block.removeprefix(BOM), False
        at = start = 0
        while at < len(block):
            if self._in_text:
                at = self._text(block, at)
                continue
            found = (_INSIDE if self._depth > self._base else _BETWEEN).match(block, at)
            if found is None:
                break
            begin, at = found.span(1)
            token = found[1]
            if token == b'"':
                self._in_text = True
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

    def end(self) -> Iterator[bytes | Damaged]:
        """What is left behind the last element."""
        left = self._element(b"")
        if isinstance(left, Damaged) or left:
            if self._base and self._closed:
                yield Damaged("more text stands behind the end of the array")
            else:
                yield Damaged("the file ends in the middle of it" if self._depth else "not JSON")
        elif self._base and not self._closed and self._depth:
            yield Damaged("the file ends before the array does")

    def _text(self, block: bytes, at: int) -> int:
        """The end of the text that goes on at this place, as far as it is in the block."""
        if self._escaped:
            self._escaped = False
            return at + 1
        found = _REST.match(block, at)
        assert found is not None
        self._escaped = bool(found[1])
        self._in_text = not found[2]
        return found.end()

    def _hold(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > _MOST:
            self._held.clear()
        elif part:
            self._held.append(part)

    def _element(self, part: bytes) -> bytes | Damaged:
        self._hold(part)
        whole, size = b"".join(self._held), self._size
        self._held.clear()
        self._size = 0
        if size > _MOST:
            return Damaged(f"longer than {_MOST >> 20} MB; is a bracket before it not closed?")
        whole = whole.strip(_SPACE)
        return whole if self._base else whole.lstrip(b", \t\r\n")
