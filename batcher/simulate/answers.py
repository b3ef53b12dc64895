"""What a simulated model says. Touches: nothing.

The right answer is worked out from the chat messages alone, by rules over what `knowledge` holds;
then a coin that falls the same way every time decides whether a plausible wrong one is given. A
message that asks nothing itself (a re-ask such as "That was none of the labels, try again.")
leaves the question to the user messages before it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from hashlib import blake2b
from json import dumps
from typing import Any, NamedTuple

from batcher.simulate.knowledge import LABELS, MOODS, PHRASES, QUESTIONS

__all__ = ["answer"]

_SCORED = tuple(
    (phrase, label, weight)
    for label, weights in PHRASES.items()
    for weight, phrases in weights.items()
    for phrase in phrases
)
_WORD = re.compile(r"\w+")
_KNOWN = {f" {' '.join(_WORD.findall(q.question.lower()))} ": q for q in QUESTIONS}
_GOLDS = {
    q.subject: tuple(p.gold for p in QUESTIONS if p.subject == q.subject) for q in QUESTIONS
}

# A cue, then a list in one of three shapes: "labels: a|b|c", "one of a, b or c", "- a: …\n- b: …".
_CUE = r"\b(?:one of|labels?|categor(?:y|ies)|classes|enum|choose (?:from|between))\b"
_OPEN = r"[^:=\n\[({.]{0,40}[:=\[({][ :=\[({]*"
_NAME = r"""["'`]?(?!(?:or|and)\b)[^\W\d_][\w-]*["'`]?"""
_NAMES = rf"""{_NAME}(?: (?!(?:or|and)\b)[\w-]+["'`]?){{0,2}}"""
_THEN = r"""\s*(?:[,;|/]\s*(?:(?:or|and)\b)?|or\b|and\b(?=\s*["'`]?[\w-]+["'`]?[.)\]}\n]))\s*"""
_DOT = r"[ \t]*(?:[-*•]|\d+[.)])[ \t]+"
_OFFER = re.compile(
    rf"(?i){_CUE}(?:{_OPEN}({_NAMES}(?:{_THEN}{_NAMES})+)"
    rf"|\s+({_NAME}(?:{_THEN}{_NAME}){{2,}})"
    rf"|[^\n]{{0,60}}((?:\n+{_DOT}[^\n]+){{2,}}))"
)
_BETWEEN = re.compile(rf"(?i){_THEN}")
_BULLET = re.compile(rf"(?m)^{_DOT}[\"'`*]*([\w-]+(?: [\w-]+){{0,2}})")
_BODY = re.compile(r"(?im)^[ \t]*(?:ticket|text|message|customer|input|review)\b[^:\n]{0,20}:")

_FIELD = re.compile(r"""["'`](label|answer|category|class|sentiment|result)["'`]""")
_NUMERIC = re.compile(r'"type"\s*:\s*"(?:integer|number)"')

_CHAIN = r"-?\d{1,15}(?: *[-+*/×÷] *-?\d{1,15}){1,9}"
_ARITHMETIC = re.compile(
    rf"(?i)\b(?:what is|what's|how much is|calculate|compute|solve):? *({_CHAIN})(?![\d.])"
    rf"|^\s*({_CHAIN}) *=? *\??\s*$"
)
_STEP = re.compile(r" *([-+*/×÷]) *(-?\d+)")
_NUMBER = re.compile(r"-?\d+(?:\.(\d+))?")

_SAYINGS = (
    "You mention {}; that is the point I would look at first.",
    "In short: {}. Everything else follows from that.",
    "Here is how I read it: {}, and not much more than that.",
    "It depends on what is meant by {}, but in most cases yes.",
    "A fair summary would be this: {}.",
    "Start with {}, then check the result and go on from there.",
    "There are two sides to it: one is {}, the other is how much time you have.",
)


class _Asked(NamedTuple):
    """What one message asks for.

    Attributes:
        body: The message without its list of labels.
        labels: The labels it offers, as it spells them.
        known: Those of them that there is knowledge about, by our name for them.
        field: The field of the JSON it asks for; empty when it names none, None for plain text.
        numeric: That field is a number.
    """

    body: str
    labels: tuple[str, ...] = ()
    known: Mapping[str, str] = {}
    field: str | None = None
    numeric: bool = False


class _Solved(NamedTuple):
    """The right answer, and what a wrong one may be taken from."""

    right: str
    offered: tuple[str, ...] = ()


def answer(messages: list[dict[str, Any]], model: str, quality: float, seed: int) -> str:
    """What `model` answers to `messages`: always the same to the same, and nothing raises.

    Args:
        messages: Chat messages as in a request; of content parts only the text counts.
        model: Any name; models of equal quality differ in what they get wrong.
        quality: Share of right answers, from 0 to 1.
        seed: Another seed gets other answers wrong.

    >>> answer([{"role": "user", "content": "What is 17 * 23?"}], "sim-large", 1.0, 0)
    '391'
    """
    system, users = _texts(messages)
    dice = _hash(f"{seed}\0{model}\0{users[0]}")
    coin, dice = (dice & 0xFFFFFFFF) / 2**32, dice >> 32

    asked = (_read_system(system), *map(_read, users))
    frame = next((one for one in asked if one.labels), asked[0])
    solve = _label if frame.labels else _fact
    solved = next(filter(None, (solve(one.body, frame.known) for one in asked[1:])), None)
    if solved:
        said = solved.right
    elif frame.labels:
        said = frame.labels[_hash(users[-1]) % len(frame.labels)]
    else:
        said = _echo(users[0] or system, dice)
    if coin >= quality and (solved or frame.labels):
        said = _wrong(said, frame.labels or (solved.offered if solved else ()), dice)

    form = next((one for one in asked if one.field is not None), None)
    if form is None:
        return said
    number = _NUMBER.fullmatch(said) if form.numeric else None
    value = (float(said) if number.group(1) else int(said)) if number else said
    name = form.field or ("label" if frame.labels else "answer")
    return dumps({name: value}, ensure_ascii=False)
