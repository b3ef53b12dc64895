"""One open segment of the journal: lines in, synced, sealed with its index. Touches: files."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from batcher.records import Outcome, Result, clean
from batcher.write import folder as folders
from batcher.write import index
from batcher.write.moved import Moved
from batcher.write.names import JOURNAL_FILE, journal_file

__all__ = ["OpenSegment", "loaded", "placed", "present", "segments", "sync_folder", "written_by"]

_encode = msgspec.json.Encoder().encode
_MOST_MODELS = 50_000  # Of 65,536, as what is written at once may bring some thousands more.
_COST = ("prompt_tokens", "completion_tokens", "total_tokens", "cost_usd", "attempts")


def segments(folder: Path) -> list[tuple[int, Path]]:
    """(number, path) of every segment, in order.

    Raises:
        OSError: The folder cannot be read.
    """
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    named = [(JOURNAL_FILE.fullmatch(name), folder / name) for name in names]
    return sorted((int(match[1]), path) for match, path in named if match)


def loaded(folder: Path, *, keep: bool = False) -> Iterator[index.Segment]:
    """All segments in order, one at a time: there may be gigabytes of them."""
    for number, path in segments(folder):
        yield index.load(path, number, keep=keep)


def placed(folder: Path, runs: Collection[str], *, keep: bool = False) -> Iterator[index.Segment]:
    """Likewise, with the entries alone of which it is known that they are of the present rows.

    Args:
        folder: The run folder.
        runs: IDs of the runs that asked for the present rows.
        keep: As in `index.load`.
    """
    moved = Moved.load(folder, runs)
    for segment in loaded(folder, keep=keep):
        segment.entries = present(segment, runs, moved)
        yield segment


def present(segment: index.Segment, runs: Collection[str], moved: Moved) -> Any:
    """Entries of the present rows: those that moved to one, those of lines that one of the runs wrote."""
    ours, there = written_by(segment, runs), moved.of(segment)[1]
    own = segment.entries if ours.all() else segment.entries[ours]
    return np.concatenate([there, own]) if len(there) else own


def written_by(segment: index.Segment, runs: Collection[str]) -> Any:
    """By entry, whether one of these runs wrote the line."""
    return np.array([run in runs for run in segment.runs], np.bool_)[segment.entries["run"]]


class OpenSegment:
    """A new segment, of one run. One thread appends; another syncs and seals.

    Attributes:
        number: The first free one from that which was asked for.
        size: Bytes written.
        unsynced: What was appended and is not known to be on the disk; the first `written` of them
            are in the file.
        refused: Why items were left out that no line can hold, not even as a failure.
        put_back: Where its lines are, when its file was removed.
    """

    def __init__(self, folder: Path, number: int, run: str = "") -> None:
        self._path, self.number, self._file = _next(folder, number)
        self._run = run
        self._named = False  # Whether its name would outlive a power cut.
        self.size = 0
        self.unsynced: list[Result] = []
        self.written = 0
        self.refused: list[Exception] = []
        self.put_back: Path | None = None
        self._models: dict[str, int] = {}
        self._entries = bytearray()

    def append(self, items: Sequence[Result], make_room: Callable[[OSError], bool]) -> None:
        """Writes the items at once; `make_room` says whether a failed write is worth another.

        An item that cannot be written is written as a failure of its own row, with the reason.
        """
        self.unsynced += items
        block = memoryview(b"".join(map(self._line_or_failure, items)))
        while block:  # A full disk first answers with a short write and no error.
            try:
                block = block[os.write(self._file, block) :]
            except OSError as error:
                if not make_room(error):
                    raise
        self.written = len(self.unsynced)

    @property
    def crowded(self) -> bool:
        """Whether it holds nearly as many models as its index can number: the next begins."""
        return len(self._models) >= _MOST_MODELS

    def _line_or_failure(self, item: Result) -> bytes:
        try:
            return self._line(item)
        except Exception as error:  # noqa: BLE001 (whatever it is, it is about this item alone)
            failed = error
        try:
            return self._line(_failure(item, failed))
        except Exception as error:  # noqa: BLE001 (its row, key or sample can stand in no line)
            self.refused.append(error)
            return b""

    def _line(self, item: Result) -> bytes:
        """The line that comes next in the file, with its entry noted."""
        line = index.line_of(_encoded(item), self._run)
        slot = self._models.get(item.model, len(self._models))
        self._entries += index.entry_bytes(
            item.row,
            self.size,
            item.key,
            len(line) - 1,
            self.number,
            slot,
            item.sample,
            item.status,
            index.extras_of(item),
        )
        # Nothing is noted of an item that fails before here.
        self._models[item.model] = slot
        self.size += len(line)
        return line

    def sync(self) -> int:
        """Syncs; returns how many of `unsynced` are on the disk for certain."""
        written = self.written
        if not self._named:
            with folders.opened(self._path.parent) as handle:
                os.fsync(handle)
            self._named = True
        if written:
            os.fdatasync(self._file)
        return written

    def seal(self) -> None:
        """Ends a segment that is synced: it is never appended to again, and gets its index."""
        known = index.identity(os.fstat(self._file))
        self.close()
        if not self.size:
            self._unlink(self._path.name)
            return
        entries = np.frombuffer(bytes(self._entries), index.ENTRY)
        made = index.Segment(self.number, list(self._models), [self._run], entries)
        try:
            if known[0] == self.size:  # Else somebody wrote to it, and only a reading tells what.
                index.save(self._path, made, known)
        except (OSError, ValueError):  # It is made again when needed.
            self._unlink(self._path.with_suffix(".idx").name)

    def _unlink(self, name: str) -> None:
        with folders.opened(self._path.parent) as handle, contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=handle)

    def close(self) -> None:
        """Lets go of the file; a second time is no harm. One that was removed is put back first."""
        file, self._file = self._file, -1
        if file >= 0:
            try:
                if self.size and self._displaced(file):
                    self.put_back = _copied(file, self._path, self.number)
            finally:
                with contextlib.suppress(OSError):  # What counts is what was synced.
                    os.close(file)

    @property
    def removed(self) -> bool:
        """Whether somebody removed its file, moved it, or put another one in its place."""
        return self._file >= 0 and self._displaced(self._file)

    def _displaced(self, file: int) -> bool:
        """Whether the name leads to this file no more; other names, as of a backup's links, do not count."""
        try:
            with folders.opened(self._path.parent) as handle:
                found = os.stat(self._path.name, dir_fd=handle, follow_symlinks=False)
        except FileNotFoundError:
            return True
        return not os.path.samestat(found, os.fstat(file))


