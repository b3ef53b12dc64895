"""Whether a failed request is sent again, and after how long. Touches: nothing.

| error | again? | after |
|---|---|---|
| RateLimited | yes; does not count as a retry | the time that the server named; from the third on at least a backoff |
| ServerError, BadResponse, NoAnswer | up to `max_retries` times | a backoff, or the time that the server named if that is longer, two minutes at most |
| AskAgain | yes | at once |
| OutOfQuota, NotAllowed, NotFound, BadRequest | no | |

All within the row's time.
"""

from __future__ import annotations

import random

from batcher.errors import AskAgain, BadResponse, NoAnswer, RateLimited, RequestError, ServerError
from batcher.limits.backoff import LONGEST_NAMED, backoff

__all__ = ["FATAL", "decide"]


def decide(
    error: RequestError, failures: int, refusals: int, max_retries: int, rng: random.Random
) -> float | None:
    """Seconds to wait before the request goes again; None when it does not.

    Args:
        error: How the last attempt failed.
        failures: Attempts so far that failed, refusals not counted; the last one included.
        refusals: Attempts so far that were answered 429; the last one included.
        max_retries: Attempts allowed after the first; refusals do not count.
        rng: Where the jitter comes from.
    """
    match error:
        case RateLimited():
            # A request that is refused again and again must not hold up others.
            wait = 0.0 if refusals <= 2 else backoff(refusals - 2, rng)
            return max(wait, error.retry_after or 0.0)
        case AskAgain():
            return 0.0
        case ServerError() | BadResponse() | NoAnswer():
            if failures > max_retries:
                return None
            return max(backoff(failures, rng), min(error.retry_after or 0.0, LONGEST_NAMED))
        case _:
            return None


FATAL = frozenset({"auth", "quota", "not_found"})
"""Outcomes that every other request to the model will have, too."""
