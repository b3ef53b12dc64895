"""Equal requests: the first is sent, and its answer is copied to the others. Touches: files (reads).

A request is remembered by a hash of 64 bits: 12 bytes for a request of this run, 8 for one that earlier runs
answered. Of ten million different requests two share a hash once in 400,000 runs. Then neither gets the other's
answer, since copying compares whole keys; the one without an answer is sent once the output lacks it.
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
from batcher.records import TOKEN_FIELDS, Outcome, Prompt, Request, Result
from batcher.write import index
from batcher.write.entries import load_all
from batcher.write.lines import LineReader, segments
from batcher.write.moved import Moved

__all__ = ["Deduplicator"]

_BATCH = 200
_MASK = (1 << 64) - 1
_STRIDE = 0x9E3779B97F4A7C15  # Odd, so that each sample of a request has a hash of its own.
_NO_TOKENS = dict.fromkeys(TOKEN_FIELDS, 0)


class Deduplicator:
    """Finds equal requests; `fresh` is called once for each request, in any order.

    Args:
        job: The job.
        plan: Its plan.
        folder: The run folder; what is in it now was answered by earlier runs.
        rows: How many rows there are.

    Attributes:
        waiting: How many requests wait for an equal one, by model; under "" where any model may answer.
    """

    def __init__(self, job: Job, plan: Plan, folder: Path, rows: int) -> None:
        self._all = job.dedupe is True
        self._slots = plan.slots
        self._plan = plan
        self._folder = folder
        self._before = max((number for number, _path in segments(folder)), default=0)
        ends = {Outcome.OK} if job.route == "fallback" else {*Outcome} - job.resendable
        self._ends = np.array([outcome in ends for outcome in index.OUTCOMES])
        self._known: Any = None
        self._lock = threading.Lock()
        # A third stays free, so that probing is short; pages that are not touched take no memory.
        self._capacity = rows * len(plan.slots)
        self._seen = np.zeros(self._capacity * 3 // 2 + 1, np.uint64).data
        self._used = 0
        self._waiting_rows: dict[
            int, bytearray
        ] = {}  # By slot; where any model may answer, the first.
        self._waiting_hashes = array("Q")
        self.waiting: Counter[str] = Counter()

    def look(self, prompt: Prompt) -> None:
        """Reads what earlier runs answered, once a prompt needs it. Takes time, so call it from a thread."""
        if self._known is None and self._counts(prompt):
            with self._lock:
                if self._known is None:
                    self._known = self._answered()

    def fresh(self, prompt: Prompt, slot: int) -> bool:
        """Whether the engine has to send this request; else it waits for the answer of an equal one.

        Where one model's answer is enough, it is equal if a request to any of the models is.
        """
        if not self._counts(prompt):
            return True
        requests = self._requests(prompt, slot)
        if not self._is_fresh(prompt, slot, requests):
            return False
        if len(requests) == 1:
            self._plan.keep_key(requests[0])  # The engine is about to make it again.
        return True

    def _is_fresh(self, prompt: Prompt, slot: int, requests: list[Request]) -> bool:
        self.look(prompt)
        hashes = [*map(_hash, requests)]
        if not any(map(self._is_known, hashes)) and not self._enter(hashes[0]):
            return True
        model = self._slots.model(slot, prompt.model)
        if self._slots.one:
            model, slot = "", self._slots.slot(0, prompt.sample)
        self._waiting_hashes.extend(hashes)
        rows = self._waiting_rows.setdefault(slot, bytearray())
        if prompt.row >= len(rows):
            rows.extend(bytes(max(prompt.row + 1 - len(rows), len(rows))))
        rows[prompt.row] = 1
        self.waiting[model] += 1
        return False

    def among(self, row: PendingRow) -> tuple[int, ...]:
        """The slots of a row to send; the others wait for the answer of an equal request."""
        prompt, slots = row.prompt, self._slots.sent_first(row.slots)
        sent = slots
        if self._counts(prompt):
            sampled = {slot: self._plan.sampled(prompt, slot) for slot in slots}
            sent = tuple(
                slot
                for slot, of_slot in sampled.items()
                if self._is_fresh(of_slot, slot, self._requests(of_slot, slot))
            )
        if not self._slots.one:
            return sent
        return self._slots.with_samples(row.slots, {*map(self._slots.sample, sent)})

    def copies(self, inputs: Inputs) -> Iterator[list[tuple[Prompt, list[Result]]]]:
        """Yields what waits with the answer to its equal, in small batches; not what has none yet.

        Where one model's answer is enough, a row gets what each of them answered to its equal.
        """
        hashes = np.unique(np.frombuffer(self._waiting_hashes, np.uint64))
        batch: list[tuple[Prompt, list[Result]]] = []
        with _Answers(self._folder, hashes) as answers:
            for row in inputs.rows(self._plan.columns, 0, self._settled()):
                prompt = self._plan.prompt(row)
                for slot, rows in self._waiting_rows.items():
                    if row.position >= len(rows) or not rows[row.position]:
                        continue
                    sampled = self._plan.sampled(prompt, slot)
                    requests = self._requests(sampled, slot)
                    found = [(answers.of(request), request) for request in requests]
                    if results := [
                        _copied(answer, request) for answer, request in found if answer
                    ]:
                        batch.append((sampled, results))
                if len(batch) >= _BATCH:
                    yield batch
                    batch = []
        if batch:
            yield batch

    def _counts(self, prompt: Prompt) -> bool:
        return (self._all or prompt.exact) and prompt.error is None

    def _requests(self, prompt: Prompt, slot: int) -> list[Request]:
        own = self._slots.model(slot, prompt.model)
        models = self._slots.models if self._slots.one else (own,)
        return [self._plan.request(prompt, model) for model in models]

    def _answered(self) -> Any:
        """Sorted hashes of what earlier runs ended."""
        before = (
            index.last_words(entries)
            for number, entries in _all_entries(self._folder)
            if number <= self._before
        )
        found = [_hashes_of(entries[self._ends[entries["outcome"]]]) for entries in before]
        return np.unique(np.concatenate([np.empty(0, np.uint64), *found]))

    def _is_known(self, hashed: int) -> bool:
        known = self._known
        at = int(known.searchsorted(np.uint64(hashed)))
        return at < len(known) and int(known[at]) == hashed

    def _enter(self, hashed: int) -> bool:
        """Enters a hash into the table while there is room; returns whether it was there already."""
        seen = self._seen
        at = hashed % len(seen)
        while there := seen[at]:  # Linear probing.
            if there == hashed:
                return True
            at = at + 1 if at + 1 < len(seen) else 0
        if self._used < self._capacity:
            self._used += 1
            self._seen[at] = hashed
        return False

    def _settled(self) -> bytes:
        """By position, zero where something waits."""
        waiting = self._waiting_rows.values()
        settled = np.ones(max(map(len, waiting), default=0), np.uint8)
        for rows in waiting:
            settled[: len(rows)] &= np.frombuffer(rows, np.uint8) == 0
        return settled.tobytes()


class _Answers:
    """The best answer to each of some requests, in the journal as it is now.

    Args:
        hashes: The hashes of these requests, sorted.
    """

    def __init__(self, folder: Path, hashes: Any) -> None:
        self._reader = LineReader(folder)
        every = (index.last_words(entries) for _number, entries in _all_entries(folder))
        found = [entries[np.isin(_hashes_of(entries), hashes)] for entries in every]
        entries = np.concatenate([np.empty(0, index.ENTRY), *found])
        names = _names(entries)
        # Among equal requests the best answer first, among equally good ones the latest.
        order = np.lexsort((-np.arange(len(entries)), -index.RANK[entries["outcome"]], names))
        self._names, self._entries = names[order], entries[order]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    def of(self, request: Request) -> Result | None:
        """The answer to the same bytes; None when there is none."""
        name = bytes.fromhex(request.key) + request.sample.to_bytes(2, "little")
        at = int(self._names.searchsorted(name))
        # numpy strips zero bytes from the end of a string.
        if at == len(self._names) or self._names[at] != name.rstrip(b"\0"):
            return None
        entry = self._entries[at]
        place = int(entry["segment"]), int(entry["offset"]), int(entry["length"])
        return self._reader.result(*place, request.key.encode())


def _all_entries(folder: Path) -> Iterator[tuple[int, Any]]:
    """Yields each segment's number and entries; answers that moved to another sample are among them twice."""
    moved = Moved.load(folder)
    for segment in load_all(folder):
        yield segment.number, np.concatenate([segment.entries, moved.of(segment)[1]])


