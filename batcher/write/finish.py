"""Writes the output: the journal and the input, joined. Touches: files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batcher.errors import IncompleteOutput
from batcher.read.inputs import Inputs
from batcher.write import proof
from batcher.write.entries import load_present
from batcher.write.latest import LatestResults, places_of
from batcher.write.manifest import Asked, Manifest
from batcher.write.names import index_file, journal_file, run_folder
from batcher.write.results import Confirm, ResultReader, Written

__all__ = ["Finished", "export"]

Say = Callable[[str], None]


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
    say: Say,
    go_on: Callable[[], None] = lambda: None,
    *,
    locked: bool,
    confirm: Confirm = lambda _written: None,
) -> Finished:
    """Writes the output from what the journal holds now; the old one stays until the new one is whole.

    Args:
        output: The file to write, .jsonl, .csv or .parquet; with another suffix a folder of parts.
        folder: The run folder.
        inputs: The rows of the present epoch.
        manifest: What was asked.
        runs: IDs of the runs that asked for these rows.
        say: Called with sentences for the user.
        go_on: Called now and then; raises to end the writing, and the old output stays.
        locked: Whether the caller holds the run folder. If not, nothing in it is changed but the
            note of what was written (`write.proof`), as another process may be at work.
        confirm: Called before the old output is replaced.

    Raises:
        IncompleteOutput: Answers are gone that the output would lack, or the input was touched while it was read.
            Not raised for answers when the caller holds no lock, so cannot send rows again, and there is no
            output to spoil.
        OutputError: The output cannot be written.
    """
    before = proof.ends(folder)  # First: a line appended from now on does not count as written.
    latest, damaged = _latest(folder, manifest, runs, go_on, keep=locked)
    asked = manifest.asked
    models = len(asked.models or ("",))
    reader = ResultReader(folder, latest, asked.route, models, asked.samples, go_on)
    reader.damaged.update(damaged)
    reader.lost = sum(damaged.values())
    spoils = locked or output.exists()

    def check(written: Written) -> None:
        if (name := inputs.touched()) is not None:
            raise IncompleteOutput(f"{name} was touched while the output was written")
        _check_complete(reader, written.missing if locked else 0, folder, spoils=spoils)
        confirm(written)

    try:
        with reader:
            written = _write(output, inputs, reader, asked, say, check)
    finally:
        for number in reader.damaged if locked else ():
            # Its index promises lines that are not there: the segment must be read again.
            (folder / index_file(number)).unlink(missing_ok=True)
    for sentence in inputs.losses():
        say(sentence)
    if folder == run_folder(output) and not reader.lost:
        proof.note(folder, output, before)
    for old, new in written.renamed.items():
        say(f"The input column {old!r} has the name of a result; it stands as {new!r}.")
    return Finished(written.rows, written.missing, reader.lost, set(written.statuses) <= {"ok"})


def _check_complete(reader: ResultReader, missing: int, folder: Path, *, spoils: bool) -> None:
    """Refuses to replace an output by one that lacks answers.

    Raises:
        IncompleteOutput: It names where they were.
    """
    if reader.lost and spoils:
        names = ", ".join(journal_file(number) for number in sorted(reader.damaged))
        what = "one answer" if reader.lost == 1 else f"{reader.lost:,} answers"
        raise IncompleteOutput(f"{names}: {what} there cannot be read any more")
    if missing:
        what = "one result is" if missing == 1 else f"{missing:,} results are"
        raise IncompleteOutput(f"{folder}: {what} not in the journal any more")


def _latest(
    folder: Path,
    manifest: Manifest,
    runs: Collection[str],
    go_on: Callable[[], None],
    *,
    keep: bool,
) -> tuple[LatestResults, dict[int, int]]:
    """Where the line of each row is, and how many lines each damaged segment lost."""
    asked, rows = manifest.asked, manifest.epochs[-1].rows or 0
    latest = LatestResults(len(asked.models or ("",)), folder, rows, samples=asked.samples)
    damaged: dict[int, int] = {}
    for segment in load_present(folder, runs, keep=keep):
        go_on()
        if segment.lost:
            damaged[segment.number] = segment.lost
        latest.add(segment.entries, places_of(segment.models, asked.models))
    return latest, damaged


def _write(
    output: Path,
    inputs: Inputs,
    reader: ResultReader,
    asked: Asked,
    say: Say,
    confirm: Confirm,
) -> Written:
    options: dict[str, Any] = {"keep_raw": asked.keep_raw, "confirm": confirm}
    parsed = asked.parsed is not None
    if output.suffix == ".jsonl":
        from batcher.write.jsonl import write_jsonl

        return write_jsonl(
            output, inputs.dicts, reader, parsed=parsed, batch=asked.batch, **options
        )
    if output.suffix == ".csv":
        from batcher.write.csv import write_csv

        return write_csv(output, inputs.dicts, reader, parsed=parsed, **options)
    return _write_parquet(output, inputs, reader, asked.parsed, say, **options)


def _write_parquet(
    output: Path,
    inputs: Inputs,
    reader: ResultReader,
    json_schema: dict[str, Any] | None,
    say: Say,
    **options: Any,
) -> Written:
    """Writes Parquet, again when a column turns out not to be of the type that was found for it."""
    import pyarrow as pa  # Slow to import, and not needed for JSONL.

    from batcher.read.columns import Columns, Misfit, names_in
    from batcher.write import schema_types
    from batcher.write.parquet import Block, NotOfType, write_parquet

    def blocks(columns: Columns) -> Iterator[Block]:
        for positions, rows in inputs.native(columns.as_json):
            yield Block(positions, list(columns.arrays(rows)), names_in(rows))

    mixed: set[str] = set()
    shape = None if json_schema is None else schema_types.shape_of(json_schema)
    schemas = inputs.schemas()
    while True:
        if schemas is not None:
            columns = Columns.of_schemas(schemas, mixed)
        else:
            columns = Columns.found_in(inputs.native(), mixed)
        schema = pa.schema(list(columns.types.items()))
        options |= {"parsed": shape, "as_json": columns.as_json}
        try:
            written = write_parquet(output, blocks(columns), schema, reader, **options)
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
