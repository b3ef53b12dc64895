"""`status.json`: the progress of a run, for other processes. Touches: files.

Replaced every few seconds, without a sync: it is a heartbeat, not a record. Its `state` outlives a kill, which is
how the next start knows that there was one.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec

from batcher.write import atomic
from batcher.write import folder as folders
from batcher.write.names import STATUS

__all__ = ["load", "save"]

_Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 40)]
_Figure = Annotated[float, msgspec.Meta(ge=0, lt=1e12)]


class _ModelShape(msgspec.Struct):
    in_flight: _Count = 0
    requests_per_second: _Figure = 0.0
    cost_usd: _Figure | None = None
    eta_seconds: _Figure | None = None


class _Shape(msgspec.Struct):
    """The fields that are read, so that a damaged file counts as none."""

    state: str = "unknown"
    updated: str = ""
    given_up: _Count = 0
    models: dict[str, _ModelShape] = {}


def save(folder: Path, figures: Mapping[str, object]) -> None:
    """Replaces the file, with `pid`, `host` and `updated` besides; does nothing when the disk refuses."""
    content = {
        **figures,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "updated": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    }
    text = msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n"
    with contextlib.suppress(OSError):
        atomic.replace(folder, STATUS, text, sync=False)


def load(folder: Path) -> dict[str, Any] | None:
    """The last heartbeat; None when there is none or it is damaged."""
    try:
        figures: dict[str, Any] = msgspec.json.decode(folders.read(folder, STATUS))
        msgspec.convert(figures, _Shape)
    except (OSError, ValueError):
        return None
    return figures
