"""The data that flows through the program. Touches: nothing.

Each record is a `msgspec.Struct`: cheap to make by the million; the JSON of a `Result` is a line of the journal. None is
ever part of a reference cycle, so the garbage collector skips them (`gc=False`).
"""

from __future__ import annotations

import re
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import Any

import msgspec

__all__ = [
    "BOUNDS",
    "FINISHED",
    "NO_REASON",
    "TOKEN_FIELDS",
    "Attempt",
    "Completion",
    "Outcome",
    "Prompt",
    "Request",
    "Result",
    "Row",
    "Usage",
    "clean",
    "reason_of",
    "tier_of",
]

FINISHED = (
    "stop",
    "eos",
    "eos_token",
    "end_turn",
    "stop_sequence",
    "tool_calls",
    "tool_use",
    "function_call",
    "complete",
    "completed",
    "stopped",
    "stop_token",
    "stop_tokens",
    "stop_word",
    "stop_string",
    "stop_sequences",
    "end_of_text",
    "end_of_sequence",
    "eot",
    "done",
    "finish",
    "finished",
    "success",
    "normal",
    "tool_call",
    "tool_uses",
    "function_calls",
)
"""Values of `finish_reason` of an answer that is whole, as `reason_of` spells them."""

NO_REASON = ("", "null", "none", "nil", "undefined", "unspecified")
"""Values that give no reason: some servers send one with every chunk of a stream."""


@lru_cache(maxsize=1024)
def reason_of(finish: str) -> str:
    """A `finish_reason` in the one spelling that is compared.

    >>> [reason_of(reason) for reason in ("STOP", "content-filter", "maxTokens", "FINISH_REASON_SAFETY", "FinishReason.STOP")]
    ['stop', 'content_filter', 'max_tokens', 'safety', 'stop']
    """
    split = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", finish.strip()[:60])
    words = re.sub(r"[\s.-]+", "_", split).lower()
    return words.removeprefix("finish_reason_").removeprefix("stop_reason_")


BOUNDS = ("max_completion_tokens", "max_tokens")
"""Fields of a request that limit the tokens of its answer: the new name and the old one."""


_DEFAULT_TIERS = frozenset({"", "auto", "default", "standard", "standard_only", "on_demand"})
"""Names of the service tier at the plain price of a model: of OpenAI, Gemini, Anthropic and Groq."""


class Outcome(StrEnum):
    """How a request ended; the `status` column.

    Its position here is its number in a segment's index: only append.
    """

    OK = "ok"
    # The model answered and was paid, but the answer is not usable.
    TRUNCATED = "truncated"
    EMPTY = "empty"
    REFUSED = "refused"
    FILTERED = "filtered"
    INVALID = "invalid"
    # Failed.
    BAD_REQUEST = "bad_request"
    CONTEXT_LENGTH = "context_length"
    NOT_FOUND = "not_found"
    AUTH = "auth"
    QUOTA = "quota"
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    BAD_RESPONSE = "bad_response"
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    UNREADABLE = "unreadable"

    @cached_property
    def answered(self) -> bool:
        """Whether a model answered, so that a rerun does not pay for the answer again."""
        return self in _ANSWERED

    @cached_property
    def rank(self) -> int:
        """Which of several results counts: 2 for `ok`, 1 for another answer, 0 for a failure."""
        return 2 if self is Outcome.OK else 1 if self.answered else 0


_ANSWERED = frozenset(
    {
        Outcome.OK,
        Outcome.TRUNCATED,
        Outcome.EMPTY,
        Outcome.REFUSED,
        Outcome.FILTERED,
        Outcome.INVALID,
    }
)


class Row(msgspec.Struct, frozen=True, gc=False):
    """A record of the input.

    Attributes:
        position: Its number in all input files together, from 0. In JSONL blank lines count, so that
            `sed -n` finds it.
        where: File and line for messages, such as `tickets.jsonl:17`.
        columns: Name → value; None when nothing of the record can be read.
        error: Why the row cannot be used; `columns` then holds what could be read.
        folder: The folder to which paths in the row are relative; "" for the working directory.
        note: What was changed in reading, such as bytes that are not UTF-8; "" for nothing.
    """

    position: int
    where: str
    columns: dict[str, object] | None
    error: str | None = None
    folder: str = ""
    note: str = ""


class Prompt(msgspec.Struct, frozen=True, gc=False):
    """What a row asks, for any model.

    Attributes:
        row: The row's position.
        custom_id: The row's own name, else its position in decimal.
        fields: The request body without its `model` and opening brace: `{"model":"…",` + fields is the body.
        model: The model that the row itself names.
        max_tokens: Limit of the answer's tokens, if the body has one.
        error: Why there is nothing to send; the row's status is then `unreadable`.
        columns: The row's columns, only where rows are written as they finish.
        sample: Which of several answers, from 0.
        image_bytes: Bytes of `fields` that are base64 of images, from which no tokens are estimated.
        exact: Whether its temperature is 0, so that equal prompts get equal answers.
    """

    row: int
    custom_id: str
    fields: bytes = b""
    model: str | None = None
    max_tokens: int | None = None
    error: str | None = None
    columns: dict[str, object] | None = None
    sample: int = 0
    image_bytes: int = 0
    exact: bool = False


