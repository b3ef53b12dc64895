"""What workers and the hub send to each other, and what the driver asks for. Touches: nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from batcher.cluster.shared_budget import BudgetReport
from batcher.limits.port import ExchangeOutcome, Pace, Ticket
from batcher.money.budget import Amount, BudgetState
from batcher.records import Result

__all__ = [
    "ALONE_SECONDS",
    "ALONE_SHARE",
    "SLICE_SECONDS",
    "GateStatus",
    "Grant",
    "HubStatus",
    "InFlightRequest",
    "ModelStatus",
    "QueuedRequest",
    "Reply",
    "Report",
    "SharedModelStatus",
]

SLICE_SECONDS = 0.25
"""The longest time between two reports of a worker."""

ALONE_SHARE, ALONE_SECONDS = 0.5, 10.0
"""What a worker takes without the hub: this much of its part of the pace, for so long."""


class QueuedRequest(NamedTuple):
    """A request in line; `tokens` and `most` as of `RateLimiter.enter`."""

    number: int
    model: str
    tokens: float
    most: float | None


class InFlightRequest(NamedTuple):
    """A request in flight, for a hub that does not know about it."""

    number: int
    model: str
    ticket: Ticket


class ModelStatus(NamedTuple):
    """A model at one worker, for the live view; `longest` is (age, row) of its oldest request in flight."""

    retrying: int
    longest: tuple[float, str] | None


class Report(NamedTuple):
    """What a worker sends with each call.

    Attributes:
        shard: The shard that it works on.
        attempt: The attempt at that shard; a larger number is a later one.
        queued: Requests that joined the line since the last report.
        dropped: Numbers of requests that left the line, or were granted and not sent.
        outcomes: Outcomes of requests that were sent, by number.
        ended: Results of rows that ended, without the answers.
        models: The state of each model at this worker.
        in_flight, paces: All that is in flight, and the paces that it knew; only if the hub does not know this worker.
        budget: Its part of the budget.
        serial: Counts the reports of an attempt. A report that a later one overtook is ignored.
    """

    shard: int
    attempt: int
    queued: Sequence[QueuedRequest] = ()
    dropped: Sequence[int] = ()
    outcomes: Sequence[tuple[int, ExchangeOutcome]] = ()
    ended: Sequence[Result] = ()
    models: Mapping[str, ModelStatus] = {}
    in_flight: Sequence[InFlightRequest] | None = None
    paces: Mapping[str, Pace] = {}
    budget: BudgetReport = BudgetReport()
    serial: int = 0


class Grant(NamedTuple):
    """A request that may go: at once, or, if it waited for a pace, at that pace."""

    number: int
    ticket: Ticket
    paced: bool


class GateStatus(NamedTuple):
    """The gate of a model.

    Attributes:
        max_in_flight: How many requests one worker may have in flight.
        waits_for: What the first in line of all workers waits for.
        silent: As `RateLimiter.silent`.
        refusing: As `RateLimiter.refusing`.
        pace: What is let through, to all workers together.
    """

    max_in_flight: int
    waits_for: str
    silent: float
    refusing: bool
    pace: Pace


class Reply(NamedTuple):
    """What the hub answers to a report.

    Attributes:
        known: False if the worker has to report everything anew; then nothing else is set.
        now: The hub's clock.
        granted: Requests that may go.
        gates: The gate of each model.
        stop: Whether to send nothing new.
        after: Seconds after which the next report is useful.
        workers: How many workers there are.
        reserved: (number, amount) of budget requests that were granted.
    """

    known: bool
    now: float
    granted: Sequence[Grant] = ()
    gates: Mapping[str, GateStatus] = {}
    stop: bool = False
    after: float = SLICE_SECONDS
    workers: int = 1
    reserved: Sequence[tuple[int, Amount]] = ()


class SharedModelStatus(NamedTuple):
    """A model at all workers together; attributes as of `Gate` and `ModelStatus`."""

    in_flight: int
    waiting: int
    waits_for: str
    retrying: int
    longest: tuple[float, str] | None
    waited: Mapping[str, float]
    share: float | None


class HubStatus(NamedTuple):
    """The state of the run, for the driver.

    Attributes:
        models: Each model.
        ended: Results since the last status.
        share: Part of the key's limit that was used.
        budget: The budget; None without one.
        why: Why the budget ended the run, if it did.
    """

    models: Mapping[str, SharedModelStatus]
    ended: Sequence[Result]
    share: float | None
    budget: BudgetState | None
    why: Exception | None
