"""What a run's other rows would cost: a sample's projection, the budget for the rest. Touches: files (reads)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec

from batcher.errors import RunStopped
from batcher.evaluate.statistics import total_of_sample
from batcher.job.job import Job
from batcher.live.progress import Snapshot
from batcher.live.summary import Projected, Summary
from batcher.live.table import human, money
from batcher.money.account import Account
from batcher.money.budget import Amount, LocalBudget
from batcher.read import csv
from batcher.read.inputs import Inputs
from batcher.records import Outcome
from batcher.write import parts

__all__ = ["project", "with_larger_budget"]

_MARGIN = Decimal("1.2")


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


def with_larger_budget(
    stopped: RunStopped,
    job: Job,
    account: Account,
    summary: Summary,
    now: Snapshot,
    rows: int | None,
) -> RunStopped:
    """The stop of a run whose budget is spent, with what the rest may take and a budget that is enough.

    Args:
        stopped: Why it stopped.
        job: What was asked.
        account: Its budget.
        summary: Of this run.
        now: How its models stand.
        rows: How many answers there are to be in all, by all models; None when not known.
    """
    budget, before = account.budget, account.spent
    spent, next_one = budget.committed, budget.refused
    earlier = Amount(before.perhaps_dollars, before.perhaps_tokens)
    lost = budget.perhaps.minus(earlier)
    left = _left(summary, now, lost) or _left_by_average(budget, summary, rows)
    rest, instead = [], {}
    if job.max_cost is not None:
        most = Decimal(str(job.max_cost))
        dollars = None if left is None else left[0]
        if dollars is not None:
            rest.append(money(dollars))
        need = spent.dollars + next_one.dollars + (most if dollars is None else dollars * _MARGIN)
        instead["--max-cost"] = f"{_rounded_up(max(need, most)):f}"
    if job.max_total_tokens is not None:
        tokens = None if left is None else left[1]
        if tokens is not None:
            rest.append(f"{human(float(tokens))} tokens")
        many = job.max_total_tokens if tokens is None else math.ceil(tokens * _MARGIN)
        need = Decimal(max(spent.tokens + next_one.tokens + many, job.max_total_tokens))
        instead["--max-total-tokens"] = f"{_rounded_up(need):f}"
    told = f" The rest may take {' and '.join(rest)}, by what others took." if rest else ""
    return RunStopped(f"{stopped}{told}", instead=instead)


def _left_by_average(
    budget: LocalBudget, summary: Summary, rows: int | None
) -> tuple[Decimal | None, Decimal] | None:
    """(dollars, tokens) that the rest may take, by all that earlier runs and this one spent."""
    totals = summary.models.values()
    ok = sum(of.outcomes[Outcome.OK] + of.earlier[Outcome.OK] for of in totals)
    known = budget.committed
    if not any(of.usage_missing for of in totals):  # Else that is all there is to know.
        known = known.minus(budget.perhaps)
    if rows is None or not ok or rows <= ok:
        return None
    share = Decimal(rows - ok) / ok
    return known.dollars * share, known.tokens * share


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


def _rounded_up(number: Decimal) -> Decimal:
    """The next number of two digits.

    >>> [f"{_rounded_up(Decimal(number)):f}" for number in ("1.231", "1200", "0.00123")]
    ['1.3', '1200', '0.0013']
    """
    step = Decimal(1).scaleb(number.adjusted() - 1)
    return math.ceil(number / step) * step
