"""Server-sent events put together to the body that would have come without them. Touches: nothing.

The events are those of `stream: true`: each holds a chunk of a chat completion, and comments keep
the connection open. What comes out is a whole completion, or the error that came in the middle, so
that `wire` reads the same with and without a stream.
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
    """Whether these bytes tell why the answer ended: the rest of the stream is then no part of it.

    Inside a text the quotes are escaped. A reason that says nothing ("", "null") is none.

    >>> is_finished(b'{"finish_reason": "stop"}'), is_finished(b'{"finish_reason": ""}')
    (True, False)
    """
    return any(_tells(of.decode("utf-8", "replace")) for of in _FINISHED.findall(chunk))


def _tells(reason: object) -> bool:
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
    r"""A body without what servers of streams put around a whole answer.

    That is blank space, NUL bytes and comments before it; the same and `data: [DONE]` behind it.

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
    """Where the first line begins that is neither blank nor a comment."""
    found = _BEFORE.match(body)
    return found.end() if found else 0


def whole(body: bytes) -> tuple[bytes, int | None]:
    """(the completion or the error as JSON, bytes of the stream up to the end of the first token).

    Raises:
        NoAnswer: It ended before its end.
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
        if not data:  # Some keep the connection open so.
            continue
        chunk = loads(data, halves=True)
        if not isinstance(chunk, dict):
            continue
        if is_error(chunk):
            return dumps({**chunk, "choices": None}), first
        if name == b"error" or _only_says_a_fault(chunk):
            return dumps({"error": chunk}), first
        if pieces.add(chunk) and first is None:
            first = end
    if not done and pieces.finish is None:
        raise NoAnswer(f"the stream was cut after {len(''.join(pieces.content)):,} characters")
    return dumps(pieces.completion()), first


def _events(body: bytes, at: int) -> Iterator[tuple[bytes, int, bytes]]:
    """(data, where its event ends, its name) of each event that has some; the last may lack its end."""
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
    """What the chunks brought so far.

    Attributes:
        content: Texts of the answer.
        finish: Why it ended; None until that is told.
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
        """Takes a chunk; whether it holds a part of the answer."""
        for name in _HEAD:
            if chunk.get(name) is not None:
                self._head.setdefault(name, chunk[name])
        self._use(chunk.get("usage"))
        if isinstance(groq := chunk.get("x_groq"), dict):
            self._use(groq.get("usage"))
        choices = chunk.get("choices")
        own = (of for of in choices if isinstance(of, dict)) if isinstance(choices, list) else ()
        choice = next((of for of in own if not of.get("index")), None)
        if choice is None:
            return False
        self._answers = True
        self._use(choice.get("usage"))  # Moonshot
        for name in ("error", "content_filter_results"):
            if choice.get(name) is not None:
                self._more[name] = choice[name]
        if _tells(choice.get("finish_reason")):
            self.finish = choice["finish_reason"]
        if isinstance(sure := choice.get("logprobs"), dict):
            for name, of in sure.items():
                if isinstance(of, list):
                    self._logprobs.setdefault(name, []).extend(of)
        delta, message = choice.get("delta"), choice.get("message")
        if isinstance(delta, dict) and delta:
            told = self._delta(delta)
            self._in_pieces = self._in_pieces or told
            return told
        return isinstance(message, dict) and self._delta(self._whole_message(message))

    def _use(self, usage: Any) -> None:
        """Takes a usage; Gemini sends one with each chunk, and the last that tells anything counts."""
        if isinstance(usage, dict) and (self._usage is None or any(usage.values())):
            self._usage = usage

    def _whole_message(self, message: dict[str, Any]) -> dict[str, Any]:
        """A message that comes where pieces are expected; behind pieces it is all of them again (MiniMax)."""
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
        said = delta.get("content")
        if isinstance(said, list):  # Parts, as in a whole answer.
            parts = [part.get("text") for part in said if isinstance(part, dict)]
            said = "".join(part for part in parts if isinstance(part, str))
        if isinstance(said, str):
            self.content.append(said)
        told = bool(said)
        for name in _TEXTS:
            if isinstance(text := delta.get(name), str):
                self._texts.setdefault(name, []).append(text)
                told = told or bool(text)
        calls = delta.get("tool_calls")
        for number, call in enumerate(calls if isinstance(calls, list) else ()):
            if isinstance(call, dict):
                self._call(self._place(call, number), call)
                told = True
        if isinstance(call := delta.get("function_call"), dict):
            self._function = _joined(self._function or {}, call)
            told = True
        return told

    def _place(self, call: dict[str, Any], number: int) -> int:
        """Which of the calls a piece belongs to; some servers tell none, and each call whole."""
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


def _only_says_a_fault(chunk: dict[str, Any]) -> bool:
    """Whether a chunk is an error without that word: a code and a message, and nothing of an answer."""
    told = chunk.get("code") or chunk.get("status")
    says = chunk.get("message") or chunk.get("msg") or chunk.get("detail")
    return (
        bool(told and isinstance(says, str)) and not chunk.get("choices") and "usage" not in chunk
    )


def _joined(held: dict[str, Any], piece: dict[str, Any]) -> dict[str, Any]:
    """A function's name, which comes once, and its arguments, which come in pieces."""
    joined = {**held}
    for name, value in piece.items():
        if name == "arguments" and isinstance(value, str):
            joined[name] = joined.get(name, "") + value
        elif value:
            joined[name] = value
    joined.setdefault("arguments", "")
    return joined
