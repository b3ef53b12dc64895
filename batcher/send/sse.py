"""Joins server-sent events to the body that would have come without a stream. Touches: nothing.

The events are those of `stream: true`: each holds a chunk of a chat completion, and comments keep the
connection open. The result is a whole completion, or the error that came in the middle, so that `wire`
reads the same with and without a stream.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from batcher.errors import NoAnswer
from batcher.records import NO_REASON, reason_of
from batcher.send.error_body import is_error
from batcher.send.lenient_json import dumps, loads

__all__ = ["asked", "is_done", "is_finished", "is_stream", "unwrapped", "whole"]

_DONE = b"[DONE]"
_LAST_LINE = re.compile(rb"(?:^|[\r\n])data: ?\[DONE\]\s*$")
_FINISHED = re.compile(rb'"finish_reason"\s*:\s*"([^"\\]{1,60})"')

_TAIL = b',"stream":true,"stream_options":{"include_usage":true}}'
_BARE_TAIL = b',"stream":true}'
_LINES = re.compile(rb"\r\n|\n|\r")
# Gateways keep a connection open with blank lines and comments, and stream servers end with their mark.
_BEFORE = re.compile(rb"(?:[\s\0]++|\xef\xbb\xbf|:[^\r\n]*+(?:[\r\n]|\Z))*+")
_BLANK = b" \t\r\n\0"
_TRAILER_BYTES = 64 << 10
_EVENT = re.compile(rb"(?:(?:id|retry):[^\r\n]*+[\r\n]++)*+(?:data|event):")
_TEXTS = ("refusal", "reasoning_content", "reasoning")
_HEAD = ("id", "created", "model", "system_fingerprint", "service_tier", "provider")


def is_done(end: bytes) -> bool:
    """Whether these bytes, the last of a stream, end with its last event."""
    return end[-32:].rstrip().endswith(_DONE) and _LAST_LINE.search(end) is not None


def is_finished(chunk: bytes) -> bool:
    """Whether these bytes hold a `finish_reason`: the rest of the stream is then no part of the answer.

    Inside a text the quotes are escaped. An empty reason ("", "null") is none.

    >>> is_finished(b'{"finish_reason": "stop"}'), is_finished(b'{"finish_reason": ""}')
    (True, False)
    """
    return any(_is_reason(found.decode("utf-8", "replace")) for found in _FINISHED.findall(chunk))


def _is_reason(reason: object) -> bool:
    return isinstance(reason, str) and reason_of(reason) not in NO_REASON


def asked(body: bytes, *, bare: bool) -> bytes:
    """The request for a stream; `bare` without asking for its usage, which some servers refuse.

    >>> asked(b'{"model":"m"}', bare=True)
    b'{"model":"m","stream":true}'
    """
    return body[:-1] + (_BARE_TAIL if bare else _TAIL)


def is_stream(headers: Mapping[str, str], body: bytes) -> bool:
    """Whether a reply is a stream, whether or not one was asked for.

    Its first bytes decide: servers answer whole where a stream was asked for, and the other way round,
    with either content type.
    """
    if body[:1] == b"{":
        return False
    start = _before(body)
    if _EVENT.match(body, start):
        return True
    kind = headers.get("Content-Type", "").lower()
    return kind.startswith("text/event-stream") and body[start : start + 1] not in (b"{", b"<")


def unwrapped(body: bytes) -> bytes:
    r"""A whole answer without what streaming servers put around it.

    That is blank space, NUL bytes and comments before it; the same and `data: [DONE]` after it.

    >>> unwrapped(b': keep-alive\n\n{"a":1}\n\ndata: [DONE]\n\n')
    b'{"a":1}'
    """
    if body[:1] == b"{" and body[-1:] == b"}":
        return body
    start = _before(body)
    end = len(body)
    least = max(start, end - _TRAILER_BYTES)
    while end > least:
        line = body.rfind(b"\n", least, end) + 1 or least
        last = body[line:end].strip(_BLANK)
        if not last or last == _DONE or (last[:1] == b":" and line > least):
            end = max(least, line - 1)
        elif last.endswith(_DONE) and (mark := body.rfind(b"data:", line, end)) >= 0:
            if body[mark + 5 : end].strip(_BLANK) != _DONE:
                break
            end = mark
        else:
            end = line + len(body[line:end].rstrip(_BLANK))
            break
    return body[start:end]


def _before(body: bytes) -> int:
    """Start of the first line that is neither blank nor a comment."""
    found = _BEFORE.match(body)
    return found.end() if found else 0


def whole(body: bytes) -> tuple[bytes, int | None]:
    """(the completion or the error as JSON, bytes of the stream up to the end of the first token).

    Raises:
        NoAnswer: It was cut.
    """
    try:
        return _whole(body)
    except ValueError:
        raise NoAnswer("the stream broke off in the middle of a chunk") from None


def _whole(body: bytes) -> tuple[bytes, int | None]:
    pieces = _Pieces()
    first: int | None = None
    done = False
    for data, end, name in _events(body, _before(body)):
        if data == _DONE:
            done = True
            break
        if not data:  # Some servers keep the connection open with these.
            continue
        chunk = loads(data, halves=True)
        if not isinstance(chunk, dict):
            continue
        if is_error(chunk):
            return dumps({**chunk, "choices": None}), first
        if name == b"error" or _is_bare_error(chunk):
            return dumps({"error": chunk}), first
        if pieces.add(chunk) and first is None:
            first = end
    if not done and pieces.finish is None:
        raise NoAnswer(f"the stream was cut after {len(''.join(pieces.content)):,} characters")
    return dumps(pieces.completion()), first


def _events(body: bytes, at: int) -> Iterator[tuple[bytes, int, bytes]]:
    """(data, end of its event, its name) of each event with data; the last may lack its end."""
    held: list[bytes] = []
    name = b""
    for end in _LINES.finditer(body, at):
        line, at = body[at : end.start()], end.end()
        if line.startswith(b"data:"):
            held.append(line[5:].strip())
        elif line.startswith(b"event:"):
            name = line[6:].strip()
        elif not line:
            if held:
                yield b"\n".join(held), at, name
            held, name = [], b""
    if (line := body[at:]).startswith(b"data:"):
        held.append(line[5:].strip())
    if held:
        yield b"\n".join(held), len(body), name


class _Pieces:
    """A completion in the making.

    Attributes:
        content: Texts of the answer.
        finish: Its `finish_reason`; None until it came.
    """

    def __init__(self) -> None:
        self._head: dict[str, Any] = {}
        self._texts: dict[str, list[str]] = {}
        self._calls: dict[int, dict[str, Any]] = {}
        self._function: dict[str, Any] | None = None
        self._logprobs: dict[str, list[Any]] = {}
        self._more: dict[str, Any] = {}
        self._usage: Any = None
        self._answers = self._in_pieces = False
        self.content: list[str] = []
        self.finish: Any = None

    def add(self, chunk: dict[str, Any]) -> bool:
        """Adds a chunk; returns whether it holds a part of the answer."""
        for name in _HEAD:
            if chunk.get(name) is not None:
                self._head.setdefault(name, chunk[name])
        self._use(chunk.get("usage"))
        if isinstance(groq := chunk.get("x_groq"), dict):
            self._use(groq.get("usage"))
        choices = chunk.get("choices")
        listed = choices if isinstance(choices, list) else []
        choice = next((c for c in listed if isinstance(c, dict) and not c.get("index")), None)
        if choice is None:
            return False
        self._answers = True
        self._use(choice.get("usage"))  # Moonshot
        for name in ("error", "content_filter_results"):
            if choice.get(name) is not None:
                self._more[name] = choice[name]
        if _is_reason(choice.get("finish_reason")):
            self.finish = choice["finish_reason"]
        if isinstance(sure := choice.get("logprobs"), dict):
            for name, tokens in sure.items():
                if isinstance(tokens, list):
                    self._logprobs.setdefault(name, []).extend(tokens)
        delta, message = choice.get("delta"), choice.get("message")
        if isinstance(delta, dict) and delta:
            added = self._delta(delta)
            self._in_pieces = self._in_pieces or added
            return added
        return isinstance(message, dict) and self._delta(self._whole_message(message))

    def _use(self, usage: Any) -> None:
        """Keeps a usage; Gemini sends one with each chunk, and the last that is not empty counts."""
        if isinstance(usage, dict) and (self._usage is None or any(usage.values())):
            self._usage = usage

    def _whole_message(self, message: dict[str, Any]) -> dict[str, Any]:
        """A whole message in a stream; after pieces it repeats all of them (MiniMax)."""
        if self._in_pieces:
            if message.get("content"):
                self.content.clear()
            for name in _TEXTS:
                if message.get(name):
                    self._texts.pop(name, None)
            if message.get("tool_calls"):
                self._calls.clear()
            if message.get("function_call"):
                self._function = None
        return message

    def _delta(self, delta: dict[str, Any]) -> bool:
        content = delta.get("content")
        if isinstance(content, list):  # Parts, as in a whole answer.
            parts = [part.get("text") for part in content if isinstance(part, dict)]
            content = "".join(part for part in parts if isinstance(part, str))
        if isinstance(content, str):
            self.content.append(content)
        added = bool(content)
        for name in _TEXTS:
            if isinstance(text := delta.get(name), str):
                self._texts.setdefault(name, []).append(text)
                added = added or bool(text)
        calls = delta.get("tool_calls")
        for number, call in enumerate(calls if isinstance(calls, list) else ()):
            if isinstance(call, dict):
                self._call(self._place(call, number), call)
                added = True
        if isinstance(call := delta.get("function_call"), dict):
            self._function = _joined(self._function or {}, call)
            added = True
        return added

    def _place(self, call: dict[str, Any], number: int) -> int:
        """The call that a piece belongs to; some servers send whole calls without an index."""
        if isinstance(at := call.get("index"), int):
            return at
        if name := call.get("id"):
            return next(
                (at for at, held in self._calls.items() if held["id"] == name), len(self._calls)
            )
        return max(self._calls, default=number)

    def _call(self, at: int, call: dict[str, Any]) -> None:
        held = self._calls.setdefault(at, {"id": None, "type": "function"})
        for name, value in call.items():
            if name == "function" and isinstance(value, dict):
                held["function"] = _joined(held.get("function") or {}, value)
            elif name != "index" and value:
                held[name] = value

    def completion(self) -> dict[str, Any]:
        """The whole answer."""
        message: dict[str, Any] = {
            "role": "assistant",
            "content": "".join(self.content) if self.content else None,
            **{name: "".join(texts) for name, texts in self._texts.items()},
        }
        if self._calls:
            message["tool_calls"] = [self._calls[at] for at in sorted(self._calls)]
        if self._function is not None:
            message["function_call"] = self._function
        choice = {"index": 0, "message": message, "finish_reason": self.finish, **self._more}
        if self._logprobs:
            choice["logprobs"] = self._logprobs
        choices = [choice] if self._answers else []
        data = {**self._head, "object": "chat.completion", "choices": choices}
        return data if self._usage is None else {**data, "usage": self._usage}


def _is_bare_error(chunk: dict[str, Any]) -> bool:
    """Whether a chunk is an error without that field: a code and a message, and nothing of an answer."""
    code = chunk.get("code") or chunk.get("status")
    message = chunk.get("message") or chunk.get("msg") or chunk.get("detail")
    return (
        bool(code and isinstance(message, str))
        and not chunk.get("choices")
        and "usage" not in chunk
    )


def _joined(held: dict[str, Any], piece: dict[str, Any]) -> dict[str, Any]:
    """A function with one more piece: its name comes once, its arguments in pieces."""
    joined = {**held}
    for name, value in piece.items():
        if name == "arguments" and isinstance(value, str):
            joined[name] = joined.get(name, "") + value
        elif value:
            joined[name] = value
    joined.setdefault("arguments", "")
    return joined
