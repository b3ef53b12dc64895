"""JSONL, plain or compressed, to lines and dicts. Touches: files."""

from __future__ import annotations

import gzip
import json
import zlib
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec

from batcher import objects

__all__ = ["MARK", "Damaged", "decode", "lines"]

MARK = 4096  # lines
_BLOCK = 1 << 20
_BOM = b"\xef\xbb\xbf"
# pyarrow reports a broken zstd stream as an OSError without a number, or as a ValueError.
_BROKEN = (EOFError, zlib.error, OSError, ValueError)
_decode: Any = msgspec.json.Decoder().decode


class Damaged(ValueError):
    """The file ends in the middle of its compressed stream, or a line is not a JSON object."""


def lines(path: str, offset: int = 0, marks: array[int] | None = None) -> Iterator[bytes]:
    r"""Every physical line, blank ones too, without its line end.

    Lines end at \n alone: U+2028 and its relatives are text.

    Args:
        path: The file.
        offset: Where to begin, at the start of a line; only in a file that is not compressed.
        marks: Gets the offset of every `MARK`th line, likewise.

    Raises:
        Damaged: The compressed stream is cut or broken; the lines before it were yielded.
    """
    packed = path.endswith((".gz", ".zst"))
    first = offset == 0
    for line in _unpacked(path) if packed else _plain(path, offset, marks):
        text = line.rstrip(b"\r\n")
        if first:
            text, first = text.removeprefix(_BOM), False
        yield text


def _plain(path: str, offset: int, marks: array[int] | None) -> Iterator[bytes]:
    with objects.opened(path) as file:
        file.seek(offset)
        if marks is None:
            yield from file
            return
        for number, line in enumerate(file):
            if not number % MARK:
                marks.append(offset)
            offset += len(line)
            yield line


def _unpacked(path: str) -> Iterator[bytes]:
    """Lines of a compressed file; those before a cut are all yielded before it is raised."""
    rest = b""
    done = 0
    damage: Exception | None = None
    with _open(path) as file:
        try:
            while block := file.read(_BLOCK):
                done += len(block)
                *whole, rest = (rest + block).split(b"\n")
                yield from whole
        except _BROKEN as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            damage = error
    if damage is None:
        if rest:
            yield rest
        return
    # A block that meets the cut is lost with all that stands before it: read again, in bytes.
    *whole, _rest = (rest + _to_the_cut(path, done)).split(b"\n")
    yield from whole
    raise Damaged(f"the compressed file is cut or broken here ({damage})")


def _to_the_cut(path: str, start: int) -> bytes:
    found = bytearray()
    with _open(path) as file, suppress(*_BROKEN):
        while start > 0:
            start -= len(file.read(min(start, _BLOCK)))
        while byte := file.read(1):
            found += byte
    return bytes(found)


@contextmanager
def _open(path: str) -> Iterator[Any]:
    with objects.opened(path) as packed:
        if path.endswith(".gz"):
            with gzip.open(packed, "rb") as file:
                yield file
            return
        import pyarrow as pa  # Takes its time to import.

        with pa.input_stream(packed, compression="zstd") as file:
            yield file


def decode(line: bytes) -> dict[str, object]:
    """One line as a dict.

    Raises:
        Damaged: It is not a JSON object in UTF-8; the text says what is wrong.
    """
    try:
        columns = _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Damaged(_reason(line, error)) from None
    if type(columns) is not dict:
        raise Damaged(f"not a JSON object but {_kind(columns)}")
    return columns


def _reason(line: bytes, error: Exception) -> str:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as broken:
        return f"not UTF-8 (byte {broken.start + 1} of the line)"
    try:  # The standard library names the column, which helps a person more.
        if not _sound(json.loads(line)):
            return r"not Unicode (half a surrogate pair, such as \ud83d alone)"
    except (ValueError, RecursionError) as better:
        error = better
    hint = "; a file that is one JSON array is no JSONL" if line.strip() in (b"[", b"]") else ""
    return f"not JSON ({error}{hint})"


def _sound(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: object) -> str:
    return {list: "a list", str: "a text", bool: "a truth value", type(None): "null"}.get(
        type(value), "a number"
    )
