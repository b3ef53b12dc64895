"""An error reply in any dialect to the `RequestError` that it is. Touches: nothing.

Providers' words are told by code, type and sentence, as statuses alone say little: a 429 may be a
rate (wait), a day's limit (do not) or money (stop). What may pass by waiting is asked first.
"""

from __future__ import annotations

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
from batcher.records import Outcome
from batcher.send.headers import span

__all__ = ["cut", "error_of", "failure", "retry_after"]

_encode = msgspec.json.Encoder().encode
_MESSAGE = 1000
_LOOKED_AT = 4000  # Characters of an error that are searched for words; some servers send 60 MB.

# In lower case: code and type first, then the message.
_MONEY = re.compile(
    r"insufficient[_ ](user[_ ])?(quota|balance|credit)|balance is insufficient"
    r"|credit_balance_exhausted|billing_hard_limit|billing_not_active|spend_limit"
    r"|usage_limit_exceeded|pre_consume_token_quota_failed|entitlement_"
    r"|used all available credits|spending limit|credit balance is too low|payment required"
    r"|to prevent abuse|please recharge|欠费|余额不足|充值"
)
_DAY = re.compile(
    r"free-models-per-day|per ?day|\((tpd|rpd)\)|daily (limit|quota|request|token)|perday|per-day"
)
_MINUTE = re.compile(
    r"per ?min|perminute|per-minute|per ?second|\((tpm|rpm)\)|\b(tpm|rpm)\b"
    r"|rate_limit_exceeded|rate_limited|try again in|retry in|rate limit reached"
)
# What both kinds of 429 say, so that it decides only where nothing else does.
_PERHAPS_MONEY = re.compile(r"exceeded your current quota|billing|credits")
_CONTEXT = re.compile(
    r"context_length_exceeded|exceed_context_size|maximum context length|context size has been"
    r"|context window|prompt is too long|input is too long|too many input tokens"
    r"|you passed \d+ input tokens|reduce the length of the (input|messages|prompt)"
    r"|exceeds? the (maximum number of tokens|context l|model's context)|exceed context limit"
    r"|maximum prompt length|range of input length|input length exceeds|too many tokens in the (prompt|input)"
)
_FILTER = re.compile(
    r"content_filter|content management policy|responsibleaipolicy|content_policy"
    r"|prompt_blocked|sensitive_words|flagged|moderation|content exists risk|data_?inspection"
    r"|contentfilter|inappropriate content|不安全|敏感"
)
_NO_MODEL = re.compile(
    r"model_not_found|incorrect model id|invalid model name|no such model|model .{0,80}does not exist"
    r"|model .{0,80}not found|unknown model|not a valid model|server is pinned to"
)
_KEY = re.compile(
    r"api[_ ]?key[_ ](is[_ ])?(not valid|invalid|expired)|(invalid|incorrect|expired) api[_ ]?key"
)
_TOO_LARGE = re.compile(r"request too large|reduce your message size")
_OF_TOKENS = re.compile(r"tokens? per|\btpm\b|token.?limit|dynamic_token|tokens_limit")
_OF_REQUESTS = re.compile(r"requests? per|\brpm\b|dynamic_request|on requests")
_RATE = re.compile(
    r"rate.?limit|too many requests|tokens per minute|requests per minute|slow_down"
)


def failure(
    status: int,
    headers: Mapping[str, str],
    data: Any,
    body: bytes,
    fault: str | None,
    request_id: str | None,
) -> RequestError:
    """The error that a reply amounts to.

    Args:
        status: HTTP status.
        headers: Names in any case.
        data: The body as JSON; None when it is none.
        body: As received.
        fault: Why the body is no JSON; None when it is.
        request_id: The server's name for the request.
    """
    message, kind = (text[:_LOOKED_AT] for text in error_of(data))
    # Only what the server says of an error counts, never the text of an answer that was cut.
    words = f"{kind} {message} {_details(data)[:_LOOKED_AT]}".lower()
    if fault is not None:
        message = _page(body) or "the answer is empty"
        if status == 200:
            message = f"HTTP 200 but not JSON ({fault}): {message}"
        else:
            words = message.lower()
    elif status == 200:
        message = f"HTTP 200 but not an answer: {message or cut(body)}"
    message = message or cut(body) or f"HTTP {status}"
    if 300 <= status < 400 and (to := headers.get("Location")):
        message = f"it is at {to} now, which --base-url may name; redirects are not followed, as they would take the key along"
    elif status == 407:
        message = f"the proxy of the environment (HTTPS_PROXY) refuses: {message}"
    wait = retry_after(headers, data, message)
    facts: dict[str, Any] = {
        "status": status,
        "request_id": request_id,
        "error_type": kind.split(" ")[0] or None,
        "retry_after": wait,
    }
    return _told(status, words, message[:_MESSAGE], wait, facts)


