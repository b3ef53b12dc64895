"""One shard, in whichever process: an engine over some rows, with a part of the journal. Touches: files.

The rows come as they were rendered, so that what is sent and what it is known by is the same wherever
it is sent from. Answers go into segments that this attempt alone writes, in the run folder, which all
machines share. An attempt that finds segments of an earlier one sends what these do not hold.
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

from batcher.cluster.hub import Line, Reply, Turn
from batcher.cluster.link import Link
from batcher.errors import BatcherError, JobError
from batcher.job.endpoint import Endpoint
from batcher.job.job import Job
from batcher.live.summary import Summary
from batcher.money.prices import Price, Prices
from batcher.plan.requests import Part, PendingRow, Settings, Stopped
from batcher.records import Outcome, Result
from batcher.runtime.engine import Engine, EngineConfig
from batcher.runtime.sink import ObservedSink, ResultSink
from batcher.write.journal import Journal, sweep_reserves
from batcher.write.lines import decode, run_of, sound_lines
from batcher.write.names import TOKEN

__all__ = ["BLOCK", "TOKEN", "Done", "Shard", "ShardJob", "owned", "work"]

BLOCK = 100
"""Segment numbers that each shard has to itself."""

"""Names the run that the folder belongs to now."""

_FENCE_SECONDS = 0.5
_OVER_SECONDS = 3.0


@dataclass(frozen=True)
class ShardJob:
    """What is the same for all shards of a run; `in_dollars` as of `Link`, `run` as each line names it."""

    job: Job
    settings: Settings
    endpoint: Endpoint
    folder: str
    run: str
    token: str
    in_dollars: bool | None


@dataclass(frozen=True)
class Shard:
    """Some rows in the order of their positions.

    Attributes:
        first: Number of its first segment.
        stopped: As of the plan, of these rows.
        prices: Of its models, as far as they are known.
    """

    number: int
    first: int
    todos: Sequence[PendingRow]
    stopped: Stopped
    prices: Mapping[str, Price]


@dataclass(frozen=True)
class Done:
    """How a shard ended.

    Attributes:
        ended: All its rows that ended, by any attempt, without what was answered.
        stopped: Why it ended early, if it did.
        closed: Which models were given up, and why.
    """

    ended: Sequence[Result]
    stopped: BatcherError | None = None
    closed: str = ""


async def work(
    errand: ShardJob, shard: Shard, attempt: int, call: Callable[[Turn], Awaitable[Reply]]
) -> Done:
    """Sends what a shard has to send.

    Args:
        errand: What is asked.
        shard: Of which rows.
        attempt: Larger than that of every earlier attempt at this shard.
        call: Reaches the hub.
    """
    folder, job = Path(errand.folder), errand.job
    if not _is_ours(folder, errand.token):
        return Done(
            (),
            JobError(
                f"{folder}: what the driver wrote there is not there on this machine; an output on Ray needs a "
                "folder that all machines share, under one name."
            ),
        )
    before = [_slim(result) for result in _of_earlier_attempts(folder, shard.first, errand.run)]
    todos = _left(job, shard.todos, before)
    ended: list[Result] = []

    def tell(result: Result) -> None:
        ended.append(slim := _slim(result))
        link.ended(slim)

    def alarm() -> None:
        loop.call_soon_threadsafe(engine.stop)

    try:
        journal = Journal(folder, alarm, shard.first, errand.run)
    except BatcherError as error:
        return Done(before, error)
    loop = asyncio.get_running_loop()
    link = Link(
        call,
        shard.number,
        attempt,
        lambda: engine.stop(),
        lambda: _lines(engine),
        in_dollars=errand.in_dollars,
    )
    part = Part(job, errand.settings, todos, shard.stopped)
    alone = replace(job, concurrency=(), total_concurrency=None)  # The hub knows them.
    config = EngineConfig(
        alone,
        errand.endpoint,
        len(todos),
        Prices(shard.prices),
        earlier_result=journal.at,
    )
    summary = Summary(time.monotonic, job.models)
    sink = ObservedSink(ResultSink(summary, journal), tell)
    engine = Engine(config, part, sink, budget=link.budget, limiter_of=link.gate)
    beside = [
        asyncio.create_task(link.run()),
        asyncio.create_task(_fence(link, folder, errand.token, engine)),
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
    with contextlib.suppress(Exception):
        await link.close()
    return Done([*before, *ended], stopped, engine.closed)


@contextlib.contextmanager
def owned(folder: Path) -> Iterator[str]:
    """The folder is that of a new run; yields its token.

    What workers of one that was killed still write should be there before it is read.
    """
    token, path = uuid.uuid4().hex, folder / TOKEN
    killed = path.exists()
    path.write_text(token)
    try:
        if killed:
            time.sleep(_OVER_SECONDS)
        yield token
    finally:
        path.unlink(missing_ok=True)
        sweep_reserves(folder)


def _is_ours(folder: Path, token: str) -> bool:
    try:
        return (folder / TOKEN).read_text() == token
    except OSError:
        return False


async def _fence(link: Link, folder: Path, token: str, engine: Engine) -> None:
    """Stops a worker without a hub whose run has ended, or was begun anew."""
    while True:
        await asyncio.sleep(_FENCE_SECONDS)
        if link.alone and not await asyncio.to_thread(_is_ours, folder, token):
            engine.stop()


def _of_earlier_attempts(folder: Path, first: int, run: str) -> list[Result]:
    own = (
        line for line in sound_lines(folder, range(first, first + BLOCK)) if run_of(line) == run
    )
    return [result for result in map(decode, own) if not result.stopped]


def _left(job: Job, todos: Sequence[PendingRow], ended: Sequence[Result]) -> list[PendingRow]:
    """What is still to be sent, when so much has ended."""
    if not ended:
        return list(todos)
    done = {(of.row, of.model, of.sample): of.status for of in ended}
    left = []
    for todo in todos:
        row, own = todo.prompt.row, todo.prompt.model
        models = job.models or (own or "",)
        by_slot = {
            slot: done.get((row, models[slot // job.samples], slot % job.samples))
            for slot in todo.slots
        }
        if job.route == "each":
            whole = set()
        else:
            enough = {Outcome.OK} if job.route == "fallback" else {*Outcome}
            whole = {slot % job.samples for slot, status in by_slot.items() if status in enough}
        slots = tuple(
            slot
            for slot, status in by_slot.items()
            if status is None and slot % job.samples not in whole
        )
        if slots:
            left.append(todo._replace(slots=slots))
    return left


def _slim(result: Result) -> Result:
    """All but what was answered."""
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


def _lines(engine: Engine) -> Mapping[str, Line]:
    stands = engine.snapshot()
    return {
        model: Line(of.waiting if of.waiting_for == "retry" else 0, of.longest)
        for model, of in stands.items()
    }
