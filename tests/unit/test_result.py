"""What the row of a request says, given its attempts and its last answer or failure."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.errors import AskAgain, NoAnswer, RateLimited
from batcher.records import Outcome
from batcher.send import result as record
from batcher.send.dialect import RepairState
from tests.support.made import attempt, completion, request, usage


def said(answer):
    """The state of a request whose last answer was this one."""
    return RepairState(answer)


def test_an_attempt_is_recorded_in_milliseconds_with_what_it_used():
    made = record.attempt(1.5, 0.0123, 0.25, "requests", completion(usage=usage(7, 2)), 0.004)
    assert (made.started, made.latency_ms, made.waited_ms, made.ttft_ms) == (1500, 12, 250, 4)
    assert (made.cause, made.status, made.http_status, made.error) == ("requests", "ok", 200, None)
    assert (made.prompt_tokens, made.completion_tokens, made.total_tokens) == (7, 2, 9)


def test_a_failed_attempt_keeps_the_beginning_of_what_was_said():
    error = RateLimited("x" * 400, status=429, request_id="q")
    made = record.attempt(0.0, 0.0, -1.0, "", error, None)
    assert (made.status, made.http_status, made.request_id) == ("rate_limited", 429, "q")
    assert (made.error, made.waited_ms, made.ttft_ms) == ("x" * 300, 0, None)


def test_a_single_attempt_is_not_kept_apart():
    """Its wait stands in the row itself, and its cause only with a wait."""
    waited = record.answered(request(), completion(), [attempt(waited_ms=40, cause="tokens")])
    assert (waited.waited_ms, waited.cause, waited.tries) == (40, "tokens", None)
    at_once = record.answered(request(), completion(), [attempt(cause="tokens")])
    assert (at_once.waited_ms, at_once.cause, at_once.tries) == (0, "", None)


def test_of_several_attempts_each_is_kept_and_the_last_one_dates_the_row():
    tries = [attempt(Outcome.TIMEOUT, waited_ms=9), attempt(started=2000, latency_ms=8, ttft_ms=3)]
    made = record.answered(request(), completion(), tries)
    assert (made.tries, made.attempts, made.waited_ms) == (tries, 2, 0)
    assert (made.created_at, made.latency_ms, made.ttft_ms) == (2000, 8, 3)


TOKENS = [
    ([(3, Outcome.OK)], 3),
    ([(3, Outcome.INVALID), (4, Outcome.OK)], 7),
    ([(None, Outcome.SERVER_ERROR), (4, Outcome.OK)], 4),
    ([(2, Outcome.SERVER_ERROR), (4, Outcome.OK)], 6),
    ([(None, Outcome.INVALID), (4, Outcome.OK)], None),  # Paid for, and nobody knows how much.
    ([(None, Outcome.TIMEOUT), (None, Outcome.TIMEOUT)], None),
    ([(None, Outcome.SERVER_ERROR)], None),
]


@pytest.mark.parametrize(("tries", "total"), TOKENS)
def test_a_row_has_the_tokens_of_all_its_attempts_or_none(tries, total):
    """A sum that lacks an answer would look like all that was paid."""
    made = [attempt(status, prompt_tokens=tokens) for tokens, status in tries]
    assert record.answered(request(), completion(), made).prompt_tokens == total


@given(st.lists(st.integers(0, 10_000_000), min_size=2, max_size=6))
def test_costs_add_up_to_the_digit(micros):
    """As decimals: ten times $0.1 is $1, which binary fractions miss."""
    tries = [attempt(cost_usd=micro / 1e6) for micro in micros]
    assert record.answered(request(), completion(), tries).cost_usd == sum(micros) / 1e6


def test_a_failure_is_told_in_the_words_of_the_server():
    error = RateLimited("slow down", status=429, request_id="q", error_type="tpm")
    made = record.ended(request(sample=2), error, [attempt(Outcome.RATE_LIMITED)], RepairState())
    assert (made.status, made.http_status, made.error) == ("rate_limited", 429, "slow down")
    assert (made.error_type, made.request_id, made.content) == ("tpm", "q", None)
    assert (made.sample, made.custom_id, made.key) == (2, "r", "0" * 32)


WORDS = [
    (AskAgain("x"), "no label", "no label"),
    (NoAnswer("gone"), "no label", "no label; asked again: gone"),
    (NoAnswer("gone"), None, "truncated; asked again: gone"),
]


@pytest.mark.parametrize(("error", "unfit", "told"), WORDS)
def test_an_answer_that_was_paid_for_is_the_last_word_when_asking_again_fails(error, unfit, told):
    outcome = Outcome.TRUNCATED if unfit is None else Outcome.INVALID
    answer = completion(outcome, "maybe", unfit=unfit, request_id="a")
    made = record.ended(request(), error, [attempt(outcome)], said(answer))
    assert (made.status, made.content, made.request_id) == (outcome, "maybe", "a")
    assert made.error == told
    assert made.http_status == 200


PAID = [
    ([], None, False),
    ([attempt(Outcome.TIMEOUT)], None, False),
    ([attempt(Outcome.RATE_LIMITED), attempt(Outcome.CONNECTION)], None, False),
    ([attempt(Outcome.SERVER_ERROR, prompt_tokens=4)], None, True),
    ([attempt(Outcome.SERVER_ERROR, cost_usd=0.1)], None, True),
    ([attempt(Outcome.INVALID)], completion(Outcome.INVALID, unfit="no label"), True),
]


@pytest.mark.parametrize(("tries", "answer", "paid"), PAID)
def test_a_row_of_a_stopped_run_is_kept_only_where_something_was_paid(tries, answer, paid):
    kept = record.stopped(request(), NoAnswer("gone"), tries, said(answer))
    assert (kept is not None) == paid
    if kept is not None:
        assert kept.stopped
        assert kept.attempts == len(tries)


def test_the_answer_that_was_not_sent_back_says_that_the_run_was_stopped():
    answer = completion(Outcome.INVALID, "maybe", unfit="no label")
    kept = record.stopped(request(), AskAgain("x"), [attempt(Outcome.INVALID)], said(answer))
    assert kept is not None
    assert kept.error == "no label; asked again: the run was stopped"
