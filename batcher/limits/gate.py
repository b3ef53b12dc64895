"""Waits until the limits allow; the only place that waits for a limit. Touches: the clock.

One gate per model, one above all of them for the key: a request needs a place in both. Waiters of
one gate stand in line; the gates of other models are not held up by it. Where the key is limited,
the models take turns by the tokens they were given.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec

from batcher.job.job import Limits
from batcher.limits.backoff import LONGEST_NAMED
from batcher.limits.breaker import Breaker
from batcher.limits.concurrency import Concurrency
from batcher.limits.headers import RateLimitHeaders
from batcher.limits.limits import NEVER, LimitSet

__all__ = ["Closed", "ExchangeOutcome", "Gate", "KeyGate", "Pace", "RateLimiter", "Ticket"]

_UNLIMITED = 1 << 30
_SHORT_PAUSE = 0.25
_SILENT_FAILED, _SILENT_REFUSED = 60.0, 180.0
_TICK = 1e-4  # A shorter wait may be no wait at all by the clock.


class Ticket(msgspec.Struct, frozen=True, gc=False):
    """The right to one HTTP exchange.

    Attributes:
        tokens: Reserved until `leave` settles them.
        sent_at: When it was given, by the gate's clock.
        cause: What was waited for, if anything.
        most: What a server that charges `max_tokens` up front takes; None when there is no bound.
    """

    tokens: float
    sent_at: float
    cause: str
    most: float | None


class ExchangeOutcome(msgspec.Struct, frozen=True, gc=False):
    """What came of an exchange, as far as limits are concerned.

    Attributes:
        how: `answered`; `refused`: 429; `overloaded`: 503, 529, no answer in time; `failed`: any
            other fault of the server or the connection; `rejected`: the request's own fault;
            `unsent`: cancelled.
        latency: Seconds.
        used: Tokens that were charged; None keeps what was reserved.
        retry_after: Seconds that the server named.
        about: What a refusal was about, when it says so.
        said: What the headers tell.
    """

    how: Literal["answered", "refused", "overloaded", "failed", "rejected", "unsent"]
    latency: float = 0.0
    used: float | None = None
    retry_after: float | None = None
    about: str | None = None
    said: Sequence[RateLimitHeaders] = ()


class Pace(NamedTuple):
    """What a gate lets through: requests and tokens a second, None without a limit; places."""

    requests: float | None
    tokens: float | None
    places: int


class RateLimiter(Protocol):
    """What the engine needs of the limits of a model, and all that shared ones have to implement.

    Attributes and methods are those of `Gate`.
    """

    waited: dict[str, float]

    @property
    def refusing(self) -> bool:
        """Whether the last that did not answer was a refusal."""

    @property
    def places(self) -> int:
        """How many may be in flight."""

    @property
    def in_flight(self) -> int:
        """Requests under way."""

    @property
    def waiting(self) -> int:
        """Requests that stand in line."""

    @property
    def waits_for(self) -> str:
        """What the first in line waits for."""

    async def enter(self, tokens: float, most: float | None = None) -> Ticket:
        """Waits until one request of so many tokens may be sent."""

    def leave(self, ticket: Ticket, heard: ExchangeOutcome) -> None:
        """The exchange is over."""

    def close(self) -> None:
        """Nothing new is let in; whoever waits gets `Closed`."""

    def free(self, tokens: float, most: float | None = None) -> bool:
        """Whether a request would be let in at once."""

    def silent(self, most: float, *, alive: bool) -> float:
        """How long nothing but failures or refusals may come, once that is over; before it, 0."""

    def share(self) -> float | None:
        """Part of the known limit that was used."""


class Closed(Exception):
    """The run stops; what stood in line was not sent."""


class KeyGate:
    """What all models of one key share, given to them by turns: who had fewest tokens is next."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.limited = limits != Limits()
        concurrency = Concurrency(limits.concurrency or _UNLIMITED)
        self.level = LimitSet(limits, concurrency, clock(), learns=False)
        self.breaker = Breaker()
        self._gates: list[Gate] = []
        self._timer: asyncio.TimerHandle | None = None

    def join(self, gate: Gate) -> None:
        """Adds a model's gate below this one."""
        self._gates.append(gate)

    def catch_up(self, gate: Gate) -> None:
        """A model that comes back to the line has no claim to what others used meanwhile."""
        others = [g.served for g in self._gates if g.waiting and g is not gate]
        if others:
            gate.served = max(gate.served, min(others))

    def share(self) -> float | None:
        """Part of the limit of all models together that was used; None when there is none."""
        shares = (self.level.requests.share(), self.level.tokens.share())
        return max((share for share in shares if share is not None), default=None)

    def others_look(self, gate: Gate) -> None:
        """The outage ended or its probe failed: the next one is of another model."""
        for other in self._gates:
            if other is not gate:
                other.look()

    def look(self) -> None:
        """Lets in whoever is allowed now, and sets the timer for the next."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while True:
            now = self._clock()
            ready = [gate for gate in self._gates if gate.ready(now)]
            if not ready:
                return
            gate = min(ready, key=lambda gate: gate.served)
            wait, cause = self.level.wait(gate.asked, now)
            if wait > 0.0:
                for gate in ready:
                    gate.mark(now, cause)
                if wait < NEVER:
                    self._timer = asyncio.get_running_loop().call_later(
                        max(wait, _TICK), self.look
                    )
                return
            gate.admit(now)


class Gate:
    """The gate of one model.

    Attributes:
        concurrency: How many may be in flight.
        breaker: Open while everything of this model fails; the key has one for all models.
        served: Tokens it was given; what decides whose turn it is.
        waited: Seconds that the head of the line stood waiting, by cause.
        refusals: Answers 429.
        refusing: Whether the last that did not answer was one of them.
    """

    def __init__(
        self, limits: Limits, key: KeyGate, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self.concurrency = Concurrency(limits.concurrency)
        self.breaker = Breaker()
        self.served = 0.0
        self.waited: dict[str, float] = {}
        self.refusals = 0
        self.refusing = False
        self._own = LimitSet(limits, self.concurrency, clock(), learns=True)
        self._key = key
        self._line: deque[tuple[asyncio.Future[Ticket], float, float | None]] = deque()
        self._paid: float | None = None  # Tokens of the first in line that its own limits gave.
        self._shut_until, self._shut_by = 0.0, "429"
        self._unheard_since: float | None = None
        self._longest_wait = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._told_limits = (
            False  # By headers; only after that it means something when they say nothing.
        )
        self._cause, self._marked = "", clock()
        self._up_front: bool | None = None  # None: not known yet.
        self._most = self._booked = 0.0  # Let through in all, of the most and of what was used.
        self._first_refusal: tuple[float, float, float] | None = None
        key.join(self)

    @property
    def places(self) -> int:
        """How many may be in flight."""
        return self.concurrency.limit

    @property
    def in_flight(self) -> int:
        """Requests under way."""
        return self._own.in_flight

    @property
    def waiting(self) -> int:
        """Requests that stand in line."""
        return len(self._line)

    @property
    def waits_for(self) -> str:
        """What the first in line waits for, in a word for people."""
        return self._cause

    @property
    def up_front(self) -> bool:
        """Whether the server was found to charge `max_tokens` before it answers."""
        return bool(self._up_front)

    def silent(self, most: float, *, alive: bool) -> float:
        """How long nothing but failures or refusals may come, once that is over; before it, 0.

        Args:
            most: How long is too long for a model that has answered.
            alive: Whether it has. Else it is given a minute when it fails, and three when it
                refuses, or the wait that it named and a minute.
        """
        now = self._clock()
        if self._unheard_since is None or self.breaker.probing(now):
            return 0.0
        if not alive:
            named = self._longest_wait + _SILENT_FAILED if self._longest_wait else 0.0
            base = _SILENT_REFUSED if self.refusals else _SILENT_FAILED
            most = min(most, max(base, named))
        return most if now - self._unheard_since >= most else 0.0

    def share(self) -> float | None:
        """Part of the known limit that was used: of requests or of tokens, whichever is more."""
        shares = (self._own.requests.share(), self._own.tokens.share())
        return max((share for share in shares if share is not None), default=None)

    # In

    async def enter(self, tokens: float, most: float | None = None) -> Ticket:
        """Waits until one request of so many tokens may be sent.

        Args:
            tokens: What it will probably use.
            most: Prompt and `max_tokens`, None without a bound.

        Raises:
            Closed: The run stops.
        """
        if self._closed:
            raise Closed
        if not self._line and not self._key.limited:  # Most often nothing is to be waited for.
            now = self._clock()
            asked = self._asked(tokens, most)
            if self._waits(asked, now)[0] <= 0.0:
                return self._let(asked, tokens, most, now)
        place: asyncio.Future[Ticket] = asyncio.get_running_loop().create_future()
        if not self._line and self._key.limited:
            self._key.catch_up(self)
        self._line.append((place, tokens, most))
        if len(self._line) == 1:
            self.look()
        if place.done():
            return place.result()
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and not place.exception():
                self.leave(place.result(), ExchangeOutcome("unsent"))
            else:
                if self._line and self._line[0][0] is place:
                    self._pay_back()
                self._line = deque(entry for entry in self._line if entry[0] is not place)
                self.look()
            raise

    def look(self) -> None:
        """Lets in whoever is allowed now, and sets the timer for the next."""
        if self._key.limited:
            self._key.look()
            return
        now = self._clock()
        while self.ready(now):
            self.admit(now)
            if not self._line:
                return

    @property
    def asked(self) -> float:
        """Tokens that the first in line asks for."""
        _place, tokens, most = self._line[0]
        return self._asked(tokens, most)

    def _asked(self, tokens: float, most: float | None) -> float:
        return most if self._up_front and most is not None else tokens

    def free(self, tokens: float, most: float | None = None) -> bool:
        """Whether a request of so many tokens would be let in at once, the key's breaker apart.

        In an outage of the key the first in line of each model is its next probe, so there is to be
        one, of the models that work above all.
        """
        now = self._clock()
        asked = self._asked(tokens, most)
        waits = (
            self._own.wait(asked, now)[0],
            self._key.level.wait(asked, now)[0],
            self.breaker.wait(now),
            self._shut_until - now,
        )
        return not self._line and max(waits) <= 0.0

    def ready(self, now: float) -> bool:
        """Whether the first in line may go as far as its own model is concerned."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._line and self._line[0][0].done():
            self._pay_back()
            self._line.popleft()
        if not self._line:
            self.mark(now, "")
            return False
        wait, cause = self._waits(self.asked if self._paid is None else None, now)
        if wait <= 0.0:
            if self._key.limited and self._paid is None:
                # Its own limits give now: what they would save up while it waits for the key is
                # soon capped, and a model that the key always keeps waiting would not reach them.
                self._paid = self.asked
                self._own.take(self._paid, now)
            return True
        learned = self._own.requests.learned, self._own.tokens.learned
        if cause in ("requests", "tokens") and any(one and one.shut for one in learned):
            cause = "429"
        self.mark(now, cause)
        if wait < NEVER:
            self._timer = asyncio.get_running_loop().call_later(max(wait, _TICK), self.look)
        return False

    def _waits(self, asked: float | None, now: float) -> tuple[float, str]:
        """(seconds, what for) as far as its own model is concerned; None where its limits gave already."""
        wait, cause = (0.0, "") if asked is None else self._own.wait(asked, now)
        shut = self._shut_until - now
        if shut > wait:
            wait, cause = shut, self._shut_by
        if not (self.breaker.calm and self._key.breaker.calm):
            probe = max(self.breaker.wait(now), self._key.breaker.wait(now))
            if probe > wait:
                wait, cause = probe, "an outage"
        return wait, cause

    def admit(self, now: float) -> None:
        """Lets the first in line go."""
        asked = self.asked if self._paid is None else self._paid
        place, tokens, most = self._line.popleft()
        ticket = self._let(asked, tokens, most, now)
        if not self._line:
            self.mark(now, "")
        place.set_result(ticket)

    def _let(self, asked: float, tokens: float, most: float | None, now: float) -> Ticket:
        if self._paid is None:
            self._own.take(asked, now)
        self._paid = None
        if self._key.limited:
            self._key.level.take(asked, now)
        if not (self.breaker.calm and self._key.breaker.calm):
            self.breaker.take(now)
            self._key.breaker.take(now)
        self.served += asked
        if most is not None:
            self._most += most
            self._booked += tokens
        return Ticket(asked, now, self._cause, most)

    def _pay_back(self) -> None:
        """The first in line goes away unsent."""
        if self._paid is not None:
            self._own.leave(self._paid, 0.0, self._clock())
            self._paid = None

    def mark(self, now: float, cause: str) -> None:
        """Notes what the first in line waits for from now on."""
        if self._cause:
            self.waited[self._cause] = self.waited.get(self._cause, 0.0) + now - self._marked
        self._cause, self._marked = cause, now

    # Shared with other processes

    def adopt(self, tokens: float, most: float | None) -> Ticket:
        """Takes a request that is under way already for one of its own."""
        now = self._clock()
        self._own.take(tokens, now)
        if self._key.limited:
            self._key.level.take(tokens, now)
        return Ticket(tokens, now, "", most)

    def pace(self) -> Pace:
        """What is let through."""
        now = self._clock()
        levels = (self._own, self._key.level)
        requests = [pace for level in levels if (pace := level.requests.pace(now)) is not None]
        tokens = [pace for level in levels if (pace := level.tokens.pace(now)) is not None]
        return Pace(min(requests, default=None), min(tokens, default=None), self.places)

    def begin_at(self, pace: Pace) -> None:
        """Begins with a pace, as if it had been found here."""
        now = self._clock()
        self.concurrency.begin_at(pace.places)
        found = ((self._own.requests, pace.requests), (self._own.tokens, pace.tokens))
        for measure, rate in found:
            if measure.learned is not None and measure.limit is None and rate:
                measure.learned.begin_at(rate, now)

    def lend(self, requests: float, tokens: float) -> None:
        """Leaves so much to others, who do not ask."""
        now = self._clock()
        for level in (self._own, self._key.level):
            level.requests.take(requests, now)
            level.tokens.take(tokens, now)

    # Out

    def leave(self, ticket: Ticket, heard: ExchangeOutcome) -> None:
        """Frees the place, settles the tokens, and learns from what was heard."""
        now = self._clock()
        used = 0.0 if heard.how in ("refused", "rejected", "unsent") else heard.used
        if self._up_front and heard.how == "answered":
            used = None  # The server keeps what it took.
        self._own.leave(ticket.tokens, used, now)
        if self._key.limited:
            self._key.level.leave(ticket.tokens, used, now)
        if used is not None:
            self.served += used - ticket.tokens
        outage = not self._key.breaker.calm and self._key.breaker.open
        self._learn(ticket, heard, now)
        if outage:
            self._key.others_look(self)
        if self._key.limited:
            self._key.look()
        elif self._line:
            self.look()

    def _learn(self, ticket: Ticket, heard: ExchangeOutcome, now: float) -> None:
        if heard.said or self._told_limits:
            self._hear_limits(ticket, heard, now)
        breakers = (self.breaker, self._key.breaker)
        if heard.how in ("answered", "rejected"):
            self._unheard_since = None
        elif heard.how != "unsent":
            self.refusing = heard.how == "refused"
            if self._unheard_since is None:
                self._unheard_since = now
        if (named := heard.retry_after) is not None:
            # By a refusal it is obeyed, however long.
            named = named if heard.how == "refused" else min(named, LONGEST_NAMED)
            self._longest_wait = max(self._longest_wait, named)
        match heard.how:
            case "answered" | "rejected":
                for breaker in breakers:
                    if not breaker.calm:
                        breaker.succeeded(ticket.sent_at)
                if ticket.most is not None and heard.used is not None:
                    self._booked += heard.used - ticket.tokens
                for measure in (self._own.requests, self._own.tokens):
                    if measure.learned is not None and measure.learned.rate is not None:
                        measure.learned.accepted(ticket.sent_at, now)
                if heard.how == "answered" and not self.concurrency.told:
                    self.concurrency.answered(self.in_flight + 1, heard.latency, now)
            case "refused":
                for breaker in breakers:
                    breaker.succeeded(ticket.sent_at)
                self._refused(ticket, heard, now)
            case "overloaded" | "failed":
                for breaker in breakers:
                    breaker.failed(ticket.sent_at, now)
                if heard.how == "overloaded":
                    self.concurrency.overloaded(now)
                    self._pause(min(heard.retry_after or 0.0, LONGEST_NAMED), now, "overload")
            case "unsent":
                for breaker in breakers:
                    breaker.unsent(ticket.sent_at, now)

    def _hear_limits(self, ticket: Ticket, heard: ExchangeOutcome, now: float) -> None:
        answered = heard.how == "answered"
        if not heard.said and not answered:
            return
        self._told_limits |= bool(heard.said)
        for what, measure in (("requests", self._own.requests), ("tokens", self._own.tokens)):
            said = [one for one in heard.said if one.what == what]
            measure.hear(said, ticket.sent_at, now, answered=answered)
            if self._line and measure.send_ahead(now):
                self.look()

    def _refused(self, ticket: Ticket, heard: ExchangeOutcome, now: float) -> None:
        requests, tokens = self._own.requests, self._own.tokens
        self.refusals += 1
        requests.used -= 1
        if ticket.most is not None:
            self._most -= ticket.most
            self._booked -= ticket.tokens
        by_tokens = heard.about == "tokens" or (
            heard.about is None and requests.limit is None and tokens.limit is not None
        )
        if by_tokens and self._undecided(ticket, now):
            self._pause(heard.retry_after or _SHORT_PAUSE, now)
            return
        measure, amount = (tokens, ticket.tokens) if by_tokens else (requests, 1.0)
        about_the_rate = measure.refused(amount, ticket.sent_at, now, heard.retry_after)
        if measure.learned is not None and measure.learned.noisy(now):
            return  # The row waits its time; it says nothing of the others.
        if not about_the_rate:
            self._pause(heard.retry_after or _SHORT_PAUSE, now)
        elif heard.retry_after is not None:
            self._pause(heard.retry_after, now)

    def _undecided(self, ticket: Ticket, now: float) -> bool:
        """Whether token refusals, while our ledger has room, may mean that `max_tokens` counts.

        Decided a minute after the first: by then whatever was saved up is spent, and a server that
        charges the most it could be has let through no more of that than its limit.
        """
        limit = self._own.tokens.limit
        if self._up_front is not None or limit is None or ticket.most is None:
            return False
        if self._first_refusal is None:
            self._first_refusal = (now, self._most, self._booked)
        since, most, booked = self._first_refusal
        if now - since < 60.0:
            return True
        allowed = limit / 60 * (now - since)
        self._up_front = (
            0.7 * allowed <= self._most - most <= 1.1 * allowed
            and self._booked - booked < 0.8 * allowed
        )
        return self._up_front

    def _pause(self, seconds: float, now: float, by: str = "429") -> None:
        """Shuts this model's gate for so long; a shorter pause never shortens a longer one."""
        if now + seconds > self._shut_until:
            self._shut_until, self._shut_by = now + seconds, by
        self._own.requests.hold(self._shut_until)
        self._own.tokens.hold(self._shut_until)

    def close(self) -> None:
        """Nothing new is let in; whoever waits gets `Closed`."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for place, _tokens, _most in self._line:
            if not place.done():
                place.set_exception(Closed())
        self._line.clear()
        self.mark(self._clock(), "")
