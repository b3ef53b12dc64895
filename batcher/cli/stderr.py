"""What a run says on stderr: to people, or as JSON lines. Touches: the terminal."""

from __future__ import annotations

from collections.abc import Callable

from batcher.errors import BatcherError
from batcher.job.job import Job
from batcher.live.log import Log
from batcher.live.progress import Progress, Snapshot, Stderr
from batcher.live.summary import Summary
from batcher.live.table import table
from batcher.live.terminal import safe
from batcher.runtime.sink import Emit
from batcher.runtime.snapshot import heartbeat

__all__ = ["Machines", "People"]


class People:
    """A run on stderr as people read it: a live view, sentences, a table."""

    def __init__(self, job: Job) -> None:
        self._quiet, self._totals = job.quiet, not (job.quiet or job.dry_run)
        self._stderr = Stderr()
        self.row: Emit | None = None

    def say(self, text: str) -> None:
        """Prints a sentence."""
        self._stderr.print(safe(text), markup=False, highlight=False, soft_wrap=True)

    async def watch(self, look: Callable[[], Snapshot]) -> None:
        """Shows how the run stands, until cancelled."""
        await Progress(look, quiet=self._quiet, console=self._stderr).run()

    def ended(self, summary: Summary, status: int, message: str, go_on: str | None) -> None:
        """Tells the totals, how it ended, and the command that goes on."""
        if self._totals and summary.rows:
            self._stderr.print(table(summary, self._stderr.width))
        if message and (not self._quiet or status not in (0, 3)):
            self.say(message)
        if go_on is not None:
            self.say(f"Go on with: {go_on}")

    def failed(self, _error: BatcherError) -> bool:
        """Whether it has told why nothing was begun; no: an error goes to whoever began."""
        return False


class Machines:
    """The same as JSON lines."""

    def __init__(self, job: Job) -> None:
        assert job.log_level is not None
        self._log = Log(job.log_level)
        self._log.event("info", "started", inputs=job.inputs, output=job.output, models=job.models)
        self.say, self.row = self._log.say, self._log.row

    async def watch(self, look: Callable[[], Snapshot]) -> None:
        """Shows how the run stands, until cancelled."""
        await self._log.watch(lambda: heartbeat(look()))

    def ended(self, summary: Summary, status: int, message: str, go_on: str | None) -> None:
        """Tells the totals, how it ended, and the command that goes on."""
        self._log.ended(status, message, go_on, **summary.asdict())

    def failed(self, error: BatcherError) -> bool:
        """Tells why nothing was begun."""
        self._log.ended(error.exit_status, str(error), None)
        return True
