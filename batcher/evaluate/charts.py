"""Figures as charts: what plotly is to draw, as plain values. Touches: nothing.

Texts come from outside, and plotly reads some tags in them: all are escaped here. Colours are names
(`var:…`) that the page has a light and a dark one for.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from math import ceil, log10
from typing import Any, NamedTuple

from batcher.evaluate.figures import Figures
from batcher.records import Outcome

__all__ = ["Chart", "charts"]

_COLORS = 8
_MOST_LABELS = 30
_MOST_GROUPS = 25
_MOST_CONFUSIONS = 8
_CHARS = 32
_BINS_A_DECADE = 12
_ROW = 34  # Pixels that a bar takes.


class Chart(NamedTuple):
    """One chart.

    Attributes:
        name: For the page's own use.
        title: What it shows.
        note: How to read it; "" when it needs no word.
        spec: Plotly's `data` and `layout`.
        wide: Whether it takes the whole width of a page.
    """

    name: str
    title: str
    note: str
    spec: dict[str, Any]
    wide: bool = False


def charts(figures: Figures, told: Mapping[str, Any]) -> Iterator[Chart]:
    """Those that there is something to draw for, in the order of the page.

    Args:
        figures: What is known of an output.
        told: The same as plain values (`Figures.asdict`).
    """
    models: dict[str, Any] = told["models"]
    names = dict(zip(models, _names(models), strict=True))
    colors = {model: f"var:c{at % _COLORS + 1}" for at, model in enumerate(models)}
    if figures.gold is not None:
        yield _accuracy(told, names, colors)
        yield from _dear(models, names, colors)
        if figures.by is not None:
            yield _groups(figures.by, models, names, colors)
        yield from _confusions(models, names)
    yield from _labels(models, names, colors)
    yield from _agreement(told["agreement"]["pairs"], names)
    yield _outcomes(models, names)
    yield from _latencies(figures, names, colors)
    yield from _tokens(models, names)
    yield from _costs(models, names)
    yield from _course(figures)


def _accuracy(
    told: Mapping[str, Any], names: Mapping[str, str], colors: Mapping[str, str]
) -> Chart:
    lines = [(names[m], of["accuracy"], colors[m]) for m, of in told["models"].items()]
    lines += [
        (f"{names[m]}, majority", of["majority"], colors[m])
        for m, of in told["models"].items()
        if of.get("majority") is not None
    ]
    if told.get("majority") is not None and len(told["models"]) > 1:
        lines.append(("majority of all", told["majority"], "var:text"))
    lines = [line for line in lines if line[1]["share"] is not None]
    data = {
        "type": "scatter",
        "mode": "markers",
        "y": [name for name, _of, _color in lines],
        "x": [100 * of["share"] for _name, of, _color in lines],
        "error_x": _errors([of for _name, of, _color in lines]),
        "marker": {"size": 11, "color": [color for _name, _of, color in lines]},
        "hovertemplate": "%{y}: %{x:.1f} %<extra></extra>",
    }
    layout = {
        "xaxis": {"title": {"text": "right, %"}, "ticksuffix": " %"},
        "yaxis": {"autorange": "reversed", "automargin": True, "type": "category"},
        "height": 110 + _ROW * len(lines),
    }
    note = "Dots with their 95 % intervals (Wilson)."
    return Chart("accuracy", "Accuracy", note, {"data": [data], "layout": layout})


def _errors(shares: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [100 * (of["high"] - of["share"]) for of in shares],
        "arrayminus": [100 * (of["share"] - of["low"]) for of in shares],
        "thickness": 1.5,
        "color": "var:muted",
    }


def _dear(
    models: Mapping[str, Any], names: Mapping[str, str], colors: Mapping[str, str]
) -> Iterator[Chart]:
    """Accuracy by what a row costs, in dollars where all know them, else in tokens."""
    shown = {m: of for m, of in models.items() if of["accuracy"]["share"] is not None}
    if len(shown) < 2:
        return
    if all(of["cost_usd"] is not None and not of["cost_missing"] for of in shown.values()):
        title, unit = "Cost against accuracy", "dollars per 1,000 answers"
        costs = {m: 1000 * of["cost_usd"] / of["rows"] for m, of in shown.items()}
    elif all(None not in _used(of) for of in shown.values()):
        title, unit = "Tokens against accuracy", "tokens per answer"
        costs = {m: sum(filter(None, _used(of))) / of["rows"] for m, of in shown.items()}
    else:
        return
    data = [
        {
            "type": "scatter",
            "mode": "markers+text",
            "name": names[m],
            "text": [names[m]],
            "textposition": "middle right",
            "x": [costs[m]],
            "y": [100 * of["accuracy"]["share"]],
            "error_y": _errors([of["accuracy"]]),
            "marker": {"size": 11, "color": colors[m]},
            "cliponaxis": False,
            "showlegend": False,
            "hovertemplate": "%{text}: %{y:.1f} % at %{x:.4~g}<extra></extra>",
        }
        for m, of in shown.items()
    ]
    layout = {
        "xaxis": {"title": {"text": unit}, "range": [0, 1.3 * max(costs.values()) or 1]},
        "yaxis": {"ticksuffix": " %"},
    }
    note = "How much is right, by what it takes: up and to the left is better."
    yield Chart("dear", title, note, {"data": data, "layout": layout})


def _used(of: Mapping[str, Any]) -> tuple[int | None, int | None]:
    return of["tokens"]["prompt_tokens"], of["tokens"]["completion_tokens"]


def _groups(
    by: str, models: Mapping[str, Any], names: Mapping[str, str], colors: Mapping[str, str]
) -> Chart:
    sizes: dict[str, int] = {}
    for of in models.values():
        for group, share in of["groups"].items():
            sizes[group] = sizes.get(group, 0) + share["of"]
    largest = sorted(sizes, key=lambda group: -sizes[group])[:_MOST_GROUPS]
    known = dict(zip(largest, _names(largest), strict=True))
    data = []
    for model, of in models.items():
        shares = {group: of["groups"][group] for group in largest if group in of["groups"]}
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": names[model],
                "y": [known[group] for group in shares],
                "x": [100 * share["share"] for share in shares.values()],
                "error_x": _errors(list(shares.values())),
                "marker": {"color": colors[model]},
                "hovertemplate": "%{y}: %{x:.1f} %<extra>%{fullData.name}</extra>",
            }
        )
    layout = {
        "barmode": "group",
        "xaxis": {"title": {"text": "right, %"}, "ticksuffix": " %", "range": [0, 100]},
        "yaxis": {"autorange": "reversed", "automargin": True, "type": "category"},
        "height": 130 + max(_ROW, 16 * len(models)) * len(largest),
    }
    left = len(sizes) - len(largest)
    note = f"The {len(largest)} largest groups; {left:,} more are not drawn." if left > 0 else ""
    title = f"Accuracy by {_name(by)}"
    return Chart("groups", title, note, {"data": data, "layout": layout}, wide=True)


def _confusions(models: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[Chart]:
    for at, (model, of) in enumerate(list(models.items())[:_MOST_CONFUSIONS]):
        told: Mapping[str, Mapping[str, int]] | None = of["confusion"]
        if not told:
            continue
        rows = list(told)
        columns = list(dict.fromkeys([*rows, *(said for row in told.values() for said in row)]))
        totals = [sum(told[row].values()) for row in rows]
        counts = [[told[row].get(column, 0) for column in columns] for row in rows]
        data = {
            "type": "heatmap",
            "x": _names(columns),
            "y": _names(rows),
            "z": [[n / total for n in row] for row, total in zip(counts, totals, strict=True)],
            "zmin": 0,
            "zmax": 1,
            "customdata": counts,
            "text": [[f"{n:,}" if n else "" for n in row] for row in counts],
            "texttemplate": "%{text}",
            "xgap": 1,
            "ygap": 1,
            "showscale": False,
            "colorscale": [[0, "var:low"], [1, "var:c1"]],
            "hovertemplate": "gold %{y}, said %{x}: %{customdata:,} (%{z:.1%})<extra></extra>",
        }
        layout = {
            "xaxis": {"title": {"text": "said"}, "type": "category", "automargin": True},
            "yaxis": {
                "title": {"text": "gold"}, "type": "category", "autorange": "reversed",
                "automargin": True,
            },
            "height": 170 + 30 * len(rows),
        }  # fmt: skip
        yield Chart(
            f"confusion-{at}",
            f"Confusion: {names[model]}",
            "Rows are gold, columns what was said; the colour is the part of each row.",
            {"data": [data], "layout": layout},
        )


def _labels(
    models: Mapping[str, Any], names: Mapping[str, str], colors: Mapping[str, str]
) -> Iterator[Chart]:
    totals: dict[str, int] = {}
    gold: dict[str, int] = {}
    for of in models.values():
        if of["answers"] is None:
            return
        for label, n in of["answers"].items():
            totals[label] = totals.get(label, 0) + n
        if of.get("confusion"):
            gold = {label: sum(row.values()) for label, row in of["confusion"].items()}
    rows = sum(totals.values())
    if not rows or len(totals) > rows / 2:
        return  # Free texts: nearly every answer is one of its own.
    for label in gold:
        totals.setdefault(label, 0)
    most = sorted(totals, key=lambda label: -totals[label])[:_MOST_LABELS]
    shown = _names(most)
    data = [
        {
            "type": "bar",
            "name": names[model],
            "x": shown,
            "y": [100 * of["answers"].get(label, 0) / max(1, of["rows"]) for label in most],
            "customdata": [of["answers"].get(label, 0) for label in most],
            "marker": {"color": colors[model]},
            "hovertemplate": "%{x}: %{customdata:,} (%{y:.1f} %)<extra>%{fullData.name}</extra>",
        }
        for model, of in models.items()
    ]
    if gold:
        whole = sum(gold.values())
        data.insert(
            0,
            {
                "type": "bar",
                "name": "gold",
                "x": shown,
                "y": [100 * gold.get(label, 0) / whole for label in most],
                "customdata": [gold.get(label, 0) for label in most],
                "marker": {"color": "var:gold"},
                "hovertemplate": "%{x}: %{customdata:,} (%{y:.1f} %)<extra>gold</extra>",
            },
        )
    layout = {
        "barmode": "group",
        "xaxis": {"type": "category", "automargin": True},
        "yaxis": {"ticksuffix": " %"},
    }
    left = len(totals) - len(most)
    note = "Share of all rows."
    if left:
        note += f" The {len(most)} most frequent; {left:,} more are not drawn."
    yield Chart("labels", "Labels", note, {"data": data, "layout": layout}, wide=True)


def _agreement(pairs: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> Iterator[Chart]:
    if not any(pair["both"] for pair in pairs):
        return
    shown = list(names.values())
    share: dict[tuple[str, str], float | None] = {(name, name): None for name in shown}
    words: dict[tuple[str, str], str] = {}
    for pair in pairs:
        one, other = (names[model] for model in pair["models"])
        for key in ((one, other), (other, one)):
            share[key] = pair["same"] / pair["both"] if pair["both"] else None
            kappa = f"<br>κ {pair['kappa']:.2f}" if pair["kappa"] is not None else ""
            words[key] = f"{100 * (share[key] or 0):.1f} %{kappa}" if pair["both"] else ""
    data = {
        "type": "heatmap",
        "x": shown,
        "y": shown,
        "z": [[share.get((one, other)) for other in shown] for one in shown],
        "text": [[words.get((one, other), "") for other in shown] for one in shown],
        "texttemplate": "%{text}",
        "zmin": 0,
        "zmax": 1,
        "xgap": 2,
        "ygap": 2,
        "showscale": False,
        "hoverongaps": False,
        "colorscale": [[0, "var:low"], [1, "var:c1"]],
        "hovertemplate": "%{y}, %{x}: %{text}<extra></extra>",
    }
    layout = {
        "xaxis": {"type": "category", "automargin": True},
        "yaxis": {"type": "category", "autorange": "reversed", "automargin": True},
        "height": 150 + 60 * len(shown),
    }
    note = "How often two models give the same answer, and Cohen's κ."
    yield Chart("agreement", "Agreement", note, {"data": [data], "layout": layout})


def _outcomes(models: Mapping[str, Any], names: Mapping[str, str]) -> Chart:
    found = {status for of in models.values() for status in of["outcomes"]}
    known = [str(outcome) for outcome in Outcome]
    order = [s for s in known if s in found] + sorted(found - set(known))
    paid = {str(outcome) for outcome in Outcome if outcome.answered}
    others = [status for status in order if status != Outcome.OK]
    color = {status: f"var:c{at % _COLORS + 1}" for at, status in enumerate(others, 1)}
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": _name(status),
            "y": [names[model] for model in models],
            "x": [100 * of["outcomes"].get(status, 0) / of["rows"] for of in models.values()],
            "customdata": [of["outcomes"].get(status, 0) for of in models.values()],
            "marker": {
                "color": "var:ok" if status == Outcome.OK else color[status],
                "pattern": {"shape": "" if status in paid else "/"},
            },
            "hovertemplate": "%{fullData.name}: %{customdata:,} (%{x:.2f} %)<extra>%{y}</extra>",
        }
        for status in order
    ]
    layout = {
        "barmode": "stack",
        "xaxis": {"ticksuffix": " %", "range": [0, 100]},
        "yaxis": {"autorange": "reversed", "automargin": True, "type": "category"},
        "height": 140 + _ROW * len(models),
    }
    note = "Hatched: failed, with no answer."
    return Chart("outcomes", "Outcomes", note, {"data": data, "layout": layout})


def _latencies(
    figures: Figures, names: Mapping[str, str], colors: Mapping[str, str]
) -> Iterator[Chart]:
    data = []
    for model, of in figures.models.items():
        bins: dict[int, int] = {}
        for lowest, width, count in of.latencies.buckets():
            at = ceil(_BINS_A_DECADE * log10(max(1.0, lowest + width / 2)))
            bins[at] = bins.get(at, 0) + count
        if not bins:
            continue
        whole = range(min(bins) - 1, max(bins) + 2)
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": names[model],
                "line": {"shape": "spline", "width": 2, "color": colors[model]},
                "x": [10 ** ((at - 0.5) / _BINS_A_DECADE) / 1000 for at in whole],
                "y": [100 * bins.get(at, 0) / of.latencies.count for at in whole],
                "hovertemplate": "%{x:.2~f} s: %{y:.1f} %<extra>%{fullData.name}</extra>",
            }
        )
    if data:
        layout = {
            "xaxis": {"type": "log", "title": {"text": "seconds, of the last attempt"}},
            "yaxis": {"ticksuffix": " %", "rangemode": "tozero"},
        }
        yield Chart("latency", "Latency", "Share of answers.", {"data": data, "layout": layout})


def _tokens(models: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[Chart]:
    kinds = ("prompt", "cached", "written to cache", "answer", "reasoning")
    parts: dict[str, list[int]] = {kind: [] for kind in kinds}
    for of in models.values():
        tokens = {name: n or 0 for name, n in of["tokens"].items()}
        cached, written = tokens["cached_tokens"], tokens["cache_write_tokens"]
        parts["prompt"].append(tokens["prompt_tokens"] - cached - written)
        parts["cached"].append(cached)
        parts["written to cache"].append(written)
        parts["answer"].append(tokens["completion_tokens"] - tokens["reasoning_tokens"])
        parts["reasoning"].append(tokens["reasoning_tokens"])
    if not any(map(any, parts.values())):
        return
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": part,
            "y": [names[model] for model in models],
            "x": counts,
            "marker": {"color": f"var:c{at}"},
            "hovertemplate": "%{fullData.name}: %{x:,}<extra>%{y}</extra>",
        }
        for at, (part, counts) in enumerate(parts.items(), 1)
        if any(counts)
    ]
    layout = {
        "barmode": "stack",
        "xaxis": {"title": {"text": "tokens"}},
        "yaxis": {"autorange": "reversed", "automargin": True, "type": "category"},
        "height": 140 + _ROW * len(models),
    }
    missing = sum(of["tokens_missing"]["prompt_tokens"] for of in models.values())
    note = f"{missing:,} rows did not report any." if missing else ""
    yield Chart("tokens", "Tokens", note, {"data": data, "layout": layout})


def _costs(models: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[Chart]:
    known = {model: of for model, of in models.items() if of["cost_usd"] is not None}
    if not known:
        return
    data = {
        "type": "bar",
        "orientation": "h",
        "y": [names[model] for model in known],
        "x": [of["cost_usd"] for of in known.values()],
        "marker": {"color": "var:c1"},
        "hovertemplate": "%{y}: $%{x:,.4f}<extra></extra>",
    }
    layout = {
        "xaxis": {"tickprefix": "$"},
        "yaxis": {"autorange": "reversed", "automargin": True, "type": "category"},
        "height": 110 + _ROW * len(known),
    }
    missing = sum(of["cost_missing"] for of in models.values())
    note = f"The cost of {missing:,} rows is not known." if missing else ""
    yield Chart("cost", "Cost", note, {"data": [data], "layout": layout})


def _course(figures: Figures) -> Iterator[Chart]:
    moments = figures.course.moments()
    if not moments:
        return
    times = [_time(moment.at) for moment in moments]
    line = {"type": "scatter", "mode": "lines", "x": times, "showlegend": False}
    data = [
        {
            **line,
            "y": [round(moment.per_second, 3) for moment in moments],
            "line": {"color": "var:c1", "width": 1.5},
            "hovertemplate": "%{x}: %{y:.1f} answers/s<extra></extra>",
        },
        {
            **line,
            "y": [round(moment.in_flight, 2) for moment in moments],
            "yaxis": "y2",
            "line": {"color": "var:c2", "width": 1.5},
            "hovertemplate": "%{x}: %{y:.1f} in flight<extra></extra>",
        },
    ]
    pauses = figures.course.pauses()
    layout = {
        "xaxis": {
            "type": "date",
            "anchor": "y2",
            "rangebreaks": [{"bounds": [_time(a), _time(b)]} for a, b in pauses],
        },
        "yaxis": {"domain": [0.56, 1], "title": {"text": "answers/s"}, "rangemode": "tozero"},
        "yaxis2": {"domain": [0, 0.44], "title": {"text": "in flight"}, "rangemode": "tozero"},
        "height": 400,
    }
    width = figures.course.width / 1000
    note = f"Means of {width:,.0f} s, times in UTC; the last attempt of each row."
    if pauses:
        note += f" {len(pauses)} pauses are left out."
    yield Chart("course", "Over time", note, {"data": data, "layout": layout}, wide=True)


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def _names(texts: Iterable[str]) -> list[str]:
    """Texts from outside for a chart: short, and told apart also where only their ends differ."""
    names: list[str] = []
    taken: set[str] = set()
    for text in texts:
        name, n = _name(text), 2
        while name in taken:
            name, n = f"{_name(text)} ({n})", n + 1
        taken.add(name)
        names.append(name)
    return names


def _name(text: str) -> str:
    words = " ".join(text.split()) or "(empty)"
    return html.escape(words if len(words) <= _CHARS else f"{words[: _CHARS - 1]}…")
