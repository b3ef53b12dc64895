"""Where lines of the input begin, saved for the next start. Touches: files.

So a start skips ten million answered lines by one seek instead of reading them. The file is used only when its
checksum is right and it was made from the same input.
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


class _Saved(msgspec.Struct):
    pins: list[Pin]
    offsets: dict[str, bytes] = msgspec.field(name="marks")


def save(folder: Path, pins: Sequence[Pin], index: Mapping[str, array[int]]) -> None:
    """Saves the index; where that fails, the next start reads the lines again."""
    saved = _Saved(list(pins), {path: offsets.tobytes() for path, offsets in index.items()})
    body = msgspec.msgpack.encode(saved)
    with contextlib.suppress(OSError):
        atomic.replace(folder, LINES, _MAGIC + b"%08x" % zlib.crc32(body) + body, sync=False)


def load(folder: Path, pins: Sequence[Pin]) -> dict[str, array[int]]:
    """Loads the index of this input; empty where there is no valid one."""
    try:
        content = (folder / LINES).read_bytes()
    except OSError:
        return {}
    head, body = content[: len(_MAGIC) + 8], content[len(_MAGIC) + 8 :]
    if head != _MAGIC + b"%08x" % zlib.crc32(body):
        return {}
    index = {}
    try:
        saved = msgspec.msgpack.decode(body, type=_Saved)
        if not same_files(saved.pins, pins):
            return {}
        for path, offsets in saved.offsets.items():
            index[path] = array("q")
            index[path].frombytes(offsets)
    except ValueError:
        return {}
    return index
