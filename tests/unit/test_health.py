"""A model's health: one test for each edge of the table, and how results become events."""

import pytest

from batcher.errors import SUSPENDED
from batcher.records import Outcome
from batcher.runtime.health import PENDING, TRANSITIONS, Event, Health, State
from tests.support.made import result

REFUSAL = result(Outcome.BAD_REQUEST, http_status=400, error="no such parameter (request 1a)")
OTHER = result(Outcome.BAD_REQUEST, http_status=400, error="too long for me")
AUTH = result(Outcome.AUTH, http_status=401, error="wrong key")
UNAVAILABLE = result(Outcome.SERVER_ERROR, http_status=503, error="busy")
OK = result()


class Clock:
    """A clock that the test sets."""

    def __init__(self, now):
        self.now = now

    def __call__(self):
        return self.now


def health(state):
    """A model in this state, reached by results alone."""
    made = Health(Clock(1.0), proven=state in (State.ANSWERING, State.FAILING))
    if state in (State.REFUSING, State.FAILING):
        made.observe(AUTH)
    elif state is State.IN_DOUBT:
        for _ in range(50):
            made.observe(REFUSAL)
    elif state is State.CLOSED_FAILED:
        made.close(AUTH)
    elif state is State.CLOSED_PENDING:
        made.close(result(Outcome.CONNECTION))
    assert made.state is state
    return made


EDGES = [
    # A model that never answered.
    (State.PROBING, [OK], State.ANSWERING),
    (State.PROBING, [result(Outcome.TRUNCATED, http_status=200)], State.ANSWERING),
    (State.PROBING, [UNAVAILABLE], State.PROBING),
    (State.PROBING, [result(Outcome.TIMEOUT)], State.PROBING),
    (State.PROBING, [AUTH], State.REFUSING),
    (State.PROBING, [REFUSAL], State.REFUSING),
    (State.PROBING, [result(Outcome.QUOTA, http_status=402)], State.CLOSED_PENDING),
    (State.PROBING, [result(Outcome.AUTH, http_status=403, error_type=SUSPENDED)], State.CLOSED_FAILED),
    (State.REFUSING, [OK], State.ANSWERING),
    (State.REFUSING, [UNAVAILABLE], State.PROBING),
    (State.REFUSING, [result(Outcome.TIMEOUT)], State.REFUSING),
    (State.REFUSING, [AUTH], State.REFUSING),
    (State.REFUSING, [AUTH, AUTH], State.CLOSED_FAILED),
    (State.REFUSING, [result(Outcome.QUOTA, http_status=403)] * 2, State.CLOSED_PENDING),
    (State.REFUSING, [REFUSAL] * 49, State.REFUSING),
    (State.REFUSING, [REFUSAL] * 50, State.IN_DOUBT),
    (State.REFUSING, [REFUSAL, OTHER] * 50, State.REFUSING),
    (State.REFUSING, [REFUSAL] * 49 + [UNAVAILABLE] + [REFUSAL] * 49, State.REFUSING),
    # In doubt.
    (State.IN_DOUBT, [OK], State.ANSWERING),
    (State.IN_DOUBT, [UNAVAILABLE], State.PROBING),
    (State.IN_DOUBT, [OTHER], State.REFUSING),
    (State.IN_DOUBT, [REFUSAL], State.IN_DOUBT),
    (State.IN_DOUBT, [AUTH], State.CLOSED_FAILED),
    (State.IN_DOUBT, [result(Outcome.QUOTA, http_status=402)], State.CLOSED_PENDING),
    # A model that answered.
    (State.ANSWERING, [OK], State.ANSWERING),
    (State.ANSWERING, [UNAVAILABLE], State.ANSWERING),
    (State.ANSWERING, [REFUSAL] * 100, State.ANSWERING),
    (State.ANSWERING, [AUTH], State.FAILING),
    (State.ANSWERING, [result(Outcome.QUOTA, http_status=402)], State.CLOSED_PENDING),
    (State.ANSWERING, [result(Outcome.AUTH, http_status=403, error_type=SUSPENDED)], State.CLOSED_FAILED),
    (State.FAILING, [OK], State.ANSWERING),
    (State.FAILING, [UNAVAILABLE], State.ANSWERING),
    (State.FAILING, [AUTH] * 8, State.FAILING),
    (State.FAILING, [AUTH] * 9, State.CLOSED_FAILED),
    (State.FAILING, [result(Outcome.QUOTA, http_status=402)], State.CLOSED_PENDING),
    # A closed one.
    (State.CLOSED_FAILED, [OK, AUTH, UNAVAILABLE, REFUSAL], State.CLOSED_FAILED),
    (State.CLOSED_PENDING, [OK, AUTH, UNAVAILABLE, REFUSAL], State.CLOSED_PENDING),
]  # fmt: skip


