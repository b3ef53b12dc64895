"""What refusals, headers, failures and slow answers mean for how fast to send. Touches: nothing.

Pure decisions on a given time: `limits.gate` asks and waits.
"""

from __future__ import annotations

from batcher.job.job import Limits
from batcher.limits.backoff import LONGEST_NAMED
from batcher.limits.breaker import Breaker
from batcher.limits.concurrency import Concurrency
from batcher.limits.limits import FULL, LimitSet
from batcher.limits.port import ExchangeOutcome, Pace, Ticket

__all__ = ["KeyPolicy", "ModelPolicy"]

_UNLIMITED = 1 << 30
_SHORT_PAUSE = 0.25
_SILENT_FAILED, _SILENT_REFUSED = 60.0, 180.0


class KeyPolicy:
    """The limits that all models of a key share, and a breaker for outages of the whole gateway.

    Attributes:
        limited: Whether there is any limit.
        calm: Whether models need not take turns: there is no limit and no outage.
        limits, breaker: The rules that it asks.
    """

    def __init__(self, limits: Limits, now: float) -> None:
        self.limited = limits != Limits()
        self.calm = not self.limited
        self.breaker = Breaker()
        self.limits = LimitSet(
            limits, Concurrency(limits.concurrency or _UNLIMITED), now, learns=False
        )

    def delay(self, tokens: float, now: float) -> float:
        """Seconds until a request of any model may go."""
        by_limits = self.limits.delay(tokens, now) if self.limited else 0.0
        return by_limits if self.breaker.calm else max(by_limits, self.breaker.delay(now))

    def cause(self, tokens: float, now: float) -> str:
        """What `delay` waits for."""
        by_limits = self.limits.delay(tokens, now) if self.limited else 0.0
        return (
            "an outage" if self.breaker.delay(now) > by_limits else self.limits.cause(tokens, now)
        )

    def take(self, tokens: float, now: float) -> None:
        """A request goes."""
        if self.limited:
            self.limits.take(tokens, now)
        if not self.breaker.calm:
            self.breaker.take(now)

    def settle(self, reserved: float, used: float | None, now: float) -> None:
        """A request is over; `used` None keeps what was reserved."""
        if self.limited:
            self.limits.settle(reserved, used, now)

    def observe(self, ticket: Ticket, outcome: ExchangeOutcome, now: float) -> None:
        """Learns from how an exchange ended."""
        if outcome.kind != "answered" or not self.breaker.calm:
            self.breaker.observe(outcome.kind, ticket.sent_at, now)
            self.calm = not self.limited and self.breaker.calm


class _UpFrontCharge:
    """Finds out whether a server charges `max_tokens` before it answers.

    Refusals for tokens, while our ledger has room, may mean that. It is decided a minute after the first one: by
    then whatever the server had saved up is spent, and a server that charges the most an answer could have has let
    through no more of that than its limit.

    Attributes:
        found: Whether it does; None while that is not known.
        watching: Whether it counts what is let through.
    """

    _SECONDS = 60.0

    def __init__(self) -> None:
        self.found: bool | None = None
        self.watching = False
        self._since = 0.0  # The first refusal.
        self._most = self._booked = 0.0  # Let through since then: at most, and by our ledger.

    def sent(self, most: float, booked: float) -> None:
        """Adds what was let through."""
        self._most += most
        self._booked += booked

    def refused(self, limit: float, now: float) -> bool:
        """Whether a refusal for tokens is due to such a charge, or may be."""
        if self.found is not None:
            return False
        if not self.watching:
            self.watching, self._since = True, now
        if now - self._since < self._SECONDS:
            return True
        allowed = limit / 60 * (now - self._since)
        self.watching = False
        self.found = 0.7 * allowed <= self._most <= 1.1 * allowed and self._booked < 0.8 * allowed
        return self.found


