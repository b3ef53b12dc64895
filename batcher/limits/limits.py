"""All limits of a model, or of the key: requests, tokens and places. Touches: nothing.

Each unit has three sources, told, read and learned; the strictest counts.
"""

from __future__ import annotations

from collections.abc import Sequence

from batcher.job.job import Limits
from batcher.limits.bucket import AdaptiveRate, SlidingSum, TokenBucket
from batcher.limits.concurrency import Concurrency
from batcher.limits.headers import RateLimitHeaders, ShortWindow

__all__ = ["NEVER", "Limit", "LimitSet"]

NEVER = float("inf")
_READ_LASTS = 120.0


class Limit:
    """One kind of unit of one level: what was told, what headers say, what refusals teach.

    What succeeds beats what headers say: a minute's limit may be a second's, and nothing left may be enough.

    Args:
        told: Units a minute; None for nothing told.
        now: The clock at the start.
        learns: Whether refusals teach it.
        wins: Whether headers do not count, as what was told says so.

    Attributes:
        used: Units that were let through and not refused.
    """

    def __init__(
        self, told: float | None, now: float, *, learns: bool, wins: bool = False
    ) -> None:
        self.wins = wins
        self._short = ShortWindow()
        self._ahead = 0  # May go before what headers say allows it.
        self._empty_until: float | None = (
            None  # Until when a header said that there is nothing left.
        )
        self._empty_ignored = False
        self._told = TokenBucket(told, now) if told else None
        self._read: TokenBucket | None = None
        self.learned = AdaptiveRate() if learns else None
        self._refusals = SlidingSum()
        self._refused_at = self._read_at = float("-inf")
        self.used = 0.0
        self._began: float | None = None
        self._last = now

    @property
    def limit(self) -> float | None:
        """Units a minute as told or read; None when neither."""
        known = [a.per_minute for a in (self._told, self._read) if a is not None]
        return min(known) if known else None

    def share(self) -> float | None:
        """Part of the known limit that was used, from the first request to the last.

        None when no limit is known, or in the first half minute, which says nothing yet.
        """
        limit = self.limit
        if limit is None or self._began is None or self._last - self._began < 30.0:
            return None
        return self.used / (limit / 60 * (self._last - self._began))

    def pace(self, now: float) -> float | None:
        """Units a second that the strictest source allows; None when there is no limit."""
        known = [a.pace for a in (self._told, self._read) if a is not None]
        if self.learned is not None and (rate := self.learned.now(now)) is not None:
            known.append(rate)
        return min(known, default=None)

    def wait(self, amount: float, now: float) -> float:
        """Seconds until all three sources allow so much."""
        longest = 0.0 if self._told is None else self._told.wait(amount, now)
        if (
            self._read is not None
            and not self._ahead
            and (wait := self._read.wait(amount, now)) > longest
        ):
            longest = wait
        learned = self.learned
        if learned is not None and learned.rate is not None:
            longest = max(longest, learned.wait(amount, now))
        return longest

    def take(self, amount: float, now: float) -> None:
        """Uses so much."""
        if self._began is None:
            self._began = now
        self._last = now
        self.used += amount
        if self._told is not None:
            self._told.take(amount, now)
        if self._ahead:
            self._ahead -= 1
        elif self._read is not None:
            self._read.take(amount, now)
        if self.learned is not None:
            self.learned.take(amount, now)

    def settle(self, reserved: float, used: float, now: float) -> None:
        """Puts back what was reserved and not used, or takes what was used beyond it."""
        self.used += used - reserved
        if self._told is not None:
            self._told.settle(reserved, used, now)
        if self._read is not None:
            self._read.settle(reserved, used, now)
        if self.learned is not None:
            self.learned.settle(reserved, used, now)

    def hold(self, until: float) -> None:
        """Saves up nothing before a time."""
        for allowance in (self._told, self._read):
            if allowance is not None:
                allowance.hold(until)

    def hear(
        self, said: Sequence[RateLimitHeaders], sent_at: float, now: float, *, answered: bool
    ) -> None:
        """What the headers of a reply say of these units; `answered` for no refusal and no failure."""
        if self.wins:
            return
        for one in said:
            if answered:
                self._short.observe(one, now)
        faster = 60.0 if self._short.found else 1.0
        told = [
            (one, pace) for one in said if (pace := one.per_minute) is not None and pace >= 1.0
        ]
        paces = [pace if one.named else pace * faster for one, pace in told]
        if paces or answered:
            self.read(min(paces, default=None), now)
        pauses = [pause for one in said if (pause := one.pause) is not None]
        if not pauses or self._empty_ignored:
            return
        if answered and self._empty_until is not None and sent_at >= self._empty_until:
            # The window turned, there is nothing left still, and it was answered: that means nothing.
            self._empty_ignored = True
            return
        self._empty_until = now + max(pauses)
        self.hold(self._empty_until)

    def send_ahead(self, now: float) -> bool:
        """Whether some may go ahead of what headers say, for somebody waits for that."""
        if self._read is None or self._ahead or self._told is not None:
            return False
        self._ahead = self._short.ahead(now)
        return self._ahead > 0

    def read(self, per_minute: float | None, now: float) -> None:
        """What the headers of an answer say; None when they say nothing."""
        if per_minute is None:
            if now - self._read_at > _READ_LASTS:
                self._read = None
            return
        self._read_at = now
        if self._read is None:
            self._read = TokenBucket(per_minute, now)
        elif self._read.per_minute != per_minute:
            self._read.set(per_minute)

    def refused(
        self, amount: float, sent_at: float, now: float, retry_after: float | None
    ) -> bool:
        """Learns from a refusal; False when it says nothing of the rate.

        A known limit is trusted more than a few of them, and what was under way together when the
        first came back is one.
        """
        assert self.learned is not None
        self._ahead = 0
        self._empty_ignored, self._empty_until = False, None
        if sent_at >= self._refused_at:
            self._refused_at = now
            self._refusals.add(1, now)
        if self._refusals.sum(now) > max(5.0, 0.05 * self.learned.sent(now)):
            self._short.refute()
        few = self._refusals.sum(now) < max(5.0, 0.02 * self.learned.sent(now))
        if self.limit is not None and few and self.learned.rate is None:
            return False
        known = None if self.limit is None else self.limit / 60
        return self.learned.refused(amount, sent_at, now, retry_after, known)


class LimitSet:
    """All limits of a model, or of the key."""

    def __init__(
        self, limits: Limits, concurrency: Concurrency, now: float, *, learns: bool
    ) -> None:
        self.requests = Limit(limits.rpm, now, learns=learns, wins=limits.rpm_wins)
        self.tokens = Limit(limits.tpm, now, learns=learns, wins=limits.tpm_wins)
        self.concurrency = concurrency
        self.in_flight = 0

    def wait(self, tokens: float, now: float) -> tuple[float, str]:
        """(seconds until allowed, what is waited for); infinite when all places are taken."""
        if self.in_flight >= self.concurrency.limit:
            return NEVER, "a free place"
        longest, cause = self.requests.wait(1, now), "requests"
        if (wait := self.tokens.wait(tokens, now)) > longest:
            longest, cause = wait, "tokens"
        return longest, cause

    def take(self, tokens: float, now: float) -> None:
        """A request goes."""
        self.in_flight += 1
        self.requests.take(1, now)
        self.tokens.take(tokens, now)

    def leave(self, reserved: float, used: float | None, now: float) -> None:
        """A request is over; `used` None keeps what was reserved."""
        self.in_flight -= 1
        if used is not None:
            self.tokens.settle(reserved, used, now)
