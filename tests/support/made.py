"""Records with all that a test does not speak of filled in."""

from __future__ import annotations

from typing import Any

from batcher.records import Attempt, Completion, Outcome, Request, Result, Usage


def usage(prompt: int | None = 3, completion: int | None = 1, **more: Any) -> Usage:
    """Tokens of one answer."""
    total = None if prompt is None or completion is None else prompt + completion
    return Usage(prompt, completion, total, **more)


def completion(
    outcome: Outcome = Outcome.OK, content: str | None = "hi", **more: Any
) -> Completion:
    """An answer."""
    known: dict[str, Any] = dict.fromkeys(
        ("finish_reason", "refusal", "tool_calls", "logprobs", "response_model", "request_id")
    )
    return Completion(outcome, content, **{**known, "usage": usage(), **more})


def request(body: bytes = b'{"model":"m","messages":[]}', **more: Any) -> Request:
    """A request of row 0 for the model m."""
    known = {"row": 0, "custom_id": "r", "model": "m", "sample": 0, "key": "0" * 32}
    return Request(**{**known, "body": body, "max_tokens": None, **more})


def attempt(status: Outcome = Outcome.OK, **more: Any) -> Attempt:
    """One exchange, which took 5 ms."""
    return Attempt(**{"started": 1000, "latency_ms": 5, "waited_ms": 0, "status": status, **more})


def result(status: Outcome = Outcome.OK, row: int = 0, model: str = "m", **more: Any) -> Result:
    """How a request ended, after one attempt."""
    known = {"sample": 0, "key": f"{row:032x}", "custom_id": str(row), "attempts": 1}
    return Result(row=row, model=model, status=status, **{**known, **more})
