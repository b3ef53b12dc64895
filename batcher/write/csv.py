"""The output as CSV: the input's columns, then the result's. Touches: files.

Lines are those of RFC 4180 but end in a newline alone; the text is UTF-8 without a mark. Null is an empty
cell and an empty text is `""`, which only some readers tell apart. Lists and objects are JSON text. A text
that a spreadsheet takes for a formula stays as it is: what comes from a model is data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from batcher.write.columns import renames, result_names
from batcher.write.jsonl import is_text, output_row
from batcher.write.results import Confirm, ResultReader, Written, whole

__all__ = ["line_of", "write_csv"]

_QUOTED = re.compile(r'[",\r\n]|^\s|\s$|^$')
_cells = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_text = msgspec.json.Decoder(str).decode
_NULL = b"null"


def write_csv(
    path: Path,
    blocks: Callable[[], Iterator[tuple[list[int], list[dict[str, Any]]]]],
    picks: ResultReader,
    *,
    keep_raw: bool,
    parsed: bool = False,
    confirm: Confirm = lambda _written: None,
) -> Written:
    """Writes CSV; see `Written`.

    Args:
        path: The output.
        blocks: Gives (positions, the input's columns at each), and is called twice: the header has the
            columns of all rows.
        picks: Finds the lines.
        keep_raw: Whether rows have their `response`.
        parsed: Whether they have `parsed`.
        confirm: Told what is written, before it takes the place of the old file; what it raises
            leaves that as it is.

    Raises:
        OutputError: The disk refuses.
    """
    written = Written()
    names: dict[str, None] = {}
    texts = True  # A column of texts is not repeated: the result's `custom_id` has the same.
    for _positions, rows in blocks():
        for row in rows:
            if not row.keys() <= names.keys():
                names |= dict.fromkeys(row)
            texts = texts and ("custom_id" not in row or is_text(row["custom_id"]))
    own = [name for name in names if name != "custom_id" or not texts]
    written.renamed = renames(own)
    shown = [*picks.shown, *(["parsed"] if parsed else [])]
    header = [written.renamed.get(name, name) for name in own]
    header += result_names(keep_raw=keep_raw, shown=shown)
    with whole(path) as file:
        file.write(_joined(header))
        for positions, rows in blocks():
            for place, sample, line in picks.lines(positions):
                if line is None:
                    written.missing += 1
                    continue
                text, status = output_row(
                    rows[place],
                    line,
                    positions[place],
                    sample,
                    keep_raw=keep_raw,
                    parsed=parsed,
                    renamed=written.renamed,
                    copied="copied" in shown,
                )
                cells = _cells(text)
                file.write(line_of(bytes(cells.get(name, _NULL)) for name in header))
                written.rows += 1
                written.statuses[status] += 1
        confirm(written)
    return written


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
