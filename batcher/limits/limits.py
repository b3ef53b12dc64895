"""All limits of a model, or of a key: requests, tokens and requests in flight. Touches: nothing."""

from __future__ import annotations

from collections.abc import Sequence

from batcher.job.job import Limits
from batcher.limits.adaptive import AdaptiveRate
from batcher.limits.bucket import SlidingSum, TokenBucket
from batcher.limits.concurrency import Concurrency
from batcher.limits.headers import RateLimitHeaders, ShortWindow

__all__ = ["FULL", "NEVER", "Limit", "LimitSet"]

NEVER = float("inf")
FULL = "a free place"
_ADVERTISED_SECONDS = 120.0
_SHARE_SECONDS = 30.0


class Limit:
    """The limit of one kind of unit, from three sources: configured, advertised by headers, and learned from refusals.

    The strictest source counts. What succeeds beats what headers say: an advertised minute may be a second, and
    requests may be answered although nothing remains.

    Args:
        configured: Units per minute; None if the user set no limit.
        now: The clock at the start.
        learns: Whether refusals teach it.
        ignores_headers: Whether the configured limit counts whatever headers say.

    Attributes:
        used: Units that were let through and not refused.
        learned: The rate that refusals taught; None if they do not teach it.
    """

    def __init__(
        self, configured: float | None, now: float, *, learns: bool, ignores_headers: bool = False
    ) -> None:
        self.used = 0.0
        self.learned = AdaptiveRate() if learns else None
        self._configured = TokenBucket(configured, now) if configured else None
        self._ignores_headers = ignores_headers
        self._advertised: TokenBucket | None = None
        self._advertised_at = float("-inf")
        self._short_window = ShortWindow()
        self._ahead = 0  # Requests that may go ahead of the advertised pace.
        self._empty_until: float | None = None  # By a header that said that nothing remains.
        self._empty_ignored = False
        self._refusals = SlidingSum()
        self._refused_at = float("-inf")
        self._began: float | None = None
        self._last = now

    @property
    def per_minute(self) -> float | None:
        """The configured or advertised limit, whichever is lower; None if there is none."""
        known = [b.per_minute for b in (self._configured, self._advertised) if b is not None]
        return min(known, default=None)

    def share(self) -> float | None:
        """Part of the known limit that was used, from the first request to the last.

        None if no limit is known, or in the first half minute, which says nothing yet.
        """
        limit = self.per_minute
        if limit is None or self._began is None or self._last - self._began < _SHARE_SECONDS:
            return None
        return self.used / (limit / 60 * (self._last - self._began))

    def rate(self, now: float) -> float | None:
        """Units per second that the strictest source lets through; None without a limit."""
        known = [b.rate for b in (self._configured, self._advertised) if b is not None]
        if self.learned is not None and (rate := self.learned.rate(now)) is not None:
            known.append(rate)
        return min(known, default=None)

    def delay(self, amount: float, now: float) -> float:
        """Seconds until all three sources allow `amount`."""
        longest = 0.0 if self._configured is None else self._configured.delay(amount, now)
        advertised = self._advertised
        if (
            advertised is not None
            and not self._ahead
            and (delay := advertised.delay(amount, now)) > longest
        ):
            longest = delay
        learned = self.learned
        if learned is not None and learned.limited:
            longest = max(longest, learned.delay(amount, now))
        return longest

    def take(self, amount: float, now: float) -> None:
        """Uses `amount`."""
        if self._began is None:
            self._began = now
        self._last = now
        self.used += amount
        if self._configured is not None:
            self._configured.take(amount, now)
        if self._ahead:
            self._ahead -= 1
        elif self._advertised is not None:
            self._advertised.take(amount, now)
        if self.learned is not None:
            self.learned.take(amount, now)

    def settle(self, reserved: float, used: float, now: float) -> None:
        """Returns what was taken and not used, or takes what was used beyond it."""
        self.used += used - reserved
        if self._configured is not None:
            self._configured.settle(reserved, used, now)
        if self._advertised is not None:
            self._advertised.settle(reserved, used, now)
        if self.learned is not None:
            self.learned.settle(reserved, used, now)

    def hold(self, until: float, now: float) -> None:
        """Saves up nothing before a time."""
        for bucket in (self._configured, self._advertised):
            if bucket is not None:
                bucket.hold(until, now)

    def begin_at(self, rate: float, now: float) -> None:
        """Starts from a learned rate that was found before, unless a limit is known."""
        if self.learned is not None and self.per_minute is None:
            self.learned.begin_at(rate, now)

    # Headers

    def advertised(
        self,
        headers: Sequence[RateLimitHeaders],
        sent_at: float,
        now: float,
        *,
        answered: bool,
        waiting: bool = False,
    ) -> None:
        """Learns from the headers of a response about these units.

        Args:
            headers: What they advertise; empty if nothing.
            sent_at: When the request was sent.
            now: When the response came.
            answered: Whether it is an answer, no refusal and no failure.
            waiting: Whether requests stand in line, so that some can be sent ahead of the pace.
        """
        if self._ignores_headers:
            return
        if answered:
            for header in headers:
                self._short_window.observe(header, now)
        factor = 60.0 if self._short_window.found else 1.0
        paces = [
            pace if header.named else pace * factor
            for header in headers
            if (pace := header.per_minute) is not None and pace >= 1.0
        ]
        if paces:
            self._advertise(min(paces), now)
        elif answered and now - self._advertised_at > _ADVERTISED_SECONDS:
            self._advertised = None
        self._observe_empty(headers, sent_at, now, answered=answered)
        if (
            waiting
            and self._advertised is not None
            and self._configured is None
            and not self._ahead
        ):
            self._ahead = self._short_window.send_ahead(now)

    def _advertise(self, per_minute: float, now: float) -> None:
        self._advertised_at = now
        if self._advertised is None:
            self._advertised = TokenBucket(per_minute, now)
        elif self._advertised.per_minute != per_minute:
            self._advertised.set(per_minute, now)

    def _observe_empty(
        self, headers: Sequence[RateLimitHeaders], sent_at: float, now: float, *, answered: bool
    ) -> None:
        pauses = [pause for header in headers if (pause := header.pause) is not None]
        if not pauses or self._empty_ignored:
            return
        if answered and self._empty_until is not None and sent_at >= self._empty_until:
            # The window has turned, nothing remains still, and there was an answer: "nothing" has no meaning here.
            self._empty_ignored = True
            return
        self._empty_until = now + max(pauses)
        self.hold(self._empty_until, now)

    # Refusals

    def refused(
        self, amount: float, sent_at: float, now: float, retry_after: float | None
    ) -> bool:
        """Learns from a refusal; False when it says nothing about the rate.

        A known limit is trusted more than a few refusals, and the refusals of requests that were in flight together
        count as one.
        """
        assert self.learned is not None
        self._ahead = 0
        self._empty_ignored, self._empty_until = False, None
        if sent_at >= self._refused_at:
            self._refused_at = now
            self._refusals.add(1, now)
        refusals, sent = self._refusals.sum(now), self.learned.sent(now)
        if refusals > max(5.0, 0.05 * sent):
            self._short_window.refute()
        known = self.per_minute
        if known is not None and not self.learned.limited and refusals < max(5.0, 0.02 * sent):
            return False
        return self.learned.refused(
            amount, sent_at, now, retry_after, None if known is None else known / 60
        )


