"""A job from its first check to its last word: lock, plan, engine, output. Touches: files.

The order of things is the promise: what cannot be done is said before anything is sent, what was
paid for is in the journal before anything else is done with it, and the output appears whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from batcher.batches import batch_file as batches
from batcher.errors import IncompleteOutput, JobError, OutputError, RunStopped
from batcher.job.endpoint import Endpoint
from batcher.job.job import Job
from batcher.limits.concurrency import MOST
from batcher.live.progress import Phase, Progress, Snapshot
from batcher.live.summary import Summary
from batcher.money.account import known_prices, opened
from batcher.money.prices import Bill, Price, Prices, of_file
from batcher.plan.dedupe import Deduplicator
from batcher.plan.forecast import Forecast, counted
from batcher.plan.preflight import pictures_of, preflight
from batcher.plan.requests import Plan, settings_of
from batcher.plan.resume import Resumed, resume
from batcher.read import copies, line_index, object_store
from batcher.read.files import InputFile, expand, notes_of
from batcher.read.inputs import Inputs
from batcher.records import tier_of
from batcher.runtime.costs import project, with_larger_budget
from batcher.runtime.embedded import simulated_gateway
from batcher.runtime.engine import Engine, EngineConfig
from batcher.runtime.output import check_output, sweep
from batcher.runtime.sink import Emit, ResultSink
from batcher.runtime.snapshot import heartbeat, snapshot
from batcher.send.dialect import RequestDialect
from batcher.send.http import open_files
from batcher.write import overwrite, parts, status
from batcher.write.atomic import FULL
from batcher.write.journal import Journal
from batcher.write.lines import segments
from batcher.write.lock import Lock
from batcher.write.manifest import Manifest, Pictures
from batcher.write.names import RUN

if TYPE_CHECKING:
    from batcher.cluster.driver import Cluster, Driver

__all__ = ["Report", "Runner"]

_BEAT_SECONDS, _LOOK_SECONDS, _MUCH_MORE = 5.0, 0.02, 1.1
_GUARD_SECONDS = 0.2
_HEALINGS = 2
_DRAWN = "drawn"
_LOOK_ROWS = 100
# Of the columns that no prompt uses: a quarter of a second of reading before a run. `check` reads all.
_LOOK_BYTES = 256 << 20
_OTHER_FILES = 64  # Besides connections: journal, input, output, what libraries open.


@dataclass(frozen=True)
class Report:
    """How a run ended.

    Attributes:
        summary: What came out, by model.
        exit_status: 0 every row ok, 3 some rows are not, 4 stopped, 130 interrupted.
        output: The output file; None when it was not written.
        message: The last word to the user.
    """

    summary: Summary
    exit_status: int
    output: str | None
    message: str


class Runner:
    """One run of a job.

    Args:
        job: What was asked.
        rows: Rows given from Python instead of `job.inputs`: dicts, or anything that speaks the
            Arrow stream interface.
        say: Told what a person should know while the run goes on, in sentences.
        emit: Awaited with each result and its prompt as it comes.
        watch: Shows the run while it goes on, and is cancelled at its end; given what tells how the run
            stands. Default: the live view on stderr, unless the job is quiet.
        clock: A monotonic clock, in seconds.

    Attributes:
        batch: Whether the output holds lines of a batch; known before the first of them.
    """

    def __init__(
        self,
        job: Job,
        *,
        rows: Any = None,
        say: Callable[[str], None] = lambda _text: None,
        emit: Emit | None = None,
        watch: Callable[[Callable[[], Snapshot]], Awaitable[None]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # The program around it may go to another folder in the meantime.
        self._job, self._home = _rooted(job), os.getcwd()
        self._rows = rows
        self._say = say
        self._emit = emit
        self._watch = watch or (lambda look: Progress(look, quiet=job.quiet).run())
        self._state: Phase = "checking"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._engine: Engine | Driver | None = None
        self.batch = False
        self._all_ok = True  # Every row that was emitted.
        self._cluster: Cluster | None = None
        self._interrupted = self._abandoned = False
        # Requests in flight when the run before was killed, and when this one was given up.
        self._cut_off = self._given_up = 0
        self.summary = Summary(clock, job.models)
        self._seconds_left = job.seconds_left(datetime.now())
        self._surveyed: int | None = None
        self._told_prices = {} if job.prices is None else of_file(job.prices)
        self._lock: Lock | None = None
        self._gone: str | None = (
            None  # What became of the run folder, once it is not this run's any more.
        )
        self._output = Path(os.path.abspath(object_store.here(job.output)))
        if job.images and not (object_store.is_object(job.images) or os.path.isdir(job.images)):
            raise JobError(f"--images {job.images}: there is no such folder.")
        self._prices = Prices(self._told_prices)

    def stop(self) -> str:
        """The first Ctrl-C: send nothing new, wait for what is in flight, write it.

        An output that is being written is still finished. May be called from any thread. Returns
        what is waited for, in words.
        """
        if self._state == "writing output":
            return "the output is being written"
        begun = self._state == "running"
        self._interrupted = True
        self._state = "stopping"
        self._stop_sending()
        return "waiting for what is in flight" if begun else "nothing was sent yet"

    def _stop_sending(self) -> None:
        if self._engine is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._engine.stop)

    def abandon(self) -> None:
        """The second: give up what is in flight, and the output that is being written; the old one stays."""
        self._abandoned = True
        self._given_up = self._in_flight()

    def _in_flight(self) -> int:
        channels = self._engine.snapshot() if self._engine is not None else {}
        return sum(status.in_flight for status in channels.values())

    def _go_on(self) -> None:
        """Ends work in another thread when the run was interrupted."""
        if self._interrupted:
            raise RunStopped("Interrupted before anything was sent.")

    def _go_on_writing(self) -> None:
        if (what := self._lost()) is not None:
            raise OutputError(
                f"{what}, so no output was written; move it back and run the same command again."
            )
        if self._abandoned:
            raise RunStopped("Interrupted while the output was written.")

    async def run(self) -> Report:
        """Runs the job.

        Raises:
            BatcherError: It ended early, or cannot be done; `exit_status` says which.
        """
        self._loop = asyncio.get_running_loop()
        job = self._job
        if job.output == "-":
            with tempfile.TemporaryDirectory(prefix="batcher-") as temporary:
                return await self._locked(Path(temporary))
        output = self._output
        folder = output.parent / f"{output.name}.run"
        named = Path(object_store.here(job.output))  # As people know it.
        check_output(named, named.parent / f"{named.name}.run", job)
        new = not folder.exists()
        self._lock = lock = Lock(folder)
        try:
            sweep(output)
            if not job.dry_run:
                overwrite.settle(folder)
            return await self._locked(folder)
        except BrokenPipeError:
            raise
        except OSError as error:  # The disk: a full one, or one that is gone.
            where = error.filename or folder
            mend = "make room" if error.errno in FULL else "see to it"
            raise OutputError(
                f"{where}: {error.strerror or error}; {mend}, and run the same command again."
            ) from error
        finally:
            if self.summary.status == "running":  # It ended before anything was sent.
                self.summary.finish("interrupted" if self._interrupted else "failed")
            begun = (folder / RUN).exists() or segments(folder)
            if new and self._lost() is None and not begun:
                shutil.rmtree(folder)  # Nothing was begun: leave nothing behind.
            lock.release()

    async def _locked(self, folder: Path) -> Report:
        async with contextlib.AsyncExitStack() as stack:
            if self._job.on is not None and not self._job.dry_run:
                self._cluster = await stack.enter_async_context(_joined(self._job, folder))
            return await self._planned(folder)

    async def _planned(self, folder: Path) -> Report:
        job = self._job
        endpoint = job.endpoint() if not job.simulate else Endpoint("", "simulated:")
        inputs = await self._inputs(folder)
        taken = ""
        if job.from_batch and not job.dry_run:
            taken = await asyncio.to_thread(self._take_batch, folder, inputs, endpoint)
        (plan, found), self._prices = await asyncio.gather(
            asyncio.to_thread(self._prepare, folder, inputs, endpoint, self._say, taken),
            self._known(endpoint),
        )
        if job.dry_run:
            if job.simulate:
                async with simulated_gateway() as simulated:  # It alone knows its prices.
                    self._prices = await self._known(simulated)
            return await asyncio.to_thread(self._dry, folder, plan)
        replaced = job.overwrite and overwrite.set_aside(folder)
        if not job.overwrite:
            self._say_if_killed(folder)
        for slot, model in enumerate(plan.slots):
            for outcome, n in plan.settled(slot).items():
                self.summary.add_earlier(model, outcome, n)
        ended = "failed"
        try:
            async with contextlib.AsyncExitStack() as stack:
                if job.simulate:
                    endpoint = await stack.enter_async_context(simulated_gateway())
                    self._prices = await self._known(endpoint)
                report = await self._answered(
                    folder, inputs, plan, found, endpoint, replaces=replaced
                )
            ended = "interrupted" if report.exit_status == 130 else "done"
        except RunStopped:
            ended = "stopped"
            raise
        except asyncio.CancelledError:
            ended = "interrupted"
            raise
        finally:
            if self.summary.status == "running":
                self.summary.finish(ended)
            given_up = {"given_up": self._given_up} if ended == "interrupted" else {}
            status.save(folder, {**self._heartbeat(), **given_up, "state": ended})
            if replaced and self._lost() is not None:
                pass  # What was set aside is in the folder that was moved; it is settled when that is back.
            elif replaced and _any_answer(self.summary):
                overwrite.forget(folder)
            elif replaced:
                overwrite.restore(folder)
                self._say("Nothing was answered; the results from before are kept.")
        return report

    async def _answered(
        self,
        folder: Path,
        inputs: Inputs,
        plan: Plan,
        found: Resumed,
        endpoint: Endpoint,
        *,
        replaces: bool,
    ) -> Report:
        """Sends what is to send and writes the output; again for what is found to be damaged then."""
        healings = 0
        while True:
            manifest, last = found.manifest, found.manifest.last
            if self._cluster is not None:
                manifest.shared.append((last + 1, 0))
            manifest.save(folder)
            if found.moved is not None:
                found.moved.save(folder)
            line_index.save(folder, inputs.pins, inputs.line_index)
            if not replaces:
                copies.sweep(folder, inputs.pins)
            manners = _manners_at(endpoint, manifest)
            try:
                await self._send(folder, endpoint, plan, inputs, manners, found.run)
            finally:
                if manners != _manners_at(endpoint, manifest):
                    manifest.manners |= {f"{endpoint.name} {of}": m for of, m in manners.items()}
                    with contextlib.suppress(OSError):  # The next run finds out again.
                        manifest.save(folder)
            manifest.saw([number for number, _path in segments(folder)])
            touched = await asyncio.to_thread(self._touched, inputs, manifest)
            if touched is None:
                wrote = manifest.last > last or found.moved is not None
                manifest.end(found.run, wrote=wrote)
            manifest.save(folder)
            if replaces and not self._interrupted and not _any_answer(self.summary):
                raise JobError(f"Not one row was answered{_first_words(self.summary)}.")
            try:
                return await self._finish(folder, inputs, manifest, touched)
            except IncompleteOutput as error:
                healings += 1
                if healings > _HEALINGS:
                    raise IncompleteOutput(f"{error}, again; see to the disk.") from None
                self._say(
                    f"{error}; answers are matched to rows again, and what is lost is sent again."
                )
                self._keep_output(folder)
                self._job = replace(self._job, overwrite=False)
                if await asyncio.to_thread(inputs.touched) is not None:
                    inputs = await self._inputs(folder)
                plan, found = await asyncio.to_thread(
                    self._prepare, folder, inputs, endpoint, lambda _text: None
                )

    # Before

    async def _inputs(self, folder: Path) -> Inputs:
        """The input files; stdin and rows from Python are copied into the run folder first."""
        job = self._job
        images = job.images
        files: list[InputFile]
        if self._rows is not None:
            files = [await asyncio.to_thread(copies.rows, folder, self._rows, self._go_on)]
        elif job.inputs == ("-",):
            files = [await asyncio.to_thread(copies.stdin, folder, self._go_on)]
        elif not job.inputs:
            raise JobError("No input: name a file, a glob or a folder, or - for JSONL on stdin.")
        elif "-" in job.inputs:
            raise JobError("stdin (-) goes alone; it cannot be mixed with files.")
        else:
            find = partial(expand, encoding=job.text_encoding, delimiter=job.cell_delimiter)
            files = await asyncio.to_thread(find, job.inputs, job.output)
            for note in notes_of(files):
                self._say(note)
        if images is None and any(file.pin.copied for file in files):
            images = self._home  # Else they begin where the file is.
        return Inputs(files, job.limit, job.drawn, images=images)

    def _prepare(
        self,
        folder: Path,
        inputs: Inputs,
        endpoint: Endpoint,
        say: Callable[[str], None],
        taken: str = "",
    ) -> tuple[Plan, Resumed]:
        """What is still to send, and what is to be kept in `run.json`; reads, and writes nothing."""
        job, settings = self._job, settings_of(self._job, endpoint.name)
        if not job.dry_run:
            inputs.line_index = line_index.load(folder, inputs.pins)
        found = resume(job, settings, folder, inputs, say, self._go_on, taken)
        batched = self._writes_batch(inputs)
        self.batch = batched
        found.manifest.asked = msgspec.structs.replace(found.manifest.asked, batch=batched)
        epoch = found.manifest.epochs[-1]
        plan = Plan(job, settings, inputs, found.winners, stopped=found.stopped)
        if found.damaged and not job.dry_run:
            self._keep_output(folder)
        self._surveyed = epoch.rows
        if epoch.rows is not None and inputs.whole and not job.dry_run:
            return plan, found
        found_in = preflight(inputs, plan, self._go_on)
        for note in found_in.notes:
            say(note)
        self._surveyed = found_in.rows
        most = _LOOK_BYTES if not job.dry_run else 1 << 62
        inputs.scan(plan.prompter.columns, most, self._go_on)
        for sentence in inputs.losses():
            say(sentence)
        if found_in.pictures and (epoch.pictures is None or epoch.pictures.rows < found_in.rows):
            # Of rows drawn by chance it is not told which: their answers are found by key next time.
            told = found_in.pictures if inputs.drawn is None else _DRAWN
            epoch.pictures = Pictures(found_in.rows, told)
        if inputs.whole and not job.dry_run:
            epoch.rows = self._surveyed
            pins = [file.with_digest(self._go_on).pin for file in inputs.files]
            epoch.inputs = msgspec.to_builtins(pins)
            inputs.files = [replace(f, pin=p) for f, p in zip(inputs.files, pins, strict=True)]
        if (name := inputs.touched()) is not None:
            raise JobError(f"{name} was written while it was read; run the same command again.")
        return plan, found

    def _touched(self, inputs: Inputs, manifest: Manifest) -> str | None:
        """What of the input, or of the pictures that it names, was written or touched since the run began."""
        if (name := inputs.touched()) is not None:
            return name
        known = manifest.epochs[-1].pictures
        if known is None or known.digest == _DRAWN:
            return None
        same = pictures_of(inputs, known.rows, lambda: None) == known.digest
        return None if same else "A picture"

    def _writes_batch(self, inputs: Inputs) -> bool:
        """Whether the output holds lines of a batch: as asked, else as the first rows of the input do."""
        lines = self._job.output == "-" or self._job.output.endswith(".jsonl")
        if self._job.format is not None or not lines:
            return self._job.format == "openai"
        rows = [row.columns for row in islice(inputs.rows(batches.NAMES), _LOOK_ROWS)]
        known = [columns for columns in rows if columns is not None]
        return bool(known) and all(map(batches.is_request, known))

    def _take_batch(self, folder: Path, inputs: Inputs, endpoint: Endpoint) -> str:
        """ID that the answers of a finished batch are written under; "" when there are none to take."""
        job, run = self._job, secrets.token_hex(6)
        plan = Plan(job, settings_of(job, endpoint.name), inputs)
        paths = job.from_batch
        taken, others = batches.take(
            paths, plan, inputs, folder, job.models, run, keep_raw=job.keep_raw
        )
        if taken:
            answers = "1 answer is" if taken == 1 else f"{taken:,} answers are"
            told = f", {others:,} of which name another model" if others else ""
            self._say(f"{answers} taken from {', '.join(paths)}{told}.")
        return run if taken else ""

    def _keep_output(self, folder: Path) -> None:
        """Keeps the output as it is, when it may be the only place of answers the journal lost."""
        output = self._output
        files, kept = parts.files(output), [parts.files(p) for p in folder.glob("output-*")]
        if not files or any(
            len(of) == len(files) and all(map(os.path.samefile, files, of)) for of in kept
        ):
            return
        path = folder / f"output-{time.strftime('%Y%m%dT%H%M%S')}{output.suffix}"
        if output.is_dir():
            path.mkdir(exist_ok=True)
        for file in files:
            copy = path / file.name if output.is_dir() else path
            try:
                os.link(file, copy)
            except OSError:  # Not every file system has links.
                shutil.copy2(file, copy)
        self._say(f"The output as it is stays in {path}.")

    def _say_if_killed(self, folder: Path) -> None:
        told = status.load(folder)
        if told is not None:
            self._cut_off = told.get("given_up") or 0
        if told is not None and told.get("state") in ("running", "stopping"):
            models = told.get("models", {}).values()
            self._cut_off = flying = sum(of.get("in_flight", 0) for of in models)
            self._say(
                f"The run before was ended from outside, soon after {told.get('updated')}. What was in "
                f"flight{f' (about {flying:,} requests)' if flying else ''} may have been billed and is "
                "sent again."
            )

    def _dry(self, folder: Path, plan: Plan) -> Report:
        """Renders every row and says what is wrong; sends nothing."""
        job = self._job
        reask = 0 if plan.expected is None else job.reask
        forecast = Forecast(
            plan.slots, one=job.route != "each", reask=reask, most_tokens=job.grow_max_tokens
        )
        twins = self._twins(folder, plan)
        for batch in plan.batches():
            self._go_on()
            for todo in batch:
                slots = todo.slots if twins is None else twins.among(todo)
                samples = {slot % plan.samples for slot in slots}
                forecast.add(todo.prompt, slots, len(samples))
        for error in forecast.errors[:20]:
            self._say(error)
        if len(forecast.errors) > 20:
            self._say(f"… and {len(forecast.errors) - 20:,} more.")
        tier = tier_of(job.body_params.get("service_tier"))

        def price_of(model: str) -> Price | None:
            price = self._prices.of(model)
            return price and price.at(tier)

        self.summary.forecast = forecast.asdict(price_of, job.limits)
        for line in forecast.lines(price_of, job.limits):
            self._say(line)
        if equal := forecast.twins:
            rows = "1 row asks" if equal == 1 else f"{equal:,} rows ask"
            self._say(f"{rows} the same as a row before.")
        if twins is not None and twins.waiting:
            self._say(
                f"{counted(twins.waiting.total())} will get the answer of an equal one, without being sent; "
                "--no-dedupe sends each."
            )
        for model in job.models:
            self.summary.models[model].bill = Bill(self._prices.of(model))
        self.summary.finish("checked")
        text = (
            f"{self._surveyed or 0:,} rows read, {len(forecast.errors):,} of them unreadable; "
            f"{counted(forecast.requests)} to send. Nothing was sent."
        )
        return Report(self.summary, 3 if forecast.errors else 0, None, text)

    # During

    def _twins(self, folder: Path, plan: Plan) -> Deduplicator | None:
        if self._job.dedupe is False:
            return None
        return Deduplicator(self._job, plan, folder, self._surveyed or 0)

    async def _send(
        self,
        folder: Path,
        endpoint: Endpoint,
        plan: Plan,
        inputs: Inputs,
        manners: dict[str, RequestDialect],
        run: str,
    ) -> None:
        if self._interrupted:
            return
        cut_off, self._cut_off = self._cut_off, 0
        account = await opened(self._job, self._prices, folder, cut_off)
        journal = Journal(folder, self._stop_sending, run=run)
        budget = None if account is None else account.budget
        twins = self._twins(folder, plan)
        models = self.summary.models.items()
        proven = {
            model for model, of in models if any(n and o.answered for o, n in of.earlier.items())
        }
        config = EngineConfig(
            self._within_files(),
            endpoint,
            self._surveyed or 0,
            self._prices,
            manners,
            proven,
            journal.at,
        )
        sink = ResultSink(self.summary, journal, self._emit)
        engine = Engine(config, plan, sink, budget=budget, dedupe=twins)
        working: Engine | Driver = engine
        if self._cluster is not None:
            from batcher.cluster.driver import Driver

            settings = settings_of(self._job, endpoint.name)
            working = Driver(
                self._cluster,
                self._job,
                settings,
                endpoint,
                plan,
                folder,
                self.summary,
                self._surveyed or 0,
                self._emit,
                self._prices,
                twins,
                account,
                run,
            )
        self._engine = working
        self._state = "running"
        if self._seconds_left is not None:
            left = max(0.0, self._seconds_left - self.summary.seconds)
            told = self._job.deadline or ""
            over = (
                "T" in told or " " in told
            )  # A date does not come again; a length or an hour does.
            why = RunStopped(
                f"--deadline {told}: it is over, so nothing more is sent.",
                instead={"--deadline": None} if over else {},
            )
            asyncio.get_running_loop().call_later(left, working.stop, why)
        watching = asyncio.gather(
            self._watch(self._snapshot), self._beat(folder), self._guard(journal, working)
        )
        try:
            try:
                await working.run()
            finally:
                for traffic in engine.traffic:
                    self.summary.add_traffic(*traffic)
                await asyncio.shield(asyncio.to_thread(journal.close))
            manners.update(engine.dialects)
            if isinstance(working, Engine):
                self._all_ok = sink.all_ok
                self.summary.total_limit_used = engine.total_limit_used
            else:
                self._all_ok = working.all_ok
            if (what := self._lost(journal)) is not None:
                raise OutputError(f"{what}, so nothing more was sent. {self._kept(journal)}")
            # Rows that are written as they finish cannot be written later.
            now = self._job.output == "-" or not (working.stopped or self._interrupted)
            if now and twins is not None and twins.waiting:
                journal = Journal(folder, self._stop_sending, run=run)
                copied = ResultSink(self.summary, journal, self._emit)
                try:
                    await engine.copy(inputs, copied)
                finally:
                    await asyncio.shield(asyncio.to_thread(journal.close))
                self._all_ok &= copied.all_ok
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
            if account is not None:
                if self._cluster is None:  # Else its hub keeps it.
                    account.close()
                self.summary.budget = account.budget.told
        if working.stopped is not None:
            if (
                account is not None
                and account.budget.spent
                and isinstance(working.stopped, RunStopped)
            ):
                raise with_larger_budget(
                    working.stopped,
                    self._job,
                    account,
                    self.summary,
                    self._snapshot(),
                    self._answers_in_all(),
                )
            raise working.stopped
        if working.closed:
            self._say(working.closed)

    def _answers_in_all(self) -> int | None:
        """How many answers there are to be, by all models together."""
        job = self._job
        each = len(job.models or ("",)) if job.route == "each" else 1
        return None if self._surveyed is None else self._surveyed * job.samples * each

    async def _known(self, endpoint: Endpoint) -> Prices:
        return await known_prices(self._job, self._told_prices, endpoint, self._say)

    def _within_files(self) -> Job:
        """The job, with no more in flight than the system allows open files."""
        job, allowed = self._job, open_files()
        room = max(1, allowed - _OTHER_FILES)
        asked = sum(job.limits(model).concurrency or MOST for model in job.models or ("",))
        if min(asked, job.total_concurrency or asked) <= room:
            return job
        self._say(
            f"This process may have {allowed:,} files open, so at most {room:,} requests are in flight "
            f"at once; for more, raise the limit first: ulimit -n {asked + _OTHER_FILES}"
        )
        return replace(job, total_concurrency=room)

    async def _beat(self, folder: Path) -> None:
        """Keeps `status.json` fresh until cancelled: at once where much more is in flight than it tells.

        After a kill that is all there is to know what may have been billed.
        """
        while True:
            told = self._in_flight()
            await asyncio.to_thread(status.save, folder, self._heartbeat())
            until = time.monotonic() + _BEAT_SECONDS
            while time.monotonic() < until and self._in_flight() <= told * _MUCH_MORE:  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_SECONDS)

    async def _guard(self, journal: Journal, working: Engine | Driver) -> None:
        """Ends the sending when the run folder is not this run's any more, so that nothing more is paid for."""
        while True:
            await asyncio.sleep(_GUARD_SECONDS)
            what = await asyncio.to_thread(self._lost, journal)
            if what is not None:
                working.stop(OutputError(what))
                return

    def _lost(self, journal: Journal | None = None) -> str | None:
        """What became of the run folder, in a sentence; None while all is well."""
        lock = self._lock
        if lock is not None and self._gone is None:
            what = lock.lost()
            if what is None and journal is not None and journal.removed:
                what = "files in it were removed"
            if what is not None:
                self._gone = f"{lock.folder}: {what} while the run was at work"
        return self._gone

    def _kept(self, journal: Journal) -> str:
        """Where the answers are, when the run folder is not where it was."""
        assert self._lock is not None
        folder = self._lock.folder
        if journal.put_back is not None:
            kept = f"What could be kept of the answers is in {journal.put_back}."
            if journal.put_back.parent == folder:
                return f"{kept} Run the same command again."
            last = max((number for number, _path in segments(folder)), default=0)
            return (
                f"{kept} Copy that file to {folder}/journal-{last + 1:06}.jsonl, else its answers are bought again; "
                "then run the same command again."
            )
        if (where := self._lock.where) is None:
            return "Answers that it held are lost, unless it was moved: then move it back. Run the same command again."
        return f"All answers are in {where}. Move it back, and run the same command again."

    def _heartbeat(self) -> dict[str, object]:
        return heartbeat(self._snapshot())

    def _snapshot(self) -> Snapshot:
        channels = self._engine.snapshot() if self._engine is not None else {}
        rows = None if self._surveyed is None else self._surveyed * self._job.samples
        equals = self._engine.equals if self._engine is not None else {}
        return snapshot(self._state, channels, self.summary, rows, equals, self._job.route)

    # After

    async def _finish(
        self, folder: Path, inputs: Inputs, manifest: Manifest, touched: str | None
    ) -> Report:
        job = self._job
        if self._interrupted:
            self.summary.finish("interrupted")
            kept = "kept" if job.output != "-" else "written"
            return Report(self.summary, 130, None, f"Interrupted; what was answered is {kept}.")
        self._state = "writing output"
        status.save(folder, self._heartbeat())  # From here on a kill finds nothing in flight.
        if job.output == "-":
            self.summary.finish("done")
            return Report(self.summary, 0 if self._all_ok else 3, "-", "")
        if (name := inputs.rewritten()) is not None:
            raise OutputError(
                f"{name} changed while the run was going on, so its rows and the answers cannot be "
                f"put together; all answers are in {folder}. Run the same command again."
            )
        if touched is not None:
            raise IncompleteOutput(f"{touched} was touched while the run was going on")
        from batcher.write.finish import export  # Brings pyarrow, which would hold up the start.

        output = self._output
        written = await asyncio.to_thread(
            partial(export, output, folder, inputs, manifest, manifest.runs, locked=True),
            say=self._say,
            go_on=self._go_on_writing,
        )
        where = object_store.here(job.output)
        if object_store.is_object(job.output):
            await asyncio.to_thread(object_store.put, str(output), job.output)
            where += f", and uploaded to {job.output}"
        self.summary.finish("done" if written.all_ok else "some rows are not ok")
        if not (inputs.whole or manifest.asked.batch) and job.route == "each" and job.models:
            await asyncio.to_thread(project, self.summary, output, inputs, job)
        text = f"{written.rows:,} rows in {where}."
        return Report(self.summary, 0 if written.all_ok else 3, job.output, text)


