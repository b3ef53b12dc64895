"""Which files an input is: globs and folders to a list, each file pinned. Touches: files, the network."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import msgspec

from batcher.errors import JobError, RunStopped
from batcher.read import formats, object_store
from batcher.read.formats import Format
from batcher.read.text import is_packed
from batcher.records import clean

__all__ = ["InputFile", "Pin", "digest", "expand", "grown", "is_of", "notes_of", "same_files"]

_BLOCK = 4 << 20


class Pin(msgspec.Struct, frozen=True, kw_only=True):
    """What a file is known by; what must be equal for its rows to be the same rows.

    Attributes:
        path: Absolute, or an address; of a copy in the run folder its name there.
        size: Bytes.
        mtime_ns: Time of the last change of the content.
        ctime_ns: Time of the last change of anything, which no program can set back; 0 in object storage.
        inode: Number of the file, another one where another file took its place; 0 likewise.
        digest: Hash of the content; "" when it was not worth reading all of it.
        format: How its bytes are read, where its name does not tell all of that; else the same bytes could be
            other rows at the next start.
    """

    path: str
    size: int
    mtime_ns: int = 0
    ctime_ns: int = 0
    inode: int = 0
    digest: str = ""
    format: Format | None = None

    @property
    def copied(self) -> bool:
        """Whether it is a copy in the run folder, of stdin or of an iterable."""
        return not (os.path.isabs(self.path) or object_store.is_object(self.path))


@dataclass(frozen=True)
class InputFile:
    """One input file, pinned.

    Attributes:
        path: As it is opened.
        name: As it is shown to people.
        kind: Name of its format (`read.formats`).
        pin: What it is known by later.
        notes: What a person should know about how it is read; without its name.
    """

    path: str
    name: str
    kind: str
    pin: Pin
    notes: tuple[str, ...] = ()

    @property
    def format(self) -> Format:
        """How its bytes are read."""
        return self.pin.format or Format(self.kind)

    @property
    def folder(self) -> str:
        """Where relative paths in it begin; "" for a copy: where its reader is."""
        return "" if self.pin.copied else object_store.parent(self.path)

    @classmethod
    def of_pin(cls, pin: Pin, folder: Path) -> Self:
        """The file that was pinned; `folder` holds the copies of stdin and of iterables."""
        path = str(folder / pin.path) if pin.copied else pin.path
        name = pin.path.partition("-")[0] if pin.copied else pin.path
        kind = pin.format.kind if pin.format is not None else _kind(path) or "jsonl"
        return cls(path, name, kind, pin)

    def with_digest(self, go_on: Callable[[], None]) -> Self:
        """The same with the hash of its content, which is read for it; not from object storage.

        What is there has a time that only a new content changes.
        """
        if self.pin.digest or object_store.is_object(self.path):
            return self
        found = digest(self.path, self.pin.size, go_on)
        return replace(self, pin=msgspec.structs.replace(self.pin, digest=found))

    def now(self) -> Pin | None:
        """What it is known by now, with the old hash; None when it is gone.

        Raises:
            RunStopped: Object storage does not tell.
        """
        try:
            found = _pin(self.path)
        except OSError as error:
            if object_store.is_object(self.path):
                raise RunStopped(
                    f"{self.name}: it cannot be read any further: {object_store.why(error)}."
                ) from None
            return None
        known = self.pin
        return msgspec.structs.replace(
            found, path=known.path, digest=known.digest, format=known.format
        )

    def touched(self) -> bool:
        """Whether it is another file than was pinned, or was written, moved or touched since."""
        return self.now() != self.pin

    def rewritten(self) -> bool:
        """Whether its size or the time of its content is another one now, or it is gone."""
        now = self.now()
        return now is None or (now.size, now.mtime_ns) != (self.pin.size, self.pin.mtime_ns)

    def again(self) -> Self | None:
        """The file pinned anew; None when it is not known to hold what it held when it was pinned."""
        now = self.now()
        if now is None or now == self.pin:
            return None if now is None else self
        try:
            found = digest(self.path, now.size) if now.size == self.pin.size else ""
        except OSError:
            return None
        return replace(self, pin=now) if found and found == self.pin.digest else None


def expand(
    paths: Sequence[str],
    output: str = "",
    *,
    encoding: str | None = None,
    delimiter: str | None = None,
    other: str | None = None,
) -> list[InputFile]:
    """Files named by the arguments: files, globs in sorted order, folders by their known suffixes.

    Addresses of object storage may stand for each of these. Of a folder, .json files count only where
    there is nothing else: beside data they tell about it.

    Args:
        paths: The arguments.
        output: What will be written; it is no input where a folder or a glob holds it.
        encoding: Of all text; None to find it.
        delimiter: Of all CSV; None to find it.
        other: Format of files whose names tell none; None to refuse them.

    Raises:
        JobError: Something named is not there, cannot be read, or is of no known format.
    """
    found: list[str] = []
    for path in paths:
        if object_store.is_object(path):
            found += _objects(path, output)
        elif os.path.isdir(path):
            inside = sorted(
                str(entry)
                for entry in Path(path).rglob("*")
                if entry.is_file()
                and _kind(entry.name)
                and not _hidden(entry.relative_to(path).parts)
            )
            inside = _data([entry for entry in inside if not is_of(output, entry)])
            if not inside:
                raise JobError(f"{path}: the folder holds no {formats.NAMES}.")
            found += inside
        elif os.path.exists(path):
            found.append(path)
        elif glob.has_magic(path):
            matched = sorted(
                match
                for match in glob.glob(path, recursive=True)
                if os.path.isfile(match) and not is_of(output, match)
            )
            if not matched:
                raise JobError(f"{path}: no file matches.")
            found += matched
        else:
            raise JobError(f"{path or repr(path)}: there is no such file.")
    return [_pinned(path, encoding, delimiter, other) for path in found]


def notes_of(files: Sequence[InputFile]) -> list[str]:
    """What a person should know about how files are read, in sentences; of many files once."""
    of: dict[str, list[str]] = {}
    for file in files:
        for note in file.notes:
            of.setdefault(note, []).append(file.name)
    return [
        f"{names[0]}{f' and {len(names) - 1:,} more' if len(names) > 1 else ''}: {note}."
        for note, names in of.items()
    ]


def _data(paths: list[str]) -> list[str]:
    """Those that are data: .json files only where there are no others."""
    return [path for path in paths if ".json" not in Path(path).suffixes[-2:]] or paths


def is_of(output: str, path: str) -> bool:
    """Whether a path is an output, or in one that is a folder."""
    written, real = os.path.realpath(output), os.path.realpath(path)
    return real == written or (output.endswith("/") and real.startswith(f"{written}/"))


def _objects(path: str, output: str) -> list[str]:
    try:
        if object_store.stat(path) is not None:
            return [path]
        if glob.has_magic(path):
            matched = [url for url in object_store.matching(path) if url != output]
            if not matched:
                raise JobError(f"{path}: no object matches.")
            return matched
        root = path.rstrip("/")
        inside = _data(
            [
                url
                for url in object_store.within(root)
                if _kind(url) and url != output and not _hidden(url[len(root) + 1 :].split("/"))
            ]
        )
    except OSError as error:
        raise JobError(f"{path}: it cannot be read: {object_store.why(error)}.") from None
    if not inside:
        raise JobError(
            f"{path}: there is no such object, nor one below it that ends in {formats.NAMES}."
        )
    return inside


def _hidden(parts: Sequence[str]) -> bool:
    """Whether a file is no input: hidden, or inside the run folder of an earlier output."""
    return any(part.startswith((".", "_")) or part.endswith(".run") for part in parts)


def _pinned(
    path: str, encoding: str | None, delimiter: str | None, other: str | None
) -> InputFile:
    kind = _kind(path) or other
    if kind is None:
        raise JobError(
            f"{path}: its format is not known by its name; rename it to end in {formats.NAMES}."
        )
    if not object_store.is_object(path) and not os.path.isfile(path):
        raise JobError(f"{path}: it is no file; JSONL from a pipe is read as - (stdin).")
    try:
        with object_store.opened(path):
            pin = _pin(path)
            if pin.path != clean(pin.path):
                raise JobError(
                    f"{clean(pin.path)}: its name, or that of a folder above it, holds bytes that are no UTF-8; rename it."
                )
        found, notes = formats.READERS[kind].examined(path, encoding, delimiter)
    except OSError as error:
        raise JobError(f"{path}: it cannot be read: {object_store.why(error)}.") from None
    if found is not None:
        kind, pin = found.kind, msgspec.structs.replace(pin, format=found)
    # The program around it may go to another folder before the file is opened again.
    return InputFile(pin.path, path, kind, pin, tuple(notes))


def _pin(path: str) -> Pin:
    if object_store.is_object(path):
        size, mtime_ns = object_store.stat(path) or (0, 0)
        return Pin(path=path, size=size, mtime_ns=mtime_ns)
    stat = os.stat(path)
    return Pin(
        path=os.path.abspath(path),
        size=stat.st_size,
        mtime_ns=stat.st_mtime_ns,
        ctime_ns=stat.st_ctime_ns,
        inode=stat.st_ino,
    )


def _kind(path: str) -> str | None:
    return next((kind for suffix, kind in formats.SUFFIXES.items() if path.endswith(suffix)), None)


def digest(path: str, size: int, go_on: Callable[[], None] = lambda: None) -> str:
    """Hash of the first `size` bytes; `go_on` is called now and then and may raise."""
    sum_ = hashlib.sha256()
    left = size
    with object_store.opened(path) as file:
        while left > 0 and (block := file.read(min(left, _BLOCK))):
            sum_.update(block)
            left -= len(block)
            go_on()
    return sum_.hexdigest()[:32] if left == 0 else ""


def same_files(old: Sequence[Pin], new: Sequence[Pin]) -> bool:
    """Whether all files are the very same ones, which nobody has touched in between."""
    return [_without_digest(pin) for pin in old] == [_without_digest(pin) for pin in new]


def _without_digest(pin: Pin) -> Pin:
    return msgspec.structs.replace(pin, digest="")


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
        if before.format != after.format:
            return None  # The same bytes, but other rows.
        if _without_digest(before) == _without_digest(after):
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
    if file.kind != "jsonl" or file.format.encoding or is_packed(file.path):
        return False
    with object_store.opened(file.path) as opened:
        opened.seek(size - 1)
        return size > 0 and opened.read(1) == b"\n"
