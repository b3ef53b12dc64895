"""The run folder, held against every other process. Touches: files."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from pathlib import Path

from batcher.errors import JobError, OutputError

__all__ = ["FULL", "Lock"]

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What a full disk answers."""


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
            what = f"{folder}: the run folder cannot be made or written: {error.strerror}"
            if error.errno in FULL:
                raise OutputError(f"{what}. Make room, and run the same command again.") from None
            raise JobError(f"{what}.") from None
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
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        with contextlib.suppress(OSError):  # Only for people; a disk may be full.
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"pid {os.getpid()}, since {started}\n".encode(), 0)

    def release(self) -> None:
        """Lets the next process in; so does the end of this one, however it ends."""
        os.close(self._file)
