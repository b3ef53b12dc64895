"""`batcher export`: an output from what is answered so far. Touches: the terminal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from batcher.errors import BatcherError, IncompleteOutput, JobError
from batcher.live.terminal import say
from batcher.read import object_store

__all__ = ["export"]

_COLUMNS = {"row", "model", "sample", "status", "attempts", "created_at"}


def export(output: str, to: str | None = None, /) -> int:
    """Write what is answered so far, at any time, also beside a running process.

    Rows that have no result yet are left out. Exit status: 0 every row is there and ok, 3 some are
    missing or not ok.

    Args:
        output: Output of a run, finished or not.
        to: File to write, .jsonl, .parquet or .csv; NAME/ is a folder of Parquet files. Default: the output
            itself.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

    from batcher.cli.folder import found, present
    from batcher.write import finish, parts
    from batcher.write.results import Written

    path = Path(to or object_store.here(output))
    if path.suffix not in (".jsonl", ".parquet", ".csv"):
        if not ((to or output).endswith("/") or path.is_dir()):
            raise JobError(
                f"{path}: its suffix tells no format; end it in .jsonl, .parquet or .csv, or in / for a folder of "
                "Parquet files."
            )
        if told := parts.in_the_way(path):
            raise JobError(told)
        parts.settle(path)
    elif path.is_dir():
        raise JobError(f"{path}: it is a folder; name a file in it.")
    if not path.parent.is_dir():
        raise JobError(f"{path}: there is no folder {path.parent}; make it first.")
    folder, manifest = found(output)
    inputs, runs = present(folder, manifest)
    if parts.files(path):
        _check_ours(path, Path(object_store.here(output)), [file.path for file in inputs.files])
    before = sum(map(_rows, parts.files(path)))

    def enough(written: Written) -> None:
        if written.missing and written.rows < before:
            raise JobError(
                f"{path} has {before:,} rows, and only {written.rows:,} can be written now; name "
                f"another file: batcher export {output} FILE."
            )

    try:
        written = finish.export(
            path,
            folder,
            inputs,
            manifest,
            runs,
            partial(say, error=True),
            locked=False,
            confirm=enough,
        )
    except IncompleteOutput as error:
        raise IncompleteOutput(
            f"{error}; {path} is left as it is. Run the job again, which sends those rows again, or "
            "name a file that is not there yet for what is left."
        ) from None
    missing = f", {written.missing:,} are not answered yet" if written.missing else ""
    lost = f", {written.lost:,} of them have a damaged answer" if written.lost else ""
    say(f"{written.rows:,} rows in {path}{missing}{lost}.", error=True)
    return 0 if written.all_ok and not written.missing else 3


def _check_ours(path: Path, output: Path, inputs: Sequence[str]) -> None:
    """Whether a file that is there may be replaced: the output itself, or an earlier export.

    Raises:
        JobError: It may not.
    """
    from batcher.read.files import is_of

    if any(is_of(f"{path}/" if path.is_dir() else str(path), name) for name in inputs):
        raise JobError(f"{path}: it is the input of the run; name another file.")
    if output.exists() and os.path.samefile(path, output):
        return
    if path.with_name(f"{path.name}.run").exists():
        raise JobError(f"{path}: it is the output of another run; name another file.")
    if not _names(path) >= _COLUMNS:
        raise JobError(
            f"{path}: it is there already, and is no output of batcher's; name another file, or remove it."
        )


def _names(path: Path) -> set[str]:
    """Columns of the first row; none where they cannot be read."""
    from batcher.read.files import expand
    from batcher.read.inputs import Inputs

    try:
        rows = islice(Inputs(expand([str(path)])).rows(), 1)
        return {name for row in rows for name in row.columns or ()}
    except BatcherError:
        return set()


def _rows(path: Path) -> int:
    """How many rows an output has; 0 for what is none."""
    if path.suffix == ".parquet":
        import pyarrow as pa

        from batcher.read import parquet

        try:
            return parquet.count(str(path))
        except (OSError, pa.ArrowException):
            return 0
    if path.suffix == ".csv":
        from batcher.read import csv

        try:
            return sum(1 for _record in csv.records(str(path)))
        except JobError:
            return 0
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
