"""The index of a segment on disk, `journal-000001.idx`. Touches: files.

A sidecar names the size, times and inode of its segment. One that is missing, torn, or of a segment that was
written, copied or restored since is made again by reading the segment: the segment alone is the truth.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from batcher.records import Outcome, Result
from batcher.write import atomic
from batcher.write.columns import EXTRAS
from batcher.write.index import ENTRY, MOST_NAMES, Segment, entry_bytes, extras_of
from batcher.write.lines import is_sound, run_of, scan

__all__ = ["identity", "load", "save"]

_MAGIC = b"batcher-index-2\n"
_START = len(_MAGIC) + 9  # After the magic: a CRC-32 as eight hex digits, and a newline.
_MOST_ROWS = 1 << 36


class _Head(msgspec.Struct):
    """The fields of a line that the index holds, besides `EXTRAS`.

    Attributes:
        at: Earlier versions wrote lines that only refer to an answer in another line. They are skipped:
            the answer is found by its key.
    """

    row: int
    model: str
    sample: int
    key: str
    status: Outcome
    at: tuple[int, int, int] | None = None
    stopped: bool = False


_extras = [
    (field.name, field.type, field.default)
    for field in msgspec.structs.fields(Result)
    if field.name in EXTRAS
]
_IndexedHead = msgspec.defstruct("_IndexedHead", _extras, bases=(_Head,))
_decode: Callable[[bytes], Any] = msgspec.json.Decoder(_IndexedHead).decode


def identity(stat: os.stat_result) -> list[int]:
    """Size, times and inode of a file: writing, copying or restoring it changes one of them.

    No program can set the second time (ctime) back.
    """
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def save(journal: Path, segment: Segment, known: Sequence[int] | None = None) -> None:
    """Writes the sidecar of a segment; a crash leaves the old one, none, or one that `load` refuses.

    Args:
        journal: The segment.
        segment: Its entries.
        known: `identity` of the segment before it was read; None when it was just written.

    Raises:
        OSError: The disk refuses.
    """
    of = identity(os.stat(journal)) if known is None else known
    head = {"of": of, "models": segment.models, "runs": segment.runs}
    body = msgspec.json.encode(head) + b"\n" + segment.entries.tobytes()
    content = _MAGIC + b"%08x\n" % zlib.crc32(body) + body
    atomic.replace(journal.parent, journal.with_suffix(".idx").name, content, sync=False)


def load(journal: Path, number: int, *, keep: bool = True) -> Segment:
    """The entries of a segment: from its sidecar if that is valid, else from the segment itself.

    Args:
        journal: The segment.
        number: Its number.
        keep: Whether to write a missing sidecar; not while another process may write to the segment.

    Raises:
        OSError: The segment cannot be read.
    """
    path = journal.with_suffix(".idx")
    known = identity(journal.stat())
    cut, promised = False, 0
    if (found := _read(path)) is not None:
        head, entries = found
        # A sidecar that was renamed together with its segment has another number in its entries.
        if head["of"] == known and (not len(entries) or entries["segment"][0] == number):
            return Segment(number, head["models"], head["runs"], entries)
        cut, promised = head["of"][0] > known[0], len(entries)
    segment = _index(journal, number)
    segment.cut, segment.lost = cut, max(0, promised - len(segment.entries))
    if not keep:
        return segment
    try:
        # A killed process may have left lines in memory only: a sidecar must not outlive them.
        with journal.open("rb") as file:
            os.fdatasync(file.fileno())
        save(journal, segment, known)
    except OSError:
        path.unlink(missing_ok=True)  # A journal is read without its sidecar, too.
    return segment


def _read(path: Path) -> tuple[dict[str, Any], Any] | None:
    """Head and entries of a sidecar; None when there is none that is whole."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    check = b"%08x\n" % zlib.crc32(memoryview(content)[_START:])
    if content[:_START] != _MAGIC + check:
        return None
    end = content.index(b"\n", _START)
    return msgspec.json.decode(content[_START:end]), np.frombuffer(content, ENTRY, offset=end + 1)


def _index(journal: Path, number: int) -> Segment:
    """Reads a segment line by line."""
    models: dict[str, int] = {}
    runs: dict[str, int] = {}
    packed = bytearray()
    bad = 0
    for offset, line in scan(journal):
        head = _head(line)
        model = 0 if head is None else models.setdefault(head.model, len(models))
        run = 0 if head is None else runs.setdefault(run_of(line), len(runs))
        if head is None or max(model, run) >= MOST_NAMES:
            bad += 1
        elif head.at is None:
            packed += entry_bytes(
                head.row,
                offset,
                head.key,
                len(line),
                number,
                model,
                head.sample,
                head.status,
                extras_of(head),
                run,
            )
    return Segment(number, list(models), list(runs), np.frombuffer(bytes(packed), ENTRY), bad)


def _head(line: bytes) -> Any:
    """The indexed fields of a line; None for a line that is not sound."""
    if not is_sound(line):
        return None
    try:
        line.decode()  # msgspec does not check the UTF-8 of the fields that it skips.
        head = _decode(line)
        ok = len(head.key) == 32 and len(bytes.fromhex(head.key)) == 16
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
        return None
    ok = ok and 0 <= head.row < _MOST_ROWS and 0 <= head.sample < 1 << 16
    return head if ok else None
