"""Checks of an output before a run: it can be written, and replaces nothing foreign. Touches: files, the network."""

from __future__ import annotations

import errno
import glob
import os
import re
import stat
from pathlib import Path

from batcher.errors import JobError
from batcher.job.job import Job
from batcher.read import object_store
from batcher.read.files import is_of
from batcher.write import atomic, parts
from batcher.write.manifest import Manifest
from batcher.write.names import EARLIER, LOCK, RUN, journal_file

__all__ = ["check_output", "sweep"]

_TEMPORARY = re.compile(r"tmp-(?:([0-9]{1,7})|earlier)")
_NO_PROCESS = 1 << 30  # Larger than any process ID.
_OCTAL = re.compile(rb"\\([0-7]{3})")


def check_output(output: Path, folder: Path, job: Job) -> None:
    """Checks that the output can be written, and that batcher made the one that is there.

    Args:
        output: The local file or folder; for object storage the one that is uploaded.
        folder: The run folder.
        job: What was asked.

    Raises:
        JobError: It cannot be written, or something else is there.
    """
    if job.output in job.inputs or any(is_of(job.output, path) for path in job.inputs):
        raise JobError(f"{job.output}: it is the input and the output; name another --output.")
    parent = output.parent
    if (parent / RUN).exists() and parent.suffix == ".run":
        raise JobError(
            f"{output}: {parent} is the run folder of another output; name another --output."
        )
    if job.output.endswith("/"):
        if problem := parts.in_the_way(output):
            raise JobError(problem)
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
        if names and not {LOCK, RUN, journal_file(1)} & {*names}:
            raise JobError(f"{folder}: it is in the way of the run folder; move it.")
    recorded = any(name.startswith((RUN, "journal-", EARLIER)) for name in names)
    if parts.files(output) and not recorded and not job.overwrite:
        raise JobError(
            f"{output} is there already and batcher has no record of having written it; choose "
            "another --output, move it away, or replace it with --overwrite."
        )
    _check_place(output, folder=job.output.endswith("/"))
    if object_store.is_object(job.output):
        _check_address(job, folder)


def _check_place(output: Path, *, folder: bool) -> None:
    """Checks that a new output can be made beside its place and then renamed to it, as the finish will do.

    Raises:
        JobError: It cannot.
    """
    temporary = atomic.temporary_path(output)
    try:
        if folder:
            temporary.mkdir(mode=0o700)
        else:
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        parts.remove(temporary)
    except FileExistsError:
        pass  # Another process made it, and may be at work.
    except OSError as error:
        raise JobError(
            f"{output}: it cannot be written: {temporary.name} beside it, where it is made first, "
            f"cannot be made and removed ({error.strerror}); choose another --output."
        ) from None
    if os.path.realpath(output) in _mount_points():
        raise JobError(
            f"{output}: it is a mount point, so that no new file can take its place; mount the folder that it "
            "is in instead."
        )
    try:
        present, parent = output.lstat(), output.parent.stat()
    except FileNotFoundError:
        return
    may_replace = os.geteuid() in (0, present.st_uid, parent.st_uid)
    if parent.st_mode & stat.S_ISVTX and not may_replace:
        raise JobError(
            f"{output}: it belongs to another user, and in {output.parent} only its owner can replace it; choose "
            "another --output."
        )
    if not folder:
        _check_replaced(output)


def _check_replaced(output: Path) -> None:
    """Checks that what is there is a file, and may be replaced."""
    if not output.is_file():
        raise JobError(f"{output}: it is not a regular file; choose another --output.")
    try:  # Opens without writing; an immutable file refuses even that.
        os.close(os.open(output, os.O_WRONLY | os.O_NONBLOCK))
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EROFS):
            raise JobError(
                f"{output}: it is there and cannot be replaced ({error.strerror}); unlock it, or choose another "
                "--output."
            ) from None


def _mount_points() -> set[str]:
    """Paths of mount points, which may be files; none where there is no /proc."""
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return set()
    return {
        os.fsdecode(_OCTAL.sub(lambda m: bytes([int(m[1], 8)]), line.split(b" ")[4]))
        for line in lines
    }


def _check_address(job: Job, folder: Path) -> None:
    """Checks the address that the output is uploaded to."""
    manifest = Manifest.load(folder)
    uploaded = "" if manifest is None else manifest.uploaded
    if uploaded not in ("", job.output):
        raise JobError(
            f"{folder}: it belongs to {uploaded}; start the run of {job.output} in another folder."
        )
    if object_store.exists(job.output) and not uploaded and not job.overwrite:
        raise JobError(
            f"{job.output} is there already and batcher has no record here of having written it; go on in the "
            "folder where its run is, choose another --output, or replace it with --overwrite."
        )


def sweep(output: Path) -> None:
    """Removes unfinished outputs of killed processes, and finishes or undoes an exchange of folders."""
    for path in output.parent.glob(f".{glob.escape(output.name)}.tmp-*"):
        pid = _TEMPORARY.fullmatch(path.name.rpartition(".")[2])
        found = path.lstat()
        plain = stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)
        if pid is None or not plain or found.st_uid != os.geteuid():
            continue
        try:
            os.kill(int(pid[1] or _NO_PROCESS), 0)
        except (ProcessLookupError, OverflowError):
            parts.remove(path)
        except PermissionError:
            continue  # A process of another user has this ID.
    parts.settle(output)
