"""One row per kind of error."""

import random

import pytest

from batcher.errors import (
    BadRequest,
    BadResponse,
    NoAnswer,
    NotAllowed,
    NotFound,
    OutOfQuota,
    RateLimited,
    ServerError,
)
from batcher.send.retry import backoff, decide

AGAIN = (ServerError, BadResponse, NoAnswer)
NEVER = (BadRequest, NotAllowed, NotFound, OutOfQuota)


@pytest.mark.parametrize("error", AGAIN)
@pytest.mark.parametrize(("failures", "goes"), [(1, True), (3, True), (4, False), (9, False)])
def test_the_other_sides_faults_go_again_max_retries_times(error, failures, goes):
    """`max_retries=3` is at most four calls."""
    wait = decide(error("x"), failures, 0, 3, random.Random(1))
    assert (wait is not None) is goes


@pytest.mark.parametrize("error", NEVER)
def test_what_will_be_the_same_next_time_never_goes_again(error):
    """Neither the request, nor the key, nor the money changes by waiting."""
    assert decide(error("x", retry_after=1.0), 1, 0, 5, random.Random(1)) is None


@pytest.mark.parametrize("refusals", [1, 2, 3, 50])
def test_a_429_goes_again_whatever_the_retries(refusals):
    """At once to the gate, which waits; a request refused again and again waits by itself."""
    wait = decide(RateLimited("x"), 0, refusals, 0, random.Random(1))
    assert wait is not None
    assert wait == 0.0 if refusals <= 2 else 0.0 <= wait <= 60.0
    named = decide(RateLimited("x", retry_after=7.0), 0, refusals, 0, random.Random(1))
    assert named >= 7.0


@pytest.mark.parametrize(("named", "least"), [(None, 0.0), (7.0, 7.0), (900.0, 120.0)])
def test_a_named_wait_is_obeyed(named, least):
    """503 and its like name one too; an hour's maintenance ends no row before it was tried."""
    waits = [
        decide(ServerError("x", retry_after=named), 1, 0, 5, random.Random(n)) for n in range(50)
    ]
    assert all(wait is not None and wait >= least for wait in waits)


def test_the_jitter_comes_after_the_cap():
    """Or all requests of an outage would meet again at the cap."""
    waits = [backoff(30, random.Random(n)) for n in range(200)]
    assert max(waits) <= 60.0
    assert min(waits) < 10.0
    assert len({round(wait) for wait in waits}) > 30
