"""What `--overwrite` forgets, kept aside until the new run has an answer. Touches: files.

A wrong key or a mistyped model must not cost the answers of weeks: they come back when the new run
ends without a single one. Each step leaves a state that the next start can tell and settle:

| run.json in the folder | in `earlier/` | what happened | what is done |
|---|---|---|---|
| yes | no | killed while things were moved aside, or back | moved back |
| no | yes | killed before the new run began, or while things were moved back | moved back |
| yes | yes | killed while the new run went on | forgotten if it has an answer, else moved back |
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from batcher.write.folder import MADE
from batcher.write.latest import ANSWERED
from batcher.write.names import BUDGET, RUN
from batcher.write.segment import loaded, sync_folder

__all__ = ["ASIDE", "forget", "restore", "set_aside", "settle"]

ASIDE = "earlier"
"""Name of the folder in the run folder."""
_FORGOTTEN = "forgotten"


def set_aside(folder: Path) -> bool:
    """Moves the journal and the record of earlier runs away; False when there is none."""
    moved = _parts(folder)
    if not moved:
        return False
    aside = folder / ASIDE
    aside.mkdir(mode=0o700, exist_ok=True)
    for path in moved:
        os.replace(path, aside / path.name)
    sync_folder(aside)
    sync_folder(folder)
    return True


def forget(folder: Path) -> None:
    """Removes what was set aside."""
    # Under another name at once: half of it must not be taken for something to move back.
    os.replace(folder / ASIDE, folder / _FORGOTTEN)
    shutil.rmtree(folder / _FORGOTTEN)


def restore(folder: Path) -> None:
    """Puts back what was set aside, in place of what the new run left."""
    aside = folder / ASIDE
    if (aside / RUN).exists() and (folder / RUN).exists():
        for path in _parts(folder):
            path.unlink()
    for path in _parts(aside):
        os.replace(path, folder / path.name)
    aside.rmdir()
    sync_folder(folder)


def settle(folder: Path) -> None:
    """Ends what a kill left half done."""
    if (folder / _FORGOTTEN).exists():
        shutil.rmtree(folder / _FORGOTTEN)
    aside = folder / ASIDE
    if not aside.is_dir():
        return
    begun = (aside / RUN).exists() and (folder / RUN).exists()
    if begun and _answered(folder):
        forget(folder)
    else:
        restore(folder)


def _parts(folder: Path) -> list[Path]:
    """The journal, what was spent, and last the record of what was asked."""
    records = [folder / name for name in (BUDGET, RUN)]
    journal = (path for path in sorted(folder.glob("journal-*")) if MADE.fullmatch(path.name))
    return [*journal, *(path for path in records if path.exists())]


def _answered(folder: Path) -> bool:
    return any(ANSWERED[segment.entries["outcome"]].any() for segment in loaded(folder))
