"""Which requests are still to send: row × model, minus what is answered. Touches: files (reads).

A request is known by the bytes it sends: its key is a 128-bit hash of the address and the exact
body. While input and settings are those of the runs before, its position says the same for a bit a
row; when they are not, keys are compared, and an answer follows its row to a new position.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec
import numpy as np

from batcher.errors import JobError, RunStopped
from batcher.job import Job
from batcher.read.inputs import Inputs
from batcher.read.prompts import Prompter
from batcher.records import Outcome, Prompt, Request
from batcher.write.index import ENTRY, OUTCOMES, Segment
from batcher.write.journal import Kept
from batcher.write.winners import Winners

__all__ = ["Earlier", "Plan", "Todo", "settings_of"]

_BATCH_ROWS = 200
_BATCH_BYTES = 4 << 20
_SAMPLE = 100


class Todo(NamedTuple):
    """One row's prompt and the slots it is still to be sent to; `kept` are slots answered before."""

    prompt: Prompt
    slots: tuple[int, ...]
    kept: tuple[Kept, ...] = ()


def settings_of(job: Job, url: str) -> dict[str, object]:
    """All that shapes a request besides its row and model, in the words of the flags."""
    prompt, system = job.templates
    return {
        "--base-url": url.removesuffix("/chat/completions"),
        "--prompt": prompt,
        "--system": system,
        "--param": job.body_params,
        "--model": "asked" if job.models else "the row's own",
    }


class Plan:
    """The requests of a job.

    Args:
        job: What was asked.
        url: Where requests go; part of their key.
        inputs: The rows.
        winners: What is answered at which position, by slot; None for nothing.
        earlier: Answers of earlier input or settings, found by key; None for none.

    Attributes:
        slots: Model ID by slot; one slot "" when rows name their own model.
        abandoned: Set from outside to end a survey.
    """

    def __init__(
        self,
        job: Job,
        url: str,
        inputs: Inputs,
        winners: Winners | None = None,
        earlier: Earlier | None = None,
    ) -> None:
        self.slots = job.models or ("",)
        self.abandoned = False
        self._route = job.route
        self._inputs = inputs
        self._earlier = earlier
        prompt, system = job.templates
        self._prompter = Prompter(prompt, system, job.body_params, own_model=not job.models)
        self._keep_columns = job.output == "-"
        self._salt = url.encode() + b"\n"
        self._heads: dict[str, bytes] = {}
        self._answered = [
            b"" if winners is None else winners.outcomes(slot).tobytes()
            for slot in range(len(self.slots))
        ]
        resend = job.resendable
        self._settled = [False, *(outcome not in resend for outcome in OUTCOMES)]

    def settled(self, slot: int) -> dict[Outcome, int]:
        """How many rows of a slot were ended by earlier runs, by outcome."""
        counts = np.bincount(np.frombuffer(self._answered[slot], np.uint8), minlength=1)
        return {
            OUTCOMES[state - 1]: n
            for state, n in enumerate(counts.tolist())
            if n and self._settled[state]
        }

    def request(self, prompt: Prompt, model: str) -> Request:
        """The exact request of a prompt for a model."""
        head = self._heads.get(model)
        if head is None:
            head = self._heads[model] = b'{"model":' + msgspec.json.encode(model) + b","
        body = head + prompt.fields
        key = blake2b(self._salt + body, digest_size=16).hexdigest()
        return Request(prompt.row, prompt.custom_id, model, 0, key, body, prompt.max_tokens)

    def pending(self, row: int) -> tuple[int, ...]:
        """Slots to which the row at this position is still to be sent."""
        states = [done[row] if row < len(done) else 0 for done in self._answered]
        if self._route == "each":
            return tuple(slot for slot, state in enumerate(states) if not self._settled[state])
        if 1 in states:  # One of the models answered ok.
            return ()
        if self._route == "split" and any(self._settled[state] for state in states):
            return ()
        return tuple(slot for slot, state in enumerate(states) if not self._settled[state])

    def batches(self, start: int = 0, slot: int | None = None) -> Iterator[list[Todo]]:
        """Rows that are still to be sent, from position `start` on, in small batches.

        Args:
            start: First position.
            slot: Only what is for this slot.
        """
        batch: list[Todo] = []
        size = 0
        rows = self._inputs.rows(
            self._prompter.columns if not self._keep_columns else None,
            start,
            lambda row: bool(self.pending(row)),
        )
        for row in rows:
            slots = self.pending(row.position)
            if slot is not None:
                slots = (slot,) if slot in slots else ()
            if not slots:
                continue
            prompt = self._prompter.prompt(row)
            if self._keep_columns and row.columns is not None:
                prompt = msgspec.structs.replace(prompt, columns=row.columns)
            batch.append(self._todo(prompt, slots))
            size += len(prompt.fields)
            if len(batch) >= _BATCH_ROWS or size >= _BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _todo(self, prompt: Prompt, slots: tuple[int, ...]) -> Todo:
        if self._earlier is None or prompt.error is not None:
            return Todo(prompt, slots)
        left, kept = [], []
        for slot in slots:
            request = self.request(prompt, self.slots[slot] or prompt.model or "")
            found = self._earlier.take(request)
            if found is None:
                left.append(slot)
            else:
                kept.append(found)
        if kept and self._route != "each":
            left = []
        return Todo(prompt, tuple(left), tuple(kept))

    def survey(self) -> int:
        """Number of rows; reads the whole input once and finds what must stop a run.

        Raises:
            JobError: No rows, two rows with one `custom_id`, or none of the first rows can be sent.
        """
        rows, unusable, unfit, first_error = 0, 0, 0, None
        names = array("q")
        columns = self._prompter.columns
        for row in self._inputs.rows(columns):
            if self.abandoned:
                raise RunStopped("Interrupted before anything was sent.")
            rows += 1
            if row.columns is not None and (name := row.columns.get("custom_id")) is not None:
                names.append(hash(str(name)))
            if rows <= _SAMPLE:
                prompt = self._prompter.prompt(row)
                unusable += prompt.error is not None
                unfit += self._prompter.ignores_template(row)
                first_error = first_error or prompt.error
        where = ", ".join(file.name for file in self._inputs.files)
        if not rows:
            raise JobError(f"{where}: there are no rows in it.")
        if unusable == min(rows, _SAMPLE):
            what = "the only row" if rows == 1 else f"all of the first {unusable} rows"
            raise JobError(
                f"Nothing can be sent, {what} cannot be used; the first: {first_error}."
            )
        if unfit == min(rows, _SAMPLE):
            raise JobError(
                f"--prompt names columns that none of the first {unfit} rows of {where} has; "
                "see the names in it."
            )
        self._unique(names)
        return rows

    def _unique(self, names: array[int]) -> None:
        hashes = np.sort(np.frombuffer(names, np.int64)) if names else np.empty(0, np.int64)
        twice = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
        if not twice:
            return
        seen: dict[str, str] = {}
        for row in self._inputs.rows(frozenset({"custom_id"})):
            name = None if row.columns is None else row.columns.get("custom_id")
            if name is None or hash(str(name)) not in twice:
                continue
            if (before := seen.setdefault(str(name), row.where)) != row.where:
                raise JobError(
                    f"custom_id {str(name)!r} stands twice, at {before} and {row.where}; "
                    "give each row a name of its own, or none."
                )


