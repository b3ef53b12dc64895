"""Which journal line holds the result of each row and slot. Touches: files (a temporary one).

The line with the highest `Outcome.rank` wins, among equal ranks the latest, in whatever order the segments
come. Takes 25 bytes a row and slot, in a file in the run folder when that is much.
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

from batcher.write.index import RANK, Entries
from batcher.write.slots import Slots

__all__ = ["LatestResults", "Place", "places_of"]

Place = tuple[int, int, int, bytes]
"""Segment, offset and length of a line, and the first half of its key in hex."""
_IN_MEMORY = 64 << 20
_RANK_OF_STATE = np.concatenate(([-1], RANK)).astype(np.int8)
_FIELDS = (
    ("segment", "<u4"),
    ("offset", "<i8"),
    ("length", "<u4"),
    ("key_high", "<u8"),
    ("state", "u1"),  # 0 for no result, else 1 + the outcome's number.
)


def places_of(models: list[str], asked: tuple[str, ...]) -> npt.NDArray[np.int32]:
    """Position of each of a segment's models among the models asked; -1 for one that is no longer asked."""
    places = {model: place for place, model in enumerate(asked)}
    return np.array([places.get(model, -1) if asked else 0 for model in models], np.int32)


class LatestResults:
    """The best line for each row and slot; a model's slots, one a sample, are neighbours.

    Args:
        models: How many models each row goes to.
        folder: Where to make a temporary file.
        rows: How many rows there may be; a wrong number only costs memory.
        samples: How many answers each model gives.
        places: Whether to keep where the lines are, which a finish needs and a start does not.

    Attributes:
        extras: Bits of `columns.EXTRAS` that at least one line has.
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
        self._slots = Slots(("",) * models, samples)
        self._expected = rows
        self._folder = folder
        self._rows = 0
        self.extras = 0
        self._fields = [field for field in _FIELDS if places or field[0] == "state"]
        self._arrays: dict[str, Any] = {
            name: np.zeros((len(self._slots), 0), kind) for name, kind in self._fields
        }

    def add(self, entries: Entries, places: npt.NDArray[np.int32]) -> None:
        """Takes the entries of a segment; call it in the order of segments.

        Args:
            entries: Of `index.Segment`.
            places: Of the segment's models, as `places_of` gives them.
        """
        if not len(entries):
            return
        model, samples = places[entries["model"]], entries["sample"]
        asked = (model >= 0) & (samples < self._slots.samples)
        slots = self._slots.slot(model, samples)
        if not asked.all():
            entries, slots = entries[asked], slots[asked]
        if not len(entries):
            return
        self.extras |= int(np.bitwise_or.reduce(entries["extras"]))
        rows = entries["row"]
        self._grow(int(rows.max()) + 1)
        rank = RANK[entries["outcome"]]
        if _repeats(rows, slots, len(self._slots)):
            # Of several lines for one place in this segment, the last of the best.
            order = np.lexsort((np.arange(len(rows)), rank, rows, slots))
            last = np.append(
                (np.diff(rows[order]) != 0) | (np.diff(slots[order]) != 0), np.array([True])
            )
            chosen = order[last]
            entries, rows, slots, rank = entries[chosen], rows[chosen], slots[chosen], rank[chosen]
        better = rank >= _RANK_OF_STATE[self._arrays["state"][slots, rows]]
        if not better.all():
            entries, rows, slots = entries[better], rows[better], slots[better]
        for name, _kind in self._fields:
            new = entries["outcome"] + 1 if name == "state" else entries[name]
            self._arrays[name][slots, rows] = new

    def outcomes(self, slot: int) -> npt.NDArray[np.uint8]:
        """By row: 0 for no result, else 1 + the outcome's number."""
        states: npt.NDArray[np.uint8] = self._arrays["state"][slot, : self._rows]
        return states

    def at(self, rows: Sequence[int], slot: int) -> list[Place]:
        """Where the line of each row is; a place of length 0 where there is none."""
        asked = np.asarray(rows, np.int64)
        known = asked < self._rows
        found = np.zeros((3, len(asked)), np.int64)
        for column, name in zip(found, ("segment", "offset", "length"), strict=True):
            column[known] = self._arrays[name][slot, asked[known]]
        keys = np.zeros(len(asked), "<u8")
        keys[known] = self._arrays["key_high"][slot, asked[known]]
        digits = hexlify(keys.tobytes())
        halves = [digits[at : at + 16] for at in range(0, len(digits), 16)]
        return list(zip(*found.tolist(), halves, strict=True))

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
        shape = (len(self._slots), rows)
        # The state is read row by row during the run; it stays in memory.
        if name == "state" or np.dtype(kind).itemsize * len(self._slots) * rows < _IN_MEMORY:
            return np.zeros(shape, kind)
        with tempfile.TemporaryFile(dir=self._folder) as file:
            if hasattr(
                os, "posix_fallocate"
            ):  # Now a full disk is an error; later it is a SIGBUS.
                os.posix_fallocate(
                    file.fileno(), 0, np.dtype(kind).itemsize * rows * len(self._slots)
                )
            return np.memmap(file, kind, "w+", shape=shape)


def _repeats(rows: npt.NDArray[np.int64], slots: npt.NDArray[np.int32], width: int) -> bool:
    """Whether a (row, slot) comes more than once; counting is far faster than sorting."""
    first = int(rows.min())
    span = int(rows.max()) - first + 1
    if span > 16 * len(rows) + 1024:
        return True  # Too sparse to count; sorting is right in any case.
    return int(np.bincount((rows - first) * width + slots).max()) > 1
