"""Sends what is still to send: each model has a queue of rows and as many workers as may be in flight.

Touches: nothing itself. The parts: `feed` reads rows into the queues, `routes` says which model gets a row,
`gateway` sends it, `sink` takes its result, `monitor` gives models up. It imports more than other modules,
as it alone puts these together.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial

from batcher.limits.gate import Gate, KeyGate
from batcher.limits.port import Closed, RateLimiter
from batcher.money.budget import Budget
from batcher.plan.dedupe import Deduplicator
from batcher.plan.requests import Requests
from batcher.records import Prompt, Request, Result
from batcher.runtime.channel import ChannelStatus, ModelChannel, ModelTraffic, new_channel
from batcher.runtime.config import EngineConfig
from batcher.runtime.feed import Prefetcher
from batcher.runtime.gateway import HttpGateway
from batcher.runtime.health import PENDING
from batcher.runtime.monitor import HealthMonitor
from batcher.runtime.routes import route_of
from batcher.runtime.row_queue import MemoryBudget
from batcher.runtime.sink import Sink
from batcher.send import result as results
from batcher.send.dialect import NO_REPAIR, AnswerPolicy, RepairState, RequestDialect
from batcher.send.retry import FATAL
from batcher.send.sender import FailedAttempt

__all__ = ["Engine"]

_FIRST_RESPONSE_SECONDS = 10.0


class Engine:
    """Sends what a plan says is still to send.

    It owns the channels of the models, which the route and the monitor read, and change by their methods.

    Args:
        config: What it needs to know.
        plan: Which requests are to be sent.
        sink: Takes every result.
        budget: What may be spent; None for no bound.
        dedupe: Which requests wait for the answer of an equal one, and are not sent; None for none.
        limiter_of: The limits of a model, where they are shared with other processes.

    Attributes:
        stopped: Why the run ends early, once it does.
    """

    def __init__(
        self,
        config: EngineConfig,
        plan: Requests,
        sink: Sink,
        *,
        budget: Budget | None = None,
        dedupe: Deduplicator | None = None,
        limiter_of: Callable[[str], RateLimiter] | None = None,
    ) -> None:
        job = config.job
        self._config = config
        self._plan = plan
        self._sink = sink
        self._budget = budget
        self._dedupe = dedupe
        self._key_gate = KeyGate(job.total)
        self._limiter_of = limiter_of or (lambda model: Gate(job.limits(model), self._key_gate))
        self._channels: dict[str, ModelChannel] = {}
        self._stop = asyncio.Event()
        self.stopped: Exception | None = None
        self._policy = AnswerPolicy(
            plan.expected, job.reask, job.grow_max_tokens, streams=job.stream
        )
        self._route = route_of(job.route)(self._channels, plan, self._add_workers)
        self._feed = Prefetcher(plan, self._route, sink, self._open_channel, self._stop, dedupe)
        open_gateway = config.open_gateway or HttpGateway
        self._gateway = open_gateway(config, self._policy, budget, self._sleep, sink.room)
        self._sender = self._gateway.sender
        # Another process may have found something at an address that this one has not reached yet.
        unreached = self._gateway.unreached_seconds if limiter_of is None else None
        self._monitor = HealthMonitor(config, self._channels, self._route, self.stop, unreached)
        if budget is not None:
            budget.on_stop(self.stop)

    def stop(self, why: Exception | None = None) -> None:
        """Sends nothing new; requests in flight are waited for and their results put into the sink."""
        if self.stopped is None:
            self.stopped = why
        self._stop.set()
        if self._budget is not None:
            self._budget.close()
        for channel in self._channels.values():
            channel.limiter.close()
            channel.queue.stop()
        self._monitor.notify(stopped=True)

    async def run(self) -> None:
        """Returns when every request has a result, or the run is stopped.

        Raises:
            OutputError: The journal cannot be written.
        """
        try:
            async with self._gateway, self._beside(), asyncio.TaskGroup() as group:
                self._group = group
                for place, model in enumerate(self._config.job.models):
                    self._open_channel(model, place)
                queues = list(dict.fromkeys(c.queue for c in self._channels.values()))
                group.create_task(self._feed.run(queues, self._pass_ended))
        except BaseExceptionGroup as group_error:
            raise _first(group_error) from None
        for prompt, failed in self._route.unsent():
            paid = results.stopped(failed.request, failed.error, failed.attempts, failed.repair)
            if paid is not None:
                await self._sink.put(paid, prompt)
            else:
                self._sink.put_pending(failed.request.model, failed.attempts)
        self.stopped = self._monitor.verdict(self.stopped)

    @asynccontextmanager
    async def _beside(self) -> AsyncGenerator[None, None]:
        """Watches the models and opens connections ahead, while the body runs."""
        warm = self._gateway.warm(self._config.rows)
        tasks = [asyncio.create_task(work) for work in (self._monitor.watch(), warm)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()

    # Channels and workers

    def _open_channel(self, model: str, place: int) -> ModelChannel:
        """The channel of a model; a new one starts with one worker."""
        channel = self._channels.get(model)
        if channel is not None:
            return channel
        memory = MemoryBudget(max(1, len(self._config.job.models)))
        channel = self._channels[model] = new_channel(
            self._config, model, place, self._limiter_of(model), self._route.queue(memory), memory
        )
        if self._stop.is_set():
            channel.limiter.close()
            channel.queue.stop()
        self._add_workers(channel)
        loop = asyncio.get_running_loop()
        loop.call_later(_FIRST_RESPONSE_SECONDS, self._start, channel)
        return channel

    def _start(self, channel: ModelChannel) -> None:
        """The model is known to respond, or takes its time: the other workers start."""
        if not self._stop.is_set() and channel.start():
            self._add_workers(channel)

    def _add_workers(self, channel: ModelChannel) -> None:
        if channel.health.closed and self._route.shares_rows:
            return
        for _ in range(channel.wanted_workers - channel.workers):
            channel.begin_work()
            self._group.create_task(self._work(channel))

    async def _work(self, channel: ModelChannel) -> None:
        """Sends rows of one model until there are none, or more workers than slots."""
        health, limiter = channel.health, channel.limiter
        try:
            while channel.workers <= (slots := limiter.max_in_flight) or channel.workers == 1:
                if health.in_doubt:
                    await channel.doubt_settled()
                prompt = await self._route.take(channel)
                if prompt is None:
                    break
                goes_on = True
                try:
                    if not health.closed:
                        await self._send(channel, prompt)
                    else:
                        goes_on = await self._end_unsent(channel, prompt)
                except Closed:
                    goes_on = health.closed
                    if goes_on:
                        await self._end_unsent(channel, prompt)
                finally:
                    channel.release(prompt)
                    del prompt  # Not kept in memory while this worker waits for its next row.
                if not goes_on:
                    break
                if channel.workers < slots and channel.started:
                    self._add_workers(channel)
        finally:
            channel.end_work()
            self._work_ended(channel)

    def _work_ended(self, channel: ModelChannel) -> None:
        """A worker or a retry of a model has ended."""
        if not self._feed.reading:
            self._route.close_drained(channel)
        self._monitor.notify()

    def _pass_ended(self) -> None:
        self._monitor.notify(read_all=self._feed.read_all)

    # One row

    async def _send(self, channel: ModelChannel, prompt: Prompt) -> None:
        """Sends a row once. One that fails is sent again by a task of its own, or by another model."""
        request = self._plan.request(prompt, channel.model)
        before = self._route.last_failure(prompt)
        repair = NO_REPAIR
        if before is None and self._plan.stopped:
            repair = self._interrupted_repair(request)
        ended = await self._sender.send(request, channel.sending, before, repair)
        if not self._gateway.address_known:
            wrong = await self._gateway.wrong_address(ended)
            if wrong is not None and not any(c.health.works for c in self._channels.values()):
                self.stop(wrong)
        if isinstance(ended, Result):
            await self._finish(channel, prompt, ended)
            return
        channel.health.note_failure(str(ended.error))
        if ended.error.lasting and not channel.health.answered:
            self._monitor.close(channel, channel.lost(str(ended.error)))
            raise Closed
        if self._route.retry_elsewhere(prompt, ended):
            return
        # The worker goes on; only when very many rows wait for a retry does it wait with them.
        task = self._group.create_task(self._retry(channel, prompt, ended))
        channel.retrying.add(task)
        task.add_done_callback(partial(self._retried, channel))
        if len(channel.retrying) > 2 * channel.limiter.max_in_flight:
            await asyncio.wait(channel.retrying, return_when=asyncio.FIRST_COMPLETED)

    def _interrupted_repair(self, request: Request) -> RepairState:
        """How to go on with a request that was answered, but not as asked, before an earlier run stopped."""
        at = self._plan.stopped.pop((request.row, request.model, request.sample), None)
        found = None if at is None else self._config.earlier_result(*at)
        if found is None or found.key != request.key:
            return NO_REPAIR
        return self._policy.resume(found, request) or NO_REPAIR

    async def _retry(self, channel: ModelChannel, prompt: Prompt, failed: FailedAttempt) -> None:
        try:
            ended = await self._sender.retry(failed, channel.sending)
        except Closed:  # The run or the model stopped while it waited: the request stays pending.
            self._sink.put_pending(channel.model, failed.attempts)
            if channel.health.closed:
                await self._end_unsent(channel, prompt)
            return
        await self._finish(channel, prompt, ended)

    def _retried(self, channel: ModelChannel, task: asyncio.Task[None]) -> None:
        channel.retrying.discard(task)
        self._work_ended(channel)

    async def _sleep(self, seconds: float) -> None:
        """Waits for a retry; a stop ends the wait at once."""
        try:
            await asyncio.wait_for(self._stop.wait(), seconds)
        except TimeoutError:
            return
        raise Closed

    async def _finish(self, channel: ModelChannel, prompt: Prompt, result: Result) -> None:
        """Gives a result to the sink and the monitor, and the row to the next model if there is one."""
        queue = self._route.next_queue(channel, prompt, result)
        await self._sink.put(result, prompt, last=queue is None)
        self._monitor.observe(channel, result)
        if not channel.started and _is_response(result):
            self._start(channel)
        if queue is not None:
            self._route.pass_on(queue, prompt)

    async def _end_unsent(self, channel: ModelChannel, prompt: Prompt) -> bool:
        """Ends a row whose model is closed; returns whether the worker goes on.

        A failure that may pass leaves it pending. Else it gets the model's failure, once another model is known
        to work: if none does, the run stops instead.
        """
        closing = channel.health.closing
        assert closing is not None
        if self._route.shares_rows:
            self._route.pass_on(channel.queue, prompt)
            return False
        last = self._route.follower(channel) is None
        if last and closing.status in PENDING:
            channel.keep_rows()
            return True
        if last:  # Any other model of a fallback gets its rows from this one alone.
            await self._monitor.others_decided(channel)
        if self._stop.is_set():
            return False
        request = self._plan.request(prompt, channel.model)
        await self._finish(channel, prompt, _not_sent(request, closing))
        return True

    # For those who look on

    @property
    def closed(self) -> str:
        """Which models were given up, and why, in sentences; "" if none was."""
        return self._monitor.closed

    @property
    def dialects(self) -> dict[str, RequestDialect]:
        """How the models that answered take requests."""
        found = ((c.model, c.sending.dialect) for c in self._channels.values())
        return {model: dialect.current for model, dialect in found if dialect.proven}

    @property
    def traffic(self) -> list[ModelTraffic]:
        """Each model's figures that no single row has."""
        return [channel.traffic() for channel in self._channels.values()]

    @property
    def total_limit_used(self) -> float | None:
        """Part of the limit of all models together that was used; None without one."""
        return self._key_gate.share()

    def snapshot(self) -> dict[str, ChannelStatus]:
        """Each model at this moment."""
        return {model: channel.status() for model, channel in self._channels.items()}

    @property
    def in_flight(self) -> int:
        """Requests in flight."""
        return sum(channel.limiter.in_flight for channel in self._channels.values())


def _is_response(result: Result) -> bool:
    """Whether a result shows that a model takes requests, even if it does not answer them."""
    came = result.status.answered or result.http_status is not None
    return came and result.status not in FATAL


def _not_sent(request: Request, closing: Result) -> Result:
    return Result(
        row=request.row,
        model=request.model,
        sample=request.sample,
        key=request.key,
        status=closing.status,
        custom_id=request.custom_id,
        http_status=closing.http_status,
        error_type=closing.error_type,
        error=f"not sent, as others of this model failed: {closing.error}",
    )


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
