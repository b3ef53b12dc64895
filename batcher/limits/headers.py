"""Reads the limits that response headers advertise, in the dialects of servers. Touches: nothing.

| who | names | counted per |
|---|---|---|
| OpenAI, xAI, Groq, LiteLLM | `x-ratelimit-{limit,remaining,reset}-{requests,tokens}` | minute; Groq's requests per day |
| LiteLLM, by scope | `x-ratelimit-{api_key,team,…}-{limit,remaining}-{requests,tokens}` | minute |
| Anthropic | `anthropic-ratelimit-{requests,tokens}-{limit,remaining,reset}` | minute |
| Cerebras, Mistral | `x-ratelimit-…-{requests,req,tokens}-{minute,hour,day}` | as named |
| Together | `x-ratelimit-{limit,…}` beside `x-tokenlimit-{limit,…}` | second |
| OpenRouter | `x-ratelimit-{limit,remaining,reset}`, reset in epoch milliseconds | minute, or day |

Azure sends only what remains, and Fireworks separates prompt tokens from answer tokens: neither is a rate. A limit
per hour, day or month is no pace either: it is used up or it is not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Literal, NamedTuple

__all__ = ["RateLimitHeaders", "ShortWindow", "rate_limits", "span"]

_SHORT = 3.0
_FIELDS = frozenset({"limit", "remaining", "reset"})
_WHAT: dict[str, Literal["requests", "tokens"]] = {
    "requests": "requests", "request": "requests", "req": "requests",
    "tokens": "tokens", "tokenlimit": "tokens", "ratelimitbysize": "tokens",
}  # fmt: skip
_WINDOWS = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86400.0, "month": 30 * 86400.0}
_PARTS = frozenset({"input", "output", "prompt", "generated", "over", "cache", "adjusted"})


class RateLimitHeaders(NamedTuple):
    """One limit as a server advertises it.

    Attributes:
        limit: Units in a window.
        remaining: Units left in it; None if not sent.
        reset: Seconds until the window is whole again, or turns; None if not sent.
        window: Its length in seconds.
        named: Whether the header names the window; else it is inferred.
    """

    what: Literal["requests", "tokens"]
    limit: float
    remaining: float | None
    reset: float | None
    window: float
    named: bool = True

    @property
    def per_minute(self) -> float | None:
        """The limit per minute; None for windows longer than a minute."""
        return self.limit * 60 / self.window if self.window <= 60 else None

    @property
    def pause(self) -> float | None:
        """Seconds until more is allowed, if all is used up and the window turns before it is full.

        Where a bucket refills, an empty one is whole after its whole window, and there is more long
        before that: no pause then. Nor for a second or two, which occurs with even pacing too.
        """
        if self.remaining is None or self.remaining >= 1.0 or self.window > 60:
            return None
        return self.reset if _SHORT <= (self.reset or 0.0) < 0.95 * self.window else None


def rate_limits(headers: Mapping[str, str], now: float) -> list[RateLimitHeaders]:
    """Every limit that the headers advertise.

    >>> rate_limits({"x-ratelimit-limit-requests": "600", "x-ratelimit-remaining-requests": "599",
    ...              "x-ratelimit-reset-requests": "100ms"}, now=0.0)[0].per_minute
    600.0

    Args:
        headers: Names in any case.
        now: Unix time in seconds, for resets that are dates.
    """
    if "limit" not in "".join(headers).lower():  # Most servers advertise none, with every answer.
        return []
    fields: dict[_Key, dict[str, str]] = {}
    for name in headers:
        if (found := _key_and_field(name)) is not None:
            key, field = found
            fields.setdefault(key, {})[field] = headers[name]
    by_second = any(key.by_second for key in fields)
    read = (_rate_limit(key, values, by_second, now) for key, values in fields.items())
    return [limit for limit in read if limit is not None]


class _Key(NamedTuple):
    """What the three headers of a limit have in common.

    Attributes:
        words: The words of the name, the field apart.
        window: Its length in seconds; None if the name has none.
        by_second: Whether servers that use such a name count by the second.
    """

    words: tuple[str, ...]
    what: Literal["requests", "tokens"]
    window: float | None
    by_second: bool


@lru_cache  # The same few names come with every answer.
def _key_and_field(name: str) -> tuple[_Key, str] | None:
    """The limit that a header belongs to, and its field there; None for another header."""
    low = name.lower()
    if "ratelimit" not in low and "tokenlimit" not in low:
        return None
    words = low.removeprefix("llm_provider-").split("-")
    fields = [word for word in words if word in _FIELDS]
    if len(fields) != 1 or _PARTS.intersection(words):
        return None
    left = tuple(word for word in words if word not in _FIELDS)
    what: Literal["requests", "tokens"] = next(
        (_WHAT[word] for word in left if word in _WHAT), "requests"
    )
    window = next((_WINDOWS[word] for word in left if word in _WINDOWS), None)
    return _Key(left, what, window, "tokenlimit" in left), fields[0]


def _rate_limit(
    key: _Key, fields: Mapping[str, str], by_second: bool, now: float
) -> RateLimitHeaders | None:
    limit, remaining = _number(fields.get("limit")), _number(fields.get("remaining"))
    if limit is None or limit <= 0:
        return None
    reset, window = _reset(fields.get("reset"), now), key.window
    named = window is not None or by_second
    if window is None:
        window = 1.0 if by_second else _window(limit, remaining, reset)
    return RateLimitHeaders(key.what, limit, remaining, reset, window, named)


class ShortWindow:
    """Tells a limit per second from a limit per minute, where headers do not name the window.

    "limit 50, reset 1s" may be either. A minute's bucket takes `used / limit × 60 s` to fill, and a minute's
    fixed window has up to 60 s left; a second's is always whole within a second. The use of one request at a
    time does not show it, so a few requests are sent ahead of the minute's pace, while the server says that at least
    half of the limit remains.

    Attributes:
        found: Whether it is a limit per second.
    """

    _LONGEST_RESET, _SECONDS, _ANSWERS = 1.5, 4.0, 4

    def __init__(self) -> None:
        self.found = False
        self._refuted = False
        self._limit = 0.0
        self._since = self._ahead_at = 0.0
        self._answers = self._votes = 0
        self._half_remains = False

    def observe(self, header: RateLimitHeaders, now: float) -> None:
        """Learns from the header of an answer."""
        if self._refuted or header.named or header.window != 60.0 or header.reset is None:
            return
        if header.limit != self._limit:
            self.found, self._limit, self._since = False, header.limit, now
            self._answers = self._votes = 0
        if header.reset > self._LONGEST_RESET or header.remaining is None:
            self.refute()
            return
        self._answers += 1
        # Where less remains it is a minute's limit, and the header is that of a shorter part of it.
        self._half_remains = header.remaining >= header.limit / 2
        to_fill = (header.limit - header.remaining) / header.limit * 60.0
        self._votes += self._half_remains and to_fill > 2.0 * max(header.reset, 0.5)
        self.found = self.found or (self._votes >= 3 and now - self._since >= self._SECONDS)

    def refute(self) -> None:
        """It is no limit per second, for good."""
        self._refuted, self.found = True, False

    def send_ahead(self, now: float) -> int:
        """Starts a try, if it is time for one: how many requests go ahead of the minute's pace; 0 for none."""
        if self._refuted or self.found or self._answers < self._ANSWERS or not self._half_remains:
            return 0
        if now - self._since < 1.0 or now - self._ahead_at < 1.2:
            return 0
        self._ahead_at = now
        return max(2, min(int(self._limit / 24) + 1, int(self._limit / 4)))


