"""One request's whole life: limit, attempt, decision, perhaps again, Result. Touches: nothing itself.

The first attempt runs in the worker, outside of tenacity, whose loop costs more than the rest of
an attempt. What fails and may go again becomes a coroutine of its own (`FailedAttempt`), so that no worker
and no place at the gate is held through a wait.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from typing import NamedTuple, TypeVar

import msgspec
import tenacity

from batcher.errors import (
    AskAgain,
    BadResponse,
    JobError,
    NoAnswer,
    OutOfQuota,
    RateLimited,
    RequestError,
    ServerError,
)
from batcher.limits.headers import RateLimitHeaders, rate_limits
from batcher.limits.port import Closed, ExchangeOutcome, RateLimiter
from batcher.money.budget import Amount, Budget, Reservation
from batcher.money.prices import Bill, no_price, tier_asked
from batcher.records import Attempt, Completion, Outcome, Request, Result, Usage
from batcher.send import result, retry, sse, wire
from batcher.send.dialect import AnswerPolicy, ModelDialect, RepairState, RequestDialect
from batcher.send.estimate import Estimate, TimeoutEstimator
from batcher.send.http import NO_ROOM, Client, Reply
from batcher.send.lenient_json import LARGE_BYTES

__all__ = ["FailedAttempt", "SendChannel", "Sender"]

_LEAST_SECONDS = 0.1
_LONG_CHARS = 256 << 10  # An answer of so many takes some 100 ms to be looked at, at worst.
T = TypeVar("T")


class SendChannel(NamedTuple):
    """What is known of one model.

    Attributes:
        gate: Lets its requests through.
        estimate: How many tokens they use.
        patience: How long they take.
        flying: What is in flight: name of the row and when it was sent (monotonic clock).
        forms: In which form it takes what its answers must be.
        bill: What its answers cost.
    """

    gate: RateLimiter
    estimate: Estimate
    patience: TimeoutEstimator
    flying: dict[int, tuple[str, float]]
    forms: ModelDialect
    bill: Bill


class FailedAttempt(NamedTuple):
    """A request that failed and goes again.

    Attributes:
        request: As it was sent.
        error: How it failed last.
        tries: All attempts so far.
        until: When its time is up (monotonic clock).
        wait: Seconds until it may go to the same model again.
        talk: What was said about it so far.
    """

    request: Request
    error: RequestError
    tries: list[Attempt]
    until: float
    wait: float
    talk: RepairState


class Sender:
    """Sends requests through a client.

    Args:
        client: Posts bodies.
        max_retries: Attempts after the first; refusals (429) do not count.
        row_timeout: Seconds for all attempts of a request, from the first on, waits included.
        keep_raw: Whether the whole response body stays in the Result.
        sleep: Waits; a test gives its own.
        rng: Where the jitter of backoffs comes from.
        terms: What is wanted of every answer.
        budget: What may be spent; None for no bound.
        idle: Seconds without a byte, after which a stream is given up; None for no streams.
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
        terms: AnswerPolicy | None = None,
        budget: Budget | None = None,
        idle: float | None = None,
    ) -> None:
        self._client = client
        self._max_retries = max_retries
        self._row_timeout = row_timeout
        self._keep_raw = keep_raw
        self._sleep = sleep
        self._rng = rng or random.Random()
        self._terms = terms or AnswerPolicy(None)
        self._budget = budget
        self._idle = idle

    async def first(
        self,
        request: Request,
        lane: SendChannel,
        before: FailedAttempt | None = None,
        said: RepairState | None = None,
    ) -> Result | FailedAttempt:
        """One attempt: the Result, or what it takes to go on.

        Args:
            request: What to send.
            lane: Where to.
            before: How it failed so far, perhaps with another model.
            said: What was said about it in an earlier run.
        """
        tries: list[Attempt] = []
        until: float | None = None
        talk = said or RepairState()
        if before is not None:
            until = before.until
            other = None if before.request.model == request.model else before.request.model
            talk = before.talk if other is None else before.talk.elsewhere()
            tries = [
                t if other is None or t.model else msgspec.structs.replace(t, model=other)
                for t in before.tries
            ]
        try:
            completion = await self._attempt(request, lane, tries, until, talk)
        except RequestError as error:
            if until is None:
                until = time.monotonic() + self._row_timeout - tries[0].latency_ms / 1000
            wait = self._decide(error, tries, until)
            if wait is None:
                return result.ended(request, error, tries, talk)
            return FailedAttempt(request, error, tries, until, wait, talk)
        except _NoTime:
            assert before is not None
            return result.ended(request, before.error, tries, talk)
        except Closed:
            if (
                before is None
                or (kept := result.stopped(request, before.error, tries, talk)) is None
            ):
                raise
            return kept
        return result.answered(request, completion, tries)

    async def again(self, failed: FailedAttempt, lane: SendChannel) -> Result:
        """The attempts after the first, until one is the last."""
        request, error, tries, until, _wait, talk = failed
        waiting: RequestError | None = error

        async def attempt() -> Completion:
            nonlocal waiting
            if waiting is not None:
                error, waiting = waiting, None
                raise error
            return await self._attempt(request, lane, tries, until, talk)

        waits: list[float] = []

        def goes_again(state: tenacity.RetryCallState) -> bool:
            error = state.outcome.exception() if state.outcome else None
            wait = self._decide(error, tries, until) if isinstance(error, RequestError) else None
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
            return result.ended(request, last, tries, talk)
        except _NoTime:  # It stood in line until its time was up.
            return result.ended(request, error, tries, talk)
        except Closed:
            if (kept := result.stopped(request, error, tries, talk)) is None:
                raise
            return kept
        return result.answered(request, completion, tries)

    def _decide(self, error: RequestError, tries: list[Attempt], until: float) -> float | None:
        refusals = sum(1 for t in tries if t.status is Outcome.RATE_LIMITED)
        # What was answered, and a form that was refused, are asked again for another reason.
        asked = sum(1 for t in tries if t.status.answered or t.status is Outcome.BAD_REQUEST)
        failures = len(tries) - refusals - asked
        wait = retry.decide(error, failures, refusals, self._max_retries, self._rng)
        return None if wait is None or time.monotonic() + wait > until else wait

    async def _attempt(
        self,
        request: Request,
        lane: SendChannel,
        tries: list[Attempt],
        until: float | None,
        talk: RepairState,
    ) -> Completion:
        """One attempt, once it can be paid for; appends to `tries`."""
        how = lane.forms.now
        if talk.form is not None:
            how = how._replace(form=talk.form)
        body = self._terms.body(request, how, talk)
        if self._budget is None:
            return await self._exchange(request, lane, tries, until, talk, how, body, None)
        most = _most(self._budget, request, lane, talk, len(body) - request.image_bytes)
        entering = self._budget.enter(most, request.model, again=talk.answer is not None)
        hold = await (entering if until is None else _in_time(entering, until))
        try:
            return await self._exchange(request, lane, tries, until, talk, how, body, hold)
        finally:
            hold.settle()

    async def _exchange(
        self,
        request: Request,
        lane: SendChannel,
        tries: list[Attempt],
        until: float | None,
        talk: RepairState,
        how: RequestDialect,
        body: bytes,
        hold: Reservation | None,
    ) -> Completion:
        """One passage through the gate and one HTTP exchange; appends to `tries`.

        `until` is when the row's time is up, None before its first exchange; `hold` is what was set
        aside for it.
        """
        gate, estimate, patience, flying, forms, bill = lane
        size = len(body) - request.image_bytes
        asked = time.monotonic()
        amounts = estimate.tokens(size, talk.max_tokens or request.max_tokens)
        if until is None:
            ticket = await gate.enter(*amounts)
            left = self._row_timeout
        else:
            ticket = await _in_time(gate.enter(*amounts), until)
            left = max(_LEAST_SECONDS, until - time.monotonic())
        started, clock = time.time(), time.monotonic()
        waited = clock - asked
        if tries:
            waited = started - (tries[-1].started + tries[-1].latency_ms) / 1000
        flying[id(request)] = (request.custom_id, clock)
        heard, first = _UNSENT, None
        ended: Completion | RequestError
        if hold is not None:
            hold.sent()
        try:
            reply = await self._client.post(body, min(patience.seconds, left), self._idle)
            latency = time.monotonic() - clock
            said = rate_limits(reply.headers, started)
            try:
                if len(reply.body) > LARGE_BYTES:  # Others go on while it is read.
                    came, streamed, at = await asyncio.to_thread(self._read, reply, body)
                else:
                    came, streamed, at = self._read(reply, body)
                first = None if at is None else reply.seconds_to(at)
                if (usage := bill.of(came.usage, body)) is not came.usage:
                    came = msgspec.structs.replace(came, usage=usage)
                if streamed:
                    forms.reasons |= came.finish_reason is not None
                    if forms.reasons and came.finish_reason is None:
                        raise _cut(came.usage)
                if _is_long(came):  # Others go on while it is looked at.
                    ended = await asyncio.to_thread(self._terms.judged, came)
                else:
                    ended = self._terms.judged(came)
            except RequestError as error:
                ended = error
                error.usage = bill.of(error.usage, body)
                heard = _failure(error, said)
            except MemoryError:
                ended = BadResponse(NO_ROOM, status=reply.status)
                heard = _failure(ended, said)
            else:
                prompt, told = ended.usage.prompt_tokens, ended.usage.completion_tokens
                estimate.learn(size, prompt, told)
                patience.answered(latency)
                heard = ExchangeOutcome("answered", latency, _sum(prompt, told), headers=said)
            finally:
                reply.done()
        except RequestError as error:
            ended = error
            latency = time.monotonic() - clock
            heard = _failure(error, ())
        finally:
            del flying[id(request)]
            gate.leave(ticket, heard)
        if hold is not None:
            budget = self._budget
            assert budget is not None
            _settle(hold, ended, lambda: _most(budget, request, lane, talk, size))
            if budget.in_dollars:
                _stop_where_unpriced(budget, request.model, bill, ended.usage)
        cause = _cause(tries, ticket.cause)
        tries.append(result.attempt(started, latency, waited, cause, ended, first))
        if isinstance(ended, RequestError):
            if self._terms.put_otherwise(ended, request, how, forms, talk):
                raise AskAgain(str(ended), outcome=ended.outcome, status=ended.status)
            raise self._final(ended)
        forms.answered(how, talk)
        if self._terms.goes_on(ended, request, talk):
            raise AskAgain(ended.unfit or "truncated", outcome=ended.outcome, status=200)
        return ended

    def _read(self, reply: Reply, asked: bytes) -> tuple[Completion, bool, int | None]:
        """What a reply says, whether it came as a stream, and where the first token ends in that."""
        answer, at = reply.body, None
        if streamed := sse.is_stream(reply.headers, answer):
            answer, at = sse.whole(answer)
            answer = self._client.without_keys(reply.status, answer)
        came = wire.read(reply.status, reply.headers, answer, keep_raw=self._keep_raw, asked=asked)
        return came, streamed, at

    def _final(self, error: RequestError) -> RequestError:
        """The error, or what it amounts to: a wait longer than any row may take is no pace."""
        if isinstance(error, RateLimited) and (error.retry_after or 0.0) > self._row_timeout:
            asked = (error.retry_after or 0.0) / 3600
            return OutOfQuota(
                f"asked to wait {asked:.1f} h, longer than --row-timeout: {error}",
                status=error.status,
                request_id=error.request_id,
                error_type=error.error_type,
            )
        return error


