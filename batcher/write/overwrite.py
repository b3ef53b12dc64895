"""Keeps what `--overwrite` replaces, until the new run has an answer. Touches: files.

A wrong key or a mistyped model must not cost the answers of weeks: they come back when the new run ends without
one answer. A kill can leave each of these states, and the next start ends it:

| run.json in the folder | in `earlier/` | killed | what `settle` does |
|---|---|---|---|
| yes | no | while files were moved to `earlier/`, or back | moves them back |
| no | yes | before the new run began, or while files were moved back | moves them back |
| yes | yes | during the new run | removes `earlier/` if the run has an answer, else moves its files back |
"""

from __future__ import annotations

import shutil
from pathlib import Path

from batcher.write import atomic
from batcher.write.entries import load_all
from batcher.write.index import ANSWERED
from batcher.write.names import BUDGET, EARLIER, FORGOTTEN, OWN, RUN

__all__ = ["forget", "restore", "set_aside", "settle"]


def set_aside(folder: Path) -> bool:
    """Moves journal and record of earlier runs to `earlier/`; False when there are none."""
    files = _files(folder)
    if not files:
        return False
    earlier = folder / EARLIER
    earlier.mkdir(mode=0o700, exist_ok=True)
    atomic.move_into(earlier, files)
    return True


def forget(folder: Path) -> None:
    """Removes what was set aside."""
    # Renamed first: half of it must not be taken for something to move back.
    atomic.move(folder / EARLIER, folder / FORGOTTEN)
    shutil.rmtree(folder / FORGOTTEN)


def restore(folder: Path) -> None:
    """Moves back what was set aside, in place of what the new run left."""
    earlier = folder / EARLIER
    if (earlier / RUN).exists() and (folder / RUN).exists():
        for path in _files(folder):
            path.unlink()
    atomic.move_into(folder, _files(earlier))
    earlier.rmdir()
    atomic.sync_folder(folder)


def settle(folder: Path) -> None:
    """Ends what a kill interrupted."""
    if (folder / FORGOTTEN).exists():
        shutil.rmtree(folder / FORGOTTEN)
    earlier = folder / EARLIER
    if not earlier.is_dir():
        return
    begun = (earlier / RUN).exists() and (folder / RUN).exists()
    if begun and _has_answer(folder):
        forget(folder)
    else:
        restore(folder)


def _files(folder: Path) -> list[Path]:
    """The journal, what was spent, and last the record of what was asked: its place tells how far a move came."""
    records = [folder / name for name in (BUDGET, RUN)]
    journal = (path for path in sorted(folder.glob("journal-*")) if OWN.fullmatch(path.name))
    return [*journal, *(path for path in records if path.exists())]


def _has_answer(folder: Path) -> bool:
    return any(ANSWERED[segment.entries["outcome"]].any() for segment in load_all(folder))
