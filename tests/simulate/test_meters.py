from math import floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.simulate.meters import Bucket, ModelMeter, Window, meter

KINDS = ("bucket-60s", "bucket-1s", "window-60s", "window-1s")
limits = st.floats(1, 5_000)
spans = st.sampled_from((1.0, 60.0))
# Gaps between arrivals and what each asks for: bursts, pauses, and all between.
arrivals = st.lists(st.tuples(st.floats(0, 20), st.floats(0.1, 50)), max_size=150)


def let_through(one, arrivals):
    """(when, how much) of what the meter allowed; each took what it asked for."""
    now, allowed = 1_000_000.0, []
    for gap, amount in arrivals:
        now += gap
        if one.refusal(amount, now) is None:
            one.take(amount, now)
            allowed.append((now, amount))
    return allowed


@given(limits, spans, arrivals)
def test_a_bucket_never_lets_through_more_than_its_depth_and_the_refill(limit, span, arrivals):
    """The bound that makes a bucket: over any stretch of time, depth + rate × time."""
    depth = max(1.0, limit * span / 60)
    asked = [(gap, min(amount, depth)) for gap, amount in arrivals]
    allowed = let_through(Bucket(limit, span), asked)
    for first, (start, _) in enumerate(allowed):
        total = 0.0
        for end, amount in allowed[first:]:
            total += amount
            assert total <= depth + limit / 60 * (end - start) + 1e-3


@given(limits, spans, arrivals)
def test_no_aligned_window_holds_more_than_its_share_of_the_limit(limit, span, arrivals):
    """Else a run could show more than 100 % of a limit used."""
    span = max(span, 60 / limit)
    most = limit * span / 60
    asked = [(gap, min(amount, most)) for gap, amount in arrivals]
    used = {}
    for when, amount in let_through(Window(limit, span), asked):
        window = floor(when / span)
        used[window] = used.get(window, 0.0) + amount
    assert all(total <= most + 1e-3 for total in used.values())


@given(st.sampled_from(KINDS), limits, arrivals, st.floats(0.1, 10_000))
def test_who_waits_as_told_is_let_through(kind, limit, arrivals, amount):
    """A retry-after that is too short costs a second 429; even huge requests get their turn."""
    one = meter(kind, limit)
    let_through(one, arrivals)
    now = 1_010_000.0
    one.take(30, now)
    wait = one.refusal(amount, now)
    assert wait is None or wait > 0
    assert one.refusal(amount, now + (wait or 0) + 1e-6) is None


@given(st.sampled_from(KINDS), st.floats(60, 5_000))
def test_what_is_too_much_is_paid_back(kind, limit):
    """Requests above a whole allowance must not make the limit void."""
    one, now, taken = meter(kind, limit), 600.0, 0.0
    while now < 4200:
        wait = one.refusal(3 * limit, now)
        if wait is None:
            one.take(3 * limit, now)
            taken += 3 * limit
        now += (wait or 0) + 0.01
    assert taken <= 60 * limit + 4 * limit


@pytest.mark.parametrize(
    ("kind", "at_once", "next_wait"),
    [
        ("bucket-60s", 600, 0.1),
        ("bucket-1s", 10, 0.1),
        ("window-60s", 600, 55),
        ("window-1s", 10, 1),
    ],
)
def test_the_four_kinds_take_a_burst_as_servers_do(kind, at_once, next_wait):
    """600 a minute, five seconds into it: what passes at once, and how long the next waits."""
    one, passed = meter(kind, 600), 0
    while one.refusal(1, 65.0) is None:
        one.take(1, 65.0)
        passed += 1
    assert (passed, one.refusal(1, 65.0)) == (at_once, pytest.approx(next_wait))
    assert one.remaining(65.0) == pytest.approx(0)


def test_a_limit_below_one_a_second_is_kept_by_a_window_of_a_second():
    """30 a minute in windows of a second is one every two seconds, not one a second."""
    one = meter("window-1s", 30)
    assert len(let_through(one, [(0.25, 1)] * 479)) == 60


def test_a_refused_request_books_nothing():
    """A token limit that refuses must not use up the requests."""
    both = ModelMeter("bucket-60s", "max-tokens", rpm=2, tpm=100)
    assert both.admit(10, 80, 0.0) is None
    for _ in range(5):
        refusal = both.admit(10, 80, 0.0)
        assert (refusal.what, refusal.limit, refusal.wait_s) == ("tokens", 100, pytest.approx(48))
    assert both.admit(1, 1, 0.0) is None
    assert both.admit(1, 1, 0.0).what == "requests"


@pytest.mark.parametrize(("charge", "left"), [("output", "985"), ("max-tokens", "890")])
def test_tokens_are_charged_afterwards_or_up_front(charge, left):
    """10 in, at most 100 out, 5 came out: two kinds of server, two bills."""
    both = ModelMeter("window-60s", charge, rpm=None, tpm=1000)
    assert both.admit(10, 100, 0.0) is None
    both.settle(15, 0.0)
    assert both.headers(0.0)["x-ratelimit-remaining-tokens"] == left


def test_headers_are_openais():
    """5,000 a minute, one used: the sample of OpenAI that is known says 12 ms."""
    both = ModelMeter("bucket-60s", "output", rpm=5000, tpm=None)
    both.admit(1, 1, 0.0)
    assert both.headers(0.0) == {
        "x-ratelimit-limit-requests": "5000",
        "x-ratelimit-remaining-requests": "4999",
        "x-ratelimit-reset-requests": "12ms",
    }
