"""A limit per minute as arithmetic on a given time. Touches: nothing.

Every method gets the time (seconds of a monotonic clock) and returns at once; `limits.gate` alone waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

__all__ = ["ROUNDING_SECONDS", "SlidingSum", "TokenBucket"]

ROUNDING_SECONDS = 1e-9
"""A shorter delay is an error of rounding, and waiting for it might never end."""

# A client that uses 99 % of a limit and saves up half a second of it sends no more than the limit
# in any minute (0.99 + 0.5 / 60 < 1), and does not bunch where servers count by the second.
_SHARE = 0.99
_SAVED_SECONDS = 0.5
_WARM_UP_SECONDS = 10.0
_NEVER = float("inf")


class TokenBucket:
    """A number of units per minute, evenly spread.

    Half a second of units is saved up, because senders may be late. The bucket starts with one unit, and for ten
    seconds from the first request on it saves up less, so that a run does not start with a burst.

    >>> requests = TokenBucket(per_minute=60, now=0.0)
    >>> requests.take(1, now=0.0)
    >>> round(requests.delay(1, now=0.0), 2)
    1.01

    Attributes:
        per_minute: The limit of the server.
        rate: Units per second that the bucket lets through.
    """

    def __init__(self, per_minute: float, now: float) -> None:
        self._level, self._since = (
            1.0,
            now,
        )  # Units at that time; negative while a large request is paid off.
        self._warm_at = _NEVER
        self._adopt(per_minute)

    def _adopt(self, per_minute: float) -> None:
        self.per_minute = per_minute
        self.rate = per_minute * _SHARE / 60
        self._capacity = max(1.0, self.rate * _SAVED_SECONDS)

    def set(self, per_minute: float, now: float) -> None:
        """Replaces the limit."""
        self._fill(1.0, now)
        self._adopt(per_minute)

    def delay(self, amount: float, now: float) -> float:
        """Seconds until `amount` units are allowed; 0.0 if they are allowed now.

        An amount above the capacity is allowed when the bucket is full; the requests after it pay it off.
        """
        missing = min(amount, self._capacity) - self._level
        seconds = self._since + missing / self.rate - now
        return seconds if seconds > ROUNDING_SECONDS else 0.0

    def take(self, amount: float, now: float) -> None:
        """Uses `amount` units."""
        self._fill(amount, now)
        self._level -= amount
        if self._warm_at == _NEVER:
            self._warm_at = now + _WARM_UP_SECONDS

    def settle(self, reserved: float, used: float, now: float) -> None:
        """Returns units that were taken and not used, or takes those that were used beyond."""
        self._fill(reserved, now)
        self._level = min(self._capacity, self._level + reserved - used)

    def hold(self, until: float, now: float) -> None:
        """Saves up nothing before a time, so that no burst follows a pause."""
        self._fill(1.0, now)
        self._level = min(self._level, 0.0)
        self._since = max(self._since, until)

    def _fill(self, amount: float, now: float) -> None:
        """Adds what has come since the last change, for a request of `amount` units."""
        if now <= self._since:
            return
        level, capacity = self._level + (now - self._since) * self.rate, self._capacity
        if now < self._warm_at and level > amount:
            warm = capacity * (1.0 - (self._warm_at - now) / _WARM_UP_SECONDS)
            capacity = min(capacity, max(amount, self._level, warm))
        self._level = min(capacity, level)
        self._since = now


class SlidingSum:
    """Sums over the last minute, in steps of half a second."""

    _STEP, _SPAN = 0.5, 60.0

    def __init__(self) -> None:
        self._steps: deque[list[float]] = deque()  # [step, amount, count], the oldest first
        self._newest, self._begins, self._ends = [0.0, 0.0, 0.0], 0.0, 0.0

    def add(self, amount: float, at: float, count: int = 1) -> None:
        """Adds an amount, which counts as `count`, at a time that may lie a little in the past."""
        if self._begins <= at < self._ends:  # The usual case.
            self._newest[1] += amount
            self._newest[2] += count
            return
        step = at // self._STEP
        for held in reversed(self._steps):
            if held[0] == step:
                held[1] += amount
                held[2] += count
                return
            if held[0] < step:
                break
        self._newest = [step, amount, count]
        self._steps.append(self._newest)
        self._begins = step * self._STEP
        self._ends = self._begins + self._STEP
        while self._steps[0][0] < (at - self._SPAN) // self._STEP:
            self._steps.popleft()

    def sum(self, now: float, seconds: float = _SPAN) -> float:
        """The sum of the amounts of the last `seconds`, 60 at most."""
        return sum(amount for _step, amount, _count in self._since(now, seconds))

    def count(self, now: float) -> float:
        """The number of additions in the last minute."""
        return sum(count for _step, _amount, count in self._since(now, self._SPAN))

    def _since(self, now: float, seconds: float) -> Iterator[list[float]]:
        first = (now - seconds) / self._STEP
        return (step for step in self._steps if step[0] >= first)