def _encoded(item: Result) -> bytes:
    try:
        return _encode(item)
    except UnicodeEncodeError:
        return _encode(clean(msgspec.to_builtins(item)))


def _failure(item: Result, error: Exception) -> Result:
    """What stands in the journal for an item that cannot stand there; what it cost is kept."""
    said = f"the answer cannot be kept in the journal ({type(error).__name__}: {str(error)[:200]})"
    of: dict[str, Any] = {"row": item.row, "model": item.model, "sample": item.sample}
    of |= {"key": item.key, "custom_id": item.custom_id}
    of |= {name: getattr(item, name) for name in _COST}
    return Result(**of, status=Outcome.BAD_RESPONSE, error=clean(said))


def _next(folder: Path, number: int) -> tuple[Path, int, int]:
    """Path, number and handle of a new segment, of this number or the first free one after it."""
    flags = folders.FILE | os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND
    with folders.opened(folder) as handle:
        while True:  # Whoever else writes into the folder may be about to take the same one.
            name = journal_file(number)
            try:
                return folder / name, number, os.open(name, flags, 0o600, dir_fd=handle)
            except FileExistsError:
                number += 1


def _copied(file: int, path: Path, number: int) -> Path:
    """What a removed segment holds, as a new one; in a new run folder, where all of that was removed."""
    try:
        path, _number, copy = _next(path.parent, number)
    except FileNotFoundError:
        path, _number, copy = _next(folders.anew(path.parent), number)
    with open(copy, "wb") as to, open(os.dup(file), "rb") as lines:
        lines.seek(0)
        shutil.copyfileobj(lines, to)
        to.flush()
        os.fsync(to.fileno())
    return path


def sync_folder(folder: Path) -> None:
    """Makes new and renamed names in a folder outlive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
