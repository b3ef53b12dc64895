"""Replies in their many dialects become a Completion or one kind of error."""

import copy
import json
from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.errors import (
    BadRequest,
    NotAllowed,
    NotFound,
    OutOfQuota,
    RateLimited,
    RequestError,
    ServerError,
)
from batcher.send import failures, stream, wire
from tests.torture import dice, tell, times

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


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            {"error": {"message": "maximum context length " + "model x " * 2_000_000}},
            "context_length",
        ),
        ({"error": {"message": "m", "code": "content_filter" + " a" * 4_000_000}}, "filtered"),
        (b"no such model" + b"<" * 4_000_000, "not_found"),
        (b"<script" * 600_000, "bad_request"),
    ],
)
def test_only_the_beginning_of_a_long_error_is_searched_for_words(body, expected):
    """Some are 60 MB long; what matters stands first."""
    assert outcome(400, body).endswith(expected)


WHOLE = json.dumps(OK).encode()


@pytest.mark.parametrize(
    "body",
    [
        b": keep-alive\n\n" * 3 + WHOLE,
        b":\r\n\r\n: OPENROUTER PROCESSING\r\n\r\n" + WHOLE + b"\r\n",
        b"\0\0\n \xef\xbb\xbf" + WHOLE,
        WHOLE + b"\0",
        WHOLE + b"\n\ndata: [DONE]\n\n",
        WHOLE + b"data: [DONE]",
        WHOLE + b"\n[DONE]\n",
        b": x\n" + WHOLE + b"\n: y\n\n: z\n\ndata:[DONE]\n\0\n",
    ],
)
def test_what_servers_of_streams_put_around_an_answer_does_no_harm(body):
    """They keep the connection open before it, and some write the mark of their end behind it."""
    assert not stream.is_stream({"Content-Type": "text/event-stream"}, body)
    assert outcome(200, body) == "ok"


def test_nothing_of_a_text_is_taken_for_such_a_mark():
    """An answer may speak of streams."""
    said = ": a\n\ndata: [DONE]\n: b\0"
    body = json.dumps({"choices": [{"message": {"content": said}, "finish_reason": "stop"}]})
    assert wire.read(200, {}, f"{body}\n: c\n".encode(), keep_raw=False).content == said


def test_a_flood_of_comments_is_read_once():
    """However many there are, before an answer or behind it."""
    for body in (
        b":\n" * 2_000_000 + WHOLE,
        b"\0" * 8_000_000 + WHOLE,
        WHOLE + b"\n" + b":\n" * 30_000,
    ):
        assert outcome(200, body) == "ok"


def ended(reason):
    return (200, {"choices": [{"message": {"content": "hi"}, "finish_reason": reason}]})


def said(text, **more):
    return {"error": {"message": text, **more}}


