"""What all runs of an output spent, for `--max-cost`. Touches: files.

The journal tells what was answered. `budget.json` tells in addition what may have been billed and was
not answered, and, after a kill, what was committed. The larger one counts.
"""

from __future__ import annotations

import os
from decimal import Decimal
from pathlib import Path

import msgspec

from batcher.write.index import checked
from batcher.write.segment import segments, sync_folder

__all__ = ["NAME", "load", "save"]

NAME = "budget.json"


class _Record(msgspec.Struct):
    spent_usd: Decimal = Decimal(0)
    tokens: int = 0


class _Try(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None


class _Line(_Try):
    at: tuple[int, int, int] | None = None
    tries: list[_Try] | None = None


_decode = msgspec.json.Decoder(_Line).decode


def load(folder: Path) -> tuple[Decimal, int]:
    """(dollars, tokens) spent so far, as far as anything tells."""
    dollars, tokens = Decimal(0), 0
    for _number, path in segments(folder):
        with path.open("rb", buffering=1 << 20) as file:
            for line in file:
                if not checked(line.rstrip(b"\n")):
                    continue
                try:
                    found = _decode(line)
                except msgspec.DecodeError:
                    continue
                if found.at is None:  # Else it refers to an answer that another line holds.
                    cost, used = _of(found)
                    dollars, tokens = dollars + cost, tokens + used
    try:
        record = msgspec.json.decode((folder / NAME).read_bytes(), type=_Record)
    except (FileNotFoundError, msgspec.DecodeError):
        return dollars, tokens
    return max(dollars, record.spent_usd), max(tokens, record.tokens)


def save(folder: Path, dollars: Decimal, tokens: int) -> None:
    """Replaces the record, synced."""
    temporary = folder / f"{NAME}.tmp"
    with open(temporary, "wb") as file:
        os.chmod(temporary, 0o600)
        file.write(msgspec.json.encode(_Record(dollars, tokens)) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / NAME)
    sync_folder(folder)


def _of(line: _Line) -> tuple[Decimal, int]:
    """What a result cost: in all, or the attempts of which it is known."""
    told = line.prompt_tokens is not None and line.completion_tokens is not None
    tokens = (line.prompt_tokens or 0) + (line.completion_tokens or 0)
    if not told:
        tokens = sum((t.prompt_tokens or 0) + (t.completion_tokens or 0) for t in line.tries or ())
    if line.cost_usd is not None:
        return Decimal(str(line.cost_usd)), tokens
    costs = (t.cost_usd for t in line.tries or ())
    return sum((Decimal(str(cost)) for cost in costs if cost is not None), Decimal(0)), tokens
