"""`batcher convert`: rows to lines of a batch's input, lines of its output to rows. Touches: files, the terminal."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from batcher.errors import JobError
from batcher.job.job import Job
from batcher.live.terminal import say

if TYPE_CHECKING:
    from batcher.read.inputs import Inputs

__all__ = ["convert"]

_ROWS = 10_000
_Many = Parameter(negative_iterable="", consume_multiple=False)


def convert(
    *inputs: str,
    output: Annotated[str, Parameter(name=["--output", "-o"])],
    model: Annotated[
        tuple[str, ...],
        Parameter(name=["--model", "-m"], negative_iterable="", consume_multiple=False),
    ] = (),
    prompt: str | None = None,
    system: str | None = None,
    param: Annotated[tuple[str, ...], _Many] = (),
    encoding: str | None = None,
    delimiter: str | None = None,
) -> int:
    """Turn rows into the input of a provider's batch, or its output and error files into rows.

    Which of them follows from the input. Exit status: 0, or 3 when there are rows that cannot be sent,
    which are left out.

    Args:
        inputs: Files of rows, as for run; or output and error files of a finished batch.
        output: File to write: .jsonl, for rows also .parquet or .csv. An earlier file is not replaced.
        model: Model ID, as for run; with several each line is named by its row and model.
        prompt: Template of the user message, as for run.
        system: Template of the system message, as for run.
        param: KEY=JSON, a field of the request body, as for run.
        encoding: Of the input's text, as for run.
        delimiter: Of CSV, as for run.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    from batcher.batches import batch_file
    from batcher.read.files import expand, notes_of
    from batcher.read.inputs import Inputs
    from batcher.read.prompts import Prompter
    from batcher.write.atomic import replacing

    path = Path(output)
    if path.suffix not in (".jsonl", ".parquet", ".csv"):
        raise JobError(f"{path}: its suffix tells no format; end it in .jsonl, .parquet or .csv.")
    if path.exists():
        raise JobError(f"{path}: it is there already; name another --output, or remove it.")
    if not path.parent.is_dir():
        raise JobError(f"{path}: there is no folder {path.parent}; make it first.")
    job = Job(
        output="-", models=model, prompt=prompt, system=system, params=param,
        encoding=encoding, delimiter=delimiter,
    )  # fmt: skip
    files = expand(list(inputs), output, encoding=job.text_encoding, delimiter=job.cell_delimiter)
    for note in notes_of(files):
        say(note, error=True)
    rows = Inputs(files)
    first = next((row.columns for row in rows.rows() if row.columns is not None), {})
    if batch_file.is_answer(first):
        with replacing(path, of_run=False) as file:
            count = _write_rows(_answers(rows), file, path.suffix)
        say(f"{count:,} rows in {output}.", error=True)
        return 0
    if path.suffix != ".jsonl":
        raise JobError(f"{path}: a batch's input is JSONL; end it in .jsonl.")
    prompter = Prompter(*job.templates, job.body_params, own_model=not model)
    readable = (row for row in rows.rows(prompter.columns) if row.columns is not None)
    if first and not any(map(prompter.uses, readable)):
        raise prompter.uses_no_column(", ".join(inputs), first)
    count = bad = 0
    with replacing(path, of_run=False) as file:
        for line, error in batch_file.requests_of(rows, prompter, model):
            if line is None:
                bad += 1
                if bad <= 20:
                    say(error, error=True)
            else:
                count += 1
                file.write(line)
    left_out = f"; {bad:,} rows cannot be sent and are left out" if bad else ""
    say(f"{count:,} requests in {output}{left_out}.", error=True)
    return 3 if bad else 0


def _answers(rows: Inputs) -> Iterator[dict[str, Any]]:
    from batcher.batches import batch_file

    for row in rows.rows():
        if row.columns is None or row.error is not None:
            raise JobError(f"{row.error}.")
        if not batch_file.is_answer(row.columns):
            raise JobError(f"{row.where}: it is no line of a batch's output.")
        yield batch_file.row_of(row.columns, row.position)


def _write_rows(rows: Iterator[dict[str, Any]], file: IO[bytes], suffix: str) -> int:
    import msgspec

    from batcher.write.columns import result_names

    count = 0
    if suffix == ".csv":
        from batcher.write.csv import line_of

        names = result_names(keep_raw=False, shown=("tool_calls", "logprobs"))
        file.write(line_of(map(msgspec.json.encode, names)))
        for row in rows:
            file.write(line_of(msgspec.json.encode(row.get(name)) for name in names))
            count += 1
        return count
    if suffix == ".jsonl":
        for row in rows:
            file.write(msgspec.json.encode(row) + b"\n")
            count += 1
        return count
    import pyarrow as pa
    import pyarrow.parquet as pq

    from batcher.write.parquet import result_schema

    schema = result_schema()
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        while block := list(islice(rows, _ROWS)):
            texts = [{name: _text(value) for name, value in row.items()} for row in block]
            writer.write_table(pa.Table.from_pylist(texts, schema))
            count += len(block)
    return count


def _text(value: Any) -> Any:
    import msgspec

    return msgspec.json.encode(value).decode() if isinstance(value, dict | list) else value
