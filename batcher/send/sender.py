"""One request's whole life: limit, attempt, decision, perhaps again, Result. Touches: nothing itself.

The first attempt runs in the worker, outside of tenacity, whose loop costs more than the rest of
an attempt. What fails and may go again becomes a coroutine of its own (`Again`), so that no worker
and no place at the gate is held through a wait.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import tenacity

from batcher.errors import NoAnswer, RateLimited, RequestError, ServerError
from batcher.records import Attempt, Completion, Outcome, Request, Result
from batcher.send import retry, wire
from batcher.send.client import Client
from batcher.send.gate import Door
from batcher.send.limits import Estimate

__all__ = ["Again", "Lane", "Sender"]


class Lane(NamedTuple):
    """What is known of one model: its gate, and how many tokens its requests use."""

    gate: Door
    estimate: Estimate


class Again(NamedTuple):
    """A request whose first attempt failed and which goes again."""

    request: Request
    error: RequestError
    tries: list[Attempt]
    began: float


class Sender:
    """Sends requests through a client.

    Args:
        client: Posts bodies.
        max_retries: Attempts after the first; refusals (429) do not count.
        row_timeout: Seconds for all attempts of a request, waits included.
        keep_raw: Whether the whole response body stays in the Result.
        sleep: Waits; a test gives its own.
        rng: Where the jitter of backoffs comes from.
    """

    def __init__(
        self,
        client: Client,
        *,
        max_retries: int,
        row_timeout: float,
        keep_raw: bool,
        sleep: Callable[[float], Awaitable[None]],
        rng: random.Random | None = None,
    ) -> None:
        self._client = client
        self._max_retries = max_retries
        self._row_timeout = row_timeout
        self._keep_raw = keep_raw
        self._sleep = sleep
        self._rng = rng or random.Random()

    async def first(self, request: Request, lane: Lane) -> Result | Again:
        """One attempt: the Result, or what it takes to go on."""
        began = time.monotonic()
        tries: list[Attempt] = []
        try:
            completion = await self._attempt(request, lane, tries, began)
        except RequestError as error:
            if self._decide(error, tries, began) is None:
                return _failed(request, error, tries)
            return Again(request, error, tries, began)
        return _answered(request, completion, tries)

    async def again(self, failed: Again, lane: Lane) -> Result:
        """The attempts after the first, until one is the last."""
        request, error, tries, began = failed
        waiting: RequestError | None = error

        async def attempt() -> Completion:
            nonlocal waiting
            if waiting is not None:
                error, waiting = waiting, None
                raise error
            return await self._attempt(request, lane, tries, began)

        def decided(state: tenacity.RetryCallState) -> float | None:
            error = state.outcome.exception() if state.outcome else None
            return self._decide(error, tries, began) if isinstance(error, RequestError) else None

        waits: list[float] = []

        def goes_again(state: tenacity.RetryCallState) -> bool:
            wait = decided(state)
            if wait is not None:
                waits.append(wait)
            return wait is not None

        retrying = tenacity.AsyncRetrying(
            retry=goes_again,
            wait=lambda _state: waits[-1],
            sleep=self._sleep,
            reraise=True,
        )
        try:
            completion: Completion = await retrying(attempt)
        except RequestError as last:
            return _failed(request, last, tries)
        return _answered(request, completion, tries)

    def _decide(self, error: RequestError, tries: list[Attempt], began: float) -> float | None:
        refusals = sum(1 for t in tries if t.status is Outcome.RATE_LIMITED)
        wait = retry.decide(error, len(tries) - refusals, refusals, self._max_retries, self._rng)
        if wait is None or time.monotonic() + wait - began > self._row_timeout:
            return None
        return wait

    async def _attempt(
        self, request: Request, lane: Lane, tries: list[Attempt], began: float
    ) -> Completion:
        """One passage through the gate and one HTTP exchange; appends to `tries`."""
        gate, estimate = lane
        size = len(request.body)
        ticket = await gate.enter(estimate.tokens(size, request.max_tokens))
        started, clock = time.time(), time.monotonic()
        if tries:
            waited = started - (tries[-1].started + tries[-1].latency_ms) / 1000
        else:
            waited = clock - began
        used: float | None = 0.0
        error: RequestError | None = None
        completion: Completion | None = None
        try:
            reply = await self._client.post(request.body)
            completion = wire.read(
                reply.status, reply.headers, reply.body, keep_raw=self._keep_raw
            )
        except RequestError as failure:
            error = failure
            raise
        finally:
            latency = time.monotonic() - clock
            if completion is not None:
                usage = completion.usage
                estimate.learn(size, usage.prompt_tokens, usage.completion_tokens)
                used = None
                if usage.prompt_tokens is not None and usage.completion_tokens is not None:
                    used = usage.prompt_tokens + usage.completion_tokens
                gate.answered()
            elif isinstance(error, RateLimited):
                gate.pause(error.retry_after if error.retry_after is not None else 1.0)
            elif isinstance(error, NoAnswer) or (
                isinstance(error, ServerError) and error.status in (503, 529)
            ):
                used = None  # Perhaps it was worked on all the same.
                gate.overloaded()
            gate.leave(ticket, used)
            if completion is not None or error is not None:
                tries.append(_try(started, latency, waited, completion, error))
        return completion


def _try(
    started: float,
    latency: float,
    waited: float,
    completion: Completion | None,
    error: RequestError | None,
) -> Attempt:
    if completion is not None:
        return Attempt(
            started=int(started * 1000),
            latency_ms=round(latency * 1000),
            waited_ms=round(waited * 1000),
            status=completion.outcome,
            http_status=200,
            request_id=completion.request_id,
            prompt_tokens=completion.usage.prompt_tokens,
            completion_tokens=completion.usage.completion_tokens,
        )
    return Attempt(
        started=int(started * 1000),
        latency_ms=round(latency * 1000),
        waited_ms=round(waited * 1000),
        status=error.outcome if error else Outcome.CONNECTION,
        http_status=error.status if error else None,
        request_id=error.request_id if error else None,
        error=str(error)[:300] if error else None,
    )


def _answered(request: Request, completion: Completion, tries: list[Attempt]) -> Result:
    usage, last = completion.usage, tries[-1]
    return Result(
        row=request.row,
        model=request.model,
        sample=request.sample,
        key=request.key,
        status=completion.outcome,
        custom_id=request.custom_id,
        content=completion.content,
        finish_reason=completion.finish_reason,
        refusal=completion.refusal,
        tool_calls=completion.tool_calls,
        logprobs=completion.logprobs,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        cached_tokens=usage.cached_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        cost_usd=usage.cost_usd,
        latency_ms=last.latency_ms,
        attempts=len(tries),
        http_status=200,
        response_model=completion.response_model,
        request_id=completion.request_id,
        created_at=last.started,
        response=completion.response,
        tries=tries if len(tries) > 1 else None,
    )


def _failed(request: Request, error: RequestError, tries: list[Attempt]) -> Result:
    last = tries[-1] if tries else None
    return Result(
        row=request.row,
        model=request.model,
        sample=request.sample,
        key=request.key,
        status=error.outcome,
        custom_id=request.custom_id,
        latency_ms=last.latency_ms if last else None,
        attempts=len(tries),
        http_status=error.status,
        error_type=error.error_type,
        error=str(error),
        request_id=error.request_id,
        created_at=last.started if last else None,
        tries=tries if len(tries) > 1 else None,
    )
