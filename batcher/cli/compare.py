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

    scorer_of(scorer)  # What is none is told before anything is read.
    pairs = _pairs(one, other, gold)
    labels = labels_of(one, other)
    right = scorer_of(scorer, labels).right
    columns = _COLUMNS | ({gold} if gold is not None else set())
    found = compared(
        rows_of(one, columns),
        rows_of(other, columns),
        pairs,
        gold,
        right,
        (one, other),
        same_by(Labels(sorted(labels))),
    )
    if not any(of.rows for of in found.values()):
        raise JobError(f"{one} and {other} have no row in common: no custom_id is in both.")
    if gold is not None and not any(of.scored for of in found.values()):
        raise JobError(f"--gold {gold}: the column is empty in the rows that both have.")
    for of in found.values():
        if of.other_gold:
            say(
                f"batcher: {gold} differs in {of.other_gold:,} of {of.scored:,} rows: these outputs are not "
                "of the same input, or not in the same order (rows without a custom_id are matched by "
                "their position).",
                error=True,
            )
            break
    if json_:
        told = {model: _figures(of, has_gold=gold is not None) for model, of in found.items()}
        say(json.dumps(told))
        return 0
    for model, of in found.items():
        names = model if pairs[model] == model else f"{model} → {pairs[model]}"
        say(f"{names}: {of.rows:,} rows in both")
        for line in _told(of, one, other, has_gold=gold is not None):
            say(f"  {line}")
    return 0


def _pairs(one: str, other: str, gold: str | None) -> dict[str, str]:
    """Which model of the second output stands against which of the first."""
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


def _told(of: Comparison, one: str, other: str, *, has_gold: bool) -> list[str]:
    from batcher.evaluate.statistics import cohen_kappa, mcnemar, wilson

    lines = []
    first = ", by first answers" if of.samples else ""
    if has_gold and of.scored:
        for name, right in zip((one, other), of.right, strict=True):
            low, high = wilson(right, of.scored)
            share = 100 * right / of.scored
            of_rows = f" of {of.scored:,} rows with gold" if of.scored < of.rows else ""
            lines.append(
                f"{name}: {share:.1f} % right ({100 * low:.1f} to {100 * high:.1f}){of_rows}"
            )
        p = mcnemar(of.n_gained, of.n_lost)
        lines.append(f"gained {of.n_gained:,}{_names(of.gained, of.n_gained)}{first}")
        lines.append(f"lost {of.n_lost:,}{_names(of.lost, of.n_lost)}")
        sure = "no more than chance" if p >= 0.05 else "more than chance"
        lines.append(f"McNemar's exact test: p = {p:.2g}, {sure}")
    if of.answered:
        low, high = wilson(of.same, of.answered)
        kappa = cohen_kappa(of.pairs)
        alike = (
            f"; Cohen's κ {kappa:.2f}"
            if kappa is not None and len(of.pairs) <= of.answered / 2
            else ""
        )
        both = f" of {of.answered:,} that both answered" if of.answered < of.rows else ""
        lines.append(
            f"the same answer {of.same:,} times{both}: {100 * of.same / of.answered:.1f} % "
            f"({100 * low:.1f} to {100 * high:.1f}){alike}{first}"
        )
    for name, n in zip((one, other), of.alone, strict=True):
        if n:
            lines.append(f"{counted(n, 'row')} answered only in {name}")
    if not has_gold and of.changed:
        lines.append(f"changed {of.n_changed:,}{_names(of.changed, of.n_changed)}")
    for name, n in zip((one, other), of.only, strict=True):
        if n:
            lines.append(f"{counted(n, 'row')} only in {name}")
    return lines


def _names(names: list[str], count: int) -> str:
    more = ", …" if count > len(names) else ""
    return f": rows {', '.join(names)}{more}" if names else ""


def _figures(of: Comparison, *, has_gold: bool) -> dict[str, object]:
    from batcher.evaluate.statistics import cohen_kappa, mcnemar, wilson

    told: dict[str, object] = {
        "rows": of.rows, "answered": of.answered, "same": of.same, "kappa": cohen_kappa(of.pairs),
        "alone": of.alone, "only": of.only,
    }  # fmt: skip
    if has_gold:
        told |= {
            "scored": of.scored,
            "right": of.right,
            "intervals": [wilson(right, of.scored) for right in of.right],
            "gained": of.n_gained,
            "lost": of.n_lost,
            "p": mcnemar(of.n_gained, of.n_lost),
        }
    return told
