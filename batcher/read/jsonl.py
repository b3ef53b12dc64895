"""JSONL, plain or compressed, to lines and dicts. Touches: files."""

from __future__ import annotations

import json
import math
import re
from array import array
from collections.abc import Iterator
from typing import Any

import msgspec

from batcher.read import object_store, text
from batcher.read.text import BOM, Damaged

__all__ = ["MARK", "Damaged", "decode", "lines", "salvaged", "shallow"]

MARK = 4096  # lines
_DEEPEST = 200  # Python's stack ends at 1,000, and an answer is read from deep inside the program.
# Never steps back over what it has matched, so its time grows with the line and no faster.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[][{}]', re.DOTALL)
_decode: Any = msgspec.json.Decoder().decode
_encode: Any = msgspec.json.Encoder(decimal_format="number").encode
# Texts, to step over them, and what is no JSON but what Python's own json writes, or no number of 64 bits.
_ODD = re.compile(
    rb'"[^"\\]*+(?:\\.?[^"\\]*+)*+(?:"|\Z)|(?P<word>-?Infinity|NaN)\b|(?P<number>-?\d[\d.eE+-]*+)',
    re.DOTALL,
)


def lines(
    path: str, offset: int = 0, marks: array[int] | None = None, encoding: str = ""
) -> Iterator[bytes]:
    r"""Every physical line, blank ones too, without its line end.

    Lines end at \n alone: U+2028 and its relatives are text.

    Args:
        path: The file.
        offset: Where to begin, at the start of a line; only in a plain file of UTF-8.
        marks: Gets the offset of every `MARK`th line, likewise.
        encoding: Of its text; "" for UTF-8.

    Raises:
        Damaged: The compressed stream is cut or broken; the lines before it were yielded.
    """
    first = offset == 0
    whole = bool(encoding) or text.is_packed(path)
    for line in _split(path, encoding) if whole else _plain(path, offset, marks):
        found = line.rstrip(b"\r\n")
        if first:
            found, first = found.removeprefix(BOM), False
        yield found


def _plain(path: str, offset: int, marks: array[int] | None) -> Iterator[bytes]:
    with object_store.opened(path) as file:
        file.seek(offset)
        if marks is None:
            yield from file
            return
        for number, line in enumerate(file):
            if not number % MARK:
                marks.append(offset)
            offset += len(line)
            yield line


def _split(path: str, encoding: str) -> Iterator[bytes]:
    rest = b""
    for block in text.blocks(path, encoding):
        *whole, rest = (rest + block).split(b"\n")
        yield from whole
    if rest:
        yield rest


def decode(line: bytes) -> dict[str, object]:
    """One line as a dict.

    Raises:
        Damaged: It is not a JSON object in UTF-8; the text says what is wrong.
    """
    try:
        columns = _decode(shallow(line))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Damaged(_reason(line, error)) from None
    if type(columns) is not dict:
        raise Damaged(f"not a JSON object but {_kind(columns)}")
    return columns


def shallow(line: bytes) -> bytes:
    """The line; a value of it that is nested more than 200 levels deep is a text: the JSON that it was.

    >>> shallow(b'{"a": 1, "b": ' + b"[" * 201 + b"]" * 201 + b"}")[:20]
    b'{"a": 1, "b": "[[[[['
    """
    if len(line) <= 2 * _DEEPEST or line.count(b"[") + line.count(b"{") <= _DEEPEST:
        return line
    parts: list[bytes] = []
    depth = deepest = start = done = 0
    for token in _TOKEN.finditer(line):
        if token[0] in (b"[", b"{"):
            depth += 1
            if depth == 2:
                start, deepest = token.start(), 0
            deepest = max(deepest, depth)
        elif token[0] in (b"]", b"}"):
            depth -= 1
            if depth == 1 and deepest > _DEEPEST + 1:
                deep = line[start : token.end()].decode(errors="surrogateescape")
                made = json.dumps(deep, ensure_ascii=False)
                parts += line[done:start], made.encode(errors="surrogateescape")
                done = token.end()
    return b"".join([*parts, line[done:]]) if parts else line


def salvaged(line: bytes) -> tuple[bytes | None, str, str]:
    """What can be had of a line that `decode` does not take.

    Python's json writes NaN and Infinity, which JSON has not: they are null, and so is a number that no
    64-bit float holds. Where one text is no Unicode, the other columns are kept.

    Returns:
        (JSON object of the columns or None, why the row cannot be used or "", what was read otherwise than
        it stands there or "").
    """
    found: dict[str, None] = {}

    def mended(match: re.Match[bytes]) -> bytes:
        if match["word"] is not None:
            found[match["word"].decode().lstrip("-")] = None
        elif match["number"] is not None and _too_large(match["number"]):
            found["a number beyond 1.8e308"] = None
        else:
            return match[0]
        return b"null"

    made = _ODD.sub(mended, line)
    note = f"{', '.join(found)} is read as null" if found else ""
    try:
        decode(made)
    except Damaged as damage:
        return _readable(made), str(damage), ""
    return made, "", note


def _too_large(number: bytes) -> bool:
    try:
        return b"e" in number.lower() and math.isinf(float(number))
    except ValueError:
        return False


def _readable(line: bytes) -> bytes | None:
    """The columns of a line that are Unicode, the others null; None where it is no JSON object."""
    try:
        columns = json.loads(line.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        return None
    if type(columns) is not dict:
        return None
    kept: bytes = _encode(
        {name: value if _sound(value) else None for name, value in columns.items() if _sound(name)}
    )
    return kept


def _reason(line: bytes, error: Exception) -> str:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as broken:
        return f"not UTF-8 (byte {broken.start + 1} of the line); --encoding tells what it is"
    try:  # The standard library names the column, which helps a person more.
        if not _sound(json.loads(line)):
            return r"not Unicode (half a surrogate pair, such as \ud83d alone)"
    except (ValueError, RecursionError) as better:
        error = better
    alone = line.strip() in (b"[", b"]")
    hint = "; a file that is one JSON array is no JSONL: name it .json" if alone else ""
    return f"not JSON ({error}{hint})"


def _sound(value: object) -> bool:
    """Whether all text in it is Unicode."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: object) -> str:
    return {
        list: "a list; a file that is one JSON array is named .json",
        str: "a text",
        bool: "a truth value",
        type(None): "null",
    }.get(type(value), "a number")
