"""The input files: paths, globs and folders become a list of pinned files. Touches: files, the network."""

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
from batcher.read.reader import Format, Reader
from batcher.records import clean

__all__ = ["InputFile", "Pin", "digest", "expand", "grown", "is_of", "notes_of", "same_files"]

_BLOCK = 4 << 20


class Pin(msgspec.Struct, frozen=True, kw_only=True):
    """Identifies a file: all of it must be equal for its rows to be the same rows.

    Attributes:
        path: Absolute path, or URL; for a copy in the run folder its name there.
        size: Bytes.
        mtime_ns: Time of the last change of the content.
        ctime_ns: Time of the last change of anything, which no program can set back; 0 in object storage.
        inode: Number of the file, which changes when another file takes its place; 0 in object storage.
        digest: Hash of the content; "" when it was not worth reading all of it.
        format: How its bytes are read, where its name does not tell; else the same bytes could become
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
        """Whether it is a copy of stdin or of rows from Python, in the run folder."""
        return not (os.path.isabs(self.path) or object_store.is_object(self.path))


@dataclass(frozen=True)
class InputFile:
    """One input file, pinned.

    Attributes:
        path: The path to open.
        name: The name to show to people.
        kind: Name of its format in `formats`.
        pin: What identifies it later.
        notes: Notes for the user on how it is read, without its name.
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
    def reader(self) -> Reader:
        """The reader of its format."""
        return formats.reader_of(self.kind)

    @property
    def folder(self) -> str:
        """Where relative paths in its rows begin; "" for a copy."""
        return "" if self.pin.copied else object_store.parent(self.path)

    @classmethod
    def of_pin(cls, pin: Pin, folder: Path) -> Self:
        """Makes the file of a pin; `folder` is the run folder, which holds the copies."""
        path = str(folder / pin.path) if pin.copied else pin.path
        name = pin.path.partition("-")[0] if pin.copied else pin.path
        kind = pin.format.kind if pin.format else formats.kind_of(path) or formats.DEFAULT
        return cls(path, name, kind, pin)

    def with_digest(self, go_on: Callable[[], None]) -> Self:
        """Adds the hash of the content, which is read for it.

        An object in storage needs none: its time changes with its content and not otherwise.
        """
        if self.pin.digest or object_store.is_object(self.path):
            return self
        found = digest(self.path, self.pin.size, go_on)
        return replace(self, pin=msgspec.structs.replace(self.pin, digest=found))

    def now(self) -> Pin | None:
        """Pins the file as it is now, with the old hash; None when it is gone.

        Raises:
            RunStopped: Object storage does not answer.
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
        """Whether it was replaced, written, moved or touched since it was pinned."""
        return self.now() != self.pin

    def rewritten(self) -> bool:
        """Whether its size or the time of its content changed, or it is gone."""
        now = self.now()
        return now is None or (now.size, now.mtime_ns) != (self.pin.size, self.pin.mtime_ns)

    def again(self) -> Self | None:
        """Pins the file anew; None when it may not hold what it held when it was pinned."""
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
    """Lists the files that the arguments name: files, globs in sorted order, folders by known suffixes.

    Each may be a URL of object storage. The .json files of a folder count only where it holds
    nothing else: beside data they describe it.

    Args:
        paths: The arguments.
        output: What will be written; it is no input where a folder or a glob holds it.
        encoding: Encoding of all text; None to detect it.
        delimiter: Delimiter of all CSV; None to detect it.
        other: Format of files whose names tell none; None to refuse them.

    Raises:
        JobError: A file is not there, cannot be read, or has no known format.
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
                and formats.kind_of(entry.name)
                and not _hidden(entry.relative_to(path).parts)
            )
            inside = formats.without_metadata(e for e in inside if not is_of(output, e))
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
    """Sentences for the user on how files are read; once where many files have the same note."""
    of: dict[str, list[str]] = {}
    for file in files:
        for note in file.notes:
            of.setdefault(note, []).append(file.name)
    return [
        f"{names[0]}{f' and {len(names) - 1:,} more' if len(names) > 1 else ''}: {note}."
        for note, names in of.items()
    ]