def _is_long(answer: Completion) -> bool:
    return len(answer.content or "") + len(answer.logprobs or "") > _LONG_CHARS


async def _in_time(entering: Awaitable[T], until: float) -> T:
    """What is waited for, while the row's time lasts."""
    try:
        async with asyncio.timeout(until - time.monotonic()):
            return await entering
    except TimeoutError:
        raise _NoTime from None


def _most(
    budget: Budget, request: Request, lane: SendChannel, talk: RepairState, size: int
) -> Amount:
    """What a request of `size` bytes of text may cost and use at most."""
    price = lane.bill.price
    bound = talk.max_tokens or request.max_tokens or (price.max_output if price else None)
    if price is None and budget.in_dollars:
        budget.stop(JobError(no_price(request.model, None)))
        raise Closed
    if bound is None:
        budget.stop(
            JobError(
                f"How long the answer to {request.custom_id} by {request.model} may be is not known, so "
                "no budget can be kept; set --param max_tokens=N."
            )
        )
        raise Closed
    prompt = lane.estimate.most(size)
    dollars = lane.bill.most(prompt, bound, request.body)
    if dollars is None and budget.in_dollars:
        budget.stop(JobError(no_price(request.model, tier_asked(request.body))))
        raise Closed
    return Amount(dollars or Decimal(0), prompt + bound)


