"""What a model says behind its reasoning."""

import pytest

from batcher.send.reasoning import answer_in, is_reasoning


@pytest.mark.parametrize(
    "text",
    [
        "<think>a</think>b",
        "<think>\nbug?\n</think>\n\nb",
        "<think></think>b",
        "<THINK>a</THINK>b",
        '<thinking time="3">a</thinking>b',
        "<thought>a</thought>b",
        "<reasoning>a</reasoning>b",
        "<seed:think>a<seed:cot_budget_reflect>c</seed:cot_budget_reflect></seed:think>b",
        "<longcat_think>a</longcat_think>b",
        "[THINK]a[/THINK]b",
        "◁think▷a◁/think▷b",
        "<|begin_of_thought|>a<|end_of_thought|><|begin_of_solution|>b<|end_of_solution|>",
        "<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>b<|END_RESPONSE|>",
        "<|inner_prefix|>a<|inner_suffix|>b",
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b<|return|>",
        "<|channel|>analysis<|message|>a<|channel|>final <|constrain|>json<|message|>b",
        "<|channel|>final<|message|>b",
        "<|channel>thought\na<channel|>b",
        "analysisIs it a bug? No.assistantfinalb",
        "Here is my thought process: a. Here is my response: b",
        "a</think>b",
        "<think>Use <think> and </think> then.</think>b",
        "<think>a</think>c\n<think>d</think>b",
        "Sure.\n<think>a</think>\nb",
        "b\n<think>a</think>",
        "<think>a</think><answer>b</answer>",
        "<answer>b</answer>",
    ],
)
def test_the_answer_is_what_stands_behind_the_reasoning(text):
    """In the forms in which servers without a parser leave it in the text."""
    assert answer_in(text) == "b"
    assert not is_reasoning(text)


@pytest.mark.parametrize(
    "text",
    [
        "b",
        "Models write <think> first.",
        "Use <think> and </think> for that.",
        "It ends with `</think>`.",
        '{"tag": "</think>"}',
        '{"tag": "<think>a</think>"}',
        "b\n<think>never ended",
        "[think] about it",
        "<p>An analysis</p>",
        "analysis of the ticket",
    ],
)
def test_a_text_that_mentions_a_tag_stays_as_it_is(text):
    """It is the answer."""
    assert answer_in(text) == text
    assert not is_reasoning(text)


def test_json_behind_the_reasoning_may_hold_a_tag():
    """Its texts are not read."""
    assert answer_in('<think>a</think>{"a": "</think>"}') == '{"a": "</think>"}'


@pytest.mark.parametrize(
    "text",
    [
        "<think>a</think>",
        " <think>a",
        "a</think>\n",
        "[THINK]a",
        "<|channel|>analysis<|message|>a",
    ],
)
def test_reasoning_alone_is_no_answer(text):
    """The model ran out of tokens, or said nothing."""
    assert answer_in(text) == ""
    assert is_reasoning(text)
