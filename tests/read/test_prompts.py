"""From a row to what is sent, or to the reason why nothing is."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.read.prompts import Prompter
from batcher.records import Row

USER = {"role": "user", "content": "hi"}
OWN = {"role": "system", "content": "own"}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(), inside, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(["messages", "prompt", "body", "custom_id", "model", "url", "text"])
MESSAGES = st.lists(st.fixed_dictionaries({"role": st.text()}, optional={"content": VALUES}))


def prompt(columns, template=None, system=None, own_model=False, **params):
    prompter = Prompter(template, system, params, own_model=own_model)
    return prompter.prompt(Row(3, "a.jsonl:4", columns))


def body(prompt):
    assert prompt.error is None
    return json.loads(b"{" + prompt.fields)


@pytest.mark.parametrize(
    ("columns", "messages"),
    [
        ({"prompt": "hi"}, [USER]),
        ({"prompt": ""}, [{"role": "user", "content": ""}]),
        ({"messages": [USER]}, [USER]),
        ({"messages": json.dumps([USER])}, [USER]),
        ({"messages": None, "prompt": "hi"}, [USER]),
        ({"messages": [USER], "prompt": "other"}, [USER]),
        ({"body": {"messages": [USER]}, "url": "/v1/chat/completions"}, [USER]),
        ({"body": json.dumps({"messages": [USER]}), "messages": [OWN]}, [USER]),
    ],
)
def test_a_row_may_bring_its_messages_in_any_of_these_shapes(columns, messages):
    """CSV and Parquet hold JSON as text, and null where another row has a value."""
    assert body(prompt(columns)) == {"messages": messages}


def test_a_template_serves_the_rows_that_have_its_columns():
    """Files are mixed; a row's own messages are better than an unfilled template."""
    template = "Label: {{ text }}"
    filled = [{"role": "user", "content": "Label: x"}]
    assert body(prompt({"text": "x", "prompt": "hi"}, template))["messages"] == filled
    assert body(prompt({"prompt": "hi"}, template))["messages"] == [USER]
    assert "'text' is undefined" in prompt({"other": 1}, template).error
    ignoring = Prompter(template, None, {}, own_model=False).ignores_template
    assert [ignoring(Row(0, "", c)) for c in ({"prompt": "hi"}, {"text": "x"}, None)] == [
        True, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("template", "system", "columns", "told_apart"),
    [
        ("Label this: {text}", None, {"text": "x"}, False),
        ("{{ 'text' }} {{ 0 }}", None, {"text": "x", "0": "y"}, False),
        ("{% set a = 1 %}{{ a }}", None, {"a": "x"}, False),
        ("{{ note | default('x') }}", None, {"text": "x"}, False),
        ("Label:", "be brief", {"prompt": "x", "messages": [USER]}, False),
        ("Label this.", None, {"image_path": None}, False),
        ("Label this.", None, {"image_path": "a.png"}, True),
        ("Label this.", "{{ text }}", {"text": "x"}, True),
        ("{{ row['My text'] }}", None, {"My text": "x"}, True),
        ("{% for x in tags %}{{ x }}{% endfor %}", None, {"tags": []}, True),
        ("{{ text }}", None, {"prompt": "x"}, True),
        (None, "be brief", {"messages": [USER]}, True),
    ],
)
def test_a_template_that_uses_nothing_of_the_row_is_noticed(template, system, columns, told_apart):
    """It would send the same words for each row, and each would be paid for."""
    prompter = Prompter(template, system, {}, own_model=False)
    assert prompter.uses(Row(0, "a.jsonl:1", columns)) is told_apart


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_rows_own_system_message_is_kept(role):
    """Two of them would contradict each other."""
    own = {"role": role, "content": "own"}
    for columns in ({"messages": [own, USER]}, {"body": {"messages": [own, USER]}}):
        assert body(prompt(columns, system="{{ other }}"))["messages"] == [own, USER]
    rendered = body(prompt({"messages": [USER], "a": 1}, system="{{ a }}"))["messages"]
    assert rendered == [{"role": "system", "content": "1"}, USER]


