"""Syncs and seals segments of the journal in a thread of its own. Touches: files.

A disk that is slow to sync then delays no write. The writer and this thread share the lists of an `OpenSegment`
that say what is not synced; both touch them under one lock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from batcher.records import Result
from batcher.write.segment import OpenSegment

__all__ = ["Syncer"]

_SYNC_SECONDS = 0.2


class Syncer:
    """Syncs what was appended at most every 200 ms, and seals full segments.

    After a failed sync it does nothing until the writer takes its segments back.

    Args:
        failed: Called, from the thread, when a sync failed.

    Attributes:
        put_back: Where the lines of a segment are whose file was removed.
    """

    def __init__(self, failed: Callable[[], None]) -> None:
        self._on_failure = failed
        self._state = threading.Condition()
        self._open: OpenSegment | None = None  # It may have lines to sync.
        self._full: OpenSegment | None = None  # To be sealed.
        self._busy = False  # A segment that is being synced must not be closed.
        self._failure: OSError | None = None
        self._stopped = False
        self.put_back: Path | None = None
        self._thread = threading.Thread(target=self._run, name="sync", daemon=True)
        self._thread.start()

    def append(
        self,
        segment: OpenSegment,
        results: Sequence[Result],
        make_room: Callable[[OSError], bool],
    ) -> None:
        """Appends to a segment, which is synced soon; see `OpenSegment.append`."""
        with self._state:
            idle = not segment.unsynced
            self._open = segment
            segment.append(results, make_room)
            if idle:
                self._state.notify_all()

    def seal(self, segment: OpenSegment) -> None:
        """Takes a full segment to be synced and sealed, once the one before it is.

        Raises:
            OSError: A sync failed.
        """
        self.wait_sealed()
        with self._state:
            self._open, self._full = None, segment
            self._state.notify_all()

    def wait_sealed(self) -> None:
        """Waits until the segment that was taken is sealed.

        Raises:
            OSError: A sync failed.
        """
        with self._state:
            self._state.wait_for(lambda: self._full is None or self._failure is not None)
        self.check()

    def check(self) -> None:
        """Raises the error of a failed sync, if there is one."""
        if self._failure is not None:
            raise self._failure

    def take_back(self) -> tuple[OpenSegment | None, OSError | None]:
        """(the full segment that is not sealed, the error of a failed sync); forgets both, and the open segment."""
        with self._state:
            self._state.wait_for(lambda: not self._busy)
            found = self._full, self._failure
            self._open = self._full = self._failure = None
        return found

    def stop(self) -> None:
        """Ends the thread when all is synced, or nothing more can be."""
        with self._state:
            self._stopped = True
            self._state.notify_all()
        self._thread.join()

    def _run(self) -> None:
        last = float("-inf")
        while True:
            with self._state:
                self._state.wait_for(lambda: self._stopped or self._next() is not None)
                if self._next() is None:
                    return
                if self._full is None:  # More may be appended in the meantime.
                    rest = last + _SYNC_SECONDS - time.monotonic()
                    self._state.wait_for(lambda: self._stopped or self._full is not None, rest)
                segment, sealing = self._next(), self._full is not None
                if segment is None:
                    continue
                self._busy = True
            synced, failure = 0, None
            try:
                synced = segment.sync()
                if sealing:
                    segment.seal()
                    self.put_back = segment.put_back or self.put_back
            except OSError as error:
                failure = error
            last = time.monotonic()
            with self._state:
                self._busy = False
                self._failure = failure
                if failure is None:
                    segment.forget(synced)
                    if sealing:
                        self._full = None
                self._state.notify_all()
            if failure is not None:
                self._on_failure()

    def _next(self) -> OpenSegment | None:
        """What there is to sync, if anything; nothing after a failure."""
        if self._failure is not None:
            return None
        return self._full or (self._open if self._open and self._open.unsynced else None)
