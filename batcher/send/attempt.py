"""One attempt of a request: reserve, wait for the limits, exchange, judge. Touches: the clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Coroutine, Sequence
from decimal import Decimal
from typing import Any, NamedTuple, TypeVar

import msgspec

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
from batcher.money.bill import Bill
from batcher.money.budget import Amount, Budget, Reservation
from batcher.money.reserve import max_amount, no_price
from batcher.records import Attempt, Completion, Outcome, Request, Usage
from batcher.send import result, sse, wire
from batcher.send.dialect import AnswerPolicy, ModelDialect, RepairState, RequestDialect
from batcher.send.estimate import TimeoutEstimator, TokenEstimator
from batcher.send.http import NO_ROOM, Client, Reply
from batcher.send.lenient_json import LARGE_BYTES

__all__ = ["AttemptRunner", "DeadlineExceeded", "SendChannel", "SendConfig"]

_MIN_TIMEOUT = 0.1
_LONG_CHARS = 256 << 10  # An answer of this length takes some 100 ms to validate, at worst.
# With these statuses proxies say that they stopped waiting for the model, or lost it.
_GAVE_UP = frozenset({408, 499, 502, 504, 520, 524})
_UNSENT = ExchangeOutcome("unsent")
T = TypeVar("T")


class SendConfig(NamedTuple):
    """How requests are sent.

    Attributes:
        row_timeout: Seconds for all attempts of a request, from the first on, waits included.
        max_retries: Attempts after the first; refusals (429) do not count.
        keep_raw: Whether results keep the whole response body.
        idle_timeout: Seconds without a byte, after which a stream is given up; None for no streams.
    """

    row_timeout: float
    max_retries: int = 5
    keep_raw: bool = False
    idle_timeout: float | None = None


class SendChannel(NamedTuple):
    """What all requests to one model share.

    Attributes:
        limiter: Lets its requests through.
        tokens: Estimates their tokens,
        timeout: and how long they take.
        in_flight: By the request's `id`: its row's `custom_id`, and when it was sent (monotonic clock).
        dialect: How the model takes requests.
        bill: What its answers cost.
    """

    limiter: RateLimiter
    tokens: TokenEstimator
    timeout: TimeoutEstimator
    in_flight: dict[int, tuple[str, float]]
    dialect: ModelDialect
    bill: Bill


class _Exchange(NamedTuple):
    """One attempt: the arguments of `run`, the dialect that it is sent in and its bytes."""

    request: Request
    channel: SendChannel
    attempts: list[Attempt]
    deadline: float | None
    repair: RepairState
    dialect: RequestDialect
    body: bytes


Ended = tuple[Completion | RequestError, RepairState]
"""An attempt's answer or failure, and how to ask next time."""


class DeadlineExceeded(Exception):
    """The row's time was up while it waited for the budget or a limit."""