def _told(
    status: int, words: str, message: str, wait: float | None, facts: dict[str, Any]
) -> RequestError:
    if _TOO_LARGE.search(words):  # OpenAI says so with 429, and no waiting will help.
        return BadRequest(message, outcome=Outcome.CONTEXT_LENGTH, **facts)
    if _OF_TOKENS.search(words):
        facts["about"] = "tokens"
    elif _OF_REQUESTS.search(words):
        facts["about"] = "requests"
    if (status in (200, 400) and _MONEY.search(words)) or (
        status in (402, 403, 429, 503) and _is_money(status, words, wait)
    ):
        return OutOfQuota(message, **facts)
    if status == 200:
        return (RateLimited if _RATE.search(words) else BadResponse)(message, **facts)
    if status in (402, 429) or (status == 503 and "rate limited" in words):
        return RateLimited(message, **facts)
    if _NO_MODEL.search(words) and status in (400, 403, 404, 503):
        return NotFound(message, **facts)
    if _CONTEXT.search(words) and status in (400, 413, 422, 500):
        return BadRequest(message, outcome=Outcome.CONTEXT_LENGTH, **facts)
    if _FILTER.search(words) and status in (400, 403, 422):
        return BadRequest(message, outcome=Outcome.FILTERED, **facts)
    if status in (401, 403, 407) or (status == 400 and _KEY.search(words)):
        return NotAllowed(message, **facts)
    if status in (404, 405) or 300 <= status < 400:
        return NotFound(message, **facts)
    if status in (408, 409, 424, 425, 498, 499) or status >= 500:
        return ServerError(message, **facts)
    return BadRequest(message, **facts)


def _is_money(status: int, words: str, wait: float | None) -> bool:
    """Whether it is the account that is exhausted, or its day, and not its minute."""
    if _MONEY.search(words):
        return True
    if status == 402:  # OpenRouter says so with a wait when only too much is in flight.
        return wait is None
    if _DAY.search(words):
        return True
    if wait is not None or _MINUTE.search(words):
        return False
    return status in (403, 429) and _PERHAPS_MONEY.search(words) is not None


def error_of(data: Any) -> tuple[str, str]:
    """(message, the server's word for the kind) of an error body in any of its shapes."""
    if isinstance(data, list) and data:
        data = data[0]
    if not isinstance(data, dict):
        return (data, "") if isinstance(data, str) else ("", "")
    error = data.get("error", data)
    if isinstance(told := data.get("base_resp"), dict) and error is data:  # MiniMax
        return str(told.get("status_msg") or ""), _word(told.get("status_code"))
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


# Neither tries the same bytes twice, whatever stands in a page.
_SCRIPT = re.compile(r"(?is)<(script|style)\b.*?(?:</\1>|\Z)")
_TAG = re.compile(r"<[^<>]*+>")


def _page(body: bytes) -> str:
    """The words of an HTML page from a proxy, or of plain text."""
    text = _SCRIPT.sub(" ", body[:20000].decode("utf-8", "replace"))
    text = _TAG.sub(" ", text)
    return " ".join(text.split())[:300]


def cut(body: bytes) -> str:
    """The beginning of a body, for people."""
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
                date = date if date.tzinfo else date.replace(tzinfo=UTC)
                return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())
            except (ValueError, TypeError, OverflowError):
                continue  # A year or a zone that no calendar has.
    for asked in _fields(data):
        if (seconds := _seconds(asked)) is not None:
            return seconds
        if isinstance(asked, str) and (seconds := span(asked)) is not None:
            return seconds
    found = _IN_TEXT.search(message.lower())
    return span(found.group(1)) if found else None


def _details(data: Any) -> str:
    """What Gemini names beside the message: the reason, and which quota, of a minute or of a day."""
    details = _objects(_inside(data).get("details"))
    quotas = [str(v.get("quotaId", "")) for d in details for v in _objects(d.get("violations"))]
    return " ".join([*quotas, *(str(d.get("reason", "")) for d in details)])


def _inside(data: Any) -> dict[str, Any]:
    """The error object of a body, empty when it has none."""
    if isinstance(data, list) and data:
        data = data[0]
    error = data.get("error") if isinstance(data, dict) else None
    return error if isinstance(error, dict) else {}


def _objects(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _fields(data: Any) -> list[Any]:
    error = _inside(data)
    metadata = error.get("metadata")
    asked = [metadata.get("retry_after_seconds")] if isinstance(metadata, dict) else []
    return asked + [detail.get("retryDelay") for detail in _objects(error.get("details"))]


def _seconds(text: Any) -> float | None:
    try:
        seconds = float(text)
    except (TypeError, ValueError):
        return None
    return seconds if 0 <= seconds < 1e9 else None
