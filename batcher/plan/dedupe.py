"""Requests that equal one before them: that one is sent, and its answer given to all. Touches: files (reads).

Which requests were asked is kept as 64 bits each: 12 bytes a request of this run, 8 for one that
earlier runs answered. Two different requests of ten million share 64 bits once in 400,000 such
runs; then none is given the other's answer, as the whole key is compared when answers are copied,
and the one without is sent when the output is found to lack it.
"""

from __future__ import annotations

import threading
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np

from batcher.job.job import Job
from batcher.plan.requests import PendingRow, Plan
from batcher.read.inputs import Inputs
from batcher.records import Outcome, Prompt, Request, Result
from batcher.write import index
from batcher.write.entries import load_all
from batcher.write.lines import LineReader, segments
from batcher.write.moved import Moved

__all__ = ["Deduplicator"]

_BATCH = 200
_MASK = (1 << 64) - 1
_STRIDE = 0x9E3779B97F4A7C15  # Odd, so that samples of one request have marks of their own.


class Deduplicator:
    """Which requests wait for the answer of an equal one; `fresh` is asked once for each.

    Args:
        job: What was asked.
        plan: Of it.
        folder: The run folder; what stands in it now was answered before.
        rows: How many rows there are.

    Attributes:
        waiting: How many requests wait, by model; under "" where any model may answer.
    """

    def __init__(self, job: Job, plan: Plan, folder: Path, rows: int) -> None:
        self._all = job.dedupe is True
        self._one = job.route != "each"
        self._models = job.models
        self._plan = plan
        self._folder = folder
        self._before = max((number for number, _path in segments(folder)), default=0)
        ends = {Outcome.OK} if job.route == "fallback" else {*Outcome} - job.resendable
        self._ends = np.array([outcome in ends for outcome in index.OUTCOMES])
        self._known: Any = None
        self._lock = threading.Lock()
        # Room for half as many again; pages that are not touched take no memory.
        self._most = rows * len(plan.slots)
        self._seen = np.zeros(self._most * 3 // 2 + 1, np.uint64).data
        self._used = 0
        self._rows: dict[int, bytearray] = {}
        self._marks = array("Q")
        self.waiting: Counter[str] = Counter()

    def look(self, prompt: Prompt) -> None:
        """Reads what earlier runs answered, once a prompt needs it; from a thread, as it takes time."""
        if self._known is None and self._counts(prompt):
            with self._lock:
                if self._known is None:
                    self._known = self._answered()

    def fresh(self, prompt: Prompt, slot: int) -> bool:
        """Whether this request is to be sent; else it waits for the answer of an equal one.

        Where one model's answer is enough for a row, the requests of all of them count.
        """
        if not self._counts(prompt):
            return True
        self.look(prompt)
        marks = [_mark(request) for request in self._requests(prompt, slot)]
        if not any(map(self._is_known, marks)) and not self._enter(marks[0]):
            return True
        self._marks.extend(marks)
        place = prompt.sample if self._one else slot
        rows = self._rows.setdefault(place, bytearray())
        if prompt.row >= len(rows):
            rows.extend(bytes(max(prompt.row + 1 - len(rows), len(rows))))
        rows[prompt.row] = 1
        self.waiting["" if self._one else self._plan.slots[slot] or prompt.model or ""] += 1
        return False

    def among(self, todo: PendingRow) -> tuple[int, ...]:
        """The slots of a row that are to be sent; the others wait for the answer of an equal one."""
        prompt, samples = todo.prompt, self._plan.samples
        if not self._one:
            return tuple(s for s in todo.slots if self.fresh(self._plan.sampled(prompt, s), s))
        first = {slot % samples: slot for slot in reversed(todo.slots)}
        sent = {n for n, s in first.items() if self.fresh(self._plan.sampled(prompt, s), s)}
        return tuple(slot for slot in todo.slots if slot % samples in sent)

    def copies(self, inputs: Inputs) -> Iterator[list[tuple[Prompt, list[Result]]]]:
        """What waits, with the answer of its equal, in small batches; not what has none yet.

        Where one model's answer is enough, a row gets what each of them answered its equal.
        """
        marks = np.unique(np.frombuffer(self._marks, np.uint64))
        batch: list[tuple[Prompt, list[Result]]] = []
        with _Answers(self._folder, marks) as answers:
            for row in inputs.rows(self._plan.columns, 0, self._settled()):
                prompt = self._plan.prompt(row)
                for slot, rows in self._rows.items():
                    if row.position >= len(rows) or not rows[row.position]:
                        continue
                    asked = self._plan.sampled(prompt, slot)
                    requests = self._requests(asked, slot)
                    found = [(answers.of(request), request) for request in requests]
                    if results := [_copied(of, request) for of, request in found if of]:
                        batch.append((asked, results))
                if len(batch) >= _BATCH:
                    yield batch
                    batch = []
        if batch:
            yield batch

    def _counts(self, prompt: Prompt) -> bool:
        return (self._all or prompt.exact) and prompt.error is None

    def _requests(self, prompt: Prompt, slot: int) -> list[Request]:
        models = self._models if self._one else (self._plan.slots[slot] or prompt.model or "",)
        return [self._plan.request(prompt, model) for model in models]

    def _answered(self) -> Any:
        """Marks of what earlier runs ended, sorted."""
        before = (
            index.last_words(entries)
            for number, entries in _all_entries(self._folder)
            if number <= self._before
        )
        found = [_marks_of(entries[self._ends[entries["outcome"]]]) for entries in before]
        return np.unique(np.concatenate([np.empty(0, np.uint64), *found]))

    def _is_known(self, mark: int) -> bool:
        known = self._known
        at = int(known.searchsorted(np.uint64(mark)))
        return at < len(known) and int(known[at]) == mark

    def _enter(self, mark: int) -> bool:
        """Whether a mark was in the table already; it is now, while there is room."""
        seen = self._seen
        at = mark % len(seen)
        while there := seen[at]:  # Linear probing.
            if there == mark:
                return True
            at = at + 1 if at + 1 < len(seen) else 0
        if self._used < self._most:
            self._used += 1
            self._seen[at] = mark
        return False

    def _settled(self) -> bytes:
        """By position, zero where something waits."""
        settled = np.ones(max(map(len, self._rows.values()), default=0), np.uint8)
        for rows in self._rows.values():
            settled[: len(rows)] &= np.frombuffer(rows, np.uint8) == 0
        return settled.tobytes()


class _Answers:
    """The best answer to each of some requests, in the journal as it is now.

    Args:
        marks: Of these requests, sorted.
    """

    def __init__(self, folder: Path, marks: Any) -> None:
        self._reader = LineReader(folder)
        every = (index.last_words(entries) for _number, entries in _all_entries(folder))
        found = [entries[np.isin(_marks_of(entries), marks)] for entries in every]
        entries = np.concatenate([np.empty(0, index.ENTRY), *found])
        names = _names(entries)
        # Of equal names the best first, of those the latest.
        order = np.lexsort((-np.arange(len(entries)), -index.RANK[entries["outcome"]], names))
        self._names, self._entries = names[order], entries[order]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    def of(self, request: Request) -> Result | None:
        """The answer to a request of these bytes; None when there is none."""
        name = bytes.fromhex(request.key) + request.sample.to_bytes(2, "little")
        at = int(self._names.searchsorted(name))
        # An array of texts forgets zero bytes at their ends, and compares as if they were there.
        if at == len(self._names) or self._names[at] != name.rstrip(b"\0"):
            return None
        entry = self._entries[at]
        place = int(entry["segment"]), int(entry["offset"]), int(entry["length"])
        return self._reader.result(*place, request.key.encode())


def _all_entries(folder: Path) -> Iterator[tuple[int, Any]]:
    """Each segment's number and entries; those that moved to another sample of a request count there too."""
    moved = Moved.load(folder)
    for segment in load_all(folder):
        yield segment.number, np.concatenate([segment.entries, moved.of(segment)[1]])


def _copied(found: Result, request: Request) -> Result:
    """The answer as that of another request: nothing was sent for it, and nothing paid.

    Where no price is known a cost of 0 would make a sum that looks as if one were.
    """
    return msgspec.structs.replace(
        found,
        row=request.row,
        custom_id=request.custom_id,
        sample=request.sample,  # An answer that moved to another sample carries its old one.
        prompt_tokens=0,
        completion_tokens=0,
        total_tokens=0,
        cached_tokens=0,
        cache_write_tokens=0,
        reasoning_tokens=0,
        cost_usd=None if found.cost_usd is None else 0.0,
        latency_ms=None,
        ttft_ms=None,
        attempts=0,
        waited_ms=0,
        cause="",
        tries=None,
        copied=True,
    )


def _mark(request: Request) -> int:
    """What a request is known by in memory."""
    high = int.from_bytes(bytes.fromhex(request.key[:16]), "little")
    return (high + request.sample * _STRIDE) & _MASK


def _marks_of(entries: Any) -> Any:
    """The marks of journal entries."""
    return entries["key_high"] + entries["sample"].astype(np.uint64) * np.uint64(_STRIDE)


def _names(entries: Any) -> Any:
    """Key and sample of journal entries, as 18 bytes each."""
    packed = np.empty(len(entries), [("high", "<u8"), ("low", "<u8"), ("sample", "<u2")])
    packed["high"], packed["low"] = entries["key_high"], entries["key_low"]
    packed["sample"] = entries["sample"]
    return packed.view("S18")
