"""What went on when: answers a second and requests in flight over time. Touches: nothing."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import NamedTuple

__all__ = ["Course", "Moment"]

_MOST = 1500


class Moment(NamedTuple):
    """A stretch of time.

    Attributes:
        at: Its middle, Unix time in milliseconds.
        per_second: Requests that ended in it, a second.
        in_flight: Requests that were under way, on average.
    """

    at: int
    per_second: float
    in_flight: float


class Course:
    """Counts requests by time, in memory that does not grow with them.

    Where there are too many stretches of time, each becomes twice as long; those in which nothing
    happened cost nothing.

    Attributes:
        width: Length of a stretch, in milliseconds.
    """

    def __init__(self) -> None:
        self.width = 1000
        self._begun: defaultdict[int, int] = defaultdict(int)
        self._ended: defaultdict[int, int] = defaultdict(int)
        # Milliseconds from each begin and end to the end of its stretch: what a request that
        # begins or ends in the middle weighs.
        self._rest: defaultdict[int, int] = defaultdict(int)

    def add(self, begun: int, latency: int) -> None:
        """Takes a request: when it was sent (Unix time) and how long it took, in milliseconds."""
        ended, width = begun + latency, self.width
        first, last = begun // width, ended // width
        self._begun[first] += 1
        self._rest[first] += (first + 1) * width - begun
        self._ended[last] += 1
        self._rest[last] -= (last + 1) * width - ended
        if len(self._rest) > _MOST:
            self._widen()

    def _widen(self) -> None:
        old, self.width = self.width, 2 * self.width
        rest: defaultdict[int, int] = defaultdict(int)
        for at, ms in self._rest.items():
            # What lies in the first half has the second one before it, too.
            half = old * (self._begun.get(at, 0) - self._ended.get(at, 0)) if at % 2 == 0 else 0
            rest[at // 2] += ms + half
        self._rest = rest
        for name in ("_begun", "_ended"):
            merged: defaultdict[int, int] = defaultdict(int)
            for at, n in getattr(self, name).items():
                merged[at // 2] += n
            setattr(self, name, merged)

    def moments(self) -> list[Moment]:
        """In order; a stretch of time in which nothing began or ended has its first and its last."""
        width = self.width
        known = sorted(self._rest)
        edges = {of for at in known for of in (at - 1, at, at + 1)}
        level, found = 0, []
        for at in sorted(edges):
            begun, ended = self._begun.get(at, 0), self._ended.get(at, 0)
            in_flight = level + self._rest.get(at, 0) / width
            found.append(Moment(at * width + width // 2, 1000 * ended / width, in_flight))
            level += begun - ended
        return found

    def pauses(self) -> list[tuple[int, int]]:
        """(from, to) of the long times in which nothing was under way, in milliseconds."""
        moments = self.moments()
        known = len(self._rest) * self.width
        return [
            (one.at, other.at)
            for one, other in pairwise(moments)
            if other.at - one.at > max(60_000, known // 4) and not one.in_flight
        ]
