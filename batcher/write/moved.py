"""Which answers belong to another row than the one they were sent for. Touches: files.

After rows were inserted, edited or sorted, or when the input may have changed during a run, each answer is found by
the key of its request. One file keeps the finds: for each line of a segment how far its row and sample moved,
compressed. Rows that moved together take almost nothing (25 KB for a million), sorted rows three bytes each.

The file counts only if it names a run that `run.json` knows, and for segments that hold the same lines as then.
Without it the answers are found by their keys again.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Collection, Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from batcher.write import atomic
from batcher.write import folder as folders
from batcher.write.index import Segment
from batcher.write.names import MOVED

__all__ = ["MOVED", "Moved"]

_MAGIC = b"batcher-moved-1\n"
_SHIFT = np.dtype([("row", "<i8"), ("sample", "<i4"), ("taken", "u1")])


class _Part(msgspec.Struct, frozen=True):
    """Of one segment: a digest of its entries, and a compressed `_SHIFT` for each."""

    digest: bytes
    shifts: bytes


class Moved(msgspec.Struct, frozen=True):
    """Where answers moved to.

    Attributes:
        run: ID of the run that found them.
        parts: By the segment's number.
    """

    run: str = ""
    parts: Mapping[int, _Part] = {}

    @classmethod
    def load(cls, folder: Path, runs: Collection[str] | None = None) -> Moved:
        """Reads the file of a run folder; empty if it is missing or damaged, or if none of `runs` wrote it."""
        try:
            content = folders.read(folder, MOVED)
        except OSError:
            return cls()
        head, body = content[: len(_MAGIC) + 8], content[len(_MAGIC) + 8 :]
        if head != _MAGIC + b"%08x" % zlib.crc32(body):
            return cls()
        found = msgspec.msgpack.decode(body, type=cls)
        return found if runs is None or found.run in runs else cls()

    def save(self, folder: Path) -> None:
        """Writes the file; where that fails, the next start finds the answers again."""
        body = msgspec.msgpack.encode(self)
        with contextlib.suppress(OSError):
            atomic.replace(folder, MOVED, _MAGIC + b"%08x" % zlib.crc32(body) + body, sync=False)

    def of(self, segment: Segment) -> tuple[Any, Any]:
        """(for each entry of a whole segment, whether it moved; those entries with their new row and sample)."""
        entries = segment.entries
        part = self.parts.get(segment.number)
        if part is None or part.digest != _digest(segment):
            return np.zeros(len(entries), np.bool_), entries[:0]
        shifts = np.empty(len(entries), _SHIFT)
        packed = zlib.decompress(part.shifts)
        for name in _SHIFT.names or ():
            kind = _SHIFT[name]
            shifts[name] = np.frombuffer(packed, kind, len(entries))
            packed = packed[kind.itemsize * len(entries) :]
        taken = shifts["taken"] != 0
        there = entries[taken]
        there["row"] += shifts["row"][taken]
        there["sample"] += shifts["sample"][taken].astype(np.uint16)
        return taken, there

    def more(self, run: str, segments: Iterable[Segment], found: Any) -> Moved:
        """The same with more answers.

        Args:
            run: ID of the run that found them.
            segments: All segments, whole.
            found: Their entries, with their new row and sample; only segment and offset count besides.
        """
        parts: dict[int, _Part] = {}
        for segment in segments:
            entries = segment.entries
            taken, there = self.of(segment)
            more = found[found["segment"] == segment.number]
            at = np.concatenate(
                [np.flatnonzero(taken), entries["offset"].searchsorted(more["offset"])]
            )
            there = np.concatenate([there, more])
            if not len(at):
                continue
            shifts = np.zeros(len(entries), _SHIFT)
            shifts["row"][at] = there["row"] - entries["row"][at]
            shifts["sample"][at] = there["sample"].astype(np.int32) - entries["sample"][at]
            shifts["taken"][at] = 1
            packed = b"".join(shifts[name].tobytes() for name in _SHIFT.names or ())
            parts[segment.number] = _Part(_digest(segment), zlib.compress(packed, 1))
        return Moved(run, parts)


def _digest(segment: Segment) -> bytes:
    """Of all that the index of a segment says about its lines."""
    found = blake2b(
        msgspec.msgpack.encode((segment.number, segment.models, segment.runs)), digest_size=16
    )
    found.update(segment.entries.tobytes())
    return found.digest()
