"""Two outputs, row by row: what one has right that the other has not. Touches: nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from batcher.records import Outcome
from batcher.report.scorers import plain

__all__ = ["Comparison", "compare"]

_EXAMPLES = 20


@dataclass
class Comparison:
    """What was found, for one pair of models.

    Attributes:
        rows: Rows that both have.
        only: Rows that only the first has, and only the second.
        right: Rows that the first has right, and the second.
        gained: Names of rows that only the second has right, the first twenty.
        lost: Names of rows that only the first has right, likewise.
        pairs: (answer of the first, of the second) to rows; "" where there is none.
        changed: Names of rows whose answers differ, the first twenty.
    """

    rows: int = 0
    only: list[int] = field(default_factory=lambda: [0, 0])
    right: list[int] = field(default_factory=lambda: [0, 0])
    n_gained: int = 0
    n_lost: int = 0
    gained: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    pairs: Counter[tuple[Hashable, Hashable]] = field(default_factory=Counter)
    changed: list[str] = field(default_factory=list)

    @property
    def same(self) -> int:
        """Rows with the same answer, as labels are the same."""
        return sum(n for (one, other), n in self.pairs.items() if one == other)


def compare(
    one: Iterable[Mapping[str, Any]],
    other: Iterable[Mapping[str, Any]],
    models: Mapping[str, str],
    gold: str | None,
    right: Callable[[Any, Any], bool],
) -> dict[str, Comparison]:
    """By model of the first output, how the second differs.

    Args:
        one: Rows of the first output.
        other: Rows of the second.
        models: Which model of the second stands against which of the first.
        gold: The column that holds what is right, in the first output; None when nothing does.
        right: Whether an answer is.
    """
    found = {model: Comparison() for model in models}
    seen: dict[tuple[str, str, int], tuple[int, bool, Any]] = {}
    texts: dict[str, int] = {}  # Answers are few and long, or many: each is kept once.
    for row in one:
        model = row.get("model") or ""
        if model in models:
            answer = _answer(row)
            truth = row.get(gold) if gold is not None else None
            good = gold is not None and answer is not None and right(answer, truth)
            place = models[model], str(row.get("custom_id")), int(row.get("sample") or 0)
            seen[place] = texts.setdefault(plain(answer), len(texts)), good, truth
    of = {new: old for old, new in models.items()}
    said = list(texts)
    for row in other:
        model = row.get("model") or ""
        if model not in of:
            continue
        told = found[of[model]]
        name = str(row.get("custom_id"))
        before = seen.pop((model, name, int(row.get("sample") or 0)), None)
        if before is None:
            told.only[1] += 1
            continue
        text, was, truth = before
        answer = _answer(row)
        told.rows += 1
        told.pairs[said[text], plain(answer)] += 1
        if said[text] != plain(answer) and len(told.changed) < _EXAMPLES:
            told.changed.append(name)
        if gold is not None:
            now = answer is not None and right(answer, truth)
            told.right[0] += was
            told.right[1] += now
            if now and not was:
                told.n_gained += 1
                told.gained += [name] if len(told.gained) < _EXAMPLES else []
            elif was and not now:
                told.n_lost += 1
                told.lost += [name] if len(told.lost) < _EXAMPLES else []
    for model, _name, _sample in seen:
        found[of[model]].only[0] += 1
    return found


def _answer(row: Mapping[str, Any]) -> Any:
    """What was parsed, else the text; None for what is no answer."""
    if row.get("status") != Outcome.OK:
        return None
    parsed = row.get("parsed")
    return row.get("content") if parsed is None else parsed
