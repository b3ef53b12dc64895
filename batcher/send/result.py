"""Builds the result of a request from its last answer or failure and its attempts. Touches: nothing."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec

from batcher.errors import AskAgain, NoAnswer, RequestError
from batcher.records import TOKEN_FIELDS, Attempt, Completion, Outcome, Request, Result, Usage
from batcher.send.dialect import RepairState

__all__ = ["answered", "attempt", "ended", "stopped"]

_NOTHING = Completion(Outcome.BAD_RESPONSE, *(None,) * 5, Usage(), None, None)


def attempt(
    started: float,
    latency: float,
    waited: float,
    cause: str,
    ended: Completion | RequestError,
    first: float | None,
) -> Attempt:
    """One exchange; times in seconds, `first` until its first token."""
    status: int | None = 200
    if isinstance(ended, RequestError):
        status, message = ended.status, str(ended)[:300]
    else:
        message = ended.unfit or ""
    usage = ended.usage
    return Attempt(
        int(started * 1000),
        round(latency * 1000),
        round(max(0.0, waited) * 1000),
        ended.outcome,
        cause,
        http_status=status,
        request_id=ended.request_id,
        error=message or None,
        ttft_ms=None if first is None else round(first * 1000),
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        cached_tokens=usage.cached_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        cost_usd=usage.cost_usd,
    )


def answered(request: Request, completion: Completion, tries: list[Attempt]) -> Result:
    """The result of a request that was answered; its tokens are those of all its attempts."""
    status, error = completion.outcome, completion.unfit
    return _result(
        request, tries, status, 200, error, request_id=completion.request_id, answer=completion
    )


def _used(tries: list[Attempt]) -> Usage | Attempt:
    """Usage of all attempts together; None where an answer did not report it."""
    if len(tries) == 1:
        return tries[0]
    sums: dict[str, Any] = {}
    for name in TOKEN_FIELDS:
        counts = [n for t in tries if (n := getattr(t, name)) is not None or t.status.answered]
        sums[name] = None if not counts or None in counts else sum(counts)
        if name == "cost_usd" and sums[name] is not None:
            # As decimals: binary fractions of cents do not add up to cents.
            sums[name] = float(sum(Decimal(str(cost)) for cost in counts))
    return Usage(**sums)


def stopped(
    request: Request, error: RequestError, tries: list[Attempt], repair: RepairState
) -> Result | None:
    """The result of a request that a stopped run leaves to be sent; None where nothing was paid for it."""
    if not any(t.paid for t in tries):
        return None
    if repair.answer is not None:
        error = NoAnswer("the run was stopped")
    return msgspec.structs.replace(ended(request, error, tries, repair), stopped=True)


def ended(
    request: Request, error: RequestError, tries: list[Attempt], repair: RepairState
) -> Result:
    """The result of a request that failed: its last unusable answer if it has one, else the failure."""
    if repair.answer is None:
        return _result(
            request,
            tries,
            error.outcome,
            error.status,
            str(error),
            request_id=error.request_id,
            error_type=error.error_type,
        )
    result = answered(request, repair.answer, tries)
    why = repair.answer.unfit or "truncated"
    if not isinstance(error, AskAgain):
        why = f"{why}; asked again: {error}"
    return msgspec.structs.replace(result, error=why)


def _result(
    request: Request,
    tries: list[Attempt],
    status: Outcome,
    http_status: int | None,
    error: str | None,
    *,
    request_id: str | None,
    error_type: str | None = None,
    answer: Completion = _NOTHING,
) -> Result:
    last, used = tries[-1] if tries else None, _used(tries)
    waited, cause, kept = _waits(tries)
    # By position: names take msgspec three times as long, and this is made for each row.
    return Result(
        request.row,
        request.model,
        request.sample,
        request.key,
        status,
        request.custom_id,
        answer.content,
        answer.parsed,
        answer.confidences,
        answer.finish_reason,
        answer.refusal,
        answer.tool_calls,
        answer.logprobs,
        used.prompt_tokens,
        used.completion_tokens,
        used.total_tokens,
        used.cached_tokens,
        used.cache_write_tokens,
        used.reasoning_tokens,
        used.cost_usd,
        last.latency_ms if last else None,
        last.ttft_ms if last else None,
        len(tries),
        http_status,
        error_type,
        error,
        answer.response_model,
        request_id,
        last.started if last else None,
        answer.response,
        False,  # Not copied.
        answer.loose,
        False,  # Not stopped.
        waited,
        cause,
        kept,
    )


def _waits(tries: list[Attempt]) -> tuple[int, str, list[Attempt] | None]:
    """(ms waited, for what, attempts to keep): a single attempt is the row itself, several are all kept."""
    if len(tries) > 1:
        return 0, "", tries
    if tries and tries[0].waited_ms:
        return tries[0].waited_ms, tries[0].cause, None
    return 0, "", None
