"""Which fault a request suffers: a matter of seed, body and how often it came. Touches: nothing."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

__all__ = ["FAULTS", "check_shares", "drawn", "point"]

FAULTS = {
    "http_500": "answer 500",
    "http_503": "answer 503",
    "http_429": "answer 429 with Retry-After: 1",
    "html": "200, but a page of HTML",
    "cut_json": "200, billed, the JSON cut in the middle",
    "error_200": "200, but an error object",
    "no_choices": "200, but no choice",
    "disconnect": "the connection is closed without an answer",
    "truncated": "half an answer, finish_reason length",
    "empty": "an empty answer",
    "refused": "a refusal, content null",
    "filtered": "no text, finish_reason content_filter",
    "invalid": "an answer, billed, that is not what was asked for",
    "no_usage": "an answer, billed, without usage",
    "slow": "ten times as slow",
    "context_length": "400, context_length_exceeded",
    "bad_request": "400, a parameter that the model does not know",
    "quota": "429, insufficient_quota",
    "day_limit": "429 with Retry-After: 86400",
    "hang": "no answer until the client gives up, at most an hour",
}


def check_shares(shares: Mapping[str, float]) -> None:
    """Raises ValueError for an unknown fault, a share outside 0 to 1, or more than 1 together."""
    for name, share in shares.items():
        if name not in FAULTS:
            raise ValueError(f"no fault {name!r}; there are {', '.join(FAULTS)}")
        if not 0 <= share <= 1:
            raise ValueError(f"fault {name}={share}: a share is from 0 to 1")
    total = sum(shares.values())
    if total > 1 + 1e-9:
        raise ValueError(f"the faults' shares are {total:g} together; 1 is the most")


def point(seed: int, key: str, nth: int, what: str) -> float:
    """A number above 0 and below 1 that is the same every time for the same arguments."""
    digest = blake2b(f"{seed} {nth} {what} {key}".encode(), digest_size=8).digest()
    return ((int.from_bytes(digest, "big") >> 12) + 0.5) / 2**52


def drawn(shares: Mapping[str, float], seed: int, key: str, nth: int) -> str | None:
    """The fault of the `nth` time that a body with this key comes; a retry draws anew.

    >>> drawn({"http_500": 1.0}, 0, "3f2a", 0)
    'http_500'
    """
    if not shares:
        return None
    left = point(seed, key, nth, "fault")
    for name, share in shares.items():
        left -= share
        if left < 0:
            return name
    return None