class ModelPolicy:
    """How soon the next request of a model may go, and what the outcome of each exchange teaches.

    Attributes:
        limits, breaker, concurrency: The rules that it asks.
        refusing: Whether the last exchange without an answer was a refusal.
    """

    def __init__(self, limits: Limits, now: float) -> None:
        self.concurrency = Concurrency(limits.concurrency)
        self.limits = LimitSet(limits, self.concurrency, now, learns=True)
        self.breaker = Breaker()
        self.refusing = False
        self._any_refusal = False
        self._paused_until, self._paused_by = 0.0, "429"
        self._unanswered_since: float | None = None
        self._longest_named = 0.0
        self._advertises = False  # Only after headers did it means something when they do not.
        self._up_front = _UpFrontCharge()

    # Questions

    def asked(self, tokens: float, most: float | None) -> float:
        """Tokens to reserve for a request, from what it probably uses and the most it can use."""
        return most if self._up_front.found and most is not None else tokens

    def delay(self, tokens: float, now: float) -> float:
        """Seconds until a request may go as far as the model is concerned."""
        delay = self.limits.delay(tokens, now)
        delay = max(delay, self._paused_until - now)
        return delay if self.breaker.calm else max(delay, self.breaker.delay(now))

    def blocked(self, now: float) -> float:
        """Seconds that pauses and outages take still, the limits apart."""
        return max(0.0, self._paused_until - now, self.breaker.delay(now))

    def cause(self, tokens: float, now: float) -> str:
        """What a request waits for: what blocks the model, else its limits."""
        pause, outage = self._paused_until - now, self.breaker.delay(now)
        if max(pause, outage) > 0.0:
            return "an outage" if outage > pause else self._paused_by
        learned = self.limits.requests.learned, self.limits.tokens.learned
        cause = self.limits.cause(tokens, now)
        if cause != FULL and any(one and one.shut(now) for one in learned):
            return "429"
        return cause

    def charged(self, outcome: ExchangeOutcome) -> float | None:
        """Tokens that an exchange used by the server's ledger; None for what was reserved."""
        if outcome.kind == "answered":
            return (
                None if self._up_front.found else outcome.used
            )  # Then the server keeps what it took.
        return 0.0 if outcome.kind in ("refused", "rejected", "unsent") else outcome.used

    def silent(self, most: float, now: float, *, alive: bool) -> float:
        """As `RateLimiter.silent`.

        A model that has not answered yet gets a minute if it fails and three if it refuses, or the longest wait that
        it named and a minute.
        """
        if self._unanswered_since is None or self.breaker.probing(now):
            return 0.0
        if not alive:
            named = self._longest_named + _SILENT_FAILED if self._longest_named else 0.0
            base = _SILENT_REFUSED if self._any_refusal else _SILENT_FAILED
            most = min(most, max(base, named))
        return most if now - self._unanswered_since >= most else 0.0

    def pace(self, now: float, key: KeyPolicy) -> Pace:
        """What is let through, by the limits of the model and of the key."""
        sets = (self.limits, key.limits)
        requests = [rate for one in sets if (rate := one.requests.rate(now)) is not None]
        tokens = [rate for one in sets if (rate := one.tokens.rate(now)) is not None]
        return Pace(min(requests, default=None), min(tokens, default=None), self.concurrency.limit)

    # Changes

    def begin_at(self, pace: Pace, now: float) -> None:
        """Starts with a pace that was found before."""
        self.concurrency.begin_at(pace.max_in_flight)
        if pace.requests:
            self.limits.requests.begin_at(pace.requests, now)
        if pace.tokens:
            self.limits.tokens.begin_at(pace.tokens, now)

    def take(self, tokens: float, now: float) -> None:
        """A request goes."""
        self.limits.take(tokens, now)
        self.start(tokens, None, now)

    def start(self, tokens: float, most: float | None, now: float) -> None:
        """A request goes for which the limits have given already; `tokens` and `most` as of `RateLimiter.enter`."""
        if most is not None and self._up_front.watching:
            self._up_front.sent(most, tokens)
        if not self.breaker.calm:
            self.breaker.take(now)

    def settle(self, reserved: float, used: float | None, now: float) -> None:
        """A request is over; `used` None keeps what was reserved."""
        self.limits.settle(reserved, used, now)

    def observe(
        self, ticket: Ticket, outcome: ExchangeOutcome, now: float, waiting: int = 0
    ) -> None:
        """Learns from how an exchange ended, while so many others stand in line."""
        kind, sent_at = outcome.kind, ticket.sent_at
        if outcome.headers or self._advertises:
            self._observe_headers(ticket, outcome, now, waiting)
        if kind == "answered" or kind == "rejected":
            self._unanswered_since = None
            for limit in (self.limits.requests, self.limits.tokens):
                if limit.learned is not None and limit.learned.limited:
                    limit.learned.accepted(sent_at, now)
            if self._up_front.watching and ticket.most is not None and outcome.used is not None:
                self._up_front.sent(0.0, outcome.used - ticket.tokens)
            if kind == "answered" and not self.concurrency.fixed:
                self.concurrency.answered(self.limits.in_flight + 1, outcome.latency, now)
            if not self.breaker.calm:
                self.breaker.observe(kind, sent_at, now)
            return
        self.breaker.observe(kind, sent_at, now)
        if kind == "unsent":
            return
        self.refusing = kind == "refused"
        if self._unanswered_since is None:
            self._unanswered_since = now
        if (named := outcome.retry_after) is not None:
            # A refusal's wait is kept, however long.
            named = named if self.refusing else min(named, LONGEST_NAMED)
            self._longest_named = max(self._longest_named, named)
        if kind == "refused":
            self._refused(ticket, outcome, now)
        elif kind == "overloaded":
            self.concurrency.overloaded(now)
            self._pause(min(outcome.retry_after or 0.0, LONGEST_NAMED), now, "overload")

    def _observe_headers(
        self, ticket: Ticket, outcome: ExchangeOutcome, now: float, waiting: int
    ) -> None:
        answered = outcome.kind == "answered"
        if not (answered or outcome.headers):
            return
        self._advertises |= bool(outcome.headers)
        for what, limit in (("requests", self.limits.requests), ("tokens", self.limits.tokens)):
            headers = [header for header in outcome.headers if header.what == what]
            limit.advertised(headers, ticket.sent_at, now, answered=answered, waiting=waiting > 0)

    def _refused(self, ticket: Ticket, outcome: ExchangeOutcome, now: float) -> None:
        requests, tokens = self.limits.requests, self.limits.tokens
        self._any_refusal = True
        requests.used -= 1
        if ticket.most is not None and self._up_front.watching:
            self._up_front.sent(-ticket.most, -ticket.tokens)
        by_tokens = outcome.about == "tokens" or (
            outcome.about is None and requests.per_minute is None and tokens.per_minute is not None
        )
        if (
            by_tokens
            and ticket.most is not None
            and (known := tokens.per_minute) is not None
            and self._up_front.refused(known, now)
        ):
            self._pause(outcome.retry_after or _SHORT_PAUSE, now)
            return
        limit, amount = (tokens, ticket.tokens) if by_tokens else (requests, 1.0)
        about_the_rate = limit.refused(amount, ticket.sent_at, now, outcome.retry_after)
        if limit.learned is not None and limit.learned.by_chance(now):
            return  # The row waits its time; that says nothing about the others.
        if not about_the_rate:
            self._pause(outcome.retry_after or _SHORT_PAUSE, now)
        elif outcome.retry_after is not None:
            self._pause(outcome.retry_after, now)

    def _pause(self, seconds: float, now: float, by: str = "429") -> None:
        """Lets nothing through for so long; a shorter pause never shortens a longer one."""
        if now + seconds > self._paused_until:
            self._paused_until, self._paused_by = now + seconds, by
        self.limits.hold(self._paused_until, now)
