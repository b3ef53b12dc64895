"""The rate that refusals teach, on a virtual clock."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.limits.adaptive import AdaptiveRate


def test_there_is_no_limit_before_the_first_refusal():
    """What is not known is not guessed."""
    learned = AdaptiveRate()
    assert all(learned.delay(1, now / 1000) == 0.0 for now in range(100))


def test_a_refusal_shuts_and_one_probe_goes_at_a_time():
    """While the server refuses, it is asked seldom and by one."""
    learned = AdaptiveRate()
    for n in range(10):
        learned.take(1, n / 10)
    learned.refused(1, 0.9, 1.0, None)
    assert learned.shut(1.0)
    now = 1.0 + learned.delay(1, 1.0)
    learned.take(1, now)
    assert learned.delay(1, now) > 0.0
    learned.refused(1, now, now + 0.01, None)
    assert learned.delay(1, now + 0.01) >= 0.25


def test_what_was_on_its_way_before_a_cut_does_not_cut_again():
    """One event is one cut, however many were in flight."""
    learned = AdaptiveRate()
    for n in range(100):
        learned.take(1, n / 100)
    learned.refused(1, 0.5, 1.0, None)
    rate = learned.rate(2.0)
    learned.accepted(2.0, 2.0)
    for n in range(50, 100):
        learned.refused(1, n / 100, 1.1, None)
    assert learned.rate(2.0) == rate


def test_a_named_wait_is_kept():
    """The server knows better when to ask again."""
    learned = AdaptiveRate()
    learned.take(1, 0.0)
    learned.refused(1, 0.0, 0.1, 30.0)
    assert learned.delay(1, 0.1) == pytest.approx(30.0)


@given(
    st.lists(
        st.tuples(st.sampled_from("tra"), st.floats(0, 20), st.none() | st.floats(0, 60)),
        max_size=80,
    )
)
@settings(max_examples=200)
def test_no_sequence_of_answers_and_refusals_stalls_it_for_ever(events):
    """Whatever came, a request may go again after a finite wait."""
    learned, now, sent = AdaptiveRate(), 0.0, 0.0
    for what, pause, named in events:
        now += pause
        if what == "t" and learned.delay(1, now) <= 0:
            learned.take(1, now)
            sent = now
        elif what == "r":
            learned.refused(1, sent, now, named)
        elif what == "a":
            learned.accepted(sent, now)
    for _ in range(10):
        if (wait := learned.delay(1, now)) <= 0:
            return
        assert wait < 1e7
        now += wait
    pytest.fail("it waits for ever")
