"""What stands where in the journal, without reading it again. Touches: files.

A segment that will never grow again gets a sidecar of 48 bytes a line, so that a start or a finish
reads 48 MB for a million rows instead of gigabytes. A sidecar that is missing, torn, or not of its
segment is made again by reading the segment; the segment alone is the truth.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from batcher.records import Outcome, Result
from batcher.write import folder

__all__ = [
    "ENTRY",
    "EXTRAS",
    "OUTCOMES",
    "Segment",
    "checked",
    "entry_bytes",
    "extras_of",
    "last_words",
    "line_of",
    "load",
    "save",
    "stopped",
    "where",
]

OUTCOMES = tuple(Outcome)
EXTRAS = {"tool_calls": 1, "logprobs": 2, "confidences": 4, "copied": 8, "ttft_ms": 32}
"""Bits of `extras`: columns that few lines have."""
_STOPPED = 16  # The bit of a line that is not the last word on its row.
NUMBER = {outcome: number for number, outcome in enumerate(OUTCOMES)}

ENTRY = np.dtype(
    [
        ("row", "<i8"),
        ("offset", "<i8"),
        ("key_high", "<u8"),
        ("key_low", "<u8"),
        ("length", "<u4"),
        ("segment", "<u4"),
        ("model", "<u2"),
        ("sample", "<u2"),
        ("outcome", "u1"),
        ("extras", "u1"),
        ("spare", "V2"),
    ]
)
_pack = struct.Struct("<qq16sIIHHBB2x").pack
Entries = npt.NDArray[np.void]
_MAGIC = b"batcher-index-1\n"
_MOST_ROWS = 1 << 36
_CHECK = b',"z":"'
_TAIL = len(_CHECK) + 8 + 2


class _Head(msgspec.Struct):
    """The fields of a line that the index holds; `at` refers to an answer in another segment."""

    row: int
    model: str
    sample: int
    key: str
    status: Outcome
    at: tuple[int, int, int] | None = None
    tool_calls: str | None = None
    logprobs: str | None = None
    confidences: str | None = None
    ttft_ms: int | None = None
    copied: bool = False
    stopped: bool = False
    extras: int = 0


class Segment(msgspec.Struct):
    """One segment's entries, and the models they number.

    Attributes:
        bad: Lines that are torn or not ours; they are left as they stand. Counted when the segment
            is read, so that they are told of once.
        cut: Whether the segment is shorter than it was when its sidecar was made.
    """

    number: int
    models: list[str]
    entries: Any
    bad: int = 0
    cut: bool = False


def where(entries: Any) -> Any:
    """Where each entry's line stands, as one number: segment, then offset."""
    return (entries["segment"].astype(np.int64) << 40) | entries["offset"]


def last_words(entries: Entries) -> Entries:
    """Those after which nothing is to be sent for the row: the run was not stopped in between."""
    stopped = entries["extras"] & _STOPPED != 0
    return entries[~stopped] if stopped.any() else entries


def stopped(entries: Entries) -> Entries:
    """The others, which were to be asked again when the run was stopped."""
    found: Entries = entries[entries["extras"] & _STOPPED != 0]
    return found


def line_of(encoded: bytes) -> bytes:
    r"""A journal line: the JSON object with its CRC-32 as last field, and a newline.

    >>> line_of(b'{"row":1}')
    b'{"row":1,"z":"28e4e2a4"}\n'
    """
    body = encoded[:-1]
    return b'%b,"z":"%08x"}\n' % (body, zlib.crc32(body))


def checked(line: bytes) -> bool:
    """Whether a line, without its newline, ends in the CRC-32 of what stands before it."""
    at = len(line) - _TAIL
    return (
        at > 0
        and line[at : at + len(_CHECK)] == _CHECK
        and line[-2:] == b'"}'
        and line[at + len(_CHECK) : -2] == b"%08x" % zlib.crc32(memoryview(line)[:at])
    )


def entry_bytes(
    row: int,
    offset: int,
    key: str,
    length: int,
    segment: int,
    model: int,
    sample: int,
    outcome: Outcome,
    extras: int,
) -> bytes:
    """One entry, packed as `ENTRY` says."""
    return _pack(
        row, offset, bytes.fromhex(key), length, segment, model, sample, NUMBER[outcome], extras
    )


