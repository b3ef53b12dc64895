"""The run folder as a place: who may have written into it, and how its files are opened. Touches: files.

A path may lead somewhere else from one moment to the next, a handle may not. What a process writes while it
holds a run folder goes by the handle of the very folder that it locked, so that nothing of it lands in a
folder that took its place. No link is followed, and nothing is opened that could hold up who opens it.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

from batcher.errors import JobError

__all__ = ["FILE", "FOLDER", "MADE", "anew", "check", "handle_of", "hold", "let_go", "new", "opened", "read", "replace"]  # fmt: skip

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""How a folder is opened."""
FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""How any file in it is: a named pipe does not hold up who opens it so."""

MADE = re.compile(
    r"LOCK|cluster\.token|reserve(-\d{6,})?|journal-\d{6,}\.jsonl|journal-(\d{6,}|moved)\.idx(\.tmp)?"
    r"|(run|budget|status|written)\.json(\.tmp)?|lines\.idx(\.tmp)?"
    r"|(stdin|rows)-[0-9a-f]{16}\.(jsonl|parquet)|(stdin|rows)\.copying|earlier|forgotten"
)
"""Names of all that batcher makes in a run folder, but the copies of outputs, which are a person's to remove."""

_held: dict[str, int] = {}  # By path, the handle of each folder that this process has locked.
_holding = threading.Lock()  # A handle must not be closed, and its number taken, under its user.


def hold(folder: Path, handle: int) -> None:
    """From now on this process uses the folder by this handle.

    Raises:
        BlockingIOError: It holds one of this path already.
    """
    with _holding:
        if str(folder) in _held:
            raise BlockingIOError
        _held[str(folder)] = handle


def let_go(folder: Path) -> None:
    """Ends `hold`."""
    with _holding:
        _held.pop(str(folder), None)


def anew(folder: Path) -> Path:
    """A new folder for one that was removed while it was held; used by all that is written from now on.

    Returns:
        Where it is: at the same path, or beside it where there is another one by now.
    """
    made, others = folder, 0
    while True:
        try:
            made.mkdir(mode=0o700)
            break
        except FileExistsError:
            others += 1
            made = folder.with_name(f"{folder.name}.kept-{others}")
    with _holding:
        if (held := _held.get(str(folder))) is not None:
            handle = os.open(made, FOLDER)
            os.dup2(handle, held, inheritable=False)
            os.close(handle)
    return made


def handle_of(folder: Path) -> int:
    """A handle of the folder, to be closed by the caller; of the one that is held where one is.

    Raises:
        OSError: There is no folder, or a link in its place.
    """
    with _holding:
        if (held := _held.get(str(folder))) is not None:
            return os.dup(held)
    return os.open(folder, FOLDER)


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[int]:
    """The same, closed in the end."""
    handle = handle_of(folder)
    try:
        yield handle
    finally:
        os.close(handle)


def new(name: str, handle: int, flags: int = os.O_WRONLY) -> int:
    """A new file, for its owner alone; whatever had its name goes first."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=handle)
    return os.open(name, FILE | flags | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=handle)


def replace(folder: Path, name: str, content: bytes, *, sync: bool) -> None:
    """Replaces a file whole; `sync` waits until that outlives a power cut."""
    with opened(folder) as handle:
        with open(new(f"{name}.tmp", handle), "wb") as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(f"{name}.tmp", name, src_dir_fd=handle, dst_dir_fd=handle)
        if sync:
            os.fsync(handle)


def read(folder: Path, name: str) -> bytes:
    """What a file holds.

    Raises:
        OSError: There is none, or what is there is no plain file.
    """
    with opened(folder) as handle:
        found = os.open(name, os.O_RDONLY | FILE, dir_fd=handle)
    with open(found, "rb") as file:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise OSError(0, "it is no plain file", name)
        return file.read()


def check(folder: Path) -> None:
    """Whether a run folder holds nothing but plain files and folders, which can be opened without harm.

    Raises:
        JobError: Something else is in it: batcher makes none, and reading it could wait for ever or lead
            somewhere else.
    """
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(root, name)
            with contextlib.suppress(
                FileNotFoundError
            ):  # A run that is at work replaces its files.
                kind = os.lstat(path).st_mode
                if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
                    what = "a link" if stat.S_ISLNK(kind) else "no plain file"
                    raise JobError(
                        f"{path}: it is {what}, and batcher makes none there. Remove it."
                    )