def _rooted(job: Job) -> Job:
    """The job with the paths that are opened more than once made absolute."""

    def at(path: str | None) -> str | None:
        return path if path is None or object_store.is_object(path) else os.path.abspath(path)

    def of(text: str | None) -> str | None:
        return f"@{os.path.abspath(text[1:])}" if text is not None and text[:1] == "@" else text

    schema = job.schema if (job.schema or "{").lstrip().startswith("{") else at(job.schema)
    return replace(
        job, prompt=of(job.prompt), system=of(job.system), schema=schema, images=at(job.images)
    )


@contextlib.asynccontextmanager
async def _joined(job: Job, folder: Path) -> AsyncIterator[Cluster]:
    """The cluster that a job is to run on; workers of an earlier run of the folder stop."""
    from batcher.cluster.on_ray import RayCluster
    from batcher.cluster.worker import owned

    with owned(folder) as token:
        cluster = RayCluster(job, token)
        cluster.join()  # Ray wants the thread that it was begun in to stay.
        try:
            yield cluster
        finally:
            cluster.leave()


def _first_words(summary: Summary) -> str:
    """Of the first failure there was, to be put behind a sentence."""
    said = [text for of in summary.models.values() for text in of.examples.values()]
    return f": {said[0]}" if said else ""


def _any_answer(summary: Summary) -> bool:
    return any(outcome.answered for of in summary.models.values() for outcome in of.outcomes)


def _manners_at(endpoint: Endpoint, manifest: Manifest) -> dict[str, RequestDialect]:
    """How models took requests at this address, in earlier runs."""
    start = f"{endpoint.name} "
    return {
        name.removeprefix(start): RequestDialect(*manner)
        for name, manner in manifest.manners.items()
        if name.startswith(start)
    }
