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
from batcher.send import sse, wire
from batcher.send.retry_after import retry_after
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
    assert not sse.is_stream({"Content-Type": "text/event-stream"}, body)
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


# An error under HTTP 200 is what the status that it names would be.
TABLE += [
    (200, said("slow down", code=429), "RateLimited rate_limited"),
    (200, said("slow down", code="429"), "RateLimited rate_limited"),
    (200, {"error": "slow down", "status": 429}, "RateLimited rate_limited"),
    (200, said("no such key", code=401), "NotAllowed auth"),
    (200, said("no such key", status="UNAUTHENTICATED", code=401), "NotAllowed auth"),
    (200, said("x", code=402), "OutOfQuota quota"),
    (200, said("x", code=404), "NotFound not_found"),
    (200, said("x", code=400), "BadRequest bad_request"),
    (200, said("x", code=503), "ServerError server_error"),
    (200, said("x", type="invalid_request_error"), "BadRequest bad_request"),
    (200, said("The server had an error", type="server_error"), "ServerError server_error"),
    (200, said("Overloaded", type="overloaded_error"), "ServerError server_error"),
    (200, {"error": ["Rate limit reached"]}, "RateLimited rate_limited"),
    (200, {"error": [{"message": "Incorrect API key provided"}]}, "NotAllowed auth"),
    (200, {"errors": [{"code": 10000, "message": "rate limited"}], "success": False}, "RateLimited rate_limited"),
    (200, {"error_code": 18, "error_msg": "Open api qps request limit reached"}, "RateLimited rate_limited"),
    (200, {"error_code": 17, "error_msg": "Open api daily request limit reached"}, "OutOfQuota quota"),
    (200, {"error_code": 110, "error_msg": "Access token invalid or no longer valid"}, "NotAllowed auth"),
    (200, {"error_code": 336100, "error_msg": "try again"}, "ServerError server_error"),
    (200, {"code": 1302, "msg": "您当前使用该 API 的并发数过高", "success": False}, "RateLimited rate_limited"),
    (200, {"code": 1113, "msg": "x", "success": False}, "OutOfQuota quota"),
    (200, {"code": 1301, "msg": "x", "success": False}, "BadRequest filtered"),
    (200, {"code": 500, "msg": "x", "choices": []}, "ServerError server_error"),
    (200, {"code": "Throttling.RateQuota", "message": "Requests rate limit exceeded"}, "RateLimited rate_limited"),
    (200, {"code": "InvalidApiKey", "message": "Invalid API-key provided."}, "NotAllowed auth"),
    (200, {"base_resp": {"status_code": 1004, "status_msg": "login fail"}, "choices": None}, "NotAllowed auth"),
    (200, {"base_resp": {"status_code": 1027, "status_msg": "x"}, **OK}, "BadRequest filtered"),
    (200, {"base_resp": {"status_code": 0, "status_msg": "success"}, **OK}, "ok"),
    (200, {"header": {"code": 10013, "message": "x"}}, "BadRequest filtered"),
    (200, {"Response": {"Error": {"Code": "LimitExceeded", "Message": "too many requests"}}}, "RateLimited rate_limited"),
    (200, {"success": False, "message": "boom", **OK}, "BadResponse bad_response"),
    (200, {"error": {"message": "", "type": "", "code": None}, **OK}, "ok"),
    (200, {"detail": "Error code: 503 - upstream"}, "ServerError server_error"),
    (200, {"choices": [{"message": {"content": "ha"}, "finish_reason": "error",
                        "error": {"code": 429, "message": "slow down"}}]}, "RateLimited rate_limited"),
]  # fmt: skip
# The reason of a provider behind a gateway, however deep it stands.
RAW = {"error": {"message": "This model's maximum context length is 8192 tokens", "code": 400}}


def passed_on(raw, code=400, **more):
    metadata = {"raw": raw, "provider_name": "Crucible", **more}
    return said("Provider returned error", code=code, metadata=metadata)


