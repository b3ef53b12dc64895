"""Which `RequestError` an error reply is, in any provider's dialect. Touches: nothing.

This is the only place that classifies by text. Codes, types and sentences decide, as statuses alone say
little: a 429 may be a rate (wait), a day's limit (do not) or money (stop). What waiting may cure is
looked for first. A reply with status 200 that holds an error counts as the status that the error names.

An error ends a run only by the server's own words: errors often repeat the row's text, and a row may
well speak of an insufficient balance.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from batcher.errors import (
    SUSPENDED,
    BadRequest,
    BadResponse,
    NotAllowed,
    NotFound,
    OutOfQuota,
    RateLimited,
    RequestError,
    ServerError,
)
from batcher.records import BOUNDS, Outcome
from batcher.send.error_body import ErrorBody, layers, read_error, status_in
from batcher.send.retry_after import retry_after

__all__ = [
    "NOT_AN_ANSWER",
    "beginning",
    "failure",
    "refuses_bound_name",
    "refuses_form",
    "refuses_stream_usage",
]

NOT_AN_ANSWER = "HTTP 200 but not an answer: "
"""Begins the message of an error under status 200."""

_MAX_MESSAGE = 1000
_MAX_OWN_WORDS = 800  # Characters of a message that may end a run: a longer one repeats a request.

# Patterns, for lower case: code and type first, then the message. `re` compiles each at its first use, as
# all of them take 20 ms, and most runs see no error.
_MONEY = (
    # LiteLLM, OpenAI, Anthropic, OpenRouter, xAI, DeepSeek, Google
    r"insufficient[_ -]?((user|account|token|prepaid|api)[_ -]?)?(quota|balance|credit|fund)"
    r"|(balance|credits?|funds|quota) (is |are |was )?((too|currently) )*(insufficient|low to|not enough|not sufficient)"
    r"|not (have )?(enough|sufficient) (account |api |prepaid |remaining )?(credit|balance|fund|quota)"
    r"|no (remaining |more |available )?credits? (left|remaining|available)|out of credits"
    r"|credits?[^.]{0,30} (been |is |are )(depleted|exhausted|used up)|free tier[^.]{0,40} exhausted"
    r"|used all available credits|credit_balance_exhausted|requires more credits|can only afford|purchase (more )?credits"
    r"|budget[_ ]?(has been |was |is )?(exceeded|exhausted)|exceeded[_ ]?((your|the|its) )?((monthly|daily|max|current) )?budget"
    r"|over budget|crossed budget|exceeded\w{0,20}budget|key limit exceeded|setlimitexceeded|reached the set inference limit"
    r"|(spend|spending|billing|usage|cost)[_ ](hard[_ ])?(limit|cap|quota)[_ ](has been |was |is )?(exceeded|reached)"
    r"|reached (your|its|the) ((monthly|daily|weekly|specified|project|account|workspace|organization|api) )*(spend|spending|billing|usage|cost) (limit|cap)"
    r"|spend_limit|spending limit|usage_limit_(exceeded|reached)|billing_hard_limit|billing_not_active|billing_error"
    r"|check your billing details|exceeded_current_quota|account is in good standing"
    r"|pre_consume_token_quota_failed|quota is not enough|entitlement_|payment[_ ]required|to prevent abuse"
    r"|arrearage|account is in arrears|accountoverdue|overdue[-_ ]payment|freetieronly|please recharge|recharge your account"
    # one-api and its kin, Zhipu, DashScope, Volcengine, SiliconFlow; Japanese, Korean, Russian
    r"|欠费|欠費|[余餘][额額](不足|已用|为零|不够)|[额額]度(不足|已用|用尽|用完|不够|失败)|充值|配额(不足|已用|用尽|耗尽)"
    r"|资源包(不足|已用|用尽)|无可用资源包|(点数|积分|套餐)(已)?(不足|用尽|用完|到期|过期)|预算(已)?(超出|用尽|用完)|超出预算"
    r"|残高(が)?不足|잔액(이)? ?부족|크레딧(이)? ?부족|недостаточно средств"
)
# People write these, too: they count only with a status about the key, its rate or its money.
_PERHAPS_MONEY_TEXT = (
    r"(credits?|balance|funds|quota|allowance)[^.]{0,40} (depleted|exhausted|used up|run out)|ran out of|run out of"
    r"|out of (credit|fund|balance)|no (credit|fund|balance)|used (up )?(all )?(of )?(your|the|its) (credit|quota|balance|fund)"
    r"|(account|payment|bill|invoice)[^.]{0,30} (overdue|unpaid|past due)|in arrears|arrears|balance is (too )?low|negative balance"
    r"|(trial|subscription|plan|package|voucher)[^.]{0,20} (has |have |is )?(expired|ended)"
    r"|add (more )?(funds|credits|a payment method)|top[- ]?up|recharge|spend(ing)? (limit|cap)|usage limit reached"
)
# Refused in advance, as the gateway reserves the price of all `max_tokens`.
_RESERVED = r"pre[_ -]?consume|pre[_ -]?deduct|预扣费|預扣費|fewer max_tokens|can only afford|need quota|reserve|balance .{0,40}(not|n't) cover"
_SUSPENDED = (
    r"\b(account|organi[sz]ation|user|api key)\b([^.,]{0,40} (is|was|been))?( temporarily| permanently| currently)?"
    r" (suspended|deactivated|disabled|banned|frozen|terminated)\b"
    r"|(suspended|banned|deactivated) (account|user|organi[sz]ation)|account_(suspended|deactivated|disabled)|access_terminated"
    r"|(账号|账户|帳號|用户|用戶)(已)?(经)?(被)?(系统)?(封禁|封停|封号|停用|禁用|冻结|凍結|暂停)"
)
_CAPACITY = (
    r"负载[^，。]{0,6}饱和|負載[^，。]{0,6}飽和|负载(较|过)高|服务(器)?(繁忙|过载)|模型(繁忙|过载)|请求过多"
    r"|upstream[^.]{0,40}(saturated|overload|at capacity|busy)|(load|capacity)[^.]{0,40}saturated|saturated[^.]{0,20}upstream"
    r"|overloaded|server is busy|at capacity|capacity_exceeded|temporarily unavailable|service[_ ]unavailable|high demand"
)
_DAY = (
    r"free-models-per-day|per ?day|\((tpd|rpd)\)|daily (limit|quota|request|token)|perday|per-day"
    r"|(daily|weekly|monthly)( [\w-]+){0,3} (has been |was |is )?(reached|exceeded|exhausted|used up)"
    r"|(reached|exceeded|exhausted|used up)( [\w-]+){0,3} (daily|weekly|monthly)\b"
    r"|(今[日天]|[当當][日天]|每[日天]|本[周週月]|每[周週月])[^，。,.]{0,12}(上限|超限|用完|用尽|用盡|已满|已滿)"
)
_MINUTE = (
    r"per ?min|perminute|per-minute|per ?second|\((tpm|rpm)\)|\b(tpm|rpm)\b"
    r"|rate_limit_exceeded|rate_limited|try again in|retry in|rate limit reached"
)
# Both kinds of 429 say these, so they decide only where nothing else does.
_MONEY_HINT = r"exceeded your current quota|billing|credits"
_CONTEXT = (
    r"context_length_exceeded|exceed_context_size|maximum context length|context size has been"
    r"|context window|prompt is too long|input is too long|too many input tokens"
    r"|you passed \d+ input tokens|reduce the length of the (input|messages|prompt)"
    r"|exceeds? the (maximum number of tokens|context l|model's context)|exceed context limit"
    r"|maximum prompt length|range of input length|input length exceeds|too many tokens in the (prompt|input)"
)
_FILTER = (
    r"content_filter|content management policy|responsibleaipolicy|content_policy"
    r"|prompt_blocked|sensitive_words|flagged|moderation|content exists risk|data_?inspection"
    r"|contentfilter|inappropriate content|不安全|敏感"
)
_NO_MODEL = (
    r"model_not_found|incorrect model id|invalid model name|no such model|model .{0,80}does not exist"
    r"|model .{0,80}not found|unknown model|not a valid model|server is pinned to"
)
_KEY = (
    r"api[_ ]?key[_ ](is[_ ])?(not valid|invalid|expired)|(invalid|incorrect|expired) api[_ ]?key"
)
# Some servers say so with a 500.
_NO_KEY = (
    r"\b(no|missing|without) (an? |the |your |valid )?(api[_ -]?key|auth(entication|orization) (header|token)|bearer|credentials)"
    r"|(api[_ -]?key|authorization header|bearer token|credentials)[^.]{0,20} (missing|required|not (provided|set|found|passed|given))"
    r"|(provide|supply|include) (an? |the |your |valid )?(api[_ -]?key|authorization header)|not authenticated|authentication required"
)
_TOO_LARGE = r"request too large|reduce your message size"
_TOKEN_LIMIT = r"tokens? per|\btpm\b|token.?limit|dynamic_token|tokens_limit"
_REQUEST_LIMIT = r"requests? per|\brpm\b|dynamic_request|on requests"
_RATE = (
    r"rate.?limit|too.?many.?requests|tokens per minute|requests per minute|slow_down|throttl|limitation"
    r"|(qps|tpm|rpm|request|concurrency) (rate )?limit|请求(频率|速率|次数)|限流|频率过高|并发"
)
_FAILED = r"(internal|server|system|api)[_ ]?(server[_ ]?)?error|internalerror|timed? ?out|deadline_exceeded|bad gateway"
_INVALID_REQUEST = r"invalid_request|invalidparameter|invalid_parameter|invalid_argument|badrequest|bad_request|failed_precondition"

# Statuses that the numbers of errors under HTTP 200 stand for.
_STATUS_OF_NUMBER = {
    **{f"minimax:{n}": 429 for n in (1002, 1039, 1041, 2045)},
    **{f"minimax:{n}": 401 for n in (1004, 2049)},
    **{f"minimax:{n}": 402 for n in (1008, 2056)},
    **{f"minimax:{n}": 500 for n in (1000, 1001, 1013, 1024, 1033)},
    "minimax:2013": 400,
    **{f"baidu:{n}": 429 for n in (4, 17, 18, 336501, 336502, 336503)},
    **{f"baidu:{n}": 401 for n in (6, 14, 100, 110, 111)},
    "baidu:19": 402,
    **{f"baidu:{n}": 500 for n in (1, 2, 336000, 336100)},
    **{f"baidu:{n}": 400 for n in (336001, 336002, 336003, 336006, 336007, 336103, 336104)},
    **{f"zhipu:{n}": 401 for n in (1000, 1001, 1002, 1003, 1004)},
    **{f"zhipu:{n}": 402 for n in (1113, 1304, 1308, 1309, 1310)},
    **{f"zhipu:{n}": 400 for n in (1210, 1212, 1213, 1214, 1215, 1261)},
    "zhipu:1211": 404,
    **{f"zhipu:{n}": 429 for n in (1302, 1303, 1305)},
    **{f"zhipu:{n}": 500 for n in (1230, 1234)},
    **{f"spark:{n}": 429 for n in (10007, 11202, 11203)},
    "spark:11201": 402,
    "spark:11200": 401,
    "spark:10907": 400,
}
_FILTERED_NUMBERS = frozenset(
    {"minimax:1026", "minimax:1027", "zhipu:1300", "zhipu:1301", "spark:10013", "spark:10014", "spark:10019"}
)  # fmt: skip


def failure(
    status: int,
    headers: Mapping[str, str],
    data: Any,
    body: bytes,
    fault: str | None,
    request_id: str | None,
    sent: bytes = b"",
) -> RequestError:
    """The error that a reply amounts to.

    Args:
        status: HTTP status.
        headers: Names in any case.
        data: The body as JSON; None when it is none.
        body: As received.
        fault: Why the body is no JSON; None when it is.
        request_id: The server's name for the request in a header; None to look for it in the body.
        sent: Body of the request, as errors repeat parts of it.
    """
    found = read_error(data)
    message = found.message
    # Only what the server says of an error counts, never the text of an answer that was cut.
    words = f"{' '.join(found.codes)} {message} {found.details}".lower()
    named: int | None = None
    if fault is not None:
        message = _page_text(body) or "the answer is empty"
        words = message.lower()
        if status == 200:
            message, words = f"HTTP 200 but not JSON ({fault}): {message}", ""
    elif status == 200:
        if found.number in _FILTERED_NUMBERS:
            words += " content_filter"
        named = _named_status(found, words)
        if named is not None and found.passed_on:
            named = _passed_on(named, found, words) or named
        message = f"{NOT_AN_ANSWER}{message or beginning(body)}"
    elif found.passed_on:
        named = _passed_on(status, found, words)
    message = message or beginning(body) or f"HTTP {status}"
    if 300 <= status < 400 and (to := headers.get("Location")):
        message = (
            f"it is at {to} now, which --base-url may name; redirects are not followed, as they would "
            "take the key along"
        )
    elif status == 407:
        message = f"the proxy of the environment refuses: {message}"
    facts: dict[str, Any] = {
        "status": named or status,
        "request_id": request_id or found.request_id or headers.get("cf-ray"),
        "error_type": found.codes[0].split(" ")[0] if found.codes else None,
        "retry_after": retry_after(headers, layers(data), message),
    }
    own = _OwnWords(words, sent)
    error = _classify(named or status, words, own, message[:_MAX_MESSAGE], facts)
    error.in_answer = status == 200
    return error


def _named_status(found: ErrorBody, words: str) -> int | None:
    """The status that an error under HTTP 200 stands for; None when it names none."""
    if found.status is not None:
        return found.status
    if (named := _STATUS_OF_NUMBER.get(found.number) or status_in(found.message)) is not None:
        return named
    for pattern, status in (
        (_MONEY, 402), (_PERHAPS_MONEY_TEXT, 402), (_CAPACITY, 503), (_RATE, 429), (_KEY, 401), (_NO_MODEL, 404),
        (_CONTEXT, 400), (_FILTER, 400), (_FAILED, 500), (_INVALID_REQUEST, 400),
    ):  # fmt: skip
        if re.search(pattern, words):
            return status
    return None


def _passed_on(status: int, found: ErrorBody, words: str) -> int | None:
    """The status of another server's error that a gateway passes on; None when that is its own.

    Its 401 or 403 is about the gateway's key, not ours. An error that the gateway sends with a 401, 402,
    403, 404 or 429 is its own.
    """
    if status in (401, 402, 403, 404, 429):
        return None
    if found.inner_status is not None and found.inner_status not in (401, 403):
        return found.inner_status
    if re.search(_CONTEXT, words) or re.search(_FILTER, words):
        return 400
    return 503 if re.search(_CAPACITY, words) else 429 if re.search(_RATE, words) else None


class _OwnWords:
    """Finds words of the server that it does not repeat from the request.

    Args:
        words: The error, in lower case.
        sent: Body of the request.
    """

    def __init__(self, words: str, sent: bytes) -> None:
        self._words = re.sub(_QUOTED, " ", words[:_MAX_OWN_WORDS])
        self._sent = sent

    def say(self, pattern: str) -> bool:
        return any(
            not _is_echo(self._words, found.start(), found.end(), self._sent)
            for found in re.finditer(pattern, self._words)
        )


# A longer text in quotes is most often the request's, unless it is a value in JSON or of Python.
_QUOTED = r"""(?<!\w)(?<!['"]: )(?<!['"]:)(?:'[^'\n]{25,}'(?!\w)|"[^"\n]{25,}"(?!\w)|“[^”\n]{25,}”|`[^`\n]{25,}`)"""
_ECHO_CHARS = 8  # So many more equal characters are no chance.


def _is_echo(words: str, start: int, end: int, sent: bytes) -> bool:
    """Whether `words[start:end]`, in lower case, is repeated from the request with more around it."""
    if not sent:
        return False
    request = sent.decode("utf-8", "replace").lower().replace("\\", "")
    words = words.replace("\\", " ")
    first, last = start, end
    while first > 0 and start - first < _ECHO_CHARS and words[first - 1 : last] in request:
        first -= 1
    while last < len(words) and last - end < _ECHO_CHARS and words[first : last + 1] in request:
        last += 1
    return words[start:end] in request and (last - first) - (end - start) >= _ECHO_CHARS


def _classify(
    status: int, words: str, own: _OwnWords, message: str, facts: dict[str, Any]
) -> RequestError:
    if re.search(_TOO_LARGE, words):  # OpenAI says so with 429, and waiting does not help.
        return BadRequest(message, outcome=Outcome.CONTEXT_LENGTH, **facts)
    if re.search(_TOKEN_LIMIT, words):
        facts["about"] = "tokens"
    elif re.search(_REQUEST_LIMIT, words):
        facts["about"] = "requests"
    suspended = status in (200, 400, 401, 403, 429) and own.say(_SUSPENDED)
    if _is_money(status, own, facts["retry_after"], suspended=suspended):
        return OutOfQuota(message + _LOWER_MAX_TOKENS * own.say(_RESERVED), **facts)
    if suspended:
        return NotAllowed(message, **{**facts, "error_type": SUSPENDED})
    if status == 200:
        return BadResponse(message, **facts)
    if status in (402, 429) or (status == 503 and "rate limited" in words):
        return RateLimited(message, **facts)
    if own.say(_NO_MODEL) and status in (400, 403, 404, 503):
        return NotFound(message, **facts)
    if status in (400, 401, 403) and own.say(_CAPACITY):
        return ServerError(message, **{**facts, "status": 503})
    if re.search(_CONTEXT, words) and (status in (400, 413, 422) or status >= 500):
        return BadRequest(message, outcome=Outcome.CONTEXT_LENGTH, **facts)
    if re.search(_FILTER, words) and status in (400, 403, 422):
        return BadRequest(message, outcome=Outcome.FILTERED, **facts)
    if (
        status in (401, 403, 407)
        or (status == 400 and own.say(_KEY))
        or (status in (400, 422, 500) and own.say(_NO_KEY))
    ):
        return NotAllowed(message, **facts)
    if status in (404, 405) or 300 <= status < 400:
        return NotFound(message, **facts)
    if status in (408, 409, 424, 425, 498, 499) or status >= 500:
        return ServerError(message, **facts)
    return BadRequest(message, **facts)


_LOWER_MAX_TOKENS = (
    "; the balance does not cover the price of max_tokens, which is set aside before the answer: lower it "
    "(--param max_tokens=N) or top up"
)


def _is_money(status: int, own: _OwnWords, wait: float | None, *, suspended: bool) -> bool:
    """Whether the account is exhausted, or its day, and not its minute."""
    if own.say(_MONEY) or (suspended and own.say(_MONEY_HINT)):
        return True
    if status == 402:  # OpenRouter sends it with a wait when only too much is in flight.
        return wait is None
    if status == 401:
        return own.say(_PERHAPS_MONEY_TEXT)
    if status not in (403, 429, 503):
        return False
    if own.say(_DAY):
        return True
    if wait is not None or own.say(_MINUTE):
        return False
    return own.say(_PERHAPS_MONEY_TEXT) or (status != 503 and own.say(_MONEY_HINT))


# Neither tries the same bytes twice, whatever a page holds.
_SCRIPT = r"(?is)<(script|style)\b.*?(?:</\1>|\Z)"
_TAG = r"<[^<>]*+>"


def _page_text(body: bytes) -> str:
    """The text of an HTML page from a proxy, or of plain text."""
    text = re.sub(_SCRIPT, " ", body[:20000].decode("utf-8", "replace"))
    return " ".join(re.sub(_TAG, " ", text).split())[:300]


def beginning(body: bytes) -> str:
    """The beginning of a body, for people."""
    return body[:300].decode("utf-8", "replace")


# What a refusal is about, so that the request can be sent in another way

_FORM_FIELDS = (
    "response_format",
    "json_schema",
    "json_object",
    "structured output",
    "guided_",
    "requested parameters",
)
# Said of a name, and not of a number ("max_tokens is too large").
_ABOUT_NAME = (
    r"unsupported.parameter|unrecogni[sz]ed|unknown|unexpected|extra|forbidden|not permitted"
    r"|not supported|not allowed|instead"
)
_BOUND_FIELDS = tuple(f'"{name}":'.encode() for name in BOUNDS)


def refuses_form(error: RequestError, sent: bytes) -> bool:
    """Whether a refusal names the form in which the answer was asked for."""
    return _names(error, _FORM_FIELDS, sent)


def refuses_stream_usage(error: RequestError, sent: bytes) -> bool:
    """Whether a refusal is about asking a stream for its usage."""
    return error.status in (400, 422) and _names(error, ("stream_options",), sent)


def refuses_bound_name(error: RequestError, sent: bytes) -> bool:
    """Whether a refusal is about the name of the bound of the answer, so that the other name may do.

    OpenAI's newer models take `max_completion_tokens` alone, many servers `max_tokens` alone.
    """
    if error.status not in (400, 422) or sum(name in sent for name in _BOUND_FIELDS) != 1:
        return False
    words = f"{error} {error.error_type}".lower()
    return _names(error, BOUNDS, sent) and re.search(_ABOUT_NAME, words) is not None


def _names(error: RequestError, fields: Iterable[str], sent: bytes) -> bool:
    """Whether an error names one of these fields, other than by repeating the request's text."""
    words = f"{error.error_type} {error}".lower()
    return any(
        at >= 0 and not _is_echo(words, at, at + len(name), sent)
        for name in fields
        for at in (words.find(name),)
    )
