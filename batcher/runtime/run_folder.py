"""The run folder of an output, locked for one run. Touches: files."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from batcher.errors import OutputError
from batcher.runtime.output import sweep
from batcher.write import overwrite, parts, status
from batcher.write.atomic import FULL
from batcher.write.lines import segments
from batcher.write.lock import Lock
from batcher.write.names import RUN

__all__ = ["RunFolder", "keep_output", "locked", "requests_cut_off"]


class RunFolder:
    """A run folder, and whether it is still where it was.

    Args:
        path: The folder.
        lock: Held on it; None for a temporary folder, which no other process knows.
    """

    def __init__(self, path: Path, lock: Lock | None = None) -> None:
        self.path = path
        self._lock = lock
        self._lost: str | None = None

    def check(self, *, journal_removed: bool = False) -> str | None:
        """Compares the folder with the one that was locked; what happened to it, in a sentence.

        Once it was lost it stays so: results may have gone elsewhere. None while all is well.

        Args:
            journal_removed: Whether a file in it that is being written was removed.
        """
        if self._lock is not None and self._lost is None:
            what = self._lock.lost()
            if what is None and journal_removed:
                what = "files in it were removed"
            if what is not None:
                self._lost = f"{self._lock.folder}: {what} while the run was at work"
        return self._lost

    def where_answers_are(self, rescued: Path | None) -> str:
        """Where to find the answers of a lost folder, and what to do, in sentences.

        Args:
            rescued: File that holds results whose segment was removed.
        """
        assert self._lock is not None, "a temporary folder is never lost"
        folder = self._lock.folder
        if rescued is not None:
            kept = f"What could be kept of the answers is in {rescued}."
            if rescued.parent == folder:
                return f"{kept} Run the same command again."
            last = max((number for number, _path in segments(folder)), default=0)
            return (
                f"{kept} Copy that file to {folder}/journal-{last + 1:06}.jsonl, else its answers are bought again; "
                "then run the same command again."
            )
        if (where := self._lock.where) is None:
            return "Answers that it held are lost, unless it was moved: then move it back. Run the same command again."
        return f"All answers are in {where}. Move it back, and run the same command again."


@contextlib.contextmanager
def locked(output: Path, *, dry_run: bool) -> Iterator[RunFolder]:
    """Locks the folder beside an output, and mends what a killed run left; removes it again if nothing began.

    Args:
        output: The output file, absolute.
        dry_run: Whether results that an unfinished --overwrite set aside stay there.

    Raises:
        JobError: Another process holds the folder, or it cannot be trusted.
        OutputError: The disk failed, now or in the body of the `with`.
    """
    path = output.parent / f"{output.name}.run"
    new = not path.exists()
    lock = Lock(path)
    folder = RunFolder(path, lock)
    try:
        sweep(output)
        if not dry_run:
            overwrite.settle(path)
        yield folder
    except BrokenPipeError:
        raise
    except OSError as error:
        where = error.filename or path
        mend = "make room" if error.errno in FULL else "see to it"
        raise OutputError(
            f"{where}: {error.strerror or error}; {mend}, and run the same command again."
        ) from error
    finally:
        begun = (path / RUN).exists() or segments(path)
        if new and folder.check() is None and not begun:
            shutil.rmtree(path)
        lock.release()


def keep_output(output: Path, folder: Path) -> Path | None:
    """Keeps the present output in the run folder, as it may hold answers that the journal lost.

    Returns:
        The copy; None when there is no output, or a copy of it already.
    """
    files, kept = parts.files(output), [parts.files(copy) for copy in folder.glob("output-*")]
    if not files or any(
        len(copy) == len(files) and all(map(os.path.samefile, files, copy)) for copy in kept
    ):
        return None
    path = folder / f"output-{time.strftime('%Y%m%dT%H%M%S')}{output.suffix}"
    if output.is_dir():
        path.mkdir(exist_ok=True)
    for file in files:
        copy = path / file.name if output.is_dir() else path
        try:
            os.link(file, copy)
        except OSError:  # Not every file system has links.
            shutil.copy2(file, copy)
    return path


def requests_cut_off(folder: Path, say: Callable[[str], None]) -> int:
    """Requests that the run before left in flight, as it was killed or given up: they may have been billed.

    Args:
        folder: The run folder.
        say: Gets a sentence where it was killed.
    """
    before = status.load(folder)
    if before is None:
        return 0
    if before.get("state") not in ("running", "stopping"):
        return before.get("given_up") or 0
    models = before.get("models", {}).values()
    in_flight: int = sum(model.get("in_flight", 0) for model in models)
    about = f" (about {in_flight:,} requests)" if in_flight else ""
    say(
        f"The run before was killed soon after {before.get('updated')}. What was in flight{about} may have been "
        "billed and is sent again."
    )
    return in_flight
