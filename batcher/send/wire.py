"""Chat-completions JSON to records, and nothing about HTTP's transport. Touches: nothing.

What gateways really send is in many dialects; here they all become a `Completion` or one of the
`RequestError`s, and nothing else ever leaves this module.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any

import msgspec

from batcher.errors import BadResponse, RequestError
from batcher.records import FINISHED, NOT_TOLD, Completion, Outcome, Usage, reason_of, tier_of
from batcher.send.error_body import is_error
from batcher.send.failures import NOT_AN_ANSWER, beginning, failure
from batcher.send.lenient_json import LARGE_BYTES, loads
from batcher.send.reasoning import is_reasoning
from batcher.send.sse import unwrapped

__all__ = ["read"]

_encode = msgspec.json.Encoder().encode

# The spellings met most often, and those that the words below would mistake.
_FINISHES = {
    **dict.fromkeys((*FINISHED, *NOT_TOLD), Outcome.OK),
    **dict.fromkeys(("length", "error_limit", "incomplete", "pause_turn", "repetition"), Outcome.TRUNCATED),
    **dict.fromkeys(("content_filter", "error_toxic", "recitation", "language"), Outcome.FILTERED),
    "refusal": Outcome.REFUSED,
}  # fmt: skip
# What any other says, by its words; the first that fits. None: the answer broke off.
_BY_WORDS = (
    (
        re.compile(
            r"filter|guardrail|safety|sensitive|moderat|prohibited|block|toxic|policy|spii|recitation|flagged|censor"
            r"|jailbreak|model_armor|unsafe|harm|violat|risk"
        ),
        Outcome.FILTERED,
    ),
    (
        re.compile(
            r"error|fail|abort|cancel|time_?d?_?out|malformed|unexpected|too_many|missing|insufficient|overload|rate_limit"
            r"|exception|interrupt|preempt|disconnect|shutdown|crash"
        ),
        None,
    ),
    (re.compile(r"length|max_|max$|limit|truncat|context|token|budget|exceed"), Outcome.TRUNCATED),
    (re.compile(r"refus|declin"), Outcome.REFUSED),
)
_SERVED = "x-gemini-service-tier"
_REQUEST_IDS = ("x-request-id", "request-id", "x-oneapi-request-id")
_BLANK = re.compile(r"[\s\u200b-\u200f\u2060\ufeff\u00ad]+")
_MOST_TOKENS = 1 << 50  # Of an answer; those of all attempts together must fit 63 bits.
_NO_PRICE = 1_000_000  # Dollars that no request costs: a number that means something else.

# What is looked at of an answer, in the types that it most often has: decoded at once, without the rest.
# Whatever else a server sends is brought into these shapes by `_shaped`.

_Tokens = Annotated[int, msgspec.Meta(ge=0, lt=_MOST_TOKENS)]


class _Writes(msgspec.Struct, gc=False):
    """Tokens written to the cache, by how long it keeps them (Anthropic)."""

    ephemeral_5m_input_tokens: _Tokens | None = None
    ephemeral_1h_input_tokens: _Tokens | None = None


class _Answered(msgspec.Struct, gc=False):
    reasoning_tokens: _Tokens | None = None


class _Details(msgspec.Struct, gc=False):
    cached_tokens: _Tokens | None = None
    cache_write_tokens: _Tokens | None = None  # OpenAI, OpenRouter
    cache_creation_tokens: _Tokens | None = None  # LiteLLM
    cache_creation_input_tokens: _Tokens | None = None  # DashScope
    cached_creation_tokens: _Tokens | None = None  # new-api
    cache_creation: _Writes | None = None
    cache_creation_token_details: _Writes | None = None  # LiteLLM


class _Counts(msgspec.Struct, gc=False):
    prompt_tokens: _Tokens | None = None
    completion_tokens: _Tokens | None = None
    total_tokens: _Tokens | None = None
    prompt_cache_hit_tokens: _Tokens | None = None
    cost_in_usd_ticks: _Tokens | None = None  # xAI
    cost: Any = None  # Perplexity: an object, as it bills more than tokens
    estimated_cost: Any = None  # DeepInfra
    is_byok: Any = (
        None  # OpenRouter: with a key of one's own `cost` leaves out what the provider takes,
    )
    cost_details: Any = None  # which stands here.
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Answered | None = None
    cached_tokens: _Tokens | None = None  # Moonshot
    input_tokens: _Tokens | None = None  # Anthropic's and the Responses API's names
    output_tokens: _Tokens | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Answered | None = None
    cache_read_input_tokens: _Tokens | None = None  # Anthropic's names, as one-api passes them on
    cache_creation_input_tokens: _Tokens | None = None
    cache_creation_tokens: _Tokens | None = None
    cache_creation: _Writes | None = None
    claude_cache_creation_5_m_tokens: _Tokens | None = None  # new-api
    claude_cache_creation_1_h_tokens: _Tokens | None = None
    service_tier: str | None = None


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
    usage: _Counts | None = None
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
    request_id = next(filter(None, map(headers.get, _REQUEST_IDS)), None)
    body = unwrapped(body)
    fine = 200 <= status < 300
    plain = _plain(body) if fine and not keep_raw else None
    data, fault = _json(body) if plain is None else (None, None)
    try:
        if plain is not None:
            return _completion(plain, request_id, headers)
        if fine:
            if isinstance(data, dict) and data.get("choices") and not is_error(data):
                shaped = _shaped(data, body, request_id)
                return _completion(shaped, request_id, headers, data, keep_raw=keep_raw)
            status = 200
        raise failure(status, headers, data, body, fault, request_id, asked)
    except RequestError as error:
        told = _counts(data.get("usage") if isinstance(data, dict) else None)
        error.usage = _usage(told if plain is None else plain.usage)
        raise


def _plain(body: bytes) -> _Answer | None:
    """An answer of the usual types with a text in it; None for anything else, to be looked at closely."""
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
    """The answer in whatever a server sent; what is of no use counts as not there."""
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
        _counts(data.get("usage")),
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
    keep_raw: bool = False,
) -> Completion:
    """What an answer amounts to.

    Args:
        answer: The part of it that is looked at.
        request_id: As the headers tell it.
        headers: They tell the service tier where the answer does not.
        data: All of it, of which a text in it needs nothing.
        keep_raw: Whether to keep all of it.
    """
    choice = answer.choices[0]
    message, finish = choice.message, choice.finish_reason
    outcome = _FINISHES.get(finish or "") or _outcome(finish or "")
    if choice.error or outcome is None:
        raise _broken_off(choice, headers, request_id)
    content, refusal = message.content, message.refusal or None
    tool_calls = message.tool_calls or message.function_call
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
        logprobs=_encode(choice.logprobs).decode() if choice.logprobs else None,
        usage=_usage(
            answer.usage,
            answer.service_tier or headers.get(_SERVED),
            wrote=seen or refusal is not None,
        ),
        response_model=answer.model,
        request_id=request_id or headers.get("cf-ray") or answer.id,
        # What came in the place of a text (a picture, a sound, thoughts) was paid for.
        response=_encode(data).decode() if keep_raw or not (seen or refusal) else None,
    )


@lru_cache(maxsize=1024)
def _outcome(finish: str) -> Outcome | None:
    """What a reason amounts to, however it is spelt; None when the answer broke off."""
    reason = reason_of(finish)
    if reason in _FINISHES:
        return _FINISHES[reason]
    return next((of for words, of in _BY_WORDS if words.search(reason)), Outcome.OK)


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


_INSIDE: dict[str, type[msgspec.Struct]] = {
    "prompt_tokens_details": _Details,
    "completion_tokens_details": _Answered,
    "input_tokens_details": _Details,
    "output_tokens_details": _Answered,
    "cache_creation": _Writes,
    "cache_creation_token_details": _Writes,
}


def _counts(usage: Any) -> _Counts | None:
    """The usage in whatever a server sent; what is no number counts as not there."""
    counts: _Counts | None = _numbers(usage, _Counts)
    if counts is not None:
        for name in ("cost", "estimated_cost", "is_byok", "cost_details"):
            setattr(counts, name, usage.get(name))
        counts.service_tier = _text(usage.get("service_tier"))
    return counts


def _numbers(of: Any, kind: type[msgspec.Struct]) -> Any:
    if not isinstance(of, dict):
        return None
    return kind(
        **{
            name: _numbers(of.get(name), inside)
            if (inside := _INSIDE.get(name)) is not None
            else _count(of.get(name))
            for name in kind.__struct_fields__
        }
    )


def _usage(counts: _Counts | None, tier: str | None = None, *, wrote: bool | None = None) -> Usage:
    """What was used; a 0 that cannot be one is not told.

    Args:
        counts: As sent.
        tier: The service tier that the answer names.
        wrote: Whether anything stands in the answer; None for an error, which may be for nothing.
    """
    if counts is None:
        return Usage(service_tier=tier_of(tier))
    prompt = _filled(counts.prompt_tokens, counts.input_tokens)
    completion = _filled(counts.completion_tokens, counts.output_tokens)
    total = counts.total_tokens
    inside = counts.prompt_tokens_details or counts.input_tokens_details
    cached = None if inside is None else inside.cached_tokens
    if cached is None:
        cached = counts.prompt_cache_hit_tokens
    if cached is None:
        cached = counts.cache_read_input_tokens
    if cached is None:
        cached = counts.cached_tokens
    written, hour = _written(counts, inside)
    if (cached or written) and prompt is not None:
        reads, writes = cached or 0, written or 0
        # Anthropic counts both beside the prompt's tokens and not in them, and so does who passes its
        # names on as they are; LiteLLM, OpenRouter and OpenAI count them in, and have details.
        beside = (
            max(reads, writes) > prompt
            or (total is None and reads + writes > prompt)
            or total == prompt + reads + writes + (completion or 0)
            or (inside is None and counts.cache_creation_input_tokens is not None)
            or (inside is None and not counts.prompt_tokens)
            or (
                inside is not None
                and bool(inside.cached_creation_tokens)
                and counts.input_tokens == 0
            )
        )
        if beside:
            prompt += reads + writes
        elif written:
            written = min(written, prompt - reads)  # What was read is not billed as written.
    if wrote is not None and not prompt:
        prompt = None
    answered = counts.completion_tokens_details or counts.output_tokens_details
    reasoning = None if answered is None else answered.reasoning_tokens
    # xAI and Gemini leave thinking out of completion_tokens but not out of the total.
    if prompt is not None and completion is not None and total is not None:
        completion = max(completion, total - prompt)
    if reasoning and completion is not None and reasoning > completion:
        completion += reasoning  # More than all cannot be a part of it.
    if wrote is not None:
        completion = (completion or None) if wrote else completion
        least = (prompt or 0) + (completion or 0)
        if not total or (None in (prompt, completion) and total <= least):
            total = None
    cost = counts.cost.get("total_cost") if isinstance(counts.cost, dict) else counts.cost
    cost = counts.estimated_cost if cost is None else cost
    if cost is None and counts.cost_in_usd_ticks is not None:
        cost = counts.cost_in_usd_ticks / 10_000_000_000
    if cost is not None:
        cost = _dollars(cost)
    if counts.is_byok is True:
        details = counts.cost_details if isinstance(counts.cost_details, dict) else {}
        theirs = _dollars(details.get("upstream_inference_cost"))
        cost = (cost or 0) + theirs if theirs else None
    if (tier := tier or counts.service_tier) is not None:
        tier = None if tier == "default" else tier_of(tier)
    return Usage(prompt, completion, total, cached, reasoning, cost, written, hour, tier)


def _filled(usual: int | None, other: int | None) -> int | None:
    """A count that has two names; relays that know both send 0 under the one that they do not fill."""
    return other if other and not usual else usual


def _written(counts: _Counts, inside: _Details | None) -> tuple[int | None, int | None]:
    """(tokens written to the cache, how many of them are kept for an hour), each as far as it is told."""
    split = counts.cache_creation
    named: tuple[int | None, ...] = (
        counts.cache_creation_input_tokens,
        counts.cache_creation_tokens,
    )
    if inside is not None:
        named += (
            inside.cache_write_tokens,
            inside.cache_creation_tokens,
            inside.cache_creation_input_tokens,
            inside.cached_creation_tokens,
        )
        split = split or inside.cache_creation or inside.cache_creation_token_details
    written = None if named.count(None) == len(named) else max(of or 0 for of in named)
    short = counts.claude_cache_creation_5_m_tokens
    hour = counts.claude_cache_creation_1_h_tokens
    if split is not None:
        short, hour = split.ephemeral_5m_input_tokens, split.ephemeral_1h_input_tokens
    if short is None and hour is None:
        return written, None
    parts = (short or 0) + (hour or 0)
    if not parts and written:  # Zeros, where the split is not known.
        return written, None
    return max(written or 0, parts), hour or 0


def _count(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value < _MOST_TOKENS else None


def _dollars(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if number and 0 <= value < _NO_PRICE else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
