"""What the commands about a run folder share: finding it, and asking whether it is at work.

Touches: files.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from batcher.errors import JobError
from batcher.read import object_store
from batcher.write import folder as folders
from batcher.write import overwrite
from batcher.write.lock import Lock, holder
from batcher.write.manifest import Manifest
from batcher.write.names import EARLIER, run_folder

if TYPE_CHECKING:
    from batcher.read.inputs import Inputs

__all__ = ["found", "inputs_of", "present"]


def found(output: str) -> tuple[Path, Manifest]:
    """The run folder of an output, and its manifest.

    Raises:
        JobError: There is none.
    """
    folder = run_folder(object_store.here(output))
    if (folder / EARLIER).is_dir() and holder(folder) is None:
        lock = Lock(folder)
        try:
            overwrite.settle(folder)  # A run with --overwrite was killed.
        finally:
            lock.release()
    manifest = None
    if folder.is_dir():
        folders.check(folder)
        manifest = Manifest.load(folder)
    if manifest is None:
        raise JobError(f"{output}: there is no run of it ({folder}); name the --output of a run.")
    if manifest.edited or not manifest.epochs:
        raise JobError(
            f"{folder / 'run.json'} is not as it was written; run the job again, which finds the answers "
            "by what was sent."
        )
    return folder, manifest


def inputs_of(folder: Path, manifest: Manifest) -> Inputs:
    """The rows that the last run asked for; the files may be gone or changed since."""
    from batcher.read.files import InputFile, Pin
    from batcher.read.inputs import Inputs

    pins = msgspec.convert(manifest.epochs[-1].inputs, list[Pin])
    files = [InputFile.of_pin(pin, folder) for pin in pins]
    return Inputs(files, manifest.asked.limit, manifest.asked.drawn)


def present(folder: Path, manifest: Manifest) -> tuple[Inputs, list[str]]:
    """The rows of the last run, and the IDs of the runs of which it is known that they read these rows.

    Raises:
        JobError: The files hold other rows now, or there is no such run.
    """
    inputs, epoch = inputs_of(folder, manifest), manifest.epochs[-1]
    runs = epoch.runs if inputs.touched() is not None else [*epoch.runs, *epoch.open]
    again = "run the job again, which finds the answers that still fit."
    if (name := inputs.changed()) is not None:
        raise JobError(
            f"{name} is gone or changed since the run, so its rows and the answers cannot be put "
            f"together; {again}"
        )
    if not runs:
        raise JobError(
            f"{folder / 'run.json'} does not tell which answers are of these rows (an earlier version wrote it, or "
            f"the input was touched during the run); {again}"
        )
    return inputs, runs
