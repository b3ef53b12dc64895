"""Models, samples and routes of a row, and when its slots need no answer any more."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.write.slots import Slots

SLOTS = st.builds(
    Slots,
    st.sampled_from([(), ("a",), ("a", "b"), ("a", "b", "c")]),
    st.integers(1, 3),
    st.sampled_from(["each", "fallback", "split"]),
)


def test_the_samples_of_a_model_are_neighbours():
    slots = Slots(("a", "b"), samples=2)
    assert list(slots) == ["a", "a", "b", "b"]
    assert [slots.sample(slot) for slot in range(4)] == [0, 1, 0, 1]
    assert (list(slots.of_place(1)), list(slots.of_sample(1))) == ([2, 3], [1, 3])
    assert slots.only(range(4), 0) == (0, 1)


def test_a_row_names_its_model_where_the_job_names_none():
    assert Slots(()).model(0, "own") == "own"
    assert Slots(()).model(0) == ""
    assert Slots(("a",)).model(0, "own") == "a"


@given(SLOTS)
def test_a_slot_is_a_place_and_a_sample(slots):
    for slot in range(len(slots)):
        place, sample = slots.place(slot), slots.sample(slot)
        assert slots.slot(place, sample) == slot
        assert slot in slots.of_place(place)
        assert slot in slots.of_sample(sample)


@pytest.mark.parametrize(
    ("route", "first", "per_row"),
    [("each", (1, 2, 3), 4), ("fallback", (1, 2), 2), ("split", (1, 2), 2)],
)
def test_a_row_goes_first_to_the_first_model_of_each_sample(route, first, per_row):
    slots = Slots(("a", "b"), 2, route)
    assert slots.sent_first((1, 2, 3)) == first
    assert slots.per_row == per_row
    assert slots.with_samples(range(4), {1}) == (1, 3)


@pytest.mark.parametrize(
    ("route", "ended", "ok", "left"),
    [
        ("each", {0, 3}, {0}, (1, 2)),
        ("fallback", {0, 3}, {0}, (1,)),  # Sample 0 is answered; of sample 1 b failed.
        ("split", {0, 3}, {0}, ()),  # Both samples have a result.
        ("fallback", {0, 2}, set(), (1, 3)),  # Both models failed sample 0.
        ("split", set(), set(), (0, 1, 2, 3)),
    ],
)
def test_what_a_result_leaves_to_be_sent_depends_on_the_route(route, ended, ok, left):
    assert Slots(("a", "b"), 2, route).still_to_send(range(4), ended, ok) == left


@given(SLOTS, st.data())
def test_a_settled_row_is_one_with_nothing_left_to_send(slots, data):
    """One asks for all rows at once, the other for one; state 1 is ok, 2 ends a slot, 3 does not."""
    ends = np.array([False, True, True, False])
    states = [data.draw(st.lists(st.integers(0, 3), max_size=4)) for _slot in slots]
    settled = slots.settled([np.array(of, np.uint8) for of in states], ends, 2)
    assert len(settled) == max([2, *map(len, states)])
    for row, is_settled in enumerate(settled):
        of_row = [of[row] if row < len(of) else 0 for of in states]
        ended = {slot for slot, state in enumerate(of_row) if ends[state]}
        ok = {slot for slot, state in enumerate(of_row) if state == 1}
        assert is_settled == (not slots.still_to_send(range(len(slots)), ended, ok))
