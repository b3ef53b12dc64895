"""One row to one Prompt."""

import json

import pytest

from batcher.errors import JobError
from batcher.read.prompts import Prompter
from batcher.read.template import Template
from batcher.records import Row


def prompt(columns, prompt=None, system=None, own_model=False, **params):
    return Prompter(prompt, system, params, own_model=own_model).prompt(
        Row(3, "in.jsonl:4", columns)
    )


def body(*args, **named):
    made = prompt(*args, **named)
    assert made.error is None
    return json.loads(b"{" + made.fields)


USER = [{"role": "user", "content": "Hi"}]
BATCH = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi"},
        {"messages": USER},
        {"messages": json.dumps(USER)},
        {**BATCH, "body": {"messages": USER, "model": "theirs"}},
        {**BATCH, "body": json.dumps({"messages": USER})},
    ],
)
def test_each_kind_of_row_asks_the_same(row):
    """Told apart row by row; Parquet and CSV carry messages and bodies as text."""
    assert body(row) == {"messages": USER}
    assert body(row, temperature=0) == {"messages": USER, "temperature": 0}


def test_a_template_makes_the_message_of_a_row_that_has_its_columns():
    """And a row that has not, brings its own."""
    assert body({"q": "Hi"}, prompt="{{ q }}") == {"messages": USER}
    assert body({"q": "Hi", "prompt": "no"}, prompt="{{ q }}") == {"messages": USER}
    assert body({"prompt": "Hi"}, prompt="{{ q }}") == {"messages": USER}


def test_a_rows_own_fields_win_over_params():
    """What is written in a batch line is meant for that line."""
    row = {**BATCH, "body": {"messages": USER, "temperature": 1, "max_tokens": 7}}
    made = body(row, temperature=0, top_p=0.5)
    assert made == {"messages": USER, "temperature": 1, "top_p": 0.5, "max_tokens": 7}
    assert prompt(row).max_tokens == 7


def test_a_system_message_goes_before_unless_the_row_has_one():
    """Twice would confuse the model; the row's own is the more exact."""
    made = body({"q": "Hi", "n": 5}, prompt="{{ q }}", system="Be {{ n }}.")
    assert made["messages"] == [{"role": "system", "content": "Be 5."}, *USER]
    own = [{"role": "developer", "content": "Mine."}, *USER]
    assert body({"messages": own}, system="Theirs.")["messages"] == own


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({}, "nothing to send"),
        ({"text": "x"}, "the row has: text"),
        ({"prompt": 5}, "must be a text, not a number"),
        ({"messages": []}, "at least one message"),
        ({"messages": [{"content": "x"}]}, 'with a "role"'),
        ({"messages": "x"}, "must be a list"),
        ({"body": "x"}, "not JSON"),
        ({"body": [1]}, "must be an object"),
        ({"body": {"messages": USER}, "url": "/v1/embeddings"}, "chat completions only"),
        ({"body": {"messages": USER, "stream": True}}, "stream"),
        ({"prompt": "\ud800"}, "no JSON can hold it"),
    ],
)
def test_what_cannot_be_sent_is_a_prompt_with_a_reason(row, why):
    """It says where; the run goes on without it."""
    made = prompt(row)
    assert made.error.startswith("in.jsonl:4: ")
    assert why in made.error


def test_a_row_without_a_model_is_an_error_only_when_no_other_is_asked():
    """`-m` wins over the row's own."""
    assert 'no "model"' in prompt({"prompt": "Hi"}, own_model=True).error
    assert prompt({"prompt": "Hi", "model": "m"}, own_model=True).model == "m"
    assert (
        prompt(
            {**BATCH, "body": {"messages": USER, "model": "b"}, "model": "m"}, own_model=True
        ).model
        == "b"
    )


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ missing }}", "the row has: q"),
        ("{{ q.deep.deeper }}", "template"),
        ("{{ q / 0 }}", "TypeError"),
        ("{{ q.__class__.__mro__ }}", "template"),
        ("{{ range(10) }}", "the row has: q"),
        ("{{ ''.__class__.__subclasses__() }}", "template"),
    ],
)
def test_a_template_is_strict_and_caged(template, why):
    """A missing column is never an empty text in ten thousand paid prompts."""
    assert why in prompt({"q": "x"}, prompt=template).error


@pytest.mark.parametrize(
    "text", ["{{ q", "{% if q %}", "{{ q | nonsense }}", "{% include 'x' %}{{"]
)
def test_a_template_that_is_none_is_said_at_once(text):
    """Before the first row."""
    with pytest.raises(JobError, match="--prompt is not a template"):
        Template("--prompt", text)


def test_line_ends_and_letters_of_a_template_stay():
    """What is sent is what was written."""
    assert Template("--prompt", "a\n{{ q }}\n\n<é>&\n").render({"q": "<b>"}) == "a\n<b>\n\n<é>&\n"
