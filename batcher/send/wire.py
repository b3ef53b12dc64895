"""Chat-completions JSON to records, and nothing about HTTP's transport. Touches: nothing.

What gateways really send is in many dialects; here they all become a `Completion` or one of the
`RequestError`s, and nothing else ever leaves this module.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from batcher.errors import (
    BadRequest,
    BadResponse,
    NotAllowed,
    NotFound,
    OutOfQuota,
    RateLimited,
    RequestError,
    ServerError,
)
from batcher.records import Completion, Outcome, Usage
from batcher.send.headers import span

__all__ = ["read", "retry_after"]

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_MESSAGE = 1000

_FINISHES = {
    "length": Outcome.TRUNCATED,
    "max_tokens": Outcome.TRUNCATED,
    "model_length": Outcome.TRUNCATED,
    "content_filter": Outcome.FILTERED,
    "safety": Outcome.FILTERED,
    "recitation": Outcome.FILTERED,
    "prohibited_content": Outcome.FILTERED,
    "refusal": Outcome.REFUSED,
}
_FAILED_FINISHES = frozenset({"error", "insufficient_system_resource", "abort"})

# Providers' words for the same thing, in a code, a type or a sentence (lower case).
_QUOTA = re.compile(
    r"insufficient[_ ](user[_ ])?(quota|balance|credit)|balance is insufficient|credit_balance"
    r"|billing|spend_limit|usage_limit_exceeded|spending limit|used all available credits"
    r"|pre_consume_token_quota_failed|entitlement_|free-models-per-day|per ?day|\((tpd|rpd)\)"
    r"|exceeded your current quota|credit balance is too low|payment required|to prevent abuse"
)
_CONTEXT = re.compile(
    r"context_length_exceeded|exceed_context_size|maximum context length|context size has been"
    r"|context window|prompt is too long|input is too long|too many input tokens"
    r"|you passed \d+ input tokens|reduce the length of the (input|messages|prompt)"
)
_FILTER = re.compile(
    r"content_filter|content management policy|responsibleaipolicy|content_policy"
    r"|prompt_blocked|sensitive_words|flagged|moderation"
)
_NO_MODEL = re.compile(
    r"model_not_found|incorrect model id|invalid model name|no such model|model .{0,80}does not exist"
    r"|model .{0,80}not found|unknown model|not a valid model|server is pinned to"
)
_TOO_LARGE = re.compile(r"request too large|reduce your message size")
_RATE_UNIT = re.compile(r"tokens? per|\btpm\b|token.?limit|dynamic_token|tokens_limit")
_REQUEST_UNIT = re.compile(r"requests? per|\brpm\b|dynamic_request|on requests")
_RATE = re.compile(
    r"rate.?limit|too many requests|tokens per minute|requests per minute|slow_down"
)


def read(status: int, headers: Mapping[str, str], body: bytes, *, keep_raw: bool) -> Completion:
    """The completion in a reply.

    Raises:
        RequestError: There is none; the type and `outcome` say why.
    """
    request_id = next(
        (
            value
            for name in ("x-request-id", "request-id", "x-oneapi-request-id", "cf-ray")
            if (value := headers.get(name))
        ),
        None,
    )
    data, fault = _json(body)
    if status == 200 and isinstance(data, dict) and not data.get("error"):
        return _completion(data, body, request_id, keep_raw=keep_raw)
    message, kind = _error(data)
    if fault is not None:
        message = _page(body) if body.strip() else "the answer is empty"
        if status == 200:
            message = f"HTTP 200 but not JSON ({fault}): {message}"
    elif status == 200:
        message = f"HTTP 200 but not an answer: {message or _cut(body)}"
    message = message or _cut(body) or f"HTTP {status}"
    words = f"{kind} {message}".lower()
    facts: dict[str, Any] = {
        "status": status,
        "request_id": request_id,
        "error_type": kind.split(" ")[0] or None,
        "retry_after": retry_after(headers, data, message),
    }
    raise _failure(status, words, message[:_MESSAGE], facts)


def _failure(status: int, words: str, message: str, facts: dict[str, Any]) -> RequestError:
    """The error that a status and its words amount to."""
    if _TOO_LARGE.search(words):  # OpenAI says so with 429, and no waiting will help.
        return BadRequest(message, outcome=Outcome.CONTEXT_LENGTH, **facts)
    if _RATE_UNIT.search(words):
        facts["about"] = "tokens"
    elif _REQUEST_UNIT.search(words):
        facts["about"] = "requests"
    if status == 200:
        if _RATE.search(words):
            return RateLimited(message, **facts)
        return BadResponse(message, **facts)
    if status in (402, 403, 429, 503) and _QUOTA.search(words):
        if status == 402 and facts["retry_after"] is not None:
            return RateLimited(message, **facts)
        return OutOfQuota(message, **facts)
    if status == 429 or (status == 503 and "rate limited" in words):
        return RateLimited(message, **facts)
    if status == 402:
        return OutOfQuota(message, **facts)
    if _NO_MODEL.search(words) and status in (400, 403, 404, 503):
        return NotFound(message, **facts)
    if _CONTEXT.search(words) and status in (400, 413, 422, 500):
        return BadRequest(message, outcome=Outcome.CONTEXT_LENGTH, **facts)
    if _FILTER.search(words) and status in (400, 403, 422):
        return BadRequest(message, outcome=Outcome.FILTERED, **facts)
    if status in (401, 403, 407):
        return NotAllowed(message, **facts)
    if status in (404, 405) or 300 <= status < 400:
        return NotFound(message, **facts)
    if status in (408, 409, 425, 498, 499) or status >= 500:
        return ServerError(message, **facts)
    return BadRequest(message, **facts)


def _json(body: bytes) -> tuple[Any, str | None]:
    """(parsed, None), or (None, what is wrong); lone surrogates become U+FFFD."""
    try:
        return _decode(body), None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:  # The standard library takes lone surrogates and NaN, which msgspec does not.
        text = body.decode("utf-8", "replace")
        return _decode(_encode(_clean(json.loads(text)))), None
    except (ValueError, RecursionError) as error:
        return None, str(error)


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_clean(inside) for inside in value]
    if isinstance(value, dict):
        return {_clean(name): _clean(inside) for name, inside in value.items()}
    return value


def _completion(
    data: dict[str, Any], body: bytes, request_id: str | None, *, keep_raw: bool
) -> Completion:
    choices = data.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise BadResponse(
            f"HTTP 200 but no choice in it: {_cut(body)}", status=200, request_id=request_id
        )
    finish = _text(choice.get("finish_reason"))
    if choice.get("error") or (finish or "").lower() in _FAILED_FINISHES:
        said, kind = _error({"error": choice.get("error")})
        raise BadResponse(
            f"HTTP 200 but the answer broke off ({said or finish})",
            status=200,
            request_id=request_id,
            error_type=kind or finish,
        )
    content = _content(message.get("content"))
    refusal = _text(message.get("refusal")) or None
    tool_calls = message.get("tool_calls") or message.get("function_call")
    outcome = _FINISHES.get((finish or "").lower(), Outcome.OK)
    if outcome is Outcome.OK and refusal:
        outcome = Outcome.REFUSED
    if outcome is Outcome.OK and not (content and content.strip()) and not tool_calls:
        outcome = Outcome.EMPTY
    return Completion(
        outcome=outcome,
        content=content,
        finish_reason=finish,
        refusal=refusal,
        tool_calls=_encode(tool_calls).decode() if tool_calls else None,
        logprobs=_encode(logprobs).decode() if (logprobs := choice.get("logprobs")) else None,
        usage=_usage(data.get("usage")),
        response_model=_text(data.get("model")),
        request_id=request_id or _text(data.get("id")),
        response=_encode(data).decode() if keep_raw else None,
    )


def _content(content: Any) -> str | None:
    """The text of an answer; some servers send a list of parts."""
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(part for part in parts if isinstance(part, str))
    return _encode(content).decode()


def _usage(usage: Any) -> Usage:
    if not isinstance(usage, dict):
        return Usage()
    prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    total = _count(usage.get("total_tokens"))
    inside = usage.get("prompt_tokens_details")
    cached = _count(inside.get("cached_tokens")) if isinstance(inside, dict) else None
    if cached is None:
        cached = _count(usage.get("prompt_cache_hit_tokens"))
    inside = usage.get("completion_tokens_details")
    reasoning = _count(inside.get("reasoning_tokens")) if isinstance(inside, dict) else None
    # xAI and Gemini leave thinking out of completion_tokens but not out of the total.
    if prompt is not None and completion is not None and total is not None:
        completion = max(completion, total - prompt)
    cost = usage.get("cost")
    if isinstance(cost, bool) or not isinstance(cost, int | float) or cost < 0:
        cost = None
    return Usage(prompt, completion, total, cached, reasoning, cost)


def _count(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value < 1 << 62 else None


def _error(data: Any) -> tuple[str, str]:
    """(message, the server's word for the kind) of an error body in any of its shapes."""
    if isinstance(data, list) and data:
        data = data[0]
    if not isinstance(data, dict):
        return (data, "") if isinstance(data, str) else ("", "")
    error = data.get("error", data)
    if isinstance(error, str):
        return error, _word(data.get("code")) or _word(data.get("type"))
    if isinstance(error, list) and error and isinstance(error[0], dict):
        error = error[0]
    if not isinstance(error, dict):
        error = data
    message = error.get("message") or error.get("detail") or data.get("message")
    if message is not None and not isinstance(message, str):
        message = _encode(message).decode()
    codes = [_word(error.get(name)) for name in ("code", "type", "status")]
    inner = error.get("innererror")
    if isinstance(inner, dict):
        codes.insert(0, _word(inner.get("code")))
    telling = [code for code in codes if code and not code.isdecimal()]
    return message or "", " ".join(dict.fromkeys(telling))


def _word(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and value != "None" else ""


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _page(body: bytes) -> str:
    """The words of an HTML page from a proxy, or of plain text."""
    text = re.sub(
        r"(?s)<(script|style).*?</\1>|<[^>]*>", " ", body[:20000].decode("utf-8", "replace")
    )
    return " ".join(text.split())[:300]


def _cut(body: bytes) -> str:
    return body[:300].decode("utf-8", "replace")


_IN_TEXT = re.compile(
    r"(?:try again|retry|retry after|again) (?:in|after) ((?:\d+(?:\.\d+)?(?:ms|h|m|s) ?)+|\d+(?:\.\d+)? ?(?:milliseconds?|seconds?|minutes?|hours?))"
)


def retry_after(
    headers: Mapping[str, str], data: Any = None, message: str = "", now: datetime | None = None
) -> float | None:
    """Seconds the server asks to wait, from wherever it says so; None when it does not.

    In order: `retry-after-ms`, `retry-after` (seconds or an HTTP date), the same as LiteLLM passes
    it on, OpenRouter's `metadata`, Gemini's `retryDelay`, and "try again in 1m2.5s" in prose.

    >>> retry_after({}, message="Please try again in 1m2.5s.")
    62.5
    """
    if (milliseconds := _seconds(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    for name in ("retry-after", "llm_provider-retry-after"):
        asked = headers.get(name)
        if (seconds := _seconds(asked)) is not None:
            return seconds
        if asked:
            try:
                date = parsedate_to_datetime(asked)
            except ValueError:
                continue
            date = date if date.tzinfo else date.replace(tzinfo=UTC)
            return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())
    for asked in _fields(data):
        if (seconds := _seconds(asked)) is not None:
            return seconds
        if isinstance(asked, str) and (seconds := span(asked)) is not None:
            return seconds
    found = _IN_TEXT.search(message.lower())
    return span(found.group(1)) if found else None


def _fields(data: Any) -> list[Any]:
    if isinstance(data, list) and data:
        data = data[0]
    error = data.get("error") if isinstance(data, dict) else None
    if not isinstance(error, dict):
        return []
    asked = []
    if isinstance(metadata := error.get("metadata"), dict):
        asked.append(metadata.get("retry_after_seconds"))
    if isinstance(details := error.get("details"), list):
        asked += [detail.get("retryDelay") for detail in details if isinstance(detail, dict)]
    return asked


def _seconds(text: Any) -> float | None:
    try:
        seconds = float(text)
    except (TypeError, ValueError):
        return None
    return seconds if 0 <= seconds < 1e9 else None
