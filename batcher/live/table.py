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
    """A line per model for the end of a run, at most `width` wide; the caption holds what no column does."""
    models, columns = list(summary.models), _columns(summary)
    kept = fit(models, columns, width)
    drawn = grid(models, kept, width)
    notes = _notes(summary, [column for column in columns if column not in kept], width)
    if notes:
        drawn.caption = Text(safe("\n".join(notes)).replace("\N{NO-BREAK SPACE}", " "))
        # A caption is wrapped to the width of its table, which may be narrower than the terminal.
        drawn.min_width = min(width, max(map(cell_len, notes)))
    return drawn


def _columns(summary: Summary) -> list[Column]:
    totals, seconds = list(summary.models.values()), summary.seconds
    tokens = [[_tokens(stats, at) for stats in totals] for at in range(len(TOKENS))]
    rates = [compact(stats.requests / seconds) if seconds > 0 else UNKNOWN for stats in totals]
    columns = [
        Column("ok", [f"{stats.outcomes.get(Outcome.OK, 0):,}" for stats in totals], 9),
        Column("in", tokens[0], 7),
        Column("out", tokens[1], 7),
        Column("cached", tokens[3], 2),
        Column("reasoning", tokens[4], 1),
        Column("req/s", rates, 4),
        Column("p50/p95/p99 s", [_spread(stats) for stats in totals], 6),
        Column("retries", [f"{stats.retries:,}" for stats in totals], 3),
        Column("429s", [f"{stats.answered_429:,}" for stats in totals], 5),
        Column("cost", [_cost(stats) for stats in totals], 8),
    ]
    if any(stats.tokens[5] for stats in totals):
        columns.insert(4, Column("cache write", tokens[5], 2))
    if any(stats.limit_used is not None for stats in totals):
        columns.insert(-1, Column("limit", [_limit(stats) for stats in totals], 3))
    return columns


def _notes(summary: Summary, left_out: list[Column], width: int) -> list[str]:
    """The lines below the table: facts of each model, then of the run."""
    notes: list[str] = []
    for at, (model, stats) in enumerate(summary.models.items()):
        cells = ((column.head, column.cells[at]) for column in left_out)
        facts = [
            others(stats.outcomes),
            *(f"{head} {cell}" for head, cell in cells if cell not in ("0", UNKNOWN)),
            *_facts(model, stats),
        ]
        if note := " · ".join(filter(None, facts)):
            # A number stays with its word: textwrap breaks no line at a no-break space.
            note = re.sub(r"(?<=\d) (?=[a-z])", "\N{NO-BREAK SPACE}", note)
            note = f"{shorten(model, width // 2)}: {note}"
            notes += textwrap.wrap(note, width, subsequent_indent="  ", break_on_hyphens=False)
        if stats.examples:
            outcome = max(stats.examples, key=lambda outcome: stats.outcomes[outcome])
            note = f"  {outcome}, such as: {' '.join(stats.examples[outcome].split())}"
            notes += textwrap.wrap(note, width, subsequent_indent="    ", max_lines=3)
    if summary.total_limit_used is not None:
        notes.append(f"all models: {100 * summary.total_limit_used:.0f}% of their common limit")
    sources = {source for stats in summary.models.values() for source in _sources(stats)}
    if sources:
        notes += textwrap.wrap(f"prices: {', '.join(sorted(sources))}", width, max_lines=2)
    for model, stats in summary.models.items():
        if stats.bill.differs and stats.bill.price is not None:
            reported, priced = money(stats.bill.reported), money(stats.bill.priced)
            note = (
                f"{shorten(model, width // 2)}: the gateway says its answers cost {reported}, which counts; by "
                f"{stats.bill.price.source} it would be {priced}"
            )
            notes += textwrap.wrap(note, width, subsequent_indent="  ")
    if summary.budget:
        notes += textwrap.wrap(summary.budget, width)
    return notes