@pytest.mark.parametrize(("state", "results", "after"), EDGES)
def test_results_lead_from_state_to_state(state, results, after):
    made = health(state)
    for one in results:
        made.observe(one)
    assert made.state is after


def test_the_edges_above_are_all_there_are():
    """An edge that is added to the table gets a line above."""
    tried = {(state, after) for state, _results, after in EDGES}
    table = {(state, after) for state, edges in TRANSITIONS.items() for after in edges.values()}
    assert tried == table


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("status", [Outcome.CONNECTION, Outcome.RATE_LIMITED, Outcome.BAD_REQUEST])
def test_any_open_model_can_be_given_up_from_outside(state, status):
    made = health(state)
    was = made.closing
    made.clock.now = 5.0
    made.close(given_up := result(status))
    if was is None:
        pending = status in PENDING
        assert made.state is (State.CLOSED_PENDING if pending else State.CLOSED_FAILED)
        assert (made.closing, made.closed_at) == (given_up, 5.0)
    else:
        assert (made.closing, made.closed_at) == (was, 1.0)


def test_every_state_knows_what_to_do_when_a_model_is_given_up():
    for edges in TRANSITIONS.values():
        assert {Event.GAVE_UP_PENDING, Event.GAVE_UP_FAILED} <= {*edges}


@pytest.mark.parametrize(
    ("in_flight_since", "after"),
    [([], State.CLOSED_FAILED), ([1.5, 3.0], State.CLOSED_FAILED), ([3.0, 1.0], State.IN_DOUBT)],
)
def test_a_doubt_ends_when_nothing_sent_before_it_is_in_flight(in_flight_since, after):
    made = health(State.IN_DOUBT)
    made.settle_doubt(in_flight_since)
    assert made.state is after


def test_a_doubt_that_comes_back_looks_at_what_was_sent_before_the_new_one():
    made = health(State.IN_DOUBT)
    made.observe(UNAVAILABLE)
    made.clock.now = 6.0
    for _ in range(50):
        made.observe(REFUSAL)
    made.settle_doubt([5.0])
    assert made.state is State.IN_DOUBT


def test_refusals_are_the_same_where_only_numbers_and_ids_differ():
    made = Health()
    for n in range(50):
        error = f"parameter foo is wrong (request a{n}b)"
        made.observe(result(Outcome.BAD_REQUEST, http_status=400, error=error))
    assert made.state is State.IN_DOUBT


@pytest.mark.parametrize(
    ("seen", "answered", "responded"),
    [
        ([], False, False),
        ([OK], True, True),
        ([UNAVAILABLE], False, False),
        ([result(Outcome.CONTEXT_LENGTH, http_status=400)], False, True),
        ([REFUSAL, REFUSAL], False, False),
        ([REFUSAL, OTHER], False, True),
        ([AUTH, OK, AUTH], True, True),
    ],
)
def test_a_model_responds_if_it_answers_or_refuses_rows_for_their_own_sake(
    seen, answered, responded
):
    made = Health()
    for one in seen:
        made.observe(one)
    assert (made.answered, made.responded) == (answered, responded)


def test_an_answer_that_comes_after_a_model_was_closed_is_remembered():
    """The run then ends as stopped, and not as one that could never work."""
    made = health(State.CLOSED_FAILED)
    made.observe(OK)
    assert made.answered
    assert made.closed


@pytest.mark.parametrize(
    ("state", "hopeless"),
    [
        (State.PROBING, False),
        (State.REFUSING, True),
        (State.IN_DOUBT, False),
        (State.ANSWERING, False),
        (State.FAILING, False),
        (State.CLOSED_PENDING, True),
        (State.CLOSED_FAILED, True),
    ],
)
def test_a_run_that_ends_while_a_model_only_refused_the_key_had_no_hope(state, hopeless):
    assert health(state).hopeless == hopeless


def test_the_text_of_the_last_failure_is_kept():
    made = Health()
    made.observe(AUTH)
    made.observe(OK)
    assert made.last_error == "wrong key"
    made.note_failure("no route to host")
    assert made.last_error == "no route to host"
