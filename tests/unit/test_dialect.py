"""How a model takes requests, and how a row is asked again: found by what is refused and answered."""

import json

import pytest

from batcher.errors import BadRequest, NotFound, RequestError, ServerError
from batcher.records import Outcome
from batcher.send.answers import Expected
from batcher.send.dialect import STOPPED, AnswerPolicy, ModelDialect, RepairState, RequestDialect
from tests.support.made import attempt, completion, request, result

LABELS = Expected(None, ["bug", "other"])
BODY = {"model": "m", "messages": [{"role": "user", "content": "?"}],
        "response_format": LABELS.response_format, "max_tokens": 8}  # fmt: skip
PLAIN = RequestDialect()
ASKED = request(json.dumps(BODY).encode(), max_tokens=8)


def body(terms, manner=PLAIN, talk=None, of=ASKED):
    """What is sent, decoded."""
    return json.loads(terms.body(of, manner, talk or RepairState()))


# The form of a model

REFUSALS = [
    # (answered in its form before, refusals in a row for it, form of the row alone, form of the model then)
    (False, 1, None, "json_object"),
    (True, 1, "json_object", "json_schema"),
    (True, 2, "json_object", "json_schema"),
    (True, 3, None, "json_object"),
]


@pytest.mark.parametrize(("proven", "times", "of_row", "of_model"), REFUSALS)
def test_a_form_that_was_answered_is_given_up_after_three_refusals_else_after_one(
    proven, times, of_row, of_model
):
    forms = ModelDialect(RequestDialect() if proven else None)
    for _ in range(times):
        found = forms.refused("json_schema", "no response_format here")
    assert (found, forms.current.form) == (of_row, of_model)
    assert forms.given_up == ("" if of_row else "no response_format here")


def test_an_answer_between_refusals_begins_the_count_again():
    forms = ModelDialect(RequestDialect())
    for _ in range(2):
        forms.refused("json_schema", "x")
    forms.answered(RequestDialect(), RepairState())
    for _ in range(2):
        assert forms.refused("json_schema", "x") == "json_object"
    assert forms.current.form == "json_schema"


def test_a_refusal_of_a_form_that_was_given_up_meanwhile_changes_nothing():
    forms = ModelDialect()
    forms.refused("json_schema", "first")
    assert forms.refused("json_schema", "late") is None
    assert (forms.current.form, forms.given_up) == ("json_object", "first")
    forms.refused("json_object", "second")
    assert (forms.current.form, forms.given_up) == ("prompt", "first")


def test_a_row_that_passes_in_another_form_settles_the_doubt_for_all():
    """It was refused without a reason, and answered without the form."""
    forms, talk = ModelDialect(), RepairState(doubt="bad request")
    forms.answered(RequestDialect("json_object"), talk)
    assert (forms.current.form, forms.given_up, forms.proven) == (
        "json_object",
        "bad request",
        True,
    )


@pytest.mark.parametrize(("before", "doubt"), [(RequestDialect(), "bad request"), (None, None)])
def test_without_a_doubt_or_against_proof_a_row_in_another_form_settles_nothing(before, doubt):
    forms, talk = ModelDialect(before), RepairState(doubt=doubt)
    forms.answered(RequestDialect("json_object"), talk)
    assert forms.current.form == "json_schema"


# What is sent


def test_the_first_body_goes_as_it_is():
    assert AnswerPolicy(LABELS).body(ASKED, RequestDialect(), RepairState()) is ASKED.body
    assert AnswerPolicy(None).body(ASKED, RequestDialect("prompt"), RepairState()) is ASKED.body


@pytest.mark.parametrize("form", ["json_object", "prompt"])
def test_a_model_without_schemas_is_told_in_words(form):
    sent = body(AnswerPolicy(LABELS), RequestDialect(form))
    assert "response_format" not in sent
    assert "bug" in sent["messages"][0]["content"]
    assert sent["messages"][-1] == BODY["messages"][0]


def test_a_schema_that_is_no_list_of_labels_keeps_json_object():
    shape = Expected({"type": "object", "properties": {"n": {"type": "integer"}}})
    assert body(AnswerPolicy(shape), RequestDialect("json_object"))["response_format"] == {
        "type": "json_object"
    }
    assert "response_format" not in body(AnswerPolicy(shape), RequestDialect("prompt"))


def test_the_bound_goes_by_the_other_name_where_the_model_takes_only_that():
    sent = body(AnswerPolicy(None), RequestDialect(renamed_bound=True))
    assert (sent["max_completion_tokens"], "max_tokens" in sent) == (8, False)
    assert list(sent)[-1] == "max_completion_tokens"  # At its place.


