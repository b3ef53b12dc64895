"""The address that requests go to: its connections, its sender, and whether it is the right one.

Touches: the network, the clock.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Protocol, Self

from batcher.errors import BadResponse, JobError, NoAnswer
from batcher.money.budget import Budget
from batcher.records import Outcome, Request, Result
from batcher.runtime.config import EngineConfig
from batcher.send.attempt import SendChannel, SendConfig
from batcher.send.dialect import NO_REPAIR, AnswerPolicy, RepairState
from batcher.send.http import Client
from batcher.send.sender import FailedAttempt, Sender

__all__ = ["Gateway", "HttpGateway", "OpenGateway", "RequestSender"]

_VERSION_SECONDS = 10.0


class RequestSender(Protocol):
    """Sends requests; as of `Sender`."""

    async def send(
        self,
        request: Request,
        channel: SendChannel,
        previous: FailedAttempt | None = None,
        repair: RepairState = NO_REPAIR,
    ) -> Result | FailedAttempt:
        """Makes one attempt."""

    async def retry(self, failed: FailedAttempt, channel: SendChannel) -> Result:
        """Makes attempts until one is the last."""


class Gateway(Protocol):
    """What an engine needs of the address that it sends to.

    Attributes:
        sender: Sends requests.
        address_known: Whether `wrong_address` has nothing more to find out.
    """

    sender: RequestSender
    address_known: bool

    async def __aenter__(self) -> Self:
        """Opens it."""

    async def __aexit__(self, *_: object) -> None:
        """Closes its connections."""

    async def warm(self, rows: int) -> None:
        """Opens connections ahead of so many rows."""

    def unreached_seconds(self) -> float:
        """For how long requests have found nothing at the address; 0.0 once anything answered."""

    async def wrong_address(self, ended: Result | FailedAttempt) -> JobError | None:
        """What is wrong with the address, where a request that ended so may show it."""


_Sleep = Callable[[float], Awaitable[None]]
_Room = Callable[[], Awaitable[None]]
OpenGateway = Callable[[EngineConfig, AnswerPolicy, Budget | None, _Sleep, _Room], Gateway]


class HttpGateway:
    """An address behind which chat completions are answered over HTTP.

    Args:
        config: The job and its endpoint.
        policy: What an answer must be.
        budget: What may be spent; None for no bound.
        sleep: Waits so many seconds; raises `Closed` when the run stops.
        has_memory: Awaited before a large answer is received.
    """

    def __init__(
        self,
        config: EngineConfig,
        policy: AnswerPolicy,
        budget: Budget | None,
        sleep: _Sleep,
        has_memory: _Room,
    ) -> None:
        job = self._job = config.job
        self._endpoint = config.endpoint
        self._client = Client(config.endpoint, clear=has_memory)
        self.address_known = bool(config.proven)
        idle_timeout = job.idle_timeout if job.stream else None
        sending = SendConfig(job.row_timeout, job.max_retries, job.keep_raw, idle_timeout)
        self.sender: RequestSender = Sender(self._client, sending, sleep, policy, budget)

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.__aexit__(None, None, None)

    async def warm(self, rows: int) -> None:
        """Opens connections while the first answers are awaited, where the job says how many are needed.

        To open one takes longer than to use it, and thousands would be opened when all rows wait.
        """
        count = 0
        for model in self._job.models:
            limits = self._job.limits(model)
            if limits.concurrency is not None:
                at_once = limits.concurrency if limits.rpm is None else int(limits.rpm / 60) + 1
                count += min(limits.concurrency, at_once, rows) - 1
        limit = self._job.total_concurrency
        await self._client.warm(count if limit is None else min(count, limit))

    def unreached_seconds(self) -> float:
        """For how long requests have found nothing at the address; 0.0 once anything answered."""
        since = self._client.unreached_since
        return 0.0 if since is None or self._client.reached else time.monotonic() - since

    async def wrong_address(self, ended: Result | FailedAttempt) -> JobError | None:
        """Tries the address once with `/v1` behind it, where that may be what the first answer lacks.

        It only says so: the address is part of a request's key. The body is one that no server answers with a
        completion, so that nothing is paid.
        """
        if isinstance(ended, FailedAttempt):
            wrong, status = isinstance(ended.error, BadResponse), ended.error.status
        else:
            wrong, status = ended.status is Outcome.NOT_FOUND, ended.http_status
            self.address_known = ended.status.answered
        if not wrong:
            return None
        self.address_known = True
        versioned = self._endpoint.at_version()
        if versioned is None:
            return None
        with contextlib.suppress(NoAnswer, BadResponse):
            async with Client(versioned) as client:
                reply = await client.post(b"{}", _VERSION_SECONDS)
            is_page = reply.status < 300 and not reply.body.lstrip().startswith(b"{")
            if not is_page and not 300 <= reply.status < 400 and reply.status not in (404, 405):
                what = f"answers {status}" if status != 200 else "answers with something else"
                return JobError(
                    f"{self._endpoint.url} {what}, and {versioned.url} answers {reply.status}: "
                    f"write --base-url {versioned.base}."
                )
        return None
