"""`written.json`: proves that an output holds the answers of its journal. Touches: files, the network (reads).

The times of files say nothing of their content. So the file notes, when an output was written, a hash of it, and of each
segment of the journal the size and the checksum that ends it (segments only ever grow). While both are the same,
every answer that counts is in the output.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import msgspec

from batcher.read import object_store
from batcher.write import atomic, parts
from batcher.write import folder as folders
from batcher.write.lines import segments
from batcher.write.names import WRITTEN

__all__ = ["ends", "holds_all", "is_whole", "note"]

_BLOCK = 4 << 20
_END = 16  # Bytes, which hold the checksum of the last line, and so depend on its run and key.


class _Proof(msgspec.Struct):
    """The content of the file.

    Attributes:
        segments: `ends` when the writing of the output began.
        files: Name, size and hash of the output, or of each of its parts.
    """

    segments: list[tuple[int, int, str]]
    files: list[tuple[str, int, str]]


def ends(folder: Path) -> list[tuple[int, int, str]]:
    """Number, size and last bytes of each segment; a segment of another run could have the same size."""
    found = []
    for number, path in segments(folder):
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _END))
            found.append((number, size, file.read().hex()))
    return found


def note(folder: Path, output: Path, before: list[tuple[int, int, str]]) -> None:
    """Notes that an output was written; where the disk refuses, `clean` asks to run the command again.

    Args:
        folder: The run folder.
        output: What was written.
        before: `ends` when the writing began.
    """
    proof = _Proof(before, _contents(output))
    with contextlib.suppress(OSError):
        atomic.replace(folder, WRITTEN, msgspec.json.encode(proof) + b"\n", sync=True)


def holds_all(folder: Path) -> bool:
    """Whether nothing was added to the journal since the output was last written."""
    proof = _load(folder)
    return proof is not None and proof.segments == ends(folder)


def is_whole(folder: Path, output: Path, address: str) -> bool:
    """Whether an output, or its upload, is as it was written.

    Args:
        folder: The run folder.
        output: The file, or the folder of its parts.
        address: Where it was uploaded; "" for nowhere.
    """
    proof = _load(folder)
    if proof is None:
        return False
    if _contents(output) == proof.files:
        return True
    return (
        bool(address)
        and object_store.exists(address)
        and [_content(address)] == [file[1:] for file in proof.files]
    )


def _load(folder: Path) -> _Proof | None:
    try:
        return msgspec.json.decode(folders.read(folder, WRITTEN), type=_Proof)
    except (OSError, ValueError):
        return None


def _contents(output: Path) -> list[tuple[str, int, str]]:
    return [(path.name, *_content(str(path))) for path in parts.files(output)]


def _content(path: str) -> tuple[int, str]:
    """Size and hash of a file."""
    digest, size = hashlib.sha256(), 0
    with object_store.opened(path) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()
