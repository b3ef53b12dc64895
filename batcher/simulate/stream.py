"""A completion as server-sent events, piece by piece. Touches: the clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

__all__ = ["TYPE", "events", "paced"]

TYPE = "text/event-stream"
_PIECE = 12  # Bytes of an answer in one event: three tokens; the network may cut anywhere.
_encode = msgspec.json.Encoder().encode


def events(data: dict[str, Any], usage: dict[str, Any] | None, *, cut: bool) -> list[bytes]:
    """The events of a completion, as OpenAI's API sends them.

    Args:
        data: The completion.
        usage: What the last chunk tells of it; None for no such chunk.
        cut: Whether it breaks off in the middle of the answer.
    """
    [choice] = data["choices"]
    message, sure = choice["message"], (choice.get("logprobs") or {}).get("content") or []
    chunk = {**data, "object": "chat.completion.chunk"}

    def event(delta: dict[str, Any], finish: str | None, logprobs: Any = None) -> bytes:
        of = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return b"data: " + _encode({**chunk, "choices": [of]}) + b"\n\n"

    told = [b": keep-alive\n\n", event({"role": "assistant", "content": ""}, None)]
    if message["content"] is None:
        told = [told[0], event({"role": "assistant", "refusal": message["refusal"]}, None)]
    text = message["content"] or ""
    for at in range(0, len(text), _PIECE):
        told.append(event({"content": text[at : at + _PIECE]}, None))
    if sure:
        told.append(event({}, None, {"content": sure, "refusal": None}))
    if cut:
        return told[: max(1, len(told) // 2)]
    told.append(event({}, choice["finish_reason"]))
    if usage is not None:
        told.append(b"data: " + _encode({**chunk, "choices": [], "usage": usage}) + b"\n\n")
    return [*told, b"data: [DONE]\n\n"]


async def paced(
    told: list[bytes], seconds: float, bill: Callable[..., None]
) -> AsyncIterator[bytes]:
    """The events over so many seconds; `bill` is told whether the client was there to the end."""
    seen = False
    try:
        if not seconds:
            yield b"".join(told)
        else:
            for event in told:
                yield event
                await asyncio.sleep(seconds / len(told))
        seen = True
    finally:
        bill(seen=seen)
