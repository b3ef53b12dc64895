"""Chat-completions JSON to records, and nothing about HTTP's transport. Touches: nothing.

What gateways really send is in many dialects; here they all become a `Completion` or one of the
`RequestError`s, and nothing else ever leaves this module.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from batcher.errors import BadResponse, RequestError
from batcher.records import FINISHED, Completion, Outcome, Usage
from batcher.send.failures import cut, error_of, failure
from batcher.send.loose import loads

__all__ = ["read"]

_encode = msgspec.json.Encoder().encode

_FINISHES = {
    **dict.fromkeys(FINISHED, Outcome.OK),
    "length": Outcome.TRUNCATED,
    "max_tokens": Outcome.TRUNCATED,
    "model_length": Outcome.TRUNCATED,
    "model_context_window_exceeded": Outcome.TRUNCATED,
    "repetition_truncation": Outcome.TRUNCATED,
    "incomplete": Outcome.TRUNCATED,
    "pause_turn": Outcome.TRUNCATED,
    "content_filter": Outcome.FILTERED,
    "sensitive": Outcome.FILTERED,  # Zhipu
    "safety": Outcome.FILTERED,  # Gemini, down to spii
    "recitation": Outcome.FILTERED,
    "language": Outcome.FILTERED,
    "blocklist": Outcome.FILTERED,
    "prohibited_content": Outcome.FILTERED,
    "spii": Outcome.FILTERED,
    "image_safety": Outcome.FILTERED,
    "image_prohibited_content": Outcome.FILTERED,
    "image_recitation": Outcome.FILTERED,
    "refusal": Outcome.REFUSED,
}
_REQUEST_IDS = ("x-request-id", "request-id", "x-oneapi-request-id", "cf-ray")
_BLANK = re.compile(r"[\s\u200b-\u200f\u2060\ufeff\u00ad]+")
_NUMBERS = (int, float)  # `int | float` makes a new object each time.
_NO_PRICE = 1_000_000  # Dollars that no request costs: a number that means something else.
_FAILED_FINISHES = frozenset(
    {
        "error",
        "insufficient_system_resource",
        "abort",
        "aborted",
        "cancelled",
        "timeout",
        "network_error",
        "malformed_function_call",
        "unexpected_tool_call",
    }
)


def read(status: int, headers: Mapping[str, str], body: bytes, *, keep_raw: bool) -> Completion:
    """The completion in a reply.

    Raises:
        RequestError: There is none; the type and `outcome` say why.
    """
    request_id = next(filter(None, map(headers.get, _REQUEST_IDS)), None)
    data, fault = _json(body)
    try:
        if 200 <= status < 300:
            if isinstance(data, dict) and data.get("choices") and not data.get("error"):
                return _completion(data, body, request_id, keep_raw=keep_raw)
            status = 200
        raise failure(status, headers, data, body, fault, request_id)
    except RequestError as error:
        error.usage = _usage(data.get("usage") if isinstance(data, dict) else None)
        raise


def _json(body: bytes) -> tuple[Any, str | None]:
    """(parsed, None), or (None, what is wrong); lone surrogates become U+FFFD."""
    body = body.removeprefix(b"\xef\xbb\xbf")
    try:
        return loads(body), None
    except ValueError as error:
        return None, str(error)


def _completion(
    data: dict[str, Any], body: bytes, request_id: str | None, *, keep_raw: bool
) -> Completion:
    choices = data.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise BadResponse(
            f"HTTP 200 but no choice in it: {cut(body)}", status=200, request_id=request_id
        )
    finish = _text(choice.get("finish_reason"))
    reason = (finish or "").lower().replace("-", "_")
    if choice.get("error") or reason in _FAILED_FINISHES:
        said, kind = error_of({"error": choice.get("error")})
        raise BadResponse(
            f"HTTP 200 but the answer broke off ({said or finish})",
            status=200,
            request_id=request_id,
            error_type=kind or finish,
        )
    content = _content(message.get("content"))
    refusal = _text(message.get("refusal")) or None
    tool_calls = message.get("tool_calls") or message.get("function_call")
    outcome = _FINISHES.get(reason, Outcome.OK)
    if outcome is Outcome.OK and refusal:
        outcome = Outcome.REFUSED
    seen = bool(tool_calls) or _visible(content)
    if outcome is Outcome.OK and not seen:
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
        # What came in the place of a text (a picture, a sound, thoughts) was paid for.
        response=_encode(data).decode() if keep_raw or not (seen or refusal) else None,
    )


def _visible(content: str | None) -> bool:
    """Whether there is anything to see; spaces without width are nothing."""
    return bool(content and (content.isascii() or _BLANK.sub("", content)) and content.strip())


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
    if cached and prompt is not None:
        # Anthropic, and who passes its numbers on, counts them beside the prompt's and not in them.
        beside = total is not None and total == prompt + cached + (completion or 0)
        if cached > prompt or beside:
            prompt += cached
    inside = usage.get("completion_tokens_details")
    reasoning = _count(inside.get("reasoning_tokens")) if isinstance(inside, dict) else None
    # xAI and Gemini leave thinking out of completion_tokens but not out of the total.
    if prompt is not None and completion is not None and total is not None:
        completion = max(completion, total - prompt)
    cost = usage.get("cost")
    if cost is None and (ticks := _count(usage.get("cost_in_usd_ticks"))) is not None:  # xAI
        cost = ticks / 10_000_000_000
    if cost is not None:
        number = isinstance(cost, _NUMBERS) and not isinstance(cost, bool)
        cost = cost if number and 0 <= cost < _NO_PRICE else None
    return Usage(prompt, completion, total, cached, reasoning, cost)


def _count(value: Any) -> int | None:
    if type(value) is not int and (isinstance(value, bool) or not isinstance(value, _NUMBERS)):
        return None
    return int(value) if 0 <= value < 1 << 62 else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
