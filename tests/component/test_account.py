"""What a run may spend: what earlier runs left of a budget, and a larger one where it does not suffice."""

import asyncio
import json
from decimal import Decimal

import pytest

from batcher.errors import JobError, OutputError, RunStopped
from batcher.job.job import Job
from batcher.limits.gate import Closed
from batcher.live.progress import ModelSnapshot, Snapshot
from batcher.live.summary import Summary
from batcher.money.account import opened
from batcher.money.budget import Amount
from batcher.money.prices import Price, Prices
from batcher.read.files import expand
from batcher.read.inputs import Inputs
from batcher.runtime.costs import project, with_larger_budget
from batcher.write.lines import line_of
from tests.support.made import result
from tests.support.program import write_jsonl

PRICES = Prices(
    {"m": Price(Decimal(1), Decimal(2), served={"flex": Price(Decimal(1), Decimal(1))})}
)
ANSWER = {"prompt_tokens": 60, "completion_tokens": 40, "total_tokens": 100, "cost_usd": 0.1}


def job(**more):
    return Job.of(**{"output": "out.jsonl", "models": ["m"], **more})


def account(folder, cut_off=0, **asked):
    return asyncio.run(opened(job(**asked), PRICES, folder, cut_off))


def test_without_a_bound_there_is_no_account(tmp_path):
    assert account(tmp_path) is None
    assert not (tmp_path / "budget.json").exists()


REFUSED = [
    ({"models": ["m", "x"], "max_cost": 1}, "the price of x is not known"),
    ({"max_cost": 1, "params": {"service_tier": "priority"}}, "priority"),
]


@pytest.mark.parametrize(("asked", "why"), REFUSED)
def test_a_budget_that_cannot_be_kept_is_refused_before_anything_is_sent(tmp_path, asked, why):
    with pytest.raises(JobError, match=why):
        account(tmp_path, **asked)


KEPT = [
    {"models": ["m", "x"], "max_total_tokens": 9},
    {"max_cost": 1, "params": {"service_tier": "flex"}},
    {"max_total_tokens": 9, "params": {"service_tier": "priority"}},
]


@pytest.mark.parametrize("asked", KEPT, ids=str)
def test_prices_matter_only_where_dollars_are_bounded(tmp_path, asked):
    assert account(tmp_path, **asked) is not None


def journal(folder, *results):
    lines = (line_of(json.dumps(r).encode()) for r in results)
    (folder / "journal-000001.jsonl").write_bytes(b"".join(lines))


LINE = {"row": 0, "model": "m", "sample": 0, "key": "0" * 32, "status": "ok", "custom_id": "0", "attempts": 1}  # fmt: skip


def test_what_earlier_runs_spent_counts(tmp_path):
    journal(tmp_path, {**LINE, **ANSWER}, {**LINE, "row": 1, **ANSWER})
    made = account(tmp_path, max_cost=1)
    assert made.budget.committed == Amount(Decimal("0.2"), 200)


def test_what_a_kill_left_in_flight_counts_as_the_dearest_answer(tmp_path):
    journal(tmp_path, {**LINE, **ANSWER})
    made = account(tmp_path, 3, max_cost=1)
    assert made.budget.committed == Amount(Decimal("0.4"), 400)
    assert made.budget.perhaps == Amount(Decimal("0.3"), 300)


def test_what_a_request_may_take_at_most_counts_where_that_is_more(tmp_path):
    journal(tmp_path, {**LINE, **ANSWER, "cost_usd": 0.0001})
    made = account(tmp_path, 1, max_cost=1, params={"max_tokens": 500})
    assert made.budget.perhaps == Amount(Decimal("0.001075"), 560)  # All written to the cache.


def test_what_is_spent_is_recorded_at_the_end(tmp_path):
    made = account(tmp_path, max_cost=1)
    made.close()
    assert json.loads((tmp_path / "budget.json").read_bytes())["committed_usd"] == "0"


def test_a_disk_that_takes_no_record_stops_the_sending_and_not_the_end(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    made = account(folder, max_cost=1)
    folder.rmdir()
    made.close()

    async def send():
        ends = []
        made.budget.on_stop(ends.append)
        with pytest.raises(Closed):
            await made.budget.enter(Amount(Decimal("0.1"), 10), "m")
        return ends

    [why] = asyncio.run(send())
    assert isinstance(why, OutputError)
    assert "cannot be recorded" in str(why)


# A larger budget


def larger(folder, answered, to_send, rows, **asked):
    """The flags that a run is told after this many answers of $0.1 and 100 tokens."""
    journal(folder, *({**LINE, "row": n, **ANSWER} for n in range(answered)))
    made = account(folder, **asked)
    summary = Summary(lambda: 0.0, ["m"])
    for row in range(answered):
        summary.add(result(row=row, **ANSWER))
    cost = Decimal("0.1") * answered
    in_all = None if to_send is None else cost + Decimal("0.1") * to_send
    model = ModelSnapshot(model="m", to_send=to_send, cost=cost, cost_in_all=in_all)
    now = Snapshot("stopping", (model,))
    stopped = RunStopped("It is spent.")
    told = with_larger_budget(stopped, job(**asked), made, summary, now, rows)
    return told.instead, str(told)


LARGER = [
    # (answered, to send, rows in all, asked, the flags)
    (4, 6, 10, {"max_cost": 0.4}, {"--max-cost": "1.2"}),  # 0.4 + 0.6 × 1.2, rounded up.
    (4, 6, 10, {"max_total_tokens": 400}, {"--max-total-tokens": "1200"}),
    (4, None, 10, {"max_cost": 0.4}, {"--max-cost": "1.2"}),  # By the average of all that is ok.
    (4, None, 4, {"max_cost": 0.4}, {"--max-cost": "0.80"}),  # All is ok, and yet it was stopped.
    (4, 0, 4, {"max_cost": 5}, {"--max-cost": "5.0"}),  # Never less.
]


@pytest.mark.parametrize(("answered", "to_send", "rows", "asked", "flags"), LARGER)
def test_a_run_that_is_stopped_is_told_a_budget_that_suffices(
    tmp_path, answered, to_send, rows, asked, flags
):
    instead, said = larger(tmp_path, answered, to_send, rows, **asked)
    assert {n: Decimal(of) for n, of in instead.items()} == {
        n: Decimal(of) for n, of in flags.items()
    }
    assert said.startswith("It is spent.")
    assert ("The rest may take" in said) == (to_send is not None or rows == 10)


# What all rows would cost


def projected(at, costs, every=10, **asked):
    rows = [{"model": "m", "status": "ok", "cost_usd": cost} for cost in costs]
    output = write_jsonl(at / "out.jsonl", rows)
    inputs = Inputs(expand([str(write_jsonl(at / "in.jsonl", [{"prompt": "p"}] * every))]))
    summary = Summary(lambda: 0.0, ["m"])
    project(summary, output, inputs, job(**asked))
    return summary.models["m"].projected


def test_a_trial_tells_what_all_rows_would_cost(tmp_path):
    made = projected(tmp_path, [0.1, 0.3], limit=2)
    assert (made.rows, made.drawn, made.repeats) == (10, False, False)
    assert made.about == pytest.approx(2.0)
    assert made.low < made.about < made.high
    assert projected(tmp_path, [0.1, 0.3], sample=2).drawn
    assert projected(tmp_path, [0.1, 0.3], samples=3).rows == 30


@pytest.mark.parametrize("costs", [[0.1], [0.0, 0.0], [0.1, None], [0.1] * 10])
def test_what_says_nothing_of_the_rest_is_not_projected(tmp_path, costs):
    assert projected(tmp_path, costs) is None
