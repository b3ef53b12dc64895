"""`batcher.ray.map`: a Ray dataset in, a dataset with answers out. Touches: files, a Ray cluster."""

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
    """Sends every row of a Ray dataset; returns a dataset of the rows with their answers.

    The rows are first written to `<output>.rows/`, then sent from all machines of the cluster, as
    `batcher run --on ray` does. A `map_batches` would pay twice: Ray computes a block again when a machine
    dies or the program restarts. Here every answer is in the journal beside the output, and one limit and
    one budget hold for all machines.

    It is not lazy: all rows are answered before the dataset that it returns has any. Rows that the dataset
    yields differently at the next call (drawn at random, or with the time in them) are other rows, and are
    sent.

    Args:
        dataset: A `ray.data.Dataset`, of columns that Parquet can hold.
        output: File to write, .parquet, or "NAME/" for a folder of them; in a folder that all machines share.
        **options: The fields of `Job`, such as `models=["m"]`, `rpm=500`; `on="ray"` is the default.

    Raises:
        BatcherError: As for `batcher.run`.
    """
    path, name = Path(output), os.fspath(output)
    if path.suffix != ".parquet" and not name.endswith("/"):
        raise JobError(
            f"{name}: the output of a Ray dataset is a .parquet file, or a folder/ of them."
        )
    if not path.parent.is_dir():
        raise JobError(f"{name}: there is no folder {path.parent}; make it first.")
    rows = path.parent / f"{path.name}.rows"
    _write(dataset, rows)
    run(rows, name, **{"on": "ray", **options})
    import ray.data

    # Absolute: workers of a running cluster have another working directory.
    return ray.data.read_parquet(str(path.resolve()))


def _write(dataset: Any, folder: Path) -> None:
    """Replaces the folder with one of the rows, in files named in the order of the blocks."""
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
