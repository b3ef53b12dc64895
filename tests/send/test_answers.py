"""What counts as an answer, and what is said when it does not."""

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.send.answers import Expected, Unfit

LABELS = ("bug", "billing", "Feature request")
TICKET = {
    "type": "object",
    "properties": {"label": {"enum": ["bug", "billing"]}, "urgent": {"type": "boolean"}},
    "required": ["label", "urgent"],
}
GOOD = '{"label": "bug", "urgent": true}'
PARSED = {"label": "bug", "urgent": True}


@pytest.mark.parametrize(
    ("answer", "label", "loose"),
    [
        ("bug", "bug", False),
        (' "Billing".\n', "billing", False),
        ("**feature request**", "Feature request", False),
        ('{"label": "billing"}', "billing", False),
        ("```\nbug\n```", "bug", False),
        ("Label: billing", "billing", True),
        ("The category is: **bug**.", "bug", True),
        ("bug\n\nThe customer says that the page crashes.", "bug", True),
        ("The page crashes, which is a defect.\n\nbug", "bug", True),
        ('I would call this "feature request" because of the tone.', "Feature request", True),
    ],
)
def test_a_label_is_found_where_there_is_one(answer, label, loose):
    """People get the label as they spelled it."""
    assert Expected(None, LABELS).check(answer) == (label, loose)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("", "none of the labels"),
        (None, "none of the labels"),
        ("It is not billing.", "none of the labels"),
        ("bug or billing", "none of the labels"),
        ('{"bug": false}', "none of the labels"),
        ('{"rejected": ["bug"]}', "none of the labels"),
        ('{"label": "unknown", "closest": "bug"}', "none of the labels"),
        ("Not: bug", "none of the labels"),
        ("I cannot say it is: bug", "none of the labels"),
        ("bug\n\nOn second thought, billing.", "several labels: billing, bug"),
        ("BUG: billing", "none of the labels"),
        ("**bug**, or else **billing**", "several labels: billing, bug"),
        ("bugs", "none of the labels bug, billing, Feature request"),
        ("buggy billing", "none of the labels"),
        ('{"label": "spam"}', "none of the labels"),
        ('{"label": "bug", "label": "billing"}', "it gives 'label' several values"),
        ('```json\n{"label": "bug", "label": "billing"}\n```', "it gives 'label' several values"),
    ],
)
def test_what_may_mean_several_things_is_no_label(answer, why):
    """A guess here would be a wrong label in somebody's data."""
    with pytest.raises(Unfit, match=why):
        Expected(None, LABELS).check(answer)


@pytest.mark.parametrize(
    ("labels", "answer", "value"),
    [
        (("A*", "A", "B"), '{"label": "A*"}', "A*"),
        (("A*", "A", "B"), '```json\n{"label": "A*"}\n```', "A*"),
        (("C", "C++"), "Label: C++", "C++"),
        (("C", "C++"), "C\n\nIt is not C++.", None),
        (("1", "2", "3"), '{"label": 2}', "2"),
        (("1", "2", "3"), '{"label": -2}', None),
        (("账单", "退款"), "账单。", "账单"),
        (("請求", "返金"), "「請求」", "請求"),
        (("账单", "退款"), "“账单”，不是退款", None),
        (("bug", "billing"), "Label： billing", "billing"),
        (("bug", "billing"), "<think>bug? No.</think>billing", "billing"),
        (("bug", "billing"), "It is a bug. No.</think>\n\n**billing**", "billing"),
        (("bug", "billing"), '<think>{"label": "bug"}', None),
    ],
)
def test_a_label_is_never_taken_for_another(labels, answer, value):
    """In any script, with any marks, behind any reasoning."""
    try:
        found = Expected(None, labels).check(answer).value
    except Unfit:
        found = None
    assert found == value


@pytest.mark.parametrize(
    "answer",
    [
        f'<think>Draft: {{"label": "billing", "urgent": true}} No.</think>{GOOD}',
        f'Draft: {{"label": "billing", "urgent": true}} No.</think>\n```json\n{GOOD}\n```',
    ],
)
def test_a_draft_in_the_reasoning_is_no_answer(answer):
    """It was thought of, and not said."""
    assert Expected(TICKET).check(answer).value == PARSED


# What a pattern that tries the same text in several ways reads by the square of its length.
_HOSTILE = (
    "```json\n{", " ", "{", "[", '"', "\\", "<think>", "</think>", "bug ", "bug", "```", "“", "**", "\n", ":",
    '{"a":', "[1,", "label: ", "\u0301\u0323", "账单", "<|channel|>", "`",
)  # fmt: skip


