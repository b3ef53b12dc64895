"""An output that is a folder of Parquet files, `labels/part-00000.parquet` and on. Touches: files.

It is made whole as `.labels.tmp-PID` and then takes its place. Not every file system can exchange two
folders, so an earlier one first steps aside. A kill leaves what the next start can tell and settle:

| `labels` | `.labels.earlier` | killed | what is done |
|---|---|---|---|
| old | | before | |
| | old | between the two renames | moved back |
| new | old | after them | removed |

So at each moment one of the two is a whole folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from pathlib import Path

from batcher.errors import OutputError
from batcher.write.segment import sync_folder

__all__ = ["files", "in_the_way", "name_of", "put", "remove", "settle"]

_NAME = re.compile(r"part-\d{5,}\.parquet")


def name_of(number: int) -> str:
    """A part's file name."""
    return f"part-{number:05}.parquet"


def files(output: Path) -> list[Path]:
    """The file that an output is, or its parts in order; none where there is no output."""
    if output.is_dir():
        inside = (path for path in output.iterdir() if _NAME.fullmatch(path.name))
        return sorted(path for path in inside if path.is_file())
    return [output] if output.exists() else []


def in_the_way(folder: Path) -> str:
    """Why parts cannot take the place of what is there, as a sentence; "" when they can."""
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


def put(new: Path, folder: Path) -> None:
    """Moves a whole folder of parts to its place; the old one goes when the new one is there.

    Raises:
        OutputError: Something else than parts is there.
    """
    if told := in_the_way(folder) or in_the_way(_aside(folder)):
        raise OutputError(told)
    try:
        while True:
            try:
                os.rename(new, folder)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            else:
                break
            settle(folder)
            with contextlib.suppress(FileNotFoundError):  # An export beside a run does the same.
                os.rename(folder, _aside(folder))
        sync_folder(folder.parent)
    finally:
        with contextlib.suppress(OSError):
            settle(folder)


def settle(folder: Path) -> None:
    """Ends what a kill left half done."""
    aside = _aside(folder)
    if not aside.is_dir() or in_the_way(aside):
        return
    if not files(folder):
        os.rename(aside, folder)
        sync_folder(folder.parent)
        return
    with contextlib.suppress(OSError):
        # Under another name at once: half of it must not be taken for something to move back.
        half = folder.with_name(f".{folder.name}.tmp-earlier")
        remove(half)
        os.rename(aside, half)
        remove(half)


def remove(path: Path) -> None:
    """Removes a file, or a folder of nothing but parts; any other folder stays."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    elif not in_the_way(path):
        for part in files(path):
            part.unlink(missing_ok=True)
        path.rmdir()


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.earlier")
