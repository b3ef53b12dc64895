"""The output as CSV: the input's columns, then the result's. Touches: files.

Lines follow RFC 4180 but end in a newline alone; the text is UTF-8 without a byte order mark. Null is an empty cell
and an empty string is `""`, which only some readers tell apart. Lists and objects are JSON text. A text that a
spreadsheet takes for a formula is not changed: the output is data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import msgspec

from batcher.write.atomic import replacing
from batcher.write.columns import renames, result_names
from batcher.write.jsonl import Blocks, RowEncoder, is_text
from batcher.write.results import Confirm, ResultReader, Written

__all__ = ["line_of", "write_csv"]

_QUOTED = re.compile(r'[",\r\n]|^\s|\s$|^$')
_cells = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_text = msgspec.json.Decoder(str).decode
_NULL = b"null"


def write_csv(
    path: Path,
    blocks: Blocks,
    reader: ResultReader,
    *,
    keep_raw: bool,
    parsed: bool = False,
    confirm: Confirm = lambda _written: None,
) -> Written:
    """Writes an output as CSV.

    Args:
        path: The output.
        blocks: The rows of the input; called twice, as the header has the columns of all rows.
        reader: Finds the lines.
        keep_raw: Whether rows have their `response`.
        parsed: Whether they have `parsed`.
        confirm: Called before the old file is replaced.

    Raises:
        OutputError: The disk refuses.
    """
    own = _columns(blocks)
    written = Written(renamed=renames(own))
    shown = [*reader.shown, *(["parsed"] if parsed else [])]
    header = [written.renamed.get(name, name) for name in own]
    header += result_names(keep_raw=keep_raw, shown=shown)
    encoder = RowEncoder(
        keep_raw=keep_raw, parsed=parsed, copied="copied" in shown, renamed=written.renamed
    )
    with replacing(path) as file:
        file.write(_joined(header))
        for positions, rows in blocks():
            for at, sample, line in reader.lines(positions):
                if line is None:
                    written.missing += 1
                    continue
                text, status = encoder.row(rows[at], line, positions[at], sample)
                cells = _cells(text)
                file.write(line_of(bytes(cells.get(name, _NULL)) for name in header))
                written.statuses[status] += 1
        confirm(written)
    return written


def _columns(blocks: Blocks) -> list[str]:
    """Names of the input's columns; `custom_id` only if it is not the same as the result's."""
    names: dict[str, None] = {}
    texts = True
    for _positions, rows in blocks():
        for row in rows:
            if not row.keys() <= names.keys():
                names |= dict.fromkeys(row)
            texts = texts and ("custom_id" not in row or is_text(row["custom_id"]))
    return [name for name in names if name != "custom_id" or not texts]


def line_of(values: Iterable[bytes]) -> bytes:
    r"""One line of cells that are given as JSON.

    >>> line_of([b'"a,b"', b"1.10", b"null", b'""', b'{"a": 1}'])
    b'"a,b",1.10,,"","{""a"": 1}"\n'
    """
    return _joined(
        None if value == _NULL else _text(value) if value.startswith(b'"') else value.decode()
        for value in values
    )


def _joined(cells: Iterable[str | None]) -> bytes:
    shown = (
        ""
        if cell is None
        else '"' + cell.replace('"', '""') + '"'
        if _QUOTED.search(cell)
        else cell
        for cell in cells
    )
    return (",".join(shown) + "\n").encode()
