"""One reading of the whole input before the first request: how many rows, and what must stop a run.

Touches: files (reads).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from batcher.errors import JobError
from batcher.plan.requests import Plan
from batcher.read.images import COLUMN, Digest
from batcher.read.inputs import Inputs
from batcher.records import Row

__all__ = ["InputSummary", "pictures_of", "preflight"]

_SAMPLE = 100
_LOOK = 1024
_NAMES = frozenset({"custom_id"})
_PICTURES = frozenset({COLUMN})


class InputSummary(NamedTuple):
    """What one reading finds.

    Attributes:
        rows: How many.
        pictures: What their pictures are known by; "" for none.
        notes: What of some rows was read otherwise than it stands there, in sentences.
    """

    rows: int
    pictures: str
    notes: list[str]


def preflight(inputs: Inputs, plan: Plan, go_on: Callable[[], None]) -> InputSummary:
    """Reads all rows once.

    Args:
        inputs: The rows.
        plan: What would be made of them.
        go_on: Called now and then; what it raises ends the reading.

    Raises:
        JobError: No rows, two rows with one `custom_id`, or none of the first rows can be sent.
    """
    rows, unusable, unfit, first_error = 0, 0, 0, None
    told_apart = False
    names = array("q")
    notes: dict[str, list[Any]] = {}
    prompter, pictures = plan.prompter, Digest()
    for row in inputs.rows(prompter.columns):
        if not rows % _LOOK:
            go_on()
        rows += 1
        pictures.add(row)
        if row.note:
            notes.setdefault(row.note, [row.where, 0])[1] += 1
        if (
            row.error is None
            and row.columns is not None
            and (name := row.columns.get("custom_id")) is not None
        ):
            names.append(hash(str(name)))
        told_apart = told_apart or (row.columns is not None and prompter.is_told_apart(row))
        if rows <= _SAMPLE:
            prompt = prompter.prompt(row)
            unusable += prompt.error is not None
            unfit += prompter.ignores_template(row)
            first_error = first_error or prompt.error
    where = ", ".join(file.name for file in inputs.files)
    if not rows:
        raise JobError(f"{where}: there are no rows in it.")
    if unusable == min(rows, _SAMPLE):
        first_error = prompter.prompt(_first(inputs)).error or first_error
        what = "the only row" if rows == 1 else f"all of the first {unusable} rows"
        raise JobError(f"Nothing can be sent, {what} cannot be used; the first: {first_error}.")
    if not told_apart:
        raise prompter.not_told_apart(where, _first(inputs).columns or {})
    if unfit == min(rows, _SAMPLE):
        have = ", ".join(_first(inputs).columns or ()) or "none"
        of = "the only row" if rows == 1 else f"none of the first {unfit} rows"
        raise JobError(
            f"--prompt names {', '.join(sorted(prompter.template_names))}, but {of} of {where} has "
            f"{'not ' if rows == 1 else ''}all of these; the first row has: {have}."
        )
    if names and len(names) < rows:  # A row without a name is known by its position.
        names = array("q", (hash(_name(row)) for row in _usable(inputs)))
    _unique(inputs, names)
    told = [
        f"{where}: {note}{f' (in {count:,} rows)' if count > 1 else ''}."
        for note, (where, count) in notes.items()
    ]
    return InputSummary(rows, str(pictures), told)


def _first(inputs: Inputs) -> Row:
    """The first row with all its columns; of Parquet only those that are needed are read."""
    return next(iter(replace(inputs, limit=1, drawn=None).rows(None)))


def pictures_of(inputs: Inputs, rows: int, go_on: Callable[[], None]) -> str:
    """What the pictures of the first rows are known by now."""
    pictures = Digest()
    for number, row in enumerate(replace(inputs, limit=rows, drawn=None).rows(_PICTURES)):
        if not number % _LOOK:
            go_on()
        pictures.add(row)
    return str(pictures)


def _unique(inputs: Inputs, names: array[int]) -> None:
    hashes = np.sort(np.frombuffer(names, np.int64)) if names else np.empty(0, np.int64)
    twice = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    if not twice:
        return
    seen: dict[str, str] = {}
    for row in _usable(inputs):
        name = _name(row)
        if hash(name) in twice and (before := seen.setdefault(name, row.where)) != row.where:
            raise JobError(
                f"custom_id {name!r} stands twice, at {before} and {row.where} (a row without one "
                "has its position); give each row a name of its own, or none."
            )


def _usable(inputs: Inputs) -> Iterator[Row]:
    """Rows whose names count: that of one which cannot be read may be as wrong as the rest of it."""
    return (row for row in inputs.rows(_NAMES) if row.error is None)


def _name(row: Row) -> str:
    name = None if row.columns is None else row.columns.get("custom_id")
    return str(row.position) if name is None else str(name)
