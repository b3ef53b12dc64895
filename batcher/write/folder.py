"""The run folder as a place: who else can have written into it, and how to open its files. Touches: files.

A path may lead somewhere else from one moment to the next; a file descriptor does not. The process that holds a run
folder opens its files relative to the descriptor of the folder that it locked, so nothing it writes lands in
a folder that took its place. It follows no symbolic link, and opens nothing that can block, such as a named pipe.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

from batcher.errors import JobError

__all__ = ["FILE", "FOLDER", "check", "create", "descriptor", "hold", "open_descriptor", "read", "recreate", "release"]  # fmt: skip

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""Flags to open the folder with."""
FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Flags to open any file in it with; O_NONBLOCK lets a named pipe fail instead of block."""

_held: dict[str, int] = {}  # Path → descriptor of each folder that this process has locked.
_lock = threading.Lock()  # Or one thread could close a descriptor that another is about to use.


def hold(folder: Path, descriptor: int) -> None:
    """Makes this process use the folder by this descriptor until `release`.

    Raises:
        BlockingIOError: The process already holds a folder of this path.
    """
    with _lock:
        if str(folder) in _held:
            raise BlockingIOError
        _held[str(folder)] = descriptor


def release(folder: Path) -> None:
    """Ends `hold`."""
    with _lock:
        _held.pop(str(folder), None)


def recreate(folder: Path) -> Path:
    """Makes a new folder for one that was removed while it was held; everything written later goes there.

    Returns:
        Its path: the old one, or `NAME.kept-1` and so on when another folder has the old path.
    """
    made, others = folder, 0
    while True:
        try:
            made.mkdir(mode=0o700)
            break
        except FileExistsError:
            others += 1
            made = folder.with_name(f"{folder.name}.kept-{others}")
    with _lock:
        if (held := _held.get(str(folder))) is not None:
            new = os.open(made, FOLDER)
            os.dup2(new, held, inheritable=False)
            os.close(new)
    return made


def open_descriptor(folder: Path) -> int:
    """A descriptor of the folder, which the caller closes; of the held one, if the process holds it.

    Raises:
        OSError: There is no folder, or it is a symbolic link.
    """
    with _lock:
        if (held := _held.get(str(folder))) is not None:
            return os.dup(held)
    return os.open(folder, FOLDER)


@contextlib.contextmanager
def descriptor(folder: Path) -> Iterator[int]:
    """`open_descriptor` as a context manager, which closes it."""
    opened = open_descriptor(folder)
    try:
        yield opened
    finally:
        os.close(opened)


def create(name: str, folder: int, flags: int = os.O_WRONLY) -> int:
    """Opens a new file that only its owner can read; removes whatever had the name before.

    Args:
        name: The file's name.
        folder: A descriptor of its folder.
        flags: More flags for `os.open`.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
    return os.open(name, FILE | flags | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)


def read(folder: Path, name: str) -> bytes:
    """The content of a file.

    Raises:
        OSError: The file does not exist, or is not a regular file.
    """
    with descriptor(folder) as opened:
        found = os.open(name, os.O_RDONLY | FILE, dir_fd=opened)
    with open(found, "rb") as file:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise OSError(0, "it is not a regular file", name)
        return file.read()


def check(folder: Path) -> None:
    """Refuses a run folder that holds anything but regular files and folders.

    Raises:
        JobError: Something else is in it: batcher does not make it, and reading it could block or leave the folder.
    """
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(root, name)
            with contextlib.suppress(FileNotFoundError):  # A run at work replaces its files.
                mode = os.lstat(path).st_mode
                if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                    what = "a link" if stat.S_ISLNK(mode) else "not a regular file"
                    raise JobError(
                        f"{path}: it is {what}, and batcher makes none there. Remove it."
                    )
