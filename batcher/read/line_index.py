"""Where lines of the input begin, kept for the next start. Touches: files.

Ten million answered lines are skipped by one seek instead of being read. The file is only believed
when its checksum is right and it was made of the very same input.
"""

from __future__ import annotations

import contextlib
import zlib
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from batcher.read.files import Pin, same_files
from batcher.write import atomic
from batcher.write.names import LINES

__all__ = ["load", "save"]

_MAGIC = b"batcher-lines-2\n"


class _Kept(msgspec.Struct):
    pins: list[Pin]
    marks: dict[str, bytes]


def save(folder: Path, pins: Sequence[Pin], marks: Mapping[str, array[int]]) -> None:
    """Keeps the marks; where that fails, the next start reads the lines again."""
    kept = _Kept(list(pins), {path: found.tobytes() for path, found in marks.items()})
    body = msgspec.msgpack.encode(kept)
    with contextlib.suppress(OSError):
        atomic.replace(folder, LINES, _MAGIC + b"%08x" % zlib.crc32(body) + body, sync=False)


def load(folder: Path, pins: Sequence[Pin]) -> dict[str, array[int]]:
    """The marks of this input; none when there are none that can be believed."""
    try:
        content = (folder / LINES).read_bytes()
    except OSError:
        return {}
    head, body = content[: len(_MAGIC) + 8], content[len(_MAGIC) + 8 :]
    if head != _MAGIC + b"%08x" % zlib.crc32(body):
        return {}
    found = {}
    try:
        kept = msgspec.msgpack.decode(body, type=_Kept)
        if not same_files(kept.pins, pins):
            return {}
        for path, packed in kept.marks.items():
            found[path] = array("q")
            found[path].frombytes(packed)
    except ValueError:
        return {}
    return found
