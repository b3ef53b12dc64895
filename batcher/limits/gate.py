"""Waits until the limits allow a request; the only place that waits for a limit. Touches: the clock.

Each model has a gate with a line of its own, so that no model holds up another one. A request needs the leave of
two policies: its model's and the key's. `KeyGate` asks both and sets the timers; where the key is limited or
in an outage, it lets the models take turns. All decisions are those of `limits.policy`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from batcher.job.job import Limits
from batcher.limits.limits import NEVER
from batcher.limits.policy import KeyPolicy, ModelPolicy
from batcher.limits.port import Closed, ExchangeOutcome, Pace, Ticket

__all__ = ["Gate", "KeyGate"]

_TICK = 1e-4  # Seconds. A shorter wait may be no wait at all by the clock.
_UNSENT = ExchangeOutcome("unsent")


class _Waiter(NamedTuple):
    """A request in line; `tokens` and `most` as of `Gate.enter`."""

    ticket: asyncio.Future[Ticket]
    tokens: float
    most: float | None


class KeyGate:
    """The gates of all models of a key, and the only waiter for them.

    Models take turns where the key is limited: the one that got the fewest tokens is next. In an outage of the
    gateway it is the one that has sent nothing for longest, so that not one model alone probes.

    Attributes:
        policy: The limits that all models share.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.policy = KeyPolicy(limits, clock())
        self._clock = clock
        self._gates: list[Gate] = []
        self._timers: dict[Gate | None, asyncio.TimerHandle] = {}  # None: for the key.
        self._served: dict[Gate, float] = {}  # Tokens, where the key is limited.
        self._last_sent: dict[Gate, float] = {}  # In an outage.

    def share(self) -> float | None:
        """Part of the key's limit that was used; None if it has none."""
        return self.policy.limits.share()

    # For the gates of the models

    def join(self, gate: Gate) -> None:
        """Adds the gate of a model."""
        self._gates.append(gate)
        self._served[gate] = 0.0

    def lined_up(self, gate: Gate) -> None:
        """A request came to the empty line of a model, which has no claim to what others used meanwhile."""
        if self.policy.limited:
            others = [self._served[one] for one in self._gates if one.waiting and one is not gate]
            self._served[gate] = max(self._served[gate], min(others, default=0.0))
        self.admit(gate)

    def entered(self, gate: Gate, tokens: float, now: float) -> None:
        """A request of a model goes."""
        self.policy.take(tokens, now)
        self._served[gate] += tokens
        if not self.policy.breaker.calm:
            self._last_sent[gate] = now

    def left(
        self,
        gate: Gate,
        ticket: Ticket,
        outcome: ExchangeOutcome,
        charged: float | None,
        now: float,
    ) -> None:
        """A request of a model is over."""
        policy, calm = self.policy, self.policy.calm
        policy.settle(ticket.tokens, charged, now)
        if charged is not None:
            self._served[gate] += charged - ticket.tokens
        policy.observe(ticket, outcome, now)
        self._admit((gate,) if calm and policy.calm else self._gates)

    def admit(self, gate: Gate) -> None:
        """Something changed at the line of a model: lets in who may go now, and sets the timers for the rest."""
        self._admit((gate,) if self.policy.calm else self._gates)

    def closed(self, gate: Gate) -> None:
        """A model sends nothing any more."""
        self._cancel_timer(gate)

    # The waiter

    def _admit(self, gates: Sequence[Gate]) -> None:
        self._cancel_timer(None)
        while True:
            now = self._clock()
            ready = [gate for gate in gates if self._is_ready(gate, now)]
            if not ready:
                return
            gate = min(ready, key=self._turn) if len(ready) > 1 else ready[0]
            if not self.policy.calm and (delay := self.policy.delay(gate.asked, now)) > 0.0:
                cause = self.policy.cause(gate.asked, now)
                for waiting in ready:
                    waiting.mark(now, cause)
                self._set_timer(None, delay)
                return
            gate.let_in(now)

    def _is_ready(self, gate: Gate, now: float) -> bool:
        """Whether the first in line may go as far as its own model is concerned; else sets a timer."""
        self._cancel_timer(gate)
        if not gate.has_first(now):
            return False
        if (delay := gate.delay(now)) > 0.0:
            gate.mark(now, gate.cause(now))
            self._set_timer(gate, delay)
            return False
        if self.policy.limited:
            gate.prepay(now)
        return True

    def _turn(self, gate: Gate) -> float:
        if self.policy.breaker.open:
            return self._last_sent.get(gate, 0.0)
        return self._served[gate]

    def _set_timer(self, gate: Gate | None, delay: float) -> None:
        if delay < NEVER:
            gates = self._gates if gate is None else (gate,)
            self._timers[gate] = asyncio.get_running_loop().call_later(
                max(delay, _TICK), self._timer_fired, gates
            )

    def _timer_fired(self, gates: Sequence[Gate]) -> None:
        self._admit(gates if self.policy.calm else self._gates)

    def _cancel_timer(self, gate: Gate | None) -> None:
        if (timer := self._timers.pop(gate, None)) is not None:
            timer.cancel()


