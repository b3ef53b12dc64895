"""Finds the journal line of each row and sample of the output, in input order. Touches: files (reads)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from batcher.write.columns import EXTRAS
from batcher.write.index import OUTCOMES
from batcher.write.latest import LatestResults, Place
from batcher.write.lines import LineReader
from batcher.write.slots import Slots

__all__ = ["Confirm", "ResultReader", "Written"]


@dataclass
class Written:
    """What was written.

    Attributes:
        missing: Results that do not exist yet and were left out.
        statuses: Rows by status.
        renamed: Input columns that got another name: old name → new name.
    """

    missing: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    renamed: dict[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """How many output rows."""
        return self.statuses.total()


Confirm = Callable[[Written], None]
"""Called before a new output replaces the old one; raises to keep the old one."""


class ResultReader:
    """Reads the lines of input rows; a context manager that keeps segments open.

    Args:
        folder: The run folder.
        latest: Where the lines are.
        route: `each` gives a row one line a slot; any other route one line a sample, the best.
        models: How many models each row goes to.
        samples: How many answers each model gives.
        go_on: Called for every block of rows; raises to end the writing.

    Attributes:
        damaged: Numbers of segments that do not hold what their index says.
        lost: How many lines are gone or not what they were.
    """

    def __init__(
        self,
        folder: Path,
        latest: LatestResults,
        route: str,
        models: int,
        samples: int = 1,
        go_on: Callable[[], None] = lambda: None,
    ) -> None:
        self._reader = LineReader(folder)
        self._latest = latest
        self._slots = Slots(("",) * models, samples, route)
        self._go_on = go_on
        self.damaged: set[int] = set()
        self.lost = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    @property
    def shown(self) -> list[str]:
        """The optional columns that at least one line has."""
        return [name for name, bit in EXTRAS.items() if self._latest.extras & bit]

    def lines(self, positions: Sequence[int]) -> Iterator[tuple[int, int, bytes | None]]:
        """(index in `positions`, sample, line without newline, or None where there is none) in order.

        The line of an answer that was kept from an earlier input names its old row and sample.
        """
        self._go_on()
        every = [(slot, self._slots.sample(slot)) for slot in range(len(self._slots))]
        places = [self._latest.at(positions, slot) for slot, _sample in every]
        for at, row in enumerate(positions):
            if self._slots.one:
                for sample, slots in self._slots.by_sample():
                    yield at, sample, self._best(row, slots, [places[s][at] for s in slots])
            else:
                for slot, sample in every:
                    yield at, sample, self._line(*places[slot][at])

    def _best(self, row: int, slots: range, places: Sequence[Place]) -> bytes | None:
        """The line of the first model that answered `ok`; else of the last one with the best rank."""
        found: bytes | None = None
        best = -1
        for slot, place in zip(slots, places, strict=True):
            states = self._latest.outcomes(slot)
            state = int(states[row]) if row < len(states) else 0
            if not state:
                continue
            rank = OUTCOMES[state - 1].rank
            if rank > best or rank == best < 2:
                line = self._line(*place)
                if line is not None:
                    found, best = line, rank
        return found

    def _line(self, segment: int, offset: int, length: int, key: bytes) -> bytes | None:
        """The line at a place, if it is still the answer to the request with this key."""
        if not length:
            return None
        line = self._reader.line(segment, offset, length, key)
        if line is None:
            self.damaged.add(segment)
            self.lost += 1
        return line
