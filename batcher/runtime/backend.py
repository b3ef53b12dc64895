"""The port between a run and what sends its requests. Touches: nothing.

Implementations: `runtime.local` (an engine in this process), `cluster.driver` (a cluster). The suite
`tests/component/test_port_backend.py` runs over each of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from batcher.job.endpoint import Endpoint
from batcher.job.job import Job
from batcher.live.summary import Summary
from batcher.money.account import Account
from batcher.money.prices import Prices
from batcher.plan.dedupe import Deduplicator
from batcher.plan.requests import Plan
from batcher.runtime.channel import ChannelStatus
from batcher.runtime.sink import Emit
from batcher.send.dialect import RequestDialect

__all__ = ["Backend", "Ended", "OpenBackend", "Work"]


@dataclass(frozen=True)
class Work:
    """The requests that a backend sends, and where their results go.

    A backend changes two of these: it adds every result to `summary`, and spends from `account`.

    Attributes:
        plan: Which requests are still to send.
        folder: The run folder; results go into its journal.
        run: ID of the run; every line of the journal names it.
        rows: Number of input rows.
        account: The budget; None for no bound.
        dedupe: Holds back requests that equal another one; None to send each.
        dialects: How models took requests in earlier runs, by model.
        emit: Awaited with each result and its prompt.
    """

    job: Job
    endpoint: Endpoint
    plan: Plan
    folder: Path
    run: str
    rows: int
    summary: Summary
    prices: Prices
    account: Account | None = None
    dedupe: Deduplicator | None = None
    dialects: Mapping[str, RequestDialect] = field(default_factory=dict)
    emit: Emit | None = None


@dataclass(frozen=True)
class Ended:
    """How sending ended.

    Attributes:
        stopped: Why requests are left; None when all were sent, or the user stopped the run.
        given_up: Which models were given up, and why, in sentences.
        all_ok: Whether every row that ended is `ok`.
        dialects: How models take requests, as known now.
        rescued: File that holds results whose segment somebody removed.
    """

    stopped: Exception | None = None
    given_up: str = ""
    all_ok: bool = True
    dialects: Mapping[str, RequestDialect] = field(default_factory=dict)
    rescued: Path | None = None


class Backend(ABC):
    """Sends requests and writes their results.

    One backend serves one run, which may call `run` several times, one after the other.
    """

    many_writers: ClassVar[bool] = False
    """Whether several processes write segments, so that numbers between theirs stay free."""

    @abstractmethod
    async def run(self, work: Work) -> Ended:
        """Sends until every request has a result, or the run is stopped.

        All results are in the journal, and what was spent is recorded, when it returns or raises.

        Raises:
            OutputError: The journal cannot be written.
        """

    @abstractmethod
    def stop(self, why: Exception | None = None) -> None:
        """Sends nothing new; requests in flight are waited for and their results written.

        Args:
            why: Becomes `Ended.stopped`; the first reason counts.
        """

    @abstractmethod
    def snapshot(self) -> Mapping[str, ChannelStatus]:
        """The present state of each model."""

    @property
    def in_flight(self) -> int:
        """Requests in flight. A run asks 50 times a second; override it where `snapshot` is dear."""
        return sum(status.in_flight for status in self.snapshot().values())

    def journal_removed(self) -> bool:
        """Whether somebody removed a file that is being written; asked from a thread."""
        return False


OpenBackend = Callable[[Job, Path, Callable[[str], None]], AbstractAsyncContextManager[Backend]]
"""Opens the backend that a job names, for its run folder; the callable gets sentences for the user."""
