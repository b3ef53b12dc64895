"""What a run may suffer: kills, signals, power cuts, damaged pages, full disks.

One knob: with BATCHER_TORTURE=long in the environment each test does its long form, which takes
minutes (`scripts/torture`); without it the short form, which takes seconds.
"""

from __future__ import annotations

import os
import random
import sys

import pytest

__all__ = ["LONG", "dice", "long_only", "tell", "times"]

LONG = os.environ.get("BATCHER_TORTURE") == "long"
long_only = pytest.mark.skipif(not LONG, reason="BATCHER_TORTURE=long only, for its time")
"""Minutes each, and too long for every change: of most of them a sibling runs in the short form, and
`scripts/torture` runs them all."""


def times(short: int, long: int) -> int:
    """How often: the one or the other, as the knob stands."""
    return long if LONG else short


def dice(name: str) -> random.Random:
    """Chance: the same in each short form, another in each long one, which prints its seed."""
    seed = f"{name} {random.SystemRandom().getrandbits(32)}" if LONG else name
    tell("seed", of=seed)
    return random.Random(seed)


def tell(what: str, **figures: object) -> None:
    """A line of figures, seen with `pytest -s`."""
    told = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in figures.items())
    sys.stdout.write(f"\n    {what}: {told}")
    sys.stdout.flush()
