"""The journal and the input, put together to one output file. Touches: files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batcher.errors import Damaged
from batcher.read.inputs import Inputs
from batcher.write import proof, results
from batcher.write.latest import LatestResults, places_of
from batcher.write.manifest import Manifest
from batcher.write.names import index_file, journal_file
from batcher.write.segment import placed

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
    runs: Collection[str],
    say: Callable[[str], None],
    go_on: Callable[[], None] = lambda: None,
    *,
    locked: bool,
    confirm: results.Confirm = lambda _written: None,
) -> Finished:
    """Writes the output from what the journal holds now; the old file stays until the new is whole.

    Args:
        output: The file to write, .jsonl, .csv or .parquet; with another name a folder of parts.
        folder: The run folder.
        inputs: The rows of the present epoch.
        manifest: What was asked.
        runs: IDs of the runs that asked for these rows.
        say: Told what a person should know, in sentences.
        go_on: Called now and then; what it raises ends the writing, and the old file stays.
        locked: Whether the caller holds the run folder; beside a running process nothing else in
            it is touched but the note of what was written (`write.proof`).
        confirm: Told what is written, before it takes the place of the old file; what it raises
            leaves that as it is.

    Raises:
        Damaged: Answers that there were are gone, and the output would lack them. Not raised when
            the caller holds no lock, so cannot send them again, and there is no output to spoil.
            Or the input was touched while it was read.
        OutputError: The output cannot be written.
    """
    asked = manifest.asked
    models = len(asked.models or ("",))
    rows = manifest.epochs[-1].rows or 0
    winners = LatestResults(models, folder, rows, samples=asked.samples)
    held = proof.ends(folder)
    lost: dict[int, int] = {}
    for segment in placed(folder, runs, keep=locked):
        go_on()
        if segment.lost:
            lost[segment.number] = segment.lost
        winners.add(segment.entries, places_of(segment.models, asked.models))
    spoils = locked or output.exists()

    def whole(written: results.Written) -> None:
        if (name := inputs.touched()) is not None:
            raise Damaged(f"{name} was touched while the output was written")
        if picks.lost and spoils:
            names = ", ".join(journal_file(number) for number in sorted(picks.damaged))
            what = "one answer" if picks.lost == 1 else f"{picks.lost:,} answers"
            raise Damaged(f"{names}: {what} there cannot be read any more")
        if written.missing and locked:
            what = "one result is" if written.missing == 1 else f"{written.missing:,} results are"
            raise Damaged(f"{folder}: {what} not in the journal any more")
        confirm(written)

    picks = results.ResultReader(folder, winners, asked.route, models, asked.samples, go_on)
    picks.damaged.update(lost)
    picks.lost = sum(lost.values())
    how: dict[str, Any] = {"keep_raw": asked.keep_raw, "confirm": whole}
    try:
        with picks:
            if output.suffix == ".jsonl":
                from batcher.write.jsonl import Renamed, write_jsonl

                how |= {"parsed": asked.parsed is not None, "batch": asked.batch}
                try:
                    written = write_jsonl(output, inputs.dicts(), picks, **how)
                except Renamed as names:
                    how["renamed"] = names.names
                    written = write_jsonl(output, inputs.dicts(), picks, **how)
            elif output.suffix == ".csv":
                from batcher.write.csv import write_csv

                how["parsed"] = asked.parsed is not None
                written = write_csv(output, inputs.dicts, picks, **how)
            else:
                written = _parquet(output, inputs, picks, asked.parsed, say, **how)
    finally:
        for number in picks.damaged if locked else ():
            # Its sidecar promises lines that are not there: the segment is to be read again.
            (folder / index_file(number)).unlink(missing_ok=True)
    for sentence in inputs.losses():
        say(sentence)
    if folder == output.with_name(f"{output.name}.run") and not picks.lost:
        proof.note(folder, output, held)
    for old, new in written.renamed.items():
        say(f"The input column {old!r} has the name of a result; it stands as {new!r}.")
    return Finished(written.rows, written.missing, picks.lost, set(written.statuses) <= {"ok"})


def _parquet(
    output: Path,
    inputs: Inputs,
    picks: results.ResultReader,
    checked: dict[str, Any] | None,
    say: Callable[[str], None],
    **how: Any,
) -> results.Written:
    import pyarrow as pa  # Takes its time to import, and is not needed for JSONL.

    from batcher.read.columns import Columns, Misfit, names_in
    from batcher.write import schema_types
    from batcher.write.parquet import Block, NotOfType, write_parquet

    def blocks(columns: Columns) -> Iterator[Block]:
        for positions, rows in inputs.native(columns.as_json):
            yield Block(positions, list(columns.arrays(rows)), names_in(rows))

    mixed: set[str] = set()
    shape = None if checked is None else schema_types.shape_of(checked)
    schemas = inputs.schemas()
    while True:
        if schemas is not None:
            columns = Columns.of_schemas(schemas, mixed)
        else:
            columns = Columns.found_in(inputs.native(), mixed)
        schema = pa.schema(list(columns.types.items()))
        try:
            written = write_parquet(
                output,
                blocks(columns),
                schema,
                picks,
                parsed=shape,
                as_json=columns.as_json,
                **how,
            )
        except NotOfType:
            say("Not all answers are of one Arrow type; 'parsed' is a column of JSON text.")
            shape = schema_types.TEXT
            continue
        except Misfit as misfit:
            mixed.add(misfit.name)
            continue
        for name in sorted(columns.as_json):
            say(f"The rows disagree on the type of {name!r}; it is a column of JSON text.")
        return written
