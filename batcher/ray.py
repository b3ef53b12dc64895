"""`batcher.ray.map`: a Ray dataset in, one with the answers out. Touches: files, a Ray cluster."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from batcher.api import run
from batcher.errors import JobError
from batcher.write.atomic import move

__all__ = ["map"]


def map(dataset: Any, output: str | os.PathLike[str], **options: Any) -> Any:
    """Answers every row of a Ray dataset; returns the rows with their answers as a dataset.

    The rows are written to `<output>.rows/` first, and then sent by all machines of the cluster, as
    `batcher run --on ray` does; it keeps what that keeps. What is kept so, and would not be by a
    `map_batches`: Ray computes a block anew when a machine dies or the program is started again, and
    would pay for all of it again; here every answer is in the journal beside the output, and one limit
    and one budget hold for all machines.

    What it cannot keep: it is not lazy. All rows are written and answered before the dataset that is
    returned has any, and a stage behind it begins then. Rows that the dataset gives otherwise at the next
    call (drawn by chance, with the time in them) are other rows, and are sent.

    Args:
        dataset: A `ray.data.Dataset`, of columns that Parquet can hold.
        output: File to write, .parquet, or "NAME/" for a folder of them; where all machines see it.
        **options: The fields of `Job`, such as `models=["m"]`, `rpm=500`; `on="ray"` is told.

    Raises:
        BatcherError: As for `batcher.run`.
    """
    path, told = Path(output), os.fspath(output)
    if path.suffix != ".parquet" and not told.endswith("/"):
        raise JobError(
            f"{told}: the output of a Ray dataset is a .parquet file, or a folder/ of them."
        )
    if not path.parent.is_dir():
        raise JobError(f"{told}: there is no folder {path.parent}; make it first.")
    rows = path.parent / f"{path.name}.rows"
    _write(dataset, rows)
    run(rows, told, **{"on": "ray", **options})
    import ray.data

    # Workers of a cluster that was there before have a working directory of their own.
    return ray.data.read_parquet(str(path.resolve()))


def _write(dataset: Any, folder: Path) -> None:
    """Replaces the folder by one with the rows; its files are named in the order of the blocks."""
    new, old = (folder.with_name(f"{folder.name}.{word}") for word in ("new", "old"))
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    new.mkdir(mode=0o700)  # Prompts are private.
    dataset.write_parquet(str(new.resolve()))
    if not any(new.glob("*.parquet")):
        raise JobError("The dataset has no rows.")
    for number, path in enumerate(sorted(new.glob("*.parquet"))):
        move(path, new / f"rows-{number:06}.parquet")
    if folder.exists():
        move(folder, old)
    move(new, folder)
    shutil.rmtree(old, ignore_errors=True)
