"""While everything fails: one probe at a time instead of every row. Touches: nothing."""

from __future__ import annotations

__all__ = ["Breaker"]


class Breaker:
    """Opens after eight failures in a row, of requests sent after the last that was answered.

    Then one request at a time is let through, after 1, 2, 4, 8, 15, 15 … s, and the first that the
    server answers closes it again. An outage of a minute so costs eight requests and seven probes
    besides those in flight, whatever the load. What was sent before the failures began says nothing
    about them, however late its answer comes.

    Attributes:
        calm: Whether nothing failed since the last answer, so that there is nothing to ask or tell it.
    """

    _FAILURES = 8
    _MOST_SECONDS = 15.0
    _STUCK_SECONDS = 30.0  # A probe that hangs is not waited for longer than this.

    def __init__(self) -> None:
        self.calm = True
        self._failures = 0
        self._since = float("-inf")  # When the first of the failures in a row was sent.
        self._opened: float | None = None
        self._probe_after = 0.0
        self._probe_sent: float | None = None
        self._pause = 1.0

    @property
    def open(self) -> bool:
        """Whether only probes are let through."""
        return self._opened is not None

    def probing(self, now: float) -> bool:
        """Whether a probe is under way and may still be answered."""
        sent = self._probe_sent
        return self.open and sent is not None and now - sent < self._STUCK_SECONDS

    def wait(self, now: float) -> float:
        """Seconds until a request may go."""
        if self._opened is None:
            return 0.0
        if self._probe_sent is not None:
            return max(0.0, self._probe_sent + self._STUCK_SECONDS - now)
        return max(0.0, self._probe_after - now)

    def take(self, now: float) -> None:
        """A request goes; while open it is the probe."""
        if self._opened is not None:
            self._probe_sent = now

    def failed(self, sent_at: float, now: float) -> None:
        """A request that was sent then failed on the server's side."""
        if not self._failures:
            self._since = sent_at
        self._since = min(self._since, sent_at)
        self._failures += 1
        self.calm = False
        if self._opened is None:
            if self._failures >= self._FAILURES:
                self._opened, self._pause, self._probe_sent = now, 1.0, None
                self._probe_after = now + self._pause
        elif self._probe_sent is not None and sent_at >= self._probe_sent:
            self._probe_sent = None
            self._pause = min(self._MOST_SECONDS, 2 * self._pause)
            self._probe_after = now + self._pause

    def succeeded(self, sent_at: float) -> None:
        """The server answered what was sent then: with an answer, or with a thought-out refusal."""
        if sent_at < (self._since if self._opened is None else self._opened):
            return
        self._failures = 0
        self._opened = self._probe_sent = None
        self.calm = True

    def unsent(self, sent_at: float, now: float) -> None:
        """A request was let in and then not sent; if it was the probe, the next one goes."""
        if self._probe_sent is not None and sent_at >= self._probe_sent:
            self._probe_sent, self._probe_after = None, now
