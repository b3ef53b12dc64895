"""Which requests are answered, safe against kill and power cut. Touches: files.

Beside `labels.parquet` stands `labels.parquet.run/`:

    LOCK                  flock for the life of the process; who holds it
    run.json              what was asked, the input pinned, one epoch for each change; never a key
    journal-000001.jsonl  segments, only ever appended to by the process that made them
    journal-000001.idx    their sidecars (`write.index`)

Every start opens a new segment, so nothing is ever repaired or truncated: a torn last line stays
where it is and counts for nothing. One thread encodes, writes each batch with one `write()` at once
and calls `fdatasync` at most every 200 ms, never on the event loop. The queue before it is bounded
in rows and bytes by whoever asks `full`, so a slow disk slows the sending, not the memory.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections import deque
from pathlib import Path

import msgspec
import numpy as np

from batcher.errors import JobError, OutputError
from batcher.records import Outcome, Result
from batcher.write import index

__all__ = ["Journal", "Kept", "Lock", "segments"]

_SEAL_BYTES = 32 << 20
_SYNC_SECONDS = 0.2
_MAX_ROWS = 4000
_MAX_BYTES = 64 << 20
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


class Lock:
    """The run folder, held against every other process for the life of this one.

    Raises:
        JobError: Another process holds it; nothing was changed.
        OutputError: The folder cannot be made or written.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(mode=0o700, parents=False, exist_ok=True)
            self._file = os.open(folder / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise JobError(
                f"{folder}: the run folder cannot be made or written: {error.strerror}."
            ) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._file, 200).decode(errors="replace").strip()
            os.close(self._file)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise JobError(f"{folder}: it cannot be locked: {error.strerror}.") from None
            raise JobError(
                f"{folder}: another batcher is at work on this output ({holder or 'unknown'}); "
                "wait for it or stop it."
            ) from None
        os.ftruncate(self._file, 0)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        os.pwrite(self._file, f"pid {os.getpid()}, since {started}\n".encode(), 0)

    def release(self) -> None:
        """Lets the next process in; so does the end of this one, however it ends."""
        os.close(self._file)


def segments(folder: Path) -> list[tuple[int, Path]]:
    """(number, path) of every segment, in order."""
    return sorted((int(path.stem[-6:]), path) for path in folder.glob("journal-??????.jsonl"))


class Journal:
    """The writer of results; one thread, one open segment.

    Args:
        folder: The run folder, locked by the caller.

    Attributes:
        failed: What ended the writing, if something did; nothing is written after it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._queue: deque[Result | Kept] = deque()
        self._bytes_put = self._bytes_taken = 0  # Each counted by one thread only.
        self._wake = threading.Event()
        self._closing = False
        self.failed: OSError | None = None
        self._number = max((number for number, _ in segments(folder)), default=0)
        self._open()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def _open(self) -> None:
        self._number += 1
        self._path = self._folder / f"journal-{self._number:06}.jsonl"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(self._path, flags, 0o600)
        _sync_folder(self._folder)
        self._size = 0
        self._synced = True
        self._models: dict[str, int] = {}
        self._entries = bytearray()

    @property
    def full(self) -> bool:
        """Whether whoever has more results should wait a moment before the next."""
        waiting = self._bytes_put - self._bytes_taken
        return len(self._queue) >= _MAX_ROWS or waiting >= _MAX_BYTES

    def put(self, result: Result) -> None:
        """Takes a result; it is in the file a moment later, and on the disk 200 ms after that."""
        self._queue.append(result)
        self._bytes_put += _size(result)
        self._wake.set()

    def put_kept(self, kept: Kept) -> None:
        """Takes note that an earlier answer is now the one of another row, or of another run."""
        self._queue.append(kept)
        self._wake.set()

    def close(self) -> None:
        """Writes, syncs and seals what is left.

        Raises:
            OutputError: The disk refused; the sentence says what is safe.
        """
        self._closing = True
        self._wake.set()
        self._thread.join()
        if self.failed is not None:
            raise OutputError(
                f"{self._path}: writing results failed: {self.failed.strerror}. What was written "
                "before is safe; make room or mend the disk, and run the same command again."
            )

    def _run(self) -> None:
        last_sync = time.monotonic()
        try:
            while True:
                closing = self._closing
                self._wake.clear()
                taken = [self._queue.popleft() for _ in range(len(self._queue))]
                if taken:
                    self._append(taken)
                now = time.monotonic()
                if not self._synced and (closing or now - last_sync >= _SYNC_SECONDS):
                    os.fdatasync(self._file)
                    self._synced, last_sync = True, time.monotonic()
                if self._size >= _SEAL_BYTES:
                    self._seal()
                    self._open()
                if closing and not self._queue:
                    break
                self._wake.wait(None if self._synced else _SYNC_SECONDS)
            self._seal()
        except OSError as error:
            self.failed = error

    def _append(self, taken: list[Result | Kept]) -> None:
        lines = []
        offset = self._size
        for item in taken:
            line = index.line_of(_encode(item))
            if isinstance(item, Result):
                self._bytes_taken += _size(item)
                segment, at, length = self._number, offset, len(line) - 1
                extras = index.TOOL_CALLS * (item.tool_calls is not None)
                extras |= index.LOGPROBS * (item.logprobs is not None)
            else:
                (segment, at, length), extras = item.at, item.extras
            slot = self._models.setdefault(item.model, len(self._models))
            self._entries += index.entry_bytes(
                item.row, at, item.key, length, segment, slot, item.sample, item.status, extras
            )
            lines.append(line)
            offset += len(line)
        block = memoryview(b"".join(lines))
        self._synced = False
        self._size += len(block)
        while block:  # A full disk first answers with a short write and no error.
            block = block[os.write(self._file, block) :]

    def _seal(self) -> None:
        if not self._synced:
            os.fdatasync(self._file)
            self._synced = True
        os.close(self._file)
        if not self._size:
            self._path.unlink()
            return
        entries = np.frombuffer(bytes(self._entries), index.ENTRY)
        segment = index.Segment(self._number, list(self._models), entries)
        try:
            index.save(self._path.with_suffix(".idx"), segment, self._size)
        except OSError:
            self._path.with_suffix(".idx").unlink(missing_ok=True)  # It is made again when needed.


def _size(result: Result) -> int:
    return 400 + len(result.content or "") + len(result.response or "")


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
