"""What was received and billed. Touches: nothing."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from batcher.simulate.settings import SimulatedModel

__all__ = ["UNANSWERED", "Ledger", "ModelLedger", "Spent"]

UNANSWERED = 444
"""The status booked for a request that got no answer; nginx's number, never on the wire."""


@dataclass(frozen=True, slots=True)
class Spent:
    """Tokens of one answer; `cached` and `written` are in `prompt`, `reasoning` in `completion`.

    `written`, to the cache, is None for a gateway that does not bill it.
    """

    prompt: int
    completion: int
    cached: int = 0
    reasoning: int = 0
    written: int | None = None

    def cost(self, model: SimulatedModel) -> Decimal:
        """Dollars, exact."""
        written = self.written or 0
        return (
            (self.prompt - self.cached - written) * model.input_price
            + self.cached * model.cached_price
            + written * model.write_price
            + self.completion * model.output_price
        ) / 1_000_000


@dataclass
class ModelLedger:
    """One model's account.

    Attributes:
        received: Requests that named this model.
        billed: Answers whose usage the client was told.
        billed_unseen: Answers billed without that: cut, without usage, or the client had gone.
        by_status: Requests by HTTP status; `UNANSWERED` is none.
        tokens: prompt, completion, cached, cache_write and reasoning tokens of `billed`.
        cost: Dollars for `billed`; `cost_unseen` for `billed_unseen`.
    """

    received: int = 0
    billed: int = 0
    billed_unseen: int = 0
    by_status: Counter[int] = field(default_factory=Counter)
    by_fault: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    cost: Decimal = Decimal(0)
    cost_unseen: Decimal = Decimal(0)

    def asdict(self) -> dict[str, Any]:
        """For GET /ledger; money as text, exact."""
        return {
            "received": self.received,
            "billed": self.billed,
            "billed_unseen": self.billed_unseen,
            "by_status": {str(status): n for status, n in self.by_status.items()},
            "by_fault": dict(self.by_fault),
            "tokens": dict(self.tokens),
            "cost_usd": str(self.cost),
            "cost_unseen_usd": str(self.cost_unseen),
        }


class Ledger:
    """All accounts, and how often each body was received and billed.

    Attributes:
        models: Accounts by model ID.
        strangers: Statuses of requests that named no model on offer: 400, 401, 404.
        received_by_key: Hash of a request's body to how often it came; `billed_by_key` likewise.
        in_flight: Requests in flight now; `peak_in_flight` the most there were.
    """

    def __init__(self) -> None:
        self.in_flight = 0
        self.reset()

    def reset(self) -> None:
        """Forgets everything but what is in flight, which is booked when it ends."""
        self.models: defaultdict[str, ModelLedger] = defaultdict(ModelLedger)
        self.strangers: Counter[int] = Counter()
        self.received_by_key: Counter[str] = Counter()
        self.billed_by_key: Counter[str] = Counter()
        self.peak_in_flight = self.in_flight

    def enter(self) -> None:
        """A request begins."""
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)

    def receive(self, key: str) -> int:
        """A body with this key is here; returns how often it came before."""
        nth = self.received_by_key[key]
        self.received_by_key[key] = nth + 1
        return nth

    def leave(self, model: str | None, status: int) -> None:
        """A request ended; `model` is None when it named none on offer."""
        self.in_flight -= 1
        by_status = self.strangers if model is None else self.models[model].by_status
        by_status[status] += 1

    def bill(self, model: SimulatedModel, key: str, spent: Spent, *, seen: bool) -> None:
        """Books one answer; `seen` is whether the client is told its usage."""
        account = self.models[model.id]
        self.billed_by_key[key] += 1
        if not seen:
            account.billed_unseen += 1
            account.cost_unseen += spent.cost(model)
            return
        account.billed += 1
        account.cost += spent.cost(model)
        tokens = account.tokens
        tokens["prompt"] += spent.prompt
        tokens["completion"] += spent.completion
        tokens["cached"] += spent.cached
        tokens["cache_write"] += spent.written or 0
        tokens["reasoning"] += spent.reasoning

    def asdict(self, *, keys: bool = False) -> dict[str, Any]:
        """For GET /ledger; with `keys`, also the counts by body."""
        told: dict[str, Any] = {
            "models": {name: account.asdict() for name, account in self.models.items()},
            "strangers": {str(status): n for status, n in self.strangers.items()},
            "in_flight": self.in_flight,
            "peak_in_flight": self.peak_in_flight,
        }
        if keys:
            told["received_by_key"] = dict(self.received_by_key)
            told["billed_by_key"] = dict(self.billed_by_key)
        return told
