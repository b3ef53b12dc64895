"""How good, how sure, how much alike: figures from counts. Touches: nothing.

All take counts, not rows, so that a million rows cost no more than the different values they hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from math import exp, lgamma, log, sqrt

__all__ = [
    "Alpha",
    "Pairs",
    "cohen_kappa",
    "krippendorff_alpha",
    "macro_f1",
    "mcnemar",
    "total_of_sample",
    "wilson",
]

Pairs = Mapping[tuple[Hashable, Hashable], int]
"""(value of one, value of the other) to how many rows have them; for gold, gold comes first."""

_Z95 = 1.959963984540054


def wilson(right: float, rows: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927, score interval); (0, 1) of no rows.

    Several answers to one row are no more rows: their mean counts, so that `right` may have a
    fraction. They depend on each other, and the interval is rather too wide than too narrow then.

    >>> tuple(round(bound, 3) for bound in wilson(8, 10))
    (0.49, 0.943)
    """
    if not rows:
        return 0.0, 1.0
    share, z2 = right / rows, _Z95**2
    middle = share + z2 / (2 * rows)
    half = _Z95 * sqrt(share * (1 - share) / rows + z2 / (4 * rows**2))
    whole = 1 + z2 / rows
    low = 0.0 if right == 0 else (middle - half) / whole
    return low, 1.0 if right == rows else (middle + half) / whole


def total_of_sample(
    asked: int, total: float, squares: float, every: int
) -> tuple[float, float, float]:
    """(about, from, to) of a sum over all, by some that were drawn by chance: 95 % (Cochran 1977, 2.8).

    Args:
        asked: How many were drawn; two or more.
        total: Their sum.
        squares: The sum of their squares.
        every: How many there are.

    >>> tuple(round(of, 2) for of in total_of_sample(10, 50.0, 290.0, 100))
    (500.0, 356.93, 643.07)
    """
    mean = total / asked
    variance = max(0.0, squares - total * mean) / (asked - 1)
    around = _t95(asked - 1) * every * sqrt(variance / asked * (1 - asked / every))
    return every * mean, max(total, every * mean - around), every * mean + around


def _t95(freedom: int) -> float:
    """Student's t at 97.5 %: of two degrees of freedom at most by table, of more by Fisher's expansion.

    (Abramowitz & Stegun 26.7.5; from 3 on right to 0.005.)
    """
    if freedom < 3:
        return (12.7062, 4.3027)[freedom - 1]
    z, n = _Z95, float(freedom)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum((term / n**power for power, term in enumerate(terms, 1)), 0.0)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p-value that neither is more likely (McNemar 1947, binomial form).

    Args:
        gained: Rows that only the second has right.
        lost: Rows that only the first has right.
    """
    rows, least = gained + lost, min(gained, lost)
    if rows == 0:
        return 1.0
    # The sum of binomial probabilities up to `least`, from its largest term down.
    term = exp(lgamma(rows + 1) - lgamma(least + 1) - lgamma(rows - least + 1) - rows * log(2))
    total = 0.0
    for k in range(least, -1, -1):
        total += term
        term *= k / (rows - k + 1)
        if term < total * 1e-17:
            break
    return min(1.0, 2 * total)


def cohen_kappa(pairs: Pairs) -> float | None:
    """Agreement of two beyond chance (Cohen 1960); None when chance alone explains all or nothing."""
    rows = sum(pairs.values())
    if not rows:
        return None
    one: Counter[Hashable] = Counter()
    other: Counter[Hashable] = Counter()
    for (a, b), n in pairs.items():
        one[a] += n
        other[b] += n
    seen = sum(n for (a, b), n in pairs.items() if a == b) / rows
    chance = sum(n * other[value] for value, n in one.items()) / rows**2
    return None if chance == 1.0 else (seen - chance) / (1 - chance)


def krippendorff_alpha(units: Iterable[Mapping[Hashable, int]]) -> float | None:
    """Agreement of any number of raters, nominal (Krippendorff 2011, "Computing alpha", section C).

    None when nothing can disagree: fewer than two values in each unit, or one value in all.

    Args:
        units: Of each row, how many raters gave which value.
    """
    alpha = Alpha()
    for unit in units:
        alpha.add(unit)
    return alpha.value


class Alpha:
    """Krippendorff's α as a running sum, for rows that are too many to hold."""

    def __init__(self) -> None:
        self._totals: Counter[Hashable] = Counter()
        self._differing = 0.0

    def add(self, unit: Mapping[Hashable, int]) -> None:
        """Takes one row: how many raters gave which value."""
        raters = sum(unit.values())
        if raters < 2:
            return
        self._totals.update(unit)
        self._differing += sum(n * (raters - n) for n in unit.values()) / (raters - 1)

    @property
    def value(self) -> float | None:
        """Of the rows so far; see `krippendorff_alpha`."""
        values = sum(self._totals.values())
        expected = values**2 - sum(n**2 for n in self._totals.values())
        if not expected:
            return None
        return 1 - (values - 1) * self._differing / expected


def macro_f1(pairs: Pairs) -> float | None:
    """Mean over all labels, of gold or of answers, of the harmonic mean of precision and recall.

    Args:
        pairs: (gold, answer) to rows; None for no answer, which misses a label and is none.
    """
    gold: Counter[Hashable] = Counter()
    said: Counter[Hashable] = Counter()
    for (a, b), n in pairs.items():
        gold[a] += n
        if b is not None:
            said[b] += n
    labels = {*gold, *said}
    if not labels:
        return None
    both = (2 * pairs.get((label, label), 0) / (gold[label] + said[label]) for label in labels)
    return sum(both) / len(labels)
