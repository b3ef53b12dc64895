"""The words that flow through the program, as records. Touches: nothing.

Everything here is a `msgspec.Struct`: cheap to make by the million, and `Result` is encoded as it
stands into a line of the journal. None of them is ever part of a circle, so the garbage collector need
not look at them (`gc=False`).
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
    "NOT_TOLD",
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
"""The spellings of `finish_reason` that say nothing bad, as `reason_of` writes them."""

NOT_TOLD = ("", "null", "none", "nil", "undefined", "unspecified")
"""Those that say nothing at all: some servers send one with every chunk of a stream."""


@lru_cache(maxsize=1024)
def reason_of(finish: str) -> str:
    """A `finish_reason` in one spelling.

    >>> [reason_of(of) for of in ("STOP", "content-filter", "maxTokens", "FINISH_REASON_SAFETY", "FinishReason.STOP")]
    ['stop', 'content_filter', 'max_tokens', 'safety', 'stop']
    """
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", finish.strip()[:60])
    words = re.sub(r"[\s.-]+", "_", parted).lower()
    return words.removeprefix("finish_reason_").removeprefix("stop_reason_")


BOUNDS = ("max_completion_tokens", "max_tokens")
"""Fields of a request that bound the tokens of its answer: the new name and the old one."""


_DEFAULT_TIERS = frozenset({"", "auto", "default", "standard", "standard_only", "on_demand"})
"""The names of the service tier that costs what a model's price says: OpenAI's, Gemini's, Anthropic's,
Groq's."""


class Outcome(StrEnum):
    """How a request ended; the `status` column.

    The order is the number an outcome has in a segment's index: only append.
    """

    OK = "ok"
    # Answered and paid for, but not usable.
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
        position: Its place in all input files together, from 0. In JSONL every physical line has
            a place, blank ones too, so that `sed -n` finds it.
        where: File and line for people, such as `tickets.jsonl:17`.
        columns: Name to value; None when nothing of the record can be read.
        error: Why it cannot be used; columns that could be read are there all the same.
        folder: Where the relative paths in it begin; "" for the working directory.
        note: What was read otherwise than it stands there; "" for nothing.
    """

    position: int
    where: str
    columns: dict[str, object] | None
    error: str | None = None
    folder: str = ""
    note: str = ""


class Prompt(msgspec.Struct, frozen=True, gc=False):
    """What a row asks, before it is known of which model.

    Attributes:
        row: The row's position.
        custom_id: The row's own name, else its position in decimal.
        fields: The request body without its `model`, as JSON with the opening brace left out, so
            that `{"model":"…",` + fields is the body.
        model: The model the row itself names.
        max_tokens: Upper bound of the answer's tokens, when the body names one.
        error: Why there is nothing to send; the row's status is then `unreadable`.
        columns: The row's columns, only where rows are written as they finish.
        sample: Which of several answers.
        excess: Bytes of `fields` that its tokens are not estimated by: base64 of pictures.
        exact: Whether its temperature is 0, so that asking twice is asking once.
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
        key: 128-bit hash (hex) of the address and the exact body; what a request is known by.
        body: The exact bytes to send.
        excess: Bytes of it that its tokens are not estimated by.
    """

    row: int
    custom_id: str
    model: str
    sample: int
    key: str
    body: bytes
    max_tokens: int | None
    image_bytes: int = 0


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens as the server reported them; None means "not reported", never 0.

    Attributes:
        completion_tokens: Everything billed as output, reasoning included.
        cached_tokens: The part of `prompt_tokens` read from the provider's cache.
        reasoning_tokens: The part of `completion_tokens` spent on thinking.
        cost_usd: What the server says this request cost, in dollars.
        cache_write_tokens: The part of `prompt_tokens` written to the provider's cache; none of
            them is among `cached_tokens`.
        cache_write_1h_tokens: The part of these that is kept for an hour.
        service_tier: Which tier served it, such as "flex"; None for the default one.
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
    """A service tier by its name; None for the default one, and for what is no name.

    >>> tier_of("Flex"), tier_of("standard"), tier_of(None)
    ('flex', None, None)
    """
    if not isinstance(name, str) or (tier := name.strip().lower()) in _DEFAULT_TIERS:
        return None
    return tier[:64]


class Completion(msgspec.Struct, frozen=True, gc=False):
    """What the model answered, and whether that is usable (`outcome`).

    Attributes:
        parsed: What was asked for with a schema or labels, as JSON text.
        loose: Whether that was picked out of other text.
        unfit: Why it is not what was asked for.
        confidences: Label to probability as JSON text, where the server told enough.
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
    """One HTTP exchange of a request that needed more than one.

    Attributes:
        started: Unix time in milliseconds.
        waited_ms: Time between the end of the attempt before and this one.
        cause: What was waited for: `requests`, `tokens`, `429`, `retry`, `an outage`.
        model: Which model it was sent to, when it was another one than the result is of.
        ttft_ms: Time to the first token, of a stream.
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
        """Whether it was answered, or what it used was told all the same."""
        return self.status.answered or (self.prompt_tokens, self.cost_usd) != (None, None)


class Result(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """How one request ended: one line of the journal, one row of the output.

    The names are those of the output columns. Times are milliseconds, `created_at` is Unix time in
    milliseconds, `parsed`, `confidences`, `tool_calls` and `logprobs` are JSON text, `tries` is None for a single
    attempt, which waited `waited_ms` for `cause` before it was sent. Tokens and cost are those of all
    attempts together; `loose` says that `parsed` was picked out of other text, `copied` that all of it
    is the answer to an equal request, and that none was sent; `stopped` that the run ended before the
    model was asked again, so that the row is still to be sent.
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
    r"""A text, or all texts in lists and dicts, as UTF-8 can hold them.

    Python reads a byte that is no UTF-8, and half of a character in JSON, as a lone surrogate, which no
    file or stream takes; it becomes U+FFFD. Halves that met become their character.

    >>> clean(["r\udcff", "\ud83d\ude00"]) == ["r\ufffd", "\U0001f600"]
    True
    """
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [clean(inside) for inside in value]
    if isinstance(value, dict):
        return {clean(name): clean(inside) for name, inside in value.items()}
    return value
