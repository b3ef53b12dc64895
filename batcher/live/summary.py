"""A running sum over Results: outcomes, tokens, money, per model. Touches: nothing.

`add` is on the hot path of the event loop, so the totals are plain attributes that it counts up;
percentiles and rates are computed when they are read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import NamedTuple

from batcher.money.bill import Bill
from batcher.money.prices import Price
from batcher.records import FINISHED, NO_REASON, Attempt, Outcome, Result, reason_of

__all__ = ["TOKENS", "Latencies", "ModelSummary", "Projected", "Summary"]

TOKENS = ("prompt", "completion", "total", "cached", "reasoning", "cache_write")

# Latencies of one bucket share their first six bits: exact below 64 ms, wrong by 1/64 at most
# above, and an hour needs no more than 600 buckets.
_BITS = 6
_EXAMPLE = 160  # characters
_UNKNOWN = 5  # Unknown finish reasons that are kept by name.


class Latencies:
    """How often each latency was seen, in memory that does not grow with the rows.

    >>> seen = Latencies()
    >>> for ms in range(1, 101):
    ...     seen.add(ms)
    >>> seen.percentile(50), seen.percentile(99), seen.max
    (50, 99, 100)
    """

    __slots__ = ("_buckets", "count", "max")

    def __init__(self) -> None:
        self._buckets: defaultdict[int, int] = defaultdict(int)
        self.count = 0
        self.max: int | None = None

    def add(self, ms: int) -> None:
        """Counts one latency, in milliseconds."""
        shift = ms.bit_length() - _BITS
        self._buckets[ms >> shift << shift if shift > 0 else ms] += 1
        self.count += 1
        if self.max is None or ms > self.max:
            self.max = ms

    def buckets(self) -> list[tuple[int, int, int]]:
        """(lowest, width, count) of each bucket in order, in milliseconds."""
        return [
            (lowest, 1 << max(0, lowest.bit_length() - _BITS), count)
            for lowest, count in sorted(self._buckets.items())
        ]

    def percentile(self, percent: float) -> int | None:
        """Milliseconds that `percent` of the latencies did not exceed (nearest rank, ± 1.6 %).

        None when there were no latencies.
        """
        if self.max is None:
            return None
        left = max(1.0, self.count * percent / 100)
        for lowest, count in sorted(self._buckets.items()):
            left -= count
            if left <= 0:
                width = 1 << max(0, lowest.bit_length() - _BITS)
                return min(lowest + width // 2, self.max)
        return self.max


class Projected(NamedTuple):
    """What all rows would cost, by those that were asked for: dollars, with a 95 % interval.

    Attributes:
        rows: Answers that all of the input would have.
        drawn: Whether the rows asked for were drawn by chance.
        repeats: Whether equal requests are sent once, so that it is less where more rows repeat.
    """

    rows: int
    about: float
    low: float
    high: float
    drawn: bool
    repeats: bool

    def asdict(self) -> dict[str, object]:
        """For `--json`."""
        about, low, high = (float(f"{dollars:.6g}") for dollars in self[1:4])
        return {
            "rows": self.rows,
            "cost_usd": about,
            "from_usd": low,
            "to_usd": high,
            "drawn_by_chance": self.drawn,
            "less_where_rows_repeat": self.repeats,
        }


class ModelSummary:
    """The totals of one model in this run.

    Attributes:
        outcomes: Rows by how they ended.
        examples: The error of the first row with that outcome, where it has one.
        earlier: Rows by how they ended in earlier runs of the same job; in no other figure.
        tokens: Sum of what was reported, in the order of `TOKENS`; None when nothing was.
        missing: How many answered rows did not report it, in the same order.
        usage_missing: Answered rows that reported no prompt or no completion tokens.
        cost: Dollars of the rows whose cost is known; None when none is.
        cost_missing: Answered rows whose cost is not known.
        projected: What all rows would cost, where only a part of them was asked for and it is known.
        latencies: Of answered rows; a fast refusal of the key is no fast answer.
        requests: HTTP exchanges.
        limit_used: Part of the known limit that was used; None when no limit is known.
        waited: Seconds that the next request stood waiting, by cause.
        thrown_away: Answers that a later attempt replaced, and failures that reported their usage.
        thrown_tokens: What they used, prompt and answer; a part of `tokens`.
        thrown_cost: What they cost, as far as that is known; a part of `cost`.
        unusable_cost: What answers cost that were kept, but are not ok.
        bill: What its answers cost, as reported and by price.
        given_up: The error with which the model refused a schema; "" while it has not.
        loose: Answers of which only a part was what was asked for.
        copied: Rows that were given the answer to an equal request.
        answered_429: HTTP exchanges answered 429, as found when their rows ended.
        stopped: Rows that are still to be asked again, as the run was stopped.
        unknown: Rows that are `ok` with a `finish_reason` that is not known here, by that.
    """

    __slots__ = (
        "answered_429",
        "bill",
        "copied",
        "cost",
        "cost_missing",
        "earlier",
        "examples",
        "given_up",
        "latencies",
        "limit_used",
        "loose",
        "missing",
        "outcomes",
        "projected",
        "requests",
        "retries",
        "stopped",
        "thrown_away",
        "thrown_cost",
        "thrown_tokens",
        "tokens",
        "unknown",
        "unusable_cost",
        "usage_missing",
        "waited",
    )

    def __init__(self) -> None:
        self.outcomes: defaultdict[Outcome, int] = defaultdict(int)
        self.examples: dict[Outcome, str] = {}
        self.earlier: defaultdict[Outcome, int] = defaultdict(int)
        self.tokens: list[int | None] = [None] * len(TOKENS)
        self.missing = [0] * len(TOKENS)
        self.usage_missing = 0
        self.cost: Decimal | None = None
        self.cost_missing = 0
        self.latencies = Latencies()
        self.requests = 0
        self.retries = 0
        self.limit_used: float | None = None
        self.waited: dict[str, float] = {}
        self.thrown_away = self.thrown_tokens = self.loose = self.copied = self.stopped = 0
        self.thrown_cost = self.unusable_cost = Decimal(0)
        self.bill = Bill(None)
        self.given_up = ""
        self.answered_429 = 0
        self.projected: Projected | None = None
        self.unknown: dict[str, int] = {}

    @property
    def rows(self) -> int:
        """Rows that ended in this run."""
        return sum(self.outcomes.values())

    def add(self, result: Result) -> None:
        """Counts one row of this run."""
        status = result.status
        answered = status.answered
        self.outcomes[status] += 1
        if result.error is not None and status not in self.examples:
            self.examples[status] = result.error[:_EXAMPLE]
        if result.copied:  # Nothing was sent, so there is nothing else to count.
            self.copied += 1
            return
        attempts = result.attempts
        if result.tries is not None:
            own = [attempt for attempt in result.tries if attempt.model is None]
            attempts = len(own)
            paid = [attempt for attempt in own if attempt.paid]
            kept = [attempt for attempt in paid if answered and attempt.status is status][-1:]
            for attempt in paid:
                if not kept or attempt is not kept[0]:
                    self._throw_away(attempt)
            self.answered_429 += sum(attempt.http_status == 429 for attempt in own)
        else:
            self.answered_429 += result.http_status == 429
            if not answered and (result.prompt_tokens, result.cost_usd) != (None, None):
                self._throw_away(result)
        self.requests += attempts
        if attempts > 1:
            self.retries += attempts - 1

        if status is Outcome.OK and (reason := result.finish_reason) and reason not in FINISHED:
            reason = reason_of(reason)[:40]
            known = reason in FINISHED or reason in NO_REASON
            if not known and (reason in self.unknown or len(self.unknown) < _UNKNOWN):
                self.unknown[reason] = self.unknown.get(reason, 0) + 1
        self.loose += result.loose
        self.stopped += result.stopped
        tokens = self.tokens
        others = [t for t in result.tries or () if t.model is not None and t.paid]
        for at, count in enumerate(_counts(result)):
            if count is not None:
                if others:  # Of which the row's sum holds all, and this model none.
                    count -= sum(_counts(attempt)[at] or 0 for attempt in others)
                tokens[at] = (tokens[at] or 0) + count
            elif answered:
                self.missing[at] += 1
        if result.cost_usd is not None:
            cost = _dollars(result.cost_usd) - sum(_dollars(t.cost_usd) for t in others)
            self.cost = (self.cost or 0) + cost
            if answered and status is not Outcome.OK:
                last = kept[0].cost_usd if result.tries and kept else result.cost_usd
                self.unusable_cost += _dollars(last)
        if answered:
            if result.prompt_tokens is None or result.completion_tokens is None:
                self.usage_missing += 1
            if result.cost_usd is None:
                self.cost_missing += 1
            if result.latency_ms is not None:
                self.latencies.add(result.latency_ms)

    def add_attempt(self, attempt: Attempt) -> None:
        """Counts an exchange for a row that another model ended."""
        self.requests += 1
        self.answered_429 += attempt.http_status == 429
        if attempt.paid:
            self._throw_away(attempt)
            for at, count in enumerate(_counts(attempt)):
                if count is not None:
                    self.tokens[at] = (self.tokens[at] or 0) + count
            if attempt.cost_usd is not None:
                self.cost = (self.cost or 0) + _dollars(attempt.cost_usd)

    def _throw_away(self, attempt: Attempt | Result) -> None:
        self.thrown_away += 1
        self.thrown_tokens += (attempt.prompt_tokens or 0) + (attempt.completion_tokens or 0)
        self.thrown_cost += _dollars(attempt.cost_usd)

    @property
    def saved(self) -> Decimal | None:
        """Dollars that cached tokens were cheaper; None when that is not known."""
        cached, price = self.tokens[TOKENS.index("cached")], self.bill.price
        return None if price is None or cached is None else cached * price.saved

    def asdict(self, seconds: float) -> dict[str, object]:
        """One model's part of the JSON summary; `seconds` is how long the run took."""
        spread = {f"p{percent}": self.latencies.percentile(percent) for percent in (50, 95, 99)}
        return {
            "outcomes": {str(outcome): n for outcome, n in self.outcomes.items()},
            "tokens": dict(zip(TOKENS, self.tokens, strict=True)),
            "usage_missing": self.usage_missing,
            "cost_usd": None if self.cost is None else float(self.cost),
            "cost_missing": self.cost_missing,
            "cost_saved_by_cache_usd": None if (saved := self.saved) is None else float(saved),
            "cost_of_unusable_usd": None if self.cost is None else float(self.unusable_cost),
            "price": None if self.bill.price is None else _price(self.bill.price),
            "price_missing": self.bill.unpriced,
            "told_by_gateway": _reported(self.bill),
            "projected": None if self.projected is None else self.projected.asdict(),
            "latency_ms": {**spread, "max": self.latencies.max},
            "requests": self.requests,
            "retries": self.retries,
            "answered_429": self.answered_429,
            "thrown_away": {
                "answers": self.thrown_away,
                "tokens": self.thrown_tokens,
                "cost_usd": None if self.cost is None else float(self.thrown_cost),
            },
            "schema_given_up": self.given_up or None,
            "loose": self.loose,
            "finish_reason_unknown": self.unknown,
            "copied": self.copied,
            "limit_used": None if self.limit_used is None else round(self.limit_used, 4),
            "waited_s": {cause: round(s, 1) for cause, s in self.waited.items()},
            "requests_per_second": round(self.requests / seconds, 3) if seconds > 0 else None,
            "earlier": {str(outcome): n for outcome, n in self.earlier.items()},
        }


