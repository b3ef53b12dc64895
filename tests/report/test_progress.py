"""The live view shows how things stand, and neither breaks the run nor the terminal."""

import asyncio
import io
from decimal import Decimal

import pytest
from rich.console import Console

from batcher.live.progress import ModelSnapshot, Progress, Snapshot, Stderr, line, view
from batcher.records import Outcome

MODEL = ModelSnapshot(
    model="gpt-4o-mini", done=1_234, total=10_000, ok=1_230,
    not_ok={Outcome.TRUNCATED: 1, Outcome.TIMEOUT: 3}, in_flight=64, waiting=12, waiting_for="429",
    tokens_per_s=12_345.0, requests_per_s=41.23, cost=Decimal("1.234"), cost_in_all=Decimal("10.1"), eta_s=200.0,
    longest_in_flight_s=34.0, longest_row="tickets.jsonl:17",
)  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self):
        return True


class GoneTerminal(Terminal):
    def write(self, text):
        raise OSError(5, "Input/output error")


def shows(console, looks=2, snapshot=lambda: Snapshot("running", (MODEL,)), **options):
    """What was slept, when the caller cancels after so many looks."""
    slept = []

    async def sleep(seconds):
        slept.append(seconds)
        if len(slept) > looks:
            raise asyncio.CancelledError

    async def main():
        await Progress(snapshot, console=console, sleep=sleep, **options).run()

    try:
        asyncio.run(main())
    except asyncio.CancelledError:
        slept.append("cancelled")
    return slept


def drawn(snapshot, width):
    console = Console(width=width, file=io.StringIO())
    console.print(view(snapshot, width))
    return console.file.getvalue()


def test_a_pipe_gets_one_plain_line_now_and_then():
    """A log of a night has a line every interval, unbroken, from the first interval on."""
    console = Console(file=io.StringIO(), width=40)
    assert shows(console) == [30.0, 30.0, 30.0, "cancelled"]
    assert console.file.getvalue() == 2 * (
        "running | gpt-4o-mini: 1,234/10,000 done, 3 timeout, 1 truncated, 41.2 requests/s, "
        "12.3k tokens/s, 64 in flight, 12 waiting for 429, $1.23, about $10.10 in all, "
        "3m20s left | "
        "longest in flight 34s: tickets.jsonl:17 (gpt-4o-mini)\n"
    )
    assert shows(Console(file=io.StringIO()), interval=5.0)[0] == 5.0


def test_the_plain_line_leaves_out_what_is_not_known():
    """Nothing is guessed: no cost, no total, no time left."""
    assert line(Snapshot("reading")) == "reading"
    assert line(Snapshot("running", (ModelSnapshot(model="m", done=5),))) == (
        "running | m: 5 done, 0 requests/s, 0 in flight"
    )


def test_quiet_shows_nothing():
    """And does not even look."""
    for file in (io.StringIO(), Terminal()):
        assert shows(Console(file=file), snapshot=pytest.fail, quiet=True) == []
        assert file.getvalue() == ""


def test_a_terminal_is_given_back_as_it_was(monkeypatch):
    """The view is drawn at most 4 times a second, and then the cursor is there and the view not."""
    monkeypatch.setenv("TERM", "xterm")
    console = Console(file=Terminal(), width=80, force_terminal=True, force_interactive=True)
    slept = shows(console)
    assert min(slept[:-1]) >= 0.25
    text = console.file.getvalue()
    assert "gpt-4o-mini" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert text.rindex("\x1b[2K") > text.rindex("gpt-4o-mini")


def test_a_pipe_that_is_to_be_coloured_is_no_terminal():
    """FORCE_COLOR in a CI job must not fill its log with cursor movements."""
    console = Console(file=io.StringIO(), force_terminal=True, force_interactive=True)
    assert shows(console)[0] == 30.0


def test_a_terminal_that_is_gone_ends_the_view_and_not_the_run(monkeypatch):
    """A closed window must not cost a night's work."""
    monkeypatch.setenv("TERM", "xterm")
    console = Console(file=GoneTerminal(), force_terminal=True, force_interactive=True)
    assert "cancelled" not in shows(console)
    broken = Stderr()
    broken.on_broken_pipe()
    assert broken.quiet


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_the_view_fits_the_terminal(width):
    """A line too long would be two, and the picture would crawl up the screen."""
    names = ("gpt-4o-mini", "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", "claude-sonnet-4-20250514")
    models = tuple(
        ModelSnapshot(
            model=name, done=1_234_567, total=20_000_000, not_ok=dict.fromkeys(Outcome, 12_345),
            in_flight=1_000, waiting=12_345, waiting_for="first answer", tokens_per_s=123_456.0,
            requests_per_s=1_234.0, cost=Decimal("12345.67"), eta_s=123_456.0,
            longest_in_flight_s=1_234.0, longest_row="x" * 300,
        )
        for name in names
    )  # fmt: skip
    lines = drawn(Snapshot("writing output", models), width).splitlines()
    assert len(lines) == 6
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("width", range(30, 130))
def test_a_heading_is_whole_or_not_there(width):
    """Short names leave room for columns, but not for half a one."""
    headings = drawn(Snapshot("running", (ModelSnapshot(model="m"),)), width).splitlines()[0]
    known = {"model", "done", "%", "not", "ok", "by", "kind", "req/s", "tok/s", "flying"}
    assert set(headings.split()) <= known | {"waiting", "cost", "in", "all", "left"}


def test_the_least_important_figures_go_first():
    """On a narrow terminal one still sees how far, how well, how fast, why not, how much, how long."""
    wide, narrow = (drawn(Snapshot("running", (MODEL,)), width) for width in (140, 72))
    for figure in ("1.2k/10k", "41.2", "12 for 429", "$1.23", "3m20s"):
        assert figure in wide
        assert figure in narrow
    for figure in ("3 timeout, 1 truncated", "12.3k", "$10.10"):
        assert figure in wide
        assert figure not in narrow


def test_markup_and_escapes_from_outside_do_not_act():
    """Model IDs and row names are text of others."""
    model = ModelSnapshot(
        model="[bold]m[/]", longest_row="[link=x]\x1b]0;owned\x07", longest_in_flight_s=1.0
    )
    for text in (drawn(Snapshot("running", (model,)), 120), line(Snapshot("running", (model,)))):
        assert "[bold]m[/]" in text
        assert "[link=x]�]0;owned�" in text
        assert "\x1b" not in text


def test_before_the_first_model_there_is_the_state():
    """While a large file is checked, something shows that the program lives."""
    assert drawn(Snapshot("checking"), 80) == "checking\n"
