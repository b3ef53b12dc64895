"""What an output is made of: the journal's lines in input order, files that are whole or not there.

Touches: files.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Self

from batcher.errors import OutputError
from batcher.write import index, parts
from batcher.write.latest import LatestResults, Place
from batcher.write.lock import FULL
from batcher.write.names import journal_file
from batcher.write.segment import sync_folder

__all__ = ["Confirm", "ResultReader", "Written", "beside", "synced", "whole", "whole_folder"]


@dataclass
class Written:
    """What was written.

    Attributes:
        rows: Output rows.
        missing: Results that are not there yet and were left out.
        statuses: Rows by status.
        renamed: Input columns that got another name.
    """

    rows: int = 0
    missing: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    renamed: dict[str, str] = field(default_factory=dict)


Confirm = Callable[[Written], None]
_KEY = b'"key":"'


class ResultReader:
    """Finds the journal lines of input rows; a context manager that holds the segments open.

    Args:
        folder: The run folder.
        winners: Where the lines are.
        route: `each` gives a row one line a slot; the others one line a sample, the best.
        models: How many models each row goes to.
        samples: How many answers each of them gives.
        go_on: Called for every block of rows; what it raises ends the writing.

    Attributes:
        damaged: Numbers of segments that do not hold what their index says.
        lost: Lines that are not what they were.
    """

    def __init__(
        self,
        folder: Path,
        winners: LatestResults,
        route: str,
        models: int,
        samples: int = 1,
        go_on: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder = folder
        self._winners = winners
        self._one = route != "each"
        self._slots = range(models * samples)
        self._samples = range(samples)
        self._go_on = go_on
        self._files: dict[int, int] = {}
        self.damaged: set[int] = set()
        self.lost = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            os.close(file)

    @property
    def shown(self) -> list[str]:
        """The optional columns that some line has."""
        return [name for name, bit in index.EXTRAS.items() if self._winners.extras & bit]

    def lines(self, positions: Sequence[int]) -> Iterator[tuple[int, int, bytes | None]]:
        """(place in `positions`, sample, line without newline, or None for none) in order.

        A line that was kept from an earlier input carries its old row and sample.
        """
        self._go_on()
        samples = len(self._samples)
        spans = [self._winners.at(positions, slot) for slot in self._slots]
        for place, row in enumerate(positions):
            if self._one:
                for sample in self._samples:
                    slots = self._slots[sample::samples]
                    yield place, sample, self._best(row, slots, [spans[s][place] for s in slots])
            else:
                for slot in self._slots:
                    yield place, slot % samples, self._line(*spans[slot][place])

    def _best(self, row: int, slots: range, spans: Sequence[Place]) -> bytes | None:
        found: bytes | None = None
        rank = -1
        for slot, span in zip(slots, spans, strict=True):
            states = self._winners.outcomes(slot)
            state = int(states[row]) if row < len(states) else 0
            if not state:
                continue
            outcome = index.OUTCOMES[state - 1]
            better = 2 if outcome.value == "ok" else 1 if outcome.answered else 0
            # An answer that is ok; else the last model's, an unusable answer before a failure.
            if better > rank or better == rank < 2:
                line = self._line(*span)
                if line is not None:
                    found, rank = line, better
        return found

    def _line(self, segment: int, offset: int, length: int, key: bytes) -> bytes | None:
        """The line at a place, if it is still the answer to the request with this key."""
        if not length:
            return None
        file = self._files.get(segment)
        if file is None:
            path = self._folder / journal_file(segment)
            try:
                file = self._files[segment] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                self.damaged.add(segment)
                self.lost += 1
                return None
        line = os.pread(file, length, offset)
        # Quotes inside of a text are escaped, so what is found first is the field.
        begin = line.find(_KEY) + len(_KEY)
        if line[begin : begin + len(key)] == key and index.checked(line):
            return line
        self.damaged.add(segment)
        self.lost += 1
        return None


@contextlib.contextmanager
def whole(path: Path, *, of_run: bool = True) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when all of it is on the disk, and not before.

    Args:
        path: The file.
        of_run: Whether it is an output, which can be made again from its run folder.

    Raises:
        OutputError: The disk refuses.
    """
    with _beside(path, of_run=of_run) as temporary:
        parts.remove(temporary)  # In containers the next process often has the same number.
        with synced(temporary, private=path.exists()) as file:
            yield file
        _like(path, temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Likewise a folder, to make parts in.

    Raises:
        OutputError: The disk refuses, or something else than parts is in the place.
    """
    with _beside(path, of_run=True) as temporary:
        parts.remove(temporary)
        temporary.mkdir(mode=0o700 if path.exists() else 0o777)
        yield temporary
        if before := parts.files(path):
            for part in parts.files(temporary):
                _like(before[0], part)
            _like(path, temporary)
        sync_folder(temporary)
        parts.put(temporary, path)


@contextlib.contextmanager
def synced(path: Path, *, private: bool = False) -> Iterator[IO[bytes]]:
    """A new file that is on the disk in the end; `private` to its owner until it is told otherwise."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW, 0o600 if private else 0o666)

    with open(path, "xb", buffering=1 << 20, opener=opener) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def beside(path: Path) -> Path:
    """Where what is to take the place of a file is made."""
    return path.with_name(f".{path.name}.tmp-{os.getpid()}")


def _like(old: Path, new: Path) -> None:
    """Gives what takes a file's place the file's mode, and its owner and group where the system allows that."""
    try:
        of = old.stat()
    except FileNotFoundError:
        return
    mode = of.st_mode & 0o777
    with contextlib.suppress(PermissionError):  # Only root gives files away.
        os.chown(new, of.st_uid, -1)
    try:
        os.chown(new, -1, of.st_gid)
    except PermissionError:
        mode &= ~0o070  # What one group may do is not for another.
    with contextlib.suppress(PermissionError):  # Some file systems have one mode for all.
        os.chmod(new, mode)


@contextlib.contextmanager
def _beside(path: Path, *, of_run: bool) -> Iterator[Path]:
    """Where to make what is to take the place of `path`; nothing is left there after a failure."""
    temporary = beside(path)
    try:
        yield temporary
    except BaseException as error:
        with contextlib.suppress(OSError):
            parts.remove(temporary)
        if isinstance(error, OSError):
            mend = "make room" if error.errno in FULL else "see to it"
            safe = f" All answers are in {path}.run; {mend}, and run the same command again."
            raise OutputError(
                f"{path}: it cannot be written: {error.strerror or error}.{safe if of_run else ''}"
            ) from None
        raise
