"""How long to wait before a failed request is sent again. Touches: nothing."""

from __future__ import annotations

import random

__all__ = ["LONGEST_NAMED", "backoff"]

LONGEST_NAMED = 120.0
"""The longest wait that an overloaded server may ask for, in seconds; openai-python has the same bound."""

_FIRST, _MOST = 1.0, 60.0


def backoff(failures: int, rng: random.Random) -> float:
    """Full jitter under an exponential cap of 1, 2, 4 … 60 s.

    The jitter comes after the cap, or all requests of an outage would meet again at the cap.
    """
    return rng.uniform(0.0, min(_MOST, _FIRST * 2.0 ** min(failures - 1, 10)))