TABLE += [
    (400, passed_on(json.dumps(RAW)), "BadRequest context_length"),
    (400, passed_on(RAW), "BadRequest context_length"),
    (400, passed_on(json.dumps(passed_on(json.dumps(RAW)))), "BadRequest context_length"),
    (502, passed_on(json.dumps(RAW), 502), "BadRequest context_length"),
    (200, passed_on(json.dumps(RAW)), "BadRequest context_length"),
    (400, passed_on(json.dumps(RAW))["error"], "BadRequest context_length"),
    (400, passed_on("z-ai/glm is temporarily rate-limited upstream. Please retry shortly"), "RateLimited rate_limited"),
    (429, passed_on("z-ai/glm is temporarily rate-limited upstream.", 429), "RateLimited rate_limited"),
    (400, passed_on('{"error":{"message":"content_filter","code":"content_filter"}}'), "BadRequest filtered"),
    (502, passed_on("Your key was refused", 502), "ServerError server_error"),
    (502, passed_on('{"error":{"message":"invalid key","code":401}}', 502), "ServerError server_error"),
    (400, said("litellm.BadRequestError: AnthropicException - " + json.dumps(RAW)), "BadRequest context_length"),
    (500, said("Error code: 429 - {'error': {'message': 'Too many requests', 'type': 'x'}}"), "RateLimited rate_limited"),
    (500, said("Error code: 402 - {'error': {'message': 'Insufficient Balance', 'type': 'x'}}"), "OutOfQuota quota"),
]  # fmt: skip
# Money, in the words of LiteLLM, OpenAI, Anthropic, OpenRouter, DeepSeek, Google, one-api, DashScope, Kimi and others.
TABLE += [
    *((status, said(text), "OutOfQuota quota") for status in (400, 401, 403, 429) for text in (
        "Budget has been exceeded! Current cost: 26.075, Max budget: 0.25",
        "litellm.BadRequestError: OpenAIException - Budget has been exceeded! Team=99c7 Current cost: 1, Max budget: 1",
        "ExceededBudget: End User=ishaan3 over budget. Spend=0.0008, Budget=0.0001",
        "Insufficient Balance",
        "insufficient account balance",
        "Your credit balance is too low to access the Anthropic API.",
        "Access denied, please make sure your account is in good standing.",
        "You have no credits remaining",
        "用户额度不足", "该令牌额度已用尽", "余额不足或无可用资源包,请充值。", "您的账户已欠费", "預算超出，餘額不足",
        "Your account org-1 is suspended, please check your plan and billing details",
        "ExceededTokenBudget: Current spend for token: 7.2e-05; Max Budget for Token: 2e-07",
        "You have reached your specified API usage limits. You will regain access on 2027-01-01 at 00:00 UTC.",
        "Key limit exceeded (monthly limit). Manage it using https://host/settings/keys",
        "Your account [2100] has reached the set inference limit for the [x] model, and the model service has been paused.",
    )),
    *((status, said(text), "OutOfQuota quota") for status in (403, 429) for text in (
        "Monthly token quota reached for this workspace", "You exceeded your weekly quota", "weekly limit has been reached",
        "今日调用次数已达上限", "每日请求次数超限", "達到每月用量上限",
    )),
    *((status, said(text), "OutOfQuota quota") for status in (401, 403, 429) for text in (
        "Your prepayment credits are depleted.", "You have reached your monthly usage limit.", "Your free trial has ended.",
        "Your account is in arrears.", "You ran out of funds, please top up.",
    )),
    (429, said("No deployments available - crossed budget: Exceeded budget for deployment"), "OutOfQuota quota"),
    (429, said("Your AI usage allowance has been reached.", type="budget_exceeded", code="429"), "OutOfQuota quota"),
    (400, said("x", code="Arrearage"), "OutOfQuota quota"),
    (403, said("The free tier of the model has been exhausted.", code="AllocationQuota.FreeTierOnly"), "OutOfQuota quota"),
    (402, said("This request requires more credits, or fewer max_tokens.", code=402), "OutOfQuota quota"),
    (403, said("token quota is not enough, token remain quota: ＄0.01, need quota: ＄0.09"), "OutOfQuota quota"),
]  # fmt: skip
# The load of those behind a gateway is not the account's.
TABLE += [
    *((status, said(text), kind) for text in (
        "当前分组上游负载已饱和，请稍后再试 (tid: 2026)", "The upstream load of the current group is saturated, please try again later",
        "Upstream saturated",
    ) for status, kind in (
        (200, "ServerError server_error"), (400, "ServerError server_error"), (403, "ServerError server_error"),
        (429, "RateLimited rate_limited"), (500, "ServerError server_error"), (503, "ServerError server_error"),
    )),
]  # fmt: skip
TABLE += [
    *((*ended(reason), "filtered") for reason in (
        "guardrail_intervened", "GUARDRAIL_INTERVENED", "guardrailIntervened", "content_filtered", "content-filtered",
        "contentFilter", "FinishReason.SAFETY", "FINISH_REASON_SAFETY", "PROHIBITED_CONTENT", "RECITATION", "MODEL_ARMOR",
        "ERROR_TOXIC", "sensitive", "content_policy_violation", "IMAGE_PROHIBITED_CONTENT",
    )),
    *((*ended(reason), "truncated") for reason in (
        "max_length", "MAX_LENGTH", "max-length", "maxTokens", "max_output_tokens", "ERROR_LIMIT", "token_limit_reached",
        "model_context_window_exceeded", "pause_turn", "LENGTH", "FINISH_REASON_MAX_TOKENS",
    )),
    *((*ended(reason), "refused") for reason in ("refusal", "REFUSAL")),
    *((*ended(reason), "BadResponse bad_response") for reason in (
        "ERROR", "USER_CANCEL", "insufficient_system_resource", "MALFORMED_FUNCTION_CALL", "malformed_model_output", "TIMEOUT",
        "engine_overloaded", "unexpected_tool_call",
    )),
    *((*ended(reason), "ok") for reason in (
        "eos", "COMPLETE", "stop_sequence", "stopSequence", "STOP_TOKEN", "end-turn", "FINISH_REASON_STOP", "", "null",
    )),
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
        (429, {"error": {"message": "Too many requests. See your plan for daily, weekly and monthly limits."}}, {},
         "RateLimited"),
        (429, {"error": {"message": "每分钟请求次数已达上限"}}, {}, "RateLimited"),
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
    assert retry_after(headers, message=message) == seconds


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
    ("usage", "service_tier"), ("usage", "cache_creation"), ("usage", "cached_tokens"),
    ("usage", "cache_creation", "ephemeral_1h_input_tokens"), ("usage", "cache_creation_input_tokens"),
    ("usage", "prompt_tokens_details", "cache_write_tokens"),
    ("usage", "prompt_tokens_details", "cache_creation_token_details"),
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
    assert changes or wire._usual(sent) is not None
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
            if sse.is_stream({}, sent):
                sent, _first = sse.whole(sent)
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
        # More thoughts than answer are none of it, whatever the total.
        ({**USED, "completion_tokens_details": {"reasoning_tokens": 93}}, (10, 98, None)),
        ({**USED, "total_tokens": 15, "completion_tokens_details": {"reasoning_tokens": 93}}, (10, 98, None)),
        # Other names, alone or beside the usual ones.
        ({"input_tokens": 10, "output_tokens": 5}, (10, 5, None)),
        ({"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 7}, (17, 5, 7)),
        ({"input_tokens": 10, "output_tokens": 5, "input_tokens_details": {"cached_tokens": 7}}, (10, 5, 7)),
        ({**USED, "total_tokens": 15, "input_tokens": 0, "output_tokens": 0}, (10, 5, None)),
        ({"prompt_tokens": 0, "completion_tokens": 0, "input_tokens": 10, "output_tokens": 5}, (10, 5, None)),
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


def refusal(status, body, *, asked=b"", headers=None):
    with pytest.raises(RequestError) as caught:
        wire.read(status, headers or {}, json.dumps(body).encode(), keep_raw=False, asked=asked)
    return caught.value


ROW = "Hello, I have insufficient balance on my card, my account is suspended and the model gpt-9 does not exist; per day."


@pytest.mark.parametrize("status", [400, 403, 422, 429])
@pytest.mark.parametrize(
    "told",
    ["Bad input: {}", "Invalid value: '{}' is no list", "cannot parse {!r}", "messages.0.content: {}", "{}"],
)  # fmt: skip
def test_a_rows_own_text_in_an_error_ends_no_run(status, told):
    """Errors repeat what was asked for; the account, the key and the model have nothing to do with it."""
    asked = json.dumps({"messages": [{"role": "user", "content": ROW}]}).encode()
    found = refusal(status, said(told.format(ROW)), asked=asked).outcome.value
    assert found == {403: "auth", 429: "rate_limited"}.get(status, "bad_request")
    assert refusal(status, said("Insufficient balance"), asked=asked).outcome.value == "quota"


def test_the_input_that_a_validator_repeats_is_left_out():
    """FastAPI puts the whole row beside what is wrong with it."""
    fault = {"loc": ["body", "messages"], "msg": "Input should be a list", "input": ROW}
    error = refusal(422, {"detail": [fault]})
    assert (error.outcome.value, str(error)) == (
        "bad_request",
        "body.messages: Input should be a list",
    )


@pytest.mark.parametrize(
    ("body", "headers", "name"),
    [
        (said("no (tid: 2026120111223344)"), {}, "2026120111223344"),
        (said("失败 (request id: 20261201A-b)"), {}, "20261201A-b"),
        ({**said("no"), "request_id": "req_1"}, {"cf-ray": "8a"}, "req_1"),
        (said("no (tid: 2026120111223344)"), {"x-request-id": "head"}, "head"),
        (said("no"), {"cf-ray": "8a-FRA"}, "8a-FRA"),
        (said("no"), {}, None),
    ],
)
def test_the_name_of_a_request_is_found_where_no_header_has_it(body, headers, name):
    """AiHubMix tells it in the message alone."""
    assert refusal(400, body, headers=headers).request_id == name


def test_a_balance_that_does_not_cover_the_longest_answer_says_what_to_lower():
    """Gateways set the price of `max_tokens` aside before they answer."""
    for text in (
        "token quota is not enough, token remain quota: ＄0.01, need quota: ＄0.09",
        "预扣费额度失败, 用户剩余额度: ＄0.008, 需要预扣费额度: ＄0.05",
        "This request requires more credits, or fewer max_tokens. You requested up to 64000 tokens, but can only afford 5120.",
    ):
        error = refusal(403, said(text))
        assert error.outcome.value == "quota"
        assert "--param max_tokens=N" in str(error)
    assert "max_tokens" not in str(refusal(403, said("Insufficient balance")))


@pytest.mark.parametrize(
    ("status", "text"),
    [(403, "Your account suspended"), (403, "account suspended"), (403, "The account has been suspended for abuse (tid: 20261)"),
     (401, "This account is currently deactivated"), (400, "This organization has been disabled."), (403, "用户已被封禁"),
     (200, "account suspended")],
)  # fmt: skip
def test_an_account_that_is_suspended_is_told_from_a_wrong_key(status, text):
    """No other request will be answered."""
    error = refusal(
        status,
        said(
            text,
        ),
    )
    assert (error.outcome.value, error.error_type) == ("auth", "account_suspended")
    other = refusal(403, said("The user request was blocked by a policy of this organization."))
    assert other.error_type is None


def test_the_provider_behind_a_gateway_is_named():
    """With the reason, in the place of "Provider returned error"."""
    error = refusal(502, passed_on("the cluster is on fire", 502))
    assert str(error) == "Crucible: the cluster is on fire"
    assert refusal(429, passed_on("slow", 429, retry_after_seconds=7)).retry_after == 7


def test_a_status_inside_a_200_is_the_rows_http_status():
    """A 429 counts as one; a failure may have been billed, as a model may have worked on it."""
    error = refusal(200, said("x", code=429, metadata={"retry_after_seconds": 3}))
    assert (error.status, error.retry_after, error.in_answer) == (429, 3.0, True)
    assert refusal(200, said("x", code=503)).in_answer
    assert not refusal(503, said("x")).in_answer


SPLIT = {"ephemeral_5m_input_tokens": 300, "ephemeral_1h_input_tokens": 100}
ALL = {"prompt_tokens": 1000, "completion_tokens": 5, "total_tokens": 1005}


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        # OpenAI, OpenRouter.
        ({**ALL, "prompt_tokens_details": {"cached_tokens": 200, "cache_write_tokens": 400}}, (1000, 200, 400, None)),
        ({**ALL, "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0}}, (1000, 0, 0, None)),
        # A longer write does not bill again what was read (seen through new-api).
        ({"prompt_tokens": 3619, "completion_tokens": 36, "total_tokens": 3655, "prompt_tokens_details":
          {"cached_tokens": 2921, "cached_creation_tokens": 120, "cache_write_tokens": 3616}}, (3619, 2921, 698, None)),
        # LiteLLM: in the prompt, said twice.
        ({**ALL, "cache_creation_input_tokens": 400, "cache_read_input_tokens": 200, "prompt_tokens_details":
          {"cached_tokens": 200, "cache_creation_tokens": 400, "cache_creation_token_details": SPLIT}},
         (1000, 200, 400, 100)),
        # DashScope.
        ({**ALL, "prompt_tokens_details": {"cached_tokens": 0, "cache_creation_input_tokens": 400, "cache_type":
          "ephemeral", "cache_creation": {"ephemeral_5m_input_tokens": 400}}}, (1000, 0, 400, 0)),
        # new-api.
        ({**ALL, "prompt_tokens_details": {"cached_tokens": 0, "cached_creation_tokens": 400},
          "claude_cache_creation_5_m_tokens": 0, "claude_cache_creation_1_h_tokens": 400}, (1000, 0, 400, 400)),
        ({**ALL, "prompt_tokens_details": {"cached_tokens": 0, "cached_creation_tokens": 400},
          "claude_cache_creation_5_m_tokens": 0, "claude_cache_creation_1_h_tokens": 0}, (1000, 0, 400, None)),
        # An older one: beside the prompt's.
        ({**ALL, "input_tokens": 0, "prompt_tokens_details": {"cached_tokens": 200, "cached_creation_tokens": 400}},
         (1600, 200, 400, None)),
        # Anthropic's numbers as they are: beside the prompt's.
        ({"prompt_tokens": 3, "completion_tokens": 5, "cache_creation_input_tokens": 12304,
          "cache_read_input_tokens": 0}, (12307, 0, 12304, None)),
        ({**ALL, "cache_creation_input_tokens": 400, "cache_read_input_tokens": 200, "cache_creation": SPLIT},
         (1600, 200, 400, 100)),
        ({**ALL, "total_tokens": 1605, "cache_read_input_tokens": 200, "prompt_tokens_details":
          {"cached_tokens": 200, "cache_creation_tokens": 400}}, (1600, 200, 400, None)),
        # Moonshot; nothing told.
        ({**ALL, "cached_tokens": 200}, (1000, 200, None, None)),
        (ALL, (1000, None, None, None)),
        # What is no number is not told.
        ({**ALL, "cache_creation": [1], "prompt_tokens_details": {"cache_write_tokens": "many"}}, (1000, None, None, None)),
    ],
)  # fmt: skip
def test_writes_to_the_cache_are_read_in_all_their_dialects(usage, expected):
    used = wire.read(200, {}, json.dumps({**OK, "usage": usage}).encode(), keep_raw=False).usage
    found = (
        used.prompt_tokens,
        used.cached_tokens,
        used.cache_write_tokens,
        used.cache_write_1h_tokens,
    )
    assert found == expected


@pytest.mark.parametrize(
    ("body", "headers", "tier"),
    [
        ({"service_tier": "flex"}, {}, "flex"),
        ({"service_tier": "Priority"}, {"x-gemini-service-tier": "standard"}, "priority"),
        ({"usage": {**USED, "service_tier": "batch"}}, {}, "batch"),
        ({"usage": USED}, {"x-gemini-service-tier": "flex"}, "flex"),
        ({}, {}, None),
        *(({"service_tier": name}, {}, None) for name in ("auto", "default", "standard", "on_demand", "", 7, None)),
    ],
)  # fmt: skip
def test_the_service_tier_is_that_which_served_the_request(body, headers, tier):
    for keep_raw in (False, True):
        sent = json.dumps({**OK, "usage": USED, **body}).encode()
        assert wire.read(200, headers, sent, keep_raw=keep_raw).usage.service_tier == tier


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, (None, None, None)),
        ({"prompt_tokens": 10, "completion_tokens": 0, "total_tokens": 10}, (10, None, None)),
        ({"prompt_tokens": 0, "completion_tokens": 5, "total_tokens": 5}, (None, 5, None)),
        ({"prompt_tokens": 0, "completion_tokens": 5, "total_tokens": 15}, (None, 5, 15)),
        ({"prompt_tokens": 10, "completion_tokens": 0, "total_tokens": 30}, (10, 20, 30)),
        ({"prompt_tokens": -1, "completion_tokens": "5", "total_tokens": 1e300}, (None, None, None)),
        ({"prompt_tokens": 0, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 9}}, (9, 5, None)),
    ],
)  # fmt: skip
def test_a_zero_that_cannot_be_one_is_not_told(usage, expected):
    """A prompt was read and an answer written: a budget would never stop."""
    used = wire.read(200, {}, json.dumps({**OK, "usage": usage}).encode(), keep_raw=False).usage
    assert (used.prompt_tokens, used.completion_tokens, used.total_tokens) == expected
    assert (
        used
        == wire.read(200, {}, json.dumps({**OK, "usage": usage}).encode(), keep_raw=True).usage
    )


