"""Which requests are still to send: row × model, minus what is answered. Touches: files (reads).

A request is known by the bytes it sends: its key is a 128-bit hash of the address and the exact
body. Where it is known that a run asked for the present rows, its position says the same for a byte
a row; where it is not, keys are compared, and an answer follows its row to a new position.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec
import numpy as np

from batcher.errors import JobError
from batcher.job.job import Job
from batcher.plan.previous import AnswerCache
from batcher.read.inputs import Inputs
from batcher.read.prompts import Prompter
from batcher.records import Outcome, Prompt, Request, Row
from batcher.send.answers import Expected
from batcher.write.index import OUTCOMES
from batcher.write.latest import LatestResults

__all__ = [
    "Part",
    "PendingRow",
    "Plan",
    "Requests",
    "Settings",
    "Stopped",
    "expected_of",
    "settings_of",
    "settled",
]

_BATCH_ROWS = 200
_BATCH_BYTES = 4 << 20
_CHAT = "/chat/completions"

Settings = Mapping[str, Any]
"""All that shapes a request besides its row and model, in the words of the flags."""

Stopped = Mapping[tuple[int, str, int], tuple[int, int, int]]
"""Where answers stand (segment, offset, length) that are still to be sent back, by row, model, sample."""


def expected_of(settings: Settings) -> Expected | None:
    """What answers must be; None when that is free.

    Raises:
        JobError: The schema is none.
    """
    schema, labels = settings.get("--schema"), settings.get("--labels")
    if schema is None and not labels:
        return None
    try:
        return Expected(schema, labels or ())
    except (ValueError, TypeError) as error:
        raise JobError(f"--schema: it is no JSON Schema: {str(error).splitlines()[0]}.") from None


def settings_of(job: Job, url: str) -> dict[str, object]:
    """The settings of a job whose requests go to this address."""
    prompt, system = job.templates
    schema, labels = job.expected
    expected: dict[str, object] = {} if schema is None else {"--schema": schema}
    if labels:
        expected["--labels"] = list(labels)
    return {
        "--base-url": url.removesuffix(_CHAT),
        "--prompt": prompt,
        "--system": system,
        "--param": job.body_params,
        "--model": "asked" if job.models else "the row's own",
        **expected,
    }


class PendingRow(NamedTuple):
    """One row's prompt and the slots it is still to be sent to.

    Attributes:
        stale: How many answers were found to the bytes that other settings sent.
    """

    prompt: Prompt
    slots: tuple[int, ...]
    stale: int = 0


class _Shape:
    """Rows to requests under one set of settings."""

    def __init__(self, settings: Settings) -> None:
        base = str(settings["--base-url"])
        self._salt = (base if base.endswith(":") else base + _CHAT).encode() + b"\n"
        params = dict(settings["--param"])
        if (expected := expected_of(settings)) is not None:
            params["response_format"] = expected.response_format
        self.prompter = Prompter(
            settings["--prompt"],
            settings["--system"],
            params,
            own_model=settings["--model"] != "asked",
        )
        self._heads: dict[str, bytes] = {}

    def request(self, prompt: Prompt, model: str) -> Request:
        """The exact request of a prompt for a model."""
        head = self._heads.get(model)
        if head is None:
            head = self._heads[model] = b'{"model":' + msgspec.json.encode(model) + b","
        body = head + prompt.fields
        key = blake2b(self._salt + body, digest_size=16).hexdigest()
        return Request(
            prompt.row,
            prompt.custom_id,
            model,
            prompt.sample,
            key,
            body,
            prompt.max_tokens,
            prompt.image_bytes,
        )


class Requests:
    """What an engine needs to know of the requests that it sends.

    A slot is a model and a sample of it; those of a model stand together.

    Attributes:
        samples: Slots of each model.
        slots: Model ID by slot; "" when rows name their own model.
        expected: What answers must be; None when that is free.
        request: The exact request of a prompt for a model.
        stopped: Where answers stand that are still to be sent back, by row, model and sample.
    """

    def __init__(self, job: Job, settings: Settings, stopped: Stopped | None = None) -> None:
        self.samples = job.samples
        self.slots = tuple(model for model in job.models or ("",) for _ in range(job.samples))
        self.stopped = dict(stopped or {})
        self._shape = _Shape(settings)
        self.expected = expected_of(settings)
        self.request = self._shape.request

    def pending(self, row: int) -> tuple[int, ...]:
        """Slots to which the row at this position is still to be sent."""
        raise NotImplementedError  # Of a whole run and of a part it is known in different ways.

    def batches(self, start: int = 0, place: int | None = None) -> Iterator[list[PendingRow]]:
        """Rows that are still to be sent, from position `start` on, in small batches.

        Args:
            start: First position.
            place: Only what is for the model at this place.
        """
        raise NotImplementedError  # Of a whole run and of a part it is known in different ways.

    def sampled(self, prompt: Prompt, slot: int) -> Prompt:
        """The prompt for the sample of a slot."""
        sample = slot % self.samples
        return prompt if not sample else msgspec.structs.replace(prompt, sample=sample)


class Part(Requests):
    """Some of a plan's requests, for an engine in another process.

    Args:
        job: What was asked.
        settings: As of the plan.
        todos: In the order of their positions.
        stopped: As of the plan.
    """

    def __init__(
        self, job: Job, settings: Settings, todos: Sequence[PendingRow], stopped: Stopped
    ) -> None:
        super().__init__(job, settings, stopped)
        self._todos = todos
        self._slots = {todo.prompt.row: todo.slots for todo in todos}

    def pending(self, row: int) -> tuple[int, ...]:
        """Slots to which the row at this position is still to be sent."""
        return self._slots[row]

    def batches(self, start: int = 0, place: int | None = None) -> Iterator[list[PendingRow]]:
        """As the plan's."""
        left = [todo for todo in self._todos if todo.prompt.row >= start]
        if place is not None:
            of = [
                (todo, tuple(s for s in todo.slots if s // self.samples == place)) for todo in left
            ]
            left = [todo._replace(slots=slots) for todo, slots in of if slots]
        for at in range(0, len(left), _BATCH_ROWS):
            yield left[at : at + _BATCH_ROWS]


class Plan(Requests):
    """The requests of a job.

    Args:
        job: What was asked.
        settings: As `settings_of` gives them.
        inputs: The rows.
        winners: What is answered at which position, by slot; None for nothing.
        earlier: Answers to be found by key while the batches are read; None for none.
        accepts: Other settings, answers to whose requests are as good.
        stopped: Where answers stand that are still to be sent back, by row, model and sample.

    Attributes:
        prompter: Makes prompts of rows.
        columns: Those of the input that are needed; None for all.
    """

    def __init__(
        self,
        job: Job,
        settings: Settings,
        inputs: Inputs,
        winners: LatestResults | None = None,
        earlier: AnswerCache | None = None,
        accepts: Sequence[Settings] = (),
        stopped: Stopped | None = None,
    ) -> None:
        super().__init__(job, settings, stopped)
        self._route = job.route
        self._inputs = inputs
        self._earlier = earlier
        self._others = [_Shape(other) for other in accepts] if earlier is not None else []
        self.prompter = self._shape.prompter
        self.columns: frozenset[str] | None = None
        if job.output != "-":
            needed = (shape.prompter.columns for shape in (self._shape, *self._others))
            self.columns = frozenset().union(*needed)
        self._resend = job.resendable
        self._ends = [False, *(outcome not in self._resend for outcome in OUTCOMES)]
        answered = [
            np.empty(0, np.uint8) if winners is None else winners.outcomes(slot)
            for slot in range(len(self.slots))
        ]
        self._answered = [states.tobytes() for states in answered]
        self._settled = settled(answered, np.array(self._ends), job.route, job.samples).tobytes()

    def settled(self, slot: int) -> dict[Outcome, int]:
        """How many rows of a slot were ended by earlier runs, by outcome."""
        counts = np.bincount(np.frombuffer(self._answered[slot], np.uint8), minlength=1)
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
        if row < len(self._settled) and self._settled[row]:
            return ()
        states = [done[row] if row < len(done) else 0 for done in self._answered]
        left = tuple(slot for slot, state in enumerate(states) if not self._ends[state])
        if self._route == "each" or self.samples == 1:
            return left
        # Of a sample that one model has answered the others are left out.
        whole = {
            sample
            for sample in range(self.samples)
            if self._ended([states[slot] for slot in self._of_sample(sample)])
        }
        return tuple(slot for slot in left if slot % self.samples not in whole)

    def _of_sample(self, sample: int) -> range:
        return range(sample, len(self.slots), self.samples)

    def _ended(self, states: Sequence[int]) -> bool:
        """Whether a sample of a row needs no model any more, where one answer is enough."""
        if self._route == "split":
            return any(self._ends[state] for state in states)
        return any(state == 1 for state in states)

    def batches(self, start: int = 0, place: int | None = None) -> Iterator[list[PendingRow]]:
        """As in `Requests`."""
        batch: list[PendingRow] = []
        size = 0
        for row in self._inputs.rows(self.columns, start, self._settled):
            slots = self.pending(row.position)
            if place is not None:
                slots = tuple(slot for slot in slots if slot // self.samples == place)
            if not slots:
                continue
            todo = self._todo(row, slots)
            batch.append(todo)
            size += len(todo.prompt.fields)
            if len(batch) >= _BATCH_ROWS or size >= _BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def prompt(self, row: Row) -> Prompt:
        """The Prompt of a row, with its columns where rows are written as they finish."""
        prompt = self.prompter.prompt(row)
        if self.columns is None and row.columns is not None:
            prompt = msgspec.structs.replace(prompt, columns=row.columns)
        return prompt

    def _todo(self, row: Row, slots: tuple[int, ...]) -> PendingRow:
        prompt = self.prompt(row)
        if self._earlier is None:
            return PendingRow(prompt, slots)
        left, stale = [], 0
        ended: set[int] = set()  # Samples that need no other model.
        for slot in slots:
            found = None
            if prompt.error is None:
                asked = self.sampled(prompt, slot)
                found = self._earlier.take(self.request(asked, self._model(prompt, slot)))
            if found is None and (found := self._accepted(row, slot)) is not None:
                stale += 1
            if found is None or found in self._resend:
                left.append(slot)
            elif self._route == "split" or (self._route == "fallback" and found is Outcome.OK):
                ended.add(slot % self.samples)
        left = [slot for slot in left if slot % self.samples not in ended]
        return PendingRow(prompt, tuple(left), stale)

    def _accepted(self, row: Row, slot: int) -> Outcome | None:
        """An answer to what other settings made of this row."""
        for shape in self._others:
            prompt = shape.prompter.prompt(row)
            if prompt.error is None:
                asked = self.sampled(prompt, slot)
                request = shape.request(asked, self._model(prompt, slot))
                found = None if self._earlier is None else self._earlier.take(request)
                if found is not None:
                    return found
        return None

    def _model(self, prompt: Prompt, slot: int) -> str:
        return self.slots[slot] or prompt.model or ""


def settled(answered: Sequence[Any], ends: Any, route: str, samples: int, least: int = 0) -> Any:
    """By position, whether no slot of the row is still to be sent.

    Args:
        answered: For each slot the numbers of outcomes by position.
        ends: By number of an outcome, whether it ends a slot.
        route: Of the job.
        samples: Of each row.
        least: How many rows there are at least.
    """
    rows = max((len(states) for states in answered), default=0)
    rows = max(rows, least)
    settled = np.ones(rows, np.bool_)
    for sample in range(samples):
        every, some, ok = (
            np.ones(rows, np.bool_),
            np.zeros(rows, np.bool_),
            np.zeros(rows, np.bool_),
        )
        for states in answered[sample::samples]:
            states = np.pad(states, (0, rows - len(states)))
            every &= ends[states]
            some |= ends[states]
            ok |= states == 1
        settled &= every if route == "each" else some if route == "split" else every | ok
    return settled