class AttemptRunner:
    """Runs attempts over one client.

    Args:
        client: Posts bodies.
        config: How requests are sent.
        policy: What an answer must be.
        budget: What may be spent; None for no bound.
    """

    def __init__(
        self, client: Client, config: SendConfig, policy: AnswerPolicy, budget: Budget | None
    ) -> None:
        self._client = client
        self._config = config
        self._policy = policy
        self._budget = budget

    def run(
        self,
        request: Request,
        channel: SendChannel,
        attempts: list[Attempt],
        deadline: float | None,
        repair: RepairState,
    ) -> Coroutine[Any, Any, Ended]:
        """One attempt: its answer or failure, and how to ask next time.

        Args:
            request: What to send.
            channel: Where to.
            attempts: The attempts so far; this one is appended.
            deadline: Of the row (monotonic clock); None before its first exchange.
            repair: How to ask.

        Raises:
            Closed: The run stops; nothing was sent.
            DeadlineExceeded: Nothing was sent.
        """
        dialect = channel.dialect.current
        if repair.form is not None:
            dialect = dialect._replace(form=repair.form)
        body = self._policy.body(request, dialect, repair)
        exchange = _Exchange(request, channel, attempts, deadline, repair, dialect, body)
        return (
            self._exchange(exchange, None)
            if self._budget is None
            else self._paid(exchange, self._budget)
        )

    async def _paid(self, exchange: _Exchange, budget: Budget) -> Ended:
        """An exchange for which the budget has room."""
        amount = self._max_amount(budget, exchange)
        entering = budget.enter(
            amount, exchange.request.model, again=exchange.repair.answer is not None
        )
        reservation = await (
            entering if exchange.deadline is None else _until(exchange.deadline, entering)
        )
        try:
            return await self._exchange(exchange, reservation)
        finally:
            reservation.settle()

    async def _exchange(self, exchange: _Exchange, reservation: Reservation | None) -> Ended:
        """Passes the limiter once and exchanges the body once."""
        request, channel, attempts, deadline, repair, dialect, body = exchange
        limiter, in_flight = channel.limiter, channel.in_flight
        size = len(body) - request.image_bytes
        asked_at = time.monotonic()
        tokens, most = channel.tokens.tokens(size, repair.max_tokens or request.max_tokens)
        if deadline is None:
            ticket = await limiter.enter(tokens, most)
            left = self._config.row_timeout
        else:
            ticket = await _until(deadline, limiter.enter(tokens, most))
            left = max(_MIN_TIMEOUT, deadline - time.monotonic())
        started, clock = time.time(), time.monotonic()
        if attempts:
            waited = started - (attempts[-1].started + attempts[-1].latency_ms) / 1000
            cause = "429" if attempts[-1].status is Outcome.RATE_LIMITED else "retry"
        else:
            waited, cause = clock - asked_at, ticket.cause
        in_flight[id(request)] = (request.custom_id, clock)
        outcome = _UNSENT
        if reservation is not None:
            reservation.sent()
        try:
            ended, outcome, latency, first_token = await self._answer(
                exchange, size, started, left
            )
        finally:
            del in_flight[id(request)]
            limiter.leave(ticket, outcome)
        if reservation is not None:
            self._settle(reservation, ended, exchange)
        attempts.append(result.attempt(started, latency, waited, cause, ended, first_token))
        if isinstance(ended, RequestError):
            adapted = self._policy.adapt(ended, request, dialect, channel.dialect, repair)
            if adapted is not None:
                again = AskAgain(str(ended), outcome=ended.outcome, status=ended.status)
                return again, adapted
            return self._without_long_wait(ended), repair
        channel.dialect.answered(dialect, repair)
        repaired = self._policy.next_repair(ended, request, repair)
        if repaired is not None:
            why = ended.unfit or "truncated"
            return AskAgain(why, outcome=ended.outcome, status=200), repaired
        return ended, repair

    async def _answer(
        self, exchange: _Exchange, size: int, started: float, left: float
    ) -> tuple[Completion | RequestError, ExchangeOutcome, float, float | None]:
        """(the answer or failure, what it tells the limiter, latency, seconds to the first token)."""
        channel, body = exchange.channel, exchange.body
        timeout, model, bill = channel.timeout, channel.dialect, channel.bill
        clock = time.monotonic()
        try:
            reply = await self._client.post(
                body, min(timeout.seconds, left), self._config.idle_timeout
            )
        except RequestError as error:
            return error, _failure(error, ()), time.monotonic() - clock, None
        latency = time.monotonic() - clock
        rates = rate_limits(reply.headers, started)
        first_token = None
        try:
            if len(reply.body) > LARGE_BYTES:  # In a thread, so that other rows go on.
                found, streamed, at = await asyncio.to_thread(self._read, reply, body)
            else:
                found, streamed, at = self._read(reply, body)
            if at is not None:
                first_token = reply.seconds_to(at)
            if (usage := bill.add(found.usage, body)) is not found.usage:
                found = msgspec.structs.replace(found, usage=usage)
            if streamed and found.finish_reason is not None:
                model.observe_finish_reason()
            elif streamed and model.sends_finish_reason:
                raise _cut(usage)
            if len(found.content or "") + len(found.logprobs or "") > _LONG_CHARS:
                found = await asyncio.to_thread(self._policy.validate, found)
            else:
                found = self._policy.validate(found)
        except RequestError as error:
            error.usage = bill.add(error.usage, body)
            return error, _failure(error, rates), latency, first_token
        except MemoryError:
            full = BadResponse(NO_ROOM, status=reply.status)
            return full, _failure(full, rates), latency, first_token
        finally:
            reply.done()
        prompt, answer = usage.prompt_tokens, usage.completion_tokens
        bounded = self._budget is not None and not exchange.request.image_bytes
        channel.tokens.observe(size, prompt, answer, body if bounded else None)
        timeout.observe(latency)
        used = None if prompt is None or answer is None else float(prompt + answer)
        return (
            found,
            ExchangeOutcome("answered", latency, used, headers=rates),
            latency,
            first_token,
        )

    def _read(self, reply: Reply, sent: bytes) -> tuple[Completion, bool, int | None]:
        """(the answer, whether it came as a stream, where in that its first token ends)."""
        body, first_token = reply.body, None
        if streamed := sse.is_stream(reply.headers, body):
            body, first_token = sse.whole(body)
            body = self._client.redact(reply.status, body)
        keep_raw = self._config.keep_raw
        found = wire.read(reply.status, reply.headers, body, keep_raw=keep_raw, asked=sent)
        return found, streamed, first_token

    def _without_long_wait(self, error: RequestError) -> RequestError:
        """A limit whose wait is longer than any row may take is a quota."""
        if (
            isinstance(error, RateLimited)
            and (error.retry_after or 0.0) > self._config.row_timeout
        ):
            hours = (error.retry_after or 0.0) / 3600
            return OutOfQuota(
                f"asked to wait {hours:.1f} h, longer than --row-timeout: {error}",
                status=error.status,
                request_id=error.request_id,
                error_type=error.error_type,
            )
        return error

    def _max_amount(self, budget: Budget, exchange: _Exchange) -> Amount:
        """What to reserve for a request."""
        request, channel = exchange.request, exchange.channel
        try:
            return max_amount(
                request,
                channel.bill.price,
                channel.tokens.max_prompt(
                    len(exchange.body) - request.image_bytes,
                    None if request.image_bytes else request.body,
                ),
                exchange.repair.max_tokens or request.max_tokens,
                in_dollars=budget.in_dollars,
            )
        except JobError as error:
            budget.stop(error)
            raise Closed from None

    def _settle(
        self, reservation: Reservation, ended: Completion | RequestError, exchange: _Exchange
    ) -> None:
        """Reports the bill of a request; without one, what may have been worked on counts whole."""
        usage, budget = ended.usage, self._budget
        assert budget is not None
        cost = None if usage.cost_usd is None else Decimal(str(usage.cost_usd))
        used = usage.total_tokens
        if usage.prompt_tokens is not None and usage.completion_tokens is not None:
            used = usage.prompt_tokens + usage.completion_tokens
        if isinstance(ended, Completion) or cost is not None or used is not None:
            reservation.used(cost, used, lambda: self._max_amount(budget, exchange))
        elif not _may_be_billed(ended):
            reservation.refused()
        price, tier = exchange.channel.bill.price, usage.service_tier
        unpriced = tier is not None and usage.cost_usd is None
        if budget.in_dollars and unpriced and price is not None and price.at(tier) is None:
            # A tier may cost several times what was reserved, and nothing tells how much.
            budget.stop(JobError(no_price(exchange.request.model, tier)))


