"""Disk space that a run keeps free for the answers in flight when the disk fills up. Touches: files."""

from __future__ import annotations

import os
from pathlib import Path

from batcher.write import folder as folders
from batcher.write.names import OWN, reserve_file

__all__ = ["RESERVE_BYTES", "Reserve", "sweep_reserves"]

RESERVE_BYTES = 64 << 20


class Reserve:
    """A file of real blocks, which is removed to make room.

    Args:
        folder: The run folder.
        first: Number of the first segment of a cluster worker; None for a run on its own.

    Raises:
        OSError: There is no room for it.
    """

    def __init__(self, folder: Path, first: int | None) -> None:
        self._name = reserve_file(first)
        # Of its own, so that it still leads to the reserve when the folder was removed and made again.
        self._folder = folders.open_descriptor(folder)
        try:
            with open(folders.create(self._name, self._folder), "wb") as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)
                else:
                    file.writelines(bytes(1 << 20) for _ in range(RESERVE_BYTES >> 20))
        except OSError:
            self.close()
            raise

    def free(self) -> bool:
        """Makes room; False when there was no reserve any more."""
        try:
            os.unlink(self._name, dir_fd=self._folder)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Removes the reserve; call it once."""
        self.free()
        os.close(self._folder)


def sweep_reserves(folder: Path) -> None:
    """Removes the reserves of cluster workers that were killed."""
    for path in folder.glob("reserve-*"):
        if OWN.fullmatch(path.name):
            path.unlink(missing_ok=True)
