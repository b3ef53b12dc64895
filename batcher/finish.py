"""The journal and the input, put together to one output file. Touches: files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from batcher.read import parquet
from batcher.read.columns import Columns, Misfit
from batcher.read.inputs import Inputs
from batcher.write import index, results
from batcher.write.manifest import Manifest
from batcher.write.segment import segments
from batcher.write.winners import Winners, slots_of

__all__ = ["Finished", "export"]


@dataclass(frozen=True)
class Finished:
    """What was written.

    Attributes:
        rows: Output rows.
        missing: Rows that have no result yet and were left out.
        lost: How many of them had one that is damaged now.
        all_ok: Whether every row that was written is ok.
    """

    rows: int
    missing: int
    lost: int
    all_ok: bool


def export(
    output: Path,
    folder: Path,
    inputs: Inputs,
    manifest: Manifest,
    say: Callable[[str], None],
    go_on: Callable[[], None] = lambda: None,
    *,
    locked: bool,
    enough: Callable[[int, int], None] = lambda _rows, _missing: None,
) -> Finished:
    """Writes the output from what the journal holds now; the old file stays until the new is whole.

    Args:
        output: The file to write, .jsonl or .parquet.
        folder: The run folder.
        inputs: The rows of the present epoch.
        manifest: What was asked.
        say: Told what a person should know, in sentences.
        go_on: Called now and then; what it raises ends the writing, and the old file stays.
        locked: Whether the caller holds the run folder; beside a running process nothing else in
            it is touched.
        enough: Told how many rows are written and how many are missing, before they take the place
            of the old file; what it raises ends the writing.

    Raises:
        Damaged: Answers are not what they were, and the output would lack them. Not raised when
            the caller holds no lock, so cannot send them again, and there is no output to spoil.
        OutputError: The output cannot be written.
    """
    asked = manifest.asked
    slots = asked.models or ("",)
    winners = Winners(len(slots), folder, manifest.epochs[-1].rows or 0)
    for number, path in segments(folder):
        if number >= manifest.trusted_from:
            go_on()
            segment = index.load(path, number, keep=locked)
            winners.add(segment.entries, slots_of(segment.models, asked.models))
    strict = locked or output.exists()
    picks = results.Picks(
        folder, winners, asked.route, len(slots), go_on, strict=strict, whole=locked, enough=enough
    )
    try:
        with picks:
            if output.suffix == ".jsonl":
                rows = inputs.dicts()
                written = results.write_jsonl(output, rows, picks, keep_raw=asked.keep_raw)
            else:
                written = _parquet(output, inputs, picks, keep_raw=asked.keep_raw, say=say)
    finally:
        for number in picks.damaged if locked else ():
            # Its sidecar promises lines that are not there: the segment is to be read again.
            (folder / f"journal-{number:06}.idx").unlink(missing_ok=True)
    for old, new in written.renamed.items():
        say(f"The input column {old!r} has the name of a result; it stands as {new!r}.")
    return Finished(written.rows, written.missing, picks.lost, set(written.statuses) <= {"ok"})


def _parquet(
    output: Path,
    inputs: Inputs,
    picks: results.Picks,
    *,
    keep_raw: bool,
    say: Callable[[str], None],
) -> results.Written:
    mixed: set[str] = set()
    while True:
        if len(inputs.files) == 1 and inputs.files[0].kind == "parquet":
            columns = Columns.of_schema(parquet.schema(inputs.files[0].path))
        else:
            columns = Columns.found_in(inputs.native(), mixed)
        schema = pa.schema(list(columns.types.items()))
        try:
            written = results.write_parquet(
                output, _arrays(inputs, columns), schema, picks, keep_raw=keep_raw
            )
        except Misfit as misfit:
            mixed.add(misfit.name)
            continue
        for name in sorted(columns.as_json):
            say(f"The rows disagree on the type of {name!r}; it is a column of JSON text.")
        return written


def _arrays(inputs: Inputs, columns: Columns) -> Iterator[tuple[list[int], list[pa.Array]]]:
    for positions, rows in inputs.native():
        yield positions, list(columns.arrays(rows))
