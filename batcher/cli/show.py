"""`batcher show`: rows of an output, to be read on a terminal. Touches: files (reads), the terminal."""

from __future__ import annotations

import random
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from cyclopts import Parameter

from batcher.cli.outputs import labels_of, placed_rows, rows_of
from batcher.errors import JobError
from batcher.live.format import cut
from batcher.live.terminal import in_line, say
from batcher.records import Outcome

__all__ = ["show"]

_MOST_CHARS = 600
_NAME_CHARS = 16


def show(
    output: str,
    /,
    *,
    status: Annotated[
        tuple[Outcome, ...],
        Parameter(negative_iterable="", consume_multiple=True, show_choices=False),
    ] = (),
    disputed: Annotated[bool, Parameter(negative="")] = False,
    sample: int | None = None,
) -> int:
    """Print rows of an output so that a person can read them: what was asked, what was answered.

    Args:
        output: A finished output (batcher export makes one of a run that is not).
        status: Only rows that ended so; several are allowed.
        disputed: Only rows whose answers differ, the most disputed first (at most 1,000).
        sample: Only so many rows, drawn by chance; the same ones each time.
    """
    if sample is not None and sample < 1:
        raise JobError(f"--sample {sample}: it must be more than 0.")
    found: Iterator[Mapping[str, Any]] = _disputed(output) if disputed else rows_of(output)
    rows: Iterator[Mapping[str, Any]] = (
        row for row in found if not status or row.get("status") in status
    )
    if sample is not None:
        rows = iter(_drawn(rows, sample))
    width = shutil.get_terminal_size().columns
    shown = 0
    for row in rows:
        if "status" not in row or "model" not in row:
            raise JobError(f"{output}: it is no output of batcher, it has no status and no model.")
        shown += 1
        say("\n".join(_lines(row, width)), end="\n\n")
    if not shown:
        which = f" of status {', '.join(status)}" if status else ""
        which += " with answers that differ" if disputed else ""
        raise JobError(f"{output}: there are no rows{which} in it.")
    return 0


def _disputed(output: str) -> Iterator[Mapping[str, Any]]:
    from batcher.cli.report import NEEDED, fetched
    from batcher.evaluate.figures import Figures
    from batcher.evaluate.scorers import scorer
    from batcher.evaluate.votes import panels

    figures = Figures(scorer("label", labels_of(output)))
    for panel in panels(placed_rows(output, NEEDED), output):
        figures.add(panel)
    for panel in fetched(output, figures.disputed):
        for _place, row in panel:
            yield row


def _drawn(rows: Iterator[Mapping[str, Any]], count: int) -> Sequence[Mapping[str, Any]]:
    """So many rows, each as likely as any other (reservoir sampling, Vitter's algorithm R), in order."""
    rng = random.Random(0)
    held: list[tuple[int, Mapping[str, Any]]] = []
    for number, row in enumerate(rows):
        if number < count:
            held.append((number, row))
        elif (at := rng.randrange(number + 1)) < count:
            held[at] = (number, row)
    return [row for _number, row in sorted(held, key=lambda pair: pair[0])]


def _lines(row: Mapping[str, Any], width: int) -> Iterator[str]:
    from batcher.write.columns import COLUMNS

    tokens = row.get("prompt_tokens"), row.get("completion_tokens")
    latency, custom_id = row.get("latency_ms"), row.get("custom_id")
    facts = [
        f"row {row.get('row')}",
        f"({custom_id})" if custom_id not in (None, str(row.get("row"))) else "",
        f"· {row.get('model')}",
        f"· sample {row['sample']}" if row.get("sample") else "",
        f"· {row.get('status')}",
        f"· {tokens[0]} + {tokens[1]} tokens" if None not in tokens else "",
        f"· {latency / 1000:.2f} s" if latency is not None else "",
        f"· {row['attempts']} attempts" if (row.get("attempts") or 0) > 1 else "",
        "· a copy of the answer to an equal request" if row.get("copied") else "",
    ]
    yield in_line(" ".join(filter(None, facts)))
    for name, value in row.items():
        if name not in COLUMNS and value is not None:
            yield from _field(name, value, width)
    said = row.get("parsed") if row.get("parsed") is not None else row.get("content")
    for arrow, value in (
        ("→", said),
        ("refusal", row.get("refusal")),
        ("error", row.get("error")),
    ):
        if value is not None:
            yield from _field(arrow, value, width)


def _field(name: str, value: Any, width: int) -> Iterator[str]:
    """A name and its value, wrapped behind it."""
    text = cut(value if isinstance(value, str) else _json(value), _MOST_CHARS)
    head = f"  {in_line(name):{_NAME_CHARS}} "
    indent = " " * len(head)
    lines = []
    for line in text.splitlines() or [""]:
        lines += textwrap.wrap(in_line(line), max(20, width - len(head))) or [""]
    for number, line in enumerate(lines):
        yield f"{indent if number else head}{line}".rstrip()


def _json(value: Any) -> str:
    import msgspec

    return msgspec.json.encode(value, enc_hook=str).decode()
