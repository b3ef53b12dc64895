"""Rows of votes to a file: what the answers to each row of the input say together. Touches: files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from batcher.cli.outputs import source
from batcher.evaluate.scorers import Scorer
from batcher.evaluate.votes import VOTE, Panel, vote_row
from batcher.write.atomic import replacing
from batcher.write.columns import COLUMNS, renames

__all__ = ["write_votes"]

_BLOCK_ROWS = 2000
_encode = msgspec.json.Encoder(decimal_format="number", enc_hook=str).encode


def write_votes(
    path: Path, output: str, panels: Callable[[], Iterable[Panel]], scorer: Scorer
) -> int:
    """Writes the input's columns and the columns of `VOTE`, a row for each panel.

    Args:
        path: The file, .jsonl or .parquet.
        output: The output that the panels are of.
        panels: Gives them, as often as it is called.
        scorer: How answers are read.

    Returns:
        How many rows were written.

    Raises:
        OutputError: The disk refuses.
    """
    rows = _Rows(panels, scorer)
    if path.suffix == ".parquet":
        _parquet(path, output, rows)
    else:
        with replacing(path, of_run=False) as file:
            for row in rows:
                file.write(_encode(row) + b"\n")
    return rows.count


class _Rows:
    """Rows to write, made anew each time they are gone through."""

    def __init__(self, panels: Callable[[], Iterable[Panel]], scorer: Scorer) -> None:
        self._panels = panels
        self._scorer = scorer
        self.count = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.count = 0
        for panel in self._panels():
            self.count += 1
            own = {n: v for n, v in panel[0][1].items() if n not in COLUMNS}
            if not own.keys().isdisjoint(VOTE):
                new = renames(own, VOTE)
                own = {new.get(name, name): value for name, value in own.items()}
            yield {**own, **vote_row(panel, self._scorer)}


def _parquet(path: Path, output: str, rows: _Rows) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from batcher.read.columns import Columns, Misfit

    text = pa.string()
    answer = pa.struct([("model", text), ("sample", pa.int32()), ("answer", text)])
    types = {
        "row": pa.int64(), "custom_id": text, "vote": text, "share": pa.float64(),
        "votes": pa.int32(), "tied": pa.list_(text), "disagreement": pa.float64(),
        "answers": pa.list_(answer),
    }  # fmt: skip
    added = [(name, types[name]) for name in VOTE]
    inputs = source(output)
    if (known := inputs.schemas()) is not None:
        columns = Columns.of_schemas(known)
    else:
        columns = Columns.found_in(inputs.native())
    own = {name: kind for name, kind in columns.types.items() if name not in COLUMNS}
    new = renames(own, VOTE)
    columns.types = {new.get(name, name): kind for name, kind in own.items()}
    columns.as_json = {new.get(name, name) for name in columns.as_json}
    while True:
        schema = pa.schema([*columns.types.items(), *added])
        try:
            with (
                replacing(path, of_run=False) as file,
                pq.ParquetWriter(file, schema, compression="zstd") as writer,
            ):
                left = iter(rows)
                while block := list(islice(left, _BLOCK_ROWS)):
                    arrays = [
                        *columns.arrays(block),
                        *(pa.array([row[name] for row in block], kind) for name, kind in added),
                    ]
                    writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
        except Misfit as misfit:
            columns.as_json.add(misfit.name)
            columns.types[misfit.name] = text
            continue
        return
