"""`run.json`: what was asked of an output, run after run. Touches: files. Never holds a key.

An *epoch* is a stretch of runs with the same input and the same settings. Within one, a request is
known by its position; across epochs, by the hash of its bytes.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec

from batcher.errors import JobError

__all__ = ["Epoch", "Manifest"]


class Epoch(msgspec.Struct, kw_only=True):
    """One stretch of runs.

    Attributes:
        inputs: The pins of the input files.
        settings: All that shapes a request besides its row and model.
        first_segment: Number of the first journal segment that belongs to it.
        rows: How many rows the input holds; None until it was counted.
        keeps: Whether the answers of the epoch before hold by position (`--changed keep`).
    """

    inputs: list[dict[str, object]]
    settings: dict[str, object]
    first_segment: int
    started: str
    rows: int | None = None
    keeps: bool = False


class Manifest(msgspec.Struct, kw_only=True):
    """All epochs of one output, the present one last."""

    version: int = 1
    output: str
    epochs: list[Epoch] = msgspec.field(default_factory=list)

    @classmethod
    def load(cls, folder: Path) -> Manifest | None:
        """The manifest in a run folder; None when there is none.

        Raises:
            JobError: It cannot be read, or is of a newer version.
        """
        path = folder / "run.json"
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise JobError(f"{path}: it cannot be read: {error.strerror}.") from None
        try:
            manifest = msgspec.json.decode(content, type=cls)
        except msgspec.DecodeError as error:
            raise JobError(
                f"{path}: it is damaged ({error}); restore it, or start anew with --overwrite."
            ) from None
        if manifest.version > 1:
            raise JobError(f"{path}: a newer batcher wrote it; use that one, or another --output.")
        return manifest

    def save(self, folder: Path) -> None:
        """Replaces `run.json` whole, synced."""
        temporary = folder / "run.json.tmp"
        with open(temporary, "wb") as file:
            os.chmod(temporary, 0o600)
            file.write(msgspec.json.format(msgspec.json.encode(self), indent=1))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, folder / "run.json")
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def now() -> str:
    """The time for a manifest, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