def _facts(model: str, stats: ModelSummary) -> Iterator[str]:
    """What no column holds, in the order of the caption; an empty text where there is nothing to say."""
    yield f"usage missing: {stats.usage_missing:,}" if stats.usage_missing else ""
    if stats.cost is not None and stats.cost_missing:
        yield f"cost missing: {stats.cost_missing:,}"
    yield from _unpriced(model, stats.bill)
    yield _thrown_away(stats)
    if stats.unusable_cost:
        yield f"{money(stats.unusable_cost)} for answers that are not ok"
    if stats.saved:
        yield f"{money(stats.saved)} saved by the provider's cache"
    yield _projected(stats)
    for reason, n in stats.unknown.items():
        yield f"{n:,} ok with the finish_reason {shorten(reason, 30)!r}, which is not known here"
    yield _given_up(stats)
    yield f"{stats.loose:,} picked out of other text" if stats.loose else ""
    yield f"{stats.copied:,} copied from equal requests" if stats.copied else ""
    yield _waits(stats)
    if any(stats.earlier.values()):
        yield f"earlier runs: {_counts(stats.earlier)}"


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


def _tokens(stats: ModelSummary, at: int) -> str:
    total = stats.tokens[at]
    if total is None:
        return UNKNOWN
    return f"≥{compact(total)}" if stats.missing[at] else compact(total)


def _cost(stats: ModelSummary) -> str:
    return (
        f"≥{money(stats.cost)}"
        if stats.cost is not None and stats.cost_missing
        else money(stats.cost)
    )


def _limit(stats: ModelSummary) -> str:
    return UNKNOWN if stats.limit_used is None else f"{100 * stats.limit_used:.0f}%"


def _sources(stats: ModelSummary) -> Iterator[str]:
    """Where the known cost comes from."""
    bill = stats.bill
    if bill.reported is not None:
        yield "usage.cost in the answers"
    if bill.price is not None and stats.cost is not None and stats.cost != bill.reported:
        yield bill.price.source


def _unpriced(model: str, bill: Bill) -> Iterator[str]:
    """The price that is missing for answers whose tokens are known."""
    for name, n in bill.unpriced.items():
        answers = counted(n, "answer")
        if name.startswith("@"):
            tier = shorten(name[1:], 30)
            yield f"{answers} served at the tier {tier}, whose price is unknown: add {shorten(model, 30)}@{tier} to --prices"
        else:
            yield f"{answers} wrote to the cache, and its price is unknown: add {name} to --prices"


def _thrown_away(stats: ModelSummary) -> str:
    """Answers that were paid for and not kept: repaired ones, and failures that reported their usage."""
    if not stats.thrown_away:
        return ""
    cost = f", {money(stats.thrown_cost)}" if stats.thrown_cost else ""
    answers = counted(stats.thrown_away, "answer")
    return f"thrown away: {answers} of {compact(stats.thrown_tokens)} tokens{cost}"


def _projected(stats: ModelSummary) -> str:
    if (projected := stats.projected) is None:
        return ""
    about, low, high = (money(Decimal(dollars)) for dollars in projected[1:4])
    but = "" if projected.drawn else ", if the first rows are like the others"
    but += ", less where more rows repeat" if projected.repeats else ""
    return f"all {projected.rows:,} rows: about {about} ({low} to {high}){but}"


def _given_up(stats: ModelSummary) -> str:
    """Whether the model is asked without a schema, and the error that is the reason."""
    if not stats.given_up:
        return ""
    why = shorten(" ".join(stats.given_up.split()), 80)
    return f"asked without a schema in response_format, which it refuses ({why})"


def _waits(stats: ModelSummary) -> str:
    """How long the next request waited, by cause, where it was more than a second."""
    longest_first = sorted(stats.waited.items(), key=lambda pair: -pair[1])
    waits = [f"{duration(s)} for {cause}" for cause, s in longest_first if s >= 1.0]
    return f"waited {', '.join(waits)}" if waits else ""


def _spread(stats: ModelSummary) -> str:
    figures = [stats.latencies.percentile(percent) for percent in (50, 95, 99)]
    seconds = [ms / 1000 for ms in figures if ms is not None]
    return "/".join(f"{s:.{2 if s < 10 else 1 if s < 100 else 0}f}" for s in seconds) or UNKNOWN
