"""Sends one shard from a worker process, through an engine with a journal of its own. Touches: files.

Rows arrive rendered, so a request has the same key wherever it is sent from. Results go into segments
that only this attempt writes, in the run folder that all machines share. An attempt that finds segments of
an earlier attempt sends what these lack. Its many imports are the parts of an engine, which it puts together.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from batcher.cluster.link import Link
from batcher.cluster.messages import ModelStatus, Reply, Report
from batcher.errors import BatcherError, JobError
from batcher.job.endpoint import Endpoint
from batcher.job.job import Job
from batcher.live.summary import Summary
from batcher.money.prices import Price, Prices
from batcher.plan.requests import Part, PendingRow, Stopped
from batcher.plan.settings import Settings
from batcher.records import Outcome, Result
from batcher.runtime.config import EngineConfig
from batcher.runtime.engine import Engine
from batcher.runtime.sink import ObservedSink, ResultSink
from batcher.write.journal import Journal
from batcher.write.lines import decode, run_of, sound_lines
from batcher.write.names import TOKEN
from batcher.write.reserve import sweep_reserves
from batcher.write.slots import Slots

__all__ = ["SEGMENTS", "Shard", "ShardEnded", "ShardJob", "owned", "work"]

SEGMENTS = 100
"""Segment numbers that each shard has to itself."""

_CHECK_SECONDS = 0.5
_LAST_WRITES_SECONDS = 3.0


@dataclass(frozen=True)
class ShardJob:
    """What all shards of a run have in common.

    Attributes:
        run: ID of the run; every line of the journal names it.
        token: As in `TOKEN`.
        in_dollars: As in `Link`.
    """

    job: Job
    settings: Settings
    endpoint: Endpoint
    folder: str
    run: str
    token: str
    in_dollars: bool | None


@dataclass(frozen=True)
class Shard:
    """Some rows, in the order of their positions.

    Attributes:
        first: Number of its first segment.
        stopped: As in `Plan`, for these rows.
        prices: The known prices of its models.
    """

    number: int
    first: int
    rows: Sequence[PendingRow]
    stopped: Stopped
    prices: Mapping[str, Price]


@dataclass(frozen=True)
class ShardEnded:
    """How a shard ended.

    Attributes:
        results: One for each request that ended, in any attempt, without its answer.
        stopped: Why requests are left.
        given_up: Which models were given up, and why, in sentences.
    """

    results: Sequence[Result]
    stopped: BatcherError | None = None
    given_up: str = ""


async def work(
    shard_job: ShardJob, shard: Shard, attempt: int, call: Callable[[Report], Awaitable[Reply]]
) -> ShardEnded:
    """Sends the requests of a shard that have no result yet.

    Args:
        shard_job: What all shards have in common.
        shard: The rows.
        attempt: Larger than the number of every earlier attempt at this shard.
        call: Calls the hub.
    """
    folder, job = Path(shard_job.folder), shard_job.job
    if not _is_ours(folder, shard_job.token):
        return ShardEnded(
            (),
            JobError(
                f"{folder}: what the driver wrote there is not there on this machine; an output on Ray needs a "
                "folder that all machines share, under one name."
            ),
        )
    before = _results_of_earlier_attempts(folder, shard.first, shard_job.run)
    rows = _pending(job, shard.rows, before)
    results = list(before)

    def report(result: Result) -> None:
        results.append(small := _without_answer(result))
        link.ended(small)

    def alarm() -> None:
        loop.call_soon_threadsafe(engine.stop)

    loop = asyncio.get_running_loop()
    try:
        journal = Journal(folder, alarm, shard.first, shard_job.run)
    except BatcherError as error:
        return ShardEnded(before, error)
    link = Link(
        call,
        shard.number,
        attempt,
        lambda: engine.stop(),
        lambda: _model_status(engine),
        in_dollars=shard_job.in_dollars,
    )
    config = EngineConfig(
        replace(job, concurrency=(), total_concurrency=None),  # The hub applies these.
        shard_job.endpoint,
        len(rows),
        Prices(shard.prices),
        earlier_result=journal.at,
    )
    sink = ObservedSink(ResultSink(Summary(time.monotonic, job.models), journal), report)
    part = Part(job, shard_job.settings, rows, shard.stopped)
    engine = Engine(config, part, sink, budget=link.budget, limiter_of=link.gate)
    stopped = await _run(engine, journal, link, shard_job)
    with contextlib.suppress(Exception):
        await link.close()
    return ShardEnded(results, stopped, engine.closed)


async def _run(
    engine: Engine, journal: Journal, link: Link, shard_job: ShardJob
) -> BatcherError | None:
    """Runs the engine to its end and closes the journal; why requests are left."""
    beside = [
        asyncio.create_task(link.run()),
        asyncio.create_task(_stop_with_the_run(link, shard_job, engine)),
    ]
    stopped: BatcherError | None = None
    try:
        await engine.run()
        stopped = engine.stopped if isinstance(engine.stopped, BatcherError) else None
    except BatcherError as error:
        stopped = error
    finally:
        try:
            await asyncio.shield(asyncio.to_thread(journal.close))
        except BatcherError as error:
            stopped = error
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
    return stopped


@contextlib.contextmanager
def owned(folder: Path) -> Iterator[str]:
    """Makes the folder that of a new run; yields the run's token.

    Workers of a run that was killed may still write: they get some seconds to see the new token, so that
    all their lines are there before anything is read.
    """
    token, path = uuid.uuid4().hex, folder / TOKEN
    killed = path.exists()
    path.write_text(token)
    try:
        if killed:
            time.sleep(_LAST_WRITES_SECONDS)
        yield token
    finally:
        path.unlink(missing_ok=True)
        sweep_reserves(folder)


def _is_ours(folder: Path, token: str) -> bool:
    try:
        return (folder / TOKEN).read_text() == token
    except OSError:
        return False


async def _stop_with_the_run(link: Link, shard_job: ShardJob, engine: Engine) -> None:
    """Stops a worker without a hub once its run has ended or another one began.

    A poll: no event reaches a machine whose driver is gone, but the shared folder does.
    """
    folder = Path(shard_job.folder)
    while True:
        await asyncio.sleep(_CHECK_SECONDS)
        if link.alone and not await asyncio.to_thread(_is_ours, folder, shard_job.token):
            engine.stop()


def _results_of_earlier_attempts(folder: Path, first: int, run: str) -> list[Result]:
    own = (
        line for line in sound_lines(folder, range(first, first + SEGMENTS)) if run_of(line) == run
    )
    return [_without_answer(result) for result in map(decode, own) if not result.stopped]


def _pending(job: Job, rows: Sequence[PendingRow], ended: Sequence[Result]) -> list[PendingRow]:
    """The rows with those slots that these results do not end."""
    if not ended:
        return list(rows)
    known = {(result.row, result.model, result.sample): result.status for result in ended}
    slots, left = Slots(job.models, job.samples, job.route), []
    for row in rows:
        status = {
            slot: known.get(
                (row.prompt.row, slots.model(slot, row.prompt.model), slots.sample(slot))
            )
            for slot in row.slots
        }
        again = slots.still_to_send(
            row.slots,
            ended=[slot for slot in row.slots if status[slot] is not None],
            ok=[slot for slot in row.slots if status[slot] is Outcome.OK],
        )
        if again:
            left.append(row._replace(slots=again))
    return left


def _without_answer(result: Result) -> Result:
    """A result without its large fields; these are in the journal."""
    return msgspec.structs.replace(
        result,
        content=None,
        parsed=None,
        confidences=None,
        refusal=None,
        tool_calls=None,
        logprobs=None,
        response=None,
    )


def _model_status(engine: Engine) -> Mapping[str, ModelStatus]:
    return {
        model: ModelStatus(status.waiting if status.waiting_for == "retry" else 0, status.longest)
        for model, status in engine.snapshot().items()
    }