# Each in the words of who sends it: Zhipu, Gemini, Anthropic, xAI, DashScope, DeepSeek, MiniMax, Ollama.
TABLE += [
    *((*ended(reason), "filtered") for reason in ("sensitive", "content-filter", "BLOCKLIST", "SPII", "IMAGE_SAFETY")),
    *((*ended(reason), "truncated") for reason in ("model_context_window_exceeded", "repetition_truncation", "MAX_TOKENS")),
    *((*ended(reason), "BadResponse bad_response") for reason in ("network_error", "MALFORMED_FUNCTION_CALL", "cancelled")),
    *((*ended(reason), "ok") for reason in ("STOP", "end_turn", "whatever", None)),
    (400, said("Your credit balance is too low to access the Anthropic API."), "OutOfQuota quota"),
    (429, said("您的账户已欠费，请充值后重试", code="1113"), "OutOfQuota quota"),
    (200, {"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}, "OutOfQuota quota"),
    (200, {"base_resp": {"status_code": 1002, "status_msg": "rate limit"}}, "RateLimited rate_limited"),
    (400, said("API key not valid. Please pass a valid API key.", status="INVALID_ARGUMENT",
               details=[{"reason": "API_KEY_INVALID"}]), "NotAllowed auth"),
    (400, said("API key expired. Please renew the API key."), "NotAllowed auth"),
    (400, said("The input token count (1200000) exceeds the maximum number of tokens allowed (1048576)."),
     "BadRequest context_length"),
    (400, said("input length and `max_tokens` exceed context limit: 1 + 2 > 200000"), "BadRequest context_length"),
    (400, {"error": "the input length exceeds the context length"}, "BadRequest context_length"),
    (400, said("This model's maximum prompt length is 131072 but the request contains 1 tokens."), "BadRequest context_length"),
    (400, said("Range of input length should be [1, 129024]"), "BadRequest context_length"),
    (400, said("Content Exists Risk"), "BadRequest filtered"),
    (400, said("系统检测到输入或生成内容可能包含不安全或敏感内容", code="1301"), "BadRequest filtered"),
    (400, said("Input data may contain inappropriate content.", code="DataInspectionFailed"), "BadRequest filtered"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body", "expected"), TABLE)
def test_each_dialect_has_its_outcome(status, body, expected):
    """All five peers tried take at least one of these for a success."""
    assert outcome(status, body) == expected


# Where a 429 speaks of money and means a minute, and the other way round.
GROQ = (
    "Rate limit reached for model `x` on tokens per {0} ({1}): Limit 12000, Used 11700, Requested "
    "700. Please try again in 1.98s. Need more tokens? Upgrade at https://host/settings/billing"
)
GEMINI = "You exceeded your current quota, please check your plan and billing details."


def gemini(quota: str | None, delay: str | None) -> object:
    details: list[object] = []
    if quota:
        details.append({"@type": "QuotaFailure", "violations": [{"quotaId": quota}]})
    if delay:
        details.append({"@type": "RetryInfo", "retryDelay": delay})
    return [{"error": {"code": 429, "message": GEMINI, "status": "RESOURCE_EXHAUSTED",
                       "details": details}}]  # fmt: skip


@pytest.mark.parametrize(
    ("status", "body", "headers", "expected"),
    [
        (429, {"error": {"message": GROQ.format("minute", "TPM"), "code": "rate_limit_exceeded"}},
         {"retry-after": "2"}, "RateLimited"),
        (429, {"error": {"message": GROQ.format("day", "TPD"), "code": "rate_limit_exceeded"}},
         {"retry-after": "20"}, "OutOfQuota"),
        (429, gemini("GenerateRequestsPerMinutePerProjectPerModel-FreeTier", "38.2s"), {}, "RateLimited"),
        (429, gemini("GenerateRequestsPerDayPerProjectPerModel-FreeTier", "38s"), {}, "OutOfQuota"),
        (429, gemini(None, None), {}, "OutOfQuota"),
        (429, gemini(None, "3s"), {}, "RateLimited"),
        (429, {"error": {"message": "Rate limit reached on requests per min (RPM): Limit 3. Please "
                         "try again in 20s. Add a payment method at https://host/account/billing"}},
         {}, "RateLimited"),
        (429, {"error": {"message": GEMINI, "type": "insufficient_quota"}}, {"retry-after": "1"},
         "OutOfQuota"),
        (402, {"error": {"message": "Too much in flight"}}, {"retry-after": "2"}, "RateLimited"),
        (402, {"error": {"message": "Insufficient credits"}}, {}, "OutOfQuota"),
        (403, {"error": {"message": "The team has used all available credits"}}, {}, "OutOfQuota"),
        (429, {"error": {"message": "used all available credits or reached its monthly spending limit"}},
         {}, "OutOfQuota"),
        (200, b'{"choices":[{"message":{"content":"they hit a rate limit, too many requests', {},
         "BadResponse"),
        (200, b"<html>429 Too Many Requests: the request too large", {}, "BadResponse"),
        (200, {"error": {"message": "Rate limit exceeded"}}, {}, "RateLimited"),
    ],
)  # fmt: skip
def test_a_rate_is_told_from_money_and_a_minute_from_a_day(status, body, headers, expected):
    """Stopping a night's run for a minute's limit costs the night; waiting for money, the same."""
    assert outcome(status, body, headers).split(" ")[0] == expected


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (201, OK, "ok"),
        (200, b"\xef\xbb\xbf" + json.dumps(OK).encode(), "ok"),
        (200, {"choices": [{"message": {"content": "\u200b\ufeff \u00a0"}}]}, "empty"),
        (200, {"choices": [{"message": {"content": "\u200b안"}}]}, "ok"),
        (204, b"", "BadResponse bad_response"),
    ],
)
def test_what_is_nearly_an_answer(status, body, expected):
    """Paid for all the same."""
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
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, "", 0.0),
        ({"retry-after": "Wed, 21 Oct 99999999999999999999 07:28:00 GMT"}, "", None),
        ({"retry-after": "Wed, 21 Oct 2025 07:28:00 +999999999999999999999999999"}, "", None),
        ({"retry-after": "1e400"}, "", None),
        ({"retry-after": "-5"}, "", None),
        ({}, "no word of it", None),
    ],
)
def test_the_wait_is_found_wherever_it_stands(headers, message, seconds):
    """A header in seconds or milliseconds, or prose."""
    assert failures.retry_after(headers, None, message) == seconds


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


