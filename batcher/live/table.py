"""The totals as a table, and how figures look to a person. Touches: nothing.

A table must fit its terminal without breaking a number, so every column says how much it matters:
where there is no room the least important ones are left out, and the table at the end says in a
line below it what they held.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import NamedTuple

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from batcher.live.format import UNKNOWN, compact, counted, duration, money, shorten
from batcher.live.summary import TOKENS, ModelSummary, Summary
from batcher.live.terminal import safe
from batcher.money.bill import Bill
from batcher.records import Outcome

__all__ = ["Column", "fit", "grid", "others", "table"]

_GAP = 2
_NAME_WIDTH = 20  # a model's name is shortened to this before a column is left out


class Column(NamedTuple):
    """A figure of each model; the lower its `weight`, the sooner it is left out.

    `least` is the width of its widest likely figure, so that a live view does not jump.
    """

    head: str
    cells: list[str]
    weight: int
    least: int = 0

    @property
    def width(self) -> int:
        """Terminal columns it takes, the gap before it included."""
        return _GAP + max(self.least, *map(cell_len, (self.head, *self.cells)))


def table(summary: Summary, width: int = 80) -> Table:
    """A line per model for the end of a run, at most `width` wide; the caption tells the rest."""
    totals, seconds = list(summary.models.values()), summary.seconds
    tokens = [[_tokens(of, at) for of in totals] for at in range(len(TOKENS))]
    rates = [compact(of.requests / seconds) if seconds > 0 else UNKNOWN for of in totals]
    asked = [
        Column("ok", [f"{of.outcomes.get(Outcome.OK, 0):,}" for of in totals], 9),
        Column("in", tokens[0], 7),
        Column("out", tokens[1], 7),
        Column("cached", tokens[3], 2),
        Column("reasoning", tokens[4], 1),
        Column("req/s", rates, 4),
        Column("p50/p95/p99 s", [_spread(of) for of in totals], 6),
        Column("retries", [f"{of.retries:,}" for of in totals], 3),
        Column("429s", [f"{of.answered_429:,}" for of in totals], 5),
        Column("cost", [_cost(of) for of in totals], 8),
    ]
    if any(of.tokens[5] for of in totals):
        asked.insert(4, Column("cache write", tokens[5], 2))
    if any(of.limit_used is not None for of in totals):
        asked.insert(-1, Column("limit", [_limit(of) for of in totals], 3))
    kept = fit(list(summary.models), asked, width)
    drawn = grid(list(summary.models), kept, width)
    left_out = [column for column in asked if column not in kept]
    notes: list[str] = []
    for at, (model, of) in enumerate(summary.models.items()):
        facts = [
            others(of.outcomes),
            *(f"{c.head} {c.cells[at]}" for c in left_out if c.cells[at] not in ("0", UNKNOWN)),
            f"usage missing: {of.usage_missing:,}" if of.usage_missing else "",
            f"cost missing: {of.cost_missing:,}"
            if of.cost is not None and of.cost_missing
            else "",
            *_unpriced(model, of.bill),
            _thrown(of),
            _unusable(of),
            _saved(of),
            _projected(of),
            *(
                f"{n:,} ok with the finish_reason {shorten(reason, 30)!r}, which is not known here"
                for reason, n in of.unknown.items()
            ),
            _given_up(of),
            f"{of.loose:,} picked out of other text" if of.loose else "",
            f"{of.copied:,} copied from equal requests" if of.copied else "",
            _waits(of),
            f"earlier runs: {_counts(of.earlier)}" if any(of.earlier.values()) else "",
        ]
        if told := " · ".join(filter(None, facts)):
            # A number stays with its word: textwrap breaks no line at a no-break space.
            told = re.sub(r"(?<=\d) (?=[a-z])", "\N{NO-BREAK SPACE}", told)
            told = f"{shorten(model, width // 2)}: {told}"
            notes += textwrap.wrap(told, width, subsequent_indent="  ", break_on_hyphens=False)
        if of.examples:
            outcome = max(of.examples, key=lambda outcome: of.outcomes[outcome])
            told = f"  {outcome}, such as: {' '.join(of.examples[outcome].split())}"
            notes += textwrap.wrap(told, width, subsequent_indent="    ", max_lines=3)
    if summary.total_limit_used is not None:
        notes.append(f"all models: {100 * summary.total_limit_used:.0f}% of their common limit")
    priced = {source for of in totals for source in _sources(of)}
    if priced:
        notes += textwrap.wrap(f"prices: {', '.join(sorted(priced))}", width, max_lines=2)
    for model, of in summary.models.items():
        if of.bill.differs and of.bill.price is not None:
            told, priced_at = money(of.bill.reported), money(of.bill.priced)
            said = (
                f"{shorten(model, width // 2)}: the gateway says its answers cost {told}, which counts; by "
                f"{of.bill.price.source} it would be {priced_at}"
            )
            notes += textwrap.wrap(said, width, subsequent_indent="  ")
    if summary.budget:
        notes += textwrap.wrap(summary.budget, width)
    if notes:
        drawn.caption = Text(safe("\n".join(notes)).replace("\N{NO-BREAK SPACE}", " "))
        # A caption is wrapped to the width of its table, which may be narrower than the terminal.
        drawn.min_width = min(width, max(map(cell_len, notes)))
    return drawn


def fit(models: list[str], columns: list[Column], width: int) -> list[Column]:
    """The columns that fit beside the models' names: by weight, and one too wide is passed over."""
    room = width - min(_NAME_WIDTH, max(cell_len(name) for name in ("model", *models)))
    kept: list[Column] = []
    for column in sorted(columns, key=lambda column: -column.weight):
        if column.width <= room:
            kept.append(column)
            room -= column.width
    return [column for column in columns if column in kept]