@pytest.mark.parametrize("unit", _HOSTILE)
def test_an_answer_is_looked_at_in_time_in_proportion_to_its_length(unit):
    """One of 40 kB once stood still for seconds, and one of a megabyte for ever."""
    for expected in (Expected(None, LABELS), Expected(TICKET)):
        for begin in ("x", "```json\n{"):
            answer = begin + unit * (100_000 // len(unit)) + "x"
            began = time.process_time()
            with contextlib.suppress(Unfit):
                expected.check(answer)
            assert time.process_time() - began < 3  # By the square it would be minutes.


def test_labels_that_differ_in_case_only_are_told_apart():
    """Else one would be taken for the other."""
    expected = Expected(None, ("US", "us"))
    assert [expected.check(text).value for text in ("US", "us", "us.")] == ["US", "us", "us"]


@pytest.mark.parametrize(
    ("answer", "loose"),
    [
        (GOOD, False),
        (f"\n {GOOD}\n", False),
        (f"```json\n{GOOD}\n```", True),
        (f"Here it is:\n```\n{GOOD}\n```\nAnything else?", True),
        (f"Sure! {GOOD} I hope this helps {{really}}.", True),
        (f"{GOOD} and once more {GOOD}", True),
        (f'First {{"label": "spam"}}, no: {GOOD}', True),
    ],
)
def test_json_is_found_where_there_is_one(answer, loose):
    """In fences, and in sentences."""
    assert Expected(TICKET).check(answer) == (PARSED, loose)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("bug", "no JSON"),
        ("{", "no JSON"),
        ('{"label": "spam", "urgent": true}', 'label: "spam" is not one of'),
        ('{"label": "bug"}', '"urgent" is a required property'),
        (f'{GOOD} or {{"label": "billing", "urgent": true}}', "2 different answers"),
        ('{"label": "bug", "urgent": NaN}', "no JSON"),
        ("[" * 5000, "no JSON"),
    ],
)
def test_json_that_does_not_fit_is_told_why(answer, why):
    """The same words go back to the model."""
    with pytest.raises(Unfit, match=why):
        Expected(TICKET).check(answer)


@pytest.mark.parametrize("answer", ["42", '{"answer": 42}', 'The answer: {"answer": 42}.'])
def test_a_schema_that_is_no_object_is_sent_inside_one(answer):
    """Providers want an object at the root; people want their number."""
    expected = Expected({"type": "integer"})
    sent = expected.response_format["json_schema"]
    assert sent["schema"]["properties"] == {"answer": {"type": "integer"}}
    assert expected.check(answer).value == 42


def test_the_schema_is_sent_as_strict_as_providers_take_it():
    """Objects that say nothing of other properties are closed; what strict mode refuses is not strict."""
    sent = Expected(TICKET).response_format["json_schema"]
    assert sent["strict"] is True
    assert sent["schema"]["additionalProperties"] is False
    optional = {**TICKET, "required": ["label"]}
    assert Expected(optional).response_format["json_schema"]["strict"] is False
    inside = {"type": "object", "properties": {"a": optional}, "required": ["a"]}
    assert Expected(inside).response_format["json_schema"]["strict"] is False


def test_nothing_is_fetched_for_a_schema():
    """No call to anything but the gateway."""
    with pytest.raises(ValueError, match="nothing is fetched"):
        Expected({"$ref": "http://127.0.0.1:9/schema.json"})


def test_a_model_without_schemas_is_told_in_words():
    """Behind the system message that is there, so that the beginning stays the same for all rows."""
    body = {
        "messages": [{"role": "user", "content": "x"}],
        "response_format": {"type": "json_schema"},
    }
    words = Expected(None, LABELS).in_form(body, "prompt")
    assert "response_format" not in words
    assert words["messages"][0]["role"] == "system"
    assert "bug, billing, Feature request" in words["messages"][0]["content"]
    system = {"role": "system", "content": "Be brief."}
    half = Expected(TICKET).in_form(
        {**body, "messages": [system, *body["messages"]]}, "json_object"
    )
    assert half["response_format"] == {"type": "json_object"}
    assert half["messages"][0]["content"].startswith("Be brief.\n\nAnswer with JSON")
    assert system == {"role": "system", "content": "Be brief."}


def test_a_re_ask_shows_the_answer_and_what_is_wrong_with_it():
    """As a person would."""
    body = {"messages": [{"role": "user", "content": "x"}]}
    again = Expected(None, LABELS).corrected(body, "spam", "it is none of the labels")
    assert [message["role"] for message in again["messages"]] == ["user", "assistant", "user"]
    assert "cannot be used: it is none of the labels" in again["messages"][-1]["content"]
    assert len(body["messages"]) == 1


@given(st.text(max_size=200), st.sampled_from(LABELS))
def test_whatever_a_model_says_is_checked_without_a_crash(text, label):
    """And what is found is a label, or fits the schema."""
    for said in (text, f"{text}\n{label}", f"{text}{GOOD}{text}"):
        for expected in (Expected(None, LABELS), Expected(TICKET)):
            try:
                value = expected.check(said).value
            except Unfit:
                continue
            assert value in LABELS or value["label"] in ("bug", "billing")
