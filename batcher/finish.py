"""The journal and the input, put together to one output file. Touches: files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batcher.job import Job
from batcher.read import parquet
from batcher.read.columns import Columns, Misfit
from batcher.read.inputs import Inputs
from batcher.write import index, results
from batcher.write.journal import segments
from batcher.write.manifest import Manifest
from batcher.write.winners import Winners

__all__ = ["Finished", "export", "slots_of", "trusted_from"]


@dataclass(frozen=True)
class Finished:
    """What was written.

    Attributes:
        rows: Output rows.
        missing: Rows that have no result yet and were left out.
        all_ok: Whether every row that was written is ok.
    """

    rows: int
    missing: int
    all_ok: bool


def trusted_from(manifest: Manifest) -> int:
    """Number of the first segment whose answers hold by position."""
    at = len(manifest.epochs) - 1
    while at > 0 and manifest.epochs[at].keeps:
        at -= 1
    return manifest.epochs[at].first_segment if manifest.epochs else 1


def slots_of(models: list[str], asked: tuple[str, ...]) -> npt.NDArray[np.int32]:
    """Slot of each of a segment's models; -1 for one that is not asked for any more."""
    slots = {model: slot for slot, model in enumerate(asked)}
    return np.array([slots.get(model, -1) if asked else 0 for model in models], np.int32)


def export(
    job: Job, folder: Path, inputs: Inputs, manifest: Manifest, say: Callable[[str], None]
) -> Finished:
    """Writes the output from what the journal holds now; the old file stays until the new is whole.

    Raises:
        OutputError: The output cannot be written.
    """
    first = trusted_from(manifest)
    slots = job.models or ("",)
    winners = Winners(len(slots), folder, manifest.epochs[-1].rows or 0)
    for number, path in segments(folder):
        if number >= first:
            segment = index.load(path, number)
            winners.add(segment.entries, slots_of(segment.models, job.models))
    output = Path(job.output)
    with results.Picks(folder, winners, job.route, len(slots)) as picks:
        if output.suffix == ".jsonl":
            written = results.write_jsonl(output, inputs.dicts(), picks, keep_raw=job.keep_raw)
        else:
            written = _parquet(output, inputs, picks, keep_raw=job.keep_raw, say=say)
    for old, new in written.renamed.items():
        say(f"The input column {old!r} has the name of a result; it stands as {new!r}.")
    return Finished(written.rows, written.missing, set(written.statuses) <= {"ok"})


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
