"""Answers of earlier input or settings, found by the bytes that were sent. Touches: nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from batcher.records import Outcome, Request
from batcher.write.index import ENTRY, OUTCOMES, Segment, last_words, where
from batcher.write.segment import Kept
from batcher.write.winners import ANSWERED

__all__ = ["Earlier"]

_OK = OUTCOMES.index(Outcome.OK)
_SAMPLE_BITS = 16


class Earlier:
    """Answers of earlier epochs, found by key; each is given away once.

    Args:
        segments: Those of the earlier epochs, in order.
        since: Those of the present one; what they refer to is given away already.
    """

    def __init__(self, segments: Sequence[Segment], since: Sequence[Segment] = ()) -> None:
        words = [last_words(s.entries) for s in segments]
        parts = [entries[ANSWERED[entries["outcome"]]] for entries in words]
        entries: Any = np.concatenate(parts) if parts else np.empty(0, ENTRY)
        # One answer may have been referred to by several epochs; the last place counts.
        _, last = np.unique(where(entries)[::-1], return_index=True)
        entries = entries[len(entries) - 1 - last[::-1]]
        high, low, place = entries["key_high"], entries["key_low"], _place_of(entries)
        order = np.lexsort((entries["outcome"] != _OK, place, low, high))
        # Of the answers that one row had, one after the other, the best; else the latest.
        new = np.ones(len(order), np.bool_)
        new[1:] = np.any([np.diff(of[order]) != 0 for of in (high, low, place)], axis=0)
        entries = entries[order[new]]
        for segment in since:
            entries = entries[~np.isin(where(entries), where(segment.entries))]
        self._entries = entries
        self._highs, self._lows = entries["key_high"].copy(), entries["key_low"].copy()
        self._places = _place_of(entries)
        self._takers = np.full(len(entries), -1, np.int64)
        self._free: dict[int, int] = {}
        self._again: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def take(self, request: Request) -> Kept | None:
        """A reference to an answer to these bytes, the row's own one first.

        The same row asking again gets the same answer again.
        """
        if not len(self._highs):
            return None
        raw, place = bytes.fromhex(request.key), request.row << _SAMPLE_BITS | request.sample
        begin, end = _range(self._highs, raw[:8], 0, len(self._highs))
        begin, end = _range(self._lows, raw[8:], begin, end)
        if begin == end or (best := self._best(begin, end, place)) < 0:
            return None
        self._takers[best] = place
        entry = self._entries[best]
        return Kept(
            row=request.row,
            model=request.model,
            sample=request.sample,
            key=request.key,
            status=OUTCOMES[int(entry["outcome"])],
            custom_id=request.custom_id,
            at=(int(entry["segment"]), int(entry["offset"]), int(entry["length"])),
            extras=int(entry["extras"]),
        )

    def _best(self, begin: int, end: int, place: int) -> int:
        """Among equal requests: the place's own, the one it took before, one that is free; or -1."""
        own = begin
        if end - begin > 1:
            own += int(self._places[begin:end].searchsorted(place))
        if own < end and self._places[own] == place and self._takers[own] in (-1, place):
            return own
        if (before := self._again.get((begin, place))) is not None:
            return before
        free = self._free.get(begin, begin)
        while free < end and self._takers[free] >= 0:
            free += 1
        if free == end:
            return -1
        self._free[begin] = free + 1
        self._again[begin, place] = free
        return free


def _range(numbers: Any, raw: bytes, begin: int, end: int) -> tuple[int, int]:
    """Where a number of 8 bytes stands in a sorted stretch of an array."""
    number = np.uint64(int.from_bytes(raw, "little"))
    if end - begin == 1:  # Most often.
        return (begin, end) if numbers[begin] == number else (begin, begin)
    of = numbers[begin:end]
    return begin + int(of.searchsorted(number)), begin + int(of.searchsorted(number, "right"))


def _place_of(entries: Any) -> Any:
    """Row and sample as one number."""
    return (entries["row"] << _SAMPLE_BITS) | entries["sample"]
