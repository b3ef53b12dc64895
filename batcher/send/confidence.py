"""The probability of each label, from the log probabilities of an answer's tokens. Touches: nothing.

An answer is read token by token until it can be one label only. Where another token would have led to
another label, that label gets the probability of the text so far times that token's. Labels that none of
the most likely tokens leads to are left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from batcher.send.reasoning import answer_in

__all__ = ["confidences"]

_decode = msgspec.json.Decoder().decode
_LEAST = -9999  # Servers send this for impossible tokens.
_BEFORE = " \t\r\n\"'`*_“‘{[:"


class _Step(NamedTuple):
    """One token of the answer.

    Attributes:
        token: Its bytes; a token may hold a part of a character.
        logprob: Its log probability.
        others: Alternative tokens with theirs.
    """

    token: bytes
    logprob: float
    others: list[tuple[str, float]]


def confidences(
    logprobs: str, label: str, labels: Mapping[str, str], *, cased: bool
) -> dict[str, float]:
    """Label to probability, the most likely first; {} where it is not known.

    Args:
        logprobs: JSON as in a choice: OpenAI's `content`, or the `tokens` and `token_logprobs` of
            older servers.
        label: The label of the answer.
        labels: All labels by their folded form.
        cased: Whether labels differ in case.
    """
    steps = list(_steps(logprobs))
    whole = b"".join(step.token for step in steps)
    try:
        text = whole.decode()
        behind = text.rfind(answer_in(text))  # The reasoning may name the label as well.
        skipped = len(text[:behind].encode())
        begin, end = (skipped + at for at in _place(text[behind:], label))
    except ValueError:
        return {}
    found: dict[str, float] = {}
    mass, said, at = 1.0, b"", 0
    for step in steps:
        before, at = at, at + len(step.token)
        if at <= begin:
            continue
        for other, logprob in step.others:
            # An alternative to the first token may begin with a quotation mark.
            text = said.decode(errors="ignore") + other if said else other.lstrip(_BEFORE)
            if (one := _only(text, labels, cased=cased)) is not None:
                found[one] = found.get(one, 0.0) + mass * math.exp(logprob)
        mass *= math.exp(step.logprob)
        said += step.token[max(0, begin - before) :]
        if at > end or _only(said.decode(errors="ignore"), labels, cased=cased) == label:
            break
    found[label] = found.get(label, 0.0) + mass
    ordered = sorted(found.items(), key=lambda item: -item[1])
    return {name: round(min(1.0, mass), 6) for name, mass in ordered}


def _place(text: str, label: str) -> tuple[int, int]:
    """(begin, end) of the label in the answer, in bytes: the last place in JSON, else the first.

    Raises:
        ValueError: It is not there in this spelling.
    """
    spelled = r"\s+".join(map(re.escape, label.split()))
    places = list(re.finditer(rf"(?i)(?<!\w){spelled}(?!\w)", text))
    if not places:
        raise ValueError(label)
    place = places[-1] if text.lstrip(" \t\r\n`").startswith(("{", "json")) else places[0]
    return len(text[: place.start()].encode()), len(text[: place.end()].encode())


def _only(said: str, labels: Mapping[str, str], *, cased: bool) -> str | None:
    """The one label that begins with this text, or that this text begins with; None for none or several."""
    if not cased:
        said = said.casefold()
    if not said:
        return None
    found = [label for folded, label in labels.items() if folded.startswith(said)]
    begun = [
        folded
        for folded in labels
        if said.startswith(folded) and not said[len(folded) : len(folded) + 1].isalnum()
    ]
    if begun and (longest := labels[max(begun, key=len)]) not in found:  # "A*" begins with "A".
        found.append(longest)
    return found[0] if len(found) == 1 else None


def _steps(logprobs: str) -> Iterator[_Step]:
    told = _decode(logprobs)
    if not isinstance(told, dict):
        return
    if isinstance(content := told.get("content"), list):
        for of in content:
            if not isinstance(of, dict) or (step := _step(of)) is None:
                return
            yield step
        return
    tokens, numbers = told.get("tokens"), told.get("token_logprobs")
    tops = told.get("top_logprobs")
    if not isinstance(tokens, list) or not isinstance(numbers, list):
        return
    for n, (token, number) in enumerate(zip(tokens, numbers, strict=False)):
        top = tops[n] if isinstance(tops, list) and n < len(tops) else None
        pairs = top.items() if isinstance(top, dict) else ()
        others = [{"token": t, "logprob": p} for t, p in pairs]
        if (step := _step({"token": token, "logprob": number, "top_logprobs": others})) is None:
            return
        yield step


def _step(of: Mapping[str, Any]) -> _Step | None:
    token, logprob, raw = of.get("token"), of.get("logprob"), of.get("bytes")
    if not isinstance(token, str) or (logprob := _number(logprob)) is None:
        return None
    try:
        own = bytes(raw) if isinstance(raw, list) else token.encode(errors="replace")
    except (TypeError, ValueError, OverflowError):
        own = token.encode(errors="replace")
    others = []
    top = of.get("top_logprobs")
    for other in top if isinstance(top, list) else ():
        if isinstance(other, dict):
            name, number = other.get("token"), _number(other.get("logprob"))
            if isinstance(name, str) and name != token and number is not None:
                others.append((name, number))
    return _Step(own, logprob, others)


def _number(value: Any) -> float | None:
    """A log probability; some servers round the largest ones above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value <= 0.01:
        return None
    return float(max(_LEAST, min(0.0, value)))
