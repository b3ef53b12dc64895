"""A run as JSON lines on stderr, for log collectors (`--log-level`). Touches: stderr.

| event | level | beside `time`, `level` and `event` |
|---|---|---|
| `started` | info | `version`, `inputs`, `output`, `models` |
| `progress` | info | every 30 s the fields of `status.json` |
| `row` | debug; warning where it is not ok | the journal's fields without the answer and the input's columns |
| `message` | warning | `message`, a sentence |
| `ended` | info; warning or error by `exit_status` | `message`, `go_on` (a command), the summary |
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import get_args

import msgspec

from batcher.job.job import LogLevel
from batcher.live.terminal import escaped
from batcher.records import Outcome, Prompt, Result

__all__ = ["Log"]

_LEVELS: tuple[LogLevel, ...] = get_args(LogLevel)
_INTERVAL_SECONDS = 30.0
_ENDED: Mapping[int, LogLevel] = {0: "info", 3: "warning", 130: "warning"}
# Prompts and answers are private, and logs are copied to many places.
_ROW_FIELDS = ("row", "custom_id", "model", "sample", "status", "finish_reason", "error_type", "error", "http_status",
         "attempts", "latency_ms", "prompt_tokens", "completion_tokens", "cost_usd", "request_id", "tries")  # fmt: skip


class Log:
    """Writes events of a level and above, one line each; a lost line is not an error.

    Args:
        level: The lowest level to write.
        write: Writes a line; raises OSError when the reader is gone.
        sleep: Waits between two `progress` events.
    """

    def __init__(
        self,
        level: LogLevel,
        write: Callable[[bytes], object] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._least = _LEVELS.index(level)
        self._write = write or _to_stderr
        self._sleep = sleep

    def event(self, level: LogLevel, event: str, **facts: object) -> None:
        """Writes one line, if the level is high enough."""
        if _LEVELS.index(level) < self._least:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"time": now, "level": level, "event": event, **facts}
        with contextlib.suppress(OSError):  # A run does not fail because nobody reads its log.
            text = escaped(json.dumps(msgspec.to_builtins(line), ensure_ascii=False))
            # A file's name may hold bytes that are not UTF-8; "\\udc80" is how JSON writes one.
            self._write(text.encode("utf-8", "backslashreplace") + b"\n")

    def say(self, text: str) -> None:
        """Writes a sentence as a `message` event."""
        self.event("warning", "message", message=text)

    async def row(self, _prompt: Prompt, result: Result) -> None:
        """Writes how a row ended."""
        level: LogLevel = "debug" if result.status is Outcome.OK else "warning"
        if _LEVELS.index(level) >= self._least:
            facts = {name: getattr(result, name) for name in _ROW_FIELDS}
            self.event(level, "row", **{k: v for k, v in facts.items() if v is not None})

    async def watch(self, snapshot: Callable[[], Mapping[str, object]]) -> None:
        """Writes a `progress` event every 30 seconds, until cancelled."""
        while True:
            await self._sleep(_INTERVAL_SECONDS)
            self.event("info", "progress", **snapshot())

    def ended(self, exit_status: int, message: str, go_on: str | None, **facts: object) -> None:
        """Writes how the run ended."""
        level = _ENDED.get(exit_status, "error")
        self.event(level, "ended", exit_status=exit_status, message=message, go_on=go_on, **facts)


def _to_stderr(line: bytes) -> None:
    sys.stderr.buffer.write(line)
    sys.stderr.buffer.flush()