class LimitSet:
    """All limits of a model, or of a key; amounts are tokens, and each request counts as one request.

    Attributes:
        requests, tokens: The limits per minute.
        concurrency: How many requests may be in flight.
        in_flight: How many are.
    """

    def __init__(
        self, limits: Limits, concurrency: Concurrency, now: float, *, learns: bool
    ) -> None:
        self.requests = Limit(limits.rpm, now, learns=learns, ignores_headers=limits.rpm_wins)
        self.tokens = Limit(limits.tpm, now, learns=learns, ignores_headers=limits.tpm_wins)
        self.concurrency = concurrency
        self.in_flight = 0

    def delay(self, tokens: float, now: float) -> float:
        """Seconds until a request is allowed; infinite while as many are in flight as may be."""
        if self.in_flight >= self.concurrency.limit:
            return NEVER
        by_requests, by_tokens = self.requests.delay(1, now), self.tokens.delay(tokens, now)
        return max(by_requests, by_tokens)

    def cause(self, tokens: float, now: float) -> str:
        """What `delay` waits for."""
        if self.in_flight >= self.concurrency.limit:
            return FULL
        by_tokens = self.tokens.delay(tokens, now) > self.requests.delay(1, now)
        return "tokens" if by_tokens else "requests"

    def take(self, tokens: float, now: float) -> None:
        """A request goes."""
        self.in_flight += 1
        self.requests.take(1, now)
        self.tokens.take(tokens, now)

    def settle(self, reserved: float, used: float | None, now: float) -> None:
        """A request is over; `used` None keeps what was reserved."""
        self.in_flight -= 1
        if used is not None:
            self.tokens.settle(reserved, used, now)

    def lend(self, requests: float, tokens: float, now: float) -> None:
        """Leaves a part of the pace to processes that do not ask."""
        self.requests.take(requests, now)
        self.tokens.take(tokens, now)

    def hold(self, until: float, now: float) -> None:
        """Saves up nothing before a time."""
        self.requests.hold(until, now)
        self.tokens.hold(until, now)

    def share(self) -> float | None:
        """Part of the known limit that was used: of requests or of tokens, whichever is more."""
        shares = (self.requests.share(), self.tokens.share())
        return max((share for share in shares if share is not None), default=None)
