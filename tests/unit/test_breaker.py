"""The states of the breaker, one test an edge, and what an outage costs."""

import pytest

from batcher.limits.breaker import Breaker, BreakerState

CLOSED, PAUSED, PROBE = BreakerState.CLOSED, BreakerState.PAUSED, BreakerState.PROBE


def opened(at=100.0):
    breaker = Breaker()
    for n in range(8):
        breaker.observe("failed", at + n / 10, at + n / 10 + 0.05)
    return breaker


def probing(at=102.0):
    breaker = opened()
    breaker.take(at)
    return breaker


def test_the_eighth_failure_in_a_row_opens_it_for_a_second():
    breaker = opened()
    assert breaker.state is PAUSED
    assert breaker.delay(100.75) == pytest.approx(1.0)
    assert breaker.delay(101.75) == 0.0


def test_after_the_pause_a_request_is_the_probe_and_others_wait():
    breaker = probing()
    assert breaker.state is PROBE
    assert breaker.delay(102.0) > 0.0
    assert breaker.probing(102.0)


def test_a_failed_probe_doubles_the_pause_up_to_a_bound():
    breaker, now, pauses = probing(), 102.0, []
    for _ in range(6):
        breaker.observe("failed", now, now)
        assert breaker.state is PAUSED
        pauses.append(breaker.delay(now))
        now += pauses[-1]
        breaker.take(now)
    assert pauses == [2.0, 4.0, 8.0, 15.0, 15.0, 15.0]


def test_a_probe_that_is_not_sent_leaves_its_turn_to_the_next_request():
    breaker = probing()
    breaker.observe("unsent", 102.0, 103.0)
    assert breaker.state is PAUSED
    assert breaker.delay(103.0) == 0.0


@pytest.mark.parametrize("kind", ["answered", "rejected", "refused"])
@pytest.mark.parametrize("make", [opened, probing])
def test_an_answer_to_a_request_sent_since_it_opened_closes_it(make, kind):
    """A refusal and a rejection, too: the server works."""
    breaker = make()
    breaker.observe(kind, 102.0, 103.0)
    assert breaker.state is CLOSED
    assert breaker.calm
    assert breaker.delay(103.0) == 0.0


@pytest.mark.parametrize("make", [opened, probing])
def test_an_answer_to_a_request_sent_before_it_opened_does_not_close_it(make):
    """A hundred answers still come in while every new request fails."""
    breaker = make()
    breaker.observe("answered", 99.0, 103.0)
    assert breaker.open


def test_late_answers_to_requests_from_before_the_failures_do_not_keep_it_closed():
    breaker = Breaker()
    for n in range(8):
        breaker.observe("failed", 100.0 + n, 100.1 + n)
        breaker.observe("answered", 90.0 + n, 100.2 + n)
    assert breaker.open


@pytest.mark.parametrize("make", [opened, probing])
def test_a_failure_of_another_request_than_the_probe_changes_nothing(make):
    breaker = make()
    before = breaker.state, breaker.delay(103.0)
    breaker.observe("failed", 100.9, 103.0)
    assert (breaker.state, breaker.delay(103.0)) == before


def test_failures_between_answers_do_not_open_it():
    """One of five fails: that is no outage."""
    breaker = Breaker()
    for n in range(100):
        breaker.observe("failed", n, n + 0.1)
        breaker.observe("answered", n + 0.2, n + 0.3)
    assert breaker.state is CLOSED


def test_an_outage_of_a_minute_costs_seven_probes():
    breaker, now, probes = opened(), 101.0, 0
    while now < 161.0:
        now += max(0.001, breaker.delay(now))
        breaker.take(now)
        breaker.observe("overloaded", now, now + 0.05)
        now += 0.05
        probes += 1
    assert probes <= 7


def test_a_probe_that_hangs_is_waited_for_half_a_minute():
    breaker = probing(102.0)
    assert breaker.probing(120.0)
    assert breaker.delay(110.0) == 22.0
    assert breaker.delay(132.0) == 0.0
    assert not breaker.probing(132.0)
    breaker.take(132.0)
    assert breaker.state is PROBE
    assert breaker.delay(132.0) == 30.0
