"""`batcher clean`: removes the run folder of a finished output. Touches: files, the terminal."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from batcher.errors import JobError
from batcher.live.terminal import say
from batcher.read import object_store
from batcher.write.manifest import Manifest

__all__ = ["clean"]


def clean(output: str, /) -> int:
    """Remove the run folder beside an output. Afterwards no run can go on from it.

    Refused while a run is at work, when the output is not as it was written, and when the folder holds answers
    that are not in it, or files that batcher did not make.

    Args:
        output: Output of a run.
    """
    from batcher.cli.folder import found
    from batcher.write import proof
    from batcher.write.lines import segments
    from batcher.write.lock import Lock
    from batcher.write.names import OWN

    folder, manifest = found(output)
    path = Path(object_store.here(output))
    if not os.access(folder.parent, os.W_OK):
        raise JobError(f"{folder}: it cannot be removed: {folder.parent} cannot be written.")
    lock = Lock(folder)
    try:
        journal = segments(folder)
        if journal and not proof.holds_all(folder):
            raise JobError(
                f"{folder} holds answers that were not written to {path}; finish the run with its command, or write "
                f"what there is with batcher export {path}, and clean then."
            )
        if journal and not proof.is_whole(folder, path, manifest.uploaded):
            raise JobError(
                f"{path} is not there, or not as batcher wrote it, so it may lack answers. Move it away if you need "
                "it, run the same command again, which sends nothing and writes it anew, and clean then."
            )
        if left := _left_out(folder, manifest):
            raise JobError(
                f"{folder} holds {left:,} answers of rows or models that the last run did not ask "
                f"for, so they are not in {path}; run it for all of them, or remove the folder "
                "yourself."
            )
        if strange := [name for name in sorted(os.listdir(folder)) if not OWN.fullmatch(name)]:
            raise JobError(
                f"{folder} holds {', '.join(strange[:5])}, which may be all there is of it: output-* is an output from "
                "before answers were lost, others batcher did not make. Move them away, and clean then."
            )
        size = sum(entry.stat().st_size for entry in folder.iterdir())
        shutil.rmtree(folder)
    finally:
        lock.release()
    say(f"{folder} removed, {size / 1e6:,.1f} MB.", error=True)
    return 0


def _left_out(folder: Path, manifest: Manifest) -> int:
    """Answers to the present input and settings that fewer rows, models or samples kept out."""
    import numpy as np

    from batcher.cli.folder import inputs_of
    from batcher.write.entries import load_present
    from batcher.write.index import ANSWERED
    from batcher.write.latest import places_of

    asked, left = manifest.asked, 0
    inputs = inputs_of(folder, manifest)
    asked_for = None
    if not inputs.whole:
        if inputs.changed() is not None:
            raise JobError(
                f"{folder}: the input is gone or changed since, so that it is not known which rows "
                "the output lacks; remove the folder yourself."
            )
        asked_for = np.frombuffer(inputs.left_out(), np.uint8) == 0
    for segment in load_present(folder, manifest.runs or {""}):
        entries = segment.entries[ANSWERED[segment.entries["outcome"]]]
        out = places_of(segment.models, asked.models)[entries["model"]] < 0
        out |= entries["sample"] >= asked.samples
        if asked_for is not None:
            rows = entries["row"]
            out |= (rows >= len(asked_for)) | ~asked_for[np.minimum(rows, len(asked_for) - 1)]
        left += int(out.sum())
    return left
