"""Which journal line holds the result of each row and slot. Touches: files (a temporary one).

Ok beats everything, an answer beats a failure, else the latest wins, whatever the order of the
segments. 25 bytes a row and slot, moved to a file in the run folder when that is much.
"""

from __future__ import annotations

import os
import tempfile
from binascii import hexlify
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batcher.records import Outcome
from batcher.write.index import OUTCOMES

__all__ = ["ANSWERED", "LatestResults", "Place", "places_of"]

Place = tuple[int, int, int, bytes]
"""Segment, offset and length of a line, and the first half of its key in hex."""
_IN_MEMORY = 64 << 20
_RANK = np.array(
    [2 if outcome is Outcome.OK else 1 if outcome.answered else 0 for outcome in OUTCOMES], np.int8
)
ANSWERED = _RANK > 0
"""By an outcome's number, whether a model answered."""
_HELD = np.concatenate(([-1], _RANK)).astype(np.int8)
"""Rank by state: nothing, then the outcomes."""
_FIELDS = (
    ("segment", "<u4"),
    ("offset", "<i8"),
    ("length", "<u4"),
    ("key_high", "<u8"),
    ("state", "u1"),
)


def places_of(models: list[str], asked: tuple[str, ...]) -> npt.NDArray[np.int32]:
    """Place of each of a segment's models among those asked; -1 for one that is not any more."""
    places = {model: place for place, model in enumerate(asked)}
    return np.array([places.get(model, -1) if asked else 0 for model in models], np.int32)


class LatestResults:
    """The best line for each (row, slot); the slots of a model, one a sample, stand together.

    Args:
        models: How many models each row goes to.
        folder: Where a temporary file may be made.
        rows: How many rows there may be; a wrong number costs memory and nothing else.
        samples: How many answers each of them gives.
        places: Whether to know where the lines stand, which a finish needs and a start does not.

    Attributes:
        extras: What any line has that few lines have (`index.ENTRY`).
    """

    def __init__(
        self,
        models: int,
        folder: Path,
        rows: int = 0,
        *,
        samples: int = 1,
        places: bool = True,
    ) -> None:
        self._slots = slots = models * samples
        self._samples = samples
        self._expected = rows
        self._folder = folder
        self._rows = 0
        self.extras = 0
        self._fields = [field for field in _FIELDS if places or field[0] == "state"]
        self._arrays: dict[str, Any] = {
            name: np.zeros((slots, 0), kind) for name, kind in self._fields
        }

    def add(self, entries: npt.NDArray[np.void], places: npt.NDArray[np.int32]) -> None:
        """Takes a segment's entries, in the order of segments.

        Args:
            entries: As `index.load` gives them.
            places: Of the segment's models, as `places_of` gives them.
        """
        if not len(entries):
            return
        of, samples = places[entries["model"]], entries["sample"]
        asked = (of >= 0) & (samples < self._samples)
        slots = of * np.int32(self._samples) + samples
        if not asked.all():
            entries, slots = entries[asked], slots[asked]
        if not len(entries):
            return
        self.extras |= int(np.bitwise_or.reduce(entries["extras"]))
        rows = entries["row"]
        self._grow(int(rows.max()) + 1)
        rank = _RANK[entries["outcome"]]
        if _repeats(rows, slots, self._slots):
            # Of several lines for one place in this segment, the last of the best.
            order = np.lexsort((np.arange(len(rows)), rank, rows, slots))
            last = np.append(
                (np.diff(rows[order]) != 0) | (np.diff(slots[order]) != 0), np.array([True])
            )
            chosen = order[last]
            entries, rows, slots, rank = entries[chosen], rows[chosen], slots[chosen], rank[chosen]
        better = rank >= _HELD[self._arrays["state"][slots, rows]]
        if not better.all():
            entries, rows, slots = entries[better], rows[better], slots[better]
        for name, _kind in self._fields:
            found = entries["outcome"] + 1 if name == "state" else entries[name]
            self._arrays[name][slots, rows] = found

    def outcomes(self, slot: int) -> npt.NDArray[np.uint8]:
        """By row: 0 for nothing, else 1 + the outcome's number."""
        states: npt.NDArray[np.uint8] = self._arrays["state"][slot, : self._rows]
        return states

    def at(self, rows: Sequence[int], slot: int) -> list[Place]:
        """Where the line of each row stands; length 0 for none."""
        asked = np.asarray(rows, np.int64)
        known = asked < self._rows
        found = np.zeros((3, len(asked)), np.int64)
        for of, name in zip(found, ("segment", "offset", "length"), strict=True):
            of[known] = self._arrays[name][slot, asked[known]]
        keys = np.zeros(len(asked), "<u8")
        keys[known] = self._arrays["key_high"][slot, asked[known]]
        begun = hexlify(keys.tobytes())
        digits = [begun[at : at + 16] for at in range(0, len(begun), 16)]
        return list(zip(*found.tolist(), digits, strict=True))

    def _grow(self, rows: int) -> None:
        if rows <= self._rows:
            return
        held = self._arrays["state"].shape[1]
        if rows > held:
            room = max(rows, self._expected if not held else held + held // 2)
            for name, kind in self._fields:
                new = self._empty(name, kind, room)
                new[:, : self._rows] = self._arrays[name][:, : self._rows]
                self._arrays[name] = new
        self._rows = rows

    def _empty(self, name: str, kind: str, rows: int) -> Any:
        shape = (self._slots, rows)
        # The state is looked at row by row while the run goes on; it stays in memory.
        if name == "state" or np.dtype(kind).itemsize * self._slots * rows < _IN_MEMORY:
            return np.zeros(shape, kind)
        with tempfile.TemporaryFile(dir=self._folder) as file:
            if hasattr(os, "posix_fallocate"):  # A full disk is an error here, a SIGBUS later.
                os.posix_fallocate(file.fileno(), 0, np.dtype(kind).itemsize * rows * self._slots)
            return np.memmap(file, kind, "w+", shape=shape)


def _repeats(rows: npt.NDArray[np.int64], slots: npt.NDArray[np.int32], width: int) -> bool:
    """Whether a (row, slot) comes more than once; counting is far faster than sorting."""
    first = int(rows.min())
    span = int(rows.max()) - first + 1
    if span > 16 * len(rows) + 1024:
        return True  # Too far apart to count; sorting is right in any case.
    return int(np.bincount((rows - first) * width + slots).max()) > 1
