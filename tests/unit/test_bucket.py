"""Token buckets and sliding sums on a virtual clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.limits.bucket import SlidingSum, TokenBucket

limits = st.floats(1, 100_000)
# What a client does between two takes: it waits, then takes an amount.
steps = st.lists(st.tuples(st.floats(0, 30), st.floats(0.1, 3000)), max_size=60)


def take_all(one, steps, *, settle: float = 0.0):
    """(when, amount) of each take, each as early as allowed."""
    now, taken = 100.0, []
    for pause, amount in steps:
        now += pause
        for _ in range(100):
            if (wait := one.delay(amount, now)) <= 0:
                break
            now += wait
        else:
            pytest.fail("it waits for ever")
        one.take(amount, now)
        one.settle(amount, amount * (1 - settle), now)
        taken.append((now, amount * (1 - settle)))
    return taken


@given(limits, st.lists(st.floats(0, 5), min_size=2, max_size=120))
def test_no_minute_holds_more_requests_than_the_limit(limit, pauses):
    """In any window of a minute, whenever it begins; not only in the server's."""
    limit = round(limit)
    taken = take_all(TokenBucket(limit, 100.0), [(pause, 1.0) for pause in pauses])
    for start, _ in taken:
        assert sum(start <= at < start + 60.0 for at, _ in taken) <= limit


@given(limits, steps, st.floats(0, 0.9))
def test_tokens_exceed_the_pace_by_one_request_at_most(limit, steps, settle):
    """Large requests are paid off before the next; what was not used is given back."""
    taken = take_all(TokenBucket(limit, 100.0), steps, settle=settle)
    rate = limit / 60
    largest = max((amount for _, amount in steps), default=0.0)
    for first, (start, _) in enumerate(taken):
        total = 0.0
        for at, amount in taken[first:]:
            total += amount
            assert total <= rate * (at - start) + max(1.0, rate) + largest + 1e-3


def test_a_request_above_a_whole_minute_waits_for_a_full_allowance():
    """And not for ever; those after it wait until it is paid off."""
    tokens = TokenBucket(600, 0.0)
    full = tokens.delay(10_000, 0.0)
    assert 0.0 < full <= 0.5  # At the start nothing is saved up but one unit.
    assert tokens.delay(10_000, full) == 0.0
    tokens.take(10_000, full)
    assert tokens.delay(1, full) == pytest.approx(10_000 / 9.9, rel=0.01)


@pytest.mark.parametrize("before", [0.0, 0.3, 30.0])
@pytest.mark.parametrize("pause", [0.0, 0.2, 1.0, 3.0])
def test_a_start_is_no_burst(before, pause):
    """However long the first request was waited for, or its answer, or slots for the others."""
    requests, now, taken = TokenBucket(6000, 0.0), before, []
    while now < before + 20.0:
        while requests.delay(1.0, now):
            now += requests.delay(1.0, now)
        requests.take(1.0, now)
        taken.append(now)
        now += pause if len(taken) in (1, 17) else 0.0  # A first answer; then only sixteen slots.
    for began in taken:
        assert sum(began <= at < began + 1.0 for at in taken) <= 100 + 5 * (2 * pause + 1)


def test_one_at_a_time_below_the_limit_waits_for_nothing():
    """Large requests after small ones, too: what one of them takes is saved up for it meanwhile."""
    tokens, now, waited = TokenBucket(90_000, 0.0), 0.0, 0.0
    for n in range(200):
        amount = 700.0 if n % 10 == 0 else 50.0
        wait = tokens.delay(amount, now)
        waited += wait if n else 0.0
        now += wait
        tokens.take(amount, now)
        now += 1.0
    assert waited < 1.0


def test_whoever_comes_late_makes_up_for_half_a_second():
    """A loop that is busy when it is its turn loses nothing of the limit, once it is no start any more."""
    requests, now, sent = TokenBucket(6000, 0.0), 0.0, []
    while now < 30.0:
        while not (wait := requests.delay(1.0, now)):
            requests.take(1.0, now)
            sent.append(now)
        now += max(wait, 0.4)
    assert sum(at > 10.0 for at in sent) == pytest.approx(0.99 * 100 * (now - 10.0), rel=0.02)


def test_nothing_is_saved_up_during_a_pause():
    """Or every pause would end in a burst, and that in the next refusal."""
    requests = TokenBucket(6000, 0.0)
    requests.hold(30.0, 0.0)
    assert requests.delay(1, 30.0) == pytest.approx(1 / 99, rel=0.01)


def test_sums_of_the_last_minute_forget_what_is_older():
    """In bounded memory: two steps a second."""
    recent = SlidingSum()
    for second in range(1000):
        recent.add(1.0, second)
    assert 58 <= recent.sum(999.0) <= 62
    assert 4 <= recent.sum(999.0, 5.0) <= 6
    recent.add(3.0, 995.2)
    assert 7 <= recent.sum(999.0, 5.0) <= 9
