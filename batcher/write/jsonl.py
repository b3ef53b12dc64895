"""The output as JSONL: the input's columns, then the result's. Touches: files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from batcher.write.atomic import replacing
from batcher.write.batch_lines import batch_line
from batcher.write.columns import COLUMNS, TIME, renames
from batcher.write.results import Confirm, ResultReader, Written

__all__ = ["Blocks", "RowEncoder", "custom_id_of", "is_text", "write_jsonl"]

Blocks = Callable[[], Iterator[tuple[list[int], list[dict[str, Any]]]]]
"""Gives blocks of (positions, the input's columns at each); may be called again, to read the input once more."""

_EPOCH = datetime(1970, 1, 1)
_encode = msgspec.json.Encoder(decimal_format="number", enc_hook=str).encode
_JSON = [column.name for column in COLUMNS.values() if column.json]
_TIMES = [column.name for column in COLUMNS.values() if column.type == TIME]
_NULLS = [(name, column.null) for name, column in COLUMNS.items() if column.null is not None]


class RowEncoder:
    """Makes output rows of journal lines. An optional column that a line lacks is left out of its row.

    Args:
        keep_raw: Whether a row has its `response`.
        parsed: Whether each row has `parsed`, null where there is none.
        copied: Whether each row has `copied`, false where there is none.
        renamed: New names of input columns that have the name of a result; None to find them for each row.
    """

    def __init__(
        self,
        *,
        keep_raw: bool = False,
        parsed: bool = False,
        copied: bool = False,
        renamed: Mapping[str, str] | None = None,
    ) -> None:
        self._decode = _decoder(keep_raw, parsed, copied)
        self._json = [name for name in _JSON if keep_raw or name != "response"]
        self._renamed = renamed

    def row(
        self, columns: Mapping[str, Any], line: bytes, position: int, sample: int
    ) -> tuple[bytes, str]:
        """(the row with its newline, its status).

        Args:
            columns: The row of the input.
            line: The result as in the journal.
            position: Of the row now; the line of an answer that was kept from an earlier input has its old one.
            sample: Likewise.
        """
        row = self._decode(line)
        row.row, row.sample, row.custom_id = position, sample, custom_id_of(columns, position)
        for name, null in _NULLS:
            if getattr(row, name) == null:
                setattr(row, name, None)
        for name in _TIMES:
            if (time := getattr(row, name)) is not None:
                setattr(row, name, f"{_second(time // 1000)}.{time % 1000:03}Z")
        for name in self._json:
            if isinstance(text := getattr(row, name), str):
                setattr(row, name, msgspec.Raw(text.encode()))
        if not COLUMNS.keys().isdisjoint(columns):
            columns = _without_clashes(columns, self._renamed)
        result = _encode(row)
        if not columns:
            return result + b"\n", row.status
        return b"%b,%b\n" % (_encode(columns)[:-1], result[1:]), row.status


class _BatchEncoder:
    """Makes lines of a batch's output instead."""

    def row(
        self, columns: Mapping[str, Any], line: bytes, position: int, _sample: int
    ) -> tuple[bytes, str]:
        return batch_line(line, custom_id_of(columns, position))


@lru_cache
def _decoder(keep_raw: bool, parsed: bool, copied: bool) -> Callable[[bytes], Any]:
    """Decodes a journal line to an object with one attribute a column, in the order of the output."""
    everywhere = {"parsed": parsed, "copied": copied}
    fields = []
    for name, column in COLUMNS.items():
        if name != "response" or keep_raw:
            optional = column.optional and not everywhere.get(name)
            fields.append((name, Any, msgspec.UNSET if optional else column.missing))
    return msgspec.json.Decoder(msgspec.defstruct("OutputRow", fields)).decode


def write_jsonl(
    path: Path,
    blocks: Blocks,
    reader: ResultReader,
    *,
    keep_raw: bool,
    parsed: bool = False,
    batch: bool = False,
    confirm: Confirm = lambda _written: None,
) -> Written:
    """Writes an output as JSONL.

    Args:
        path: The output.
        blocks: The rows of the input.
        reader: Finds the lines.
        keep_raw: Whether rows have their `response`.
        parsed: Whether they have `parsed`.
        batch: Whether to write lines of a batch's output instead.
        confirm: Called before the old file is replaced.

    Raises:
        OutputError: The disk refuses.
    """
    shown: dict[str, Any] = {
        "keep_raw": keep_raw,
        "parsed": parsed,
        "copied": "copied" in reader.shown,
    }
    try:
        if batch:
            return _write(path, blocks(), reader, _BatchEncoder(), None, confirm)
        return _write(path, blocks(), reader, RowEncoder(**shown), _Names(), confirm)
    except _Clash as clash:
        encoder = RowEncoder(**shown, renamed=clash.names)
        written = _write(path, blocks(), reader, encoder, None, confirm)
        written.renamed = clash.names
        return written


def _write(
    path: Path,
    blocks: Iterator[tuple[list[int], list[dict[str, Any]]]],
    reader: ResultReader,
    encoder: RowEncoder | _BatchEncoder,
    names: _Names | None,
    confirm: Confirm,
) -> Written:
    written = Written()
    with replacing(path) as file:
        for positions, rows in blocks:
            if names is not None:
                for row in rows:
                    names.see(row)
            for at, sample, line in reader.lines(positions):
                if line is None:
                    written.missing += 1
                    continue
                text, status = encoder.row(rows[at], line, positions[at], sample)
                file.write(text)
                written.statuses[status] += 1
        if names is not None:
            written.renamed = names.agreed()
        confirm(written)
    return written


class _Names:
    """The names of the input's columns, and the new names that rows gave them one by one."""

    def __init__(self) -> None:
        self._all: dict[str, None] = {}
        self._renamed: dict[str, str] = {}
        self._uneven = False

    def see(self, row: Mapping[str, Any]) -> None:
        """Takes a row."""
        if not COLUMNS.keys().isdisjoint(row):
            for old, new in _renames(row).items():
                self._uneven |= self._renamed.setdefault(old, new) != new
        if not row.keys() <= self._all.keys():
            self._all |= dict.fromkeys(row)

    def agreed(self) -> dict[str, str]:
        """The new names.

        Raises:
            _Clash: They are not the same in all rows, or one is the name of a column in another row.
        """
        renamed = self._renamed
        if renamed:
            every = renames(n for n in self._all if n != "custom_id" or n in renamed)
            if self._uneven or every != renamed:
                raise _Clash(every)
        return renamed


class _Clash(Exception):
    """Rows must be written again, with these new names of columns in all of them."""

    def __init__(self, names: dict[str, str]) -> None:
        super().__init__()
        self.names = names


def custom_id_of(columns: Mapping[str, Any], position: int) -> str:
    """The row's own name, else its position."""
    name = _plain(columns.get("custom_id"))
    return str(position if name is None else name)


def is_text(value: Any) -> bool:
    """Whether a column's value, given as it is or as JSON, is a string."""
    return isinstance(_plain(value), str)


def _plain(value: Any) -> Any:
    return msgspec.json.decode(value) if isinstance(value, msgspec.Raw) else value


@lru_cache
def _second(time: int) -> str:
    """Unix time in seconds as text."""
    return (_EPOCH + timedelta(seconds=time)).isoformat()


def _without_clashes(
    columns: Mapping[str, Any], renamed: Mapping[str, str] | None
) -> dict[str, Any]:
    """The columns under names that no result has; a `custom_id` that is a string is not repeated."""
    new = _renames(columns) if renamed is None else renamed
    text_id = is_text(columns.get("custom_id"))
    return {
        new.get(name, name): value
        for name, value in columns.items()
        if name != "custom_id" or not text_id
    }


def _renames(columns: Mapping[str, Any]) -> dict[str, str]:
    """New names for a row's columns."""
    text_id = is_text(columns.get("custom_id"))
    return renames(name for name in columns if name != "custom_id" or not text_id)
