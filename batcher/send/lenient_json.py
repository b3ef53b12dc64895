"""JSON as servers write it: with halves of characters, with NaN, with far too much of it. Touches: nothing."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from batcher.records import clean

__all__ = ["LARGE_BYTES", "dumps", "is_excessive", "loads"]

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode

LARGE_BYTES = 1 << 20
"""Up to here a body is parsed without a look at how much is in it."""

# A value of two bytes takes 64 when it is parsed, and millions of them hold everything up.
_MOST_LISTS, _MOST_VALUES = 1_000_000, 4_000_000


def loads(body: bytes, *, halves: bool = False) -> Any:
    """What a body says.

    Args:
        body: In UTF-8.
        halves: Whether halves of characters (lone surrogates) are left as they are, for a text that is
            put together later; else they become U+FFFD.

    Raises:
        ValueError: It is no JSON, or has too many parts.
    """
    if is_excessive(body):
        raise ValueError(f"more than {_MOST_LISTS:,} lists or {_MOST_VALUES:,} values")
    try:
        return _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:  # The standard library takes halves of characters and NaN, which msgspec does not.
        found = json.loads(body.decode("utf-8", "replace"))
        return found if halves else _decode(dumps(found))
    except RecursionError as error:
        raise ValueError(str(error)) from None


def is_excessive(body: bytes | str) -> bool:
    """Whether JSON holds so many values that they would fill the memory."""
    if len(body) <= LARGE_BYTES:
        return False
    if isinstance(body, str):
        lists, commas = body.count("[") + body.count("{"), body.count(",")
    else:
        lists, commas = body.count(b"[") + body.count(b"{"), body.count(b",")
    return lists > _MOST_LISTS or commas > _MOST_VALUES


def dumps(value: Any) -> bytes:
    """The JSON of what `loads` gave: halves that met are one character, others U+FFFD.

    Raises:
        ValueError: It is too deep.
    """
    try:
        return _encode(value)
    except UnicodeEncodeError:
        pass
    try:
        return _encode(clean(value))
    except RecursionError as error:
        raise ValueError(str(error)) from None
