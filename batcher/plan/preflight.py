"""Reads the whole input before the first request: counts the rows and finds what must stop a run.

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
_PAUSE_ROWS = 1024
_NAMES = frozenset({"custom_id"})
_IMAGES = frozenset({COLUMN})


class InputSummary(NamedTuple):
    """What is known of the input once it was read.

    Attributes:
        rows: How many rows there are.
        pictures: Identifies their images; "" for none.
        notes: Sentences on rows that were read differently from how they are written.
    """

    rows: int
    pictures: str
    notes: list[str]


def preflight(inputs: Inputs, plan: Plan, go_on: Callable[[], None]) -> InputSummary:
    """Reads all rows once.

    Args:
        inputs: The rows.
        plan: Makes prompts of them.
        go_on: Called now and then; what it raises ends the reading.

    Raises:
        JobError: No rows, two rows with one `custom_id`, or none of the first rows can be sent.
    """
    rows, unusable, unfit, first_error = 0, 0, 0, None
    used = False
    names = array("q")
    notes: dict[str, list[Any]] = {}
    prompter, images = plan.prompter, Digest()
    for row in inputs.rows(prompter.columns):
        if not rows % _PAUSE_ROWS:
            go_on()
        rows += 1
        images.add(row)
        if row.note:
            notes.setdefault(row.note, [row.where, 0])[1] += 1
        if (
            row.error is None
            and row.columns is not None
            and (name := row.columns.get("custom_id")) is not None
        ):
            names.append(hash(str(name)))
        used = used or (row.columns is not None and prompter.uses(row))
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
    if not used:
        raise prompter.uses_no_column(where, _first(inputs).columns or {})
    if unfit == min(rows, _SAMPLE):
        have = ", ".join(_first(inputs).columns or ()) or "none"
        which = "the only row" if rows == 1 else f"none of the first {unfit} rows"
        raise JobError(
            f"--prompt names {', '.join(sorted(prompter.template_names))}, but {which} of {where} has "
            f"{'not ' if rows == 1 else ''}all of these; the first row has: {have}."
        )
    if names and len(names) < rows:  # The name of a row without one is its position.
        names = array("q", (hash(_name(row)) for row in _usable(inputs)))
    _unique(inputs, names)
    sentences = [
        f"{where}: {note}{f' (in {count:,} rows)' if count > 1 else ''}."
        for note, (where, count) in notes.items()
    ]
    return InputSummary(rows, str(images), sentences)


def _first(inputs: Inputs) -> Row:
    """Reads the first row with all its columns, also those that no prompt needs."""
    return next(iter(replace(inputs, limit=1, drawn=None).rows(None)))


def pictures_of(inputs: Inputs, rows: int, go_on: Callable[[], None]) -> str:
    """Identifies the images of the first rows as they are now."""
    images = Digest()
    for number, row in enumerate(replace(inputs, limit=rows, drawn=None).rows(_IMAGES)):
        if not number % _PAUSE_ROWS:
            go_on()
        images.add(row)
    return str(images)


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
                f"custom_id {name!r} is set twice, at {before} and {row.where} (a row without one "
                "has its position); give each row its own, or none."
            )


def _usable(inputs: Inputs) -> Iterator[Row]:
    """Rows whose names count: in a row that cannot be read the name may be wrong as well."""
    return (row for row in inputs.rows(_NAMES) if row.error is None)


def _name(row: Row) -> str:
    name = None if row.columns is None else row.columns.get("custom_id")
    return str(row.position) if name is None else str(name)