def _window(limit: float, remaining: float | None, reset: float | None) -> float:
    """The length of a window that is not named.

    For a bucket that refills, `reset` is the time until it is full, `used / limit × window`
    (inferred from OpenAI's and Groq's figures), which tells a day from a minute.
    """
    if reset is None or remaining is None:
        return 60.0
    used = limit - remaining
    if used > 0:
        full = reset * limit / used
        for window in (86400.0, 3600.0):
            if abs(full - window) < 0.02 * window:
                return window
    if remaining > 0 and reset > 61.0:
        return 86400.0 if reset > 3600.0 else 3600.0
    return 60.0


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if 0 <= number < 1e15 else None


def _reset(text: str | None, now: float) -> float | None:
    """Seconds from now: a number, an epoch in s or ms, RFC 3339, or "6m0.5s"."""
    if text is None:
        return None
    if text[-1:].isalpha() and (length := span(text)) is not None:  # The usual case.
        return length
    if (number := _number(text)) is not None:
        if number > 1e11:
            return max(0.0, number / 1000 - now)
        return max(0.0, number - now) if number > 1e9 else number
    try:
        return max(0.0, datetime.fromisoformat(text.strip()).timestamp() - now)
    except ValueError:
        return span(text)


# A number is read once: tried again from each of its digits, 32,000 of them take a minute.
_SPAN = re.compile(
    r"(?<!\d)(\d++(?:\.\d++)?) ?(milliseconds?|seconds?|minutes?|hours?|days?|ms|h|m|s|d)"
)
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def span(text: str) -> float | None:
    """The seconds of a duration such as "1h5m25.152s", "825ms" or "6 seconds".

    >>> span("1m2.5s"), span("20 milliseconds"), span("soon")
    (62.5, 0.02, None)
    """
    parts = _SPAN.findall(text)
    if not parts:
        return None
    return sum(float(number) * _unit(word) for number, word in parts)


def _unit(word: str) -> float:
    return 0.001 if word.startswith(("ms", "milli")) else _UNITS[word[0]]
