"""What the sender, the gate and the rules of limits say to each other. Touches: nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec

from batcher.limits.headers import RateLimitHeaders

__all__ = ["Closed", "ExchangeOutcome", "LimitPolicy", "Pace", "RateLimiter", "Ticket"]


class Ticket(msgspec.Struct, frozen=True, gc=False):
    """The right to one HTTP exchange.

    Attributes:
        tokens: Tokens that are reserved until the exchange is over.
        sent_at: When the ticket was given, by the gate's clock.
        cause: What the request waited for, if it had to wait.
        most: Prompt plus `max_tokens`, which some servers charge up front; None without a bound.
    """

    tokens: float
    sent_at: float
    cause: str
    most: float | None


class ExchangeOutcome(msgspec.Struct, frozen=True, gc=False):
    """How an exchange ended, as far as limits are concerned.

    Attributes:
        kind: `answered`; `refused`: 429; `overloaded`: 503, 529, no answer in time; `failed`: any
            other fault of the server or the connection; `rejected`: a fault of the request;
            `unsent`: cancelled.
        latency: Seconds.
        used: Tokens that were charged; None keeps what was reserved.
        retry_after: Seconds that the server named.
        about: What a refusal was about, if it says so: `requests` or `tokens`.
        headers: The limits that the response headers advertise.
    """

    kind: Literal["answered", "refused", "overloaded", "failed", "rejected", "unsent"]
    latency: float = 0.0
    used: float | None = None
    retry_after: float | None = None
    about: str | None = None
    headers: Sequence[RateLimitHeaders] = ()


class Pace(NamedTuple):
    """What is let through: requests and tokens per second (None without a limit), and requests in flight."""

    requests: float | None
    tokens: float | None
    max_in_flight: int


class LimitPolicy(Protocol):
    """A rule that says how soon a request may go.

    A question changes nothing: its answer depends on the time and on earlier changes alone, however often it is
    asked. A request of any size may go once its delay is over, if nothing changes meanwhile. Times do not decrease.

    A rule for one unit takes amounts of that unit. A rule for a model or a key takes tokens, counts one request with
    them, and learns by `observe(ticket, outcome, now)` from how each exchange ended.
    """

    def delay(self, amount: float, now: float, /) -> float:
        """Seconds until a request of `amount` may go; 0.0 if it may go now."""

    def take(self, amount: float, now: float, /) -> None:
        """A request of `amount` goes."""

    def settle(self, reserved: float, used: float, now: float, /) -> None:
        """A request that took `reserved` used `used`."""


class Closed(Exception):
    """The run stops; requests that waited were not sent."""


class RateLimiter(Protocol):
    """The limits of one model, as the engine and the sender use them.

    Implemented by `limits.gate.Gate` and, where several workers share the limits, by `cluster.shared_gate.SharedGate`.

    Attributes:
        waited: Seconds that the first in line has waited, by cause.
    """

    waited: dict[str, float]

    @property
    def refusing(self) -> bool:
        """Whether the last exchange without an answer was a refusal."""

    @property
    def max_in_flight(self) -> int:
        """How many requests may be in flight."""

    @property
    def in_flight(self) -> int:
        """How many requests are in flight."""

    @property
    def waiting(self) -> int:
        """How many requests stand in line."""

    @property
    def waits_for(self) -> str:
        """What the first in line waits for, in words for people."""

    async def enter(self, tokens: float, most: float | None = None) -> Ticket:
        """Waits until a request may be sent.

        Args:
            tokens: Tokens that it will probably use.
            most: Prompt plus `max_tokens`; None without a bound.

        Raises:
            Closed: The run stops.
        """

    def leave(self, ticket: Ticket, outcome: ExchangeOutcome) -> None:
        """Ends the exchange that a ticket was given for."""

    def close(self) -> None:
        """Lets nothing new in; requests in line get `Closed`."""

    def free(self, tokens: float, most: float | None = None) -> bool:
        """Whether a request of so many tokens would be let in at once."""

    def silent(self, most: float, *, alive: bool) -> float:
        """Seconds that passed with failures and refusals only, once that is too long; else 0.0.

        Args:
            most: How long is too long for a model that has answered before.
            alive: Whether it has.
        """

    def share(self) -> float | None:
        """Part of the known limit that was used; None if no limit is known."""
