"""The index of a segment: one entry of 48 bytes a line, in numpy arrays. Touches: nothing.

`write.sidecar` keeps it on disk, so that a start or a finish reads 48 MB for a million rows instead of
gigabytes of lines.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from batcher.records import Outcome, Result
from batcher.write.columns import COLUMNS, EXTRAS

__all__ = [
    "ANSWERED", "ENTRY", "MOST_NAMES", "OUTCOMES", "RANK", "Entries", "Segment", "entry_bytes", "extras_of", "last_words",
    "stopped", "where",
]  # fmt: skip

OUTCOMES = tuple(Outcome)
"""Outcomes by the number that they have in an entry."""
_NUMBER = {outcome: number for number, outcome in enumerate(OUTCOMES)}
RANK = np.array([outcome.rank for outcome in OUTCOMES], np.int8)
"""`Outcome.rank` by number."""
ANSWERED = RANK > 0
"""`Outcome.answered` by number."""

ENTRY = np.dtype(
    [
        ("row", "<i8"),
        ("offset", "<i8"),  # Of the line in its segment.
        ("key_high", "<u8"),  # The first eight bytes of the key, as a number.
        ("key_low", "<u8"),
        ("length", "<u4"),  # Without the newline.
        ("segment", "<u4"),
        ("model", "<u2"),  # Position in `Segment.models`.
        ("sample", "<u2"),
        ("outcome", "u1"),
        ("extras", "u1"),  # Bits of `columns.EXTRAS`, and _STOPPED.
        ("run", "<u2"),  # Position in `Segment.runs`.
    ]
)
_pack = struct.Struct("<qq16sIIHHBBH").pack
Entries = npt.NDArray[np.void]
MOST_NAMES = 1 << 16
"""How many models, and how many runs, the entries of a segment can number."""

_STOPPED = 16  # The run was stopped before the row was done: it is still to be sent.
_PLAIN = " and ".join(f"line.{name} is {COLUMNS[name].missing}" for name in EXTRAS)
_BITS = " | ".join(
    f"({bit} if line.{name} is not {COLUMNS[name].missing} else 0)" for name, bit in EXTRAS.items()
)
# Compiled, as it is called for each line: a loop over the names takes four times as long.
extras_of: Callable[[Result], int] = eval(
    f"lambda line: 0 if not line.stopped and {_PLAIN} else ({_STOPPED} if line.stopped else 0) | {_BITS}"
)
"""The `extras` of an entry for a line."""


class Segment(msgspec.Struct):
    """The entries of one segment, and the models and runs that they number.

    Attributes:
        runs: IDs of the runs that wrote the lines; "" for lines that name none.
        entries: An array of `ENTRY`.
        bad: Lines that are torn or not from batcher. Counted when the segment is read, not when its index is,
            so that the user hears of them once.
        cut: Whether the segment is shorter than it was when its index was made.
        lost: How many lines it had then and has no longer.
    """

    number: int
    models: list[str]
    runs: list[str]
    entries: Any
    bad: int = 0
    cut: bool = False
    lost: int = 0


def where(entries: Any) -> Any:
    """Where the line of each entry is, as one sortable number: segment, then offset."""
    return (entries["segment"].astype(np.int64) << 40) | entries["offset"]


def last_words(entries: Entries) -> Entries:
    """The entries that end their row: the run was not stopped before the row was done."""
    stopped = entries["extras"] & _STOPPED != 0
    return entries[~stopped] if stopped.any() else entries


def stopped(entries: Entries) -> Entries:
    """The entries of rows that are still to be sent, because the run was stopped."""
    found: Entries = entries[entries["extras"] & _STOPPED != 0]
    return found


def entry_bytes(
    row: int,
    offset: int,
    key: str,
    length: int,
    segment: int,
    model: int,
    sample: int,
    outcome: Outcome,
    extras: int,
    run: int = 0,
) -> bytes:
    """One entry, packed as `ENTRY` says.

    Raises:
        struct.error: A number does not fit.
    """
    raw = bytes.fromhex(key)
    return _pack(row, offset, raw, length, segment, model, sample, _NUMBER[outcome], extras, run)
