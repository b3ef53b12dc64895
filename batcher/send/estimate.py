"""What is expected of a request before it is sent: its tokens, its time. Touches: nothing.

No tokenizer: the tokens of a prompt are its bytes by a ratio learned per model from the usage that
comes back.
"""

from __future__ import annotations

from collections import deque

__all__ = ["Estimate", "TimeoutEstimator"]

_BYTES = 4.0
_KEPT = 0.999  # Of what was learned, with each answer: the last thousand count.
_DIFFERS, _STEEPEST = 0.2, 4.0
_ENOUGH, _MARGIN = 20, 1.2


class Estimate:
    """How many tokens a request will use; 250 an answer and four bytes a token until one is learned.

    A prompt's tokens are a line over the bytes of its body (least squares), as much of a body is the
    same in all rows and has tokens of another length than what differs. Where rows hardly differ
    in length no slope can be told: then the tokens are in proportion to the bytes.
    """

    def __init__(self) -> None:
        self._rows = self._x = self._y = self._xx = self._xy = 0.0  # Sums; x bytes, y tokens.
        self._answers, self._output_tokens = 0.0, 0.0
        self._learned, self._densest = 0, 0.0

    def tokens(self, body_bytes: int, max_tokens: int | None) -> tuple[float, float | None]:
        """(prompt and mean answer, prompt and the largest answer or None when it has no bound)."""
        prompt = self._prompt(body_bytes)
        mean = self._output_tokens / self._answers if self._answers else 250.0
        if max_tokens is None:
            return max(1.0, prompt + mean), None
        return max(1.0, prompt + min(mean, max_tokens)), max(1.0, prompt + max_tokens)

    def _prompt(self, body_bytes: int) -> float:
        rows = self._rows
        if not rows:
            return body_bytes / _BYTES
        x, y = self._x / rows, self._y / rows
        spread = self._xx / rows - x * x
        slope = y / x
        if self._learned >= _ENOUGH and spread > (_DIFFERS * x) ** 2:
            told = (self._xy / rows - x * y) / spread
            slope = min(max(told, slope / _STEEPEST), slope * _STEEPEST)
        return max(1.0, y + slope * (body_bytes - x))

    def most(self, body_bytes: int) -> int:
        """Tokens that a prompt has at most: one a byte, until answers show how many there are."""
        if self._learned < _ENOUGH:
            return body_bytes
        return min(body_bytes, int(body_bytes * self._densest * _MARGIN) + 1)

    def learn(self, body_bytes: int, prompt_tokens: int | None, output_tokens: int | None) -> None:
        """Takes note of one answer's usage; what was not reported teaches nothing."""
        if prompt_tokens:
            self._rows = self._rows * _KEPT + 1
            self._x = self._x * _KEPT + body_bytes
            self._y = self._y * _KEPT + prompt_tokens
            self._xx = self._xx * _KEPT + body_bytes * body_bytes
            self._xy = self._xy * _KEPT + body_bytes * prompt_tokens
            self._learned += 1
            self._densest = max(self._densest, prompt_tokens / body_bytes)
        if output_tokens is not None:
            self._answers = self._answers * _KEPT + 1
            self._output_tokens = self._output_tokens * _KEPT + output_tokens


class TimeoutEstimator:
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
