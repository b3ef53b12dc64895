"""Locks a run folder against every other process. Touches: files."""

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
from batcher.write.atomic import FULL
from batcher.write.names import LOCK

__all__ = ["Lock", "holder"]

_TRIES = 100
_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class Lock:
    """The run folder, locked until `release` or the end of the process.

    Two things are locked: the folder itself, where the file system can do that, so that removing a file lets no
    second process in; and always the file LOCK in it.

    Args:
        folder: Is made if it does not exist. Otherwise it must be the user's own, and closed to other users:
            its content decides which answers count and which files are written.

    Attributes:
        folder: Its absolute path.

    Raises:
        JobError: Another process holds it, or it cannot be trusted; nothing was changed.
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
            folders.hold(folder, self._descriptor)
        except BlockingIOError:
            os.close(self._file)
            os.close(self._descriptor)
            raise JobError(
                f"{folder}: a run of this process is at work on this output; wait for it or stop it."
            ) from None

    def _take(self) -> bool:
        """Opens and locks the folder; False when it was removed in the meantime."""
        made = _make(self.folder)
        with contextlib.ExitStack() as stack:
            self._descriptor = os.open(self.folder, folders.FOLDER)
            stack.callback(os.close, self._descriptor)
            if not made:
                _check_trusted(self.folder, self._descriptor)
                folders.check(self.folder)
            if not _lock(self._descriptor, fcntl.LOCK_EX):
                raise _held_error(self.folder, self._descriptor)
            self._file = _open_lock_file(self.folder, self._descriptor)
            stack.callback(os.close, self._file)
            if self.lost() is not None:
                return False
            stack.pop_all()
        return True

    def lost(self) -> str | None:
        """What happened to the folder since it was locked; None while it is where it was.

        Makes the file LOCK again if somebody removed it: the folder itself is still locked.
        """
        try:
            found = os.lstat(self.folder)
        except (FileNotFoundError, NotADirectoryError):
            found = None
        except OSError:
            return None  # A failing disk is reported when something is written.
        if found is not None and os.path.samestat(found, os.fstat(self._descriptor)):
            return self._lock_file_again()
        if (where := self.where) is not None:
            return f"it was moved to {where}"
        return "it was removed" if found is None else "another folder has taken its place"

    def _lock_file_again(self) -> str | None:
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(LOCK, dir_fd=self._descriptor, follow_symlinks=False)
            if os.path.samestat(found, os.fstat(self._file)):
                return None
        try:
            old, self._file = self._file, _open_lock_file(self.folder, self._descriptor)
        except (OSError, JobError):
            return "its file LOCK was replaced"
        os.close(old)
        return None

    @property
    def where(self) -> Path | None:
        """Where the folder is now; None when it is gone, or the system (any but Linux) does not tell."""
        try:
            path = Path(os.readlink(f"/proc/self/fd/{self._descriptor}"))
            same = os.path.samestat(os.stat(path), os.fstat(self._descriptor))
        except OSError:
            return None
        return path if same else None

    def release(self) -> None:
        """Lets the next process in."""
        folders.release(self.folder)
        os.close(self._file)
        os.close(self._descriptor)


def holder(folder: Path) -> str | None:
    """Which process holds a run folder now, as its LOCK says; None when none does."""
    try:
        descriptor = os.open(folder, folders.FOLDER)
    except OSError:
        return None
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, descriptor)
        files = [descriptor]
        with contextlib.suppress(OSError):
            files.append(os.open(LOCK, os.O_RDONLY | folders.FILE, dir_fd=descriptor))
            stack.callback(os.close, files[-1])
        held = [file for file in files if not _lock(file, fcntl.LOCK_SH)]
        return _holder(descriptor) if held else None


def _make(folder: Path) -> bool:
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


def _check_trusted(folder: Path, descriptor: int) -> None:
    """Refuses a folder into which another user can have written.

    Raises:
        JobError: With the command that closes the folder.
    """
    found = os.fstat(descriptor)
    if found.st_uid == os.geteuid() and not found.st_mode & _OTHERS:
        return
    # Some file systems show one owner or one mode for everything: compare with a folder just made.
    probe = f".owner-{os.getpid()}"
    os.mkdir(probe, 0o700, dir_fd=descriptor)
    own = os.stat(probe, dir_fd=descriptor, follow_symlinks=False)
    os.rmdir(probe, dir_fd=descriptor)
    path = shlex.quote(str(folder))
    if found.st_uid not in (os.geteuid(), own.st_uid):
        raise JobError(
            f"{folder}: this run folder belongs to another user ({_user_name(found.st_uid)}, and you are "
            f"{_user_name(os.geteuid())}), so what is in it cannot be trusted. Run batcher as that user, or take the "
            f"folder over if you know what is in it: sudo chown -R {os.geteuid()} {path}"
        )
    if found.st_mode & _OTHERS & ~own.st_mode:
        raise JobError(
            f"{folder}: other users can write into this run folder (its mode is {found.st_mode & 0o777:o}), so what is "
            f"in it cannot be trusted. Close it if you know what is in it: chmod 700 {path}"
        )


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _open_lock_file(folder: Path, descriptor: int) -> int:
    """Opens and locks LOCK, the only thing that earlier versions lock."""
    file = os.open(LOCK, os.O_RDWR | os.O_CREAT | folders.FILE, 0o600, dir_fd=descriptor)
    try:
        if not _lock(file, fcntl.LOCK_EX):
            raise _held_error(folder, descriptor)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        if (
            os.fstat(file).st_nlink == 1
        ):  # Else it is also a file somewhere else: do not write to it.
            with contextlib.suppress(OSError):  # Only information for people; a disk may be full.
                os.ftruncate(file, 0)
                os.pwrite(file, f"pid {os.getpid()}, since {started}\n".encode(), 0)
    except BaseException:
        os.close(file)
        raise
    return file


def _lock(file: int, how: int) -> bool:
    """Locks a file or a folder; False when another process holds it.

    Where the file system cannot lock folders (NFS), the folder is not locked.
    """
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        if how == fcntl.LOCK_EX and not stat.S_ISDIR(os.fstat(file).st_mode):
            raise
    return True


def _held_error(folder: Path, descriptor: int) -> JobError:
    return JobError(
        f"{folder}: another batcher is at work on this output ({_holder(descriptor)}); wait for it or stop it."
    )


def _holder(descriptor: int) -> str:
    """Which process holds a folder, as its LOCK says."""
    with contextlib.suppress(OSError):
        file = os.open(LOCK, os.O_RDONLY | folders.FILE, dir_fd=descriptor)
        with open(file, "rb") as lock:
            return lock.read(200).decode(errors="replace").strip() or "unknown"
    return "unknown"
