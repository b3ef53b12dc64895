"""`batcher run` and `batcher check`. Touches: the terminal, signals."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from batcher.cli.config import of_options
from batcher.errors import BatcherError, JobError, RunStopped
from batcher.job.job import Job
from batcher.live.terminal import quoted, say
from batcher.records import Prompt, Result

if TYPE_CHECKING:
    from batcher.cli.stderr import Machines, People

__all__ = ["check", "run"]

_LEAST_FILES = 32  # For one request at a time: loop, journal, input, output, what libraries open.
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Input = Annotated[str, Parameter(allow_leading_hyphen=True)]  # For "-", stdin.


def run(
    *inputs: Input, job: Annotated[Job, Parameter(name="*")], config: str | None = None
) -> int:
    """Send every row to every model and write the answers.

    A second start with the same output goes on where the first stopped. Ctrl-C once stops sending
    and keeps what is in flight; twice stops now. Exit status: 0 every row ok, 1 the program or the
    disk failed, 2 the job cannot be done as asked, 3 some rows are not ok, 4 stopped and resumable,
    130 interrupted and resumable.

    Args:
        inputs: Files, globs or folders of .jsonl, .ndjson, .json, .csv, .tsv (each also with .gz or .zst) or
            .parquet, here or in object storage (s3://, gs://); - is JSONL on stdin.
        job: The options.
        config: TOML file of options by their names, such as max_cost = 5, and inputs; what stands on the
            command line goes before it, and it before environment variables such as BATCHER_MAX_COST.
    """
    del config  # `cli.config` made words of it.
    job = _with(job, inputs)
    try:
        return _run(job)
    except BatcherError as error:
        from batcher.plan.changes import SettingsChanged

        person = sys.stdin.isatty() and sys.stderr.isatty() and job.log_level is None
        if not (isinstance(error, SettingsChanged) and person):
            raise
        try:
            changed = _ask(error)
        except KeyboardInterrupt:
            say(
                f"\nInterrupted; nothing was sent.\nGo on with: {_same_command(job, {})}",
                error=True,
            )
            return 130
        return _run(replace(job, changed=changed))


def check(
    *inputs: Input, job: Annotated[Job, Parameter(name="*")], config: str | None = None
) -> int:
    """Everything but sending: read and render every row, count, say what is wrong.

    Args:
        inputs: As for run.
        job: The options, as for run.
        config: As for run.
    """
    del config
    return _run(replace(_with(job, inputs), dry_run=True))


def _with(job: Job, inputs: tuple[str, ...]) -> Job:
    for word in inputs:
        if word.startswith("-") and word != "-":
            raise JobError(f"Unknown option: {word}. See batcher run --help.")
    return replace(job, inputs=inputs)


def _run(job: Job) -> int:
    # Arrow's own pools keep what they have freed: 100 MB more at the peak of a million rows. Arrow
    # looks at this once, when it is imported.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    stops = _Stops()  # There may be half a second of imports before there is a loop.
    import asyncio

    import uvloop

    from batcher.cli.stderr import Machines, People
    from batcher.send.connections import open_files

    if (files := open_files()) < _LEAST_FILES:
        raise JobError(
            f"This process may have {files} files open, and a run needs {_LEAST_FILES} or more. Raise the limit: "
            "ulimit -n 1024"
        )
    # What was imported is never garbage, and what a row leaves is freed without a search for circles.
    gc.freeze()
    gc.set_threshold(10_000)
    shown = People(job) if job.log_level is None else Machines(job)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_conduct(job, stops, shown))
    except BatcherError as error:
        if not shown.failed(error):
            raise
        return error.exit_status


class _Stops:
    """Ctrl-C and its relatives, from before the first import to the end of a run.

    One handler of Python all the way: a signal that came while a loop's own one took its place
    would be counted twice. A signal that is ignored (nohup, a script's job in the background)
    stays ignored.
    """

    def __init__(self) -> None:
        self._heeded = [n for n in _STOPS if signal.getsignal(n) is not signal.SIG_IGN]
        self._act: Callable[[], object] | None = None
        self._early = 0
        for number in self._heeded:
            signal.signal(number, self._hear)

    def _hear(self, _number: int, _frame: object) -> None:
        if self._act is not None:
            self._act()
            return
        self._early += 1
        if self._early > 1:
            raise KeyboardInterrupt

    def attend(self, act: Callable[[], None]) -> None:
        """Calls `act` for each signal from now on, and for those that came before."""
        import asyncio

        loop = asyncio.get_running_loop()
        self._act = partial(loop.call_soon_threadsafe, act)
        for _ in range(self._early):
            act()

    def release(self) -> None:
        """Leaves the next signal to end the process."""
        for number in self._heeded:
            end = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, end)


async def _conduct(job: Job, stops: _Stops, shown: People | Machines) -> int:
    import asyncio

    from batcher.cluster.backends import open_backend
    from batcher.runtime.runner import Runner

    emits = [] if shown.row is None else [shown.row]
    if job.output == "-":
        from batcher.cli.rows import RowWriter

        rows = RowWriter(
            sys.stdout.buffer,
            keep_raw=job.keep_raw,
            parsed=bool(job.schema or job.labels),
            batch=lambda: runner.batch,
        )
        emits.append(rows.write)

    async def emit(prompt: Prompt, result: Result) -> None:
        for each in emits:
            await each(prompt, result)

    runner = Runner(
        job,
        say=shown.say,
        emit=emit if emits else None,
        watch=shown.watch,
        open_backend=open_backend,
    )
    task = asyncio.current_task()
    assert task is not None
    signals = 0

    def on_signal() -> None:
        nonlocal signals
        signals += 1
        if signals == 1:
            shown.say(f"Stopping: {runner.stop()} (again to stop now).")
        else:
            runner.abandon()
            task.cancel()
            stops.release()  # A third one ends the process, whatever it hangs on.

    stops.attend(on_signal)
    message, status, goes_on = "", 130, True
    instead: Mapping[str, str | None] = {}
    try:
        report = await runner.run()
        message, status, goes_on = report.message, report.exit_status, report.exit_status == 130
    except asyncio.CancelledError:
        message = "Stopped at once; requests in flight may have been billed and are not kept."
    except BrokenPipeError:
        message, goes_on = "Stopped: nobody reads the output any more.", False
    except BatcherError as error:
        if isinstance(error, JobError) and not runner.summary.rows:
            raise
        message, status = str(error), error.exit_status
        goes_on = not isinstance(error, JobError)
        if isinstance(error, RunStopped):
            instead = error.instead
        if signals and isinstance(error, RunStopped):
            status = 130
    finally:
        stops.release()
    summary = runner.summary
    if job.json:
        ended = {**summary.asdict(), "exit_status": status, "message": message}
        say(json.dumps(ended))
    go_on = _same_command(job, instead) if goes_on and job.output != "-" else None
    shown.ended(summary, status, message, go_on)
    return status


def _same_command(job: Job, instead: Mapping[str, str | None]) -> str:
    """The command that continues this run: the same one, but never again with --overwrite.

    Args:
        job: What was asked; the variables that hold its secrets are not shown.
        instead: Flags that need another value, or (None) are left out.
    """
    words: list[str] = []
    given = iter(sys.argv[2:])
    for word in given:
        flag, joined, _value = word.partition("=")
        if flag in instead:
            if not joined:
                next(given, None)
        elif flag != "--overwrite":
            words.append(word)
    told = [word for flag, value in instead.items() if value for word in (flag, value)]
    # The next start may be in another shell.
    own = of_options(os.environ, job.secrets)
    variables = "".join(f"{name}={quoted(value)} " for name, value in own.items())
    return variables + " ".join(map(quoted, ["batcher", *sys.argv[1:2], *told, *words]))


def _ask(error: BatcherError) -> Literal["resend", "keep"]:
    say(f"batcher: {error}", error=True)
    while True:
        say(
            "Send those rows again (resend), keep their old answers (keep), or stop (stop)? ",
            end="",
            error=True,
            flush=True,
        )
        said = sys.stdin.readline().strip().lower()
        if said == "resend":
            return "resend"
        if said == "keep":
            return "keep"
        if said in ("", "stop"):
            raise error
