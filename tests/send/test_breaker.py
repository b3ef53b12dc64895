"""While everything fails, one probe at a time."""

from batcher.limits.breaker import Breaker


def opened(at=100.0):
    breaker = Breaker()
    for n in range(8):
        breaker.failed(at + n / 10, at + n / 10 + 0.05)
    assert breaker.open
    return breaker


def test_an_answer_to_what_was_sent_before_the_outage_does_not_end_it():
    """A hundred answers still come in while every new request is refused."""
    breaker = opened()
    breaker.succeeded(sent_at=99.0)
    assert breaker.open
    breaker = Breaker()
    for n in range(8):
        breaker.failed(100.0 + n, 100.1 + n)
        breaker.succeeded(sent_at=90.0 + n)
    assert breaker.open


def test_failures_between_answers_do_not_open_it():
    """One of five fails: that is no outage."""
    breaker = Breaker()
    for n in range(100):
        breaker.failed(n, n + 0.1)
        breaker.succeeded(sent_at=n + 0.2)
    assert not breaker.open


def test_probes_come_ever_later_and_an_answer_to_one_closes():
    """A minute costs seven of them."""
    breaker, now, probes = opened(), 101.0, []
    while now < 161.0:
        now += max(0.001, breaker.wait(now))
        probes.append(now)
        breaker.take(now)
        breaker.failed(now, now + 0.05)
        now += 0.05
    assert len(probes) <= 7
    breaker.take(now)
    breaker.succeeded(sent_at=now)
    assert not breaker.open


def test_a_probe_that_hangs_is_not_waited_for_for_ever():
    """The next one goes after half a minute."""
    breaker = opened()
    breaker.take(102.0)
    assert breaker.probing(120.0)
    assert breaker.wait(110.0) == 22.0
    assert breaker.wait(132.0) == 0.0
    assert not breaker.probing(132.0)