def _copied(found: Result, request: Request) -> Result:
    """The answer as that of another request, for which nothing was sent or paid.

    Where no price is known, a cost of 0 would make the sum look known.
    """
    return msgspec.structs.replace(
        found,
        row=request.row,
        custom_id=request.custom_id,
        sample=request.sample,  # An answer that moved to another sample carries its old one.
        **(_NO_TOKENS | {"cost_usd": None if found.cost_usd is None else 0.0}),
        latency_ms=None,
        ttft_ms=None,
        attempts=0,
        waited_ms=0,
        cause="",
        tries=None,
        copied=True,
    )


def _hash(request: Request) -> int:
    high = int.from_bytes(bytes.fromhex(request.key[:16]), "little")
    return (high + request.sample * _STRIDE) & _MASK


def _hashes_of(entries: Any) -> Any:
    """The same of journal entries."""
    return entries["key_high"] + entries["sample"].astype(np.uint64) * np.uint64(_STRIDE)


def _names(entries: Any) -> Any:
    """Key and sample of journal entries, as 18 bytes each."""
    packed = np.empty(len(entries), [("high", "<u8"), ("low", "<u8"), ("sample", "<u2")])
    packed["high"], packed["low"] = entries["key_high"], entries["key_low"]
    packed["sample"] = entries["sample"]
    return packed.view("S18")
