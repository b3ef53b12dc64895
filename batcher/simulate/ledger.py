"""What was received and billed. Touches: nothing."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from decimal import Decimal

from batcher.simulate.settings import SimulatedModel

__all__ = ["Ledger", "ModelLedger"]


@dataclass
class ModelLedger:
    """One model's account.

    Attributes:
        received: Requests that named this model.
        billed: Answers whose usage the client was told.
        billed_unseen: Answers billed without the client being told (cut, or without usage).
        tokens: prompt, completion, cached and reasoning tokens of `billed`.
    """

    received: int = 0
    billed: int = 0
    billed_unseen: int = 0
    by_status: Counter[int] = field(default_factory=Counter)
    by_fault: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    cost: Decimal = Decimal(0)


class Ledger:
    """All accounts, and how often each body was received and billed.

    Attributes:
        received_by_key: Hash of a request's body to how often it came; `billed_by_key` likewise.
    """

    def __init__(self) -> None:
        self.models: defaultdict[str, ModelLedger] = defaultdict(ModelLedger)
        self.received_by_key: Counter[str] = Counter()
        self.billed_by_key: Counter[str] = Counter()
        self.in_flight = 0
        self.peak_in_flight = 0

    def bill(
        self,
        model: SimulatedModel,
        key: str,
        prompt: int,
        completion: int,
        cached: int,
        *,
        seen: bool,
    ) -> None:
        """Books one answer; `seen` is whether the client is told its usage."""
        account = self.models[model.id]
        self.billed_by_key[key] += 1
        if not seen:
            account.billed_unseen += 1
            return
        account.billed += 1
        account.tokens.update(prompt=prompt, completion=completion, cached=cached)
        account.cost += (
            (prompt - cached) * model.input_price
            + cached * model.cached_price
            + completion * model.output_price
        ) / 1_000_000

    def asdict(self, *, keys: bool = False) -> dict[str, object]:
        """For GET /ledger; money as text, exact."""
        accounts = {
            name: {
                "received": m.received,
                "billed": m.billed,
                "billed_unseen": m.billed_unseen,
                "by_status": {str(status): n for status, n in m.by_status.items()},
                "by_fault": dict(m.by_fault),
                "tokens": dict(m.tokens),
                "cost_usd": str(m.cost),
            }
            for name, m in self.models.items()
        }
        told: dict[str, object] = {
            "models": accounts,
            "in_flight": self.in_flight,
            "peak_in_flight": self.peak_in_flight,
        }
        if keys:
            told["received_by_key"] = dict(self.received_by_key)
            told["billed_by_key"] = dict(self.billed_by_key)
        return told
