"""Rows of finished outputs, for the commands that read them: an output is an input like any other.

Touches: files (reads).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from batcher.errors import JobError
from batcher.read import object_store
from batcher.write.columns import COLUMNS

if TYPE_CHECKING:
    from batcher.read.inputs import Inputs

__all__ = ["labels_of", "placed_rows", "rows_of", "source", "typed", "writable"]


_PARSED = frozenset({"status", "parsed"})


def labels_of(*outputs: str) -> set[str]:
    """The labels that the answers in outputs were held to; none where they were free."""
    from batcher.evaluate.votes import labels_in

    return labels_in(row for output in outputs for row in rows_of(output, _PARSED))


def rows_of(output: str, columns: frozenset[str] | None = None) -> Iterator[dict[str, Any]]:
    """Its rows in order.

    Args:
        output: A finished output.
        columns: Those that are needed; None for all.

    Raises:
        JobError: There is no such file, or it is damaged.
    """
    return (row for _place, row in placed_rows(output, columns))


def placed_rows(
    output: str, columns: frozenset[str] | None = None, unwanted: bytes = b""
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The same, each with its place in the output.

    Args:
        output: A finished output.
        columns: Those that are needed; None for all.
        unwanted: By place, not zero where the row is not needed.
    """
    found = source(output)
    texts = found.files[0].reader.text_cells
    for row in found.rows(columns, settled=unwanted):
        if row.columns is None or row.error is not None:
            raise JobError(f"{row.error}.")
        if "response" in row.columns and "status" not in row.columns:
            from batcher.batches import batch_file  # Brings what reads answers.

            if batch_file.is_answer(row.columns):
                yield row.position, batch_file.row_of(row.columns, row.position)
                continue
        columns_of = _of_texts(row.columns) if texts else row.columns
        yield row.position, typed(columns_of, row.where)


def _of_texts(columns: dict[str, Any]) -> dict[str, Any]:
    """A row of CSV: what is empty among the results is null, and what a schema checked is JSON."""
    found = {name: None if of == "" and name in COLUMNS else of for name, of in columns.items()}
    parsed = found.get("parsed")
    if isinstance(parsed, str) and parsed[:1] in "{[":
        with contextlib.suppress(msgspec.DecodeError):  # A label may begin so as well.
            found["parsed"] = msgspec.json.decode(parsed)
    return found


def typed(columns: dict[str, Any], where: str) -> dict[str, Any]:
    """The columns, those of a result in their types again after another program wrote the output.

    pandas makes 100.0 of a whole number in a column with nulls, NaN of a null, and a number of a
    text of digits; a CSV file holds texts only. Input columns stay as they are.

    Args:
        columns: Name to value; changed in place.
        where: File and row, for the error.

    Raises:
        JobError: A value is of another type and cannot be read as the column's own.
    """
    for name, value in columns.items():
        kind = _KINDS.get(name)
        if value is None or kind is None or type(value) in kind.own:
            continue
        try:
            columns[name] = kind.read(value)
        except (ValueError, TypeError, OverflowError, OSError, RecursionError):
            raise JobError(
                f"{where}: {name!r} holds {value!r:.40}, which is no {kind.name}; take the output "
                "as batcher wrote it."
            ) from None
    return columns


class _Kind(NamedTuple):
    """A type of a result column: its name, the Python types it comes in, and how to read others."""

    name: str
    own: frozenset[type]
    read: Callable[[Any], Any]


def _integer(value: Any) -> int | None:
    number = value
    if isinstance(value, str):
        number = int(value) if value.strip("-").isdecimal() else float(value or "nan")
    if isinstance(number, float | Decimal) and isnan(number):
        return None
    if int(number) != number:
        raise ValueError(value)
    return int(number)


def _double(value: Any) -> float | None:
    number = float("nan" if value == "" else value)
    return None if isnan(number) else number


def _text(value: Any) -> str | None:
    if isinstance(value, float) and isnan(value):
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str | int | float | bool | list | dict):
        return value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return str(value)


def _truth(value: Any) -> bool | None:
    known = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
    word = str(value).lower()
    if word not in (*known, "", "nan"):
        raise ValueError(value)
    return known.get(word)


def _time(value: Any) -> datetime | None:
    if value == "" or (isinstance(value, float) and isnan(value)):
        return None
    if isinstance(value, float | int):  # Milliseconds, as pandas writes them to JSON.
        return datetime.fromtimestamp(value / 1000, UTC)
    at: datetime = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _kinds() -> dict[str, _Kind]:
    by_type = {
        "int64": _Kind("whole number", frozenset({int}), _integer),
        "int32": _Kind("whole number", frozenset({int}), _integer),
        "double": _Kind("number", frozenset(), _double),
        "string": _Kind("text", frozenset({str}), _text),
        "bool": _Kind("true or false", frozenset({bool}), _truth),
        "timestamp[ms, UTC]": _Kind("time", frozenset(), _time),
    }
    return {name: by_type[column.type] for name, column in COLUMNS.items() if name != "parsed"}


_KINDS = _kinds()


def source(output: str) -> Inputs:
    """A finished output, to be read as an input.

    Raises:
        JobError: There is no such file.
    """
    from batcher.read.files import expand
    from batcher.read.inputs import Inputs
    from batcher.write import parts

    local = not object_store.is_object(output)
    paths = [str(path) for path in parts.files(Path(output))] if local else [output]
    if not paths:
        unfinished = Path(f"{object_store.here(output)}.run").is_dir()
        how = f"; write what there is with: batcher export {output} FILE" if unfinished else ""
        raise JobError(f"{output}: there is no such output{how}.")
    return Inputs(expand(paths))


def writable(
    flag: str, name: str, suffixes: tuple[str, ...], output: str, made: Collection[str]
) -> Path:
    """The path of a file that a command is to write beside reading an output.

    Args:
        flag: What named it.
        name: Of the file.
        suffixes: That it may have.
        output: What is read.
        made: Columns by which a file is known that the command wrote earlier: only such a one is
            replaced.

    Raises:
        JobError: It cannot be written there.
    """
    path = Path(name)
    told = f"{flag} {name}"
    if path.suffix not in suffixes:
        raise JobError(f"{told}: its suffix tells no format; end it in {' or '.join(suffixes)}.")
    if path.is_dir():
        raise JobError(f"{told}: it is a folder; name a file in it.")
    if not path.parent.is_dir():
        raise JobError(f"{told}: there is no folder {path.parent}; make it first.")
    if os.path.realpath(output) in (os.path.realpath(path), os.path.realpath(path.parent)):
        raise JobError(f"{told}: that is the output itself; name another file.")
    if path.exists() and path.stat().st_size and not _is_of(path, made):
        raise JobError(
            f"{told}: it is there already, and no file that this command wrote; name another one, or "
            "remove it."
        )
    return path


def _is_of(path: Path, made: Collection[str]) -> bool:
    """Whether the first row of a file has these columns."""
    try:
        first = next(rows_of(str(path)), None)
    except JobError:
        return False
    return first is not None and first.keys() >= set(made)