class Earlier:
    """Answers of earlier epochs, found by key; each is given away once.

    Args:
        segments: Those of the earlier epochs, in order.
        since: Those of the present one; what they refer to is given away already.
    """

    def __init__(self, segments: list[Segment], since: list[Segment] | None = None) -> None:
        answered = [n for n, outcome in enumerate(OUTCOMES) if outcome.answered]
        parts = [s.entries[np.isin(s.entries["outcome"], answered)] for s in segments]
        entries: Any = np.concatenate(parts) if parts else np.empty(0, ENTRY)
        # One answer may have been referred to by several epochs; the last place counts.
        _, last = np.unique(_places(entries)[::-1], return_index=True)
        entries = entries[len(entries) - 1 - last]
        for segment in since or ():
            entries = entries[~np.isin(_places(entries), _places(segment.entries))]
        entries = entries[np.argsort(entries["key_high"], kind="stable")]
        self._entries = entries
        self._keys = entries["key_high"].copy()
        self._takers = np.full(len(entries), -1, np.int64)

    def __len__(self) -> int:
        return len(self._entries)

    def take(self, request: Request) -> Kept | None:
        """A reference to an answer to these bytes, the row's own one first.

        The same row asking again gets the same answer again.
        """
        if not len(self._keys):
            return None
        raw, row = bytes.fromhex(request.key), request.row
        high = np.uint64(int.from_bytes(raw[:8], "little"))
        low = int.from_bytes(raw[8:], "little")
        begin = int(np.searchsorted(self._keys, high, "left"))
        end = int(np.searchsorted(self._keys, high, "right"))
        best = -1
        for at in range(begin, end):
            entry = self._entries[at]
            taker = int(self._takers[at])
            if taker not in (-1, row) or int(entry["key_low"]) != low:
                continue
            if taker == row or int(entry["row"]) == row:
                best = at
                break
            if best < 0:
                best = at
        if best < 0:
            return None
        self._takers[best] = row
        entry = self._entries[best]
        return Kept(
            row=row,
            model=request.model,
            sample=request.sample,
            key=request.key,
            status=OUTCOMES[int(entry["outcome"])],
            custom_id=request.custom_id,
            at=(int(entry["segment"]), int(entry["offset"]), int(entry["length"])),
            extras=int(entry["extras"]),
        )


def _places(entries: Any) -> Any:
    """Where each entry's line stands, as one number: segment, then offset."""
    return (entries["segment"].astype(np.int64) << 40) | entries["offset"]
