"""What went on when."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.evaluate.timeline import Course

requests = st.lists(
    st.tuples(st.integers(0, 5_000_000), st.integers(0, 90_000)), min_size=1, max_size=200
)


def whole(course: Course) -> tuple[float, float]:
    """(requests ended, milliseconds in flight), by the moments alone."""
    moments, width = course.moments(), course.width
    known = {(moment.at - width // 2) // width: moment for moment in moments}
    places = sorted(known)
    flown = sum(known[at].in_flight * width for at in places)
    for at, following in pairwise(places):
        # Between two moments nothing begins or ends: as many are in flight as at their edges.
        flown += (following - at - 1) * known[at].in_flight * width
    return sum(m.per_second * width / 1000 for m in moments), flown


@given(requests)
def test_nothing_is_lost_however_wide_the_stretches_become(several):
    """Requests that ended, and the time that they were in flight."""
    course = Course()
    for begun, latency in several:
        course.add(begun, latency)
    before = whole(course)
    assert before[0] == pytest.approx(len(several))
    assert before[1] == pytest.approx(sum(latency for _begun, latency in several))
    for _ in range(3):
        course._widen()
        ended, flown = whole(course)
        assert ended == pytest.approx(before[0])
        assert flown == pytest.approx(before[1])


def test_a_day_between_two_runs_costs_nothing_and_is_a_pause():
    """Who goes on the next morning sees both runs."""
    course = Course()
    day = 86_400_000
    for start in (0, day):
        for n in range(1000):
            course.add(start + n * 100, 2000)
    assert course.width == 1000
    ((begin, end),) = course.pauses()
    assert end - begin > day - 200_000
    assert max(moment.in_flight for moment in course.moments()) == pytest.approx(20)
    assert max(moment.per_second for moment in course.moments()) == pytest.approx(10)


def test_a_week_fits_into_some_moments():
    """Memory does not grow with the run."""
    course = Course()
    for n in range(40_000):
        course.add(n * 15_000, 40_000)
    assert len(course.moments()) < 5000
    middle = course.moments()[len(course.moments()) // 2]
    assert middle.in_flight == pytest.approx(40 / 15, rel=0.05)
