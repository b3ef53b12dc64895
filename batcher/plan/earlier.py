"""Answers of earlier input or settings, found by the bytes that were sent. Touches: nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from batcher.records import Request
from batcher.write.index import ENTRY, OUTCOMES, Segment
from batcher.write.segment import Kept

__all__ = ["Earlier"]


class Earlier:
    """Answers of earlier epochs, found by key; each is given away once.

    Args:
        segments: Those of the earlier epochs, in order.
        since: Those of the present one; what they refer to is given away already.
    """

    def __init__(self, segments: Sequence[Segment], since: Sequence[Segment] = ()) -> None:
        answered = [n for n, outcome in enumerate(OUTCOMES) if outcome.answered]
        parts = [s.entries[np.isin(s.entries["outcome"], answered)] for s in segments]
        entries: Any = np.concatenate(parts) if parts else np.empty(0, ENTRY)
        # One answer may have been referred to by several epochs; the last place counts.
        _, last = np.unique(_places(entries)[::-1], return_index=True)
        entries = entries[len(entries) - 1 - last]
        for segment in since:
            entries = entries[~np.isin(_places(entries), _places(segment.entries))]
        entries = entries[np.argsort(entries["key_high"], kind="stable")]
        self._entries = entries
        self._keys = entries["key_high"].copy()
        self._takers = np.full(len(entries), -1, np.int64)

    def __len__(self) -> int:
        return len(self._entries)

    def take(self, request: Request) -> Kept | None:
        """A reference to an answer to these bytes, the row's own one first.

        The same row asking again gets the same answer again.
        """
        if not len(self._keys):
            return None
        raw, row = bytes.fromhex(request.key), request.row
        high = np.uint64(int.from_bytes(raw[:8], "little"))
        low = int.from_bytes(raw[8:], "little")
        begin = int(np.searchsorted(self._keys, high, "left"))
        end = int(np.searchsorted(self._keys, high, "right"))
        best = -1
        for at in range(begin, end):
            entry = self._entries[at]
            taker = int(self._takers[at])
            if taker not in (-1, row) or int(entry["key_low"]) != low:
                continue
            if taker == row or int(entry["row"]) == row:
                best = at
                break
            if best < 0:
                best = at
        if best < 0:
            return None
        self._takers[best] = row
        entry = self._entries[best]
        return Kept(
            row=row,
            model=request.model,
            sample=request.sample,
            key=request.key,
            status=OUTCOMES[int(entry["outcome"])],
            custom_id=request.custom_id,
            at=(int(entry["segment"]), int(entry["offset"]), int(entry["length"])),
            extras=int(entry["extras"]),
        )


def _places(entries: Any) -> Any:
    """Where each entry's line stands, as one number: segment, then offset."""
    return (entries["segment"].astype(np.int64) << 40) | entries["offset"]
