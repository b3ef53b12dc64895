"""The live view on stderr. Touches: the terminal.

It pulls: the engine passes one function that returns a snapshot, and knows nothing of terminals. On a
terminal the view is redrawn four times a second and vanishes at the end; a pipe gets a plain line every
30 seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from batcher.live.format import UNKNOWN, compact, duration, money, shorten
from batcher.live.table import Column, fit, grid, others
from batcher.records import Outcome

__all__ = ["ModelSnapshot", "Phase", "Progress", "Snapshot", "Stderr", "line", "view"]

Phase = Literal["reading", "checking", "running", "stopping", "writing output"]

_REFRESH = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSnapshot:
    """The state of one model; None means "not known".

    Attributes:
        done: Rows that have ended, of `total`.
        not_ok: Rows that ended with another outcome than `ok`, by outcome.
        waiting: Rows that wait for `waiting_for`: "requests", "tokens", "429", "retry", "first
            answer", or "".
        to_send: Rows still to be sent, without those that wait for the answer to an equal row.
        cost: Dollars so far.
        cost_in_all: Projected dollars at the end, if each remaining row costs as much as the rows so far.
        eta_s: Seconds left.
        longest_in_flight_s: Age of the oldest request in flight, the one of `longest_row`.
    """

    model: str
    done: int = 0
    total: int | None = None
    ok: int = 0
    not_ok: Mapping[Outcome, int] = field(default_factory=dict)
    in_flight: int = 0
    waiting: int = 0
    waiting_for: str = ""
    tokens_per_s: float | None = None
    requests_per_s: float = 0.0
    to_send: int | None = None
    cost: Decimal | None = None
    cost_in_all: Decimal | None = None
    eta_s: float | None = None
    longest_in_flight_s: float | None = None
    longest_row: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a run."""

    state: Phase
    models: tuple[ModelSnapshot, ...] = ()


class Stderr(Console):
    """Standard error as a console that writes nothing more once its reader is gone.

    Rich itself would end the program then, and point standard output at /dev/null.
    """

    def __init__(self) -> None:
        super().__init__(stderr=True)

    def on_broken_pipe(self) -> None:
        """Writes nothing from now on."""
        self.quiet = True

    def _write_buffer(self) -> None:
        try:
            super()._write_buffer()
        except OSError:  # The terminal was closed (EIO); the run goes on or ends in order.
            self.quiet = True


class Progress:
    """Shows a run while it goes on.

    Args:
        snapshot: Returns the state of the run; called for each redraw.
        quiet: Show nothing at all.
        interval: Seconds between two plain lines, and before the first, where there is no
            terminal.
        console: Where to show it; `Stderr()` by default.
        sleep: Waits between two snapshots.
    """

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        *,
        quiet: bool = False,
        interval: float = 30.0,
        console: Console | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._snapshot = snapshot
        self._quiet = quiet
        self._interval = interval
        self._console = console or Stderr()
        self._sleep = sleep

    async def run(self) -> None:
        """Shows the run until cancelled, and leaves the terminal as it was.

        Ends by itself when quiet, or when the terminal is gone: a run does not fail because nobody watches it.
        """
        if self._quiet:
            return
        try:
            # FORCE_COLOR makes Rich take a pipe for a terminal; a log must not get a redrawn view.
            if self._console.is_interactive and self._console.file.isatty():
                await self._live()
            else:
                await self._plain()
        except OSError:
            return

    async def _live(self) -> None:
        # Standard output is not redirected: rows (`-o -`) may be on their way there.
        with Live(
            console=self._console, auto_refresh=False, transient=True, redirect_stdout=False
        ) as live:
            while True:
                live.update(view(self._snapshot(), self._console.width), refresh=True)
                await self._sleep(_REFRESH)

    async def _plain(self) -> None:
        while True:
            await self._sleep(self._interval)
            self._console.out(line(self._snapshot()), highlight=False)


def view(now: Snapshot, width: int) -> RenderableType:
    """The live view for a terminal: a line per model, then the phase of the run."""
    names, models = [m.model for m in now.models], now.models
    columns = [
        Column("done", [_done(m, compact) for m in models], 9),
        Column("%", [_percent(m) for m in models], 3, least=3),
        Column("not ok", [compact(sum(m.not_ok.values())) for m in models], 8),
        Column("by kind", [others(m.not_ok) for m in models], 0),
        Column("req/s", [compact(m.requests_per_s) for m in models], 6),
        Column("tok/s", [_known(m.tokens_per_s) for m in models], 1),
        Column("flying", [compact(m.in_flight) for m in models], 2),
        Column("waiting", [_waiting(m) for m in models], 4, least=18),
        Column("cost", [money(m.cost) for m in models], 5, least=6),
        Column("in all", [money(m.cost_in_all) for m in models], 3, least=6),
        Column("left", [_left(m) for m in models], 7, least=5),
    ]
    state = Text(now.state, style="bold")
    if longest := _longest(now):
        state.append(shorten(f" · {longest}", max(8, width - len(now.state))), style="dim")
    if not models:
        return state
    return Group(grid(names, fit(names, columns, width), width), state)


def line(now: Snapshot) -> str:
    """A snapshot as one plain line, for a log."""
    parts: list[str] = [now.state]
    for m in now.models:
        facts = [
            f"{_done(m, '{:,}'.format)} done",
            others(m.not_ok),
            f"{compact(m.requests_per_s)} requests/s",
            f"{compact(m.tokens_per_s)} tokens/s" if m.tokens_per_s is not None else "",
            f"{m.in_flight:,} in flight",
            f"{m.waiting:,} waiting for {m.waiting_for or 'their turn'}" if m.waiting else "",
            money(m.cost) if m.cost is not None else "",
            f"about {money(m.cost_in_all)} in all" if m.cost_in_all is not None else "",
            f"{_left(m)} left" if m.eta_s is not None else "",
        ]
        parts.append(f"{shorten(m.model, 60)}: {', '.join(filter(None, facts))}")
    return " | ".join(filter(None, [*parts, _longest(now)]))


def _longest(now: Snapshot) -> str:
    ages = [(m.longest_in_flight_s, m) for m in now.models if m.longest_in_flight_s is not None]
    if not ages:
        return ""
    age, m = max(ages, key=lambda pair: pair[0])
    return (
        f"longest in flight {duration(age)}: {shorten(m.longest_row, 60)} ({shorten(m.model, 60)})"
    )


def _done(m: ModelSnapshot, number: Callable[[int], str]) -> str:
    return number(m.done) if m.total is None else f"{number(m.done)}/{number(m.total)}"


def _percent(m: ModelSnapshot) -> str:
    # Rounded down: 100 % means every row.
    return f"{100 * m.done // m.total}" if m.total else ""


def _known(rate: float | None) -> str:
    return UNKNOWN if rate is None else compact(rate)


def _waiting(m: ModelSnapshot) -> str:
    if not m.waiting:
        return m.waiting_for
    return f"{compact(m.waiting)} for {m.waiting_for}" if m.waiting_for else compact(m.waiting)


def _left(m: ModelSnapshot) -> str:
    return UNKNOWN if m.eta_s is None else duration(m.eta_s)