def test_an_empty_answer_may_have_no_tokens_and_an_error_none_at_all():
    """OpenRouter does not bill an answer without a word in it."""
    empty = {"choices": [{"message": {"content": ""}, "finish_reason": "stop"}],
             "usage": {"prompt_tokens": 10, "completion_tokens": 0, "total_tokens": 10, "cost": 0}}  # fmt: skip
    used = wire.read(200, {}, json.dumps(empty).encode(), keep_raw=False).usage
    assert (used.prompt_tokens, used.completion_tokens, used.total_tokens, used.cost_usd) == (
        10,
        0,
        10,
        0,
    )
    nothing = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    assert refusal(400, {**said("no"), "usage": nothing}).usage.prompt_tokens == 0


@pytest.mark.parametrize(
    ("told", "cost"),
    [
        ({"cost": 0, "is_byok": True}, None),
        ({"cost": 0.0001, "is_byok": True}, None),
        ({"cost": 0.0001, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.002}}, 0.0021),
        ({"is_byok": True, "cost_details": {"upstream_inference_cost": 0.002}}, 0.002),
        ({"cost": 0, "is_byok": True, "cost_details": {"upstream_inference_cost": 0}}, None),
        ({"cost": 0.003, "is_byok": False, "cost_details": {"upstream_inference_cost": 0.002}}, 0.003),
        # Perplexity, which bills each request and search besides; DeepInfra.
        ({"cost": {"input_tokens_cost": 0.001, "request_cost": 0.005, "total_cost": 0.006}}, 0.006),
        ({"cost": {"request_cost": 0.005}}, None), ({"estimated_cost": 0.0002}, 0.0002),
        ({"cost": -1}, None), ({"cost": "0.1"}, None), ({"cost": 1e9}, None), ({"cost": True}, None),
    ],
)  # fmt: skip
def test_with_a_key_of_ones_own_the_providers_part_counts(told, cost):
    """What the gateway takes is not all of it."""
    used = wire.read(
        200, {}, json.dumps({**OK, "usage": {**USED, **told}}).encode(), keep_raw=False
    ).usage
    assert used.cost_usd == (None if cost is None else pytest.approx(cost))
