"""Whether an output may be written where it is wanted; what a kill left there. Touches: files, the network."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from batcher import objects
from batcher.errors import JobError
from batcher.job import Job
from batcher.read.files import is_of
from batcher.write import aside, parts
from batcher.write.manifest import Manifest

__all__ = ["check_output", "sweep"]


def check_output(output: Path, folder: Path, job: Job) -> None:
    """Whether the output can be written, and is ours if it is there.

    Args:
        output: Where it is made; its address, if it has one, is in the job.
        folder: The run folder.
        job: What was asked.

    Raises:
        JobError: It cannot, or is somebody else's.
    """
    if job.output in job.inputs or any(is_of(job.output, path) for path in job.inputs):
        raise JobError(f"{job.output}: it is the input and the output; name another --output.")
    parent = output.parent
    if job.output.endswith("/"):
        if told := parts.in_the_way(output):
            raise JobError(told)
    elif output.is_dir():
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
    if parts.files(output) and not recorded and not job.overwrite:
        raise JobError(
            f"{output} is there already and batcher has no record of having written it; choose "
            "another --output, move it away, or replace it with --overwrite."
        )
    if objects.is_object(job.output):
        _check_address(job, folder)


def _check_address(job: Job, folder: Path) -> None:
    """The same of what is to be uploaded."""
    manifest = Manifest.load(folder)
    ours = "" if manifest is None else manifest.uploaded
    if ours not in ("", job.output):
        raise JobError(
            f"{folder}: here is the run of {ours}; start the one of {job.output} in another folder."
        )
    if objects.exists(job.output) and not ours and not job.overwrite:
        raise JobError(
            f"{job.output} is there already and batcher has no record here of having written it; go on in the "
            "folder where its run is, choose another --output, or replace it with --overwrite."
        )


def sweep(output: Path) -> None:
    """Removes outputs that a kill left unfinished, and puts back what it left aside."""
    for path in output.parent.glob(f".{glob.escape(output.name)}.tmp-*"):
        pid = path.name.rpartition("-")[2]
        try:
            os.kill(int(pid), 0)
        except (ValueError, ProcessLookupError):
            parts.remove(path)
        except PermissionError:
            continue  # Somebody else's process is alive under this number.
    parts.settle(output)