class Gate:
    """The line and the limits of one model: a `RateLimiter`.

    Attributes:
        policy: What decides how soon a request may go.
        waited: Seconds that the first in line has waited, by cause.
    """

    def __init__(
        self, limits: Limits, key: KeyGate, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.policy = ModelPolicy(limits, clock())
        self.waited: dict[str, float] = {}
        self._key = key
        self._clock = clock
        self._line: deque[_Waiter] = deque()
        self._prepaid: float | None = (
            None  # Tokens that the model's limits gave to the first in line.
        )
        self._cause, self._marked = "", clock()
        self._closed = False
        key.join(self)

    @property
    def refusing(self) -> bool:
        """Whether the last exchange without an answer was a refusal."""
        return self.policy.refusing

    @property
    def max_in_flight(self) -> int:
        """How many requests may be in flight."""
        return self.policy.concurrency.limit

    @property
    def in_flight(self) -> int:
        """How many requests are in flight."""
        return self.policy.limits.in_flight

    @property
    def waiting(self) -> int:
        """How many requests stand in line."""
        return len(self._line)

    @property
    def waits_for(self) -> str:
        """What the first in line waits for, in words for people."""
        return self._cause

    def share(self) -> float | None:
        """Part of the known limit that was used; None if no limit is known."""
        return self.policy.limits.share()

    def silent(self, most: float, *, alive: bool) -> float:
        """Seconds that passed with failures and refusals only, once that is too long; else 0.0."""
        return self.policy.silent(most, self._clock(), alive=alive)

    def free(self, tokens: float, most: float | None = None) -> bool:
        """Whether a request would be let in at once, an outage of the key apart.

        In an outage of the key the first in line of each model is its next probe, so there has to be
        one, of the models that work above all.
        """
        now, asked = self._clock(), self.policy.asked(tokens, most)
        return (
            not self._line
            and self.policy.delay(asked, now) <= 0.0
            and self._key.policy.limits.delay(asked, now) <= 0.0
        )

    async def enter(self, tokens: float, most: float | None = None) -> Ticket:
        """Waits until a request may be sent; see `RateLimiter.enter`."""
        if self._closed:
            raise Closed
        if not self._line and self._key.policy.calm:  # The usual case: nothing to wait for.
            now, asked = self._clock(), self.policy.asked(tokens, most)
            if self.policy.delay(asked, now) <= 0.0:
                self.policy.limits.take(asked, now)
                return self._start(asked, tokens, most, now)
        waiter = _Waiter(asyncio.get_running_loop().create_future(), tokens, most)
        self._line.append(waiter)
        if len(self._line) == 1:
            self._key.lined_up(self)
        try:
            return await waiter.ticket
        except asyncio.CancelledError:
            if waiter.ticket.done() and not (
                waiter.ticket.cancelled() or waiter.ticket.exception()
            ):
                self.leave(waiter.ticket.result(), _UNSENT)
            else:
                if self._line and self._line[0] is waiter:
                    self._pay_back()
                self._line = deque(other for other in self._line if other is not waiter)
                self._key.admit(self)
            raise

    def leave(self, ticket: Ticket, outcome: ExchangeOutcome) -> None:
        """Frees the slot, settles the tokens, and learns from the outcome."""
        now, policy = self._clock(), self.policy
        charged = policy.charged(outcome)
        policy.limits.settle(ticket.tokens, charged, now)
        policy.observe(ticket, outcome, now, len(self._line))
        if not self._key.policy.calm or outcome.kind != "answered":
            self._key.left(self, ticket, outcome, charged, now)
        elif self._line:  # The usual case: the key has nothing to learn.
            self._key.admit(self)

    def close(self) -> None:
        """Lets nothing new in; requests in line get `Closed`."""
        self._closed = True
        self._key.closed(self)
        self._pay_back()
        for waiter in self._line:
            if not waiter.ticket.done():
                waiter.ticket.set_exception(Closed())
        self._line.clear()
        self.mark(self._clock(), "")

    # For the waiter: about the first in line

    @property
    def asked(self) -> float:
        """Tokens that it asks for."""
        if self._prepaid is not None:
            return self._prepaid
        first = self._line[0]
        return self.policy.asked(first.tokens, first.most)

    def has_first(self, now: float) -> bool:
        """Whether there is one; drops requests that do not wait any more."""
        while self._line and self._line[0].ticket.done():
            self._pay_back()
            self._line.popleft()
        if not self._line:
            self.mark(now, "")
        return bool(self._line)

    def delay(self, now: float) -> float:
        """Seconds until it may go as far as its own model is concerned, or until what blocks the model is over.

        The two are waited for one after the other, so that `waited` tells pauses and outages from limits.
        """
        blocked = self.policy.blocked(now)
        if blocked > 0.0 or self._prepaid is not None:
            return blocked
        return self.policy.limits.delay(self.asked, now)

    def cause(self, now: float) -> str:
        """What `delay` waits for."""
        return self.policy.cause(self.asked, now)

    def prepay(self, now: float) -> None:
        """Takes from the model's limits what the first needs, while it waits for its turn at the key.

        What they would save up meanwhile is soon capped: a model that the key always keeps waiting would not reach
        its own limits.
        """
        if self._prepaid is None:
            self._prepaid = self.asked
            self.policy.limits.take(self._prepaid, now)

    def let_in(self, now: float) -> None:
        """Gives it its ticket."""
        asked = self.asked
        if self._prepaid is None:
            self.policy.limits.take(asked, now)
        self._prepaid = None
        waiter = self._line.popleft()
        ticket = self._start(asked, waiter.tokens, waiter.most, now)
        if not self._line:
            self.mark(now, "")
        waiter.ticket.set_result(ticket)

    def mark(self, now: float, cause: str) -> None:
        """Notes what it waits for from now on."""
        if self._cause:
            self.waited[self._cause] = self.waited.get(self._cause, 0.0) + now - self._marked
        self._cause, self._marked = cause, now

    def _start(self, asked: float, tokens: float, most: float | None, now: float) -> Ticket:
        self.policy.start(tokens, most, now)
        if not self._key.policy.calm:
            self._key.entered(self, asked, now)
        return Ticket(asked, now, self._cause, most)

    def _pay_back(self) -> None:
        """The first goes away unsent."""
        if self._prepaid is not None:
            self.policy.limits.settle(self._prepaid, 0.0, self._clock())
            self._prepaid = None

    # Limits that are shared with other processes

    def adopt(self, tokens: float, most: float | None) -> Ticket:
        """Counts a request that is in flight already."""
        now = self._clock()
        self.policy.limits.take(tokens, now)
        if self._key.policy.limited:
            self._key.policy.limits.take(tokens, now)
        return Ticket(tokens, now, "", most)

    def pace(self) -> Pace:
        """What is let through."""
        return self.policy.pace(self._clock(), self._key.policy)

    def begin_at(self, pace: Pace) -> None:
        """Starts with a pace, as if it had been found here."""
        self.policy.begin_at(pace, self._clock())

    def lend(self, requests: float, tokens: float) -> None:
        """Leaves a part of the pace to processes that do not ask."""
        now = self._clock()
        for limits in (self.policy.limits, self._key.policy.limits):
            limits.lend(requests, tokens, now)
