"""Which requests are answered, safe against kill and power cut. Touches: files.

Beside `labels.parquet` stands `labels.parquet.run/`:

    LOCK                  flock for the life of the process; who holds it
    run.json              what was asked, the input pinned, one epoch for each change; never a key
    journal-000001.jsonl  segments, only ever appended to by the process that made them
    journal-000001.idx    their sidecars (`write.index`)
    reserve               64 MB kept free while a run goes on, for what is in flight when the disk is full
    status.json           how the run stands, for whoever watches (`write.status`)
    lines.idx             where lines of the input begin (`read.marks`)

Every start opens a new segment, so nothing is ever repaired or truncated: a torn last line stays
where it is and counts for nothing. One thread encodes, writes each batch with one `write()` at once
and calls `fdatasync` at most every 200 ms, never on the event loop. The queue before it is bounded
in rows and bytes by whoever asks `full`, so a slow disk slows the sending, not the memory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from batcher.errors import JobError, OutputError
from batcher.records import Outcome, Result
from batcher.write import index

__all__ = ["Journal", "Kept", "Lock", "segments", "sync_folder"]

_SEAL_BYTES = 32 << 20
_SYNC_SECONDS = 0.2
_MAX_ROWS = 4000
_MAX_BYTES = 64 << 20
_RESERVE_BYTES = 64 << 20
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
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

    When the disk fails, nothing more should be sent, but what comes in is still written: into the
    room that a reserve file kept free when the disk is full, into a new segment when a write or a
    sync failed, since nothing is known then of what the old one holds.

    Args:
        folder: The run folder, locked by the caller.
        alarm: Called once, from the writer's thread, when the disk fails: stop sending.
        reserve: Bytes to keep free for what is in flight when the disk is full.

    Attributes:
        trouble: How the disk failed first, if it did.
        lost: Results that could not be written at all.

    Raises:
        OutputError: There is no room for the reserve, or the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        alarm: Callable[[], None] = lambda: None,
        reserve: int = _RESERVE_BYTES,
    ) -> None:
        self._folder = folder
        self._alarm = alarm
        self._queue: deque[Result | Kept] = deque()
        self._bytes_put = self._bytes_taken = 0  # Each counted by one thread only.
        self._unsynced: list[Result | Kept] = []
        self._wake = threading.Event()
        self._closing = False
        self.trouble: Exception | None = None
        self.lost = 0
        self._reserve = folder / "reserve"
        self._number = max((number for number, _ in segments(folder)), default=0)
        try:
            _reserve(self._reserve, reserve)
            self._open()
        except OSError as error:
            self._reserve.unlink(missing_ok=True)
            raise OutputError(
                f"{folder}: results cannot be written here: {error.strerror}. batcher keeps "
                f"{reserve >> 20} MB free there for what is in flight when a disk fills up; make "
                "room, and run the same command again."
            ) from None
        self._thread = threading.Thread(target=self._write, name="journal", daemon=True)
        self._thread.start()

    def _open(self) -> None:
        number = self._number + 1
        self._path = self._folder / f"journal-{number:06}.jsonl"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(self._path, flags, 0o600)
        self._number = number
        sync_folder(self._folder)
        self._size = 0
        self._models: dict[str, int] = {}
        self._entries = bytearray()

    @property
    def full(self) -> bool:
        """Whether whoever has more results should wait a moment before the next."""
        waiting = self._bytes_put - self._bytes_taken
        return len(self._queue) >= _MAX_ROWS or waiting >= _MAX_BYTES

    def put(self, result: Result | Kept) -> None:
        """Takes a result; it is in the file a moment later, and on the disk 200 ms after that."""
        self._queue.append(result)
        self._bytes_put += _size(result)
        self._wake.set()

    def close(self) -> None:
        """Writes, syncs and seals what is left.

        Raises:
            OutputError: The disk failed; the sentence says what is safe.
        """
        self._closing = True
        self._wake.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self._reserve.unlink(missing_ok=True)
        if self.trouble is not None:
            raise OutputError(_told(self._folder, self.trouble, self.lost))

    def _write(self) -> None:
        try:
            self._run()
        except Exception as error:  # noqa: BLE001 (a writer that dies unseen loses all that follows)
            self._sound(error)
            self._drop()

    def _run(self) -> None:
        last_sync = time.monotonic()
        while True:
            closing = self._closing
            self._wake.clear()
            taken = [self._queue.popleft() for _ in range(len(self._queue))]
            self._bytes_taken += sum(map(_size, taken))
            try:
                if taken:
                    self._append(taken)
                if self._unsynced and (closing or time.monotonic() - last_sync >= _SYNC_SECONDS):
                    os.fdatasync(self._file)
                    self._unsynced.clear()
                    last_sync = time.monotonic()
                if self._size >= _SEAL_BYTES or (closing and not self._queue):
                    self._seal()
                    if closing and not self._queue:
                        return
                    self._open()
            except OSError as error:
                if not self._rescue(error):
                    return
                continue
            self._wake.wait(_SYNC_SECONDS if self._unsynced else None)

    def _append(self, taken: list[Result | Kept]) -> None:
        self._unsynced += taken
        lines = []
        offset = self._size
        for item in taken:
            line = index.line_of(_encoded(item))
            if isinstance(item, Result):
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
        self._size += len(block)
        while block:  # A full disk first answers with a short write and no error.
            try:
                block = block[os.write(self._file, block) :]
            except OSError as error:
                if not self._make_room(error):
                    raise

    def _make_room(self, error: OSError) -> bool:
        """Frees the reserve when the disk is full; False when that is not it, or it is gone."""
        if error.errno not in _FULL or not self._reserve.exists():
            return False
        self._sound(error)
        self._reserve.unlink()
        return True

    def _rescue(self, error: OSError) -> bool:
        """Goes on in a new segment with all that is not known to be on the disk.

        After a failed sync the kernel takes the pages for clean and the next sync for a success,
        so the old segment is never synced again. False when the new one fails as well.
        """
        self._sound(error)
        self._make_room(error)
        with contextlib.suppress(OSError):
            os.close(self._file)
        again, self._unsynced = self._unsynced, []
        try:
            self._open()
            if again:
                self._append(again)
                os.fdatasync(self._file)
                self._unsynced.clear()
        except OSError:
            self._unsynced = again
            self._drop()
            return False
        return True

    def _drop(self) -> None:
        """Nothing can be written any more: counts what comes, until there is no more."""
        self.lost = sum(isinstance(item, Result) for item in self._unsynced)
        while not (self._closing and not self._queue):
            self._wake.clear()
            while self._queue:
                item = self._queue.popleft()
                self._bytes_taken += _size(item)
                self.lost += isinstance(item, Result)
            if not self._closing:
                self._wake.wait()

    def _sound(self, error: Exception) -> None:
        if self.trouble is None:
            self.trouble = error
            self._alarm()

    def _seal(self) -> None:
        if self._unsynced:
            os.fdatasync(self._file)
            self._unsynced.clear()
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


def _encoded(item: Result | Kept) -> bytes:
    try:
        return _encode(item)
    except UnicodeEncodeError:  # Half a surrogate pair, which no UTF-8 holds.
        texts = {f: v for f in item.__struct_fields__ if isinstance(v := getattr(item, f), str)}
        sound = {name: text.encode("utf-8", "replace").decode() for name, text in texts.items()}
        return _encode(msgspec.structs.replace(item, **sound))


def _told(folder: Path, trouble: Exception, lost: int) -> str:
    what = f"{folder}: {getattr(trouble, 'strerror', None) or repr(trouble)}, so nothing more was sent. "
    if lost:
        what += f"{lost:,} answers could not be written and will be asked for again. "
    else:
        what += "All that was answered is written. "
    mend = "Make room" if getattr(trouble, "errno", 0) in _FULL else "See to the disk"
    return f"{what}{mend}, and run the same command again."


def _reserve(path: Path, size: int) -> None:
    """A file of real blocks, not of holes."""
    with open(path, "wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.writelines(bytes(1 << 20) for _ in range(size >> 20))


def _size(result: Result | Kept) -> int:
    if isinstance(result, Kept):
        return 200
    return 400 + len(result.content or "") + len(result.response or "")


def sync_folder(folder: Path) -> None:
    """Makes new and renamed names in a folder outlive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
