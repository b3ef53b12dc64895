"""What all runs of an output spent, on disk, for `--max-cost`. Touches: files.

The journal holds what was answered. `budget.json` holds what may have been billed besides. During a run
with a budget that is the committed amount, so that after a kill the difference is known; after a run
without one it is the number of requests that a kill left in flight.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import msgspec

from batcher.errors import JobError
from batcher.write import atomic
from batcher.write import folder as folders
from batcher.write.lines import is_sound, line_of, sound_lines
from batcher.write.names import BUDGET

__all__ = ["Spent", "begin", "known", "recorded", "save"]

_PROMPT_TOKENS = 1000  # Of a prompt, before any answer reports its own.
_MAX_FIGURE = 1 << 62
_ROUNDING = Decimal("1e-9")  # Costs are binary fractions, whose sums differ by less.


class Spent(NamedTuple):
    """What earlier runs of an output spent.

    Attributes:
        dollars: Known and possible.
        tokens: Likewise, prompt and answer.
        perhaps_dollars: The part that is only possible.
        perhaps_tokens: Likewise.
        cut_off: Requests that may have been billed besides, when no answer shows yet what one costs.
    """

    dollars: Decimal = Decimal(0)
    tokens: int = 0
    perhaps_dollars: Decimal = Decimal(0)
    perhaps_tokens: int = 0
    cut_off: int = 0


class _Record(msgspec.Struct, omit_defaults=True):
    """The content of the file.

    Attributes:
        committed_usd: What a run with a budget spent or reserved; None once it was compared with the
            journal.
        committed_tokens: Likewise.
        perhaps_usd: What may have been billed besides the answers in the journal.
        perhaps_tokens: Likewise.
        cut_off: Requests that kills left in flight, without a budget, and that are not in `perhaps`.
    """

    committed_usd: Decimal | None = None
    committed_tokens: int | None = None
    perhaps_usd: Decimal = Decimal(0)
    perhaps_tokens: int = 0
    cut_off: int = 0


class _Try(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None


class _Line(_Try):
    total_tokens: int | None = None
    attempts: int = 0
    at: tuple[int, int, int] | None = None
    tries: list[_Try] | None = None


_decode = msgspec.json.Decoder(_Line).decode


def begin(
    folder: Path,
    cut_off: int,
    *,
    bounded: bool,
    max_amount: Callable[[int], tuple[Decimal, int]] | None = None,
) -> Spent:
    """Adds up what was spent before a run, with what a kill may have left in flight.

    Args:
        folder: The run folder.
        cut_off: Requests that were in flight when the run before was killed, as far as it recorded.
        bounded: Whether this run has a budget. Without one the journal is read only after a run
            with a budget, and the result means nothing.
        max_amount: (dollars, tokens) that a request with a prompt of so many tokens takes at most; None
            where that is not known: then each counts as the dearest one that was answered.

    Raises:
        JobError: The record is damaged, and this run has a budget.
    """
    try:
        record = _load(folder)
    except ValueError as error:
        if not bounded:
            return Spent()  # The file stays as it is, for a run that needs it.
        dollars, tokens = known(folder)
        raise JobError(
            f"{folder / BUDGET}: it is damaged ({error}), so it is not known what earlier runs may have spent besides "
            f"what the journal proves: ${dollars:f} and {tokens:,} tokens. Remove the file, and give "
            "--max-cost or --max-total-tokens again; what the journal proves counts against it."
        ) from None
    before = msgspec.structs.replace(record)
    if record.committed_usd is None:
        record.cut_off += cut_off
    dollars, tokens = Decimal(0), 0
    if bounded or record.committed_usd is not None:
        dollars, tokens, dearest, longest, prompt = _journal(folder)
        if record.committed_usd is not None:
            besides = record.committed_usd - dollars
            if besides > _ROUNDING:
                record.perhaps_usd = max(record.perhaps_usd, besides)
            over = (record.committed_tokens or 0) - tokens
            record.perhaps_tokens = max(record.perhaps_tokens, over)
        if max_amount is not None:
            most = max_amount(prompt or _PROMPT_TOKENS)
            dearest, longest = max(dearest, most[0]), max(longest, most[1])
        if longest:  # Else no answer shows yet what one costs.
            record.perhaps_usd += record.cut_off * dearest
            record.perhaps_tokens += record.cut_off * longest
            record.cut_off = 0
        record.committed_usd = record.committed_tokens = None
    if record != before:
        _write(folder, record)
    perhaps = record.perhaps_usd, record.perhaps_tokens
    return Spent(dollars + perhaps[0], tokens + perhaps[1], *perhaps, record.cut_off)


def recorded(folder: Path, earlier: Spent) -> Spent:
    """What `save` recorded last in this run; `earlier` where it did not.

    Args:
        folder: The run folder.
        earlier: As `begin` gave it.
    """
    record = _load(folder)
    if record.committed_usd is None or record.committed_tokens is None:
        return earlier
    return earlier._replace(dollars=record.committed_usd, tokens=record.committed_tokens)


def _load(folder: Path) -> _Record:
    """The content of the file; an empty record where there is none.

    Raises:
        ValueError: It is damaged; the text says how.
    """
    try:
        line = folders.read(folder, BUDGET).rstrip(b"\n")
    except FileNotFoundError:
        return _Record()
    except OSError as error:
        raise ValueError(error.strerror) from None
    if b'"z":' in line and not is_sound(line):  # Earlier versions wrote no checksum.
        raise ValueError("its checksum is wrong")
    record = msgspec.json.decode(line, type=_Record)
    for figure in msgspec.structs.astuple(record):
        if figure is not None and not (Decimal(figure).is_finite() and 0 <= figure < _MAX_FIGURE):
            raise ValueError(f"{figure} is no amount")
    return record


def known(folder: Path) -> tuple[Decimal, int]:
    """(dollars, tokens) of all answers in the journal."""
    return _journal(folder)[:2]


def save(folder: Path, dollars: Decimal, tokens: int, earlier: Spent) -> None:
    """Records what is committed, synced.

    Args:
        folder: The run folder.
        dollars: Spent by all runs, and reserved.
        tokens: Likewise.
        earlier: As `begin` gave it.
    """
    _write(folder, _Record(dollars, tokens, *earlier[2:]))


def _write(folder: Path, record: _Record) -> None:
    atomic.replace(folder, BUDGET, line_of(msgspec.json.encode(record)), sync=True)


def _journal(folder: Path) -> tuple[Decimal, int, Decimal, int, int]:
    """(dollars, tokens) of all answers, of the dearest and of the longest; tokens of the longest prompt."""
    dollars, tokens, dearest, longest, prompt = Decimal(0), 0, Decimal(0), 0, 0
    for line in sound_lines(folder):
        try:
            found = _decode(line)
        except msgspec.DecodeError:
            continue
        # Else it refers to an answer that another line holds, or that a batch gave.
        if found.at is None and found.attempts:
            cost, used = _cost_of(found)
            dollars, tokens = dollars + cost, tokens + used
            dearest, longest = max(dearest, cost), max(longest, used)
            prompt = max(prompt, found.prompt_tokens or 0)
    return dollars, tokens, dearest, longest, prompt


def _cost_of(line: _Line) -> tuple[Decimal, int]:
    """(dollars, tokens) of a result: of all of it, or of the attempts that have a cost."""
    reported = line.prompt_tokens is not None and line.completion_tokens is not None
    tokens = (line.prompt_tokens or 0) + (line.completion_tokens or 0)
    if not reported and line.total_tokens is not None:
        tokens = line.total_tokens
    elif not reported:
        tokens = sum((t.prompt_tokens or 0) + (t.completion_tokens or 0) for t in line.tries or ())
    if line.cost_usd is not None:
        return Decimal(str(line.cost_usd)), tokens
    costs = (t.cost_usd for t in line.tries or ())
    return sum((Decimal(str(cost)) for cost in costs if cost is not None), Decimal(0)), tokens
