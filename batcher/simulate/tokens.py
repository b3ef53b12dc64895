"""How many tokens a text is, and which of a prompt's are cached. Touches: nothing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import msgspec

__all__ = ["PrefixCache", "prompt_tokens", "text_of", "text_tokens"]

_BYTES = 4
_PER_MESSAGE = 4
_STEP, _LEAST = 128, 1024


def text_of(message: Mapping[str, Any]) -> bytes:
    """The UTF-8 text of a message; a part that is not text, such as an image, is 256 tokens."""
    content = message.get("content")
    if isinstance(content, str):
        return content.encode(errors="replace")
    return b"".join(_part(part) for part in content) if isinstance(content, list) else b""


def _part(part: Any) -> bytes:
    if isinstance(part, dict) and isinstance(text := part.get("text"), str):
        return text.encode(errors="replace")
    return blake2b(msgspec.json.encode(part), digest_size=32).digest() * 32


def text_tokens(text: bytes) -> int:
    """A token for every four bytes begun."""
    return -(-len(text) // _BYTES)


def prompt_tokens(texts: Sequence[bytes]) -> int:
    """Tokens of a prompt whose messages have these texts: four more for each message."""
    return sum(_PER_MESSAGE + text_tokens(text) for text in texts)


class PrefixCache:
    """Remembers how prompts began, by hashes at every 128 tokens; forgets the least used first.

    Args:
        most: Hashes kept.
    """

    def __init__(self, most: int = 50_000) -> None:
        self._most = most
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def cached(self, model: str, texts: Sequence[bytes]) -> tuple[int, int]:
        """(tokens of this prompt that began an earlier one for `model`, those kept from now on).

        Both are 0 for a prompt below 1,024 tokens.
        """
        text = b"\x00".join(texts)
        if len(text) < _LEAST * _BYTES:
            return 0, 0
        cached, prefix = 0, blake2b(model.encode(), digest_size=16)
        step = _STEP * _BYTES
        for end in range(step, len(text) + 1, step):
            prefix.update(text[end - step : end])
            digest = prefix.digest()
            if digest in self._seen:
                self._seen.move_to_end(digest)
                cached = end // _BYTES
            else:
                self._seen[digest] = None
        while len(self._seen) > self._most:
            self._seen.popitem(last=False)
        cached = cached if cached >= _LEAST else 0
        return cached, len(text) // step * _STEP - cached
