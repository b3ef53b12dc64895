"""`batcher report`: how good, how dear, how much alike. Touches: the terminal, files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from batcher.cli.outputs import labels_of, placed_rows, source, writable
from batcher.errors import JobError
from batcher.live.terminal import say
from batcher.read import object_store

if TYPE_CHECKING:
    from batcher.evaluate.figures import Figures
    from batcher.evaluate.votes import Panel

__all__ = ["NEEDED", "fetched", "report"]

NEEDED = frozenset(
    {
        "row", "custom_id", "model", "sample", "status", "content", "parsed", "prompt_tokens",
        "completion_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens", "cost_usd",
        "latency_ms", "attempts", "error_type", "error", "created_at",
    }
)  # fmt: skip
"""Columns of an output that figures are made of."""

_TEXTS = 40


def report(
    output: str,
    /,
    *,
    gold: str | None = None,
    scorer: str = "label",
    by: str | None = None,
    vote: str | None = None,
    disputed: str | None = None,
    json_: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Write a page about an output, OUTPUT.html: what was answered, how well, at what cost, when.

    Args:
        output: A finished output (batcher export makes one of a run that is not).
        gold: Column that holds what is right: accuracy, confusion, differences between models.
        scorer: How answers are read and when they are right: exact, label, number, contains,
            regex:PATTERN, json:FIELD or python:MODULE:FUNCTION. Default: label.
        by: Column whose values part the rows into groups, each with its accuracy.
        vote: File to write, .jsonl or .parquet: of each row what most of its answers say.
        disputed: File to write, likewise, of the 1,000 rows whose answers differ most.
        json_: Print the figures as one JSON object, and write no page.
    """
    from batcher.evaluate.figures import Figures
    from batcher.evaluate.scorers import scorer as scorer_of
    from batcher.evaluate.votes import VOTE, panels

    scorer_of(scorer)  # What is none is told before anything is read.
    source(output)
    read = scorer_of(scorer, labels_of(output))
    if by is not None and gold is None:
        raise JobError("--by needs --gold: groups are told by how much of each is right.")
    files = [
        (flag, writable(flag, name, (".jsonl", ".parquet"), output, VOTE))
        for flag, name in (("--vote", vote), ("--disputed", disputed))
        if name is not None
    ]
    if len({path.resolve() for _flag, path in files}) < len(files):
        raise JobError(f"--vote and --disputed are both {vote}: name two files.")
    script = "" if json_ else _plotly()
    columns = NEEDED | {name for name in (gold, by) if name is not None}
    figures = Figures(read, gold, by)
    known: set[str] = set()
    for panel in panels(placed_rows(output, columns), output):
        known.update(*(row for _place, row in panel))
        figures.add(panel)
    _check(output, figures, known, (("--gold", gold), ("--by", by)))

    def all_of() -> Iterator[Panel]:
        return panels(placed_rows(output), output)

    for flag, path in files:
        from batcher.cli.votes import write_votes

        if flag == "--vote":
            rows = write_votes(path, output, all_of, read)
        else:
            rows = write_votes(path, output, partial(fetched, output, figures.disputed), read)
        say(f"{rows:,} rows in {path}.", error=True)
    told = figures.asdict()
    if json_:
        say(json.dumps(told))
        return 0
    from rich.console import Console

    from batcher.evaluate.page import page
    from batcher.evaluate.scores import agreement, scores
    from batcher.write.atomic import replacing
    from batcher.write.columns import COLUMNS

    examples = {
        "disputed": fetched(output, figures.disputed[:_TEXTS]),
        "wrong": fetched(output, figures.wrong[:_TEXTS]),
    }
    path = Path(f"{object_store.here(output)}.html")
    with replacing(path, of_run=False) as file:
        name = Path(output).name
        file.write(page(name, figures, told, examples, read, script, COLUMNS).encode())
    console = Console(highlight=False)
    console.print(scores(told, console.width))
    for line in agreement(told):
        console.print(line, markup=False, soft_wrap=not console.is_terminal)
    say(f"The page: {path}")
    return 0


def fetched(output: str, places: Iterable[tuple[int, ...]]) -> list[Panel]:
    """Rows of an output by their places, whole; in the order given."""
    wanted = list(places)
    if not wanted:
        return []
    number = {place: at for at, several in enumerate(wanted) for place in several}
    unwanted = bytearray(b"\1") * (max(number) + 1)
    for place in number:
        unwanted[place] = 0
    found: list[Panel] = [[] for _ in wanted]
    for place, row in placed_rows(output, unwanted=bytes(unwanted)):
        if place not in number:
            break
        found[number[place]].append((place, row))
    return found


def _check(
    output: str, figures: Figures, known: set[str], asked: Iterable[tuple[str, str | None]]
) -> None:
    if not figures.panels:
        raise JobError(f"{output}: there are no rows in it.")
    if not {"status", "model"} <= known:
        raise JobError(f"{output}: it is no output of batcher, it has no status and no model.")
    for flag, name in asked:
        if name is not None and name not in known:
            raise JobError(f"{flag} {name}: there is no such column in {output}.")
    if figures.gold is not None and not any(of.scored for of in figures.models.values()):
        raise JobError(f"--gold {figures.gold}: the column is empty in {output}.")


def _plotly() -> str:
    """The drawing library, as the page needs it."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise JobError(
            "The page needs plotly: pip install 'batcher[report]'; or print the figures with --json."
        ) from None
    script: str = get_plotlyjs()
    return script
