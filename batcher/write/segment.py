"""One open segment of the journal: lines are appended, synced, and sealed with an index. Touches: files."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from batcher.records import Outcome, Result, clean
from batcher.write import folder as folders
from batcher.write import index, lines, sidecar
from batcher.write.names import journal_file

__all__ = ["OpenSegment"]

_encode = msgspec.json.Encoder().encode
_MOST_MODELS = 50_000  # Of index.MOST_NAMES, as one append may bring some thousands more.
_COST = ("prompt_tokens", "completion_tokens", "total_tokens", "cost_usd", "attempts")


class OpenSegment:
    """A new segment, of one run. One thread appends; another syncs and seals.

    Args:
        folder: The run folder.
        number: Its number, if that is free; else the next free one.
        run: ID of the run.

    Attributes:
        number: Its number.
        size: Bytes written.
        unsynced: Results that were appended and are not known to be on the disk.
        put_back: Where its lines are now, when its file was removed.

    Raises:
        OSError: The disk refuses the file.
    """

    def __init__(self, folder: Path, number: int, run: str = "") -> None:
        self._path, self.number, self._file = _create(folder, number)
        self._opened = os.fstat(self._file)
        self._run = run
        self._named = False  # Whether its name would outlive a power cut.
        self.size = 0
        self.unsynced: list[Result] = []
        self._written = 0  # How many of `unsynced` are in the file.
        self._refused: list[Exception] = []
        self.put_back: Path | None = None
        self._models: dict[str, int] = {}
        self._entries = bytearray()

    def append(self, results: Sequence[Result], make_room: Callable[[OSError], bool]) -> None:
        """Writes results with one `write()`.

        A result that cannot be written becomes a failure of its own row, with the reason.

        Args:
            results: What to write.
            make_room: Called with the error of a failed write; returns whether to try again.

        Raises:
            OSError: The write failed, and `make_room` returned False.
        """
        self.unsynced += results
        block = memoryview(b"".join(map(self._line_or_failure, results)))
        while block:  # A full disk first answers with a short write and no error.
            try:
                block = block[os.write(self._file, block) :]
            except OSError as error:
                if not make_room(error):
                    raise
        self._written = len(self.unsynced)

    def forget(self, count: int) -> None:
        """Takes the first results off `unsynced`, as they are on the disk."""
        del self.unsynced[:count]
        self._written -= count

    def take_over(self, results: list[Result]) -> None:
        """Makes these, which are in no file, its only unsynced results."""
        self.unsynced, self._written = results, 0

    @property
    def unwritten(self) -> list[Result]:
        """The results of `unsynced` that are not in the file."""
        return self.unsynced[self._written :]

    def take_refused(self) -> list[Exception]:
        """Why results were left out, since the last call, that no line can hold, not even as a failure."""
        refused, self._refused = self._refused, []
        return refused

    @property
    def crowded(self) -> bool:
        """Whether it holds nearly as many models as its index can number, so that a new one must begin."""
        return len(self._models) >= _MOST_MODELS

    def _line_or_failure(self, result: Result) -> bytes:
        try:
            return self._line(result)
        except Exception as error:  # noqa: BLE001 (whatever it is, it concerns this result alone)
            failed = error
        try:
            return self._line(_failure(result, failed))
        except Exception as error:  # noqa: BLE001 (no line can hold its row, key or sample)
            self._refused.append(error)
            return b""

    def _line(self, result: Result) -> bytes:
        """The next line of the file; notes its entry."""
        line = lines.line_of(_encoded(result), self._run)
        model = self._models.get(result.model, len(self._models))
        self._entries += index.entry_bytes(
            result.row,
            self.size,
            result.key,
            len(line) - 1,
            self.number,
            model,
            result.sample,
            result.status,
            index.extras_of(result),
        )
        # Only now, so that nothing is noted of a result that failed above.
        self._models[result.model] = model
        self.size += len(line)
        return line

    def sync(self) -> int:
        """Syncs; returns how many of `unsynced` are now on the disk.

        Raises:
            OSError: The disk refuses. Never sync this file again: the kernel now takes its pages for clean.
        """
        written = self._written
        if not self._named:
            with folders.descriptor(self._path.parent) as descriptor:
                os.fsync(descriptor)
            self._named = True
        if written:
            os.fdatasync(self._file)
        return written

    def seal(self) -> None:
        """Closes a segment that is synced, and writes its index; nothing is appended to it any more."""
        known = sidecar.identity(os.fstat(self._file))
        self.close()
        if not self.size:
            self._unlink(self._path.name)
            return
        entries = np.frombuffer(bytes(self._entries), index.ENTRY)
        made = index.Segment(self.number, list(self._models), [self._run], entries)
        try:
            if known[0] == self.size:  # Else another process wrote to it: it must be read.
                sidecar.save(self._path, made, known)
        except (OSError, ValueError):  # `sidecar.load` makes it when it is needed.
            self._unlink(self._path.with_suffix(".idx").name)

    def _unlink(self, name: str) -> None:
        with (
            folders.descriptor(self._path.parent) as descriptor,
            contextlib.suppress(FileNotFoundError),
        ):
            os.unlink(name, dir_fd=descriptor)

    def close(self) -> None:
        """Closes the file, once; copies it first when its name was removed."""
        file, self._file = self._file, -1
        if file >= 0:
            try:
                if self.size and self._displaced():
                    self.put_back = _put_back(file, self._path, self.number)
            finally:
                with contextlib.suppress(OSError):  # What counts is what was synced.
                    os.close(file)

    @property
    def removed(self) -> bool:
        """Whether its file was removed, moved, or replaced by another one; False once it is closed.

        Any thread may ask, also while another one closes the segment.
        """
        return self._file >= 0 and self._displaced() and self._file >= 0

    def _displaced(self) -> bool:
        """Whether its name no longer leads to this file; other names (hard links of a backup) do not matter."""
        try:
            with folders.descriptor(self._path.parent) as descriptor:
                found = os.stat(self._path.name, dir_fd=descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return True
        return not os.path.samestat(found, self._opened)


def _encoded(result: Result) -> bytes:
    try:
        return _encode(result)
    except UnicodeEncodeError:
        return _encode(clean(msgspec.to_builtins(result)))


def _failure(result: Result, error: Exception) -> Result:
    """The failure that stands in for a result which cannot be written; it keeps the cost."""
    why = f"the answer cannot be kept in the journal ({type(error).__name__}: {str(error)[:200]})"
    known: dict[str, Any] = {"row": result.row, "model": result.model, "sample": result.sample}
    known |= {"key": result.key, "custom_id": result.custom_id}
    known |= {name: getattr(result, name) for name in _COST}
    return Result(**known, status=Outcome.BAD_RESPONSE, error=clean(why))


def _create(folder: Path, number: int) -> tuple[Path, int, int]:
    """Path, number and descriptor of a new segment with this number, or the first free one after it."""
    flags = folders.FILE | os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND
    with folders.descriptor(folder) as descriptor:
        while True:  # Another process may be about to take the same number.
            name = journal_file(number)
            try:
                return folder / name, number, os.open(name, flags, 0o600, dir_fd=descriptor)
            except FileExistsError:
                number += 1


def _put_back(file: int, path: Path, number: int) -> Path:
    """Copies a removed segment to a new one, in a new run folder if that was removed as well."""
    try:
        path, _number, copy = _create(path.parent, number)
    except FileNotFoundError:
        path, _number, copy = _create(folders.recreate(path.parent), number)
    with open(copy, "wb") as new, open(os.dup(file), "rb") as old:
        old.seek(0)
        shutil.copyfileobj(old, new)
        new.flush()
        os.fsync(new.fileno())
    return path
