"""`batcher.run` and `batcher.stream`: the same engine from Python. Touches: threads."""

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

_AHEAD = 1000


def run(rows: Any, output: str | os.PathLike[str], **options: Any) -> Report:
    """Answers every row and writes the output; returns how it ended.

    Works with and without a running event loop (a notebook has one): the run has a thread and a
    loop of its own. Ctrl-C once waits for what is in flight and keeps it, twice stops now; either
    way KeyboardInterrupt is raised, and the same call goes on where this one stopped.

    Args:
        rows: A path or several, an iterable of dicts, or a table that speaks the Arrow stream
            interface (pyarrow, pandas, polars, duckdb, datasets).
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
    begun: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Report]]] = []

    async def work() -> Report:
        task = asyncio.current_task()
        assert task is not None
        begun.append((asyncio.get_running_loop(), task))
        return await runner.run()

    def in_thread() -> None:
        try:
            ended.append(asyncio.run(work()))
        except BaseException as error:  # noqa: BLE001 (raised again in the caller's thread)
            ended.append(error)
        finally:
            over.set()

    # An event and not `join`, which takes a thread for ended once Ctrl-C has interrupted it.
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
            for loop, task in begun:
                loop.call_soon_threadsafe(task.cancel)
            over.wait()
        raise
    if isinstance(ended[0], BaseException):
        raise ended[0]
    return ended[0]


async def stream(rows: Any, **options: Any) -> AsyncGenerator[Result, None]:
    """Yields each Result as it comes; `result.row` is the row's place among the rows given.

    With `output=` the results are also kept and written as by `run`, and a second call goes on
    where the first stopped, yielding only what is new. Leaving the loop early stops the run.

    Args:
        rows: As for `run`, or an async iterable of dicts. An iterable is read whole before the first
            request, into a file, in a thread of its own unless it is async.
        **options: The fields of `Job`.

    Raises:
        BatcherError: As for `run`.
    """
    inputs, given = _inputs(rows)
    if isinstance(given, AsyncIterable):
        given = [row async for row in given]
    job = Job.of(**{"quiet": True, "output": "-", **options, "inputs": inputs})
    queue: asyncio.Queue[Result | None] = asyncio.Queue(_AHEAD)
    left = False

    async def emit(_prompt: Prompt, result: Result) -> None:
        if not left:  # A slow reader slows the sending.
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
            while not running.done():
                while not queue.empty():
                    queue.get_nowait()
                await asyncio.wait([running], timeout=0.05)
            running.exception()


def _inputs(rows: Any) -> tuple[tuple[str, ...], Any]:
    """(paths, None) or ((), rows)."""
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
