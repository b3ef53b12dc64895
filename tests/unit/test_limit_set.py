"""Limits of requests and tokens from what is configured, read in headers and learned; the strictest counts."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.job.job import Limits
from batcher.limits.concurrency import Concurrency
from batcher.limits.headers import RateLimitHeaders
from batcher.limits.limits import Limit, LimitSet


def measure(configured=None, *, learns=True, wins=False):
    return Limit(configured, 0.0, learns=learns, ignores_headers=wins)


def header(limit, window=60.0, *, remaining=None, reset=None):
    """What headers say of requests."""
    return RateLimitHeaders("requests", limit, remaining, reset, window)


LIMITS = [(None, None, None), (60.0, None, 60.0), (None, 30.0, 30.0), (60.0, 30.0, 30.0), (30.0, 60.0, 30.0)]  # fmt: skip


@pytest.mark.parametrize(("configured", "advertised", "limit"), LIMITS)
def test_the_lower_of_the_configured_and_the_advertised_limit_counts(
    configured, advertised, limit
):
    made = measure(configured)
    if advertised is not None:
        made.advertised([header(advertised)], 0.0, 0.0, answered=True)
    assert made.per_minute == limit
    pace = made.rate(0.0)
    assert (pace is None) == (limit is None)
    if limit is not None:
        assert pace == pytest.approx(0.99 * limit / 60)


def test_what_headers_said_is_forgotten_after_two_minutes_of_silence():
    made = measure()
    made.advertised([header(30.0)], 0.0, 0.0, answered=True)
    made.advertised([], 120.0, 120.0, answered=True)
    assert made.per_minute == 30.0
    made.advertised([], 120.0, 120.5, answered=True)
    assert made.per_minute is None


def test_headers_do_not_count_where_the_configured_limit_wins():
    made = measure(600.0, wins=True)
    made.advertised([header(6.0)], 0.0, 1.0, answered=True)
    assert made.per_minute == 600.0


def test_of_several_headers_the_strictest_counts():
    made = measure()
    made.advertised(
        [header(600.0), header(5.0, 1.0), header(10_000.0, 86_400.0)], 0.0, 1.0, answered=True
    )
    assert made.per_minute == 300.0


PAUSES = [
    # (units left, seconds until the window turns, whether one more may go before)
    (0.0, 30.0, False),
    (5.0, 30.0, True),
    (0.0, 60.0, True),  # A bucket that refills has some long before it is whole.
    (0.0, None, True),
]


@pytest.mark.parametrize(("left", "turns", "goes"), PAUSES)
def test_nothing_goes_before_the_window_turns_when_nothing_is_left(left, turns, goes):
    made = measure()
    made.advertised([header(600.0, remaining=left, reset=turns)], 0.0, 1.0, answered=True)
    assert (made.delay(1, 30.9) == 0.0) == goes
    assert made.delay(1, 31.2) == 0.0


def test_a_header_that_says_nothing_is_left_to_everybody_is_no_longer_believed():
    """It was answered after the window had turned, and there is still nothing left."""
    made = measure()
    empty = [header(600.0, remaining=0.0, reset=30.0)]
    made.advertised(empty, 0.0, 1.0, answered=True)
    made.advertised(empty, 40.0, 41.0, answered=True)
    made.advertised(empty, 20.0, 42.0, answered=True)  # It was long on its way.
    assert made.delay(1, 43.0) == 0.0


def test_a_refusal_says_no_new_limit_but_its_headers_do():
    made = measure()
    made.advertised([], 0.0, 1.0, answered=False)
    assert made.per_minute is None
    made.advertised([header(60.0)], 0.0, 1.0, answered=False)
    assert made.per_minute == 60.0


@given(st.floats(10, 6000), st.lists(st.floats(0.01, 30), min_size=1, max_size=30))
def test_a_sender_that_waits_out_every_delay_stays_within_the_limit(per_minute, gaps):
    """A greedy sender never has more than the limit, and one request, in the time that passed."""
    made, now = measure(per_minute), 0.0
    for sent, gap in enumerate(gaps, 1):
        now += max(made.delay(1, now), 1e-9)
        made.take(1, now)
        assert sent <= 2 + per_minute / 60 * (now + 0.5)
        now += gap / per_minute


def test_asking_how_long_to_wait_takes_nothing():
    made = measure(60.0)
    made.take(1, 0.0)
    assert [made.delay(1, 0.0) for _ in range(3)] == [made.delay(1, 0.0)] * 3
    assert made.delay(1, 0.0) > 0


def test_what_was_reserved_and_not_used_can_be_used_again():
    made = measure(6000.0)
    made.take(3000, 0.0)
    before = made.delay(100, 1.0)
    made.settle(3000, 100, 1.0)
    assert made.delay(100, 1.0) < before
    assert made.used == 100


SHARES = [(29.9, None), (30.0, 1.0), (60.0, 0.5)]


@pytest.mark.parametrize(("last", "share"), SHARES)
def test_the_share_of_a_limit_is_known_after_half_a_minute(last, share):
    made = measure(120.0)
    for _ in range(59):
        made.take(1, 0.0)
    made.take(1, last)
    assert made.share() == (None if share is None else pytest.approx(share))


def test_without_a_limit_there_is_no_share():
    made = measure()
    made.take(1, 0.0)
    made.take(1, 60.0)
    assert made.share() is None


def test_nothing_is_saved_up_while_a_header_says_that_nothing_is_left():
    made = measure(6000.0)
    made.hold(10.0, 0.0)
    assert made.delay(1, 5.0) > 0
    assert made.delay(1, 20.0) == 0.0


def test_a_few_refusals_do_not_unmake_a_known_limit():
    known, unknown = measure(600.0), measure()
    for made in (known, unknown):
        made.take(1, 0.0)
    assert known.refused(1, 0.0, 1.0, None) is False
    assert known.rate(1.0) == pytest.approx(0.99 * 10)
    for n in range(20):
        known.take(1, 2.0 + n)
        learned = known.refused(1, 2.0 + n, 2.5 + n, None)
    assert learned


def test_refusals_of_requests_that_were_on_their_way_together_count_once():
    made = measure(600.0)
    for _ in range(50):
        made.take(1, 0.0)
    assert not any(made.refused(1, 0.0, 1.0, None) for _ in range(50))


def test_a_set_waits_for_the_scarcer_of_requests_and_tokens():
    limits = LimitSet(Limits(rpm=60, tpm=60_000), Concurrency(2), 0.0, learns=True)
    assert limits.delay(1, 0.0) == 0.0
    limits.take(30_000, 0.0)
    assert limits.cause(500, 0.0) == "tokens"
    assert limits.delay(500, 0.0) > 20
    other = LimitSet(Limits(rpm=6, tpm=60_000), Concurrency(2), 0.0, learns=True)
    other.take(10, 0.0)
    assert other.cause(10, 0.0) == "requests"
    assert other.delay(10, 0.0) == pytest.approx(60 / 6 / 0.99, rel=0.02)


def test_a_set_without_a_free_slot_waits_for_one_and_for_nothing_else():
    limits = LimitSet(Limits(), Concurrency(1), 0.0, learns=True)
    limits.take(10, 0.0)
    assert math.isinf(limits.delay(10, 0.0))
    assert limits.cause(10, 0.0) == "a free place"
    limits.settle(10, 4, 0.0)
    assert limits.delay(10, 0.0) == 0.0
    assert (limits.in_flight, limits.tokens.used, limits.requests.used) == (0, 4, 1)


def test_a_request_whose_use_is_not_known_keeps_what_was_reserved():
    limits = LimitSet(Limits(), Concurrency(1), 0.0, learns=True)
    limits.take(10, 0.0)
    limits.settle(10, None, 0.0)
    assert limits.tokens.used == 10
