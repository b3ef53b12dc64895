"""Rows of finished outputs, for the commands that read them: an output is an input like any other.

Touches: files (reads).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from batcher.errors import JobError

__all__ = ["rows_of"]


def rows_of(output: str, columns: frozenset[str] | None = None) -> Iterator[dict[str, Any]]:
    """Its rows in order.

    Args:
        output: A finished output.
        columns: Those that are needed; None for all.

    Raises:
        JobError: There is no such file, or it is damaged.
    """
    from batcher.read.files import expand
    from batcher.read.inputs import Inputs

    if not Path(output).is_file():
        unfinished = Path(f"{output}.run").is_dir()
        how = f"; write what there is with: batcher export {output} FILE" if unfinished else ""
        raise JobError(f"{output}: there is no such output{how}.")
    for row in Inputs(expand([output])).rows(columns):
        if row.columns is None:
            raise JobError(f"{row.error}.")
        yield row.columns
