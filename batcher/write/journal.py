"""Which requests are answered, safe against kill and power cut. Touches: files.

Every start opens a new segment, so nothing is ever repaired or truncated: a torn last line stays
where it is and counts for nothing. One thread encodes and writes each batch with one `write()` at once;
another calls `fdatasync` at most every 200 ms, so that a disk which is slow to sync holds up no
write, and a kill loses no more than what was in flight. The queue before them is bounded in rows
and bytes by whoever asks `full`, so a slow disk slows the sending, not the memory.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from batcher.errors import OutputError
from batcher.records import Result
from batcher.write import folder as folders
from batcher.write.atomic import FULL
from batcher.write.lines import LineReader, segments
from batcher.write.names import OWN, reserve_file
from batcher.write.segment import OpenSegment

__all__ = ["Journal", "sweep_reserves"]

_SEAL_BYTES = 32 << 20
_SYNC_SECONDS = 0.2
_GATHER_SECONDS = 0.002  # A wake-up a row would cost as much as all else that is done for a row.
_MAX_ROWS = 4000
_MAX_BYTES = 64 << 20
_RESERVE_BYTES = 64 << 20


class Journal:
    """The writer of results: one open segment, a thread that writes and a thread that syncs.

    When the disk fails, nothing more should be sent, but what comes in is still written: into the
    room that a reserve file kept free when the disk is full, into a new segment when a write or a
    sync failed, since nothing is known then of what the old one holds.

    Args:
        folder: The run folder, locked by the caller.
        alarm: Called once, from another thread, when the disk fails: stop sending.
        first: Number of its first segment, if that is free; by default the next after all there are.
        run: ID that each line names, so that none is taken for one of another run.

    Attributes:
        trouble: How the disk failed first, if it did.
        lost: Results that could not be written at all.
        put_back: Where lines are that were in a file which somebody removed.

    Raises:
        OutputError: There is no room for the reserve, or the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        alarm: Callable[[], None] = lambda: None,
        first: int | None = None,
        run: str = "",
    ) -> None:
        self._folder, self._run_id = folder, run
        self._alarm = alarm
        self._queue: deque[Result] = deque()
        self._bytes_put = self._bytes_taken = 0  # Each counted by one thread only.
        self._wake = threading.Event()
        self._closing = False
        self.trouble: Exception | None = None
        self.lost = 0
        last = max((number for number, _ in segments(folder)), default=0)
        self._number = last if first is None else first - 1
        self._reserve = reserve_file(first)
        self.put_back: Path | None = None
        if first is None:
            sweep_reserves(folder)
        self._handle = folders.open_descriptor(folder)
        try:
            _reserve(self._reserve, self._handle)
            self._segment = self._next()
        except OSError as error:
            self._free()
            os.close(self._handle)
            raise OutputError(
                f"{folder}: results cannot be written here: {error.strerror}. batcher keeps "
                f"{_RESERVE_BYTES >> 20} MB free there for what is in flight when a disk fills up; make "
                "room, and run the same command again."
            ) from None
        # What both threads touch: the segment's list of what is not synced, and these.
        self._state = threading.Condition()
        self._full: OpenSegment | None = None  # To be sealed.
        self._syncing = False  # A segment in the syncer's hands must not be closed.
        self._failed: OSError | None = None  # Of a sync; the writer makes it good.
        self._over = self._given_up = False
        self._syncer = threading.Thread(target=self._keep_synced, name="sync", daemon=True)
        self._writer = threading.Thread(target=self._write, name="journal", daemon=True)
        self._syncer.start()
        self._writer.start()

    def _next(self) -> OpenSegment:
        made = OpenSegment(self._folder, self._number + 1, self._run_id)
        self._number = made.number
        return made

    @property
    def removed(self) -> bool:
        """Whether somebody removed the file that is written."""
        return self.put_back is not None or self._segment.removed

    @property
    def full(self) -> bool:
        """Whether whoever has more results should wait a moment before the next."""
        waiting = self._bytes_put - self._bytes_taken
        return len(self._queue) >= _MAX_ROWS or waiting >= _MAX_BYTES

    def put(self, result: Result) -> None:
        """Takes a result; it is in the file a moment later, and on the disk 200 ms after that."""
        self._queue.append(result)
        self._bytes_put += _size(result)
        if not self._wake.is_set():  # To set it costs more than the rest of this.
            self._wake.set()

    def at(self, segment: int, offset: int, length: int) -> Result | None:
        """A line of an earlier segment; None where it is not there any more."""
        try:
            with LineReader(self._folder) as reader:
                return reader.result(segment, offset, length)
        except OSError:
            return None

    def close(self) -> None:
        """Writes, syncs and seals what is left.

        Raises:
            OutputError: The disk failed; the sentence says what is safe.
        """
        self._closing = True
        self._wake.set()
        self._writer.join()
        with self._state:
            self._over = True
            self._state.notify_all()
        self._syncer.join()
        self._free()
        os.close(self._handle)
        if self.trouble is not None:
            raise OutputError(_told(self._folder, self.trouble, self.lost))

    # The writer

    def _write(self) -> None:
        rescued = False
        while True:
            try:
                self._run()
            except OSError as error:
                if not rescued and self._rescue(error):
                    rescued = True
                    continue
                self._sound(error)
                self._drop()
            except Exception as error:  # noqa: BLE001 (a writer that dies unseen loses what follows)
                self._sound(error)
                self._drop()
            return

    def _run(self) -> None:
        """Until closed and all is synced and sealed."""
        while True:
            self._wake.clear()  # Before anything is looked at, or what comes then wakes nobody.
            closing = self._closing
            if self._failed is not None:
                raise self._failed
            taken = [self._queue.popleft() for _ in range(len(self._queue))]
            if taken:
                self._bytes_taken += sum(map(_size, taken))
                self._append(taken)
            elif closing:
                self._hand_over()
                self._sealed()
                return
            full = self._segment.size >= _SEAL_BYTES or self._segment.crowded
            if full and self.trouble is None:
                self._hand_over()
                self._segment = self._next()
            if not closing:
                self._wake.wait()
                time.sleep(_GATHER_SECONDS)

    def _append(self, taken: list[Result]) -> None:
        with self._state:
            idle = not self._segment.unsynced
            self._segment.append(taken, self._make_room)
            if idle:
                self._state.notify_all()
        for error in self._segment.refused:
            self._sound(error)
            self.lost += 1
        self._segment.refused.clear()

    def _hand_over(self) -> None:
        """Gives the segment to be sealed, once the one before it is."""
        self._sealed()
        with self._state:
            self._full = self._segment
            self._state.notify_all()

    def _sealed(self) -> None:
        with self._state:
            self._state.wait_for(lambda: self._full is None or self._failed is not None)
        if self._failed is not None:
            raise self._failed

    def _make_room(self, error: OSError) -> bool:
        """Frees the reserve when the disk is full; False when that is not it, or it is gone."""
        if error.errno not in FULL or not self._free():
            return False
        self._sound(error)
        return True

    def _free(self) -> bool:
        """Removes the reserve; whether it was there."""
        try:
            os.unlink(self._reserve, dir_fd=self._handle)
        except OSError:
            return False
        return True

    def _rescue(self, error: OSError) -> bool:
        """Begins a new segment with all that is not known to be on the disk.

        After a failed sync the kernel takes the pages for clean and the next sync for a success,
        so the old segment is never synced again. False when there can be no new one.
        """
        self._sound(error)
        self._make_room(error)
        with self._state:
            self._state.wait_for(lambda: not self._syncing)
            synced = self._failed is None and error.errno in FULL  # What was written is sound.
            left: list[Result] = []
            for old in filter(None, dict.fromkeys((self._full, self._segment))):
                if synced:
                    with contextlib.suppress(OSError):
                        del old.unsynced[: old.sync()]
                old.close()
                self.put_back = old.put_back or self.put_back
                left += old.unsynced
            self._full = self._failed = None
            try:
                self._segment = self._next()
                self._segment.append(left, self._make_room)
            except OSError:
                self._segment.unsynced, self._segment.written = left, 0
                return False
            self._state.notify_all()
        return True

    def _drop(self) -> None:
        """Nothing can be written any more: counts what comes, until there is no more."""
        with self._state:
            self._full, self._given_up = None, True
            self._state.notify_all()
            left = self._segment.unsynced[self._segment.written :]
            self._segment.close()
        self.put_back = self._segment.put_back or self.put_back
        self.lost += sum(isinstance(item, Result) for item in left)
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

    # The syncer

    def _keep_synced(self) -> None:
        last = float("-inf")
        while True:
            with self._state:
                self._state.wait_for(lambda: self._over or self._to_sync() is not None)
                if self._to_sync() is None:
                    return
                if self._full is None:  # More may come in the meantime.
                    rest = last + _SYNC_SECONDS - time.monotonic()
                    self._state.wait_for(lambda: self._over or self._full is not None, rest)
                segment, sealing = self._to_sync(), self._full is not None
                if segment is None:
                    continue
                self._syncing = True
            try:
                synced = segment.sync()
                if sealing:
                    segment.seal()
                    self.put_back = segment.put_back or self.put_back
                error = None
            except OSError as failed:
                error = failed
            last = time.monotonic()
            with self._state:
                self._syncing = False
                if error is not None:
                    self._failed = error
                    self._wake.set()
                else:
                    del segment.unsynced[:synced]
                    segment.written -= synced
                    if sealing:
                        self._full = None
                self._state.notify_all()

    def _to_sync(self) -> OpenSegment | None:
        """What there is to sync, if anything; nothing after a failure that is not made good."""
        if self._failed is not None or self._given_up:
            return None
        return self._full or (self._segment if self._segment.unsynced else None)


def _told(folder: Path, trouble: Exception, lost: int) -> str:
    what = f"{folder}: {getattr(trouble, 'strerror', None) or repr(trouble)}, so nothing more was sent. "
    if lost:
        what += f"{lost:,} answers could not be written and will be asked for again. "
    else:
        what += "All that was answered is written. "
    mend = "Make room" if getattr(trouble, "errno", 0) in FULL else "See to the disk"
    return f"{what}{mend}, and run the same command again."


def sweep_reserves(folder: Path) -> None:
    """Removes those of workers that were killed."""
    for path in folder.glob("reserve-*"):
        if OWN.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _reserve(name: str, handle: int) -> None:
    """Room for what is in flight when the disk is full: a file of real blocks, not of holes."""
    with open(folders.create(name, handle), "wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, _RESERVE_BYTES)
        else:
            file.writelines(bytes(1 << 20) for _ in range(_RESERVE_BYTES >> 20))


def _size(result: Result) -> int:
    return 400 + len(result.content or "") + len(result.response or "")