def _stop_where_unpriced(budget: Budget, model: str, bill: Bill, usage: Usage) -> None:
    """Ends the run where an answer came from a service tier whose price is unknown.

    A tier may cost several times what was set aside, and nothing tells how much.
    """
    tier, price = usage.service_tier, bill.price
    if tier is None or usage.cost_usd is not None or price is None:
        return
    if price.at(tier) is None:
        budget.stop(JobError(no_price(model, tier)))


def _settle(
    hold: Reservation, ended: Completion | RequestError, most: Callable[[], Amount]
) -> None:
    """Tells what became of a request; one that may have been worked on counts whole."""
    usage = ended.usage
    cost = None if usage.cost_usd is None else Decimal(str(usage.cost_usd))
    used = _sum(usage.prompt_tokens, usage.completion_tokens)
    used = usage.total_tokens if used is None else used
    if isinstance(ended, Completion) or cost is not None or used is not None:
        hold.used(cost, None if used is None else int(used), most)
    elif not _may_be_billed(ended):
        hold.refused()


def _may_be_billed(error: RequestError) -> bool:
    """Whether a model may have answered behind a failure that does not tell what it used."""
    if isinstance(error, NoAnswer):
        return error.sent
    if error.in_answer and isinstance(error, ServerError):
        return True
    return isinstance(error, BadResponse) or error.status in _GIVEN_UP


