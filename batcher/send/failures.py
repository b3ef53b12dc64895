"""An error reply in any dialect to the `RequestError` that it is. Touches: nothing.

Providers' words are told by code, type and sentence, as statuses alone say little: a 429 may be a
rate (wait), a day's limit (do not) or money (stop). What may pass by waiting is asked first. A reply
with status 200 that holds an error counts as the status that the error names.

What ends a run must be the server's own word: errors often repeat the row's text, and a row may well
speak of an insufficient balance.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
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
from batcher.limits.headers import span
from batcher.records import Outcome
from batcher.send.error_body import ErrorBody, layers, read_error, status_in

__all__ = ["NOT_AN_ANSWER", "cut", "echoed", "failure", "retry_after"]

NOT_AN_ANSWER = "HTTP 200 but not an answer: "
"""Begins what is said of an error under status 200."""

_MESSAGE = 1000
_LONGEST = 800  # Characters of a message that may end a run: what is longer repeats a request.

# In lower case: code and type first, then the message.
_MONEY = re.compile(
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
# What people write, too: only with a status that is about the key, its rate or its money.
_MONEY_AT_LARGE = re.compile(
    r"(credits?|balance|funds|quota|allowance)[^.]{0,40} (depleted|exhausted|used up|run out)|ran out of|run out of"
    r"|out of (credit|fund|balance)|no (credit|fund|balance)|used (up )?(all )?(of )?(your|the|its) (credit|quota|balance|fund)"
    r"|(account|payment|bill|invoice)[^.]{0,30} (overdue|unpaid|past due)|in arrears|arrears|balance is (too )?low|negative balance"
    r"|(trial|subscription|plan|package|voucher)[^.]{0,20} (has |have |is )?(expired|ended)"
    r"|add (more )?(funds|credits|a payment method)|top[- ]?up|recharge|spend(ing)? (limit|cap)|usage limit reached"
)
# Refused ahead, as the price of all `max_tokens` is set aside before the answer.
_AHEAD = re.compile(
    r"pre[_ -]?consume|pre[_ -]?deduct|预扣费|預扣費|fewer max_tokens|can only afford|need quota|reserve|balance .{0,40}(not|n't) cover"
)
_SUSPENDED = re.compile(
    r"\b(account|organi[sz]ation|user|api key)\b([^.,]{0,40} (is|was|been))?( temporarily| permanently| currently)?"
    r" (suspended|deactivated|disabled|banned|frozen|terminated)\b"
    r"|(suspended|banned|deactivated) (account|user|organi[sz]ation)|account_(suspended|deactivated|disabled)|access_terminated"
    r"|(账号|账户|帳號|用户|用戶)(已)?(经)?(被)?(系统)?(封禁|封停|封号|停用|禁用|冻结|凍結|暂停)"
)
_CAPACITY = re.compile(
    r"负载[^，。]{0,6}饱和|負載[^，。]{0,6}飽和|负载(较|过)高|服务(器)?(繁忙|过载)|模型(繁忙|过载)|请求过多"
    r"|upstream[^.]{0,40}(saturated|overload|at capacity|busy)|(load|capacity)[^.]{0,40}saturated|saturated[^.]{0,20}upstream"
    r"|overloaded|server is busy|at capacity|capacity_exceeded|temporarily unavailable|service[_ ]unavailable|high demand"
)
_DAY = re.compile(
    r"free-models-per-day|per ?day|\((tpd|rpd)\)|daily (limit|quota|request|token)|perday|per-day"
    r"|(daily|weekly|monthly)( [\w-]+){0,3} (has been |was |is )?(reached|exceeded|exhausted|used up)"
    r"|(reached|exceeded|exhausted|used up)( [\w-]+){0,3} (daily|weekly|monthly)\b"
    r"|(今[日天]|[当當][日天]|每[日天]|本[周週月]|每[周週月])[^，。,.]{0,12}(上限|超限|用完|用尽|用盡|已满|已滿)"
)
_MINUTE = re.compile(
    r"per ?min|perminute|per-minute|per ?second|\((tpm|rpm)\)|\b(tpm|rpm)\b"
    r"|rate_limit_exceeded|rate_limited|try again in|retry in|rate limit reached"
)
# What both kinds of 429 say, so that it decides only where nothing else does.
_PERHAPS_MONEY = re.compile(r"exceeded your current quota|billing|credits")
_CONTEXT = re.compile(
    r"context_length_exceeded|exceed_context_size|maximum context length|context size has been"
    r"|context window|prompt is too long|input is too long|too many input tokens"
    r"|you passed \d+ input tokens|reduce the length of the (input|messages|prompt)"
    r"|exceeds? the (maximum number of tokens|context l|model's context)|exceed context limit"
    r"|maximum prompt length|range of input length|input length exceeds|too many tokens in the (prompt|input)"
)
_FILTER = re.compile(
    r"content_filter|content management policy|responsibleaipolicy|content_policy"
    r"|prompt_blocked|sensitive_words|flagged|moderation|content exists risk|data_?inspection"
    r"|contentfilter|inappropriate content|不安全|敏感"
)
_NO_MODEL = re.compile(
    r"model_not_found|incorrect model id|invalid model name|no such model|model .{0,80}does not exist"
    r"|model .{0,80}not found|unknown model|not a valid model|server is pinned to"
)
_KEY = re.compile(
    r"api[_ ]?key[_ ](is[_ ])?(not valid|invalid|expired)|(invalid|incorrect|expired) api[_ ]?key"
)
# Also by servers that say 500 when there is no key at all.
_NO_KEY = re.compile(
    r"\b(no|missing|without) (an? |the |your |valid )?(api[_ -]?key|auth(entication|orization) (header|token)|bearer|credentials)"
    r"|(api[_ -]?key|authorization header|bearer token|credentials)[^.]{0,20} (missing|required|not (provided|set|found|passed|given))"
    r"|(provide|supply|include) (an? |the |your |valid )?(api[_ -]?key|authorization header)|not authenticated|authentication required"
)
_TOO_LARGE = re.compile(r"request too large|reduce your message size")
_OF_TOKENS = re.compile(r"tokens? per|\btpm\b|token.?limit|dynamic_token|tokens_limit")
_OF_REQUESTS = re.compile(r"requests? per|\brpm\b|dynamic_request|on requests")
_RATE = re.compile(
    r"rate.?limit|too.?many.?requests|tokens per minute|requests per minute|slow_down|throttl|limitation"
    r"|(qps|tpm|rpm|request|concurrency) (rate )?limit|请求(频率|速率|次数)|限流|频率过高|并发"
)
_FAILED = re.compile(
    r"(internal|server|system|api)[_ ]?(server[_ ]?)?error|internalerror|timed? ?out|deadline_exceeded|bad gateway"
)
_ASKED_WRONGLY = re.compile(
    r"invalid_request|invalidparameter|invalid_parameter|invalid_argument|badrequest|bad_request|failed_precondition"
)

# What numbers of an error under HTTP 200 mean, as a status.
_NUMBERS = {
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
_FILTERED = frozenset(
    {"minimax:1026", "minimax:1027", "zhipu:1300", "zhipu:1301", "spark:10013", "spark:10014", "spark:10019"}
)  # fmt: skip


def failure(
    status: int,
    headers: Mapping[str, str],
    data: Any,
    body: bytes,
    fault: str | None,
    request_id: str | None,
    asked: bytes = b"",
) -> RequestError:
    """The error that a reply amounts to.

    Args:
        status: HTTP status.
        headers: Names in any case.
        data: The body as JSON; None when it is none.
        body: As received.
        fault: Why the body is no JSON; None when it is.
        request_id: The server's name for the request in a header; None to look for it in the body.
        asked: Body of the request, as errors repeat parts of it.
    """
    told = read_error(data)
    message, kind = told.message, " ".join(told.codes)
    # Only what the server says of an error counts, never the text of an answer that was cut.
    words = f"{kind} {message} {told.details}".lower()
    named: int | None = None
    if fault is not None:
        message = _page(body) or "the answer is empty"
        if status == 200:
            message, words = f"HTTP 200 but not JSON ({fault}): {message}", ""
        else:
            words = message.lower()
    elif status == 200:
        if told.number in _FILTERED:
            words += " content_filter"
        named = _named(told, words)
        if named is not None and told.passed_on:
            named = _passed_on(named, told, words) or named
        message = f"{NOT_AN_ANSWER}{message or cut(body)}"
    elif told.passed_on:
        named = _passed_on(status, told, words)
    message = message or cut(body) or f"HTTP {status}"
    if 300 <= status < 400 and (to := headers.get("Location")):
        message = f"it is at {to} now, which --base-url may name; redirects are not followed, as they would take the key along"
    elif status == 407:
        message = f"the proxy of the environment refuses: {message}"
    wait = retry_after(headers, data, message)
    facts: dict[str, Any] = {
        "status": named or status,
        "request_id": request_id or told.request_id or headers.get("cf-ray"),
        "error_type": told.codes[0].split(" ")[0] if told.codes else None,
        "retry_after": wait,
    }
    error = _told(named or status, words, _Own(words, asked), message[:_MESSAGE], wait, facts)
    error.in_answer = status == 200
    return error


def _named(told: ErrorBody, words: str) -> int | None:
    """The status that an error under HTTP 200 amounts to; None when it tells none."""
    if told.status is not None:
        return told.status
    if (named := _NUMBERS.get(told.number) or status_in(told.message)) is not None:
        return named
    for says, status in (
        (_MONEY, 402), (_MONEY_AT_LARGE, 402), (_CAPACITY, 503), (_RATE, 429), (_KEY, 401), (_NO_MODEL, 404), (_CONTEXT, 400),
        (_FILTER, 400), (_FAILED, 500), (_ASKED_WRONGLY, 400),
    ):  # fmt: skip
        if says.search(words):
            return status
    return None


def _passed_on(status: int, told: ErrorBody, words: str) -> int | None:
    """The status of another server's error that a gateway passes on; None when that is its own.

    Its 401 or 403 is about the gateway's key, not ours; and what a gateway says with a 401, 402, 403,
    404 or 429 it means itself.
    """
    if status in (401, 402, 403, 404, 429):
        return None
    if told.inner_status is not None and told.inner_status not in (401, 403):
        return told.inner_status
    if _CONTEXT.search(words) or _FILTER.search(words):
        return 400
    return 503 if _CAPACITY.search(words) else 429 if _RATE.search(words) else None


class _Own:
    """Finds words that are the server's own, and not repeated from the request.

    Args:
        words: What the server says, in lower case.
        asked: Body of the request.
    """

    def __init__(self, words: str, asked: bytes) -> None:
        self._words = _QUOTED.sub(" ", words[:_LONGEST])
        self._asked = asked

    def says(self, what: re.Pattern[str]) -> bool:
        """Whether the server says this."""
        return any(
            not echoed(self._words, found.start(), found.end(), self._asked)
            for found in what.finditer(self._words)
        )


# A longer text in quotes is most often the request's, unless it is a value in JSON or of Python.
_QUOTED = re.compile(
    r"""(?<!\w)(?<!['"]: )(?<!['"]:)(?:'[^'\n]{25,}'(?!\w)|"[^"\n]{25,}"(?!\w)|“[^”\n]{25,}”|`[^`\n]{25,}`)"""
)
_ECHO = 8  # So many characters more that are equal are no chance.


def echoed(words: str, start: int, end: int, asked: bytes) -> bool:
    """Whether a part of what a server says is repeated from the request, with more around it.

    Args:
        words: In lower case.
        start: Where the part begins,
        end: and ends.
        asked: Body of the request, as it was sent.
    """
    if not asked:
        return False
    sent, said = (
        asked.decode("utf-8", "replace").lower().replace("\\", ""),
        words.replace("\\", " "),
    )
    first, last = start, end
    while first > 0 and start - first < _ECHO and said[first - 1 : last] in sent:
        first -= 1
    while last < len(said) and last - end < _ECHO and said[first : last + 1] in sent:
        last += 1
    return said[start:end] in sent and (last - first) - (end - start) >= _ECHO


def _told(
    status: int,
    words: str,
    own: _Own,
    message: str,
    wait: float | None,
    facts: dict[str, Any],
) -> RequestError:
    if _TOO_LARGE.search(words):  # OpenAI says so with 429, and no waiting will help.
        return BadRequest(message, outcome=Outcome.CONTEXT_LENGTH, **facts)
    if _OF_TOKENS.search(words):
        facts["about"] = "tokens"
    elif _OF_REQUESTS.search(words):
        facts["about"] = "requests"
    suspended = status in (200, 400, 401, 403, 429) and own.says(_SUSPENDED)
    if (
        own.says(_MONEY)
        or (status in (402, 403, 429, 503) and _is_money(status, own, wait))
        or (status == 401 and own.says(_MONEY_AT_LARGE))
        or (suspended and own.says(_PERHAPS_MONEY))
    ):
        return OutOfQuota(message + _COVER * own.says(_AHEAD), **facts)
    if suspended:
        return NotAllowed(message, **{**facts, "error_type": SUSPENDED})
    if status == 200:
        return BadResponse(message, **facts)
    if status in (402, 429) or (status == 503 and "rate limited" in words):
        return RateLimited(message, **facts)
    if own.says(_NO_MODEL) and status in (400, 403, 404, 503):
        return NotFound(message, **facts)
    if status in (400, 401, 403) and own.says(_CAPACITY):
        return ServerError(message, **{**facts, "status": 503})
    if _CONTEXT.search(words) and (status in (400, 413, 422) or status >= 500):
        return BadRequest(message, outcome=Outcome.CONTEXT_LENGTH, **facts)
    if _FILTER.search(words) and status in (400, 403, 422):
        return BadRequest(message, outcome=Outcome.FILTERED, **facts)
    if (
        status in (401, 403, 407)
        or (status == 400 and own.says(_KEY))
        or (status in (400, 422, 500) and own.says(_NO_KEY))
    ):
        return NotAllowed(message, **facts)
    if status in (404, 405) or 300 <= status < 400:
        return NotFound(message, **facts)
    if status in (408, 409, 424, 425, 498, 499) or status >= 500:
        return ServerError(message, **facts)
    return BadRequest(message, **facts)


_COVER = (
    "; the balance does not cover the price of max_tokens, which is set aside before the answer: lower it "
    "(--param max_tokens=N) or top up"
)


def _is_money(status: int, own: _Own, wait: float | None) -> bool:
    """Whether it is the account that is exhausted, or its day, and not its minute."""
    if status == 402:  # OpenRouter says so with a wait when only too much is in flight.
        return wait is None
    if own.says(_DAY):
        return True
    if wait is None and not own.says(_MINUTE) and own.says(_MONEY_AT_LARGE):
        return True
    if wait is not None or own.says(_MINUTE):
        return False
    return status in (403, 429) and own.says(_PERHAPS_MONEY)


# Neither tries the same bytes twice, whatever stands in a page.
_SCRIPT = re.compile(r"(?is)<(script|style)\b.*?(?:</\1>|\Z)")
_TAG = re.compile(r"<[^<>]*+>")


def _page(body: bytes) -> str:
    """The words of an HTML page from a proxy, or of plain text."""
    text = _SCRIPT.sub(" ", body[:20000].decode("utf-8", "replace"))
    text = _TAG.sub(" ", text)
    return " ".join(text.split())[:300]


def cut(body: bytes) -> str:
    """The beginning of a body, for people."""
    return body[:300].decode("utf-8", "replace")


_IN_TEXT = re.compile(
    r"(?:try again|retry|retry after|again) (?:in|after) ((?:\d+(?:\.\d+)?(?:ms|h|m|s) ?)+|\d+(?:\.\d+)? ?(?:milliseconds?|seconds?|minutes?|hours?))"
)


def retry_after(
    headers: Mapping[str, str], data: Any = None, message: str = "", now: datetime | None = None
) -> float | None:
    """Seconds the server asks to wait, from wherever it says so; None when it does not.

    In order: `retry-after-ms`, `retry-after` (seconds or an HTTP date), the same as LiteLLM passes
    it on, OpenRouter's `metadata`, Gemini's `retryDelay`, and "try again in 1m2.5s" in prose.

    >>> retry_after({}, message="Please try again in 1m2.5s.")
    62.5
    """
    if (milliseconds := _seconds(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    for name in ("retry-after", "llm_provider-retry-after"):
        asked = headers.get(name)
        if (seconds := _seconds(asked)) is not None:
            return seconds
        if asked:
            try:
                date = parsedate_to_datetime(asked)
                date = date if date.tzinfo else date.replace(tzinfo=UTC)
                return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())
            except (ValueError, TypeError, OverflowError):
                continue  # A year or a zone that no calendar has.
    for asked in _fields(data):
        if (seconds := _seconds(asked)) is not None:
            return seconds
        if isinstance(asked, str) and (seconds := span(asked)) is not None:
            return seconds
    found = _IN_TEXT.search(message.lower())
    return span(found.group(1)) if found else None


def _fields(data: Any) -> list[Any]:
    asked: list[Any] = []
    for layer, _how, _inner in layers(data):
        metadata, details = layer.get("metadata"), layer.get("details")
        if isinstance(metadata, dict):
            asked.append(metadata.get("retry_after_seconds"))
        asked.append(layer.get("retry_after"))
        listed = details if isinstance(details, list) else []
        asked += [detail.get("retryDelay") for detail in listed if isinstance(detail, dict)]
    return asked


def _seconds(text: Any) -> float | None:
    try:
        seconds = float(text)
    except (TypeError, ValueError):
        return None
    return seconds if 0 <= seconds < 1e9 else None
