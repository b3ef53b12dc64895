"""Reads JSON as servers write it: with lone surrogates, with NaN, of any size. Touches: nothing."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from batcher.records import clean

__all__ = ["LARGE_BYTES", "dumps", "is_excessive", "loads"]

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode

LARGE_BYTES = 1 << 20
"""Up to this size a body is parsed without counting its values."""

# A value of two bytes takes 64 in memory, and millions of them block the event loop.
_MOST_LISTS, _MOST_VALUES = 1_000_000, 4_000_000


def loads(body: bytes, *, halves: bool = False) -> Any:
    """The value in a body.

    Args:
        body: In UTF-8.
        halves: Whether lone surrogates stay, for a text that is joined later; else they become U+FFFD.

    Raises:
        ValueError: It is no JSON, or has too many values.
    """
    if is_excessive(body):
        raise ValueError(f"more than {_MOST_LISTS:,} lists or {_MOST_VALUES:,} values")
    try:
        return _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:  # The standard library reads lone surrogates and NaN, which msgspec does not.
        found = json.loads(body.decode("utf-8", "replace"))
        return found if halves else _decode(dumps(found))
    except RecursionError as error:
        raise ValueError(str(error)) from None


def is_excessive(body: bytes | str) -> bool:
    """Whether JSON holds so many values that they could fill the memory."""
    if len(body) <= LARGE_BYTES:
        return False
    if isinstance(body, str):
        lists, commas = body.count("[") + body.count("{"), body.count(",")
    else:
        lists, commas = body.count(b"[") + body.count(b"{"), body.count(b",")
    return lists > _MOST_LISTS or commas > _MOST_VALUES


def dumps(value: Any) -> bytes:
    """The JSON of a value from `loads`: surrogate pairs become characters, lone ones U+FFFD.

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
