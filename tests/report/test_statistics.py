"""Every figure against the library that everybody knows.

The tests import these libraries, or each pytest worker would spend a second on them at collection.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.evaluate import statistics

LABELS = st.sampled_from("abcd")
pairs = st.lists(st.tuples(LABELS, LABELS), min_size=1, max_size=60)


def counted(rows):
    found = {}
    for pair in rows:
        found[pair] = found.get(pair, 0) + 1
    return found


@given(st.integers(0, 5000), st.integers(0, 5000))
def test_the_interval_is_scipys(right, wrong):
    """Wilson's, without continuity correction."""
    from scipy.stats import binomtest

    rows = right + wrong
    if not rows:
        assert statistics.wilson(0, 0) == (0.0, 1.0)
        return
    expected = binomtest(right, rows).proportion_ci(0.95, "wilson")
    assert statistics.wilson(right, rows) == pytest.approx((expected.low, expected.high), abs=1e-9)


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_the_significance_of_a_change_is_scipys(gained, lost):
    """The exact test, also where the numbers are large."""
    from scipy.stats import binomtest

    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert statistics.mcnemar(gained, lost) == pytest.approx(expected, rel=1e-6, abs=1e-200)


@pytest.mark.filterwarnings("ignore:.*only one label in common")
@given(pairs)
def test_kappa_is_scikit_learns(rows):
    """And nothing where scikit-learn says NaN."""
    from sklearn.metrics import cohen_kappa_score

    expected = cohen_kappa_score(*zip(*rows, strict=True), labels=list("abcd"))
    found = statistics.cohen_kappa(counted(rows))
    assert found is None if math.isnan(expected) else found == pytest.approx(expected)


@given(pairs)
def test_macro_f1_is_scikit_learns(rows):
    """Over the labels that are there, on either side."""
    from sklearn.metrics import f1_score

    gold, said = zip(*rows, strict=True)
    expected = f1_score(gold, said, average="macro", zero_division=0.0)
    assert statistics.macro_f1(counted(rows)) == pytest.approx(expected)


@given(
    st.integers(2, 5).flatmap(
        lambda raters: st.lists(
            st.lists(st.sampled_from([0, 1, 2, None]), min_size=raters, max_size=raters),
            min_size=1,
            max_size=30,
        )
    )
)
def test_alpha_is_krippendorffs(rows):
    """Raters may be missing; where nothing can disagree there is no alpha."""
    import krippendorff

    units = [{v: unit.count(v) for v in set(unit) - {None}} for unit in rows]
    found = statistics.krippendorff_alpha(units)
    if found is None:
        values = {v for unit in units if sum(unit.values()) > 1 for v in unit}
        assert len(values) < 2
        return
    table = np.array([[np.nan if v is None else v for v in unit] for unit in rows], float).T
    expected = krippendorff.alpha(table, level_of_measurement="nominal", value_domain=[0, 1, 2])
    assert found == pytest.approx(expected)


def test_no_rows_say_nothing():
    """None is not 0."""
    assert statistics.cohen_kappa({}) is None
    assert statistics.macro_f1({}) is None
    assert statistics.krippendorff_alpha([]) is None


@given(st.integers(1, 5000))
def test_students_t_is_scipys(freedom):
    from scipy.stats import t as student

    assert statistics._t95(freedom) == pytest.approx(student.ppf(0.975, freedom), abs=0.006)


def test_the_interval_of_a_sum_holds_it_as_often_as_it_says():
    """Of small samples of skewed costs as well, nearly: 95 % are meant, the tail costs a few."""
    rng = np.random.default_rng(1)
    every = rng.gamma(2.0, 1.0, 2000)
    for asked, least in ((8, 0.90), (100, 0.93)):
        held = 0
        for _ in range(1000):
            drawn = rng.choice(every, asked, replace=False)
            told = statistics.total_of_sample(asked, drawn.sum(), (drawn**2).sum(), 2000)
            held += told[1] <= every.sum() <= told[2]
        assert least < held / 1000 < 0.97
