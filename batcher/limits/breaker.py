"""A circuit breaker: while everything fails, one probe at a time instead of every row. Touches: nothing."""

from __future__ import annotations

from enum import Enum, auto

__all__ = ["Breaker", "BreakerState"]

_FAILURES = 8
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 15.0
_STUCK_SECONDS = 30.0
_SERVED = frozenset({"answered", "rejected", "refused"})
_FAILED = frozenset({"overloaded", "failed"})


class BreakerState(Enum):
    """Whether requests are let through: all (CLOSED), none until the pause is over (PAUSED), or none beside a PROBE."""

    CLOSED = auto()
    PAUSED = auto()
    PROBE = auto()


class Breaker:
    """Lets one request at a time through once eight in a row have failed.

    | state | event | next state |
    |---|---|---|
    | CLOSED | the eighth failure in a row | PAUSED for 1 s |
    | PAUSED | the pause is over and a request goes | PROBE |
    | PROBE | it fails | PAUSED for twice as long, 15 s at most |
    | PROBE | it is not sent after all | PAUSED, and over |
    | PROBE | 30 s pass without an outcome and a request goes | PROBE |
    | PAUSED, PROBE | the server answers a request that was sent after the breaker opened | CLOSED |

    A refusal and a rejection count as answers: the server works. An outage of a minute costs eight requests and
    seven probes besides those in flight, whatever the load. An answer to a request that was sent before the failures
    began says nothing about them, however late it comes.

    Attributes:
        calm: Whether nothing has failed since the last answer, so that there is nothing to ask or to report.
    """

    def __init__(self) -> None:
        self.calm = True
        self.state = BreakerState.CLOSED
        self._failures = 0
        self._failing_since = float("-inf")  # When the first of the failures in a row was sent.
        self._opened = self._pause_over = self._probe_sent = float("-inf")
        self._pause = _FIRST_PAUSE

    @property
    def open(self) -> bool:
        """Whether only probes are let through."""
        return self.state is not BreakerState.CLOSED

    def probing(self, now: float) -> bool:
        """Whether a probe is in flight that may still be answered."""
        return self.state is BreakerState.PROBE and now - self._probe_sent < _STUCK_SECONDS

    def delay(self, now: float) -> float:
        """Seconds until a request may go."""
        match self.state:
            case BreakerState.CLOSED:
                return 0.0
            case BreakerState.PAUSED:
                return max(0.0, self._pause_over - now)
            case BreakerState.PROBE:
                return max(0.0, self._probe_sent + _STUCK_SECONDS - now)

    def take(self, now: float) -> None:
        """A request goes; while the breaker is open it is the probe."""
        if self.state is not BreakerState.CLOSED:
            self.state, self._probe_sent = BreakerState.PROBE, now

    def observe(self, kind: str, sent_at: float, now: float) -> None:
        """A request that was sent at a time has ended; `kind` as in `ExchangeOutcome`."""
        if kind in _SERVED:
            self._served(sent_at)
        elif kind in _FAILED:
            self._failed(sent_at, now)
        elif self._is_probe(sent_at):
            self.state, self._pause_over = BreakerState.PAUSED, now

    def _served(self, sent_at: float) -> None:
        if sent_at >= (self._opened if self.open else self._failing_since):
            self.calm, self.state = True, BreakerState.CLOSED
            self._failures = 0

    def _failed(self, sent_at: float, now: float) -> None:
        self._failing_since = min(self._failing_since, sent_at) if self._failures else sent_at
        self._failures += 1
        self.calm = False
        if self.state is BreakerState.CLOSED:
            if self._failures >= _FAILURES:
                self._opened, self._pause = now, _FIRST_PAUSE
                self.state, self._pause_over = BreakerState.PAUSED, now + self._pause
        elif self._is_probe(sent_at):
            self._pause = min(_LONGEST_PAUSE, 2 * self._pause)
            self.state, self._pause_over = BreakerState.PAUSED, now + self._pause

    def _is_probe(self, sent_at: float) -> bool:
        return self.state is BreakerState.PROBE and sent_at >= self._probe_sent
