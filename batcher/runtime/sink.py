"""Where results go: the one way out of an engine. Touches: nothing itself.

A new consumer of results is another `Sink`, or one more step in `ResultSink.put`; no engine changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from batcher.live.summary import Summary
from batcher.records import Attempt, Outcome, Prompt, Result
from batcher.write.journal import Journal

__all__ = ["Emit", "ObservedSink", "ResultSink", "Sink"]

Emit = Callable[[Prompt, Result], Awaitable[None]]
"""Receives the last result of a row's sample, with the prompt that it answers."""

_POLL_SECONDS = 0.02


class Sink(Protocol):
    """Takes every result of an engine."""

    async def put(self, result: Result, prompt: Prompt, *, last: bool = True) -> None:
        """Takes a result; returns once it can take another.

        Args:
            result: How a request ended.
            prompt: What was asked.
            last: Whether no other model will be asked for this sample of the row.
        """

    def put_pending(self, model: str, attempts: Sequence[Attempt]) -> None:
        """Takes the attempts at a request that ended without a result: it is sent again by the next run."""

    async def room(self) -> None:
        """Waits until it can take another result."""


class ResultSink:
    """Writes a result to the journal, then counts it, then emits it.

    Args:
        summary: Counts results and attempts.
        journal: Stores results; None where another process writes them.
        emit: Awaited with the last result of each sample; what it raises ends the run.

    Attributes:
        all_ok: Whether every last result so far is `ok`.
    """

    def __init__(
        self, summary: Summary, journal: Journal | None = None, emit: Emit | None = None
    ) -> None:
        self._summary = summary
        self._journal = journal
        self._emit = emit
        self.all_ok = True

    async def put(self, result: Result, prompt: Prompt, *, last: bool = True) -> None:
        """Takes a result. What was paid for is in the journal before anything else is done with it."""
        if self._journal is not None:
            self._journal.put(result)
        self._summary.add(result)
        if last:
            self.all_ok &= result.status is Outcome.OK
            if self._emit is not None:
                await self._emit(prompt, result)
        if self._journal is not None and self._journal.full:
            await self.room()

    def put_pending(self, model: str, attempts: Sequence[Attempt]) -> None:
        """Counts the attempts."""
        self._summary.add_pending(model, attempts)

    async def room(self) -> None:
        """Waits while the disk is slower than the answers."""
        # A thread empties the journal: to wake this loop for each batch would cost more than to look.
        while self._journal is not None and self._journal.full:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)


class ObservedSink:
    """Passes everything to another sink, and then each result to an observer.

    Args:
        sink: The other sink.
        observe: Called with each result once that sink has taken it.
    """

    def __init__(self, sink: Sink, observe: Callable[[Result], None]) -> None:
        self._sink = sink
        self._observe = observe

    async def put(self, result: Result, prompt: Prompt, *, last: bool = True) -> None:
        """Takes a result."""
        await self._sink.put(result, prompt, last=last)
        self._observe(result)

    def put_pending(self, model: str, attempts: Sequence[Attempt]) -> None:
        """Takes the attempts at a request that ended without a result."""
        self._sink.put_pending(model, attempts)

    async def room(self) -> None:
        """Waits until the other sink can take another result."""
        await self._sink.room()
