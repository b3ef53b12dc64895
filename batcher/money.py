"""What a run may spend, by which prices; and what the rest would take, once it may not. Touches: files, the network."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from batcher.endpoint import Endpoint
from batcher.errors import JobError, OutputError, RunStopped
from batcher.job import Job
from batcher.prices import Price, Prices, no_price, of_catalogue, of_package
from batcher.read import csv
from batcher.read.inputs import Inputs
from batcher.records import BOUNDS, Outcome, tier_of
from batcher.report.progress import Snapshot
from batcher.report.statistics import total_of_sample
from batcher.report.summary import Projected, Summary
from batcher.report.table import human, money
from batcher.send import catalogue
from batcher.send.budget import Amount, Budget
from batcher.write import parts, spending
from batcher.write.spending import Spent

__all__ = ["Account", "known_prices", "opened", "project"]

_ROOM = Decimal("1.2")


async def known_prices(
    job: Job, told: Mapping[str, Price], endpoint: Endpoint, say: Callable[[str], None]
) -> Prices:
    """Those of `--prices` over those that the gateway lists, and these over those of a package.

    Args:
        job: Its models are those that matter.
        told: What `--prices` says.
        endpoint: The gateway; one without an address lists none.
        say: Told where sources disagree, and that a list cannot be had where that matters.
    """
    package = await asyncio.to_thread(of_package, endpoint.url)
    needed = not job.models or any(
        model not in told and package(model) is None for model in job.models
    )
    quiet = say if needed else lambda _text: None
    listed = await catalogue.fetch(endpoint, quiet) if endpoint.url else None
    prices = Prices(told, of_catalogue(*listed) if listed else None, package)
    for conflict in prices.conflicts(job.models):
        say(conflict)
    return prices


async def opened(job: Job, prices: Prices, folder: Path, cut_off: int) -> Account | None:
    """What may still be spent on this output; None without a bound.

    Args:
        job: What was asked.
        prices: What is known of them.
        folder: The run folder.
        cut_off: Requests that were in flight when the run before was killed.

    Raises:
        JobError: The budget cannot be kept, as a price is not known.
    """
    bounded = job.max_cost is not None or job.max_total_tokens is not None
    unknown = [model for model in job.models if prices.of(model) is None]
    if job.max_cost is not None and unknown:
        raise JobError(
            f"--max-cost: the price of {', '.join(unknown)} is not known; tell it with --prices."
        )
    tier = tier_of(job.body_params.get("service_tier"))
    if job.max_cost is not None and tier is not None:
        for model in job.models:
            if (price := prices.of(model)) is not None and price.at(tier) is None:
                raise JobError(no_price(model, tier))
    begin = partial(
        spending.begin,
        folder,
        cut_off,
        bounded=bounded,
        whole=_whole(job, prices) if bounded else None,
    )
    spent = await asyncio.to_thread(begin)
    return Account(job, folder, spent) if bounded else None


def _whole(job: Job, prices: Prices) -> Callable[[int], tuple[Decimal, int]] | None:
    """What a request of this job takes at most, by the tokens of its prompt; None without a bound."""
    told = [of for name in BOUNDS if type(of := job.body_params.get(name)) is int and of > 0]
    tier = tier_of(job.body_params.get("service_tier"))
    defaults = [price for model in job.models if (price := prices.of(model)) is not None]
    known = [at for of in defaults for at in (of, of.at(tier)) if at is not None]
    if not told:
        return None

    def whole(prompt: int) -> tuple[Decimal, int]:
        bound = max(told)
        return max((of.most(prompt, bound) for of in known), default=Decimal(0)), prompt + bound

    return whole


class Account:
    """The budget of an output, kept on disk.

    Args:
        job: What was asked.
        folder: The run folder.
        spent: By earlier runs.

    Attributes:
        budget: What the sender asks.
        spent: By earlier runs.
    """

    def __init__(self, job: Job, folder: Path, spent: Spent) -> None:
        self._job = job
        self._folder = folder
        self.spent = spent
        self.budget = Budget(
            None if job.max_cost is None else Decimal(str(job.max_cost)),
            job.max_total_tokens,
            Amount(spent.dollars, spent.tokens),
            self._save,
            Amount(spent.perhaps_dollars, spent.perhaps_tokens),
        )

    def close(self) -> None:
        """Records what was spent; where that fails what was claimed before stays, which is more."""
        with contextlib.suppress(OutputError):
            self._save(self.budget.committed)

    def larger(
        self, stopped: RunStopped, summary: Summary, now: Snapshot, rows: int | None
    ) -> RunStopped:
        """The stop, with what the rest may take and the budget that has room for it.

        Args:
            stopped: Why it stopped.
            summary: Of this run.
            now: How its models stand.
            rows: How many answers there are to be in all, by all models; None when not known.
        """
        job, spent, next_one = self._job, self.budget.committed, self.budget.refused
        earlier = Amount(self.spent.perhaps_dollars, self.spent.perhaps_tokens)
        lost = self.budget.perhaps.minus(earlier)
        left = _left(summary, now, lost) or self._left(summary, rows)
        said, instead = [], {}
        if job.max_cost is not None:
            most = Decimal(str(job.max_cost))
            rest = None if left is None else left[0]
            if rest is not None:
                said.append(money(rest))
            need = spent.dollars + next_one.dollars + (most if rest is None else rest * _ROOM)
            instead["--max-cost"] = f"{_up(max(need, most)):f}"
        if job.max_total_tokens is not None:
            rest = None if left is None else left[1]
            if rest is not None:
                said.append(f"{human(float(rest))} tokens")
            many = job.max_total_tokens if rest is None else math.ceil(rest * _ROOM)
            need = Decimal(max(spent.tokens + next_one.tokens + many, job.max_total_tokens))
            instead["--max-total-tokens"] = f"{_up(need):f}"
        told = f" The rest may take {' and '.join(said)}, by what others took." if said else ""
        return RunStopped(f"{stopped}{told}", instead=instead)

    def _left(self, summary: Summary, rows: int | None) -> tuple[Decimal | None, Decimal] | None:
        """(dollars, tokens) that the rest may take, by all that earlier runs and this one spent."""
        totals = summary.models.values()
        ok = sum(of.outcomes[Outcome.OK] + of.earlier[Outcome.OK] for of in totals)
        known = self.budget.committed
        if not any(of.usage_missing for of in totals):  # Else that is all there is to know.
            known = known.minus(self.budget.perhaps)
        if rows is None or not ok or rows <= ok:
            return None
        share = Decimal(rows - ok) / ok
        return known.dollars * share, known.tokens * share

    def _save(self, committed: Amount) -> None:
        try:
            spending.save(self._folder, *committed, self.spent)
        except OSError as error:
            raise OutputError(
                f"{self._folder}: {error.strerror}, so what is spent cannot be recorded and nothing more was "
                "sent. What was answered is written; see to the disk and run the same command again."
            ) from None


def project(summary: Summary, output: Path, inputs: Inputs, job: Job) -> None:
    """Tells the summary what all rows would cost, by those that the output holds.

    Args:
        summary: Gets it, for each model of which all costs are known.
        output: Just written, of a part of the input.
        inputs: The whole of it is counted.
        job: What was asked; `route` is each.
    """
    every = inputs.count() * job.samples
    costs: dict[str, list[float]] = {}
    unknown = set()
    for row in _costs(output):
        cost = row["cost_usd"]
        if cost is None and row["status"] in _ANSWERED:
            unknown.add(row["model"])
        costs.setdefault(row["model"], []).append(cost or 0.0)
    for model, of in costs.items():
        if model in unknown or not any(of) or not 2 <= len(of) < every:
            continue
        told = total_of_sample(len(of), sum(of), sum(cost * cost for cost in of), every)
        repeats = job.dedupe is not False and (
            summary.models[model].copied > 0 or bool(job.dedupe)
        )
        drawn = job.sample is not None
        summary.models[model].projected = Projected(every, *told, drawn=drawn, repeats=repeats)


_ANSWERED = {str(outcome) for outcome in Outcome if outcome.answered}


def _costs(output: Path) -> Iterator[Mapping[str, Any]]:
    """`model`, `status` and `cost_usd` of each row of an output."""
    if output.suffix == ".csv":
        for record in csv.records(str(output)):
            row = record.columns or {}
            yield {**row, "cost_usd": float(str(row["cost_usd"])) if row["cost_usd"] else None}
    elif output.suffix != ".jsonl":
        import pyarrow.parquet as pq

        for part in parts.files(output):
            with pq.ParquetFile(part) as file:
                for batch in file.iter_batches(columns=["model", "status", "cost_usd"]):
                    yield from batch.to_pylist()
    else:
        decode = msgspec.json.Decoder(_Cost).decode
        with output.open("rb") as lines:
            for line in lines:
                yield msgspec.structs.asdict(decode(line))


class _Cost(msgspec.Struct):
    model: str | None
    status: str
    cost_usd: float | None


def _left(summary: Summary, now: Snapshot, lost: Amount) -> tuple[Decimal | None, Decimal] | None:
    """(dollars, tokens) that what is still to be sent may take; None where nothing tells.

    By what others of its model took, and `lost` in the same measure: what got no answer.
    """
    dollars: Decimal | None = Decimal(0)
    tokens = to_send = all_sent = Decimal(0)
    for lane in now.models:
        of = summary.models[lane.model]
        sent = of.rows - of.copied
        if lane.to_send is None or not sent or of.usage_missing:
            return None
        to_send, all_sent = to_send + lane.to_send, all_sent + sent
        share = Decimal(lane.to_send) / sent
        tokens += share * ((of.tokens[0] or 0) + (of.tokens[1] or 0))
        if dollars is not None:
            dollars = None if of.cost is None or of.cost_missing else dollars + share * of.cost
    if not all_sent:
        return None
    more = to_send / all_sent
    dollars = None if dollars is None else dollars + lost.dollars * more
    return dollars, tokens + lost.tokens * more


def _up(number: Decimal) -> Decimal:
    """The next number of two digits.

    >>> [f"{_up(Decimal(number)):f}" for number in ("1.231", "1200", "0.00123")]
    ['1.3', '1200', '0.0013']
    """
    step = Decimal(1).scaleb(number.adjusted() - 1)
    return math.ceil(number / step) * step
