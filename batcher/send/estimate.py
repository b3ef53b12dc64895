"""Estimates of a request's tokens and of its timeout, learned from answers. Touches: nothing.

There is no tokenizer: the tokens of a prompt are its bytes times a ratio that is learned per model from
the usage that answers report.
"""

from __future__ import annotations

from collections import deque
from heapq import nlargest

__all__ = ["TimeoutEstimator", "TokenEstimator"]

_BYTES_PER_TOKEN = 4.0
_ANSWER_TOKENS = 250.0
_DECAY = 0.999  # Weight of what was learned, per answer: the last thousand count.
# Lengths must differ by this share for a slope, which differs from the ratio by this factor at most.
_MIN_SPREAD, _MAX_STEEPNESS = 0.2, 4.0
_MIN_ANSWERS, _MARGIN = 20, 1.2
_FIT_EACH, _FIT_EVERY = 100, 10  # After each of the first answers, then after every tenth.
# Of these bytes a token holds several in every tokenizer; digits, capitals, punctuation and other scripts
# may take up to a token a byte.
_LIGHT = b"abcdefghijklmnopqrstuvwxyz "


class TokenEstimator:
    """Tokens of one model's requests; four bytes a token and 250 an answer until it has seen answers.

    The tokens of a prompt are a line over the bytes of its body (least squares): much of a body is the
    same in all rows, with tokens of another length than the rest. Where rows hardly differ in length,
    no slope can be found, and tokens are proportional to bytes.
    """

    def __init__(self) -> None:
        self._rows = self._x = self._y = self._xx = self._xy = 0.0  # Sums; x bytes, y tokens.
        self._answers, self._output_tokens = 0.0, 0.0
        self._observed, self._max_per_byte = 0, 0.0
        self._base, self._slope = (
            0.0,
            1 / _BYTES_PER_TOKEN,
        )  # Tokens of a prompt: base + slope * bytes.
        self._max_dense_share = 0.0

    def tokens(self, body_bytes: int, max_tokens: int | None) -> tuple[float, float | None]:
        """(prompt and mean answer, prompt and longest answer or None when answers have no bound)."""
        prompt = max(1.0, self._base + self._slope * body_bytes)
        mean = self._output_tokens / self._answers if self._answers else _ANSWER_TOKENS
        if max_tokens is None:
            return prompt + mean, None
        return prompt + min(mean, max_tokens), prompt + max_tokens

    def _fit(self) -> None:
        rows = self._rows
        x, y = self._x / rows, self._y / rows
        variance = self._xx / rows - x * x
        slope = y / x
        if self._observed >= _MIN_ANSWERS and variance > (_MIN_SPREAD * x) ** 2:
            fitted = (self._xy / rows - x * y) / variance
            slope = min(max(fitted, slope / _MAX_STEEPNESS), slope * _MAX_STEEPNESS)
        self._base, self._slope = y - slope * x, slope

    def max_prompt(self, body_bytes: int, text: bytes | None = None) -> int:
        """Upper bound of a prompt's tokens: one a byte, until enough answers show how dense they are.

        A body that holds a larger share of dense bytes (digits, capitals, other scripts) than all bodies
        before it is bounded by one token for each of the additional ones.

        Args:
            body_bytes: Its bytes without images.
            text: The body; None where it holds images, whose base64 says nothing of the text.
        """
        if self._observed < _MIN_ANSWERS:
            return body_bytes
        most = body_bytes * self._max_per_byte * _MARGIN
        if text is not None:
            most += max(0.0, _dense_bytes(text) - self._max_dense_share * body_bytes)
        return min(body_bytes, int(most) + 1)

    def observe(
        self,
        body_bytes: int,
        prompt_tokens: int | None,
        output_tokens: int | None,
        text: bytes | None = None,
    ) -> None:
        """Learns from one answer's usage.

        Args:
            body_bytes: Bytes of the request's body, without images.
            prompt_tokens: As reported; None when it was not.
            output_tokens: As reported; None when it was not.
            text: The body, where `max_prompt` will be asked; None where it holds images.
        """
        if prompt_tokens:
            self._rows = self._rows * _DECAY + 1
            self._x = self._x * _DECAY + body_bytes
            self._y = self._y * _DECAY + prompt_tokens
            self._xx = self._xx * _DECAY + body_bytes * body_bytes
            self._xy = self._xy * _DECAY + body_bytes * prompt_tokens
            self._observed += 1
            self._max_per_byte = max(self._max_per_byte, prompt_tokens / body_bytes)
            if self._observed < _FIT_EACH or not self._observed % _FIT_EVERY:
                self._fit()
            if text is not None:
                share = _dense_bytes(text) / body_bytes
                self._max_dense_share = max(self._max_dense_share, share)
        if output_tokens is not None:
            self._answers = self._answers * _DECAY + 1
            self._output_tokens = self._output_tokens * _DECAY + output_tokens


def _dense_bytes(text: bytes) -> int:
    return len(text.translate(None, _LIGHT))


class TimeoutEstimator:
    """Seconds after which an exchange times out.

    Args:
        fixed: The configured number, or None for three times the p99 of the last thousand answers, at
            least 60; 600 before a hundred answers.

    Attributes:
        seconds: The timeout now.
    """

    _MIN, _MAX, _FACTOR, _UPDATE_EVERY = 60.0, 600.0, 3.0, 100

    def __init__(self, fixed: float | None) -> None:
        self._fixed = fixed
        self._latencies: deque[float] = deque(maxlen=1000)
        self._new = 0
        self.seconds = fixed if fixed is not None else self._MAX

    def observe(self, latency: float) -> None:
        """Learns from the seconds that one answer took."""
        if self._fixed is not None:
            return
        self._latencies.append(latency)
        self._new += 1
        if self._new >= self._UPDATE_EVERY:
            self._new = 0
            seen = len(self._latencies)
            p99 = nlargest(seen - int(0.99 * seen), self._latencies)[-1]
            self.seconds = min(self._MAX, max(self._MIN, self._FACTOR * p99))
