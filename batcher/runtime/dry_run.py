"""`batcher check` and `--dry-run`: renders every row, counts, estimates; sends nothing. Touches: files (reads)."""

from __future__ import annotations

from collections.abc import Callable

from batcher.job.job import Job
from batcher.live.format import counted
from batcher.live.summary import Summary
from batcher.money.bill import Bill
from batcher.money.prices import Price, Prices
from batcher.plan.dedupe import Deduplicator
from batcher.plan.forecast import Forecast
from batcher.runtime.prepare import Preparation, Prepared

__all__ = ["dry_run"]

_ERRORS_SHOWN = 20


def dry_run(
    preparation: Preparation,
    prepared: Prepared,
    dedupe: Deduplicator | None,
    prices: Prices,
    summary: Summary,
) -> tuple[int, str]:
    """Tells the user what a run would send and cost.

    Args:
        preparation: Of the job.
        prepared: What would be sent.
        dedupe: Holds back requests that equal another one; None to count each.
        prices: The known prices.
        summary: Gets the forecast.

    Returns:
        The exit status and a last sentence for the user.
    """
    job, say = preparation.job, preparation.say
    forecast = _forecast(job, prepared, dedupe, preparation.go_on)
    for error in forecast.errors[:_ERRORS_SHOWN]:
        say(error)
    if len(forecast.errors) > _ERRORS_SHOWN:
        say(f"… and {len(forecast.errors) - _ERRORS_SHOWN:,} more.")

    def price_of(model: str) -> Price | None:
        price = prices.of(model)
        return price and price.at(job.service_tier)

    for line in forecast.lines(price_of, job.limits):
        say(line)
    if equal := forecast.repeated:
        say(f"{counted(equal, 'row asks', 'rows ask')} the same as a row before.")
    if dedupe is not None and dedupe.waiting:
        say(
            f"{counted(dedupe.waiting.total(), 'request')} will get the answer of an equal one, without being sent; "
            "--no-dedupe sends each."
        )
    bills = {model: Bill(prices.of(model)) for model in job.models}
    summary.add_forecast(forecast.asdict(price_of, job.limits), bills)
    summary.finish("checked")
    text = (
        f"{prepared.rows:,} rows read, {len(forecast.errors):,} of them unreadable; "
        f"{counted(forecast.requests, 'request')} to send. Nothing was sent."
    )
    return 3 if forecast.errors else 0, text


def _forecast(
    job: Job, prepared: Prepared, dedupe: Deduplicator | None, go_on: Callable[[], None]
) -> Forecast:
    plan = prepared.plan
    reask = 0 if plan.expected is None else job.reask
    forecast = Forecast(plan.slots, reask=reask, max_tokens=job.grow_max_tokens)
    for batch in plan.batches():
        go_on()
        for row in batch:
            slots = row.slots if dedupe is None else dedupe.among(row)
            forecast.add(row.prompt, slots)
    return forecast