@pytest.mark.parametrize(
    ("statuses", "error"),
    [
        ((408, 409, 424, 425, 498, 499, 500, 502, 503, 504, *range(520, 531)), ServerError),
        ((400, 413, 415, 422, 451), BadRequest),
        ((401, 403, 407), NotAllowed),
        ((404, 405, 301, 302, 307, 308), NotFound),
        ((429,), RateLimited),
        ((402,), OutOfQuota),
    ],
    ids=lambda of: of.__name__ if isinstance(of, type) else "",
)
def test_a_status_alone_tells_whose_fault_it_is(statuses, error):
    """Without a word, with a page of a proxy, or with one that means nothing."""
    for status in statuses:
        for body in (
            b"",
            b"<html><body>Oops</body></html>",
            b'{"detail": "no"}',
            b'"no"',
            b"[]",
            b"null",
        ):
            with pytest.raises(error) as caught:
                wire.read(status, {}, body, keep_raw=False)
            assert type(caught.value) is error
            assert str(caught.value)


REAL = [
    (b'{"id":"a","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant",'
    b'"content":"n\\u00e9","refusal":null,"tool_calls":[{"id":"t","type":"function","function":{"name":"f","arguments":'
    b'"{}"}}]},"logprobs":{"content":[{"token":"a","logprob":-0.1,"top_logprobs":[]}]},"finish_reason":"stop"}],"usage":'
    b'{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7,"prompt_tokens_details":{"cached_tokens":4},'
    b'"completion_tokens_details":{"reasoning_tokens":1},"cost":0.001}}'),
    b'{"error":{"message":"Rate limit reached. Please try again in 1.2s.","type":"tokens","param":null,"code":"rate_limit_exceeded"}}',
    (b'[{"error":{"code":429,"message":"Quota","status":"RESOURCE_EXHAUSTED","details":[{"violations":[{"quotaId":"PerDay"}]},'
    b'{"retryDelay":"32s"}]}}]'),
    (b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":"a"},"finish_reason":null}]}\n\n: ping\n\n'
    b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"t","function":{"name":"f","arguments":"{"}}]},'
    b'"finish_reason":"stop"}],"usage":{"prompt_tokens":1}}\n\ndata: [DONE]\n\n'),
]  # fmt: skip
PIECES = [b"null", b"[]", b"{}", b"-1", b"1e400", b"NaN", b"9" * 400, b'""', b"\xff", b"\\ud800", b"true", b'"', b",", b":",
          b"{", b"}", b"[", b"]", b"\n\n", b"data: "]  # fmt: skip


def closely(status, body, *, keep_raw):
    """What a body amounts to, without the response that is kept beside it."""
    try:
        came = wire.read(status, {}, body, keep_raw=keep_raw)
        return msgspec.structs.replace(came, response=None)
    except RequestError as error:
        return type(error), str(error), error.outcome, error.usage


FULL = json.loads(REAL[0])
PLACES = [
    ("id",), ("model",), ("error",), ("choices",), ("choices", 0), ("choices", 0, "message"),
    ("choices", 0, "finish_reason"), ("choices", 0, "error"), ("choices", 0, "logprobs"),
    ("choices", 0, "message", "content"), ("choices", 0, "message", "refusal"),
    ("choices", 0, "message", "tool_calls"), ("choices", 0, "message", "function_call"), ("usage",),
    *(("usage", name) for name in FULL["usage"]), ("usage", "cost_in_usd_ticks"),
    ("usage", "prompt_cache_hit_tokens"), ("usage", "prompt_tokens_details", "cached_tokens"),
    ("usage", "completion_tokens_details", "reasoning_tokens"), ("service_tier",),
]  # fmt: skip
ODD = [None, True, 0, 1, 7, -1, 4.0, 4.5, 1 << 62, 1 << 70, 1e300, "", " ", "7", "a\u200b", "\u200b", "stop",
       "error", "length", "content-filter", [], {}, [None], [{}], "\ud800"]  # fmt: skip
VALUES = st.sampled_from(ODD) | JSON


@given(st.lists(st.tuples(st.sampled_from(PLACES), VALUES), max_size=4), st.booleans())
def test_a_plain_answer_is_what_a_close_look_makes_of_it(changes, called):
    """Most are decoded into their types at once: never to another end than by the way for all others."""
    body = json.loads(REAL[0])
    if not called:
        del body["choices"][0]["message"]["tool_calls"]
    for (*path, last), value in changes:
        at = body
        for step in path:
            if isinstance(at, list):
                at = at[0] if at else None
            else:
                at = at.get(step) if isinstance(at, dict) else None
        if isinstance(at, dict):
            at[last] = copy.deepcopy(value)
    sent = json.dumps(body).encode()
    assert changes or wire._plain(sent) is not None
    assert closely(200, sent, keep_raw=False) == closely(200, sent, keep_raw=True)