def is_of(output: str, path: str) -> bool:
    """Whether a path is the output, or in it where that is a folder."""
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
        inside = formats.without_metadata(
            url
            for url in object_store.within(root)
            if formats.kind_of(url)
            and url != output
            and not _hidden(url[len(root) + 1 :].split("/"))
        )
    except OSError as error:
        raise JobError(f"{path}: it cannot be read: {object_store.why(error)}.") from None
    if not inside:
        raise JobError(
            f"{path}: there is no such object, nor one below it that ends in {formats.NAMES}."
        )
    return inside


def _hidden(parts: Sequence[str]) -> bool:
    """Whether a file is hidden, or inside of a run folder."""
    return any(part.startswith((".", "_")) or part.endswith(".run") for part in parts)


def _pinned(
    path: str, encoding: str | None, delimiter: str | None, other: str | None
) -> InputFile:
    kind = formats.kind_of(path) or other
    if kind is None:
        raise JobError(f"{path}: unknown format; rename it to end in {formats.NAMES}.")
    if not object_store.is_object(path) and not os.path.isfile(path):
        raise JobError(f"{path}: it is no file; JSONL from a pipe is read as - (stdin).")
    try:
        with object_store.opened(path):
            pin = _pin(path)
            if pin.path != clean(pin.path):
                raise JobError(
                    f"{clean(pin.path)}: its name, or that of a folder above it, is not UTF-8; rename it."
                )
        found, notes = formats.reader_of(kind).examine(path, encoding, delimiter)
    except OSError as error:
        raise JobError(f"{path}: it cannot be read: {object_store.why(error)}.") from None
    if found is not None:
        kind, pin = found.kind, msgspec.structs.replace(pin, format=found)
    # The calling program may change its working folder before the file is opened again.
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


def digest(path: str, size: int, go_on: Callable[[], None] = lambda: None) -> str:
    """Hashes the first `size` bytes; "" where there are fewer. `go_on` is called now and then and may raise."""
    sum_ = hashlib.sha256()
    left = size
    with object_store.opened(path) as file:
        while left > 0 and (block := file.read(min(left, _BLOCK))):
            sum_.update(block)
            left -= len(block)
            go_on()
    return sum_.hexdigest()[:32] if left == 0 else ""


def same_files(old: Sequence[Pin], new: Sequence[Pin]) -> bool:
    """Whether all files are the same ones, untouched in between."""
    return [_without_digest(pin) for pin in old] == [_without_digest(pin) for pin in new]


def _without_digest(pin: Pin) -> Pin:
    return msgspec.structs.replace(pin, digest="")


def grown(
    old: Sequence[Pin], new: Sequence[InputFile], go_on: Callable[[], None] = lambda: None
) -> bool | None:
    """Whether rows were added behind those of the old pins; None when those moved or changed.

    A file with the same times and path is not read. One that was copied, moved or touched is
    recognized by the hash of its content; a last file that grew, by the hash of its old length.
    """
    if len(new) < len(old):
        return None
    for number, (before, file) in enumerate(zip(old, new, strict=False)):
        after, last = file.pin, number == len(old) - 1
        if before.format != after.format:
            return None  # The same bytes become other rows.
        if _without_digest(before) == _without_digest(after):
            if before.digest == after.digest or not after.digest:
                continue
            return None
        if not before.digest or after.size < before.size:
            return None
        longer = after.size > before.size
        if longer and not (
            last and len(new) == len(old) and file.reader.is_whole(file, before.size)
        ):
            return None
        if (
            after.digest if after.digest and not longer else digest(file.path, before.size, go_on)
        ) != before.digest:
            return None
        if longer:
            return True
    return len(new) > len(old)
