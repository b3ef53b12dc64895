"""The output as JSONL: the input's columns, then the result's. Touches: files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from batcher.write.batch_lines import batch_line
from batcher.write.columns import COLUMNS, OPTIONAL, renames
from batcher.write.results import Confirm, ResultReader, Written, whole

__all__ = ["Renamed", "is_text", "json_row", "name_of", "output_row", "write_jsonl"]

_EPOCH = datetime(1970, 1, 1)
_encode = msgspec.json.Encoder(decimal_format="number", enc_hook=str).encode


# A journal line as it comes out; what few rows have is left out where there is none. What stands in
# the journal as text of JSON, and time, change their form in between.
_Row: Any = msgspec.defstruct(
    "_Row",
    [(name, Any, msgspec.UNSET if name in OPTIONAL else None) for name in COLUMNS],
)
_decode = msgspec.json.Decoder(_Row).decode


def write_jsonl(
    path: Path,
    blocks: Iterator[tuple[list[int], list[dict[str, Any]]]],
    picks: ResultReader,
    *,
    keep_raw: bool,
    parsed: bool = False,
    batch: bool = False,
    renamed: Mapping[str, str] | None = None,
    confirm: Confirm = lambda _written: None,
) -> Written:
    """Writes JSONL; see `Written`.

    Args:
        path: The output.
        blocks: (positions, the input's columns at each).
        picks: Finds the lines.
        keep_raw: Whether rows have their `response`.
        parsed: Whether they have `parsed`.
        batch: Whether to write lines of a batch's output instead.
        renamed: Other names for columns that have the name of a result; None to find them.
        confirm: Told what is written, before it takes the place of the old file; what it raises
            leaves that as it is.

    Raises:
        OutputError: The disk refuses.
        Renamed: The names that were found row by row are not those of all rows: once more with them.
    """
    written = Written()
    names: dict[str, None] = {}
    uneven = False
    copied = "copied" in picks.shown
    with whole(path) as file:
        for positions, rows in blocks:
            for row in rows:
                if renamed is None and not batch and not COLUMNS.keys().isdisjoint(row):
                    for old, new in _renames(row).items():
                        uneven |= written.renamed.setdefault(old, new) != new
                if not row.keys() <= names.keys():
                    names |= dict.fromkeys(row)
            for place, sample, line in picks.lines(positions):
                if line is None:
                    written.missing += 1
                    continue
                if batch:
                    text, status = batch_line(line, name_of(rows[place], positions[place]))
                    file.write(text)
                    written.rows += 1
                    written.statuses[status] += 1
                    continue
                text, status = output_row(
                    rows[place],
                    line,
                    positions[place],
                    sample,
                    keep_raw=keep_raw,
                    parsed=parsed,
                    renamed=renamed,
                    copied=copied,
                )
                file.write(text)
                written.rows += 1
                written.statuses[status] += 1
        if renamed is None and written.renamed:
            # Each row gave its columns names of its own; they must be those of all rows.
            of_all = renames(
                name for name in names if name != "custom_id" or name in written.renamed
            )
            if uneven or of_all != written.renamed:
                raise Renamed(of_all)
        confirm(written)
    if renamed is not None:
        written.renamed = dict(renamed)
    return written


def name_of(columns: Mapping[str, Any], position: int) -> str:
    """The row's own name, else its position."""
    name = _plain(columns.get("custom_id"))
    return str(position if name is None else name)


def is_text(value: Any) -> bool:
    """Whether a column's value is a text, given as it is or as JSON."""
    return isinstance(_plain(value), str)


def _plain(value: Any) -> Any:
    return msgspec.json.decode(value) if isinstance(value, msgspec.Raw) else value


class Renamed(Exception):
    """Which names columns must have in all rows.

    Attributes:
        names: Name to new name.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        super().__init__()
        self.names = names


def json_row(
    columns: Mapping[str, Any],
    line: bytes,
    position: int,
    sample: int,
    *,
    keep_raw: bool = False,
    parsed: bool = False,
) -> bytes:
    """One output line: the input's columns, then the result's, null where there is none.

    Args:
        columns: The row's own.
        line: The result as in the journal.
        position: Of the row now; a result kept from an earlier input carries its old names.
        sample: Likewise.
        keep_raw: Whether it has its `response`.
        parsed: Whether it has `parsed`.
    """
    return output_row(columns, line, position, sample, keep_raw=keep_raw, parsed=parsed)[0]


def output_row(
    columns: Mapping[str, Any],
    line: bytes,
    position: int,
    sample: int,
    *,
    keep_raw: bool,
    parsed: bool,
    renamed: Mapping[str, str] | None = None,
    copied: bool = False,
) -> tuple[bytes, str]:
    """(`json_row`, the result's status).

    Args:
        columns: The row's own.
        line: The result as in the journal.
        position: Of the row now.
        sample: Likewise.
        keep_raw: Whether it has its `response`.
        parsed: Whether it has `parsed`.
        renamed: Other names for columns that have the name of a result; None to find them.
        copied: Whether it has `copied`.
    """
    row = _decode(line)
    name = columns.get("custom_id")
    row.row, row.sample, row.custom_id = position, sample, name_of(columns, position)
    row.model, row.attempts = row.model or None, row.attempts or 0
    if row.created_at is not None:
        row.created_at = f"{_second(row.created_at // 1000)}.{row.created_at % 1000:03}Z"
    if not keep_raw:
        row.response = msgspec.UNSET
    if row.parsed is msgspec.UNSET and parsed:
        row.parsed = None
    if row.copied is msgspec.UNSET and copied:
        row.copied = False
    for native in OPTIONAL:
        if isinstance(text := getattr(row, native), str):
            setattr(row, native, msgspec.Raw(text.encode()))
    if not COLUMNS.keys().isdisjoint(columns):
        new = _renames(columns) if renamed is None else renamed
        text_id = is_text(name)
        columns = {
            new.get(name, name): value
            for name, value in columns.items()
            if name != "custom_id" or not text_id
        }
    result = _encode(row)
    if not columns:
        return result + b"\n", row.status
    return b"%b,%b\n" % (_encode(columns)[:-1], result[1:]), row.status


@lru_cache
def _second(of: int) -> str:
    """Unix time as text."""
    return (_EPOCH + timedelta(seconds=of)).isoformat()


def _renames(columns: Mapping[str, Any]) -> dict[str, str]:
    """Other names for a row's columns; a `custom_id` that is a text is not repeated."""
    text_id = is_text(columns.get("custom_id"))
    return renames(of for of in columns if of != "custom_id" or not text_id)
