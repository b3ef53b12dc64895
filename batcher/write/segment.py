"""One open segment of the journal: lines in, synced, sealed with its index. Touches: files."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from batcher.records import Outcome, Result
from batcher.write import index

__all__ = ["Kept", "Loader", "OpenSegment", "loaded", "segments", "sync_folder"]

_NAME = re.compile(r"journal-(\d{6,})\.jsonl")
_encode = msgspec.json.Encoder().encode


class Kept(msgspec.Struct, frozen=True):
    """A line that refers to the line which holds the answer.

    Attributes:
        at: (segment, offset, length) of that line.
        extras: What that line has besides (`index.ENTRY`).
    """

    row: int
    model: str
    sample: int
    key: str
    status: Outcome
    custom_id: str
    at: tuple[int, int, int]
    extras: int


def segments(folder: Path) -> list[tuple[int, Path]]:
    """(number, path) of every segment, in order.

    Raises:
        OSError: The folder cannot be read.
    """
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    named = [(_NAME.fullmatch(name), folder / name) for name in names]
    return sorted((int(match[1]), path) for match, path in named if match)


class Loader:
    """Loads segments, as often as asked, without entries that refer to a line which is not there.

    Such a line was damaged, or went with its segment; what refers to it is no answer any more.

    Args:
        files: As `segments` gives them.
        keep: As in `index.load`.
        heard: Told each segment with its path when it was read.
    """

    def __init__(
        self,
        files: Sequence[tuple[int, Path]],
        *,
        keep: bool,
        heard: Callable[[Path, index.Segment], None] = lambda _path, _segment: None,
    ) -> None:
        self._files = files
        self._keep = keep
        self._heard = heard
        self._lines: Any = None  # Where all lines stand, once something refers to one.

    def all(self, first: int = 0, end: int = 1 << 32) -> Iterator[index.Segment]:
        """The segments of which `first <= number < end`, one at a time."""
        for segment in self._read(first, end):
            entries = segment.entries
            if (referring := entries["segment"] != segment.number).any():
                if self._lines is None:
                    own = (s.entries[s.entries["segment"] == s.number] for s in self._read())
                    self._lines = np.concatenate([index.where(entries) for entries in own])
                sound = ~referring | np.isin(index.where(entries), self._lines)
                segment.entries = entries[sound]
            yield segment

    def _read(self, first: int = 0, end: int = 1 << 32) -> Iterator[index.Segment]:
        for number, path in self._files:
            if first <= number < end:
                segment = index.load(path, number, keep=self._keep)
                self._heard(path, segment)
                yield segment


def loaded(folder: Path, first: int = 1, *, keep: bool = False) -> Iterator[index.Segment]:
    """What stands in the segments from number `first` on; see `Loader`."""
    return Loader(segments(folder), keep=keep).all(first)


class OpenSegment:
    """A new segment. One thread appends; another syncs and seals.

    Attributes:
        number: The first free one from that which was asked for.
        size: Bytes written.
        unsynced: What was appended and is not known to be on the disk; the first `written` of them
            are in the file.
    """

    def __init__(self, folder: Path, number: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        while True:  # Whoever else writes into the folder may be about to take the same one.
            self._folder, self.number = folder, number
            self._path = folder / f"journal-{number:06}.jsonl"
            try:
                self._file = os.open(self._path, flags, 0o600)
                break
            except FileExistsError:
                number += 1
        self._named = False  # Whether its name would outlive a power cut.
        self.size = 0
        self.unsynced: list[Result | Kept] = []
        self.written = 0
        self._models: dict[str, int] = {}
        self._entries = bytearray()

    def append(self, items: Sequence[Result | Kept], make_room: Callable[[OSError], bool]) -> None:
        """Writes the items at once; `make_room` says whether a failed write is worth another."""
        self.unsynced += items
        lines = []
        offset = self.size
        for item in items:
            line = index.line_of(_encoded(item))
            if isinstance(item, Result):
                segment, at, length = self.number, offset, len(line) - 1
                extras = index.extras_of(item)
            else:
                (segment, at, length), extras = item.at, item.extras
            slot = self._models.setdefault(item.model, len(self._models))
            self._entries += index.entry_bytes(
                item.row, at, item.key, length, segment, slot, item.sample, item.status, extras
            )
            lines.append(line)
            offset += len(line)
        block = memoryview(b"".join(lines))
        self.size += len(block)
        while block:  # A full disk first answers with a short write and no error.
            try:
                block = block[os.write(self._file, block) :]
            except OSError as error:
                if not make_room(error):
                    raise
        self.written = len(self.unsynced)

    def sync(self) -> int:
        """Syncs; returns how many of `unsynced` are on the disk for certain."""
        written = self.written
        if not self._named:
            sync_folder(self._folder)
            self._named = True
        if written:
            os.fdatasync(self._file)
        return written

    def seal(self) -> None:
        """Ends a segment that is synced: it is never appended to again, and gets its index."""
        self.close()
        if not self.size:
            self._path.unlink()
            return
        entries = np.frombuffer(bytes(self._entries), index.ENTRY)
        made = index.Segment(self.number, list(self._models), entries)
        try:
            index.save(self._path.with_suffix(".idx"), made, self.size)
        except OSError:
            self._path.with_suffix(".idx").unlink(missing_ok=True)  # It is made again when needed.

    def close(self) -> None:
        """Lets go of the file; a second time is no harm."""
        file, self._file = self._file, -1
        if file >= 0:
            with contextlib.suppress(OSError):  # What counts is what was synced.
                os.close(file)


def _encoded(item: Result | Kept) -> bytes:
    try:
        return _encode(item)
    except UnicodeEncodeError:  # Half a surrogate pair, which no UTF-8 holds.
        texts = {f: v for f in item.__struct_fields__ if isinstance(v := getattr(item, f), str)}
        sound = {name: text.encode("utf-8", "replace").decode() for name, text in texts.items()}
        return _encode(msgspec.structs.replace(item, **sound))


def sync_folder(folder: Path) -> None:
    """Makes new and renamed names in a folder outlive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
