"""Which files an input is: globs and folders to a list, each file pinned. Touches: files."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import msgspec

from batcher.errors import JobError

__all__ = ["SUFFIXES", "InputFile", "Pin", "digest", "expand", "grown"]

SUFFIXES = {
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".jsonl.zst": "jsonl",
    ".parquet": "parquet",
    ".csv": "csv",
}
_BLOCK = 4 << 20


class Pin(msgspec.Struct, frozen=True, kw_only=True):
    """What a file is known by; what must be equal for its rows to be the same rows.

    Attributes:
        path: Absolute; of a copy in the run folder its name there.
        size: Bytes.
        mtime_ns: Time of the last change of the content; 0 for a copy, where it says nothing.
        ctime_ns: Time of the last change of anything, which no program can set back; 0 likewise.
        digest: Hash of the content; "" when it was not worth reading all of it.
    """

    path: str
    size: int
    mtime_ns: int = 0
    ctime_ns: int = 0
    digest: str = ""


@dataclass(frozen=True)
class InputFile:
    """One input file, pinned.

    Attributes:
        path: As it is opened.
        name: As it is shown to people.
        kind: jsonl, parquet or csv.
        pin: What it is known by later.
    """

    path: str
    name: str
    kind: str
    pin: Pin

    @property
    def folder(self) -> str:
        """Where relative paths in it begin; "" for a copy: where its reader is."""
        return os.path.dirname(self.path) if os.path.isabs(self.pin.path) else ""

    @classmethod
    def of_pin(cls, pin: Pin, folder: Path) -> Self:
        """The file that was pinned; `folder` holds the copies of stdin and of iterables."""
        path = str(folder / pin.path)  # An absolute path stays as it is.
        name = pin.path if os.path.isabs(pin.path) else pin.path.partition("-")[0]
        return cls(path, name, _kind(path) or "jsonl", pin)

    def with_digest(self, go_on: Callable[[], None]) -> Self:
        """The same with the hash of its content, which is read for it."""
        if self.pin.digest:
            return self
        found = digest(self.path, self.pin.size, go_on)
        return replace(self, pin=msgspec.structs.replace(self.pin, digest=found))

    def changed(self) -> bool:
        """Whether it is gone or was written since it was pinned."""
        try:
            stat = os.stat(self.path)
        except OSError:
            return True
        mtime = self.pin.mtime_ns and stat.st_mtime_ns
        return (stat.st_size, mtime) != (self.pin.size, self.pin.mtime_ns)


def expand(paths: Sequence[str], output: str = "") -> list[InputFile]:
    """Files named by the arguments: files, globs in sorted order, folders by their known suffixes.

    Args:
        paths: The arguments.
        output: What will be written; it is no input where a folder or a glob holds it.

    Raises:
        JobError: Something named is not there, cannot be read, or is of no known format.
    """
    found: list[str] = []
    written = os.path.realpath(output)
    for path in paths:
        if os.path.isdir(path):
            inside = sorted(
                str(entry)
                for entry in Path(path).rglob("*")
                if entry.is_file() and _kind(entry.name) and not _hidden(entry, path)
            )
            inside = [entry for entry in inside if os.path.realpath(entry) != written]
            if not inside:
                raise JobError(f"{path}: the folder holds no {', '.join(SUFFIXES)} file.")
            found += inside
        elif os.path.exists(path):
            found.append(path)
        elif glob.has_magic(path):
            matched = sorted(
                match
                for match in glob.glob(path, recursive=True)
                if os.path.isfile(match) and os.path.realpath(match) != written
            )
            if not matched:
                raise JobError(f"{path}: no file matches.")
            found += matched
        else:
            raise JobError(f"{path or repr(path)}: there is no such file.")
    return [_pinned(path) for path in found]


def _hidden(entry: Path, root: str) -> bool:
    """Whether a file is no input: hidden, or inside the run folder of an earlier output."""
    parts = entry.relative_to(root).parts
    return any(part.startswith((".", "_")) or part.endswith(".run") for part in parts)


def _pinned(path: str) -> InputFile:
    kind = _kind(path)
    if kind is None:
        raise JobError(
            f"{path}: its format is not known by its name; rename it to end in one of "
            f"{', '.join(SUFFIXES)}."
        )
    try:
        with open(path, "rb"):
            stat = os.stat(path)
    except OSError as error:
        raise JobError(f"{path}: it cannot be read: {error.strerror}.") from None
    if kind == "parquet":
        from batcher.read import parquet  # Takes its time to import.

        parquet.check(path)
    pin = Pin(
        path=os.path.abspath(path),
        size=stat.st_size,
        mtime_ns=stat.st_mtime_ns,
        ctime_ns=stat.st_ctime_ns,
    )
    return InputFile(path, path, kind, pin)


def _kind(path: str) -> str | None:
    return next((kind for suffix, kind in SUFFIXES.items() if path.endswith(suffix)), None)


def digest(path: str, size: int, go_on: Callable[[], None] = lambda: None) -> str:
    """Hash of the first `size` bytes; `go_on` is called now and then and may raise."""
    sum_ = hashlib.sha256()
    left = size
    with open(path, "rb", buffering=0) as file:
        while left > 0 and (block := file.read(min(left, _BLOCK))):
            sum_.update(block)
            left -= len(block)
            go_on()
    return sum_.hexdigest()[:32] if left == 0 else ""


def grown(
    old: Sequence[Pin], new: Sequence[InputFile], go_on: Callable[[], None] = lambda: None
) -> bool | None:
    """Whether rows were added behind those of the old pins; None when these moved or changed.

    A file whose times and place are the same is not read. One that was copied, moved or touched is
    known by the hash of its content; a last JSONL file that became longer, by that of its beginning.
    """
    if len(new) < len(old):
        return None
    for number, (before, file) in enumerate(zip(old, new, strict=False)):
        after, last = file.pin, number == len(old) - 1
        if msgspec.structs.replace(before, digest="") == msgspec.structs.replace(after, digest=""):
            if before.digest == after.digest or not after.digest:
                continue
            return None
        if not before.digest or after.size < before.size:
            return None
        longer = after.size > before.size
        if longer and not (last and len(new) == len(old) and _whole_lines(file, before.size)):
            return None
        if (
            after.digest if after.digest and not longer else digest(file.path, before.size, go_on)
        ) != before.digest:
            return None
        if longer:
            return True
    return len(new) > len(old)


def _whole_lines(file: InputFile, size: int) -> bool:
    """Whether a plain JSONL file has a line end just before this offset."""
    if not file.path.endswith(".jsonl"):
        return False
    with open(file.path, "rb") as opened:
        opened.seek(size - 1)
        return size > 0 and opened.read(1) == b"\n"
