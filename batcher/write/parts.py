"""An output that is a folder of Parquet files, `labels/part-00000.parquet` and so on. Touches: files.

It is written whole as `.labels.tmp-PID` and then renamed. Not every file system can exchange two folders, so the
earlier one is first renamed to `.labels.earlier`. A kill leaves one of these states, and the next start ends it:

| `labels` | `.labels.earlier` | killed | what `settle` does |
|---|---|---|---|
| old | | before the renames | |
| | old | between the two renames | moves it back |
| new | old | after the renames | removes it |

So at each moment one of the two is a whole folder.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator
from pathlib import Path

from batcher.errors import OutputError
from batcher.write import atomic

__all__ = ["file_name", "files", "in_the_way", "remove", "replacing", "settle"]

_NAME = re.compile(r"part-\d{5,}\.parquet")


def file_name(number: int) -> str:
    """The name of a part.

    >>> file_name(7)
    'part-00007.parquet'
    """
    return f"part-{number:05}.parquet"


def files(output: Path) -> list[Path]:
    """The parts of an output in order; the output itself if it is a file; none if there is no output."""
    if output.is_dir():
        inside = (path for path in output.iterdir() if _NAME.fullmatch(path.name))
        return sorted(path for path in inside if path.is_file())
    return [output] if output.exists() else []


def in_the_way(folder: Path) -> str:
    """Why parts cannot replace what is at this path, as a sentence; "" when they can."""
    if folder.name in ("", ".."):
        return f"{folder}: it has no name of its own; name a folder in it."
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        return f"{folder}: it is a file or a link, and no folder; choose another name."
    try:
        others = sorted({*folder.iterdir()} - {*files(folder)}) if folder.exists() else []
    except OSError as error:
        return f"{folder}: it cannot be read: {error.strerror}."
    if others:
        return f"{others[0]}: it is no part of an output; move it out of {folder}, or choose another folder."
    return ""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A folder to write parts in, which replaces `path` when the block ends and is then on the disk.

    Raises:
        OutputError: The disk refuses, or something else than parts is at `path`.
    """
    with atomic.temporary(path, remove) as new:
        new.mkdir(mode=0o700 if path.exists() else 0o777)
        yield new
        if before := files(path):
            for part in files(new):
                atomic.copy_mode(before[0], part)
            atomic.copy_mode(path, new)
        atomic.sync_folder(new)
        _put(new, path)


def _put(new: Path, folder: Path) -> None:
    """Moves a folder of parts to its place; removes the earlier one afterwards."""
    if reason := in_the_way(folder) or in_the_way(_earlier(folder)):
        raise OutputError(reason)
    try:
        while True:
            try:
                atomic.move(new, folder)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            else:
                break
            settle(folder)
            with contextlib.suppress(FileNotFoundError):  # An export beside a run does the same.
                atomic.move(folder, _earlier(folder))
        atomic.sync_folder(folder.parent)
    finally:
        with contextlib.suppress(OSError):
            settle(folder)


def settle(folder: Path) -> None:
    """Ends what a kill interrupted."""
    earlier = _earlier(folder)
    if not earlier.is_dir() or in_the_way(earlier):
        return
    if not files(folder):
        atomic.move(earlier, folder)
        atomic.sync_folder(folder.parent)
        return
    with contextlib.suppress(OSError):
        # Renamed first: half of it must not be taken for something to move back.
        half = folder.with_name(f".{folder.name}.tmp-earlier")
        remove(half)
        atomic.move(earlier, half)
        remove(half)


def remove(path: Path) -> None:
    """Removes a file, or a folder that holds nothing but parts; leaves any other folder."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    elif not in_the_way(path):
        for part in files(path):
            part.unlink(missing_ok=True)
        path.rmdir()


def _earlier(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.earlier")