def test_fields_of_a_batch_line_win_over_param():
    """`--param` is what holds where the line says nothing."""
    line = {"body": {"model": "m", "messages": [USER], "temperature": 0, "max_tokens": 9}}
    made = prompt(line, temperature=1, top_p=0.5, max_tokens=5)
    assert body(made) == {"messages": [USER], "temperature": 0, "top_p": 0.5, "max_tokens": 9}
    assert (made.model, made.max_tokens) == ("m", 9)


@pytest.mark.parametrize(
    ("params", "bound"),
    [({}, None), ({"max_tokens": 5}, 5), ({"max_tokens": 5, "max_completion_tokens": 7}, 7),
     ({"max_tokens": True}, None), ({"max_tokens": "5"}, None)],
)  # fmt: skip
def test_the_bound_of_the_answer_is_what_the_body_says(params, bound):
    """The budget reserves by it."""
    assert prompt({"prompt": "hi"}, **params).max_tokens == bound


@pytest.mark.parametrize(
    ("custom_id", "name"), [(None, "3"), ("x", "x"), (7, "7"), (0, "0"), ("é\n", "é\n")]
)
def test_a_row_keeps_the_name_it_gave_itself_even_when_it_asks_nothing(custom_id, name):
    """It is how people join the answers to their own tables."""
    assert prompt({"custom_id": custom_id, "prompt": "hi"}).custom_id == name
    assert prompt({"custom_id": custom_id}).custom_id == name


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({}, 'nothing to send: no "messages", "prompt" or "body" (the row has: none)'),
        ({"prompt": None, "a": 1}, "(the row has: prompt, a)"),
        ({"prompt": 7}, '"prompt" must be a text, not a number'),
        ({"messages": "hi"}, '"messages" is a text; it must be a list'),
        ({"messages": []}, '"messages" must be a list of at least one message'),
        ({"messages": ["hi"]}, 'each of "messages" must be an object with a "role"'),
        ({"messages": [{"content": "hi"}]}, 'must be an object with a "role"'),
        ({"body": "{"}, '"body" is a text but not JSON'),
        ({"body": [1]}, '"body" must be an object, not a list'),
        ({"body": {}}, '"messages" must be a list of at least one message'),
        ({"body": {"messages": [USER], "stream": True}}, '"stream" is true in the body'),
        ({"body": {"messages": [USER]}, "url": "/v1/embeddings"}, "chat completions only"),
        ({"prompt": "\ud800"}, "no JSON can hold it"),
        ({"body": "null"}, "not null"),
        ({"body": '"hi"'}, "not a text"),
        ({"prompt": b"hi"}, "not bytes"),
    ],
)
def test_a_row_that_asks_nothing_says_where_and_why(columns, reason):
    """It comes out as `unreadable` with this sentence."""
    made = prompt(columns)
    assert made.error.startswith("a.jsonl:4: ")
    assert reason in made.error
    assert (made.row, made.fields) == (3, b"")


def test_an_unreadable_row_keeps_its_place_and_reason():
    """Rows in = rows out, also for rows that are no JSON."""
    made = Prompter("{{ a }}", None, {}, own_model=True).prompt(
        Row(3, "a.jsonl:4", None, "a.jsonl:4: not JSON")
    )
    assert (made.row, made.custom_id, made.error) == (3, "3", "a.jsonl:4: not JSON")


@pytest.mark.parametrize("model", [None, "", 7, ["m"]])
def test_without_a_model_of_its_own_a_row_says_so_where_none_was_asked(model):
    """Else the request would go to nobody."""
    row = {"prompt": "hi", "model": model}
    assert 'no "model" in the row' in prompt(row, own_model=True).error
    assert prompt(row, own_model=False).error is None
    assert prompt({"prompt": "hi", "model": "m"}, own_model=True).model == "m"


@given(columns=st.dictionaries(NAMES, VALUES | MESSAGES | st.builds(dict, messages=MESSAGES)))
def test_no_row_whatever_ends_the_run(columns):
    """It is either a body that is JSON or a reason, never an exception."""
    made = prompt(columns, system="Be brief.", temperature=0)
    if made.error is None:
        assert body(made)["messages"]


def test_a_reader_is_told_every_column_that_matters():
    """What is not named here is not read from Parquet."""
    columns = Prompter("{{ a }}", "{{ b }}", {}, own_model=False).columns
    assert {"a", "b", "messages", "prompt", "body", "custom_id", "model", "url"} <= columns
