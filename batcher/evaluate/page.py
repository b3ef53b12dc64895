"""The figures of a report as one HTML page that needs nothing else. Touches: files (its template).

Every text comes from outside and is escaped: the template by Jinja, what charts show in `charts`,
and the data of the charts so that no `</script>` stands in it. The page forbids itself the network.
The drawing library stands in it compressed, a third of its size, and is unpacked by the browser.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Container, Iterable, Mapping
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from batcher.evaluate.charts import charts
from batcher.evaluate.figures import Figures
from batcher.evaluate.scorers import Scorer, text
from batcher.evaluate.votes import Panel, answer_of, vote
from batcher.live import format
from batcher.live.format import UNKNOWN, compact, cut
from batcher.records import Outcome

__all__ = ["page"]

_MOST_CHARS = 2000
_MOST_FIELDS = 30
_MOST_ANSWERS = 24
_MOST_FAILURES = 60


def page(
    name: str,
    figures: Figures,
    told: Mapping[str, Any],
    examples: Mapping[str, Iterable[Panel]],
    scorer: Scorer,
    plotly: str,
    results: Container[str],
) -> str:
    """The page.

    Args:
        name: Of the output.
        figures: What is known of it.
        told: The same as plain values (`Figures.asdict`).
        examples: `disputed` and `wrong`: rows to be shown with their texts.
        scorer: How answers are read.
        plotly: The drawing library.
        results: Names of the columns that are not the input's.
    """
    drawn = list(charts(figures, told))
    specs = json.dumps({chart.name: chart.spec for chart in drawn}, ensure_ascii=False)
    packed = gzip.compress(plotly.encode(), 9, mtime=0)
    moments = figures.course.moments()
    template = _environment().from_string(
        files("batcher.evaluate").joinpath("page.html").read_text(encoding="utf-8")
    )
    return template.render(
        name=name,
        told=told,
        models=told["models"],
        gold=figures.gold,
        pairs=told["agreement"]["pairs"],
        samples=figures.samples,
        begun=_day(moments[0].at) if moments else None,
        ended=_day(moments[-1].at) if moments else None,
        statuses=[str(outcome) for outcome in Outcome],
        charts=drawn,
        failures=_failures(figures),
        examples={
            kind: [_example(panel, figures.gold, scorer, results) for panel in several]
            for kind, several in examples.items()
        },
        specs=Markup(specs.replace("<", "\\u003c").replace("\u2028", "\\u2028")),
        plotly=Markup(base64.b64encode(packed).decode()),
    )


def _environment() -> Environment:
    found = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    found.filters |= {
        "n": format.whole, "percent": format.percent, "human": _short, "seconds": format.seconds,
        "dollars": format.dollars, "decimal": format.decimal,
    }  # fmt: skip
    return found


def _short(value: float | None) -> str:
    return UNKNOWN if value is None else compact(value)


def _failures(figures: Figures) -> list[dict[str, Any]]:
    """Kinds of rows that are not ok, the most frequent first."""
    found: list[dict[str, Any]] = [
        {"model": model, "status": status, "type": kind, "count": count, "examples": examples}
        for model, of in figures.models.items()
        for (status, kind), (count, examples) in of.examples.items()
    ]
    return sorted(found, key=lambda one: -int(one["count"]))[:_MOST_FAILURES]


def _example(
    panel: Panel, gold: str | None, scorer: Scorer, results: Container[str]
) -> dict[str, Any]:
    """A row of the input with its answers, cut to what a page can hold."""
    rows = [row for _place, row in panel]
    first = rows[0]
    truth = first.get(gold) if gold is not None else None
    answers = [answer_of(row, scorer) for row in rows]
    fields = {name: _cut(value) for name, value in first.items() if name not in results}
    found = vote(answers)
    return {
        "row": first.get("row"),
        "custom_id": first.get("custom_id"),
        "gold": None if truth is None else _cut(truth),
        "disagreement": found.disagreement,
        "fields": {
            name: value for name, value in list(fields.items())[:_MOST_FIELDS] if value is not None
        },
        "answers": [
            {
                "model": row.get("model"),
                "sample": row.get("sample") or 0,
                "status": row.get("status"),
                "said": None if answer is None else _cut(answer.said, 200),
                "right": None
                if truth is None
                else answer is not None and scorer.right(answer.value, truth),
                "text": _cut(row.get("error") if answer is None else row.get("content")),
            }
            for row, answer in list(zip(rows, answers, strict=True))[:_MOST_ANSWERS]
        ],
        "more": max(0, len(rows) - _MOST_ANSWERS),
    }


def _cut(value: Any, most: int = _MOST_CHARS) -> str | None:
    return None if value is None else cut(text(value), most)


def _day(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")
