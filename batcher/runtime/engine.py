"""One run: readers, workers and one writer joined by bounded queues. Touches: nothing itself.

Each model has a lane: a queue, a gate and as many workers as may be in flight. One feed reads the
input for all lanes; a lane that falls behind while another is hungry gets a feed of its own, so a
slow model never holds up the others and nothing piles up in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, pairwise
from typing import NamedTuple, TypeVar

from batcher.errors import BadResponse, JobError, NoAnswer, RunStopped
from batcher.job.endpoint import Endpoint
from batcher.job.job import Job
from batcher.limits.gate import Gate, KeyGate
from batcher.limits.port import Closed, RateLimiter
from batcher.money.budget import Budget
from batcher.money.prices import Bill, Prices
from batcher.plan.dedupe import Deduplicator
from batcher.plan.requests import PendingRow, Requests
from batcher.read.inputs import Inputs
from batcher.records import Outcome, Prompt, Request, Result
from batcher.runtime.channel import (
    PENDING,
    MemoryBudget,
    ModelChannel,
    Prefetcher,
    RowQueue,
    lost_result,
    may_answer,
    silent_result,
    why_dead,
)
from batcher.runtime.routes import Split
from batcher.runtime.sink import Sink
from batcher.send import result
from batcher.send.attempt import SendConfig
from batcher.send.dialect import NO_REPAIR, AnswerPolicy, RepairState, RequestDialect
from batcher.send.estimate import TimeoutEstimator
from batcher.send.http import Client
from batcher.send.retry import FATAL
from batcher.send.sender import FailedAttempt, Sender

__all__ = ["Engine", "EngineConfig", "ModelTraffic", "in_thread"]

_T = TypeVar("_T")

_CANARY_SECONDS = 10.0
_DECIDE_SECONDS = 10.0
_LOOK_SECONDS = 1.0
_POLL_SECONDS = 0.02
_NOWHERE_SECONDS = 4.0  # Tries without a connection, before the address is taken to be wrong.
_VERSION_SECONDS = 10.0


@dataclass(frozen=True)
class EngineConfig:
    """What an engine needs to know before it sends anything.

    Attributes:
        job: What was asked.
        endpoint: Where requests go.
        rows: How many rows there are at most.
        prices: Known prices, by model.
        dialects: How models took requests in earlier runs.
        proven: Models that answered in an earlier run of this output.
        earlier_result: Reads a result of an earlier run by (segment, offset, length).
    """

    job: Job
    endpoint: Endpoint
    rows: int
    prices: Prices = field(default_factory=Prices)
    dialects: Mapping[str, RequestDialect] = field(default_factory=dict)
    proven: Collection[str] = ()
    earlier_result: Callable[[int, int, int], Result | None] = lambda *_at: None


class ModelTraffic(NamedTuple):
    """One model's figures that no single row has; as of `Summary.add_traffic`."""

    model: str
    limit_used: float | None
    waited: Mapping[str, float]
    bill: Bill
    given_up: str