async def _until(deadline: float, waiting: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            return await waiting
    except TimeoutError:
        raise DeadlineExceeded from None


def _may_be_billed(error: RequestError) -> bool:
    """Whether a model may have answered behind a failure that reports no usage."""
    if isinstance(error, NoAnswer):
        return error.sent
    if error.in_answer and isinstance(error, ServerError):
        return True
    return isinstance(error, BadResponse) or error.status in _GAVE_UP


def _cut(usage: Usage) -> NoAnswer:
    error = NoAnswer("the stream ended without a finish_reason, which others of this model had")
    error.usage = usage
    return error


def _failure(error: RequestError, rates: Sequence[RateLimitHeaders]) -> ExchangeOutcome:
    """What a failed exchange tells the limiter."""
    match error:
        case RateLimited():
            return ExchangeOutcome(
                "refused", retry_after=error.retry_after, about=error.about, headers=rates
            )
        case NoAnswer() if error.outcome is Outcome.TIMEOUT:
            # The model may have worked on it, so its tokens stay booked.
            return ExchangeOutcome("overloaded")
        case ServerError() if error.status in (503, 529):
            return ExchangeOutcome(
                "overloaded", used=0.0, retry_after=error.retry_after, headers=rates
            )
        case ServerError() | NoAnswer() | BadResponse():
            return ExchangeOutcome("failed", headers=rates)
        case _:
            return ExchangeOutcome("rejected", headers=rates)
