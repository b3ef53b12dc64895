"""`batcher clean`: removes the run folder of a finished output. Touches: files, the terminal."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from batcher.errors import JobError

__all__ = ["clean"]


def clean(output: str, /) -> int:
    """Remove the run folder beside an output. Afterwards no run can go on from it.

    Refused while a run is at work, and when the folder holds answers that are in no output.

    Args:
        output: Output of a run.
    """
    from batcher.cli.folder import found
    from batcher.write.lock import Lock
    from batcher.write.segment import segments

    folder, _manifest = found(output)
    path = Path(output)
    if not os.access(folder.parent, os.W_OK):
        raise JobError(f"{folder}: it cannot be removed: {folder.parent} cannot be written.")
    lock = Lock(folder)
    try:
        times = [segment.stat().st_mtime_ns for _number, segment in segments(folder)]
        if times and (not path.exists() or path.stat().st_mtime_ns < max(times)):
            raise JobError(
                f"{folder} holds answers that are not in {path}; write them with "
                f"batcher export {path}, or finish the run, and clean then."
            )
        size = sum(entry.stat().st_size for entry in folder.iterdir())
        shutil.rmtree(folder)
    finally:
        lock.release()
    print(f"{folder} removed, {size / 1e6:,.1f} MB.", file=sys.stderr)
    return 0
