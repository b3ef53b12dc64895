"""The table at the end fits, and tells what it leaves out."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from batcher.live.format import shorten
from batcher.live.summary import Summary
from batcher.live.table import table
from batcher.records import Outcome, Result

MODELS = ("gpt-4o-mini", "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", "claude-sonnet-4-20250514")


def a_summary(models=MODELS, rows=300):
    times = iter([0.0, 60.0])
    summary = Summary(lambda: next(times), models)
    for model in models:
        for row in range(rows):
            status = (Outcome.OK, Outcome.OK, Outcome.TRUNCATED, Outcome.RATE_LIMITED)[row % 4]
            summary.add(
                Result(
                    row=row, model=model, sample=0, key="k", status=status, custom_id="",
                    prompt_tokens=123_456, completion_tokens=78_901, cached_tokens=1_234,
                    reasoning_tokens=45_678, cost_usd=12.345, latency_ms=row * 1000, attempts=3,
                )
            )  # fmt: skip
        summary.add_earlier(model, Outcome.OK, 1_000_000)
    summary.finish("done")
    return summary


def rendered(summary, width):
    console = Console(width=width, file=io.StringIO())
    console.print(table(summary, width))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100, 140, 200])
def test_no_line_is_longer_than_the_terminal(width):
    """A line that the terminal breaks is a table nobody can read."""
    lines = rendered(a_summary(), width).splitlines()
    assert max(map(len, lines)) <= width
    assert sum(line.startswith(("gpt", "deep", "claude")) for line in lines) == 6


def test_a_model_is_one_line_with_whole_numbers():
    """At 80 columns the figures that decide are all there (latencies are 0 to 298 s)."""
    lines = rendered(a_summary(), 80).splitlines()
    assert lines[2].split() == [
        "gpt-4o-mini", "150", "37M", "23.7M", "15", "150/283/298", "0", "$3,704",
    ]  # fmt: skip


@pytest.mark.parametrize("width", [60, 80, 140])
def test_what_has_no_column_stands_below(width):
    """No figure is lost to a narrow terminal, and no number parted from its word."""
    text = rendered(a_summary(), width)
    for fact in ("75 truncated", "75 rate_limited", "1,000,000 ok"):
        assert text.count(fact) == 3
    for figure in ("370k", "13.7M", "600"):
        assert text.count(figure) == 3


def test_what_is_not_known_is_a_dash_and_what_is_known_in_part_says_so():
    """Usage that was not reported is neither 0 nor left out of a sum in silence."""
    summary = Summary(lambda: 0.0)
    for tokens, cost in ((100, 0.5), (None, None)):
        summary.add(
            Result(
                row=0, model="m", sample=0, key="k", status=Outcome.OK, custom_id="",
                prompt_tokens=tokens, cost_usd=cost,
            )
        )  # fmt: skip
    lines = rendered(summary, 120).splitlines()
    assert lines[2].split() == ["m", "2", "≥100", *"—————", "0", "0", "≥$0.5000"]
    assert lines[3].strip() == "m: usage missing: 2 · cost missing: 1"


def test_markup_in_a_model_id_is_shown_as_it_is():
    """A name cannot colour, hide or forge a line of the table."""
    text = rendered(a_summary(["[red]m[/red]", "[/]", "x\x1b[2J\ny"], rows=4), 80)
    assert text.count("[red]m[/red]") == 2
    assert text.count("[/]") == 2
    assert "\x1b" not in text
    assert text.count("x�[2J�y") == 2


def test_a_run_without_rows_has_a_table_too():
    """An empty input is no reason to fail at the end."""
    assert "model" in rendered(Summary(lambda: 0.0), 80)


@given(st.text(), st.integers(8, 40))
def test_a_name_from_outside_is_printable_and_fits(text, width):
    """Wide letters and control characters come from outside as well."""
    short = shorten(text, width)
    assert short.isprintable()
    assert cell_len(short) <= width


def test_the_limit_of_all_models_together_has_a_line():
    """It belongs to no model's line."""
    summary = a_summary()
    assert "common limit" not in rendered(summary, 80)
    summary.total_limit_used = 0.984
    assert "all models: 98% of their common limit" in rendered(summary, 80)
