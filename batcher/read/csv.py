"""CSV with a header line to dicts of text. Touches: files."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator

from batcher import objects
from batcher.errors import JobError

__all__ = ["header", "records"]

csv.field_size_limit(sys.maxsize)


def header(path: str) -> list[str]:
    """Names of the columns; empty for an empty file."""
    with _text(path) as file:
        return next(csv.reader(file), [])


def records(path: str) -> Iterator[tuple[int, dict[str, object] | None, str | None]]:
    """Every record as (line it ends on, columns, None) or (line, None, why it cannot be read).

    Quotes and line ends inside quotes are understood; blank lines are no records.
    """
    with _text(path) as file:
        reader = csv.reader(file, strict=True)
        names = _header(path, reader)
        while True:
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield reader.line_num, None, f"not CSV ({error})"
                continue
            if not values:
                continue
            if len(values) != len(names):
                yield (
                    reader.line_num,
                    None,
                    f"{len(values)} fields where the header has {len(names)}",
                )
                continue
            if any(not value.isascii() and _broken(value) for value in values):
                yield reader.line_num, None, "not UTF-8"
                continue
            yield reader.line_num, dict(zip(names, values, strict=True)), None


def _text(path: str) -> io.TextIOWrapper:
    content = objects.opened(path)
    return io.TextIOWrapper(content, "utf-8-sig", errors="surrogateescape", newline="")


def _header(path: str, reader: Iterator[list[str]]) -> list[str]:
    try:
        names = next(reader, [])
    except csv.Error as error:
        raise JobError(f"{path}: its header cannot be read ({error}).") from None
    if any(_broken(name) for name in names):
        raise JobError(f"{path}: its header is not UTF-8.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise JobError(f"{path}: its header names the column {twice!r} twice.")
    return names


def _broken(value: str) -> bool:
    return any("\udc80" <= letter <= "\udcff" for letter in value)
