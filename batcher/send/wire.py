"""Reads a chat completion from JSON, in any gateway's dialect. Touches: nothing.

Every reply becomes a `Completion` or one of the `RequestError`s.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec

from batcher.errors import BadResponse, RequestError
from batcher.records import FINISHED, NO_REASON, Completion, Outcome, reason_of
from batcher.send.error_body import is_error
from batcher.send.failures import NOT_AN_ANSWER, beginning, failure
from batcher.send.lenient_json import LARGE_BYTES, loads
from batcher.send.reasoning import is_reasoning
from batcher.send.sse import unwrapped
from batcher.send.usage import UsageBody, read_usage, usage_body

__all__ = ["read"]

_encode = msgspec.json.Encoder().encode

# The usual spellings, and those that the patterns below would mistake.
_FINISHES = {
    **dict.fromkeys((*FINISHED, *NO_REASON), Outcome.OK),
    **dict.fromkeys(("length", "error_limit", "incomplete", "pause_turn", "repetition"), Outcome.TRUNCATED),
    **dict.fromkeys(("content_filter", "error_toxic", "recitation", "language"), Outcome.FILTERED),
    "refusal": Outcome.REFUSED,
}  # fmt: skip
# What other spellings mean: the first pattern that is found. None: the answer broke off.
_BY_WORDS = (
    (
        (
            r"filter|guardrail|safety|sensitive|moderat|prohibited|block|toxic|policy|spii|recitation|flagged|censor"
            r"|jailbreak|model_armor|unsafe|harm|violat|risk"
        ),
        Outcome.FILTERED,
    ),
    (
        (
            r"error|fail|abort|cancel|time_?d?_?out|malformed|unexpected|too_many|missing|insufficient|overload|rate_limit"
            r"|exception|interrupt|preempt|disconnect|shutdown|crash"
        ),
        None,
    ),
    (r"length|max_|max$|limit|truncat|context|token|budget|exceed", Outcome.TRUNCATED),
    (r"refus|declin", Outcome.REFUSED),
)
_SERVED_TIER = "x-gemini-service-tier"
_BLANK = re.compile(r"[\s\u200b-\u200f\u2060\ufeff\u00ad]+")

# The part of an answer that is read, in the types that it most often has: decoded without the rest.
# `_shaped` brings anything else that a server sends into these types.


class _Message(msgspec.Struct, gc=False):
    content: str | None = None
    refusal: str | None = None
    tool_calls: Any = None
    function_call: Any = None


class _Choice(msgspec.Struct, gc=False):
    message: _Message
    finish_reason: str | None = None
    error: Any = None
    logprobs: Any = None


class _Answer(msgspec.Struct, gc=False):
    choices: list[_Choice]
    usage: UsageBody | None = None
    error: Any = None
    model: str | None = None
    id: str | None = None
    success: Any = None
    base_resp: Any = None
    error_code: Any = None
    service_tier: str | None = None


_decode = msgspec.json.Decoder(_Answer).decode


def read(
    status: int, headers: Mapping[str, str], body: bytes, *, keep_raw: bool, asked: bytes = b""
) -> Completion:
    """The completion in a reply to the request whose body is `asked`.

    Raises:
        RequestError: There is none; the type and `outcome` say why.
    """
    request_id = (
        headers.get("x-request-id")
        or headers.get("request-id")
        or headers.get("x-oneapi-request-id")
        or None
    )
    body = unwrapped(body)
    succeeded = 200 <= status < 300
    usual = _usual(body) if succeeded and not keep_raw else None
    if usual is not None:
        try:
            return _completion(usual, request_id, headers, visible=True)
        except RequestError as error:
            error.usage = read_usage(usual.usage)
            raise
    data, fault = _json(body)
    try:
        if succeeded:
            if isinstance(data, dict) and data.get("choices") and not is_error(data):
                shaped = _shaped(data, body, request_id)
                visible = _visible(shaped.choices[0].message.content)
                return _completion(
                    shaped, request_id, headers, data, visible=visible, keep_raw=keep_raw
                )
            status = 200
        raise failure(status, headers, data, body, fault, request_id, asked)
    except RequestError as error:
        error.usage = read_usage(usage_body(data.get("usage") if isinstance(data, dict) else None))
        raise


def _usual(body: bytes) -> _Answer | None:
    """An answer of the usual types with a text in it; None for any other, to be looked at closely."""
    if len(body) > LARGE_BYTES:
        return None
    try:
        answer = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    unsure = answer.error or answer.success is False or answer.base_resp or answer.error_code
    if unsure or not answer.choices or not _visible(answer.choices[0].message.content):
        return None
    return answer


def _json(body: bytes) -> tuple[Any, str | None]:
    """(parsed, None), or (None, what is wrong); lone surrogates become U+FFFD."""
    try:
        return loads(body), None
    except ValueError as error:
        return None, str(error)


def _shaped(data: dict[str, Any], body: bytes, request_id: str | None) -> _Answer:
    """The answer in whatever JSON a server sent; values of other types count as missing."""
    choices = data.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise BadResponse(
            f"HTTP 200 but no choice in it: {beginning(body)}", status=200, request_id=request_id
        )
    shaped = _Message(
        _content(message.get("content")),
        _text(message.get("refusal")),
        message.get("tool_calls"),
        message.get("function_call"),
    )
    finish = _text(choice.get("finish_reason"))
    first = _Choice(shaped, finish, choice.get("error"), choice.get("logprobs"))
    return _Answer(
        [first],
        usage_body(data.get("usage")),
        model=_text(data.get("model")),
        id=_text(data.get("id")),
        service_tier=_text(data.get("service_tier")),
    )


def _completion(
    answer: _Answer,
    request_id: str | None,
    headers: Mapping[str, str],
    data: object = None,
    *,
    visible: bool,
    keep_raw: bool = False,
) -> Completion:
    """The completion that an answer amounts to.

    Args:
        answer: The part of it that is read.
        request_id: As the headers name it.
        headers: They name the service tier where the answer does not.
        data: All of it; an answer with a text needs none.
        visible: Whether its content shows anything.
        keep_raw: Whether to keep all of it.
    """
    choice = answer.choices[0]
    message, finish = choice.message, choice.finish_reason
    outcome = _FINISHES.get(finish or "") or _outcome(finish or "")
    if choice.error or outcome is None:
        raise _broken_off(choice, headers, request_id)
    refusal = message.refusal or None
    tool_calls = message.tool_calls or message.function_call
    seen = visible or bool(tool_calls)
    if outcome is Outcome.OK and refusal:
        outcome = Outcome.REFUSED
    elif outcome is Outcome.OK and not seen:
        outcome = Outcome.EMPTY
    tier = answer.service_tier or headers.get(_SERVED_TIER)
    return Completion(
        outcome,
        message.content,
        finish,
        refusal,
        _encode(tool_calls).decode() if tool_calls else None,
        _encode(choice.logprobs).decode() if choice.logprobs else None,
        read_usage(answer.usage, tier, wrote=seen or refusal is not None),
        answer.model,
        request_id or headers.get("cf-ray") or answer.id,
        # What came in the place of a text (a picture, a sound, thoughts) was paid for.
        _encode(data).decode() if keep_raw or not (seen or refusal) else None,
    )


@lru_cache(maxsize=1024)
def _outcome(finish: str) -> Outcome | None:
    """The outcome of a `finish_reason` in any spelling; None when the answer broke off."""
    reason = reason_of(finish)
    if reason in _FINISHES:
        return _FINISHES[reason]
    return next((found for words, found in _BY_WORDS if re.search(words, reason)), Outcome.OK)


def _broken_off(
    choice: _Choice, headers: Mapping[str, str], request_id: str | None
) -> RequestError:
    """The error that an answer ended with; by its own word a 429, say, or else one that may pass."""
    error = failure(200, headers, {"error": choice.error}, b"", None, request_id)
    said = str(error).removeprefix(NOT_AN_ANSWER) or choice.finish_reason
    broken = type(error)(
        f"HTTP 200 but the answer broke off ({said})",
        outcome=error.outcome,
        status=error.status,
        retry_after=error.retry_after,
        request_id=error.request_id,
        error_type=error.error_type or choice.finish_reason,
    )
    broken.in_answer = True
    return broken


def _visible(content: str | None) -> bool:
    """Whether there is an answer to see; spaces without width are nothing, nor is reasoning alone."""
    return bool(
        content
        and (content.isascii() or _BLANK.sub("", content))
        and content.strip()
        and not is_reasoning(content)
    )


def _content(content: Any) -> str | None:
    """The text of an answer; some servers send a list of parts."""
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(part for part in parts if isinstance(part, str))
    return _encode(content).decode()


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
