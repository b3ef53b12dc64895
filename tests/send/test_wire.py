"""Replies in their many dialects become a Completion or one kind of error."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.errors import RequestError
from batcher.send import wire

OK = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}


def outcome(status: int, body: object, headers: dict[str, str] | None = None) -> str:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        return wire.read(status, headers or {}, raw, keep_raw=False).outcome.value
    except RequestError as error:
        return f"{type(error).__name__} {error.outcome.value}"


TABLE = [
    (200, OK, "ok"),
    (200, b"\n\n " + json.dumps(OK).encode(), "ok"),
    (200, b"<html>", "BadResponse bad_response"),
    (200, b"", "BadResponse bad_response"),
    (200, {"error": {"message": "no"}}, "BadResponse bad_response"),
    (200, {"choices": []}, "BadResponse bad_response"),
    (401, {"error": {"message": "bad key"}}, "NotAllowed auth"),
    (402, {"error": {"message": "pay"}}, "OutOfQuota quota"),
    (403, {"error": {"code": "insufficient_user_quota", "message": ""}}, "OutOfQuota quota"),
    (404, {"error": {"code": "model_not_found", "message": "m"}}, "NotFound not_found"),
    (400, {"error": {"code": "context_length_exceeded"}}, "BadRequest context_length"),
    (400, {"error": {"code": "content_filter"}}, "BadRequest filtered"),
    (422, {"detail": [{"msg": "bad"}]}, "BadRequest bad_request"),
    (429, {"error": "slow down"}, "RateLimited rate_limited"),
    (429, b"", "RateLimited rate_limited"),
    (429, {"error": {"type": "insufficient_quota", "message": "x"}}, "OutOfQuota quota"),
    (503, {"error": {"message": "rate limited by provider"}}, "RateLimited rate_limited"),
    (524, b"<html><h1>524</h1></html>", "ServerError server_error"),
    (500, [{"error": {"code": 500, "message": "list"}}], "ServerError server_error"),
]


@pytest.mark.parametrize(("status", "body", "expected"), TABLE)
def test_each_dialect_has_its_outcome(status, body, expected):
    """All five peers tried take at least one of these for a success."""
    assert outcome(status, body) == expected


@pytest.mark.parametrize(
    ("headers", "message", "seconds"),
    [
        ({"retry-after-ms": "1500"}, "", 1.5),
        ({"retry-after": "7"}, "", 7.0),
        ({"llm_provider-retry-after": "60"}, "", 60.0),
        ({}, "Please try again in 7m30.5s.", 450.5),
        ({}, "Please retry in 32.1s", 32.1),
        ({}, "retry after 6 seconds", 6.0),
        ({}, "no word of it", None),
    ],
)
def test_the_wait_is_found_wherever_it_stands(headers, message, seconds):
    """A header in seconds or milliseconds, or prose."""
    assert wire.retry_after(headers, None, message) == seconds


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "choices", "message", "usage", "content"]), inside
        )
    ),
)


@given(st.integers(200, 599), JSON | st.binary())
def test_nothing_but_a_request_error_leaves_the_module(status, body):
    """Whatever a gateway sends is a row with a reason, never a crash."""
    outcome(status, body if isinstance(body, bytes) else json.dumps(body).encode())
