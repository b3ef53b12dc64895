"""Reads the message and codes of an error body, in any gateway's shape. Touches: nothing.

| shape | who |
|---|---|
| `{"error": {message, type, code}}`, also as a list of one, as a text, as a list of texts | OpenAI and most; Gemini; xAI |
| `{"error": {message: "Provider returned error", metadata: {raw, provider_name}}}` | OpenRouter; `raw` is the provider's own body |
| `{"error": {message: "… - {'error': {…}}"}}` | proxies that pass on the text of another client's exception |
| `{"type": "error", "error": {type, message}, request_id}` | Anthropic |
| `{"detail": text or list}`, `{"success": false, "errors": […]}` | FastAPI; Cloudflare |
| `{"error_code", "error_msg"}`, `{"code", "msg"}`, `{"base_resp": {status_code, status_msg}}` | Baidu; Zhipu, DashScope, SiliconFlow; MiniMax |
| `{"header": {code, message}}`, `{"Response": {"Error": {Code, Message}}}`, `{"fault": {…}}` | Spark; Tencent; Apigee |

A layer is an object that describes the error; the outermost comes first, the innermost is most precise.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from batcher.records import clean

__all__ = ["ErrorBody", "is_error", "layers", "read_error", "status_in"]

_encode = msgspec.json.Encoder().encode

_MOST = 4000  # Characters of a text that are looked at.
_DEPTH = 6
_INSIDE = (
    "error", "Error", "errors", "base_resp", "header", "fault", "Response", "innererror", "inner_error", "detail",
)  # fmt: skip
_MESSAGES = (
    "message", "msg", "error_msg", "error_message", "errorMessage", "errmsg", "status_msg", "faultstring",
    "error_description", "Message", "detail", "title",
)  # fmt: skip
_CODES = (
    "code", "type", "status", "error_code", "errorCode", "errcode", "error_type", "status_code", "statusCode",
    "http_status", "Code", "__type",
)  # fmt: skip
_REQUEST_IDS = ("request_id", "requestId", "RequestId", "log_id", "trace_id", "sid")
_SAYS_NOTHING = frozenset({"", "error", "none", "null", "fail", "failed", "failure", "false", "about:blank"})  # fmt: skip
_OWN_NUMBER = {"base_resp": "minimax", "error_code": "baidu", "header": "spark"}
_STATUS_IN_TEXT = re.compile(
    r"\b(?:error code|status code|http|http status)[:= ]{1,3}([45]\d\d)\b"
)
_ID_IN_TEXT = re.compile(
    r"\((?:tid|request[ _-]?id|trace[ _-]?id|req[ _-]?id)[:：] {0,2}([\w.:-]{4,80})\)",
    re.IGNORECASE,
)


class ErrorBody(NamedTuple):
    """The error that a body describes.

    Attributes:
        message: For people; "" when there is none.
        codes: Words for the kind, the innermost first.
        number: A code that is no HTTP status, as "dialect:number"; "" for none.
        status: The HTTP status that it names; None for none.
        passed_on: Whether it holds the error of another server, behind the gateway.
        inner_status: The HTTP status in that server's error; None for none.
        request_id: The server's name for the request, where the body holds it.
        details: Gemini's reason, and which quota was exceeded.
    """

    message: str = ""
    codes: tuple[str, ...] = ()
    number: str = ""
    status: int | None = None
    passed_on: bool = False
    inner_status: int | None = None
    request_id: str | None = None
    details: str = ""


def is_error(data: Any) -> bool:
    """Whether a body is marked as an error, though there may be an answer in it.

    >>> is_error({"error": {"message": "", "code": None}}), is_error({"success": False, "choices": []})
    (False, True)
    """
    if not isinstance(data, dict):
        return False
    base = data.get("base_resp")
    return (
        _is_filled(data.get("error"))
        or data.get("success") is False
        or bool(isinstance(base, dict) and base.get("status_code"))
        or bool(data.get("error_code"))
    )


def _is_filled(value: Any) -> bool:
    """Whether an `error` field holds anything: some servers send an empty one with every answer."""
    if isinstance(value, dict):
        return any(field and field != "None" for field in value.values())
    return bool(value) and value != "None"


def read_error(data: Any) -> ErrorBody:
    """The error in a parsed body; an empty one where there is none."""
    messages: list[str] = []
    codes: list[str] = []
    number = provider = ""
    status = inner_status = request_id = None
    passed_on = False
    details: list[str] = []
    for layer, how, inner in layers(data):
        text = _message(layer)
        if text and how != "in text" and text not in messages:
            messages.insert(0, text)
        words, numbers = _codes(layer)
        codes[:0] = [word for word in words if word not in codes]
        for name, found in numbers:
            if 400 <= found <= 599:
                status, inner_status = (status, found) if inner else (found, inner_status)
            elif found:
                number = f"{_OWN_NUMBER.get(how) or _OWN_NUMBER.get(name, 'zhipu')}:{found}"
        passed_on = passed_on or inner
        metadata = layer.get("metadata")
        named = metadata.get("provider_name") if isinstance(metadata, dict) else None
        provider = named if isinstance(named, str) else provider
        for name in _REQUEST_IDS:
            if request_id is None and isinstance(layer.get(name), str | int):
                request_id = str(layer[name]) or None
        details += _details(layer)
    message = messages[0] if messages else ""
    if len(messages) > 1 and passed_on and "provider returned error" not in messages[1].lower():
        message = f"{messages[1]}: {message}"
    if provider and passed_on:
        message = f"{provider}: {message}"
    if inner_status is None and passed_on:
        inner_status = status_in(message)
    if request_id is None and (found_id := _ID_IN_TEXT.search(message)) is not None:
        request_id = found_id[1]
    # A text inside another one may hold lone surrogates.
    message, codes, request_id = clean([message[:_MOST], codes, request_id])
    rest = clean(" ".join(details)[:_MOST])
    return ErrorBody(
        message, tuple(codes), number, status, passed_on, inner_status, request_id, rest
    )


def status_in(message: str) -> int | None:
    """The HTTP status near the beginning of a message; None for none.

    >>> status_in("Error code: 429 - too fast"), status_in("no")
    (429, None)
    """
    found = _STATUS_IN_TEXT.search(message[:120].lower())
    return None if found is None else int(found[1])


def layers(data: Any) -> Iterator[tuple[dict[str, Any], str, bool]]:
    """(object, where it stood, whether it is another server's) of each layer of an error, outermost first."""
    yield from _layers(data, "", False, _DEPTH)


def _layers(
    value: Any, how: str, inner: bool, depth: int
) -> Iterator[tuple[dict[str, Any], str, bool]]:
    if not depth:
        return
    if isinstance(value, list):
        value = (
            value[0]
            if value and isinstance(value[0], dict) and how != "detail"
            else _listed(value)
        )
    if isinstance(value, str):
        if how == "raw" and (parsed := _json_in(value)) is not None:
            value = parsed
        else:
            value = {"message": value[:_MOST]}
    if not isinstance(value, dict):
        return
    yield value, how, inner
    for name in _INSIDE:
        if isinstance(inside := value.get(name), dict | list | str) and inside:
            yield from _layers(inside, name, inner, depth - 1)
    metadata = value.get("metadata")
    if isinstance(metadata, dict) and metadata.get("raw"):
        yield from _layers(metadata["raw"], "raw", True, depth - 1)
    text = value.get("message")
    if isinstance(text, str) and "{" in text and _is_error_in(parsed := _json_in(text)):
        yield from _layers(parsed, "in text", True, depth - 1)


def _listed(values: list[Any]) -> str:
    """A list of errors as a text; FastAPI's without the input, which is the row's own text."""
    parts = []
    for value in values[:20]:
        if isinstance(value, dict) and isinstance(text := value.get("msg"), str):
            where = value.get("loc")
            place = ".".join(map(str, where)) if isinstance(where, list) else ""
            parts.append(f"{place}: {text}" if place else text)
        elif isinstance(value, str):
            parts.append(value)
        elif value is not None:
            parts.append(_encode(value).decode())
    return "; ".join(parts)


def _json_in(text: str) -> Any:
    """The object in a text, as JSON or as Python writes it; None for none."""
    text = text[:_MOST]
    begin, end = text.find("{"), text.rfind("}")
    if begin < 0 or end < begin:
        return None
    try:
        found, _end = json.JSONDecoder().raw_decode(text, begin)
    except (ValueError, RecursionError):
        try:
            found = ast.literal_eval(text[begin : end + 1])
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
    return found if isinstance(found, dict) else None


def _is_error_in(value: Any) -> bool:
    """Whether an object from a text describes an error."""
    return isinstance(value, dict) and (
        "error" in value or ("message" in value and ("code" in value or "type" in value))
    )


def _message(layer: dict[str, Any]) -> str:
    for name in _MESSAGES:
        value = layer.get(name)
        if isinstance(value, str) and value.strip():
            return value[:_MOST]
        if name == "message" and value and not isinstance(value, str):
            return _encode(value).decode()[:_MOST]
    return ""


def _codes(layer: dict[str, Any]) -> tuple[list[str], list[tuple[str, int]]]:
    """(words for the kind, numbers with their field names)."""
    words: list[str] = []
    numbers: list[tuple[str, int]] = []
    for name in _CODES:
        value = layer.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            numbers.append((name, value))
        elif isinstance(value, str) and value.isdecimal() and len(value) < 10:
            numbers.append((name, int(value)))
        elif isinstance(value, str) and value.lower() not in _SAYS_NOTHING and value not in words:
            words.append(value[:100])
    return words, numbers


def _details(layer: dict[str, Any]) -> list[str]:
    details = _objects(layer.get("details"))
    quotas = [str(v.get("quotaId", "")) for d in details for v in _objects(d.get("violations"))]
    return [*quotas, *(str(d.get("reason", "")) for d in details)]


def _objects(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
