"""The ways in which servers meter, as arithmetic on a given time. Touches: nothing.

An amount above a whole allowance is let through when the allowance is untouched, or it would wait
for ever; what it takes too much, like tokens booked after the answer, is paid back first.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal

__all__ = ["Bucket", "Charge", "MeterKind", "ModelMeter", "Refusal", "Window", "duration", "meter"]

MeterKind = Literal["bucket-60s", "bucket-1s", "window-60s", "window-1s"]
Charge = Literal["output", "max-tokens"]

# Sums of floats stray by less than this; no request and no token is that small.
_NOTHING = 1e-6


class Bucket:
    """Refills evenly and holds what `span_s` seconds bring, at least one unit.

    Attributes:
        limit: Units a minute.
    """

    def __init__(self, limit: float, span_s: float) -> None:
        self.limit = limit
        self._rate = limit / 60
        self._most = max(1.0, self._rate * span_s)
        self._level, self._now = self._most, 0.0

    def _fill(self, now: float) -> None:
        self._level = min(self._most, self._level + max(0.0, now - self._now) * self._rate)
        self._now = max(self._now, now)

    def refusal(self, amount: float, now: float) -> float | None:
        """None when `amount` is allowed now, else the seconds after which it would be."""
        self._fill(now)
        missing = min(amount, self._most) - self._level
        return missing / self._rate if missing > _NOTHING else None

    def take(self, amount: float, now: float) -> None:
        """Books `amount`, allowed or not."""
        self._fill(now)
        self._level -= amount

    def remaining(self, now: float) -> float:
        """Units left now."""
        self._fill(now)
        return max(0.0, self._level)

    def reset(self, now: float) -> float:
        """Seconds until it is full again."""
        self._fill(now)
        return (self._most - self._level) / self._rate


class Window:
    """Counts in windows that begin at multiples of `span_s` seconds.

    A limit below one unit a window is kept by longer windows of one unit each.

    Attributes:
        limit: Units a minute.
    """

    def __init__(self, limit: float, span_s: float) -> None:
        self.limit = limit
        self._span = max(span_s, 60 / limit)
        self._most = limit * self._span / 60
        self._used, self._window = 0.0, 0

    def _turn(self, now: float) -> None:
        window = int(now // self._span)
        if window > self._window:
            self._used = max(0.0, self._used - self._most * (window - self._window))
            self._window = window

    def refusal(self, amount: float, now: float) -> float | None:
        """None when `amount` is allowed now, else the seconds until a window that allows it."""
        self._turn(now)
        over = self._used + min(amount, self._most) - self._most
        if over <= _NOTHING:
            return None
        turns = max(1, ceil((over - _NOTHING) / self._most))
        return (self._window + turns) * self._span - now

    def take(self, amount: float, now: float) -> None:
        """Books `amount` in the window of now, allowed or not."""
        self._turn(now)
        self._used += amount

    def remaining(self, now: float) -> float:
        """Units left in this window."""
        self._turn(now)
        return max(0.0, self._most - self._used)

    def reset(self, now: float) -> float:
        """Seconds until this window ends."""
        self._turn(now)
        return (self._window + 1) * self._span - now


Meter = Bucket | Window


def meter(kind: MeterKind, limit: float) -> Meter:
    """A meter of one of the four kinds for `limit` units a minute."""
    shape, _, span = kind.partition("-")
    seconds = float(span.removesuffix("s"))
    return Bucket(limit, seconds) if shape == "bucket" else Window(limit, seconds)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not let through, and for how many seconds."""

    what: Literal["requests", "tokens"]
    limit: float
    wait_s: float


class ModelMeter:
    """Both meters of one model; either may be missing."""

    def __init__(
        self, kind: MeterKind, charge: Charge, rpm: float | None, tpm: float | None
    ) -> None:
        self._up_front = charge == "max-tokens"
        self._requests = meter(kind, rpm) if rpm is not None else None
        self._tokens = meter(kind, tpm) if tpm is not None else None

    def admit(self, prompt: int, bound: int, now: float) -> Refusal | None:
        """Books a request, or books nothing and says why not.

        Args:
            prompt: Tokens of its prompt.
            bound: Tokens that its answer may have; booked now when charging is up front.
            now: A monotonic clock, in seconds.
        """
        requests, tokens = self._requests, self._tokens
        needed = prompt + bound if self._up_front else prompt
        if requests and (wait := requests.refusal(1, now)) is not None:
            return Refusal("requests", requests.limit, wait)
        if tokens and (wait := tokens.refusal(needed, now)) is not None:
            return Refusal("tokens", tokens.limit, wait)
        if requests:
            requests.take(1, now)
        if tokens and self._up_front:
            tokens.take(needed, now)
        return None

    def settle(self, used: int, now: float) -> None:
        """Books the tokens of an answer, unless they were charged up front (and are kept)."""
        if self._tokens and not self._up_front:
            self._tokens.take(used, now)

    def headers(self, now: float) -> dict[str, str]:
        """What OpenAI tells: limit a minute, what is left of this meter, time until it is whole."""
        told = {}
        for what, one in (("requests", self._requests), ("tokens", self._tokens)):
            if one:
                told[f"x-ratelimit-limit-{what}"] = f"{one.limit:.0f}"
                told[f"x-ratelimit-remaining-{what}"] = str(int(one.remaining(now) + _NOTHING))
                told[f"x-ratelimit-reset-{what}"] = duration(one.reset(now))
        return told


def duration(seconds: float) -> str:
    """Seconds as OpenAI's headers write them.

    >>> [duration(s) for s in (0.0, 0.0121, 1, 7.66, 360, 3912.5)]
    ['0ms', '13ms', '1s', '7.66s', '6m0s', '1h5m12.5s']
    """
    thousandths = ceil(seconds * 1000 - _NOTHING)
    if thousandths < 1000:
        return f"{thousandths}ms"
    minutes, rest = divmod(thousandths, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest / 1000:g}s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text