class Request(msgspec.Struct, frozen=True, gc=False):
    """One prompt for one model.

    Attributes:
        key: 128-bit hash (hex) of address and body, by which equal requests are found.
        body: The exact bytes to send.
        image_bytes: As in `Prompt`.
    """

    row: int
    custom_id: str
    model: str
    sample: int
    key: str
    body: bytes
    max_tokens: int | None
    image_bytes: int = 0


TOKEN_FIELDS = (
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "cost_usd",
)
"""The fields that `Usage`, `Attempt` and `Result` share.

They are in no common base: the order of fields is that of the journal's JSON, and msgspec builds a record three
times as fast by position, which each row needs.
"""


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens as the server reported them; None means "not reported", never 0.

    Attributes:
        completion_tokens: Everything billed as output, reasoning included.
        cached_tokens: The part of `prompt_tokens` read from the provider's cache.
        reasoning_tokens: The part of `completion_tokens` spent on reasoning.
        cost_usd: The cost in dollars, as the server reported it.
        cache_write_tokens: The part of `prompt_tokens` written to the provider's cache; disjoint from
            `cached_tokens`.
        cache_write_1h_tokens: The part of `cache_write_tokens` that is kept for an hour.
        service_tier: Which tier served the request, such as "flex"; None for the default one.
    """

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    cost_usd: float | None = None
    cache_write_tokens: int | None = None
    cache_write_1h_tokens: int | None = None
    service_tier: str | None = None


def tier_of(name: object) -> str | None:
    """A service tier as it is compared; None for the default one, and for a value that is no name.

    >>> tier_of("Flex"), tier_of("standard"), tier_of(None)
    ('flex', None, None)
    """
    if not isinstance(name, str) or (tier := name.strip().lower()) in _DEFAULT_TIERS:
        return None
    return tier[:64]


class Completion(msgspec.Struct, frozen=True, gc=False):
    """What the model answered, and whether that is usable (`outcome`).

    Attributes:
        parsed: The value that a schema or labels ask for, as JSON text.
        loose: Whether `parsed` was found inside other text.
        unfit: Why the answer is not what was asked for.
        confidences: Label → probability as JSON text, where the server sent enough logprobs.
    """

    outcome: Outcome
    content: str | None
    finish_reason: str | None
    refusal: str | None
    tool_calls: str | None
    logprobs: str | None
    usage: Usage
    response_model: str | None
    request_id: str | None
    response: str | None = None
    parsed: str | None = None
    loose: bool = False
    unfit: str | None = None
    confidences: str | None = None


class Attempt(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One HTTP exchange of a request.

    Attributes:
        started: Unix time in milliseconds.
        waited_ms: Time between the end of the previous attempt and this one.
        cause: What it waited for: `requests`, `tokens`, `429`, `retry`, `an outage`.
        model: Which model it was sent to, if not the one of the result.
        ttft_ms: Time to the first token of a stream.
    """

    started: int
    latency_ms: int
    waited_ms: int
    status: Outcome
    cause: str = ""
    http_status: int | None = None
    request_id: str | None = None
    error: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    cost_usd: float | None = None
    model: str | None = None
    ttft_ms: int | None = None
    cache_write_tokens: int | None = None

    @property
    def paid(self) -> bool:
        """Whether it was answered, or the server reported what the failure used."""
        return self.status.answered or (self.prompt_tokens, self.cost_usd) != (None, None)


class Result(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """How one request ended: one line of the journal, one row of the output.

    Fields have the names of output columns (`write.columns`). Durations are milliseconds; `parsed`, `confidences`,
    `tool_calls`, `logprobs` and `response` are JSON text; tokens and cost are the sums of all attempts.

    Attributes:
        created_at: When the last attempt started, as Unix time in milliseconds.
        copied: Whether it is the answer to an equal request, and nothing was sent for this one.
        loose: As in `Completion`.
        stopped: Whether the run was stopped before the model was asked again: the row is still to be sent.
        waited_ms: How long a single attempt waited, and `cause`: for what.
        tries: All attempts, if there was more than one.
    """

    row: int
    model: str
    sample: int
    key: str
    status: Outcome
    custom_id: str
    content: str | None = None
    parsed: str | None = None
    confidences: str | None = None
    finish_reason: str | None = None
    refusal: str | None = None
    tool_calls: str | None = None
    logprobs: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    cost_usd: float | None = None
    latency_ms: int | None = None
    ttft_ms: int | None = None
    attempts: int = 0
    http_status: int | None = None
    error_type: str | None = None
    error: str | None = None
    response_model: str | None = None
    request_id: str | None = None
    created_at: int | None = None
    response: str | None = None
    copied: bool = False
    loose: bool = False
    stopped: bool = False
    waited_ms: int = 0
    cause: str = ""
    tries: list[Attempt] | None = None


def clean(value: Any) -> Any:
    r"""The value with all its strings made valid UTF-8.

    Python reads a byte that is not UTF-8, and half of a character in JSON, as a lone surrogate, which no
    file or stream takes; it becomes U+FFFD. Two halves that meet become their character.

    >>> clean(["r\udcff", "\ud83d\ude00"]) == ["r\ufffd", "\U0001f600"]
    True
    """
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [clean(item) for item in value]
    if isinstance(value, dict):
        return {clean(name): clean(item) for name, item in value.items()}
    return value
