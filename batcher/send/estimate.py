"""What is expected of a request before it is sent: its tokens, its time. Touches: nothing.

No tokenizer: the tokens of a prompt are its bytes by a ratio learned per model from the usage that
comes back.
"""

from __future__ import annotations

from collections import deque

__all__ = ["Estimate", "Patience"]

_ENOUGH, _MARGIN = 20, 1.2


class Estimate:
    """How many tokens a request will use; starts at four bytes a token and 250 tokens an answer."""

    def __init__(self) -> None:
        self._bytes, self._prompt_tokens = 4000.0, 1000.0
        self._answers, self._output_tokens = 0.0, 0.0
        self._learned, self._densest = 0, 0.0

    def tokens(self, body_bytes: int, max_tokens: int | None) -> tuple[float, float | None]:
        """(prompt and mean answer, prompt and the largest answer or None when it has no bound)."""
        prompt = body_bytes * self._prompt_tokens / self._bytes
        mean = self._output_tokens / self._answers if self._answers else 250.0
        if max_tokens is None:
            return max(1.0, prompt + mean), None
        return max(1.0, prompt + min(mean, max_tokens)), max(1.0, prompt + max_tokens)

    def most(self, body_bytes: int) -> int:
        """Tokens that a prompt has at most: one a byte, until answers show how many there are."""
        if self._learned < _ENOUGH:
            return body_bytes
        return min(body_bytes, int(body_bytes * self._densest * _MARGIN) + 1)

    def learn(self, body_bytes: int, prompt_tokens: int | None, output_tokens: int | None) -> None:
        """Takes note of one answer's usage; what was not reported teaches nothing."""
        if prompt_tokens:
            self._bytes = self._bytes * 0.999 + body_bytes
            self._prompt_tokens = self._prompt_tokens * 0.999 + prompt_tokens
            self._learned += 1
            self._densest = max(self._densest, prompt_tokens / body_bytes)
        if output_tokens is not None:
            self._answers = self._answers * 0.999 + 1
            self._output_tokens = self._output_tokens * 0.999 + output_tokens


class Patience:
    """Seconds after which an exchange is given up.

    Args:
        told: The fixed number, or None for three times the p99 of the last thousand answers, at
            least 60; 600 before a hundred answers.
    """

    _LEAST, _MOST, _TIMES = 60.0, 600.0, 3.0

    def __init__(self, told: float | None) -> None:
        self._told = told
        self._seen: deque[float] = deque(maxlen=1000)
        self._since = 0
        self.seconds = told if told is not None else self._MOST

    def answered(self, latency: float) -> None:
        """Takes note of how long an answer took."""
        if self._told is not None:
            return
        self._seen.append(latency)
        self._since += 1
        if self._since >= 100:
            self._since = 0
            p99 = sorted(self._seen)[int(0.99 * len(self._seen))]
            self.seconds = min(self._MOST, max(self._LEAST, self._TIMES * p99))