def save(path: Path, segment: Segment, size: int) -> None:
    """Writes the sidecar of a segment of `size` bytes; a crash in between leaves none or a bad one."""
    head = msgspec.json.encode({"size": size, "models": segment.models}) + b"\n"
    body = head + segment.entries.tobytes()
    content = _MAGIC + b"%08x\n" % zlib.crc32(body) + body
    folder.replace(path.parent, path.name, content, sync=False)


def load(journal: Path, number: int, *, keep: bool = True) -> Segment:
    """A segment's entries: from its sidecar if that is sound, else from the segment itself.

    Args:
        journal: The segment.
        number: Its number.
        keep: Whether to write a sidecar where there is none; not while another process may write
            to the segment.
    """
    path = journal.with_suffix(".idx")
    size = journal.stat().st_size
    try:
        content = path.read_bytes()
    except OSError:
        content = b""
    cut = False
    start = len(_MAGIC) + 9
    if content.startswith(_MAGIC) and content[len(_MAGIC) : start] == b"%08x\n" % zlib.crc32(
        memoryview(content)[start:]
    ):
        end = content.index(b"\n", start)
        head = msgspec.json.decode(content[start:end])
        if head["size"] == size:
            entries = np.frombuffer(content, ENTRY, offset=end + 1)
            return Segment(number, head["models"], entries)
        cut = head["size"] > size
    segment = _scan(journal, number)
    segment.cut = cut
    if not keep:
        return segment
    try:
        # A killed process may have left lines in memory only: a sidecar must not outlive them.
        with journal.open("rb") as file:
            os.fdatasync(file.fileno())
        save(path, segment, size)
    except OSError:
        path.unlink(missing_ok=True)  # No room for a sidecar is no reason to refuse the journal.
    return segment


def _scan(journal: Path, number: int) -> Segment:
    models: dict[str, int] = {}
    packed = bytearray()
    bad = 0
    for offset, line in _lines(journal):
        head = _head(line)
        if head is None:
            bad += 1
            continue
        model = models.setdefault(head.model, len(models))
        where = head.at or (number, offset, len(line))
        packed += entry_bytes(
            head.row,
            where[1],
            head.key,
            where[2],
            where[0],
            model,
            head.sample,
            head.status,
            head.extras,
        )
    return Segment(number, list(models), np.frombuffer(bytes(packed), ENTRY), bad)


def _lines(journal: Path) -> Iterator[tuple[int, bytes]]:
    offset = 0
    with journal.open("rb", buffering=1 << 20) as file:
        for line in file:
            yield offset, line.rstrip(b"\n")
            offset += len(line)


_decode_head: Callable[[bytes], _Head] = msgspec.json.Decoder(_Head).decode


def _head(line: bytes) -> _Head | None:
    if not checked(line):
        return None
    try:
        line.decode()  # What is skipped in decoding is not looked at.
        head = _decode_head(line)
        ok = len(head.key) == 32 and len(bytes.fromhex(head.key)) == 16
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
        return None
    segment, offset, length = head.at or (0, 0, 0)
    for value, most in (
        (head.row, _MOST_ROWS),
        (head.sample, 1 << 16),
        (head.extras, 1 << 8),
        (segment, 1 << 32),
        (offset, 1 << 40),
        (length, 1 << 32),
    ):
        ok = ok and 0 <= value < most
    if not ok:
        return None
    # A reference carries the extras of what it refers to; a line of its own shows them.
    head.extras |= extras_of(head)
    return head


def extras_of(line: _Head | Result) -> int:
    """The bits of what a line has itself."""
    bits = 0
    if line.tool_calls is not None:
        bits |= EXTRAS["tool_calls"]
    if line.logprobs is not None:
        bits |= EXTRAS["logprobs"]
    if line.confidences is not None:
        bits |= EXTRAS["confidences"]
    if line.copied:
        bits |= EXTRAS["copied"]
    if line.ttft_ms is not None:
        bits |= EXTRAS["ttft_ms"]
    if line.stopped:
        bits |= _STOPPED
    return bits
