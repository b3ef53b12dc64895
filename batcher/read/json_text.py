"""A JSON object as text to the columns of a row. Touches: nothing."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import msgspec

from batcher.read.text import InvalidRecord

__all__ = ["decode", "decode_raw", "flatten", "recover", "repair"]

_MAX_DEPTH = (
    200  # Python's stack ends at 1,000 calls, and an answer is decoded deep inside of the program.
)
# Possessive quantifiers never step back over what they matched, so the time grows linearly with the line.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[][{}]', re.DOTALL)
_decode: Any = msgspec.json.Decoder().decode
_decode_raw: Any = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder(decimal_format="number").encode
# Strings, to step over them; what Python's json writes and JSON does not have; and numbers.
_REPAIRABLE = re.compile(
    rb'"[^"\\]*+(?:\\.?[^"\\]*+)*+(?:"|\Z)|(?P<word>-?Infinity|NaN)\b|(?P<number>-?\d[\d.eE+-]*+)',
    re.DOTALL,
)


def decode(line: bytes) -> dict[str, object]:
    """Decodes one JSON object.

    Raises:
        InvalidRecord: It is not a JSON object in UTF-8; the message says what is wrong.
    """
    try:
        columns = _decode(flatten(line))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRecord(_reason(line, error)) from None
    if type(columns) is not dict:
        raise InvalidRecord(f"not a JSON object but {_kind(columns)}")
    return columns


def decode_raw(line: bytes) -> dict[str, Any]:
    """Decodes the names alone: values are `msgspec.Raw`, so that numbers keep their digits; {} if invalid."""
    try:
        decode(line)
    except InvalidRecord:
        repaired = repair(line)[0]
        if repaired is None:
            return {}
        line = repaired
    columns: dict[str, Any] = _decode_raw(flatten(line))
    return columns


def flatten(line: bytes) -> bytes:
    """Turns values nested more than 200 levels deep into strings of their JSON.

    >>> flatten(b'{"a": 1, "b": ' + b"[" * 201 + b"]" * 201 + b"}")[:20]
    b'{"a": 1, "b": "[[[[['
    """
    if len(line) <= 2 * _MAX_DEPTH or line.count(b"[") + line.count(b"{") <= _MAX_DEPTH:
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
            if depth == 1 and deepest > _MAX_DEPTH + 1:
                deep = line[start : token.end()].decode(errors="surrogateescape")
                string = json.dumps(deep, ensure_ascii=False)
                parts += line[done:start], string.encode(errors="surrogateescape")
                done = token.end()
    return b"".join([*parts, line[done:]]) if parts else line


def recover(line: bytes) -> tuple[dict[str, object] | None, str, str]:
    """Like `repair`, with the columns decoded."""
    repaired, error, note = repair(line)
    return None if repaired is None else decode(repaired), error, note


def repair(line: bytes) -> tuple[bytes | None, str, str]:
    """Saves what can be used of a line that `decode` refuses.

    NaN and Infinity, which Python writes and JSON does not have, become null, and so do numbers that no
    64-bit float holds. Where a string is not Unicode, the other columns are kept.

    Returns:
        (JSON object of the columns or None, why the row cannot be used or "", what was read differently
        from how it is written or "").
    """
    found: dict[str, None] = {}

    def null(match: re.Match[bytes]) -> bytes:
        if match["word"] is not None:
            found[match["word"].decode().lstrip("-")] = None
        elif match["number"] is not None and _overflows(match["number"]):
            found["a number beyond 1.8e308"] = None
        else:
            return match[0]
        return b"null"

    repaired = _REPAIRABLE.sub(null, line)
    note = f"{', '.join(found)} is read as null" if found else ""
    try:
        decode(repaired)
    except InvalidRecord as error:
        return _unicode_columns(repaired), str(error), ""
    return repaired, "", note


def _overflows(number: bytes) -> bool:
    try:
        return b"e" in number.lower() and math.isinf(float(number))
    except ValueError:
        return False


def _unicode_columns(line: bytes) -> bytes | None:
    """The columns that are Unicode, the others null; None where the line is no JSON object."""
    try:
        columns = json.loads(line.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        return None
    if type(columns) is not dict:
        return None
    return _encode(
        {
            name: value if _is_unicode(value) else None
            for name, value in columns.items()
            if _is_unicode(name)
        }
    )


def _reason(line: bytes, error: Exception) -> str:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as broken:
        return f"not UTF-8 (byte {broken.start + 1} of the line); --encoding tells what it is"
    try:  # The standard library names the column, which helps a person more.
        if not _is_unicode(json.loads(line)):
            return r"not Unicode (half a surrogate pair, such as \ud83d alone)"
    except (ValueError, RecursionError) as better:
        error = better
    bracket = line.strip() in (b"[", b"]")
    hint = "; a file that is one JSON array is no JSONL: name it .json" if bracket else ""
    return f"not JSON ({error}{hint})"


def _is_unicode(value: object) -> bool:
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
