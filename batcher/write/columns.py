"""The output's columns: their order, their types in words. Touches: nothing."""

from __future__ import annotations

from collections.abc import Container, Iterable

__all__ = ["COLUMNS", "OPTIONAL", "renames", "result_names"]

COLUMNS = {
    "row": "int64",
    "custom_id": "string",
    "model": "string",
    "sample": "int32",
    "status": "string",
    "content": "string",
    "parsed": "string",
    "confidences": "string",
    "finish_reason": "string",
    "refusal": "string",
    "tool_calls": "string",
    "logprobs": "string",
    "prompt_tokens": "int64",
    "completion_tokens": "int64",
    "total_tokens": "int64",
    "cached_tokens": "int64",
    "cache_write_tokens": "int64",
    "reasoning_tokens": "int64",
    "cost_usd": "double",
    "latency_ms": "int64",
    "ttft_ms": "int64",
    "attempts": "int32",
    "copied": "bool",
    "http_status": "int32",
    "error_type": "string",
    "error": "string",
    "response_model": "string",
    "request_id": "string",
    "created_at": "timestamp[ms, UTC]",
    "response": "string",
}
"""Name to Arrow type of what a result adds to a row, in order; `parsed` has that of its schema."""
OPTIONAL = ("parsed", "confidences", "tool_calls", "logprobs", "ttft_ms", "copied", "response")
"""Those that not every output has; in the journal those that are no JSON by type are JSON as text."""


def renames(names: Iterable[str], results: Container[str] = COLUMNS) -> dict[str, str]:
    """Input columns that have the name of a result, and the names they get instead.

    >>> renames(["text", "model", "input_model"])
    {'model': 'input_input_model'}
    """
    own = list(names)
    taken = set(own)
    found: dict[str, str] = {}
    for name in own:
        if name in results:
            new = f"input_{name}"
            while new in taken or new in results:
                new = f"input_{new}"
            taken.add(new)
            found[name] = new
    return found


def result_names(*, keep_raw: bool, shown: Iterable[str] = ()) -> list[str]:
    """Names of the result columns in order; `shown` are those optional ones that are needed."""
    kept = {*shown, *(("response",) if keep_raw else ())}
    return [name for name in COLUMNS if name not in OPTIONAL or name in kept]
