"""The journal: results on disk, safe against kills and power cuts. Touches: files.

Every start opens a new segment, so nothing is ever repaired or truncated: a torn last line stays where it is and
counts for nothing. One thread encodes and writes what came in with one `write()`; another (`write.syncer`) calls
`fdatasync` at most every 200 ms, so that a disk which is slow to sync delays no write, and a kill loses no
more than what was in flight. The queue before them is bounded: whoever puts results waits while the journal is
`full`, so a slow disk slows the sending instead of filling the memory.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from batcher.errors import OutputError
from batcher.records import Result
from batcher.write.atomic import FULL
from batcher.write.lines import LineReader, segments
from batcher.write.reserve import RESERVE_BYTES, Reserve, sweep_reserves
from batcher.write.segment import OpenSegment
from batcher.write.syncer import Syncer

__all__ = ["Journal"]

_SEAL_BYTES = 32 << 20
_GATHER_SECONDS = 0.002  # To wake up for each row would cost as much as all else that a row takes.
_MAX_ROWS = 4000
_MAX_BYTES = 64 << 20


class Journal:
    """The writer of results: one open segment, and a thread that writes to it.

    When the disk fails, nothing more should be sent, but results that still come in are written: into the
    room that a reserve kept free when the disk is full; into a new segment when a write or a sync failed, as
    the content of the old one is then unknown.

    Args:
        folder: The run folder, locked by the caller.
        alarm: Called once, from another thread, when the disk fails: stop sending.
        first: Number of its first segment, if that is free; by default the next after all there are.
        run: ID that each line names, so that it is not taken for a line of another run.

    Attributes:
        trouble: How the disk failed first, if it did.
        lost: How many results could not be written at all.

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
        self._bytes_put = self._bytes_taken = 0  # One thread writes the first, another the second.
        self._wake = threading.Event()
        self._closing = False
        self.trouble: Exception | None = None
        self.lost = 0
        self._put_back: Path | None = None
        last = max((number for number, _ in segments(folder)), default=0)
        self._number = last if first is None else first - 1
        if first is None:
            sweep_reserves(folder)
        try:
            self._reserve = Reserve(folder, first)
            try:
                self._segment = self._new_segment()
            except OSError:
                self._reserve.close()
                raise
        except OSError as error:
            raise OutputError(
                f"{folder}: results cannot be written here: {error.strerror}. batcher keeps "
                f"{RESERVE_BYTES >> 20} MB free there for what is in flight when a disk fills up; make "
                "room, and run the same command again."
            ) from None
        self._syncer = Syncer(self._wake.set)
        self._thread = threading.Thread(target=self._write, name="journal", daemon=True)
        self._thread.start()

    def _new_segment(self) -> OpenSegment:
        segment = OpenSegment(self._folder, self._number + 1, self._run_id)
        self._number = segment.number
        return segment

    @property
    def put_back(self) -> Path | None:
        """Where lines are now whose file was removed; None when none was."""
        return self._put_back or self._syncer.put_back

    @property
    def removed(self) -> bool:
        """Whether the file that is written was removed."""
        return self.put_back is not None or self._segment.removed

    @property
    def full(self) -> bool:
        """Whether to wait before more results are put."""
        waiting = self._bytes_put - self._bytes_taken
        return len(self._queue) >= _MAX_ROWS or waiting >= _MAX_BYTES

    def put(self, result: Result) -> None:
        """Takes a result; it is in the file a moment later, and on the disk 200 ms after that."""
        self._queue.append(result)
        self._bytes_put += _size(result)
        if not self._wake.is_set():  # To set it costs more than the rest of this method.
            self._wake.set()

    def at(self, segment: int, offset: int, length: int) -> Result | None:
        """The result in a line of an earlier segment; None where it cannot be read any more."""
        try:
            with LineReader(self._folder) as reader:
                return reader.result(segment, offset, length)
        except OSError:
            return None

    def close(self) -> None:
        """Writes, syncs and seals what is left.

        Raises:
            OutputError: The disk failed; the message says what is safe.
        """
        self._closing = True
        self._wake.set()
        self._thread.join()
        self._syncer.stop()
        self._reserve.close()
        if self.trouble is not None:
            raise OutputError(_failure_message(self._folder, self.trouble, self.lost))

    # The thread that writes

    def _write(self) -> None:
        rescued = False
        while True:
            try:
                self._run()
            except OSError as error:
                if not rescued and self._rescue(error):
                    rescued = True
                    continue
                self._fail(error)
                self._drop()
            except Exception as error:  # noqa: BLE001 (if this thread died unseen, all that follows were lost)
                self._fail(error)
                self._drop()
            return

    def _run(self) -> None:
        """Writes until the journal is closed and everything is synced and sealed."""
        while True:
            self._wake.clear()  # First: what comes in from now on must wake this thread again.
            closing = self._closing
            self._syncer.check()
            results = [self._queue.popleft() for _ in range(len(self._queue))]
            if results:
                self._bytes_taken += sum(map(_size, results))
                self._append(results)
            elif closing:
                self._syncer.seal(self._segment)
                self._syncer.wait_sealed()
                return
            full = self._segment.size >= _SEAL_BYTES or self._segment.crowded
            if full and self.trouble is None:
                self._syncer.seal(self._segment)
                self._segment = self._new_segment()
            if not closing:
                self._wake.wait()
                time.sleep(_GATHER_SECONDS)

    def _append(self, results: list[Result]) -> None:
        self._syncer.append(self._segment, results, self._make_room)
        for error in self._segment.take_refused():
            self._fail(error)
            self.lost += 1

    def _make_room(self, error: OSError) -> bool:
        """Frees the reserve when the disk is full; False when that is not the trouble, or it is gone."""
        if error.errno not in FULL or not self._reserve.free():
            return False
        self._fail(error)
        return True

    def _rescue(self, error: OSError) -> bool:
        """Writes all that is not known to be on the disk to a new segment; False when there can be none.

        After a failed sync the kernel takes the pages for clean and the next sync for a success, so the
        old segment is never synced again.
        """
        self._fail(error)
        self._make_room(error)
        unsealed, failure = self._syncer.take_back()
        sound = failure is None and error.errno in FULL  # What was written can still be synced.
        left: list[Result] = []
        for old in filter(None, dict.fromkeys((unsealed, self._segment))):
            if sound:
                with contextlib.suppress(OSError):
                    old.forget(old.sync())
            left += old.unsynced
            self._close(old)
        try:
            self._segment = self._new_segment()
            self._syncer.append(self._segment, left, self._make_room)
        except OSError:
            self._syncer.take_back()
            self._segment.take_over(left)
            return False
        return True

    def _drop(self) -> None:
        """Counts results that come in until the journal is closed, as nothing can be written any more."""
        self._syncer.take_back()
        self.lost += len(self._segment.unwritten)
        self._close(self._segment)
        while not (self._closing and not self._queue):
            self._wake.clear()
            while self._queue:
                self._bytes_taken += _size(self._queue.popleft())
                self.lost += 1
            if not self._closing:
                self._wake.wait()

    def _close(self, segment: OpenSegment) -> None:
        segment.close()
        self._put_back = segment.put_back or self._put_back

    def _fail(self, error: Exception) -> None:
        if self.trouble is None:
            self.trouble = error
            self._alarm()


def _failure_message(folder: Path, trouble: Exception, lost: int) -> str:
    what = f"{folder}: {getattr(trouble, 'strerror', None) or repr(trouble)}, so nothing more was sent. "
    if lost:
        what += f"{lost:,} answers could not be written and will be asked for again. "
    else:
        what += "All that was answered is written. "
    action = "Make room" if getattr(trouble, "errno", 0) in FULL else "See to the disk"
    return f"{what}{action}, and run the same command again."


def _size(result: Result) -> int:
    return 400 + len(result.content or "") + len(result.response or "")