def test_mutated_bodies_never_crash():
    """Of real answers, errors and streams: values taken out, doubled, put elsewhere, replaced by nonsense."""
    rng = dice("mutated bodies")
    ended = Counter()
    for _ in range(times(5_000, 100_000)):
        body = bytearray(rng.choice(REAL))
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(body) + 1)
            upto = min(len(body), at + int(rng.expovariate(0.2)))
            match rng.randrange(4):
                case 0:
                    del body[at:upto]
                case 1:
                    body[at:at] = body[at:upto]
                case 2:
                    body[at:upto] = rng.choice(PIECES)
                case 3:
                    body[at:at] = rng.choice(PIECES)
        status = rng.choice([200, 200, 200, 400, 429, 500])
        try:
            sent = bytes(body)
            if stream.is_stream({}, sent):
                sent, _first = stream.whole(sent)
            assert closely(status, sent, keep_raw=False) == closely(status, sent, keep_raw=True)
            came = wire.read(status, {}, sent, keep_raw=True)
            json.dumps(msgspec.to_builtins(came))
            ended[came.outcome] += 1
        except RequestError as error:
            ended[type(error).__name__] += 1
    tell("mutated bodies", **{str(name): n for name, n in ended.most_common(6)})
    assert len(ended) > 4


USED = {"prompt_tokens": 10, "completion_tokens": 5}


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        # Beside the prompt's, as Anthropic counts them.
        ({**USED, "total_tokens": 100_015, "prompt_tokens_details": {"cached_tokens": 100_000}}, (100_010, 5, 100_000)),
        ({**USED, "total_tokens": 15, "prompt_tokens_details": {"cached_tokens": 100_000}}, (100_010, 5, 100_000)),
        ({**USED, "total_tokens": 22, "prompt_tokens_details": {"cached_tokens": 7}}, (17, 5, 7)),
        # A part of them, as OpenAI does; thoughts beside the answer's, as Gemini and xAI do.
        ({**USED, "total_tokens": 15, "prompt_tokens_details": {"cached_tokens": 7}}, (10, 5, 7)),
        ({**USED, "total_tokens": 60, "prompt_cache_hit_tokens": 8}, (10, 50, 8)),
        ({**USED, "total_tokens": 60}, (10, 50, None)),
    ],
)  # fmt: skip
def test_cached_tokens_are_a_part_of_the_prompts_or_beside_them(usage, expected):
    """Or a bill is forty times what was asked for, or nothing."""
    used = wire.read(200, {}, json.dumps({**OK, "usage": usage}).encode(), keep_raw=False).usage
    assert (used.prompt_tokens, used.completion_tokens, used.cached_tokens) == expected


@pytest.mark.parametrize(
    "message",
    [
        {"content": None, "images": [{"image_url": {"url": "data:image/png;base64,AA"}}]},
        {"content": None, "audio": {"data": "AA"}},
        {"content": "", "reasoning_content": "AA"},
    ],
)
def test_what_came_in_the_place_of_a_text_is_kept(message):
    """It was paid for."""
    answer = {"choices": [{"message": message, "finish_reason": "stop"}]}
    came = wire.read(200, {}, json.dumps(answer).encode(), keep_raw=False)
    assert came.outcome.value == "empty"
    assert json.loads(came.response or "") == answer
    assert wire.read(200, {}, json.dumps(OK).encode(), keep_raw=False).response is None


@pytest.mark.parametrize("much", [b"[]," * 1_100_000, b"[" * 1_100_000, b"1," * 4_100_000])
def test_far_too_many_values_are_no_answer(much):
    """Each takes many times its bytes when it is parsed, and all of it holds up every other row."""
    body = b'{"a":[' + much + b'1],"choices":[{"message":{"content":"hi"}}]}'
    assert outcome(200, body) == "BadResponse bad_response"
    assert outcome(200, json.dumps({**OK, "a": "[,{" * 100_000}).encode()) == "ok"


def test_a_redirect_tells_where_to():
    """It is not followed, as it would take the key along."""
    with pytest.raises(NotFound, match=r"https://x\.example/v1"):
        wire.read(301, {"Location": "https://x.example/v1"}, b"", keep_raw=False)
