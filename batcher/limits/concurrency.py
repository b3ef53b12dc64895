"""How many requests may be in flight, found from how fast answers come. Touches: nothing."""

from __future__ import annotations

import math

__all__ = ["MOST", "Concurrency"]

MOST = 1000
"""The upper bound of what is found."""


class Concurrency:
    """How many requests may be in flight: a fixed number, or one that is found.

    It begins at 16 and doubles as long as that brings a tenth more answers per second. Where it does not, the
    server queues: by Little's law as many requests are worth sending as it answers per second times the time that
    one takes without a queue, and a tenth more. From there it tries a quarter more from time to time. Overloads
    (503, 529, no answer in time) halve it, once they are three and a twentieth of the answers, and from there it
    grows by quarters only. Overloads that follow a try take back the try, and the next one comes later.

    Args:
        fixed: The fixed number; None to find it.

    Attributes:
        limit: How many may be in flight now.
        fixed: Whether it is fixed, so that there is nothing to find.
    """

    _GAIN = 1.1
    _CUT_SECONDS = 5.0
    _FEW, _OFTEN = 3, 0.05

    def __init__(self, fixed: int | None) -> None:
        self.limit = fixed if fixed is not None else 16
        self.fixed = fixed is not None
        self._doubling = True
        self._trying: tuple[int, float] | None = None  # (limit, rate) to fall back to
        self._quiet = math.inf  # Mean seconds of an answer when there was no queue.
        self._best = 0.0
        self._enough = math.inf  # Where doubling ends: half of what was too much.
        self._steps = 16
        self._reset(None)
        self._cut = float("-inf")
        self._answered_since_cut = True
        self._overloads = self._recent = 0

    def _reset(self, now: float | None) -> None:
        self._answers, self._seconds, self._busy, self._since = 0, 0.0, 0, now

    def begin_at(self, limit: int) -> None:
        """Starts from a limit that was found before."""
        if not self.fixed:
            self.limit, self._doubling = max(1, min(MOST, limit)), False

    def answered(self, in_flight: int, latency: float, now: float) -> None:
        """An answer came after `latency` seconds; `in_flight` counts its request as well."""
        if self.fixed:
            return
        if self._since is None:
            self._reset(now)
            return
        self._answered_since_cut = True
        self._recent += 1
        if self._recent >= 8 * max(self.limit, 16):  # What was long ago says nothing about now.
            self._recent, self._overloads = self._recent // 2, self._overloads // 2
        self._answers += 1
        self._seconds += latency
        self._busy += in_flight >= 0.9 * self.limit
        steps = 2 if self._doubling or self._trying else self._steps
        if self._answers < steps * max(self.limit, 16) or now <= self._since:
            return
        rate, mean = self._answers / (now - self._since), self._seconds / self._answers
        # Only a measurement at the limit says anything about a higher limit.
        if self._busy >= 0.8 * self._answers:
            self._judge(rate, mean)
        self._reset(None)  # Answers at the old limit are still to come: let one pass.

    def _judge(self, rate: float, mean: float) -> None:
        self._quiet = min(self._quiet, mean)
        knee = max(1, math.ceil(1.1 * rate * self._quiet))
        if self._doubling:
            if rate > self._GAIN * self._best:
                self._best = rate
                self.limit = int(min(MOST, 2 * self.limit, self._enough))
                self._doubling = self.limit < self._enough
            else:
                self._doubling = False
                self.limit = min(self.limit, max(knee, 2))
        elif self._trying is not None:
            before, old = self._trying
            self._trying = None
            if rate <= 1.05 * old:
                self.limit = before
        else:
            self._trying = (self.limit, rate)
            self.limit = min(MOST, max(self.limit + 1, self.limit * 5 // 4))

    def overloaded(self, now: float) -> None:
        """The server is overloaded, or did not answer in time; at most one cut in 5 s."""
        if self.fixed or now - self._cut < self._CUT_SECONDS:
            return
        self._overloads += 1
        # One of many is no overload: some gateways fail a few at any concurrency.
        if self._overloads < max(self._FEW, self._OFTEN * (self._recent + self._overloads)):
            return
        self._overloads = self._recent = 0
        self._cut = now
        if self._trying is not None:
            self.limit, _rate = self._trying
            self._steps = min(256, 2 * self._steps)
        else:
            self.limit = max(1, self.limit // 2)
        if self._answered_since_cut:  # In an outage only the first cut says how much is enough.
            self._enough = self.limit
        self._answered_since_cut = False
        self._best, self._doubling, self._trying = 0.0, self.limit < self._enough, None
        self._reset(now)