def grid(models: list[str], columns: list[Column], width: int) -> Table:
    """A line per model; names that are too long lose their middle, numbers are never broken."""
    room = max(8, width - sum(column.width for column in columns))
    drawn = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0),
        header_style="bold", caption_justify="left", caption_style="",
    )  # fmt: skip
    drawn.add_column("model", no_wrap=True)
    for column in columns:
        drawn.add_column(column.head, justify="right", no_wrap=True, min_width=column.least)
    for at, model in enumerate(models):
        drawn.add_row(Text(shorten(model, room)), *(Text(column.cells[at]) for column in columns))
    return drawn


def others(outcomes: Mapping[Outcome, int]) -> str:
    """The outcomes that are not ok, most frequent first: "12 timeout, 3 truncated"."""
    return _counts({outcome: n for outcome, n in outcomes.items() if outcome is not Outcome.OK})


def _counts(outcomes: Mapping[Outcome, int]) -> str:
    most_first = sorted(outcomes.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{n:,} {outcome}" for outcome, n in most_first if n)


def _tokens(of: ModelSummary, at: int) -> str:
    total = of.tokens[at]
    if total is None:
        return UNKNOWN
    return f"≥{compact(total)}" if of.missing[at] else compact(total)


def _cost(of: ModelSummary) -> str:
    return f"≥{money(of.cost)}" if of.cost is not None and of.cost_missing else money(of.cost)


def _limit(of: ModelSummary) -> str:
    return UNKNOWN if of.limit_used is None else f"{100 * of.limit_used:.0f}%"


def _sources(of: ModelSummary) -> Iterator[str]:
    """Where what is known of the cost comes from."""
    bill = of.bill
    if bill.reported is not None:
        yield "usage.cost in the answers"
    if bill.price is not None and of.cost is not None and of.cost != bill.reported:
        yield bill.price.source


def _unpriced(model: str, bill: Bill) -> Iterator[str]:
    """Which price is missing of answers whose tokens are known."""
    for name, n in bill.unpriced.items():
        answers = counted(n, "answer")
        if name.startswith("@"):
            tier = shorten(name[1:], 30)
            yield f"{answers} served at the tier {tier}, whose price is unknown: add {shorten(model, 30)}@{tier} to --prices"
        else:
            yield f"{answers} wrote to the cache, and its price is unknown: add {name} to --prices"


def _thrown(of: ModelSummary) -> str:
    """What was paid for and not kept: the model was asked again, or failed and told its usage."""
    if not of.thrown_away:
        return ""
    cost = f", {money(of.thrown_cost)}" if of.thrown_cost else ""
    answers = counted(of.thrown_away, "answer")
    return f"thrown away: {answers} of {compact(of.thrown_tokens)} tokens{cost}"


def _unusable(of: ModelSummary) -> str:
    return f"{money(of.unusable_cost)} for answers that are not ok" if of.unusable_cost else ""


def _projected(of: ModelSummary) -> str:
    if (projected := of.projected) is None:
        return ""
    about, low, high = (money(Decimal(dollars)) for dollars in projected[1:4])
    but = "" if projected.drawn else ", if the first rows are like the others"
    but += ", less where more rows repeat" if projected.repeats else ""
    return f"all {projected.rows:,} rows: about {about} ({low} to {high}){but}"


def _saved(of: ModelSummary) -> str:
    return f"{money(of.saved)} saved by the provider's cache" if of.saved else ""


def _given_up(of: ModelSummary) -> str:
    """That a model is asked without a schema, and what it said of that."""
    if not of.given_up:
        return ""
    why = shorten(" ".join(of.given_up.split()), 80)
    return f"asked without a schema in response_format, which it refuses ({why})"


def _waits(of: ModelSummary) -> str:
    """How long the next request waited, by cause, where it was more than a second."""
    longest_first = sorted(of.waited.items(), key=lambda pair: -pair[1])
    told = [f"{duration(s)} for {cause}" for cause, s in longest_first if s >= 1.0]
    return f"waited {', '.join(told)}" if told else ""


def _spread(of: ModelSummary) -> str:
    figures = [of.latencies.percentile(percent) for percent in (50, 95, 99)]
    seconds = [ms / 1000 for ms in figures if ms is not None]
    return "/".join(f"{s:.{2 if s < 10 else 1 if s < 100 else 0}f}" for s in seconds) or UNKNOWN