_UNSENT = ExchangeOutcome("unsent")
# What proxies say when they waited for the model no longer, or lost it.
_GIVEN_UP = frozenset({408, 499, 502, 504, 520, 524})


def _cut(used: Usage) -> NoAnswer:
    error = NoAnswer("the stream ended without the reason why, which others of this model told")
    error.usage = used
    return error


class _NoTime(Exception):
    """The row's time was up while it stood in line."""


def _failure(error: RequestError, said: Sequence[RateLimitHeaders]) -> ExchangeOutcome:
    """What a failed exchange tells the gate."""
    match error:
        case RateLimited():
            return ExchangeOutcome(
                "refused", retry_after=error.retry_after, about=error.about, headers=said
            )
        case NoAnswer() if error.outcome is Outcome.TIMEOUT:
            return ExchangeOutcome(
                "overloaded"
            )  # Perhaps worked on, perhaps billed: its tokens stay booked.
        case ServerError() if error.status in (503, 529):
            return ExchangeOutcome(
                "overloaded", used=0.0, retry_after=error.retry_after, headers=said
            )
        case ServerError() | NoAnswer() | BadResponse():
            return ExchangeOutcome("failed", headers=said)
        case _:
            return ExchangeOutcome("rejected", headers=said)


def _sum(prompt: int | None, completion: int | None) -> float | None:
    return None if prompt is None or completion is None else float(prompt + completion)


def _cause(tries: list[Attempt], cause: str) -> str:
    """What an attempt waited for: after a failure the backoff, after a 429 the limit."""
    if not tries:
        return cause
    return "429" if tries[-1].status is Outcome.RATE_LIMITED else "retry"
