"""Whether an output may be written where it is wanted; what a kill left there. Touches: files."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from batcher.errors import JobError
from batcher.job import Job
from batcher.write import aside

__all__ = ["check_output", "sweep"]


def check_output(output: Path, folder: Path, job: Job) -> None:
    """Whether the output can be written, and is ours if it is there.

    Raises:
        JobError: It cannot, or is somebody else's.
    """
    if os.path.realpath(output) in map(os.path.realpath, job.inputs):
        raise JobError(f"{output}: it is the input and the output; name another --output.")
    parent = output.parent
    if output.is_dir():
        raise JobError(
            f"{output}: it is a folder; name a file in it, such as {output / 'out.jsonl'}."
        )
    if not parent.is_dir():
        raise JobError(f"{output}: there is no folder {parent}; make it first.")
    if not os.access(parent, os.W_OK):
        raise JobError(f"{output}: the folder {parent} cannot be written.")
    names = []
    if folder.exists():
        try:
            names = os.listdir(folder)
        except NotADirectoryError:
            names = [folder.name]
        except OSError as error:
            raise JobError(f"{folder}: it cannot be read: {error.strerror}.") from None
        if names and not {"LOCK", "run.json", "journal-000001.jsonl"} & {*names}:
            raise JobError(f"{folder}: it is in the way of the run folder; move it.")
    recorded = any(name.startswith(("run.json", "journal-", aside.ASIDE)) for name in names)
    if output.exists() and not recorded and not job.overwrite:
        raise JobError(
            f"{output} is there already and batcher has no record of having written it; choose "
            "another --output, move it away, or replace it with --overwrite."
        )


def sweep(output: Path) -> None:
    """Removes outputs that a kill left unfinished."""
    for path in output.parent.glob(f".{glob.escape(output.name)}.tmp-*"):
        pid = path.name.rpartition("-")[2]
        try:
            os.kill(int(pid), 0)
        except (ValueError, ProcessLookupError):
            path.unlink(missing_ok=True)
        except PermissionError:
            continue  # Somebody else's process is alive under this number.
