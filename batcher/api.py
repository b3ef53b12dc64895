"""`batcher.run` and `batcher.stream`: the command from Python. Touches: threads."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from typing import Any

from batcher.cluster.backends import open_backend
from batcher.errors import JobError
from batcher.job.job import Job
from batcher.records import Prompt, Result
from batcher.runtime.runner import Report, Runner

__all__ = ["run", "stream"]

_QUEUE_RESULTS = 1000
_DRAIN_SECONDS = 0.05


def run(rows: Any, output: str | os.PathLike[str], **options: Any) -> Report:
    """Sends every row to every model and writes the answers; returns a report.

    Works with and without a running event loop (a notebook has one): the run has its own thread and
    loop. Ctrl-C once waits for requests in flight and keeps their answers, twice stops now; either way
    it raises KeyboardInterrupt, and the same call continues the run.

    Args:
        rows: A path or several, an iterable of dicts, or a table with the Arrow stream interface
            (pyarrow, pandas, polars, duckdb, datasets).
        output: File to write, .jsonl, .parquet or .csv; "NAME/" is a folder of Parquet files.
        **options: The fields of `Job`, such as `models=["m"]`, `rpm=500`, `params={…}`.

    Raises:
        BatcherError: The job cannot be done as asked, or the run ended early; see its subclasses.
    """
    inputs, given = _inputs(rows)
    if isinstance(given, AsyncIterable):
        raise JobError("rows is an async iterable; use batcher.stream, or collect it first.")
    if output == "-":
        raise JobError(
            "output='-': rows on stdout are the command's; use batcher.stream, or name a file."
        )
    job = Job.of(**{"quiet": True, **options, "inputs": inputs, "output": output})
    runner = Runner(job, rows=given, open_backend=open_backend)
    ended: list[Report | BaseException] = []
    started: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Report]]] = []

    async def work() -> Report:
        task = asyncio.current_task()
        assert task is not None
        started.append((asyncio.get_running_loop(), task))
        return await runner.run()

    def in_thread() -> None:
        try:
            ended.append(asyncio.run(work()))
        except BaseException as error:  # noqa: BLE001 (raised again in the caller's thread)
            ended.append(error)
        finally:
            over.set()

    # An event instead of `Thread.join`: a join that Ctrl-C interrupted takes the thread for ended.
    over = threading.Event()
    threading.Thread(target=in_thread, name="batcher").start()
    try:
        over.wait()
    except KeyboardInterrupt:
        runner.stop()
        try:
            over.wait()
        except KeyboardInterrupt:
            runner.abandon()
            for loop, task in started:
                loop.call_soon_threadsafe(task.cancel)
            over.wait()
        raise
    if isinstance(ended[0], BaseException):
        raise ended[0]
    return ended[0]


async def stream(rows: Any, **options: Any) -> AsyncGenerator[Result, None]:
    """Yields each Result when it arrives; `result.row` is the position of its row.

    With `output=` the results are also written as by `run`, and a second call continues the run and
    yields only new results. Leaving the loop early stops the run.

    Args:
        rows: As for `run`, or an async iterable of dicts. An iterable is copied to a file before the
            first request, in its own thread unless it is async.
        **options: The fields of `Job`.

    Raises:
        BatcherError: As for `run`.
    """
    inputs, given = _inputs(rows)
    if isinstance(given, AsyncIterable):
        given = [row async for row in given]
    job = Job.of(**{"quiet": True, "output": "-", **options, "inputs": inputs})
    queue: asyncio.Queue[Result | None] = asyncio.Queue(_QUEUE_RESULTS)
    left = False

    async def emit(_prompt: Prompt, result: Result) -> None:
        if not left:  # A full queue slows the sending down.
            await queue.put(result)

    async def work() -> None:
        try:
            await runner.run()
        finally:
            if not left:
                await queue.put(None)

    runner = Runner(job, rows=given, emit=emit, open_backend=open_backend)
    running = asyncio.create_task(work())
    try:
        while (result := await queue.get()) is not None:
            yield result
        await running
    finally:
        left = True
        if not running.done():
            runner.stop()
            while not running.done():  # Emits that wait for room in the queue end too.
                while not queue.empty():
                    queue.get_nowait()
                await asyncio.wait([running], timeout=_DRAIN_SECONDS)
            running.exception()


def _inputs(rows: Any) -> tuple[tuple[str, ...], Any]:
    """(paths, None) where rows are in files, else ((), rows)."""
    if isinstance(rows, str | os.PathLike):
        return (os.fspath(rows),), None
    if (
        isinstance(rows, list | tuple)
        and rows
        and all(isinstance(r, str | os.PathLike) for r in rows)
    ):
        return tuple(os.fspath(row) for row in rows), None
    if not isinstance(rows, Iterable | AsyncIterable) and not hasattr(rows, "__arrow_c_stream__"):
        raise JobError(f"rows must be a path, an iterable of dicts or a table, not {rows!r:.80}.")
    return (), rows