@pytest.mark.parametrize(("bare", "options"), [(False, {"include_usage": True}), (True, None)])
def test_a_stream_is_asked_for_its_usage_unless_that_is_refused(bare, options):
    own = request(b'{"model":"m","messages":[],"stream":false}')
    sent = body(AnswerPolicy(None, streams=True), RequestDialect(without_usage=bare), of=own)
    assert (sent["stream"], sent.get("stream_options")) == (True, options)


def test_a_wrong_answer_goes_back_with_what_is_wrong_with_it():
    terms = AnswerPolicy(LABELS, 1)
    talk = RepairState(completion(Outcome.INVALID, "maybe", unfit="it is none of the labels"))
    first, answer, again = body(terms, talk=talk)["messages"]
    assert first == BODY["messages"][0]
    assert answer == {"role": "assistant", "content": "maybe"}
    assert "it is none of the labels" in again["content"]


def test_a_truncated_answer_is_not_sent_back_but_gets_more_room():
    terms = AnswerPolicy(LABELS, 1, 64)
    talk = RepairState(completion(Outcome.TRUNCATED, "may"), 16)
    sent = body(terms, talk=talk)
    assert (sent["max_tokens"], len(sent["messages"])) == (16, 1)


# Whether an answer will do


@pytest.mark.parametrize(
    ("content", "outcome", "parsed", "loose"),
    [("bug", "ok", '"bug"', False), ("Label: bug", "ok", '"bug"', True), ("neither", "invalid", None, False)],
)  # fmt: skip
def test_an_answer_is_held_to_what_was_asked_for(content, outcome, parsed, loose):
    found = AnswerPolicy(LABELS).validate(completion(content=content))
    assert (found.outcome, found.parsed, found.loose) == (outcome, parsed, loose)
    assert (found.unfit is None) == (outcome == "ok")


@pytest.mark.parametrize("outcome", [Outcome.TRUNCATED, Outcome.REFUSED, Outcome.EMPTY])
def test_what_is_no_whole_answer_is_not_held_to_anything(outcome):
    answer = completion(outcome, "neither")
    assert AnswerPolicy(LABELS).validate(answer) is answer
    assert AnswerPolicy(None).validate(completion()) == completion()


GOES_ON = [
    # (outcome, times asked already, reask, bound of the request, most tokens, goes on, bound then)
    (Outcome.OK, 0, 2, 8, 64, False, None),
    (Outcome.INVALID, 0, 0, 8, None, False, None),
    (Outcome.INVALID, 0, 1, 8, None, True, None),
    (Outcome.INVALID, 1, 1, 8, None, False, None),
    (Outcome.TRUNCATED, 0, 1, 8, None, False, None),
    (Outcome.TRUNCATED, 0, 0, 8, 64, True, 16),
    (Outcome.TRUNCATED, 0, 0, 40, 64, True, 64),
    (Outcome.TRUNCATED, 0, 0, 64, 64, False, None),
    (Outcome.TRUNCATED, 0, 0, None, 64, False, None),
    (Outcome.REFUSED, 0, 1, 8, 64, False, None),
]


@pytest.mark.parametrize(("outcome", "asked", "reask", "bound", "most", "on", "then"), GOES_ON)
def test_what_is_asked_for_once_more(outcome, asked, reask, bound, most, on, then):
    policy, repair = AnswerPolicy(LABELS, reask, most), RepairState(reasked=asked)
    answer = completion(outcome)
    found = policy.next_repair(answer, request(max_tokens=bound), repair)
    again = RepairState(answer, then, asked + (outcome is Outcome.INVALID))
    assert found == (again if on else None)


def test_a_very_long_wrong_answer_is_not_paid_for_as_input():
    terms = AnswerPolicy(LABELS, 5)
    for length, on in ((1 << 16, True), ((1 << 16) + 1, False)):
        answer = completion(Outcome.INVALID, "x" * length)
        assert (terms.next_repair(answer, ASKED, RepairState()) is not None) == on


def test_another_model_has_said_nothing_yet_but_no_more_tries_are_left_for_it():
    repair = RepairState(completion(Outcome.INVALID), 32, 2, "prompt", "?")
    assert repair.for_other_model() == RepairState(None, 32, 2)


# After a stopped run

STOPS = [
    ([Outcome.INVALID], 1, None),
    ([Outcome.INVALID, Outcome.SERVER_ERROR, Outcome.INVALID], 2, None),
    ([Outcome.TRUNCATED], 0, 16),
    ([Outcome.TRUNCATED, Outcome.TRUNCATED, Outcome.INVALID], 1, 32),
    ([Outcome.TRUNCATED] * 5, 0, 64),
]


