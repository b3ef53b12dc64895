"""The figures of a report on a terminal: a table by model, lines about pairs. Touches: nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from batcher.live.format import UNKNOWN, compact, decimal, dollars, percent, seconds, shorten
from batcher.live.table import Column, fit, grid
from batcher.records import Outcome

__all__ = ["agreement", "scores"]

_MOST_PAIRS = 15


def scores(figures: Mapping[str, Any], width: int) -> Table:
    """A line per model of `Figures.asdict`, at most `width` wide."""
    told = figures["models"]
    models, has_gold = list(told), "gold" in figures
    columns = [
        Column("rows", [f"{of['rows']:,}" for of in told.values()], 8),
        Column("ok", [f"{of['outcomes'].get(Outcome.OK, 0):,}" for of in told.values()], 9),
    ]
    if has_gold:
        columns += [
            Column("right (95 %)", [_share(of["accuracy"]) for of in told.values()], 10),
            Column("macro-F1", [decimal(of["macro_f1"], 3) for of in told.values()], 6),
        ]
    if any("samples_agree" in of for of in told.values()):
        columns.append(
            Column("samples agree", [percent(of.get("samples_agree")) for of in told.values()], 5)
        )
        if has_gold:
            cells = [_share(of.get("majority")) for of in told.values()]
            columns.append(Column("majority right", cells, 5))
    columns += [
        Column("tokens/row", [_per_row(of) for of in told.values()], 4),
        Column("p50 s", [seconds(of["latency_ms"]["p50"]) for of in told.values()], 3),
        Column("cost", [_cost(of) for of in told.values()], 7),
    ]
    return grid(models, fit(models, columns, width), width)


def agreement(told: Mapping[str, Any]) -> Iterator[str]:
    """What is to be said of the models together, of `Figures.asdict`."""
    together = told["agreement"]
    for pair in together["pairs"][:_MOST_PAIRS]:
        one, other = (shorten(model, 40) for model in pair["models"])
        kappa = f", Cohen's κ {pair['kappa']:.2f}" if pair["kappa"] is not None else ""
        share = f"{100 * pair['same'] / pair['both']:.1f} %" if pair["both"] else UNKNOWN
        line = f"{one}, {other}: the same answer {share}{kappa}"
        if "gold" in told:
            line += (
                f"; only the second right {pair['gained']:,}, only the first {pair['lost']:,} "
                f"(McNemar p {_p(pair['p'])})"
            )
        yield line
    if (more := len(together["pairs"]) - _MOST_PAIRS) > 0:
        yield f"… and {more:,} more pairs of models: they are on the page, and in --json"
    if together["pairs"] and told.get("samples"):
        yield "Pairs are compared by the first answers of each row"
    if (alpha := together["alpha"]) is not None and len(told["models"]) > 2:
        yield f"All models: Krippendorff's α {alpha:.2f}"
    if together["voted"]:
        yield (
            f"{together['unanimous']:,} of {together['voted']:,} rows with several answers are "
            f"unanimous, {together['tied']:,} tied"
        )
    if told.get("majority") is not None:
        yield f"The majority of all answers: {_share(told['majority'])} right"


def _share(of: Mapping[str, Any] | None) -> str:
    if of is None or of["share"] is None:
        return UNKNOWN
    return f"{100 * of['share']:.1f} % ({100 * of['low']:.1f}–{100 * of['high']:.1f})"


def _p(p: float) -> str:
    return "< 1e-15" if p < 1e-15 else f"= {p:.2g}"


def _per_row(of: Mapping[str, Any]) -> str:
    used = of["tokens"]["prompt_tokens"], of["tokens"]["completion_tokens"]
    return UNKNOWN if None in used else compact(sum(used) / of["rows"])


def _cost(of: Mapping[str, Any]) -> str:
    if of["cost_usd"] is None:
        return UNKNOWN
    return ("≥" if of["cost_missing"] else "") + dollars(of["cost_usd"])
