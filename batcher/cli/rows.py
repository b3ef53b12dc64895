"""Rows on stdout as they finish (`-o -`). Touches: stdout."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO

import msgspec

from batcher.live.terminal import escaped
from batcher.records import Prompt, Result
from batcher.write.batch_lines import batch_line
from batcher.write.jsonl import RowEncoder

__all__ = ["RowWriter"]

_encode = msgspec.json.Encoder().encode


class RowWriter:
    """Writes each result at once as a JSON line; `batch` tells whether it is one of a batch."""

    def __init__(
        self, file: IO[bytes], *, keep_raw: bool, parsed: bool, batch: Callable[[], bool]
    ) -> None:
        self._file = file
        self._batch = batch
        self._on_terminal = file.isatty()
        self._encoder = RowEncoder(keep_raw=keep_raw, parsed=parsed)

    async def write(self, prompt: Prompt, result: Result) -> None:
        """One line: the input's columns, then the result's."""
        columns, line = prompt.columns or {}, _encode(result)
        if self._batch():
            made = batch_line(line, prompt.custom_id)[0]
        else:
            made = self._encoder.row(columns, line, prompt.row, prompt.sample)[0]
        self._file.write(escaped(made.decode()).encode() if self._on_terminal else made)
        self._file.flush()