@pytest.mark.parametrize(("outcomes", "reasked", "bound"), STOPS)
def test_a_row_goes_on_where_the_stopped_run_left_it(outcomes, reasked, bound):
    last = next(o for o in reversed(outcomes) if o.answered)
    tries = [attempt(o) for o in outcomes] if len(outcomes) > 1 else None
    stopped = result(last, content="maybe", error=f"no label{STOPPED}", tries=tries)
    talk = AnswerPolicy(LABELS, 3, 64).resume(stopped, ASKED)
    assert talk is not None
    assert (talk.reasked, talk.max_tokens) == (reasked, bound)
    assert talk.answer is not None
    assert (talk.answer.content, talk.answer.unfit) == ("maybe", "no label")
    assert talk.answer.usage.prompt_tokens is None  # It stands in the journal already.


def test_a_row_that_was_stopped_after_a_failure_begins_anew():
    assert AnswerPolicy(LABELS).resume(result(Outcome.SERVER_ERROR), ASKED) is None


# What a refusal is about


def refused(error, terms=None, *, sent=PLAIN, forms=None, of=ASKED):
    """(whether the row is put in another manner, that of its model then, its own form)."""
    forms = forms or ModelDialect()
    repair = (terms or AnswerPolicy(LABELS)).adapt(error, of, sent, forms, RepairState())
    return repair is not None, forms.current, repair and repair.form


def bad(text, status=400, kind=BadRequest, **more):
    return kind(text, status=status, **more)


ABOUT = [
    (bad("Unsupported parameter: 'max_tokens', use 'max_completion_tokens' instead"), RequestDialect(renamed_bound=True)),
    (bad("max_tokens is not supported", status=422), RequestDialect(renamed_bound=True)),
    (bad("response_format is not supported"), RequestDialect("json_object")),
    (bad("guided_json failed", status=501, kind=ServerError), RequestDialect("json_object")),
    (bad("json_schema: no such thing", status=404, kind=NotFound), RequestDialect("json_object")),
]  # fmt: skip


@pytest.mark.parametrize(("error", "manner"), ABOUT, ids=lambda of: str(of)[:30])
def test_a_refusal_that_names_the_manner_changes_it_for_the_model(error, manner):
    assert refused(error) == (True, manner, None)


NOT_ABOUT = [
    bad("max_tokens is too large"),
    bad("Unsupported parameter: 'max_tokens'", status=500, kind=ServerError),
    bad("no such model", status=404, kind=NotFound),
    bad("response_format is not supported", status=500, kind=ServerError),
]


@pytest.mark.parametrize("error", NOT_ABOUT, ids=str)
def test_a_refusal_for_another_reason_changes_nothing(error):
    terms = AnswerPolicy(None) if "max_tokens" in str(error) else None
    assert refused(error, terms) == (False, RequestDialect(), None)


def test_a_stream_without_usage_is_asked_for_where_the_other_is_refused():
    streams, error = AnswerPolicy(None, streams=True), bad("stream_options is unknown")
    assert refused(error, streams) == (True, RequestDialect(without_usage=True), None)
    assert refused(error, streams, sent=RequestDialect(without_usage=True))[0] is False
    assert refused(error, AnswerPolicy(None))[0] is False


def test_words_that_a_refusal_repeats_from_the_row_say_nothing_of_the_form():
    text = "tell me what response_format is, please, and be quick about it"
    own = request(json.dumps({**BODY, "messages": [{"role": "user", "content": text}]}).encode())
    error = bad(f"this is not allowed: {text}", status=404, kind=NotFound)
    assert refused(error, of=own) == (False, RequestDialect(), None)


DOUBTS = [
    # (form it was sent in, of the model now, proven, row's form then; None where it stays refused)
    ("json_schema", "json_schema", False, "json_object"),
    ("json_schema", "json_schema", True, None),
    ("json_object", "json_object", False, "prompt"),
    ("prompt", "prompt", False, None),
]


@pytest.mark.parametrize(("sent", "now", "proven", "then"), DOUBTS)
def test_a_refusal_without_a_reason_is_a_doubt_of_the_form_until_that_is_proven(
    sent, now, proven, then
):
    forms = ModelDialect()
    forms.current, forms.proven = RequestDialect(now), proven
    found = refused(bad("bad request"), sent=RequestDialect(sent), forms=forms)
    assert found == (then is not None, RequestDialect(now), then)


def test_a_row_that_was_on_its_way_when_the_form_was_given_up_takes_the_new_one():
    forms = ModelDialect()
    forms.refused("json_schema", "x")
    assert refused(bad("bad request"), forms=forms) == (True, RequestDialect("json_object"), None)


def test_nothing_wanted_of_the_answer_is_no_form_to_be_refused():
    error: RequestError = bad("response_format is not supported")
    assert refused(error, AnswerPolicy(None))[0] is False
