"""Two outputs, row by row: what one has right that the other has not. Touches: nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from batcher.errors import JobError
from batcher.evaluate.scorers import empty, plain
from batcher.evaluate.votes import value_of

__all__ = ["Comparison", "compare"]

_EXAMPLES = 20
_Place = tuple[str, str, int]  # Model, custom_id, sample.


@dataclass
class Comparison:
    """What was found, for one pair of models.

    Samples of a row are no more rows: the first one of each counts, but for `right`, where the
    share of them that is right does.

    Attributes:
        rows: Rows that both have.
        only: Rows that only the first has, and only the second.
        scored: Rows that both have, and that have gold.
        right: Rows that the first has right, and the second; with several samples a part of a row.
        gained: Names of rows that only the second has right, the first twenty.
        lost: Names of rows that only the first has right, likewise.
        pairs: (answer of the first, of the second) to rows that both have answered.
        alone: Rows that only the first has answered, and only the second.
        changed: Names of rows whose answers differ, the first twenty.
        other_gold: Rows to which the second output has another gold.
        samples: Whether any row has several.
    """

    rows: int = 0
    only: list[int] = field(default_factory=lambda: [0, 0])
    scored: int = 0
    right: list[float] = field(default_factory=lambda: [0.0, 0.0])
    n_gained: int = 0
    n_lost: int = 0
    gained: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    pairs: Counter[tuple[Hashable, Hashable]] = field(default_factory=Counter)
    alone: list[int] = field(default_factory=lambda: [0, 0])
    changed: list[str] = field(default_factory=list)
    other_gold: int = 0
    samples: bool = False

    @property
    def answered(self) -> int:
        """Rows that both have answered."""
        return self.pairs.total()

    @property
    def same(self) -> int:
        """Rows with the same answer, as labels are the same."""
        return sum(n for (one, other), n in self.pairs.items() if one == other)

    @property
    def n_changed(self) -> int:
        """Rows with other answers, or with one in place of none."""
        return self.answered - self.same + sum(self.alone)


def compare(
    one: Iterable[Mapping[str, Any]],
    other: Iterable[Mapping[str, Any]],
    models: Mapping[str, str],
    gold: str | None,
    right: Callable[[Any, Any], bool],
    names: tuple[str, str] = ("the first", "the second"),
    same: Callable[[Any], str] = plain,
) -> dict[str, Comparison]:
    """By model of the first output, how the second differs.

    Args:
        one: Rows of the first output.
        other: Rows of the second.
        models: Which model of the second stands against which of the first.
        gold: The column that holds what is right, in the first output; None when nothing does.
        right: Whether an answer is.
        names: Of the outputs, for people.
        same: Two answers are the same when this makes the same of them.

    Raises:
        JobError: A row stands twice in an output.
    """
    found = {model: Comparison() for model in models}
    sums = {model: _Means() for model in models}
    seen: dict[_Place, tuple[int, bool, Any] | None] = {}  # None once it was found.
    texts: dict[str | None, int] = {}  # Answers are few and long, or many: each is kept once.
    for row in one:
        model, name, sample = _place(row)
        if model in models:
            place = models[model], name, sample
            if place in seen:
                raise _twice(names[0], model, name)
            answer = value_of(row)
            truth = row.get(gold) if gold is not None else None
            truth = None if empty(truth) else truth
            good = truth is not None and answer is not None and right(answer, truth)
            text = None if answer is None else same(answer)
            seen[place] = texts.setdefault(text, len(texts)), good, truth
    of = {new: old for old, new in models.items()}
    said = list(texts)
    for row in other:
        model, name, sample = place = _place(row)
        if model not in of:
            continue
        told = found[of[model]]
        if place not in seen:
            told.only[1] += sample == 0
            continue
        if (before := seen[place]) is None:
            raise _twice(names[1], model, name)
        seen[place] = None
        at, was, truth = before
        answer = value_of(row)
        now = truth is not None and answer is not None and right(answer, truth)
        if truth is not None:
            sums[of[model]].add(name, was, now)
        if sample:
            told.samples = True
            continue
        told.rows += 1
        text = None if answer is None else same(answer)
        if said[at] is not None and text is not None:
            told.pairs[said[at], text] += 1
        else:
            told.alone[0] += said[at] is not None
            told.alone[1] += text is not None
        if said[at] != text and len(told.changed) < _EXAMPLES:
            told.changed.append(name)
        if truth is not None:
            told.scored += 1
            theirs = row.get(gold) if gold is not None else None
            told.other_gold += not empty(theirs) and same(theirs) != same(truth)
            if now and not was:
                told.n_gained += 1
                told.gained += [name] if len(told.gained) < _EXAMPLES else []
            elif was and not now:
                told.n_lost += 1
                told.lost += [name] if len(told.lost) < _EXAMPLES else []
    for (model, _name, sample), left in seen.items():
        found[of[model]].only[0] += left is not None and sample == 0
    for model, mean in sums.items():
        found[model].right = mean.right
    return found


class _Means:
    """Right answers by row, each sample of a row a part of it; rows come one after the other."""

    def __init__(self) -> None:
        self._name: str | None = None
        self._row = [0, 0, 0]
        self._right = [0.0, 0.0]

    def add(self, name: str, was: bool, now: bool) -> None:
        if name != self._name:
            self._end()
            self._name = name
        self._row = [self._row[0] + was, self._row[1] + now, self._row[2] + 1]

    @property
    def right(self) -> list[float]:
        """Rows that the first has right, and the second."""
        self._end()
        return [round(of, 9) for of in self._right]

    def _end(self) -> None:
        was, now, samples = self._row
        if samples:
            self._right = [self._right[0] + was / samples, self._right[1] + now / samples]
        self._row = [0, 0, 0]


def _place(row: Mapping[str, Any]) -> _Place:
    return row.get("model") or "", str(row.get("custom_id")), int(row.get("sample") or 0)


def _twice(output: str, model: str, name: str) -> JobError:
    return JobError(
        f"{output}: custom_id {name!r} of {model} stands twice in it, so its rows cannot be matched "
        "with others."
    )
