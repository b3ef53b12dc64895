"""How sure a model was of each label, told by its tokens."""

import json
import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.send.answers import Expected
from batcher.send.confidence import confidences

LABELS = ["account", "accounting", "bug", "billing", "größe", "not a bug"]


def content(*steps):
    """(token, probability, {other: probability}) to what OpenAI sends."""
    told = []
    for token, p, others in steps:
        top = [{"token": t, "logprob": math.log(q)} for t, q in {token: p, **others}.items()]
        told.append({**top[0], "bytes": list(token.encode()), "top_logprobs": top})
    return json.dumps({"content": told})


def sure(logprobs, answer, labels=LABELS):
    expected = Expected(None, labels)
    return expected.confidences(expected.check(answer), logprobs)


@pytest.mark.parametrize(
    ("answer", "steps", "told"),
    [
        ("bug", [("bug", 0.7, {"b": 0.1, "billing": 0.2})], {"bug": 0.7, "billing": 0.2}),
        ("Bug", [("Bug", 0.6, {"bug": 0.1, " billing": 0.2})], {"bug": 0.7, "billing": 0.2}),
        ('{"label": "bug"}', [('{"', 1, {}), ("label", 1, {}), ('":', 1, {}), (' "', 1, {}),
                              ("b", 0.9, {"gr": 0.1}), ("ug", 0.5, {"illing": 0.25}), ('"}', 1, {})],
         {"bug": 0.45, "billing": 0.225, "größe": 0.1}),
        ('{"label":"bug"}', [('{"label', 1, {}), ('":"bug', 0.5, {'":"bill': 0.5}), ('"}', 1, {})],
         {"bug": 0.5, "billing": 0.5}),
        ("account", [("account", 0.8, {"bug": 0.2}), ("", 0.75, {"ing": 0.25})],
         {"account": 0.6, "bug": 0.2, "accounting": 0.2}),
        ("account", [("account", 0.8, {})], {"account": 0.8}),
        ("account.", [("account", 0.8, {}), (".", 0.5, {"ing": 0.25})],
         {"account": 0.4, "accounting": 0.2}),
        ("accounting", [("account", 0.8, {}), ("ing", 0.5, {"\n": 0.5})],
         {"accounting": 0.4, "account": 0.4}),
        ("größe", [("gr", 0.5, {"bug": 0.5}), ("öße", 0.5, {"eat": 0.5})],
         {"größe": 0.5, "bug": 0.5}),
        ("not a bug", [("not", 0.5, {"bug": 0.3}), (" a", 1, {}), (" bug", 1, {})],
         {"not a bug": 0.5, "bug": 0.3}),
    ],
)  # fmt: skip
def test_each_label_has_the_probability_of_the_tokens_that_lead_to_it(answer, steps, told):
    assert sure(content(*steps), answer) == pytest.approx(told)


@pytest.mark.parametrize(
    ("answer", "logprobs"),
    [
        ("bug", "null"),
        ("bug", "{}"),
        ("bug", '{"content": null}'),
        ("bug", '{"content": []}'),
        ("bug", '{"content": [7]}'),
        ("bug", '{"content": [{"token": "bug"}]}'),
        ("bug", '{"content": [{"token": "bug", "logprob": "high"}]}'),
        ("bug", '{"content": [{"token": "gub", "logprob": -1}]}'),
        ("bug", '{"content": [{"token": "b", "bytes": [98, 300], "logprob": -1}]}'),
        ("bug", '{"content": [{"token": "b", "bytes": [200], "logprob": -1}]}'),
        ("bug", '{"tokens": ["bug"], "token_logprobs": null}'),
        ("Answer: bug", content(("bug", 1, {}))),
    ],
)
def test_what_cannot_be_told_is_not_guessed(answer, logprobs):
    """A label that had to be picked out of other text was not chosen at one place."""
    assert sure(logprobs, answer) == {}


def test_the_shape_of_older_servers_is_read_as_well():
    told = {"tokens": ["b", "ug"], "token_logprobs": [math.log(0.5), 0.0]}
    assert sure(json.dumps(told), "bug") == pytest.approx({"bug": 0.5})
    told["top_logprobs"] = [{"b": math.log(0.5), "gr": math.log(0.25)}, None]
    assert sure(json.dumps(told), "bug") == pytest.approx({"bug": 0.5, "größe": 0.25})


def test_labels_that_only_capitals_tell_apart_stay_apart():
    told = content(("Bug", 0.6, {"bug": 0.4}))
    assert sure(told, "Bug", ["Bug", "bug"]) == pytest.approx({"Bug": 0.6, "bug": 0.4})


@st.composite
def models(draw):
    """Labels cut into tokens, how likely each is, and which one is said."""
    words = st.text("abc", min_size=1, max_size=5)
    labels = draw(st.lists(words, min_size=2, max_size=5, unique=True))
    cut = {}
    for label in labels:
        places = sorted(draw(st.sets(st.integers(1, max(1, len(label) - 1)), max_size=2)))
        edges = [0, *(p for p in places if p < len(label)), len(label)]
        cut[label] = [label[a:b] for a, b in pairwise(edges)] + ["\n"]
    weights = [draw(st.integers(1, 100)) for _ in labels]
    shares = {label: w / sum(weights) for label, w in zip(labels, weights, strict=True)}
    return cut, shares, draw(st.sampled_from(labels))


@given(models())
def test_a_model_that_tells_everything_is_read_exactly(model):
    """Against the probabilities that the tokens were made from."""
    cut, shares, said = model
    steps = []
    for n, token in enumerate(cut[said]):
        there = {label for label in cut if cut[label][:n] == cut[said][:n]}
        of = sum(shares[label] for label in there)
        nexts = {}
        for label in there:
            nexts[cut[label][n]] = nexts.get(cut[label][n], 0.0) + shares[label] / of
        steps.append(
            (token, min(1.0, nexts.pop(token)), {t: min(1.0, p) for t, p in nexts.items()})
        )
    told = confidences(content(*steps), said, {label: label for label in cut}, cased=True)
    assert sum(told.values()) <= 1.0 + 1e-5
    for label, p in told.items():
        # Another way of cutting the same letters may lead elsewhere: then it is a lower bound.
        texts = {other for other in cut if other != label and other.startswith(label[0])}
        if not texts:
            assert p == pytest.approx(shares[label], abs=1e-5)
    others = [label for label in cut if label[0] != said[0]]
    alone = [label for label in others if sum(o[0] == label[0] for o in cut) == 1]
    assert {*alone} <= told.keys()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["bug", "b", '"', "content"]),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(
        st.sampled_from(["content", "token", "logprob", "bytes", "top_logprobs", "tokens",
                         "token_logprobs"]), inside, max_size=5),
    max_leaves=12,
)  # fmt: skip


@given(JSON, JSON, JSON, JSON)
def test_whatever_a_server_tells_ends_no_run(anything, number, raw, top):
    """An answer was paid for, whatever stands beside it."""
    step = {"token": "bug", "logprob": number, "bytes": raw, "top_logprobs": top}
    old = {"tokens": ["bug"], "token_logprobs": [number], "top_logprobs": top}
    for told in (
        anything,
        {"content": [step]},
        {"content": anything},
        old,
        {**old, "tokens": raw},
    ):
        for p in sure(json.dumps(told), "bug").values():
            assert 0 <= p <= 1
