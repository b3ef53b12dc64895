"""The figures of a report against those of scikit-learn, scipy and krippendorff.

The tests import these libraries, or each pytest worker would spend a second on them at collection.
"""

import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.evaluate.figures import Figures
from batcher.evaluate.scorers import scorer
from batcher.evaluate.votes import panels

LABELS = ("bug", "billing", "praise")
answers = st.one_of(st.none(), st.sampled_from(LABELS))
tables = st.lists(
    st.tuples(st.sampled_from(LABELS), answers, answers, answers), min_size=1, max_size=40
)


def row(number, model, said, gold=None, sample=0, **more):
    return {
        "gold": gold, "row": number, "custom_id": str(number), "model": model, "sample": sample,
        "status": "timeout" if said is None else "ok", "content": said, **more,
    }  # fmt: skip


def figures_of(rows, gold="gold", by=None, name="label"):
    figures = Figures(scorer(name), gold, by)
    for panel in panels(enumerate(rows), "out.jsonl"):
        figures.add(panel)
    return figures


def of_table(table):
    return figures_of(
        [
            row(number, f"m{at}", said, gold)
            for number, (gold, *several) in enumerate(table)
            for at, said in enumerate(several)
        ]
    ).asdict()


@given(tables)
@settings(max_examples=150, deadline=None)
def test_accuracy_and_f1_are_those_of_scikit_learn(table):
    """A row without an answer is wrong, and is no label of its own."""
    from scipy.stats import binomtest
    from sklearn.metrics import f1_score

    told = of_table(table)
    gold = [line[0] for line in table]
    for at in range(3):
        said = [line[at + 1] or "(none)" for line in table]
        right = sum(a == b for a, b in zip(gold, said, strict=True))
        of = told["models"][f"m{at}"]
        test = binomtest(right, len(table)).proportion_ci(method="wilson")
        assert of["accuracy"]["right"] == right
        assert of["accuracy"]["low"] == pytest.approx(test.low, abs=1e-9)
        assert of["accuracy"]["high"] == pytest.approx(test.high, abs=1e-9)
        labels = sorted({*gold, *said} - {"(none)"})
        f1 = f1_score(gold, said, labels=labels, average="macro", zero_division=0)
        assert of["macro_f1"] == pytest.approx(f1)
        counted = sum(n for line in of["confusion"].values() for n in line.values())
        assert counted == len(table)


@given(tables)
@settings(max_examples=150, deadline=None)
def test_agreement_is_that_of_scikit_learn_scipy_and_krippendorff(table):
    """Of the rows that both answer, or of those that two answer at least."""
    import krippendorff
    from scipy.stats import binomtest
    from sklearn.metrics import cohen_kappa_score

    told = of_table(table)
    for pair in told["agreement"]["pairs"]:
        one, other = (1 + int(model[1]) for model in pair["models"])
        both = [(line[one], line[other]) for line in table if line[one] and line[other]]
        assert (pair["both"], pair["same"]) == (len(both), sum(a == b for a, b in both))
        if pair["kappa"] is not None:
            a, b = zip(*both, strict=True)
            assert pair["kappa"] == pytest.approx(cohen_kappa_score(a, b))
        gained = sum(line[one] != line[0] == line[other] for line in table)
        lost = sum(line[one] == line[0] != line[other] for line in table)
        assert (pair["gained"], pair["lost"]) == (gained, lost)
        p = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
        assert pair["p"] == pytest.approx(p)
    data = np.array(
        [[np.nan if a is None else LABELS.index(a) for a in line[1:]] for line in table], float
    ).T
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            alpha = krippendorff.alpha(data, level_of_measurement="nominal")
        except ValueError:  # It wants two different values at least.
            alpha = None
    mine = told["agreement"]["alpha"]
    if mine is not None:
        assert mine == pytest.approx(alpha)


def test_several_samples_count_as_one_row_in_an_interval():
    """Ten answers to one question are no ten questions."""
    rows = [
        row(number, "m", "bug" if sample < 3 else "billing", "bug", sample)
        for number in range(10)
        for sample in range(4)
    ]
    of = figures_of(rows).asdict()["models"]["m"]
    accuracy = of["accuracy"]
    assert (accuracy["right"], accuracy["of"], accuracy["share"]) == (30, 40, 0.75)
    p, z, n = 0.75, 1.959963984540054, 10
    half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5 / (1 + z * z / n)
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    assert accuracy["low"] == pytest.approx(middle - half)
    assert accuracy["high"] == pytest.approx(middle + half)
    assert of["majority"]["share"] == 1.0
    assert of["samples_agree"] == pytest.approx(0.5)  # 3 of the 6 pairs of each row.


def test_groups_have_an_accuracy_each():
    """By the value of a column, whatever its type."""
    rows = [
        row(n, "m", said, "bug", kind=kind)
        for n, (said, kind) in enumerate(
            [("bug", 1), ("billing", 1), ("bug", None), ("bug", True), (None, 1)]
        )
    ]
    groups = figures_of(rows, by="kind").asdict()["models"]["m"]["groups"]
    told = {name: (of["right"], of["of"]) for name, of in groups.items()}
    assert told == {"1": (1, 3), "(none)": (1, 1), "true": (1, 1)}


def test_the_most_disputed_rows_come_first():
    """All different before two against one; unanimous ones not at all."""
    said = [("a", "a", "a"), ("a", "a", "b"), ("a", "b", "c"), ("a", None, "b"), ("x", None, None)]
    rows = [
        row(n, f"m{at}", one) for n, several in enumerate(said) for at, one in enumerate(several)
    ]
    figures = figures_of(rows, gold=None)
    assert figures.disputed == [(6, 7, 8), (9, 10, 11), (3, 4, 5)]
    assert (figures.voted, figures.unanimous, figures.ties) == (4, 1, 2)


def test_votes_of_numbers_are_votes_on_the_numbers():
    """As for GSM8K: what the answer comes to counts, not its words."""
    rows = [row(0, "m", said, "#### 42", at) for at, said in enumerate(["It is 42.", "=42", "41"])]
    of = figures_of(rows, name="number").asdict()["models"]["m"]
    assert of["majority"]["right"] == 1
    assert of["answers"] == {"42": 2, "41": 1}


def test_free_texts_are_not_counted_for_ever():
    """Nor drawn; how often they are the same still is."""
    rows = [
        row(n, model, f"text {n if n % 2 else model}") for n in range(2500) for model in ("a", "b")
    ]
    figures = figures_of(rows, gold=None)
    told = figures.asdict()
    assert told["models"]["a"]["answers"] is None
    assert not figures.spelling
    (pair,) = told["agreement"]["pairs"]
    assert (pair["both"], pair["same"], pair["kappa"]) == (2500, 1250, None)
    assert told["agreement"]["alpha"] is None


def test_the_figures_are_json():
    """With nothing in them that JSON has not."""
    told = of_table([("bug", "bug", None, "praise")])
    assert json.loads(json.dumps(told, allow_nan=False)) == told
