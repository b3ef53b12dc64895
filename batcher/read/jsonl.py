"""JSONL, plain or compressed, to lines and dicts. Touches: files."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, Any

import msgspec
import pyarrow as pa

__all__ = ["Damaged", "decode", "lines"]

_BLOCK = 1 << 20
_BOM = b"\xef\xbb\xbf"
_decode: Any = msgspec.json.Decoder().decode


class Damaged(ValueError):
    """The file ends in the middle of its compressed stream, or a line is not a JSON object."""


def lines(path: str) -> Iterator[bytes]:
    r"""Every physical line, blank ones too, without its line end.

    Lines end at \n alone: U+2028 and its relatives are text.

    Raises:
        Damaged: The compressed stream is cut or broken; the lines before it were yielded.
    """
    with ExitStack() as stack:
        file = stack.enter_context(_open(path))
        try:
            for number, line in enumerate(file):
                text = line.rstrip(b"\r\n")
                yield text.removeprefix(_BOM) if number == 0 else text
        except (EOFError, zlib.error, gzip.BadGzipFile, pa.ArrowException) as error:
            raise Damaged(f"the compressed file is cut or broken here ({error})") from None
        except OSError as error:
            if error.errno is not None:
                raise
            # pyarrow reports a broken zstd stream as an OSError without a number.
            raise Damaged(f"the compressed file is cut or broken here ({error})") from None


def _open(path: str) -> IO[bytes]:
    if path.endswith(".gz"):
        return io.BufferedReader(gzip.open(path, "rb"), _BLOCK)
    if path.endswith(".zst"):
        return io.BufferedReader(pa.input_stream(path, compression="zstd"), _BLOCK)
    return open(path, "rb", buffering=_BLOCK)


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
        json.loads(line)
    except (ValueError, RecursionError) as better:
        error = better
    return f"not JSON ({error})"


def _kind(value: object) -> str:
    return {list: "a list", str: "a text", bool: "a truth value", type(None): "null"}.get(
        type(value), "a number"
    )