class Engine:
    """Sends what a plan says is still to send.

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
        self._config = config
        job = self._job = config.job
        self._plan = plan
        self._sink = sink
        self._twins = dedupe
        self._endpoint = config.endpoint
        self._client = Client(config.endpoint, clear=sink.room)
        self._alone = limiter_of is None
        self._tried_version = False
        self._key_gate = KeyGate(job.total)
        self._gate_of = limiter_of or (lambda model: Gate(job.limits(model), self._key_gate))
        self._lanes: dict[str, ModelChannel] = {}
        self._split = Split(self._lanes) if job.route == "split" else None
        self._shared = RowQueue(MemoryBudget())
        self._stop = asyncio.Event()
        self._settled = asyncio.Event()
        self.stopped: Exception | None = None
        self._feeds = 0
        self._read_all = False  # By the feed that reads for all lanes.
        self._terms = AnswerPolicy(
            plan.expected, job.reask, job.grow_max_tokens, streams=job.stream
        )
        idle_timeout = job.idle_timeout if job.stream else None
        sending = SendConfig(job.row_timeout, job.max_retries, job.keep_raw, idle_timeout)
        self._sender = Sender(self._client, sending, self._sleep, self._terms, budget)
        self._budget = budget
        if budget is not None:
            budget.on_stop(self.stop)

    def stop(self, why: Exception | None = None) -> None:
        """Sends nothing new; what is in flight is waited for and written."""
        if self.stopped is None:
            self.stopped = why
        self._stop.set()
        if self._budget is not None:
            self._budget.close()
        for lane in self._lanes.values():
            lane.gate.close()
            lane.queue.clear()
            lane.queue.close()
            if lane.queue.feed is not None:
                lane.queue.feed.room.set()
        self._settled.set()

    async def run(self) -> None:
        """Until every request has a result, or the run is stopped.

        Raises:
            OutputError: The journal cannot be written.
            RunStopped: A breaker opened; see `stopped`.
        """
        try:
            async with self._client, self._looking(), asyncio.TaskGroup() as group:
                self._group = group
                for place, model in enumerate(self._job.models):
                    self._lane(model, place)
                lanes = list(self._lanes.values())
                if self._job.route == "fallback":
                    for lane, after in pairwise(lanes):
                        lane.next = after
                self._feed(list(dict.fromkeys(lane.queue for lane in lanes)), 0, None)
        except BaseExceptionGroup as group_error:
            raise _first(group_error) from None
        for prompt, failed in [] if self._split is None else self._split.left():
            paid = result.stopped(failed.request, failed.error, failed.attempts, failed.repair)
            if paid is not None:
                await self._sink.put(paid, prompt)
            else:
                self._sink.put_pending(failed.request.model, failed.attempts)
        lanes = list(self._lanes.values())
        if self.stopped is None and lanes and all(lane.hopeless for lane in lanes):
            self.stopped = JobError(why_dead(lanes, self._endpoint))
        if self.stopped is None and (dropped := [lane for lane in lanes if lane.dropped]):
            self.stopped = RunStopped(why_dead(dropped, self._endpoint))
        if isinstance(self.stopped, JobError) and any(lane.alive for lane in lanes):
            self.stopped = RunStopped(str(self.stopped))  # An answer came in while it drained.

    async def copy(self, inputs: Inputs, sink: Sink) -> None:
        """Gives the requests that waited for an equal one its answer, once `run` has ended.

        Args:
            inputs: The rows.
            sink: Takes the answers; writes to another journal than the one they are read from.
        """
        assert self._twins is not None
        stop = asyncio.Event() if self._stop.is_set() else self._stop
        async with aclosing(in_thread(self._twins.copies(inputs), stop)) as batches:
            async for batch in batches:
                for prompt, results in batch:
                    for left, result in enumerate(reversed(results)):
                        await sink.put(result, prompt, last=not left)
                await sink.room()

    # Lanes and workers

    def _lane(self, model: str, place: int) -> ModelChannel:
        lane = self._lanes.get(model)
        if lane is None:
            gate = self._gate_of(model)
            patience, room = (
                TimeoutEstimator(self._job.patience),
                MemoryBudget(max(1, len(self._job.models))),
            )
            queue = RowQueue(room) if self._split is None else self._shared
            price = self._config.prices.of(model)
            before = self._config.dialects.get(model)
            lane = ModelChannel(model, place, gate, queue, patience, room, price, before)
            lane.proven = model in self._config.proven
            self._lanes[model] = lane
            self._spawn(lane)
            asyncio.get_running_loop().call_later(_CANARY_SECONDS, self._wake, lane)
            if self._stop.is_set():
                gate.close()
                queue.close()
        return lane

    def _wake(self, lane: ModelChannel) -> None:
        """The model is known to answer, or it takes its time: the other workers start."""
        if not lane.awake and not self._stop.is_set():
            lane.awake = True
            self._spawn(lane)

    def _spawn(self, lane: ModelChannel) -> None:
        want = lane.gate.places if lane.awake else 1
        while lane.workers < want and not (lane.queue.closed and not lane.queue):
            lane.workers += 1
            self._group.create_task(self._work(lane))

    async def _work(self, lane: ModelChannel) -> None:
        try:
            while lane.workers <= max(1, lane.gate.places):
                while lane.next is not None and lane.next.queue.full and not self._stop.is_set():  # noqa: ASYNC110 (rare)
                    await asyncio.sleep(_POLL_SECONDS)
                while lane.in_doubt and not self._stop.is_set():  # noqa: ASYNC110 (once, for seconds)
                    await asyncio.sleep(_POLL_SECONDS)
                prompt = await self._take(lane)
                if prompt is None:
                    break
                try:
                    if not await self._served(lane, prompt):
                        break
                finally:
                    lane.leave(prompt)
                    del prompt  # Not kept while this worker waits for its next row.
        finally:
            lane.workers -= 1
            self._settled.set()
            self._upstream_done(lane)

    async def _served(self, lane: ModelChannel, prompt: Prompt) -> bool:
        """Sends a row, or buries it; whether the worker goes on."""
        if lane.dead is None:
            try:
                await self._send(lane, prompt)
            except Closed:
                if lane.dead is None:
                    return False
            else:
                return True
            await self._bury(lane, prompt)
            return True
        return await self._bury(lane, prompt)

    async def _take(self, lane: ModelChannel) -> Prompt | None:
        """The lane's next row; None when there will be none."""
        if self._split is None:
            return await lane.queue.take()
        async with lane.turn:
            ended = self._stop.is_set
            while lane.dead is None and not (ended() or (lane.queue.closed and not lane.queue)):
                if (prompt := self._split.pick(lane)) is not None:
                    return prompt
                await asyncio.sleep(_POLL_SECONDS)
        return None

    async def _send(self, lane: ModelChannel, prompt: Prompt) -> None:
        request = self._plan.request(prompt, lane.model)
        before = None if self._split is None else self._split.before(prompt)
        talk = NO_REPAIR if before is not None else self._talk_of(request)
        ended = await self._sender.send(request, lane.way, before, talk)
        if not self._tried_version:
            await self._try_version(ended)
        if isinstance(ended, Result):
            await self._done(lane, prompt, ended)
            return
        lane.last = str(ended.error)
        if ended.error.lasting and not lane.alive:
            self._close_lane(lane, lost_result(lane, lane.last))
            raise Closed
        if self._split is not None:
            self._split.failed(prompt, ended)
            self._give_back(prompt)
            return
        # The worker goes on; only when very many wait for a retry does it wait with them.
        task = self._group.create_task(self._again(lane, prompt, ended))
        lane.retrying.add(task)
        task.add_done_callback(partial(self._retried, lane))
        if len(lane.retrying) > 2 * lane.gate.places:
            await asyncio.wait(lane.retrying, return_when=asyncio.FIRST_COMPLETED)

    async def _try_version(self, ended: Result | FailedAttempt) -> None:
        """Asks once with `/v1` behind the address, where that may be what the first answer lacks.

        Only to say so: the address is part of what a request is known by. The body is one that no
        server answers with a completion, so that nothing is paid.
        """
        if isinstance(ended, FailedAttempt):
            wrong, status = isinstance(ended.error, BadResponse), ended.error.status
        else:
            wrong, status = ended.status is Outcome.NOT_FOUND, ended.http_status
        if not wrong:
            # What answers is the right address.
            self._tried_version = not isinstance(ended, FailedAttempt) and ended.status.answered
            return
        self._tried_version = True
        versioned = self._endpoint.at_version()
        if versioned is None or any(lane.alive or lane.proven for lane in self._lanes.values()):
            return
        with contextlib.suppress(NoAnswer, BadResponse):
            async with Client(versioned) as client:
                reply = await client.post(b"{}", _VERSION_SECONDS)
            is_page = reply.status < 300 and not reply.body.lstrip().startswith(b"{")
            if not is_page and not 300 <= reply.status < 400 and reply.status not in (404, 405):
                what = f"answers {status}" if status != 200 else "answers with something else"
                self.stop(
                    JobError(
                        f"{self._endpoint.url} {what}, and {versioned.url} answers {reply.status}: "
                        f"write --base-url {versioned.base}."
                    )
                )

    def _talk_of(self, request: Request) -> RepairState:
        """How to go on with a request that was answered before a run was stopped."""
        if not self._plan.stopped:
            return NO_REPAIR
        at = self._plan.stopped.pop((request.row, request.model, request.sample), None)
        found = None if at is None else self._config.earlier_result(*at)
        same = found is not None and found.key == request.key
        resumed = self._terms.resume(found, request) if found is not None and same else None
        return resumed or NO_REPAIR

    async def _again(self, lane: ModelChannel, prompt: Prompt, failed: FailedAttempt) -> None:
        try:
            await self._done(lane, prompt, await self._sender.retry(failed, lane.way))
        except Closed:  # Stopped while it waited: the request stays pending.
            self._sink.put_pending(lane.model, failed.attempts)
            if lane.dead is not None:
                await self._bury(lane, prompt)

    def _retried(self, lane: ModelChannel, task: asyncio.Task[None]) -> None:
        lane.retrying.discard(task)
        self._settled.set()
        self._upstream_done(lane)

    async def _sleep(self, seconds: float) -> None:
        """Waits for a retry; a stop ends the wait at once."""
        try:
            await asyncio.wait_for(self._stop.wait(), seconds)
        except TimeoutError:
            return
        raise Closed

    async def _done(self, lane: ModelChannel, prompt: Prompt, result: Result) -> None:
        again = self._split is not None and self._split.passes_on(lane, result)
        after = lane.next if result.status is not Outcome.OK else None
        while after is not None and not self._is_pending(after, prompt):
            after = after.next
        await self._sink.put(result, prompt, last=not again and after is None)
        self._judge(lane, result)
        if again:
            self._give_back(prompt)
        if after is not None:
            after.queue.put(prompt)
            self._spawn(after)
        if self._sink.full:
            await self._sink.room()

    def _is_pending(self, lane: ModelChannel, prompt: Prompt) -> bool:
        slot = lane.place * self._plan.samples + prompt.sample
        return slot in self._plan.pending(prompt.row)

    def _give_back(self, prompt: Prompt) -> None:
        """Puts a row back for whichever model works; its workers may have ended already."""
        self._shared.put(prompt)
        for other in self._lanes.values():
            if other.dead is None:
                self._spawn(other)

    def _judge(self, lane: ModelChannel, result: Result) -> None:
        """Wakes a lane that answers; closes one that only ever fails in a way that stays."""
        if lane.judge(result):
            self._close_lane(lane, result)
        elif result.status not in FATAL:
            if result.status.answered or result.http_status is not None:
                self._wake(lane)
            if lane.awake:
                self._spawn(lane)
            if lane.responds:
                self._settled.set()

    @asynccontextmanager
    async def _looking(self) -> AsyncGenerator[None, None]:
        """Closes lanes of which nothing is heard any more, while the body runs."""

        async def look() -> None:
            while True:
                await asyncio.sleep(_LOOK_SECONDS)
                if self._is_nowhere():
                    for lane in self._lanes.values():
                        said = f"{self._endpoint.base} cannot be reached: {lane.last}"
                        self._close_lane(lane, lost_result(lane, said))
                        lane.gate.close()
                for lane in list(self._lanes.values()):
                    most = lane.gate.silent(self._job.row_timeout, alive=lane.alive)
                    if lane.dead is None and most and not may_answer(lane):
                        self._close_lane(lane, silent_result(lane, most))
                        lane.gate.close()

        tasks = [asyncio.create_task(work) for work in (look(), self._warm())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()

    def _is_nowhere(self) -> bool:
        """Whether nothing was ever found at the address, in this run and in earlier ones.

        A worker of a cluster does not know that of the others.
        """
        since = self._client.unreached_since
        if since is None or self._client.reached or not self._alone:
            return False
        known = any(lane.alive or lane.proven for lane in self._lanes.values())
        return not known and time.monotonic() - since >= _NOWHERE_SECONDS

    async def _warm(self) -> None:
        """While the first answers are waited for, connections are opened for who told how many.

        To open them takes longer than to use them, and thousands would be opened when all wait.
        """
        wanted = 0
        for model in self._job.models:
            told = self._job.limits(model)
            if told.concurrency is not None:
                soon = told.concurrency if told.rpm is None else int(told.rpm / 60) + 1
                wanted += min(told.concurrency, soon, self._config.rows) - 1
        most = self._job.total_concurrency
        await self._client.warm(wanted if most is None else min(wanted, most))

    def _close_lane(self, lane: ModelChannel, result: Result) -> None:
        if lane.dead is None:  # Rows buried later quote it; it must not come to quote them.
            lane.dead, lane.dead_since = result, asyncio.get_running_loop().time()
            lane.dropped = (
                result.status is Outcome.QUOTA and lane.next is None and self._split is None
            )
        self._settled.set()
        known = self._job.models or self._read_all  # Later rows may name a model that works.
        if known and all(other.dead for other in self._lanes.values()):
            self.stop(JobError(why_dead(self._lanes.values(), self._endpoint)))

    async def _bury(self, lane: ModelChannel, prompt: Prompt) -> bool:
        """What becomes of a row whose model is closed; False when the worker should end.

        What may pass leaves rows pending. Else they get the model's failure without being sent,
        once another model is known to work: if none does, the run stops instead. That is waited
        for a while only, as the others may need this lane's queue to be emptied.
        """
        dead = lane.dead
        assert dead is not None
        if self._split is not None:
            self._give_back(prompt)
            return False
        if dead.status in PENDING and lane.next is None:
            lane.dropped = True
            return True
        if lane.next is None:  # In a fallback the next one gets its rows from here alone.
            await self._decided(lane)
        if self._stop.is_set():
            return False
        request = self._plan.request(prompt, lane.model)
        await self._done(
            lane,
            prompt,
            Result(
                row=request.row,
                model=request.model,
                sample=request.sample,
                key=request.key,
                status=dead.status,
                custom_id=request.custom_id,
                http_status=dead.http_status,
                error_type=dead.error_type,
                error=f"not sent, as others of this model failed: {dead.error}",
            ),
        )
        return True

    async def _decided(self, lane: ModelChannel) -> None:
        """Waits until it shows whether any model but this one works, ten seconds at most."""
        others = [other for other in self._lanes.values() if other is not lane]
        now = asyncio.get_running_loop().time
        while not self._stop.is_set() and not any(other.responds for other in others):
            left = lane.dead_since + _DECIDE_SECONDS - now()
            if left <= 0 or (self._read_all and not any(other.at_work for other in others)):
                return
            self._settled.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._settled.wait(), left)

    def _upstream_done(self, lane: ModelChannel) -> None:
        """A fallback's next lane is closed when nothing can come from this one any more."""
        after = lane.next
        if (
            after is not None
            and lane.queue.closed
            and not lane.queue
            and not lane.workers
            and not lane.retrying
            and self._feeds == 0
            and not after.queue.closed
        ):
            after.queue.close()
            self._upstream_done(after)

    # Feeds

    def _feed(self, queues: list[RowQueue], start: int, place: int | None) -> None:
        feed = Prefetcher(queues, main=self._feeds == 0)
        for queue in queues:
            queue.feed = feed
        self._feeds += 1
        self._group.create_task(self._read(feed, start, place))

    async def _read(self, feed: Prefetcher, start: int, place: int | None) -> None:
        batches = self._batches(start, place)
        try:
            async with aclosing(in_thread(batches, self._stop)) as ahead:
                async for batch in ahead:
                    for todo in batch:
                        if self._stop.is_set():
                            return
                        await self._place(feed, todo)
        finally:
            self._feeds -= 1
            self._read_all |= feed.main
            self._close_fed(feed)
            self._settled.set()

    def _batches(self, start: int, place: int | None) -> Iterator[list[PendingRow]]:
        for batch in self._plan.batches(start, place):
            if self._twins is not None:
                for todo in batch:
                    self._twins.look(todo.prompt)
            yield batch

    def _close_fed(self, feed: Prefetcher) -> None:
        for queue in feed.queues:
            if queue.feed is feed and self._job.route != "fallback":
                queue.close()
        if self._feeds == 0 and self._job.route == "fallback" and self._lanes:
            first = next(iter(self._lanes.values()))
            first.queue.close()
            self._upstream_done(first)

    async def _place(self, feed: Prefetcher, todo: PendingRow) -> None:
        """Hands one row to its lanes, waiting where there is no room."""
        prompt = todo.prompt
        plan, slots = self._plan, todo.slots
        if self._job.route != "each":  # The first model of each sample; the others come later.
            first = {slot % plan.samples: slot for slot in reversed(slots)}
            slots = tuple(sorted(first.values()))
        if prompt.error is not None:
            for slot in slots:
                model = plan.slots[slot]
                if self._fed_by(feed, model):
                    asked = plan.sampled(prompt, slot)
                    await self._sink.put(_unreadable(asked, model), asked)
            slots = ()
        if self._sink.full:
            await self._sink.room()
        for place, of in groupby(slots, lambda slot: slot // plan.samples):
            # All samples for a model at once: a feed of its own would read them all again.
            samples = [(plan.sampled(prompt, slot), slot) for slot in of]
            model = plan.slots[place * plan.samples] or prompt.model or ""
            queue = self._lane(model, place).queue
            if queue.feed is None:
                queue.feed = feed
                feed.queues.append(queue)
            while queue.feed is feed and queue.full and not self._stop.is_set():
                if any(not other for other in feed.queues if other is not queue):
                    feed.queues.remove(queue)
                    self._feed([queue], prompt.row, place if self._job.models else None)
                    break
                feed.room.clear()
                await feed.room.wait()
            if queue.feed is feed:
                for asked, slot in samples:
                    if self._twins is None or self._twins.fresh(asked, slot):
                        queue.put(asked)

    def _fed_by(self, feed: Prefetcher, model: str) -> bool:
        """Whether this feed speaks for the model: not one that it left for a feed of its own."""
        lane = self._lanes.get(model)
        return feed.main if lane is None else lane.queue.feed in (None, feed)

    # Watching

    @property
    def closed(self) -> str:
        """Which models were given up on the way, and why; nothing if none was."""
        dead = (lane for lane in self._lanes.values() if lane.dead is not None)
        return why_dead(dead, self._endpoint)

    @property
    def equals(self) -> Mapping[str, int]:
        """How many requests wait for the answer of an equal one, by model ("" for any)."""
        return {} if self._twins is None else self._twins.waiting

    @property
    def dialects(self) -> dict[str, RequestDialect]:
        """How the models that answered take requests."""
        found = ((lane.model, lane.way.dialect) for lane in self._lanes.values())
        return {model: dialect.current for model, dialect in found if dialect.proven}

    @property
    def traffic(self) -> list[ModelTraffic]:
        """Each model's figures that no single row has."""
        return [
            ModelTraffic(
                lane.model,
                lane.gate.share(),
                lane.gate.waited,
                lane.way.bill,
                lane.way.dialect.given_up,
            )
            for lane in self._lanes.values()
        ]

    @property
    def total_limit_used(self) -> float | None:
        """Part of the limit of all models together that was used; None without one."""
        return self._key_gate.share()

    @property
    def lanes(self) -> list[ModelChannel]:
        """The lanes, for whoever watches."""
        return list(self._lanes.values())


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _unreadable(prompt: Prompt, model: str) -> Result:
    return Result(
        row=prompt.row,
        model=model,
        sample=prompt.sample,
        key="0" * 32,
        status=Outcome.UNREADABLE,
        custom_id=prompt.custom_id,
        error=prompt.error,
    )


async def in_thread(batches: Iterator[_T], stop: asyncio.Event) -> AsyncGenerator[_T, None]:
    """The iterator's batches, made by a thread of their own, one ahead."""
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1, thread_name_prefix="reader") as thread:
        ahead = loop.run_in_executor(thread, partial(next, batches, None))
        try:
            while not stop.is_set() and (batch := await ahead) is not None:
                ahead = loop.run_in_executor(thread, partial(next, batches, None))
                yield batch
        finally:
            await asyncio.wait([ahead])
            ahead.exception()
