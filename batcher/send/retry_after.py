"""How long a server asks to wait, wherever it says so. Touches: the clock."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from batcher.limits.headers import span

__all__ = ["retry_after"]

_IN_TEXT = (
    r"(?:try again|retry|retry after|again) (?:in|after) "
    r"((?:\d+(?:\.\d+)?(?:ms|h|m|s) ?)+|\d+(?:\.\d+)? ?(?:milliseconds?|seconds?|minutes?|hours?))"
)
Layer = tuple[dict[str, Any], str, bool]


def retry_after(
    headers: Mapping[str, str],
    error: Iterable[Layer] = (),
    message: str = "",
    now: datetime | None = None,
) -> float | None:
    """Seconds that the server asks to wait; None when it does not.

    In order: `retry-after-ms`, `retry-after` (seconds or an HTTP date), the same as LiteLLM passes
    it on, OpenRouter's `metadata`, Gemini's `retryDelay`, and "try again in 1m2.5s" in prose.

    Args:
        headers: Names in any case.
        error: The layers of the error, as `error_body.layers` gives them.
        message: The error for people.
        now: What HTTP dates are compared with; the present by default.

    >>> retry_after({}, message="Please try again in 1m2.5s.")
    62.5
    """
    if (milliseconds := _seconds(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    for name in ("retry-after", "llm_provider-retry-after"):
        value = headers.get(name)
        if (seconds := _seconds(value)) is not None:
            return seconds
        if value:
            try:
                date = parsedate_to_datetime(value)
                date = date if date.tzinfo else date.replace(tzinfo=UTC)
                return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())
            except (ValueError, TypeError, OverflowError):
                continue  # A year or a zone that no calendar has.
    for field in _fields(error):
        if (seconds := _seconds(field)) is not None:
            return seconds
        if isinstance(field, str) and (seconds := span(field)) is not None:
            return seconds
    found = re.search(_IN_TEXT, message.lower())
    return span(found[1]) if found else None


def _fields(error: Iterable[Layer]) -> Iterator[Any]:
    for layer, _how, _inner in error:
        metadata, details = layer.get("metadata"), layer.get("details")
        if isinstance(metadata, dict):
            yield metadata.get("retry_after_seconds")
        yield layer.get("retry_after")
        for detail in details if isinstance(details, list) else ():
            if isinstance(detail, dict):
                yield detail.get("retryDelay")


def _seconds(value: Any) -> float | None:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        return None
    return seconds if 0 <= seconds < 1e9 else None
