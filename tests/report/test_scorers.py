"""Whether an answer is right."""

import pytest

from batcher.errors import JobError
from batcher.evaluate.scorers import scorer


@pytest.mark.parametrize(
    ("name", "answer", "gold", "right"),
    [
        ("exact", " Billing\n", "Billing", True),
        ("exact", "billing", "Billing", False),
        ("label", "**Billing**.", "billing", True),
        ("label", "bill", "billing", False),
        ("label", "A*", "A", False),
        ("label", "「請求」", "請求", True),
        ("label", "cafe\u0301", "Café", True),
        ("label", 3, "3", True),
        ("label", 3.0, 3, True),
        ("label", True, "true", True),
        ("label", None, "", False),
        ("number", "So 3 + 4 = 7, the answer is 1,234.50.", "#### 1234.5", True),
        ("number", "12", "21", False),
        ("number", "none", "7", False),
        ("number", 7, 7.0, True),
        ("number", "-5 degrees", "-5", True),
        ("contains", "It was PARIS, of course", "Paris", True),
        ("contains", "It was Lyon", "Paris", False),
        ("contains", "anything", "", False),
        (r"regex:Answer: (\w)", "I think. Answer: B", "b", True),
        (r"regex:Answer: (\w)", "B", "b", False),
        (r"regex:\d+", "42 it is", 42, True),
        ("json:label", '{"label": "Bug"}', "bug", True),
        ("json:label", {"label": "bug"}, "bug", True),
        ("json:label", "no json", "bug", False),
        ("json:label", {"other": "bug"}, "bug", False),
        ("python:operator:eq", "a", "a", True),
        ("python:operator:eq", "a", "A", False),
    ],
)
def test_an_answer_is_right_by_its_scorer(name, answer, gold, right):
    """Each on its own terms."""
    assert scorer(name).right(answer, gold) is right


def test_labels_that_are_known_are_told_apart_by_what_tells_them_apart():
    """Those of --labels; without them "us" and "US." are the same."""
    score = scorer("label", ["US", "us", "1", "1."])
    pairs = [("US", "us"), ("1.", "1"), ("us.", "us"), ("**US**", "US")]
    assert [score.right(*pair) for pair in pairs] == [False, False, True, True]
    assert score.said("1.") == "1."
    assert scorer("label").right("US.", "us")


@pytest.mark.parametrize("name", ["exakt", "regex:(", "json:", "python:none:f", "python:math:no"])
def test_a_scorer_that_is_none_is_said(name):
    """With what there is."""
    with pytest.raises(JobError, match="scorer"):
        scorer(name)


@pytest.mark.parametrize(
    ("name", "answer", "said"),
    [
        ("label", "**Billing**.", "Billing"),
        ("label", 3.0, "3"),
        ("label", None, None),
        ("exact", " Billing.\n", "Billing."),
        ("number", "So 3 + 4 = 7, the answer is 1,234.50.", "1234.5"),
        ("number", "1000", "1000"),
        ("number", "none", None),
        ("contains", "It was PARIS", "It was PARIS"),
        (r"regex:Answer: (\w)", "I think. Answer: B", "B"),
        (r"regex:Answer: (\w)", "B", None),
        ("json:label", {"label": "bug", "why": "it crashes"}, "bug"),
        ("json:label", "no json", None),
    ],
)
def test_what_counts_of_an_answer_is_read_by_its_scorer(name, answer, said):
    """Votes are taken on that, not on the words around it."""
    assert scorer(name).said(answer) == said
