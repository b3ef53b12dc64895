"""Replaces files so that a crash leaves the old one or the new one, whole. Touches: files.

The only module that renames. It serves two kinds of files:

- a small file of a run folder: `replace`;
- an output anywhere: `replacing`, which writes beside its place, syncs, and renames. `write.parts` does
  the same with a folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

from batcher.errors import OutputError
from batcher.write import folder as folders

__all__ = [
    "FULL", "copy_mode", "move", "move_into", "replace", "replacing", "sync_folder", "synced_file", "temporary",
    "temporary_path",
]  # fmt: skip

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Error numbers of a full disk."""


def replace(folder: Path, name: str, content: bytes, *, sync: bool) -> None:
    """Replaces a file of a run folder.

    Args:
        folder: The run folder.
        name: The file's name.
        content: What it will hold.
        sync: Whether the new file must outlive a power cut when this returns.

    Raises:
        OSError: The disk refuses; the old file stays.
    """
    with folders.descriptor(folder) as descriptor:
        with open(folders.create(f"{name}.tmp", descriptor), "wb") as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(f"{name}.tmp", name, src_dir_fd=descriptor, dst_dir_fd=descriptor)
        if sync:
            os.fsync(descriptor)


def move(old: Path, new: Path) -> None:
    """Renames a file, or a folder to a path where there is none or an empty one."""
    os.rename(old, new)


def move_into(folder: Path, files: Iterable[Path]) -> None:
    """Moves files into a folder, one after the other; all of them outlive a power cut when this returns."""
    sources: dict[Path, None] = {}
    for path in files:
        move(path, folder / path.name)
        sources[path.parent] = None
    for touched in (folder, *sources):
        sync_folder(touched)


def sync_folder(folder: Path) -> None:
    """Makes new and renamed names in a folder outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path, *, of_run: bool = True) -> Iterator[IO[bytes]]:
    """A file to write, which replaces `path` when the block ends and is then on the disk.

    Args:
        path: The file; it stays as it is when the block raises.
        of_run: Whether it is the output of a run, so that it can be written again from the run folder.

    Raises:
        OutputError: The disk refuses.
    """
    with temporary(path, _unlink, of_run=of_run) as new:
        with synced_file(new, private=path.exists()) as file:
            yield file
        copy_mode(path, new)
        move(new, path)
        sync_folder(path.parent)


@contextlib.contextmanager
def temporary(
    path: Path, remove: Callable[[Path], None], *, of_run: bool = True
) -> Iterator[Path]:
    """The path at which to write what will replace `path`; nothing is left there after a failure.

    Args:
        path: The output.
        remove: Removes what is at the temporary path, if anything.
        of_run: As in `replacing`.

    Raises:
        OutputError: In place of an `OSError` of the block.
    """
    new = temporary_path(path)
    try:
        remove(new)  # In containers another process often had the same number.
        yield new
    except BaseException as error:
        with contextlib.suppress(OSError):
            remove(new)
        if isinstance(error, OSError):
            action = "make room" if error.errno in FULL else "see to it"
            safe = f" All answers are in {path}.run; {action}, and run the same command again."
            raise OutputError(
                f"{path}: it cannot be written: {error.strerror or error}.{safe if of_run else ''}"
            ) from None
        raise


def temporary_path(path: Path) -> Path:
    """Where this process writes what will replace a file or a folder."""
    return path.with_name(f".{path.name}.tmp-{os.getpid()}")


@contextlib.contextmanager
def synced_file(path: Path, *, private: bool = False) -> Iterator[IO[bytes]]:
    """A new file that is on the disk when the block ends; `private` makes it readable by its owner alone."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW, 0o600 if private else 0o666)

    with open(path, "xb", buffering=1 << 20, opener=opener) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def copy_mode(old: Path, new: Path) -> None:
    """Gives a replacement the mode of what it replaces, and its owner and group where the system allows it."""
    try:
        known = old.stat()
    except FileNotFoundError:
        return
    mode = known.st_mode & 0o777
    with contextlib.suppress(PermissionError):  # Only root gives files away.
        os.chown(new, known.st_uid, -1)
    try:
        os.chown(new, -1, known.st_gid)
    except PermissionError:
        mode &= ~0o070  # Rights of one group are not for another.
    with contextlib.suppress(PermissionError):  # Some file systems have one mode for all.
        os.chmod(new, mode)


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)
