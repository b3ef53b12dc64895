"""`batcher compare`: what changed between two outputs. Touches: the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from batcher.cli.outputs import labels_of, rows_of
from batcher.errors import JobError
from batcher.live.format import counted
from batcher.live.terminal import say

if TYPE_CHECKING:
    from batcher.evaluate.comparison import Comparison

__all__ = ["compare"]

_COLUMNS = frozenset({"model", "custom_id", "sample", "status", "parsed", "content"})


def compare(
    one: str,
    other: str,
    /,
    *,
    gold: str | None = None,
    scorer: str = "label",
    json_: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Tell what changed from one output to another, row by row: gained, lost, the same.

    Rows are matched by custom_id, sample and model; outputs of one model each are matched whatever
    their models are.

    Args:
        one: A finished output.
        other: Another one of the same rows.
        gold: Column of the first that holds what is right.
        scorer: When an answer is right: exact, label, number, contains, regex:PATTERN, json:FIELD or
            python:MODULE:FUNCTION. Default: label.
        json_: Print one JSON object instead.
    """
    from batcher.evaluate.comparison import compare as compared
    from batcher.evaluate.scorers import same_by
    from batcher.evaluate.scorers import scorer as scorer_of
    from batcher.send.labels import Labels

    scorer_of(scorer)  # Fails on an unknown scorer before anything is read.
    pairs = _pairs(one, other, gold)
    labels = labels_of(one, other)
    right = scorer_of(scorer, labels).right
    columns = _COLUMNS | ({gold} if gold is not None else set())
    comparisons = compared(
        rows_of(one, columns),
        rows_of(other, columns),
        pairs,
        gold,
        right,
        (one, other),
        same_by(Labels(sorted(labels))),
    )
    if not any(comparison.rows for comparison in comparisons.values()):
        raise JobError(f"{one} and {other} have no row in common: no custom_id is in both.")
    if gold is not None and not any(comparison.scored for comparison in comparisons.values()):
        raise JobError(f"--gold {gold}: the column is empty in the rows that both have.")
    for comparison in comparisons.values():
        if comparison.other_gold:
            say(
                f"batcher: {gold} differs in {comparison.other_gold:,} of {comparison.scored:,} rows: these outputs are not "
                "of the same input, or not in the same order (rows without a custom_id are matched by "
                "their position).",
                error=True,
            )
            break
    if json_:
        figures = {
            model: _figures(comparison, has_gold=gold is not None)
            for model, comparison in comparisons.items()
        }
        say(json.dumps(figures))
        return 0
    for model, comparison in comparisons.items():
        names = model if pairs[model] == model else f"{model} → {pairs[model]}"
        say(f"{names}: {comparison.rows:,} rows in both")
        for line in _lines(comparison, one, other, has_gold=gold is not None):
            say(f"  {line}")
    return 0


def _pairs(one: str, other: str, gold: str | None) -> dict[str, str]:
    """The model of the second output that each model of the first is compared with."""
    columns = frozenset({"model", "status"} | ({gold} if gold is not None else set()))
    has_gold = gold is None
    left: dict[str, None] = {}
    right: dict[str, None] = {}
    for row in rows_of(one, columns):
        _check(one, row)
        left[row.get("model") or ""] = None
        has_gold |= gold in row
    for row in rows_of(other, columns):
        _check(other, row)
        right[row.get("model") or ""] = None
    if not has_gold:
        raise JobError(f"{one}: there is no column {gold!r} in it.")
    common = [model for model in left if model in right]
    if common:
        for output, models in ((one, left), (other, right)):
            if alone := [model for model in models if model not in common]:
                say(f"batcher: only in {output}: {', '.join(alone)}.", error=True)
        return {model: model for model in common}
    if len(left) == len(right) == 1:
        return dict(zip(left, right, strict=True))
    raise JobError(
        f"{one} has {', '.join(left) or 'no rows'} and {other} has {', '.join(right) or 'no rows'}: there "
        "is no model in both."
    )


def _check(output: str, row: Mapping[str, object]) -> None:
    if "status" not in row or "model" not in row:
        raise JobError(f"{output}: it is no output of batcher, it has no status and no model.")


def _lines(comparison: Comparison, one: str, other: str, *, has_gold: bool) -> list[str]:
    from batcher.evaluate.statistics import cohen_kappa, mcnemar, wilson

    lines = []
    first = ", by first answers" if comparison.samples else ""
    if has_gold and comparison.scored:
        for name, right in zip((one, other), comparison.right, strict=True):
            low, high = wilson(right, comparison.scored)
            share = 100 * right / comparison.scored
            of_rows = (
                f" of {comparison.scored:,} rows with gold"
                if comparison.scored < comparison.rows
                else ""
            )
            lines.append(
                f"{name}: {share:.1f} % right ({100 * low:.1f} to {100 * high:.1f}){of_rows}"
            )
        p = mcnemar(comparison.n_gained, comparison.n_lost)
        lines.append(
            f"gained {comparison.n_gained:,}{_names(comparison.gained, comparison.n_gained)}{first}"
        )
        lines.append(f"lost {comparison.n_lost:,}{_names(comparison.lost, comparison.n_lost)}")
        sure = "no more than chance" if p >= 0.05 else "more than chance"
        lines.append(f"McNemar's exact test: p = {p:.2g}, {sure}")
    if comparison.answered:
        low, high = wilson(comparison.same, comparison.answered)
        kappa = cohen_kappa(comparison.pairs)
        alike = (
            f"; Cohen's κ {kappa:.2f}"
            if kappa is not None and len(comparison.pairs) <= comparison.answered / 2
            else ""
        )
        both = (
            f" of {comparison.answered:,} that both answered"
            if comparison.answered < comparison.rows
            else ""
        )
        lines.append(
            f"the same answer {comparison.same:,} times{both}: {100 * comparison.same / comparison.answered:.1f} % "
            f"({100 * low:.1f} to {100 * high:.1f}){alike}{first}"
        )
    for name, n in zip((one, other), comparison.alone, strict=True):
        if n:
            lines.append(f"{counted(n, 'row')} answered only in {name}")
    if not has_gold and comparison.changed:
        lines.append(
            f"changed {comparison.n_changed:,}{_names(comparison.changed, comparison.n_changed)}"
        )
    for name, n in zip((one, other), comparison.only, strict=True):
        if n:
            lines.append(f"{counted(n, 'row')} only in {name}")
    return lines


def _names(names: list[str], count: int) -> str:
    more = ", …" if count > len(names) else ""
    return f": rows {', '.join(names)}{more}" if names else ""


def _figures(comparison: Comparison, *, has_gold: bool) -> dict[str, object]:
    from batcher.evaluate.statistics import cohen_kappa, mcnemar, wilson

    figures: dict[str, object] = {
        "rows": comparison.rows, "answered": comparison.answered, "same": comparison.same, "kappa": cohen_kappa(comparison.pairs),
        "alone": comparison.alone, "only": comparison.only,
    }  # fmt: skip
    if has_gold:
        figures |= {
            "scored": comparison.scored,
            "right": comparison.right,
            "intervals": [wilson(right, comparison.scored) for right in comparison.right],
            "gained": comparison.n_gained,
            "lost": comparison.n_lost,
            "p": mcnemar(comparison.n_gained, comparison.n_lost),
        }
    return figures
