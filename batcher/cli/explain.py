"""`batcher explain`: what happened to one row. Touches: the terminal."""

from __future__ import annotations

import sys
from datetime import datetime

from batcher.errors import JobError
from batcher.live.terminal import escaped, in_line, say
from batcher.read import object_store
from batcher.records import Attempt, Result

__all__ = ["explain"]

_ON_TERMINAL = 1000  # Characters.


def explain(output: str, row: str, /) -> int:
    """List every attempt of one row: when, after what wait, how it ended, what it used.

    Args:
        output: Output of a run, finished or not.
        row: The row's position, from 0, or its custom_id.
    """
    from batcher.write import folder as folders
    from batcher.write.history import results_of
    from batcher.write.names import run_folder

    folder = run_folder(object_store.here(output))
    if not folder.is_dir():
        raise JobError(f"{output}: there is no {folder}; name the --output of a run.")
    folders.check(folder)
    found = False
    for result in results_of(folder, row):
        found = True
        sample = f" · sample {result.sample}" if result.sample else ""
        name, model = in_line(result.custom_id), in_line(result.model)
        say(f"row {result.row} ({name}) · {model}{sample} · {result.status}")
        if result.copied:
            say("  nothing was sent: it is a copy of the answer to an equal request")
            continue
        for number, attempt in enumerate(result.tries or [_only(result)], 1):
            say(f"  {number}. {in_line(_line(attempt))}")
        if result.response is not None:
            # Whole where a program reads it: it may be a picture.
            most = _ON_TERMINAL if sys.stdout.isatty() else len(result.response)
            cut = "…" if len(result.response) > most else ""
            say(f"  the response: {escaped(result.response[:most])}{cut}")
    if not found:
        raise JobError(
            f"{output}: no request of row {row} has ended yet, or there is no such row."
        )
    return 0


def _only(result: Result) -> Attempt:
    """The single attempt of a result, which is its own record."""
    return Attempt(
        started=result.created_at or 0,
        latency_ms=result.latency_ms or 0,
        waited_ms=result.waited_ms,
        cause=result.cause,
        status=result.status,
        http_status=result.http_status,
        request_id=result.request_id,
        error=result.error,
        prompt_tokens=result.prompt_tokens,
        completion_tokens=result.completion_tokens,
    )


def _line(attempt: Attempt) -> str:
    if not attempt.started:
        return f"not sent: {attempt.error}"
    started = datetime.fromtimestamp(attempt.started / 1000).astimezone()
    facts = [
        started.isoformat(" ", "milliseconds"),
        f"after {attempt.waited_ms / 1000:.1f} s{' for ' if attempt.cause else ''}{attempt.cause}"
        if attempt.waited_ms
        else "",
        f"{attempt.status} (HTTP {attempt.http_status})"
        if attempt.http_status
        else str(attempt.status),
        f"in {attempt.latency_ms / 1000:.2f} s",
        f"{attempt.prompt_tokens} + {attempt.completion_tokens} tokens"
        if attempt.prompt_tokens is not None
        else "",
        f"sent to {attempt.model}" if attempt.model else "",
        f"request id {attempt.request_id}" if attempt.request_id else "",
        attempt.error or "",
    ]
    return " · ".join(filter(None, facts))
