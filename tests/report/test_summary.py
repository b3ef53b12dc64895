"""The totals are right, and what was not reported stays unknown."""

import json
import math
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from batcher.live.summary import Latencies, Summary
from batcher.records import Attempt, Outcome, Result


def result(status=Outcome.OK, model="m", **known):
    return Result(row=0, model=model, sample=0, key="k", status=status, custom_id="0", **known)


def totals(*results):
    summary = Summary(lambda: 0.0)
    for one in results:
        summary.add(one)
    return summary.asdict()["models"]["m"]


@given(
    st.lists(st.integers(0, 4_000_000), min_size=1, max_size=300),
    st.sampled_from([0, 50, 95, 99, 100]),
)
def test_a_percentile_is_within_three_percent_of_the_exact_one(latencies, percent):
    """The p99 decides which model is bought; memory must not cost its truth."""
    seen = Latencies()
    for ms in latencies:
        seen.add(ms)
    exact = sorted(latencies)[max(1, math.ceil(Fraction(len(latencies) * percent, 100))) - 1]
    assert abs(seen.percentile(percent) - exact) <= 0.03 * exact
    assert seen.max == max(latencies)


def test_a_million_different_latencies_need_few_buckets():
    """Memory does not grow with the file."""
    seen = Latencies()
    for ms in range(0, 3_600_000, 7):
        seen.add(ms)
    assert len(seen._buckets) < 600


def test_without_answers_there_are_no_percentiles():
    """A timeout of 600 s is not how fast the model answers."""
    assert totals(result(Outcome.TIMEOUT, latency_ms=600_000))["latency_ms"] == {
        "p50": None, "p95": None, "p99": None, "max": None,
    }  # fmt: skip


def test_tokens_that_nobody_reported_are_null():
    """A zero would say that the answer was free."""
    got = totals(result(prompt_tokens=5), result(prompt_tokens=7))
    assert got["tokens"] == {
        "prompt": 12, "completion": None, "total": None, "cached": None, "reasoning": None,
        "cache_write": None,
    }  # fmt: skip
    assert got["usage_missing"] == 2


def test_tokens_reported_as_zero_are_zero():
    """No cached tokens is a fact, and another one than not knowing."""
    got = totals(result(cached_tokens=0, prompt_tokens=1, completion_tokens=0))
    assert got["tokens"]["cached"] == 0
    assert got["usage_missing"] == 0


@given(st.lists(st.none() | st.integers(0, 10**6), max_size=20))
def test_a_sum_holds_what_was_reported_and_counts_what_was_not(reported):
    """Both figures together tell how far the sum can be trusted."""
    summary = Summary(lambda: 0.0, ["m"])
    for count in reported:
        summary.add(result(reasoning_tokens=count))
    known = [count for count in reported if count is not None]
    assert summary.models["m"].tokens[4] == (sum(known) if known else None)
    assert summary.models["m"].missing[4] == len(reported) - len(known)


def test_failed_rows_are_not_asked_for_usage():
    """A connection that failed has no usage to report."""
    got = totals(result(Outcome.CONNECTION, attempts=1))
    assert (got["usage_missing"], got["cost_missing"]) == (0, 0)


def test_money_adds_up_as_decimals_do():
    """Ten times ten cents is one dollar."""
    got = totals(*[result(cost_usd=0.1)] * 10, result())
    assert (got["cost_usd"], got["cost_missing"]) == (1.0, 1)


def test_an_unknown_cost_is_null():
    """A model without a price has no cost, not $0."""
    assert totals(result())["cost_usd"] is None


def test_a_retry_is_an_attempt_after_the_first():
    """An unreadable row has no attempt at all, and so no retry."""
    got = totals(result(attempts=3), result(attempts=1), result(Outcome.UNREADABLE, attempts=0))
    assert (got["requests"], got["retries"]) == (4, 2)


def test_a_429_counts_once_whether_a_try_or_the_row_names_it():
    """A row without tries names the status of its only exchange."""
    refused = Attempt(
        started=0, latency_ms=1, waited_ms=0, status=Outcome.RATE_LIMITED, http_status=429
    )
    summary = Summary(lambda: 0.0)
    summary.add(result(tries=[refused], attempts=2))
    summary.add(result(Outcome.RATE_LIMITED, http_status=429, attempts=1))
    assert summary.asdict()["models"]["m"]["answered_429"] == 2


def test_earlier_rows_stand_apart():
    """What an earlier run did is in no rate, sum or count of this one."""
    summary = Summary(lambda: 0.0)
    summary.add_earlier("m", Outcome.OK, 40)
    summary.add_earlier("m", Outcome.OK)
    got = summary.asdict()
    assert got["rows"] == 0
    assert got["models"]["m"]["earlier"] == {"ok": 41}
    assert (got["models"]["m"]["outcomes"], got["models"]["m"]["cost_usd"]) == ({}, None)


def test_rates_are_over_the_run_and_stop_with_it():
    """Time spent on writing the output does not slow the sending down."""
    times = iter([100.0, 110.0])
    summary = Summary(lambda: next(times), ["b", "a"])
    summary.add(result(model="a", attempts=5))
    summary.finish("done")
    got = json.loads(json.dumps(summary.asdict()))
    assert (got["status"], got["seconds"]) == ("done", 10.0)
    assert list(got["models"]) == ["b", "a"]
    assert got["models"]["a"]["requests_per_second"] == 0.5
