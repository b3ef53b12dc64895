"""The run folder, held against every other process. Touches: files."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pwd
import shlex
import stat
import time
from pathlib import Path

from batcher.errors import JobError, OutputError
from batcher.write import folder as folders
from batcher.write.names import LOCK

__all__ = ["FULL", "Lock", "holder"]

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What a full disk answers."""
_TRIES = 100
_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class Lock:
    """The run folder, held against every other process for the life of this one.

    The folder itself is locked where the file system can do that, so that no removed file lets a second
    process in; and the file LOCK in it always.

    Args:
        folder: Is made where it is not there. One that is must be the user's own, and closed to others:
            what stands in it decides which answers are believed and which files are written.

    Attributes:
        folder: Its path, absolute.

    Raises:
        JobError: Another process holds it, or it is not to be trusted; nothing was changed.
        OutputError: The disk is full.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder = Path(os.path.abspath(folder))
        try:
            for _ in range(_TRIES):
                if self._take():
                    break
            else:
                raise JobError(f"{folder}: it is removed as often as it is made.")
        except OSError as error:
            what = f"{folder}: the run folder cannot be made or written: {error.strerror}"
            if error.errno in FULL:
                raise OutputError(f"{what}. Make room, and run the same command again.") from None
            raise JobError(f"{what}.") from None
        try:
            folders.hold(folder, self._handle)
        except BlockingIOError:
            os.close(self._file)
            os.close(self._handle)
            raise JobError(
                f"{folder}: a run of this process is at work on this output; wait for it or stop it."
            ) from None

    def _take(self) -> bool:
        """Opens and locks the folder; False when it was removed in the meantime."""
        made = _made(self.folder)
        with contextlib.ExitStack() as stack:
            self._handle = os.open(self.folder, folders.FOLDER)
            stack.callback(os.close, self._handle)
            if not made:
                _check_trusted(self.folder, self._handle)
                folders.check(self.folder)
            if not _locked(self._handle, fcntl.LOCK_EX):
                raise _at_work(self.folder, self._handle)
            self._file = _lock_file(self.folder, self._handle)
            stack.callback(os.close, self._file)
            if self.lost() is not None:
                return False
            stack.pop_all()
        return True

    def lost(self) -> str | None:
        """What became of the folder since it was locked; None while it is where it was.

        A file LOCK that somebody removed is made again: the folder is still held.
        """
        try:
            there = os.lstat(self.folder)
        except (FileNotFoundError, NotADirectoryError):
            there = None
        except OSError:
            return None  # Whatever ails the disk, it is said when something is written.
        if there is not None and os.path.samestat(there, os.fstat(self._handle)):
            return self._relocked()
        if (where := self.where) is not None:
            return f"it was moved to {where}"
        return "it was removed" if there is None else "another folder has taken its place"

    def _relocked(self) -> str | None:
        with contextlib.suppress(FileNotFoundError):
            there = os.stat(LOCK, dir_fd=self._handle, follow_symlinks=False)
            if os.path.samestat(there, os.fstat(self._file)):
                return None
        try:
            old, self._file = self._file, _lock_file(self.folder, self._handle)
        except (OSError, JobError):
            return "its file LOCK was replaced"
        os.close(old)
        return None

    @property
    def where(self) -> Path | None:
        """Where the folder is now, as far as the system tells; None for one that is gone."""
        try:  # Linux alone names it.
            path = Path(os.readlink(f"/proc/self/fd/{self._handle}"))
            there = os.path.samestat(os.stat(path), os.fstat(self._handle))
        except OSError:
            return None
        return path if there else None

    def release(self) -> None:
        """Lets the next process in; so does the end of this one, however it ends."""
        folders.let_go(self.folder)
        os.close(self._file)
        os.close(self._handle)


def holder(folder: Path) -> str | None:
    """Who holds a run folder now; None when nobody does."""
    try:
        handle = os.open(folder, folders.FOLDER)
    except OSError:
        return None
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, handle)
        files = [handle]
        with contextlib.suppress(OSError):
            files.append(os.open(LOCK, os.O_RDONLY | folders.FILE, dir_fd=handle))
            stack.callback(os.close, files[-1])
        held = [file for file in files if not _locked(file, fcntl.LOCK_SH)]
        return _told(handle) if held else None


def _made(folder: Path) -> bool:
    """Makes a folder where nothing is; False where something is."""
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if folder.is_symlink():
            raise JobError(
                f"{folder}: it is a link, and a run folder must be none; name the --output in the folder that "
                "it leads to."
            ) from None
        return False
    return True


def _check_trusted(folder: Path, handle: int) -> None:
    """Whether only this user can have written into a folder.

    Raises:
        JobError: Others can; it says how to mend that.
    """
    of = os.fstat(handle)
    if of.st_uid == os.geteuid() and not of.st_mode & _OTHERS:
        return
    # Some file systems show one owner or one mode for everything, as they would for a new folder of ours.
    probe = f".owner-{os.getpid()}"
    os.mkdir(probe, 0o700, dir_fd=handle)
    ours = os.stat(probe, dir_fd=handle, follow_symlinks=False)
    os.rmdir(probe, dir_fd=handle)
    where = shlex.quote(str(folder))
    if of.st_uid not in (os.geteuid(), ours.st_uid):
        raise JobError(
            f"{folder}: this run folder belongs to another user ({_name_of(of.st_uid)}, and you are "
            f"{_name_of(os.geteuid())}), so what is in it cannot be trusted. Run batcher as that user, or take the "
            f"folder over if you know what is in it: sudo chown -R {os.geteuid()} {where}"
        )
    if of.st_mode & _OTHERS & ~ours.st_mode:
        raise JobError(
            f"{folder}: other users can write into this run folder (its mode is {of.st_mode & 0o777:o}), so what is in "
            f"it cannot be trusted. Close it if you know what is in it: chmod 700 {where}"
        )


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _lock_file(folder: Path, handle: int) -> int:
    """Opens and locks LOCK, by which earlier versions are kept out as well."""
    file = os.open(LOCK, os.O_RDWR | os.O_CREAT | folders.FILE, 0o600, dir_fd=handle)
    try:
        if not _locked(file, fcntl.LOCK_EX):
            raise _at_work(folder, handle)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        if os.fstat(file).st_nlink == 1:  # Else it is a file that stands somewhere else, too.
            with contextlib.suppress(OSError):  # Only for people; a disk may be full.
                os.ftruncate(file, 0)
                os.pwrite(file, f"pid {os.getpid()}, since {started}\n".encode(), 0)
    except BaseException:
        os.close(file)
        raise
    return file


def _locked(file: int, how: int) -> bool:
    """Locks a file or a folder; False when another process holds it.

    Where the system has no such locks (a folder on NFS) this one is passed over.
    """
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        if how == fcntl.LOCK_EX and not stat.S_ISDIR(os.fstat(file).st_mode):
            raise
    return True


def _at_work(folder: Path, handle: int) -> JobError:
    return JobError(
        f"{folder}: another batcher is at work on this output ({_told(handle)}); wait for it or stop it."
    )


def _told(handle: int) -> str:
    """Who holds a folder, as its LOCK says."""
    with contextlib.suppress(OSError):
        file = os.open(LOCK, os.O_RDONLY | folders.FILE, dir_fd=handle)
        with open(file, "rb") as lock:
            return lock.read(200).decode(errors="replace").strip() or "unknown"
    return "unknown"
