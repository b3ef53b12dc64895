"""Token counts and costs in all dialects of providers and gateways. Touches: nothing."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from batcher.records import Usage, tier_of

__all__ = ["UsageBody", "read_usage", "usage_body"]

_MAX_TOKENS = 1 << 50  # Of an answer; those of all attempts together must fit 63 bits.
_MAX_COST = 1_000_000  # Dollars that no request costs: a larger number means something else.

_Tokens = Annotated[int, msgspec.Meta(ge=0, lt=_MAX_TOKENS)]


class _CacheWrites(msgspec.Struct, gc=False):
    """Tokens written to the cache, by how long it keeps them (Anthropic)."""

    ephemeral_5m_input_tokens: _Tokens | None = None
    ephemeral_1h_input_tokens: _Tokens | None = None


class _CompletionDetails(msgspec.Struct, gc=False):
    reasoning_tokens: _Tokens | None = None


class _PromptDetails(msgspec.Struct, gc=False):
    cached_tokens: _Tokens | None = None
    cache_write_tokens: _Tokens | None = None  # OpenAI, OpenRouter
    cache_creation_tokens: _Tokens | None = None  # LiteLLM
    cache_creation_input_tokens: _Tokens | None = None  # DashScope
    cached_creation_tokens: _Tokens | None = None  # new-api
    cache_creation: _CacheWrites | None = None
    cache_creation_token_details: _CacheWrites | None = None  # LiteLLM


class UsageBody(msgspec.Struct, gc=False):
    """The `usage` of an answer, in the types that it most often has."""

    prompt_tokens: _Tokens | None = None
    completion_tokens: _Tokens | None = None
    total_tokens: _Tokens | None = None
    prompt_cache_hit_tokens: _Tokens | None = None
    cost_in_usd_ticks: _Tokens | None = None  # xAI
    cost: Any = None  # Perplexity: an object, as it bills more than tokens
    estimated_cost: Any = None  # DeepInfra
    # OpenRouter: with a key of one's own, `cost` leaves out what the provider takes; the details have it.
    is_byok: Any = None
    cost_details: Any = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    cached_tokens: _Tokens | None = None  # Moonshot
    input_tokens: _Tokens | None = None  # Anthropic's and the Responses API's names
    output_tokens: _Tokens | None = None
    input_tokens_details: _PromptDetails | None = None
    output_tokens_details: _CompletionDetails | None = None
    cache_read_input_tokens: _Tokens | None = None  # Anthropic's names, as one-api passes them on
    cache_creation_input_tokens: _Tokens | None = None
    cache_creation_tokens: _Tokens | None = None
    cache_creation: _CacheWrites | None = None
    claude_cache_creation_5_m_tokens: _Tokens | None = None  # new-api
    claude_cache_creation_1_h_tokens: _Tokens | None = None
    service_tier: str | None = None


_NESTED: dict[str, type[msgspec.Struct]] = {
    "prompt_tokens_details": _PromptDetails,
    "completion_tokens_details": _CompletionDetails,
    "input_tokens_details": _PromptDetails,
    "output_tokens_details": _CompletionDetails,
    "cache_creation": _CacheWrites,
    "cache_creation_token_details": _CacheWrites,
}


def usage_body(usage: Any) -> UsageBody | None:
    """The usage in whatever JSON a server sent; what is no number counts as missing."""
    found: UsageBody | None = _tolerant(usage, UsageBody)
    if found is not None:
        for name in ("cost", "estimated_cost", "is_byok", "cost_details"):
            setattr(found, name, usage.get(name))
        tier = usage.get("service_tier")
        found.service_tier = tier if isinstance(tier, str) else None
    return found


def _tolerant(value: Any, kind: type[msgspec.Struct]) -> Any:
    if not isinstance(value, dict):
        return None
    return kind(
        **{
            name: _tolerant(value.get(name), nested)
            if (nested := _NESTED.get(name)) is not None
            else _count(value.get(name))
            for name in kind.__struct_fields__
        }
    )


def read_usage(
    body: UsageBody | None, tier: str | None = None, *, wrote: bool | None = None
) -> Usage:
    """What was used; a 0 that cannot be true counts as not reported.

    Args:
        body: As sent.
        tier: The service tier that the answer names.
        wrote: Whether there is anything in the answer; None for an error, which may be for nothing.
    """
    if body is None:
        return Usage(service_tier=tier_of(tier))
    prompt, completion, total = body.prompt_tokens, body.completion_tokens, body.total_tokens
    # Relays that know both names of a count send 0 under the one that they do not fill.
    prompt = prompt or body.input_tokens or prompt
    completion = completion or body.output_tokens or completion
    details = body.prompt_tokens_details or body.input_tokens_details
    cached = None if details is None else details.cached_tokens
    if cached is None:
        cached = body.prompt_cache_hit_tokens
    if cached is None:
        cached = body.cache_read_input_tokens
    if cached is None:
        cached = body.cached_tokens
    written, hour = _written(body, details)
    if (cached or written) and prompt is not None:
        if _is_beside(body, details, prompt, cached or 0, written or 0, completion or 0):
            prompt += (cached or 0) + (written or 0)
        elif written:  # Tokens that were read are not billed as written.
            written = min(written, prompt - (cached or 0))
    if wrote is not None and not prompt:
        prompt = None
    answer_details = body.completion_tokens_details or body.output_tokens_details
    reasoning = None if answer_details is None else answer_details.reasoning_tokens
    if completion is not None:
        # xAI and Gemini leave thinking out of completion_tokens but not out of the total.
        if prompt is not None and total is not None and total - prompt > completion:
            completion = total - prompt
        if reasoning and reasoning > completion:  # More than all cannot be a part of it.
            completion += reasoning
    if wrote is not None:
        completion = (completion or None) if wrote else completion
        if not total or (
            (prompt is None or completion is None) and total <= (prompt or 0) + (completion or 0)
        ):
            total = None
    if (tier := tier or body.service_tier) is not None:
        tier = tier_of(tier)
    return Usage(prompt, completion, total, cached, reasoning, _cost(body), written, hour, tier)


def _is_beside(
    body: UsageBody,
    details: _PromptDetails | None,
    prompt: int,
    reads: int,
    writes: int,
    completion: int,
) -> bool:
    """Whether cached tokens are counted beside the prompt's and not among them.

    Anthropic does so, and so do gateways that pass its names on as they are; LiteLLM, OpenRouter and
    OpenAI count them in, and have details.
    """
    total = body.total_tokens
    if max(reads, writes) > prompt or (total is None and reads + writes > prompt):
        return True
    if total == prompt + reads + writes + completion:
        return True
    if details is None:
        return body.cache_creation_input_tokens is not None or not body.prompt_tokens
    return bool(details.cached_creation_tokens) and body.input_tokens == 0


def _written(body: UsageBody, details: _PromptDetails | None) -> tuple[int | None, int | None]:
    """(tokens written to the cache, how many of them are kept for an hour), as far as reported."""
    split = body.cache_creation
    counts = [body.cache_creation_input_tokens, body.cache_creation_tokens]
    if details is not None:
        counts += (
            details.cache_write_tokens,
            details.cache_creation_tokens,
            details.cache_creation_input_tokens,
            details.cached_creation_tokens,
        )
        split = split or details.cache_creation or details.cache_creation_token_details
    written: int | None = 0 if 0 in counts else None
    if any(counts):
        written = max(n or 0 for n in counts)
    short = body.claude_cache_creation_5_m_tokens
    hour = body.claude_cache_creation_1_h_tokens
    if split is not None:
        short, hour = split.ephemeral_5m_input_tokens, split.ephemeral_1h_input_tokens
    if short is None and hour is None:
        return written, None
    parts = (short or 0) + (hour or 0)
    if not parts and written:  # Zeros, where the split is not known.
        return written, None
    return max(written or 0, parts), hour or 0


def _cost(body: UsageBody) -> float | None:
    """Dollars, as far as reported."""
    cost = body.cost.get("total_cost") if isinstance(body.cost, dict) else body.cost
    cost = body.estimated_cost if cost is None else cost
    if cost is None and body.cost_in_usd_ticks is not None:
        cost = body.cost_in_usd_ticks / 10_000_000_000
    dollars = None if cost is None else _dollars(cost)
    if body.is_byok is True:
        details = body.cost_details if isinstance(body.cost_details, dict) else {}
        provider = _dollars(details.get("upstream_inference_cost"))
        dollars = (dollars or 0) + provider if provider else None
    return dollars


def _count(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value < _MAX_TOKENS else None


def _dollars(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if number and 0 <= value < _MAX_COST else None
