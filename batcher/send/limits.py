"""Requests and tokens per minute, and requests at once, as arithmetic on a given time.

Touches: nothing. Every method is told the time (a monotonic clock, seconds) and answers at once;
`send.gate` alone waits.
"""

from __future__ import annotations

__all__ = ["Allowance", "Concurrency", "Estimate"]

# A client that uses 99 % of a limit and saves up at most a second of it is refused by none of three
# kinds of servers and 0.5 % of the time by the fourth, one-second windows (simulated).
_SHARE = 0.99
_SAVED_SECONDS = 1.0


class Allowance:
    """So many units a minute, evenly spread, at most one second of them saved up.

    >>> requests = Allowance(per_minute=60, now=0.0)
    >>> requests.take(1, now=0.0)
    >>> round(requests.wait(1, now=0.0), 2)
    1.01

    Args:
        per_minute: The limit that the gateway sets.
        now: The clock at the start; the allowance starts with what it may save up.
    """

    def __init__(self, per_minute: float, now: float) -> None:
        self._rate = per_minute * _SHARE / 60
        self._most = max(1.0, self._rate * _SAVED_SECONDS)
        self._level = self._most
        self._now = now

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` is allowed; 0.0 if it is allowed now.

        An amount above all that can be saved up waits for a full allowance instead of for ever,
        and is paid off by those after it.
        """
        self._fill(now)
        missing = min(amount, self._most) - self._level
        # Less than a billionth is rounding, and waiting for it could go on for ever.
        return missing / self._rate if missing > 1e-9 else 0.0

    def take(self, amount: float, now: float) -> None:
        """Uses `amount`; below zero when more was needed than could be saved up."""
        self._fill(now)
        self._level -= amount

    def settle(self, reserved: float, used: float, now: float) -> None:
        """Puts back what was reserved and not used, or takes what was used beyond it."""
        self._fill(now)
        self._level = min(self._most, self._level + reserved - used)

    def _fill(self, now: float) -> None:
        if now > self._now:
            self._level = min(self._most, self._level + (now - self._now) * self._rate)
            self._now = now


class Concurrency:
    """How many requests may be in flight.

    Told a number, it is that number. Told nothing, it begins at 16 and doubles as long as that
    raises the number of answers a second by a tenth; it halves when the server is overloaded.

    Args:
        told: The fixed number, or None to find it.
        most: Upper bound of what is found.
    """

    def __init__(self, told: int | None, most: int = 1000) -> None:
        self.limit = told if told is not None else min(16, most)
        self._fixed = told is not None
        self._most = most
        self._best = 0.0
        self._answers = 0
        self._since: float | None = None
        self._cut = float("-inf")

    def answered(self, in_flight: int, now: float) -> None:
        """One answer came; `in_flight` is how many were under way, this one included."""
        if self._fixed:
            return
        if self._since is None:
            self._since = now
        self._answers += 1
        # Only what was measured with all places taken says anything about more places.
        if self._answers < 2 * self.limit or now <= self._since:
            return
        rate = self._answers / (now - self._since)
        if in_flight >= 0.9 * self.limit and rate > 1.1 * self._best:
            self._best = rate
            self.limit = min(self._most, self.limit * 2)
        self._answers, self._since = 0, now

    def overloaded(self, now: float) -> None:
        """The server said that it is overloaded, or did not answer; at most one cut in 5 s."""
        if self._fixed or now - self._cut < 5.0:
            return
        self._cut = now
        self.limit = max(1, self.limit // 2)
        self._best, self._answers, self._since = 0.0, 0, now


class Estimate:
    """How many tokens a request will use, learned per model from the usage that comes back.

    No tokenizer: prompt tokens are bytes of the body divided by a ratio that starts at 4.
    """

    def __init__(self) -> None:
        self._bytes, self._prompt_tokens = 4000.0, 1000.0
        self._answers, self._output_tokens = 0, 0.0

    def tokens(self, body_bytes: int, max_tokens: int | None) -> float:
        """Prompt and answer together, the answer at the mean seen so far, at most `max_tokens`."""
        mean = self._output_tokens / self._answers if self._answers else 250.0
        output = min(mean, max_tokens) if max_tokens is not None else mean
        return max(1.0, body_bytes * self._prompt_tokens / self._bytes + output)

    def learn(self, body_bytes: int, prompt_tokens: int | None, output_tokens: int | None) -> None:
        """Takes note of one answer's usage; what was not reported teaches nothing."""
        if prompt_tokens:
            self._bytes = self._bytes * 0.999 + body_bytes
            self._prompt_tokens = self._prompt_tokens * 0.999 + prompt_tokens
        if output_tokens is not None:
            self._answers += 1
            self._output_tokens += output_tokens
