"""Answers whose rows are not known, found by the key of their request. Touches: files (reads)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from batcher.plan.requests import Plan
from batcher.plan.settings import RequestBuilder, Settings
from batcher.records import Outcome, Prompt, Request
from batcher.write.index import ANSWERED, ENTRY, OUTCOMES, last_words, where

__all__ = ["AnswerCache", "claim"]

_OK = OUTCOMES.index(Outcome.OK)
_SAMPLE_BITS = 16
_OFFSET_BITS = 40
_COLUMNS = {"high": "<u8", "low": "<u8", "place": "<i8", "where": "<i8", "outcome": "u1"}
_PAUSE_ROWS = 200


def claim(
    plan: Plan, cache: AnswerCache, accepted: Sequence[Settings], go_on: Callable[[], None]
) -> int:
    """Takes an answer out of the cache for each request that is still to be sent.

    Args:
        plan: What is still to be sent.
        cache: The answers.
        accepted: Other settings; an answer to what they make of a row is as good.
        go_on: Called now and then; what it raises ends the search.

    Returns:
        How many answers were found by other settings alone.
    """
    others = [RequestBuilder(settings) for settings in accepted]
    columns = plan.columns
    if columns is not None:
        columns = columns.union(*(other.prompter.columns for other in others))
    by_others = 0
    for number, (row, slots) in enumerate(plan.rows(columns=columns)):
        if not number % _PAUSE_ROWS:
            go_on()
        own = plan.prompt(row)
        for slot in slots:
            if not _take(cache, plan, plan, own, slot):
                by_others += any(
                    _take(cache, plan, other, other.prompter.prompt(row), slot) for other in others
                )
    return by_others


def _take(
    cache: AnswerCache, plan: Plan, builder: Plan | RequestBuilder, prompt: Prompt, slot: int
) -> bool:
    if prompt.error is not None:
        return False
    model = plan.slots.model(slot, prompt.model)
    return cache.take(builder.request(plan.sampled(prompt, slot), model)) is not None


class AnswerCache:
    """Answers by key; each is given away once. Takes 42 bytes an answer, some 80 while it is made.

    Args:
        parts: Entries of the journal, in order.
    """

    def __init__(self, parts: Iterable[Any]) -> None:
        parts_of: dict[str, list[Any]] = {name: [np.empty(0, t)] for name, t in _COLUMNS.items()}
        for entries in map(last_words, parts):
            answers = entries[ANSWERED[entries["outcome"]]]
            for name, column in (
                ("high", answers["key_high"]),
                ("low", answers["key_low"]),
                ("place", answers["row"] << _SAMPLE_BITS | answers["sample"]),
                ("where", where(answers)),
                ("outcome", answers["outcome"]),
            ):
                parts_of[name].append(np.ascontiguousarray(column))
        columns = {name: np.concatenate(parts_of.pop(name)) for name in _COLUMNS}
        # Of several answers to one row an ok one comes first, then the latest.
        order = np.lexsort(
            (
                -columns["where"],
                columns["outcome"] != _OK,
                columns["place"],
                columns["low"],
                columns["high"],
            )
        )
        for name, column in columns.items():
            columns[name] = column[order]
        first = np.ones(len(order), np.bool_)
        same = np.ones(max(0, len(order) - 1), np.bool_)
        for name in ("high", "low", "place"):
            same &= columns[name][1:] == columns[name][:-1]
        first[1:] = ~same
        if not first.all():
            columns = {name: column[first] for name, column in columns.items()}
        self._columns = columns
        self._highs, self._lows = columns["high"], columns["low"]
        self._places = columns["place"]
        self._takers = np.full(len(self._highs), -1, np.int64)
        self._free: dict[int, int] = {}
        self._again: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self._highs)

    def take(self, request: Request) -> Outcome | None:
        """Gives the request an answer to the same bytes; returns its outcome, None where there is none.

        A row gets its own answer first. Asked again for the same row, it gives the same answer.
        """
        if not len(self._highs):
            return None
        raw, place = bytes.fromhex(request.key), request.row << _SAMPLE_BITS | request.sample
        begin, end = _range(self._highs, raw[:8], 0, len(self._highs))
        begin, end = _range(self._lows, raw[8:], begin, end)
        if begin == end or (best := self._best(begin, end, place)) < 0:
            return None
        self._takers[best] = place
        return OUTCOMES[int(self._columns["outcome"][best])]

    def taken(self) -> Any:
        """What was taken, as entries of the rows and samples that took it; only segment and offset are set."""
        at = np.flatnonzero(self._takers >= 0)
        places, lines = self._takers[at], self._columns["where"][at]
        found = np.zeros(len(at), ENTRY)
        found["row"], found["sample"] = places >> _SAMPLE_BITS, places & (1 << _SAMPLE_BITS) - 1
        found["segment"], found["offset"] = lines >> _OFFSET_BITS, lines & (1 << _OFFSET_BITS) - 1
        return found

    def _best(self, begin: int, end: int, place: int) -> int:
        """Among equal requests: the place's own, the one it took before, a free one; or -1."""
        if end - begin == 1:  # Most often.
            return begin if self._takers[begin] in (-1, place) else -1
        own = begin + int(self._places[begin:end].searchsorted(place))
        if own < end and self._places[own] == place and self._takers[own] in (-1, place):
            return own
        if (before := self._again.get((begin, place))) is not None:
            return before
        free = self._free.get(begin, begin)
        while free < end and self._takers[free] >= 0:
            free += 1
        if free == end:
            return -1
        self._free[begin] = free + 1
        self._again[begin, place] = free
        return free


def _range(numbers: Any, raw: bytes, begin: int, end: int) -> tuple[int, int]:
    """Where a number of 8 bytes is in a sorted stretch of an array."""
    number = np.uint64(int.from_bytes(raw, "little"))
    if end - begin == 1:  # Most often.
        return (begin, end) if numbers[begin] == number else (begin, begin)
    equal = numbers[begin:end]
    first, end = equal.searchsorted(number), equal.searchsorted(number, "right")
    return begin + int(first), begin + int(end)
