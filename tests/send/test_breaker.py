"""While everything fails, one probe at a time."""

from batcher.limits.breaker import Breaker


def opened(at=100.0):
    breaker = Breaker()
    for n in range(8):
        breaker.observe("failed", at + n / 10, at + n / 10 + 0.05)
    assert breaker.open
    return breaker


def test_an_answer_to_what_was_sent_before_the_outage_does_not_end_it():
    """A hundred answers still come in while every new request is refused."""
    breaker = opened()
    breaker.observe("answered", 99.0, 99.0 + 1.0)
    assert breaker.open
    breaker = Breaker()
    for n in range(8):
        breaker.observe("failed", 100.0 + n, 100.1 + n)
        breaker.observe("answered", 90.0 + n, 90.0 + n + 1.0)
    assert breaker.open


def test_failures_between_answers_do_not_open_it():
    """One of five fails: that is no outage."""
    breaker = Breaker()
    for n in range(100):
        breaker.observe("failed", n, n + 0.1)
        breaker.observe("answered", n + 0.2, n + 0.2 + 1.0)
    assert not breaker.open


def test_probes_come_ever_later_and_an_answer_to_one_closes():
    """A minute costs seven of them."""
    breaker, now, probes = opened(), 101.0, []
    while now < 161.0:
        now += max(0.001, breaker.delay(now))
        probes.append(now)
        breaker.take(now)
        breaker.observe("failed", now, now + 0.05)
        now += 0.05
    assert len(probes) <= 7
    breaker.take(now)
    breaker.observe("answered", now, now + 1.0)
    assert not breaker.open


def test_a_probe_that_hangs_is_not_waited_for_for_ever():
    """The next one goes after half a minute."""
    breaker = opened()
    breaker.take(102.0)
    assert breaker.probing(120.0)
    assert breaker.delay(110.0) == 22.0
    assert breaker.delay(132.0) == 0.0
    assert not breaker.probing(132.0)
