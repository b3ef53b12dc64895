"""Prices and the budget of one run. Touches: files, the network."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import partial
from pathlib import Path

import msgspec

from batcher.errors import JobError, OutputError
from batcher.job.endpoint import Endpoint
from batcher.job.job import Job
from batcher.money import catalogue, spending
from batcher.money.budget import Amount, LocalBudget
from batcher.money.price_sources import catalogue_prices, package_prices
from batcher.money.prices import Price, Prices
from batcher.money.reserve import max_cost, no_price
from batcher.money.spending import Spent
from batcher.records import BOUNDS

__all__ = ["Account", "known_prices", "opened"]


async def known_prices(
    job: Job, configured: Mapping[str, Price], endpoint: Endpoint, say: Callable[[str], None]
) -> Prices:
    """The prices of `--prices`, else of the gateway's list, else of a package.

    Args:
        job: Names the models.
        configured: From `--prices`.
        endpoint: The gateway; one without an address lists none.
        say: Called where sources disagree, or when a list that matters cannot be fetched.
    """
    package = await asyncio.to_thread(package_prices, endpoint.url)
    needed = not job.models or any(
        model not in configured and package(model) is None for model in job.models
    )
    quiet = say if needed else lambda _text: None
    listed = await catalogue.fetch(endpoint, quiet) if endpoint.url else None
    prices = Prices(configured, catalogue_prices(*listed) if listed else None, package)
    for conflict in prices.conflicts(job.models):
        say(conflict)
    return prices


async def opened(job: Job, prices: Prices, folder: Path, cut_off: int) -> Account | None:
    """The budget of an output; None without a bound.

    Args:
        job: What was asked.
        prices: Known prices.
        folder: The run folder.
        cut_off: Requests that were in flight when the run before was killed.

    Raises:
        JobError: A price is not known, so the budget cannot be kept.
    """
    bounded = job.max_cost is not None or job.max_total_tokens is not None
    unknown = [model for model in job.models if prices.of(model) is None]
    if job.max_cost is not None and unknown:
        raise JobError(no_price(", ".join(unknown), None))
    tier = job.service_tier
    if job.max_cost is not None and tier is not None:
        for model in job.models:
            if (price := prices.of(model)) is not None and price.at(tier) is None:
                raise JobError(no_price(model, tier))
    begin = partial(
        spending.begin,
        folder,
        cut_off,
        bounded=bounded,
        max_amount=_max_amount(job, prices) if bounded else None,
    )
    spent = await asyncio.to_thread(begin)
    return Account(job, folder, spent) if bounded else None


def _max_amount(job: Job, prices: Prices) -> Callable[[int], Amount] | None:
    """What a request of this job takes at most, by the tokens of its prompt; None without a bound."""
    bounds = [n for name in BOUNDS if type(n := job.body_params.get(name)) is int and n > 0]
    if not bounds:
        return None
    answer, body = max(bounds), msgspec.json.encode(job.body_params)
    known = [price for model in job.models if (price := prices.of(model)) is not None]

    def max_amount(prompt: int) -> Amount:
        costs = (max_cost(price, prompt, answer, body) for price in known)
        dollars = max((cost for cost in costs if cost is not None), default=Decimal(0))
        return Amount(dollars, prompt + answer)

    return max_amount


class Account:
    """The budget of an output, kept on disk.

    Args:
        job: What was asked.
        folder: The run folder.
        spent: By earlier runs.

    Attributes:
        budget: For the sender.
        spent: By earlier runs.
    """

    def __init__(self, job: Job, folder: Path, spent: Spent) -> None:
        self._job = job
        self._folder = folder
        self.spent = spent
        self.budget = LocalBudget(
            None if job.max_cost is None else Decimal(str(job.max_cost)),
            job.max_total_tokens,
            Amount(spent.dollars, spent.tokens),
            self._save,
            Amount(spent.perhaps_dollars, spent.perhaps_tokens),
        )

    def close(self) -> None:
        """Records what was spent. Where that fails, the last claim stays, which is more."""
        with contextlib.suppress(OutputError):
            self._save(self.budget.committed)

    def _save(self, committed: Amount) -> None:
        try:
            spending.save(self._folder, *committed, self.spent)
        except OSError as error:
            raise OutputError(
                f"{self._folder}: {error.strerror}, so spending cannot be recorded and nothing more was "
                "sent. All answers are written. Make room on the disk and run the same command again."
            ) from None
