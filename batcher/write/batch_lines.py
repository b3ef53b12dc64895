"""A result as a line of an OpenAI batch's output. Touches: nothing.

The format is OpenAI's, which vLLM's `run-batch` also writes: a request that got an HTTP response has its status and body,
any other an error instead. The body is the server's where it was kept (`--keep-raw`), else it is made from the
journal.
"""

from __future__ import annotations

from typing import Any

import msgspec

from batcher.records import Outcome, Result

__all__ = ["batch_line"]

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Result).decode
_REASONS = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})
_BY_OUTCOME = {Outcome.TRUNCATED: "length", Outcome.FILTERED: "content_filter"}


def batch_line(line: bytes, custom_id: str) -> tuple[bytes, str]:
    """(the line with its newline, the result's status).

    Args:
        line: The result as in the journal.
        custom_id: Of the row now.
    """
    found = _decode(line)
    response = error = None
    if found.status.answered:
        body: Any = (
            _body(found) if found.response is None else msgspec.Raw(found.response.encode())
        )
        response = {"status_code": 200, "request_id": found.request_id or "", "body": body}
    elif found.http_status is not None and not 200 <= found.http_status < 300:
        why = {"message": found.error, "type": str(found.status), "code": found.error_type}
        body = {"error": {**why, "param": None}}
        response = {
            "status_code": found.http_status,
            "request_id": found.request_id or "",
            "body": body,
        }
    else:
        error = {"code": str(found.status), "message": found.error or str(found.status)}
    name = f"batch_req_{found.key}" + (f"_{found.sample}" if found.sample else "")
    made = {"id": name, "custom_id": custom_id, "response": response, "error": error}
    return _encode(made) + b"\n", str(found.status)


def _body(found: Result) -> dict[str, Any]:
    """The answer as a chat completion."""
    message: dict[str, Any] = {
        "role": "assistant",
        "content": found.content,
        "refusal": found.refusal,
    }
    if found.tool_calls is not None:
        calls = msgspec.Raw(found.tool_calls.encode())
        message["tool_calls" if found.tool_calls.startswith("[") else "function_call"] = calls
    finish = found.finish_reason
    if finish not in _REASONS:
        finish = _BY_OUTCOME.get(
            found.status, "stop" if found.tool_calls is None else "tool_calls"
        )
    logprobs = None if found.logprobs is None else msgspec.Raw(found.logprobs.encode())
    choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": finish}
    body = {
        "id": found.request_id or found.key,
        "object": "chat.completion",
        "created": (found.created_at or 0) // 1000,
        "model": found.response_model or found.model,
        "choices": [choice],
    }
    if found.prompt_tokens is not None and found.completion_tokens is not None:
        body["usage"] = _usage(found, found.prompt_tokens, found.completion_tokens)
    return body


def _usage(found: Result, prompt: int, completion: int) -> dict[str, Any]:
    """The tokens; the cost as OpenRouter reports it, so that `--from-batch` can read it back."""
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    details = {
        name: count
        for name in ("cached_tokens", "cache_write_tokens")
        if (count := getattr(found, name)) is not None
    }
    if details:
        usage["prompt_tokens_details"] = details
    if found.reasoning_tokens is not None:
        usage["completion_tokens_details"] = {"reasoning_tokens": found.reasoning_tokens}
    return usage if found.cost_usd is None else {**usage, "cost": found.cost_usd}
