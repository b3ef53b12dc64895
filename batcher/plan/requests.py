"""The requests that are still to be sent: row × slot, minus what is answered. Touches: files (reads).

Where a run is known to have read the present rows, the position of a row tells whether it is answered. Where not,
`answer_cache` compares keys, and an answer follows its row to a new position.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from batcher.job.job import Job
from batcher.plan.settings import RequestBuilder, Settings, expected_of
from batcher.read.inputs import Inputs
from batcher.records import Outcome, Prompt, Row
from batcher.write.index import OUTCOMES
from batcher.write.latest import LatestResults
from batcher.write.slots import Slots

__all__ = ["Part", "PendingRow", "Plan", "Requests", "Stopped"]

_BATCH_ROWS = 200
_BATCH_BYTES = 4 << 20
_OK_STATE = 1 + OUTCOMES.index(Outcome.OK)

Stopped = Mapping[tuple[int, str, int], tuple[int, int, int]]
"""(segment, offset, length) of answers that a stopped run was about to have repaired, by row, model and sample."""


class PendingRow(NamedTuple):
    """A row's prompt, and the slots that it is still to be sent to."""

    prompt: Prompt
    slots: tuple[int, ...]


class Requests(ABC):
    """The requests that an engine sends: those of a plan, or of a part of it.

    Attributes:
        slots: The slots of each row.
        expected: What answers must be; None when anything is fine.
        stopped: Answers that are still to be repaired.
    """

    def __init__(self, job: Job, settings: Settings, stopped: Stopped | None = None) -> None:
        self.slots = Slots(job.models, job.samples, job.route)
        self.expected = expected_of(settings)
        self.stopped = dict(stopped or {})
        self._builder = RequestBuilder(settings)
        self.request, self.keep_key = self._builder.request, self._builder.keep_key

    @abstractmethod
    def pending(self, row: int) -> tuple[int, ...]:
        """Slots to which the row at this position is still to be sent."""

    @abstractmethod
    def batches(self, start: int = 0, place: int | None = None) -> Iterator[list[PendingRow]]:
        """Yields rows that are still to be sent, from position `start` on, in small batches.

        Args:
            start: First position.
            place: Only the slots of the model at this place.
        """

    def sampled(self, prompt: Prompt, slot: int) -> Prompt:
        """The prompt for the sample of a slot."""
        sample = self.slots.sample(slot)
        return prompt if not sample else msgspec.structs.replace(prompt, sample=sample)


class Part(Requests):
    """Some of a plan's requests, for an engine in another process.

    Args:
        job: The job.
        settings: The settings of the plan.
        rows: In the order of their positions.
        stopped: Answers that are still to be repaired.
    """

    def __init__(
        self, job: Job, settings: Settings, rows: Sequence[PendingRow], stopped: Stopped
    ) -> None:
        super().__init__(job, settings, stopped)
        self._rows = rows
        self._slots = {row.prompt.row: row.slots for row in rows}

    def pending(self, row: int) -> tuple[int, ...]:
        """Slots to which the row at this position is still to be sent."""
        return self._slots[row]

    def batches(self, start: int = 0, place: int | None = None) -> Iterator[list[PendingRow]]:
        """As in `Requests`."""
        left = [row for row in self._rows if row.prompt.row >= start]
        if place is not None:
            rows = (PendingRow(prompt, self.slots.only(slots, place)) for prompt, slots in left)
            left = [row for row in rows if row.slots]
        for at in range(0, len(left), _BATCH_ROWS):
            yield left[at : at + _BATCH_ROWS]


class Plan(Requests):
    """The requests of a job.

    Args:
        job: The job.
        settings: As `settings_of` gives them.
        inputs: The rows.
        latest: What is answered at which position; None for nothing.
        stopped: Answers that are still to be repaired.

    Attributes:
        prompter: Makes prompts of rows.
        columns: The input columns that are needed; None for all.
    """

    def __init__(
        self,
        job: Job,
        settings: Settings,
        inputs: Inputs,
        latest: LatestResults | None = None,
        stopped: Stopped | None = None,
    ) -> None:
        super().__init__(job, settings, stopped)
        self._inputs = inputs
        self.prompter = self._builder.prompter
        # Rows that are written as they finish have all their columns.
        self.columns = None if job.output == "-" else self.prompter.columns
        self._ends = [False, *(outcome not in job.resendable for outcome in OUTCOMES)]
        every = tuple(range(len(self.slots)))
        states = [np.empty(0, np.uint8) if latest is None else latest.outcomes(s) for s in every]
        self._every = every
        self._states = [by_row.tobytes() for by_row in states]
        self._settled = self.slots.settled(states, np.array(self._ends)).tobytes()

    def settled(self, slot: int) -> dict[Outcome, int]:
        """How many rows of a slot earlier runs ended, by outcome."""
        counts = np.bincount(np.frombuffer(self._states[slot], np.uint8), minlength=1)
        return {
            OUTCOMES[state - 1]: n
            for state, n in enumerate(counts.tolist())
            if n and self._ends[state]
        }

    def all_settled(self, rows: int) -> bool:
        """Whether nothing of the first rows is still to be sent."""
        return len(self._settled) >= rows and self._settled.find(b"\0", 0, rows) < 0

    def pending(self, row: int) -> tuple[int, ...]:
        """Slots to which the row at this position is still to be sent."""
        if row >= len(self._settled):
            return self._every
        if self._settled[row]:
            return ()
        states = [by_row[row] if row < len(by_row) else 0 for by_row in self._states]
        return self.slots.still_to_send(
            self._every,
            ended=[slot for slot, state in enumerate(states) if self._ends[state]],
            ok=[slot for slot, state in enumerate(states) if state == _OK_STATE],
        )

    def rows(
        self,
        start: int = 0,
        place: int | None = None,
        *,
        columns: frozenset[str] | None,
    ) -> Iterator[tuple[Row, tuple[int, ...]]]:
        """Yields the rows and slots that are still to be sent; `start` and `place` are as in `batches`."""
        for row in self._inputs.rows(columns, start, self._settled):
            slots = self.pending(row.position)
            if place is not None:
                slots = self.slots.only(slots, place)
            if slots:
                yield row, slots

    def batches(self, start: int = 0, place: int | None = None) -> Iterator[list[PendingRow]]:
        """As in `Requests`."""
        batch: list[PendingRow] = []
        size = 0
        for row, slots in self.rows(start, place, columns=self.columns):
            prompt = self.prompt(row)
            batch.append(PendingRow(prompt, slots))
            size += len(prompt.fields)
            if len(batch) >= _BATCH_ROWS or size >= _BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def prompt(self, row: Row) -> Prompt:
        """The prompt of a row, with its columns where rows are written as they finish."""
        prompt = self.prompter.prompt(row)
        if self.columns is None and row.columns is not None:
            prompt = msgspec.structs.replace(prompt, columns=row.columns)
        return prompt
