"""`status.json`: how a run stands, for whoever watches it. Touches: files.

Written every few seconds and replaced whole, without a sync: it is a heartbeat, not a record. Its
`state` outlives a kill, which is how the next start knows that there was one.
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
    """What is looked at of the file, so that a damaged one is as good as none."""

    state: str = "unknown"
    updated: str = ""
    given_up: _Count = 0
    models: dict[str, _ModelShape] = {}


def save(folder: Path, told: Mapping[str, object]) -> None:
    """Replaces the file; `pid`, `host` and `updated` are added. No run fails for want of it."""
    content = {
        **told,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "updated": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    }
    text = msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n"
    with contextlib.suppress(OSError):
        atomic.replace(folder, STATUS, text, sync=False)


def load(folder: Path) -> dict[str, Any] | None:
    """What the last heartbeat told; None when there is none to be read."""
    try:
        told: dict[str, Any] = msgspec.json.decode(folders.read(folder, STATUS))
        msgspec.convert(told, _Shape)
    except (OSError, ValueError):
        return None
    return told
