"""Which journal line holds the result of each row and slot. Touches: files (a temporary one).

Ok beats everything, an answer beats a failure, else the latest wins, whatever the order of the
segments. 17 bytes a row and slot, moved to a file in the run folder when that is much.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batcher.records import Outcome
from batcher.write.index import OUTCOMES

__all__ = ["Winners"]

_IN_MEMORY = 64 << 20
_RANK = np.array(
    [2 if outcome is Outcome.OK else 1 if outcome.answered else 0 for outcome in OUTCOMES], np.int8
)
_FIELDS = (("segment", "<u4"), ("offset", "<i8"), ("length", "<u4"), ("state", "u1"))


class Winners:
    """The best line for each (row, slot).

    Args:
        slots: How many slots each row has.
        folder: Where a temporary file may be made.
        rows: How many rows there may be; a wrong number costs memory and nothing else.

    Attributes:
        extras: What any line has that few lines have (`index.ENTRY`).
    """

    def __init__(self, slots: int, folder: Path, rows: int = 0) -> None:
        self._slots = slots
        self._expected = rows
        self._folder = folder
        self._rows = 0
        self.extras = 0
        self._arrays: dict[str, Any] = {name: np.zeros((slots, 0), kind) for name, kind in _FIELDS}

    def add(self, entries: npt.NDArray[np.void], slot_of_model: npt.NDArray[np.int32]) -> None:
        """Takes a segment's entries, in the order of segments.

        Args:
            entries: As `index.load` gives them.
            slot_of_model: The slot of each of the segment's models; -1 leaves it out.
        """
        if not len(entries):
            return
        slots = slot_of_model[entries["model"]]
        if (slots < 0).any():
            entries, slots = entries[slots >= 0], slots[slots >= 0]
        if not len(entries):
            return
        self.extras |= int(np.bitwise_or.reduce(entries["extras"]))
        rows = entries["row"]
        self._grow(int(rows.max()) + 1)
        rank = _RANK[entries["outcome"]]
        # Of several lines for one place in this segment, the last of the best.
        order = np.lexsort((np.arange(len(rows)), rank, rows, slots))
        last = np.append(
            (np.diff(rows[order]) != 0) | (np.diff(slots[order]) != 0), np.array([True])
        )
        chosen = order[last]
        rows, slots, rank = rows[chosen], slots[chosen], rank[chosen]
        states = self._arrays["state"][slots, rows]
        held = np.where(states == 0, -1, _RANK[np.maximum(states, 1) - 1])
        better = rank >= held
        rows, slots, chosen = rows[better], slots[better], chosen[better]
        for name in ("segment", "offset", "length"):
            self._arrays[name][slots, rows] = entries[name][chosen]
        self._arrays["state"][slots, rows] = entries["outcome"][chosen] + 1

    def outcomes(self, slot: int) -> npt.NDArray[np.uint8]:
        """By row: 0 for nothing, else 1 + the outcome's number."""
        states: npt.NDArray[np.uint8] = self._arrays["state"][slot, : self._rows]
        return states

    def at(self, row: int, slot: int) -> tuple[int, int, int]:
        """(segment, offset, length) of the line; length 0 for none."""
        if row >= self._rows:
            return 0, 0, 0
        a = self._arrays
        return (
            int(a["segment"][slot, row]),
            int(a["offset"][slot, row]),
            int(a["length"][slot, row]),
        )

    def _grow(self, rows: int) -> None:
        if rows <= self._rows:
            return
        held = self._arrays["state"].shape[1]
        if rows > held:
            room = max(rows, self._expected if not held else held + held // 2)
            for name, kind in _FIELDS:
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
            return np.memmap(file, kind, "w+", shape=shape)
