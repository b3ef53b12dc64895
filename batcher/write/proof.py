"""`written.json`: what shows that an output holds the answers of its journal. Touches: files, the network (reads).

Times of files tell nothing of what is in them. When an output was written, its content is known by a hash, and
the journal by its segments, which only ever grow: by the size of each, and the checksum that ends it. While both are as they were, every answer that counts is in
the output.
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
_END = 16  # Bytes: the checksum of a segment's last line, which names its run and its key.


class _Proof(msgspec.Struct):
    """What the file holds.

    Attributes:
        segments: Number, size and end of each when the output was begun.
        files: Name, size and hash of the output, or of each of its parts.
    """

    segments: list[tuple[int, int, str]]
    files: list[tuple[str, int, str]]


def ends(folder: Path) -> list[tuple[int, int, str]]:
    """Number, size and end of each segment of the journal; another run's may have the same size."""
    found = []
    for number, path in segments(folder):
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _END))
            found.append((number, size, file.read().hex()))
    return found


def note(folder: Path, output: Path, before: list[tuple[int, int, str]]) -> None:
    """Notes that an output was written; where that fails, `clean` asks for another start.

    Args:
        folder: The run folder.
        output: What was written.
        before: `ends` when it was begun.
    """
    proof = _Proof(before, _contents(output))
    with contextlib.suppress(OSError):
        atomic.replace(folder, WRITTEN, msgspec.json.encode(proof) + b"\n", sync=True)


def holds_all(folder: Path) -> bool:
    """Whether the journal holds nothing but what it held when the output was written last."""
    proof = _load(folder)
    return proof is not None and proof.segments == ends(folder)


def is_whole(folder: Path, output: Path, address: str) -> bool:
    """Whether an output, or what was uploaded of it, is as it was written.

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
        and [_content(address)] == [of[1:] for of in proof.files]
    )


def _load(folder: Path) -> _Proof | None:
    try:
        return msgspec.json.decode(folders.read(folder, WRITTEN), type=_Proof)
    except (OSError, ValueError):
        return None


def _contents(output: Path) -> list[tuple[str, int, str]]:
    return [(path.name, *_content(str(path))) for path in parts.files(output)]


def _content(path: str) -> tuple[int, str]:
    """Size and hash."""
    sum_, size = hashlib.sha256(), 0
    with object_store.opened(path) as file:
        while block := file.read(_BLOCK):
            sum_.update(block)
            size += len(block)
    return size, sum_.hexdigest()
