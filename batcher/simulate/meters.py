"""The ways in which servers meter, as arithmetic on a given time. Touches: nothing."""

from __future__ import annotations

__all__ = ["Bucket", "Meter", "Window", "meter"]


class Bucket:
    """Refills evenly; holds what `depth_s` seconds bring.

    Attributes:
        limit: Units a minute.
    """

    def __init__(self, limit: float, depth_s: float) -> None:
        self.limit = limit
        self._rate = limit / 60
        self._most = max(1.0, self._rate * depth_s)
        self._level, self._now = self._most, 0.0

    def _fill(self, now: float) -> None:
        self._level = min(self._most, self._level + max(0.0, now - self._now) * self._rate)
        self._now = max(self._now, now)

    def refusal(self, amount: float, now: float) -> float | None:
        """None when `amount` is allowed now, else the seconds after which it would be."""
        self._fill(now)
        missing = min(amount, self._most) - self._level
        return missing / self._rate if missing > 1e-9 else None

    def take(self, amount: float, now: float) -> None:
        """Books `amount`; negative gives back. What is booked after the fact may go below zero."""
        self._fill(now)
        self._level = min(self._most, self._level - amount)

    def remaining(self, now: float) -> float:
        """Units left now."""
        self._fill(now)
        return max(0.0, self._level)


class Window:
    """Counts in windows of `span_s` seconds that begin at multiples of it."""

    def __init__(self, limit: float, span_s: float) -> None:
        self.limit = limit
        self._span = span_s
        self._most = max(1.0, limit * span_s / 60)
        self._used, self._window = 0.0, -1

    def _turn(self, now: float) -> None:
        window = int(now // self._span)
        if window > self._window:
            self._used, self._window = 0.0, window

    def refusal(self, amount: float, now: float) -> float | None:
        """None when `amount` is allowed now, else the seconds until the window turns."""
        self._turn(now)
        if self._used + min(amount, self._most) <= self._most + 1e-9:
            return None
        return (self._window + 1) * self._span - now

    def take(self, amount: float, now: float) -> None:
        """Books `amount` in the window of now."""
        self._turn(now)
        self._used += amount

    def remaining(self, now: float) -> float:
        """Units left in this window."""
        self._turn(now)
        return max(0.0, self._most - self._used)


Meter = Bucket | Window


def meter(kind: str, limit: float) -> Meter:
    """A meter of one of the four kinds: bucket-60s, bucket-1s, window-60s, window-1s."""
    shape, _, span = kind.partition("-")
    seconds = float(span.removesuffix("s"))
    return Bucket(limit, seconds) if shape == "bucket" else Window(limit, seconds)
