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
from typing import Any

import msgspec

__all__ = ["load", "save"]

_NAME = "status.json"


def save(folder: Path, told: Mapping[str, object]) -> None:
    """Replaces the file; `pid`, `host` and `updated` are added. No run fails for want of it."""
    content = {
        **told,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "updated": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    }
    temporary = folder / f"{_NAME}.tmp"
    with contextlib.suppress(OSError):
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")
        os.replace(temporary, folder / _NAME)


def load(folder: Path) -> dict[str, Any] | None:
    """What the last heartbeat told; None when there is none to be read."""
    try:
        told = msgspec.json.decode((folder / _NAME).read_bytes())
    except (OSError, msgspec.DecodeError):
        return None
    return told if isinstance(told, dict) else None
