"""All attempts of one request, until its result. Touches: the clock.

The first attempt runs in the engine's worker. When it fails and may go again, the caller gets a
`FailedAttempt` and runs `retry` elsewhere, so that neither a worker nor a slot of the limiter is held
through a backoff.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec
import tenacity

from batcher.errors import RequestError
from batcher.limits.port import Closed
from batcher.money.budget import Budget
from batcher.records import Attempt, Completion, Outcome, Request, Result
from batcher.send import result, retry
from batcher.send.attempt import AttemptRunner, DeadlineExceeded, SendChannel, SendConfig
from batcher.send.dialect import NO_REPAIR, AnswerPolicy, RepairState
from batcher.send.http import Client

__all__ = ["FailedAttempt", "Sender"]


class FailedAttempt(NamedTuple):
    """A request that failed and goes again.

    Attributes:
        request: As it was sent.
        error: How it failed last.
        attempts: All attempts so far.
        deadline: Of the row (monotonic clock).
        wait: Seconds until it may go to the same model again.
        repair: How to ask next time.
    """

    request: Request
    error: RequestError
    attempts: list[Attempt]
    deadline: float
    wait: float
    repair: RepairState


class Sender:
    """Sends requests through a client.

    Args:
        client: Posts bodies.
        config: How requests are sent.
        sleep: Waits out a backoff; raises `Closed` when the run stops.
        policy: What every answer must be.
        budget: What may be spent; None for no bound.
        rng: Source of the jitter of backoffs.
    """

    def __init__(
        self,
        client: Client,
        config: SendConfig,
        sleep: Callable[[float], Awaitable[None]],
        policy: AnswerPolicy | None = None,
        budget: Budget | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._config = config
        self._sleep = sleep
        self._rng = rng or random.Random()
        self._attempt = AttemptRunner(client, config, policy or AnswerPolicy(None), budget).run

    async def send(
        self,
        request: Request,
        channel: SendChannel,
        previous: FailedAttempt | None = None,
        repair: RepairState = NO_REPAIR,
    ) -> Result | FailedAttempt:
        """Makes one attempt.

        Args:
            request: What to send.
            channel: Where to.
            previous: How the row failed before, perhaps with another model.
            repair: How to ask, when an earlier run was stopped before it asked again.

        Raises:
            Closed: The run stops, and nothing was paid for this request.
        """
        attempts: list[Attempt] = []
        deadline: float | None = None
        if previous is not None:
            deadline, attempts, repair = _taken_over(previous, request.model)
        try:
            ended, repair = await self._attempt(request, channel, attempts, deadline, repair)
        except DeadlineExceeded:
            assert previous is not None
            return result.ended(request, previous.error, attempts, repair)
        except Closed:
            if previous is None:
                raise
            return _stopped(previous._replace(request=request, attempts=attempts, repair=repair))
        if isinstance(ended, Completion):
            return result.answered(request, ended, attempts)
        if deadline is None:
            deadline = time.monotonic() + self._config.row_timeout - attempts[0].latency_ms / 1000
        wait = self._wait(ended, attempts, deadline)
        if wait is None:
            return result.ended(request, ended, attempts, repair)
        return FailedAttempt(request, ended, attempts, deadline, wait, repair)

    async def retry(self, failed: FailedAttempt, channel: SendChannel) -> Result:
        """Makes attempts until one is the last.

        Raises:
            Closed: The run stops, and nothing was paid for this request.
        """
        last = failed

        async def attempt() -> Result | FailedAttempt:
            nonlocal last
            ended = await self.send(last.request, channel, last)
            if isinstance(ended, FailedAttempt):
                last = ended
            return ended

        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_result(lambda ended: isinstance(ended, FailedAttempt)),
            wait=lambda _state: last.wait,
            sleep=self._sleep,
        )
        try:
            await self._sleep(failed.wait)
            ended: Result | FailedAttempt = await retrying(attempt)
        except Closed:
            return _stopped(last)
        assert isinstance(ended, Result)
        return ended

    def _wait(self, error: RequestError, attempts: list[Attempt], deadline: float) -> float | None:
        """Seconds until the next attempt; None when there is none."""
        refusals = sum(1 for t in attempts if t.status is Outcome.RATE_LIMITED)
        # An answer, and a form that was refused, are asked again for another reason than a failure.
        reasked = sum(1 for t in attempts if t.status.answered or t.status is Outcome.BAD_REQUEST)
        failures = len(attempts) - refusals - reasked
        wait = retry.decide(error, failures, refusals, self._config.max_retries, self._rng)
        return None if wait is None or time.monotonic() + wait > deadline else wait


def _taken_over(previous: FailedAttempt, model: str) -> tuple[float, list[Attempt], RepairState]:
    """Deadline, attempts and repair of a row that goes again, perhaps to another model."""
    before = previous.request.model
    if before == model:
        return previous.deadline, previous.attempts, previous.repair
    attempts = [
        t if t.model else msgspec.structs.replace(t, model=before) for t in previous.attempts
    ]
    return previous.deadline, attempts, previous.repair.for_other_model()


def _stopped(failed: FailedAttempt) -> Result:
    """What was paid for a request that is still to be sent.

    Raises:
        Closed: Nothing was.
    """
    kept = result.stopped(failed.request, failed.error, failed.attempts, failed.repair)
    if kept is None:
        raise Closed
    return kept
