"""What the rest of a run would cost: the projection of a sample, the budget that is enough. Touches: files (reads).

Estimates of money before a run are in `plan.forecast` (what is likely) and `money.reserve` (what is the most);
these two go by what rows of this run cost.
"""

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
from batcher.live.format import compact, money
from batcher.live.progress import Snapshot
from batcher.live.summary import Projected, Summary
from batcher.money.account import Account
from batcher.money.budget import Amount
from batcher.read import csv
from batcher.read.inputs import Inputs
from batcher.records import Outcome
from batcher.write import parts

__all__ = ["project", "with_larger_budget"]

_MARGIN = Decimal("1.2")
_ANSWERED = {str(outcome) for outcome in Outcome if outcome.answered}


def project(summary: Summary, output: Path, inputs: Inputs, job: Job) -> None:
    """Projects the cost of all rows from the costs of those that were sent.

    Args:
        summary: Gets the projection of each model whose costs are all known.
        output: Holds a part of the input's rows.
        inputs: The input, counted whole.
        job: What was asked; its `route` is each.
    """
    rows = inputs.count() * job.samples
    costs: dict[str, list[float]] = {}
    unknown = set()
    for row in _costs(output):
        cost = row["cost_usd"]
        if cost is None and row["status"] in _ANSWERED:
            unknown.add(row["model"])
        costs.setdefault(row["model"], []).append(cost or 0.0)
    for model, sample in costs.items():
        if model in unknown or not any(sample) or not 2 <= len(sample) < rows:
            continue
        squares = sum(cost * cost for cost in sample)
        total = total_of_sample(len(sample), sum(sample), squares, rows)
        repeats = job.dedupe is not False and (
            summary.models[model].copied > 0 or bool(job.dedupe)
        )
        drawn = job.sample is not None
        summary.add_projection(model, Projected(rows, *total, drawn=drawn, repeats=repeats))


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
    state: Snapshot,
    answers: int,
) -> RunStopped:
    """The stop of a run whose budget is spent, with an estimate of the rest and a budget that is enough.

    Args:
        stopped: The stop.
        job: What was asked.
        account: The budget.
        summary: Of this run.
        state: The present state of the models.
        answers: Number of answers that all models together are to give.
    """
    budget, earlier = account.budget, account.spent
    spent, refused = budget.committed, budget.refused
    unanswered = budget.perhaps.minus(Amount(earlier.perhaps_dollars, earlier.perhaps_tokens))
    by_model = _rest_by_model(summary, state, unanswered)
    dollars, tokens = by_model or _rest_by_average(account, summary, answers) or (None, None)
    texts, instead = [], {}
    if job.max_cost is not None:
        limit = Decimal(str(job.max_cost))
        if dollars is not None:
            texts.append(money(dollars))
        more = limit if dollars is None else dollars * _MARGIN
        enough = max(spent.dollars + refused.dollars + more, limit)
        instead["--max-cost"] = f"{_rounded_up(enough):f}"
    if job.max_total_tokens is not None:
        if tokens is not None:
            texts.append(f"{compact(float(tokens))} tokens")
        count = job.max_total_tokens if tokens is None else math.ceil(tokens * _MARGIN)
        enough = Decimal(max(spent.tokens + refused.tokens + count, job.max_total_tokens))
        instead["--max-total-tokens"] = f"{_rounded_up(enough):f}"
    text = f" The rest may take {' and '.join(texts)}, by what others took." if texts else ""
    return RunStopped(f"{stopped}{text}", instead=instead)


def _rest_by_average(
    account: Account, summary: Summary, answers: int
) -> tuple[Decimal, Decimal] | None:
    """(dollars, tokens) that the rest may take, by the average of this run and earlier ones."""
    totals = summary.models.values()
    ok = sum(model.outcomes[Outcome.OK] + model.earlier[Outcome.OK] for model in totals)
    if not ok or answers <= ok:
        return None
    spent = account.budget.committed
    if not any(model.usage_missing for model in totals):  # Else only the upper bound is known.
        spent = spent.minus(account.budget.perhaps)
    share = Decimal(answers - ok) / ok
    return spent.dollars * share, spent.tokens * share


def _rest_by_model(
    summary: Summary, state: Snapshot, unanswered: Amount
) -> tuple[Decimal | None, Decimal] | None:
    """(dollars, tokens) that the rest may take, by what answers of each model took; None where one has none.

    Args:
        summary: Of this run.
        state: The present state of the models.
        unanswered: What requests without an answer may have cost; the rest has as many of them.
    """
    dollars: Decimal | None = Decimal(0)
    tokens = to_send = all_sent = Decimal(0)
    for model in state.models:
        totals = summary.models[model.model]
        sent = totals.rows - totals.copied
        if model.to_send is None or not sent or totals.usage_missing:
            return None
        to_send, all_sent = to_send + model.to_send, all_sent + sent
        share = Decimal(model.to_send) / sent
        tokens += share * ((totals.tokens[0] or 0) + (totals.tokens[1] or 0))
        if dollars is not None:  # The projection of the live view, less what is spent.
            if model.cost is None or model.cost_in_all is None:
                dollars = None
            else:
                dollars += model.cost_in_all - model.cost
    if not all_sent:
        return None
    more = to_send / all_sent
    dollars = None if dollars is None else dollars + unanswered.dollars * more
    return dollars, tokens + unanswered.tokens * more


def _rounded_up(number: Decimal) -> Decimal:
    """The next number of two digits.

    >>> [f"{_rounded_up(Decimal(number)):f}" for number in ("1.231", "1200", "0.00123")]
    ['1.3', '1200', '0.0013']
    """
    step = Decimal(1).scaleb(number.adjusted() - 1)
    return math.ceil(number / step) * step
