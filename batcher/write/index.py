"""What stands where in the journal, without reading it again. Touches: files.

A segment that will never grow again gets a sidecar of 48 bytes a line, so that a start or a finish
reads 48 MB for a million rows instead of gigabytes. A sidecar names the size, times and inode of its
segment. One that is missing, torn, or of a segment that was written, copied or restored since is made
again by reading the segment; the segment alone is the truth.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
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
    "identity",
    "last_words",
    "line_of",
    "load",
    "run_of",
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
        ("run", "<u2"),
    ]
)
_pack = struct.Struct("<qq16sIIHHBBH").pack
Entries = npt.NDArray[np.void]
_MAGIC = b"batcher-index-2\n"
_MOST_ROWS = 1 << 36
_CHECK = b',"z":"'
_TAIL = len(_CHECK) + 8 + 2
_RUN = b',"run":"'
_RUN_DIGITS = 12
_MOST_NAMES = 1 << 16  # Models and runs in one segment.


class _Head(msgspec.Struct):
    """The fields of a line that the index holds.

    Earlier versions wrote lines that only refer to an answer in another one (`at`). Nothing needs
    them: the answer is found by its key.
    """

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


class Segment(msgspec.Struct):
    """One segment's entries, and the models and runs they number.

    Attributes:
        runs: IDs of the runs that wrote the lines; "" of lines that name none.
        bad: Lines that are torn or not ours; they are left as they stand. Counted when the segment
            is read, so that they are told of once.
        cut: Whether the segment is shorter than it was when its sidecar was made.
        lost: How many lines it had then and has not any more.
    """

    number: int
    models: list[str]
    runs: list[str]
    entries: Any
    bad: int = 0
    cut: bool = False
    lost: int = 0


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


def line_of(encoded: bytes, run: str = "") -> bytes:
    r"""A journal line: the JSON object with the ID of its run and a CRC-32 as last fields, and a newline.

    >>> line_of(b'{"row":1}', "0123456789ab")
    b'{"row":1,"run":"0123456789ab","z":"9e7db128"}\n'
    """
    body = b'%b,"run":"%b"' % (encoded[:-1], run.encode()) if run else encoded[:-1]
    return b'%b,"z":"%08x"}\n' % (body, zlib.crc32(body))


def run_of(line: bytes) -> str:
    """ID of the run that wrote a line, without its newline; "" when it names none.

    >>> run_of(line_of(b'{"row":1}', "0123456789ab")[:-1])
    '0123456789ab'
    """
    end = len(line) - _TAIL - 1
    begin = end - _RUN_DIGITS
    named = line[begin - len(_RUN) : begin] == _RUN and line[end : end + 1] == b'"'
    return line[begin:end].decode("ascii", "replace") if named and begin > 0 else ""


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
    run: int = 0,
) -> bytes:
    """One entry, packed as `ENTRY` says."""
    raw = bytes.fromhex(key)
    return _pack(row, offset, raw, length, segment, model, sample, NUMBER[outcome], extras, run)


def save(journal: Path, segment: Segment, known: Sequence[int] | None = None) -> None:
    """Writes the sidecar of a segment; a crash in between leaves none or a bad one.

    Args:
        journal: The segment.
        segment: Its entries.
        known: What `identity` gave before the segment was read; None when it was just written.
    """
    of = identity(os.stat(journal)) if known is None else known
    head = {"of": of, "models": segment.models, "runs": segment.runs}
    body = msgspec.json.encode(head) + b"\n" + segment.entries.tobytes()
    content = _MAGIC + b"%08x\n" % zlib.crc32(body) + body
    folder.replace(journal.parent, journal.with_suffix(".idx").name, content, sync=False)


def identity(stat: os.stat_result) -> list[int]:
    """Size, times and inode of a file: whoever writes, copies or restores it changes one of them.

    No program can set the second time (ctime) back.
    """
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def load(journal: Path, number: int, *, keep: bool = True) -> Segment:
    """A segment's entries: from its sidecar if that is sound, else from the segment itself.

    Args:
        journal: The segment.
        number: Its number.
        keep: Whether to write a sidecar where there is none; not while another process may write
            to the segment.
    """
    path = journal.with_suffix(".idx")
    known = identity(journal.stat())
    try:
        content = path.read_bytes()
    except OSError:
        content = b""
    cut, promised = False, 0
    start = len(_MAGIC) + 9
    if content.startswith(_MAGIC) and content[len(_MAGIC) : start] == b"%08x\n" % zlib.crc32(
        memoryview(content)[start:]
    ):
        end = content.index(b"\n", start)
        head = msgspec.json.decode(content[start:end])
        entries = np.frombuffer(content, ENTRY, offset=end + 1)
        # A sidecar that was renamed with its segment numbers another one.
        if head["of"] == known and (not len(entries) or entries["segment"][0] == number):
            return Segment(number, head["models"], head["runs"], entries)
        cut, promised = head["of"][0] > known[0], len(entries)
    segment = _scan(journal, number)
    segment.cut, segment.lost = cut, max(0, promised - len(segment.entries))
    if not keep:
        return segment
    try:
        # A killed process may have left lines in memory only: a sidecar must not outlive them.
        with journal.open("rb") as file:
            os.fdatasync(file.fileno())
        save(journal, segment, known)
    except OSError:
        path.unlink(missing_ok=True)  # No room for a sidecar is no reason to refuse the journal.
    return segment


def _scan(journal: Path, number: int) -> Segment:
    models: dict[str, int] = {}
    runs: dict[str, int] = {}
    packed = bytearray()
    bad = 0
    for offset, line in _lines(journal):
        head = _head(line)
        model = 0 if head is None else models.setdefault(head.model, len(models))
        run = 0 if head is None else runs.setdefault(run_of(line), len(runs))
        if head is None or max(model, run) >= _MOST_NAMES:
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
    ok = ok and 0 <= head.row < _MOST_ROWS and 0 <= head.sample < 1 << 16
    return head if ok else None


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
