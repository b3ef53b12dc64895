"""How a run stands: done, still to send, time and money that are left."""

from decimal import Decimal

import pytest

from batcher.live.summary import Summary
from batcher.records import Outcome
from batcher.runtime.channel import ChannelStatus
from batcher.runtime.snapshot import heartbeat, snapshot
from tests.support.made import result

ANSWER = {"prompt_tokens": 6, "completion_tokens": 4, "total_tokens": 10, "cost_usd": 0.5}


IDLE = ChannelStatus(0, 0, "", None)


def after(seconds, models=("m",), **more):
    """A summary that has run for so long."""
    times = [0.0]
    made = Summary(lambda: times[0], models)
    times[0] = seconds
    for model, rows in more.items():
        for row in range(rows):
            made.add(result(row=row, model=model, **ANSWER))
    return made


def one(summary, rows, *models, equals=None, route="each"):
    channels = dict.fromkeys(models or ("m",), IDLE)
    return snapshot("running", channels, summary, rows, equals or {}, route).models


def test_what_is_left_takes_as_long_and_costs_as_much_a_row():
    [m] = one(after(10.0, m=4), 12)
    assert (m.done, m.total, m.ok, m.to_send) == (4, 12, 4, 8)
    assert m.eta_s == pytest.approx(20.0)
    assert (m.cost, m.cost_in_all) == (Decimal("2.0"), Decimal("6.0"))
    assert (m.tokens_per_s, m.requests_per_s) == (4.0, 0.4)


def test_rows_of_earlier_runs_are_done_but_say_nothing_of_the_pace():
    summary = after(10.0, m=4)
    summary.add_earlier("m", Outcome.OK, 5)
    summary.add_earlier("m", Outcome.REFUSED, 1)
    [m] = one(summary, 12)
    assert (m.done, m.ok, m.not_ok, m.to_send) == (10, 9, {Outcome.REFUSED: 1}, 2)
    assert m.eta_s == pytest.approx(5.0)


@pytest.mark.parametrize(("rows", "answered"), [(None, 4), (12, 0)])
def test_before_the_first_answer_or_without_a_count_nothing_is_projected(rows, answered):
    [m] = one(after(10.0, m=answered), rows)
    assert (m.to_send, m.eta_s, m.cost_in_all) == (None, None, None)


def test_a_cost_that_lacks_an_answer_is_not_projected():
    summary = after(10.0, m=4)
    summary.add(result(row=9))
    [m] = one(summary, 12)
    assert m.cost_in_all is None


def test_rows_that_wait_for_an_equal_one_are_not_to_be_sent():
    [m] = one(after(10.0, m=4), 12, equals={"m": 3})
    assert (m.to_send, m.eta_s) == (5, pytest.approx(12.5))


def test_a_split_shares_what_is_left_as_it_shared_what_is_done():
    a, b = one(after(10.0, ("a", "b"), a=6, b=2), 16, "a", "b", route="split")
    assert (a.to_send, b.to_send) == (6, 2)
    assert (a.total, b.total) == (None, None)


def test_a_fallback_passes_on_as_many_of_the_rest_as_it_did():
    a, b = one(after(10.0, ("a", "b"), a=8, b=2), 12, "a", "b", route="fallback")
    assert (a.to_send, b.to_send) == (4, 1)
    assert (a.total, b.total) == (12, None)


def test_the_oldest_request_in_flight_is_named():
    channels = {"m": ChannelStatus(3, 2, "tokens", (4.5, "row-7"))}
    [m] = snapshot("stopping", channels, after(1.0), 12, {}).models
    assert (m.in_flight, m.waiting, m.waiting_for) == (3, 2, "tokens")
    assert (m.longest_in_flight_s, m.longest_row) == (4.5, "row-7")


def test_status_json_has_null_for_what_is_not_known():
    told = heartbeat(snapshot("running", {"m": IDLE}, after(10.0), None, {}))
    assert told == {
        "state": "running",
        "models": {
            "m": {"done": 0, "total": None, "ok": 0, "not_ok": {}, "in_flight": 0, "waiting": 0,
                  "waiting_for": "", "requests_per_second": 0.0, "tokens_per_second": None,
                  "cost_usd": None, "cost_in_all_usd": None, "eta_seconds": None},
        },
    }  # fmt: skip


def test_status_json_has_rounded_figures():
    [m] = heartbeat(snapshot("running", {"m": IDLE}, after(3.0, m=1), 3, {}))["models"].values()
    assert (m["requests_per_second"], m["tokens_per_second"]) == (0.333, 3.3)
    assert (m["cost_usd"], m["cost_in_all_usd"], m["eta_seconds"]) == (0.5, 1.5, 6.0)