def _counts(exchange: Result | Attempt) -> tuple[int | None, ...]:
    """Tokens in the order of `TOKENS`."""
    return (
        exchange.prompt_tokens,
        exchange.completion_tokens,
        exchange.total_tokens,
        exchange.cached_tokens,
        exchange.reasoning_tokens,
        exchange.cache_write_tokens,
    )


def _dollars(reported: float | None) -> Decimal:
    """By the text: 0.1 dollars are meant, not the binary fraction next to it."""
    return Decimal(0) if reported is None else Decimal(str(reported))


def _reported(bill: Bill) -> dict[str, float | None] | None:
    """The cost that the gateway reported, and the cost by the price."""
    if bill.reported is None:
        return None
    return {
        "cost_usd": float(bill.reported),
        "by_price_usd": None if bill.priced is None else float(bill.priced),
    }


def _price(price: Price) -> dict[str, object]:
    return {
        **{
            name: None if (dollars := getattr(price, name)) is None else float(dollars)
            for name in ("input", "output", "cached", "cache_write", "cache_write_1h")
        },
        "source": price.source,
    }


class Summary:
    """The totals of one run, by model.

    Args:
        clock: A monotonic clock, in seconds; the run starts now.
        models: Models to show in this order, even before their first row.

    Attributes:
        total_limit_used: Part of the limit of all models together that was used; None without one.
        budget: How much of what all runs may spend is spent, in words; "" without a bound.
        forecast: What a run would take, where nothing was sent.
    """

    def __init__(self, clock: Callable[[], float], models: Iterable[str] = ()) -> None:
        self._clock = clock
        self._started = clock()
        self._seconds: float | None = None
        self.status = "running"
        self.total_limit_used: float | None = None
        self.budget = ""
        self.forecast: dict[str, object] | None = None
        self.models: defaultdict[str, ModelSummary] = defaultdict(ModelSummary)
        for model in models:
            self.models[model] = ModelSummary()

    @property
    def seconds(self) -> float:
        """How long the run has taken, or took."""
        return self._clock() - self._started if self._seconds is None else self._seconds

    @property
    def rows(self) -> int:
        """Rows that ended in this run, all models together."""
        return sum(stats.rows for stats in self.models.values())

    def add(self, result: Result) -> None:
        """Counts a row of this run."""
        self.models[result.model].add(result)
        for attempt in result.tries or ():
            if attempt.model is not None:
                self.models[attempt.model].add_attempt(attempt)

    def add_pending(self, model: str, tries: Iterable[Attempt]) -> None:
        """Counts the exchanges for a row that is still to be sent, as the run was stopped."""
        for attempt in tries:
            stats = self.models[attempt.model or model]
            stats.requests += 1
            stats.answered_429 += attempt.http_status == 429

    def add_earlier(self, model: str, outcome: Outcome, n: int = 1) -> None:
        """Counts `n` rows that ended like this in an earlier run, apart from those of this one."""
        self.models[model].earlier[outcome] += n

    def add_traffic(
        self,
        model: str,
        limit_used: float | None,
        waited: Mapping[str, float],
        bill: Bill | None = None,
        given_up: str = "",
    ) -> None:
        """Sets what is known of a model once its requests have ended, and of no single row.

        Args:
            model: Which model.
            limit_used: Part of the known limit that was used.
            waited: Seconds that the next request waited, by cause.
            bill: What its answers cost; None keeps the one before.
            given_up: The error with which the model refused a schema.
        """
        stats = self.models[model]
        stats.limit_used, stats.waited, stats.given_up = limit_used, dict(waited), given_up
        stats.bill = bill or stats.bill

    def add_total_traffic(self, limit_used: float | None) -> None:
        """Sets the part of the limit of all models together that was used."""
        self.total_limit_used = limit_used

    def add_budget(self, text: str) -> None:
        """Sets how much of the budget is spent, in words."""
        self.budget = text

    def add_forecast(self, forecast: dict[str, object], bills: Mapping[str, Bill]) -> None:
        """Sets what a run would take, and the bills of its models, where nothing was sent."""
        self.forecast = forecast
        for model, bill in bills.items():
            self.models[model].bill = bill

    def add_projection(self, model: str, projected: Projected) -> None:
        """Sets what all rows would cost by one model, where only a part of them was sent."""
        self.models[model].projected = projected

    def finish(self, status: str) -> None:
        """Stops the clock; `status` is the word for how the run ended."""
        self._seconds = self.seconds
        self.status = status

    def asdict(self) -> dict[str, object]:
        """The summary that `--json` prints; what is not known is None."""
        seconds = self.seconds
        forecast = {} if self.forecast is None else {"forecast": self.forecast}
        return {
            **forecast,
            "status": self.status,
            "rows": self.rows,
            "seconds": round(seconds, 3),
            "total_limit_used": self.total_limit_used and round(self.total_limit_used, 4),
            "budget": self.budget or None,
            "models": {model: stats.asdict(seconds) for model, stats in self.models.items()},
        }
