"""What a simulated model says. Touches: nothing.

The right answer is worked out from the chat messages alone, by rules over what `knowledge` holds;
then a coin that falls the same way every time decides whether a plausible wrong one is given. A
message that asks nothing itself (a re-ask such as "That was none of the labels, try again.")
leaves the question to the user messages before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fractions import Fraction
from functools import lru_cache
from hashlib import blake2b
from json import dumps
from typing import Any, NamedTuple

from batcher.simulate.knowledge import LABELS, MOODS, PHRASES, QUESTIONS

__all__ = ["answer", "offered"]


def _any_of(words: Iterable[str]) -> str:
    """A regex for the longest of `words`, as a tree of letters: twice as fast as their list."""
    tails: dict[str, list[str]] = {}
    for word in words:
        if word:
            tails.setdefault(word[0], []).append(word[1:])
    branches = "|".join(re.escape(head) + _any_of(rest) for head, rest in tails.items())
    if "" in words:
        return f"(?:{branches})?"
    return f"(?:{branches})" if len(tails) > 1 else branches


_WORD = re.compile(r"\w+")
_MOODS = {word: (mood, 1) for mood, words in MOODS.items() for word in words}
_WEIGHTS = {
    phrase: (label, weight)
    for label, weights in PHRASES.items()
    for weight, phrases in weights.items()
    for phrase in phrases
}
_PHRASE = re.compile(rf"\b{_any_of(_WEIGHTS)}")
_KNOWN = {" ".join(_WORD.findall(q.question.lower())): q for q in QUESTIONS}
_QUESTION = re.compile(rf"\b{_any_of(_KNOWN)}\b")
_GOLDS = {q.subject: tuple(p.gold for p in QUESTIONS if p.subject == q.subject) for q in QUESTIONS}

# A cue, then a list in one of three shapes: "labels: a|b|c", "one of a, b or c", "- a: …\n- b: …".
# The cue is spelled out because a search for plain letters is three times as fast as for (?i).
_CUES = ("one of", "label", "labels", "category", "categories", "classes", "enum", "choose from")
_CUE = "|".join(form for cue in _CUES for form in (cue, cue.capitalize(), cue.upper()))
_OPEN = r"[^:=\n\[({.]{0,40}[:=\[({][\s:=\[({]*"
_NAME = r"""["'`]?(?!(?:or|and)\b)[^\W\d_][\w-]*["'`]?"""
_NAMES = rf"""{_NAME}(?: (?!(?:or|and)\b)[\w-]+["'`]?){{0,2}}"""
_LAST = r"""(?=\s*["'`]?[\w-]+["'`]?(?:[.)\]}\n]|$))"""
_THEN = rf"(?:\s*[,;|/]\s*(?:(?:or|and)\b)?|\s+or\b|\s+and\b{_LAST})\s*"
_DOT = r"[ \t]*(?:[-*•]|\d+[.)])[ \t]+"
_OFFER = re.compile(
    rf"(?:{_CUE})\b(?i:{_OPEN}({_NAMES}(?:{_THEN}{_NAMES})+)"
    rf"|\s+({_NAME}(?:{_THEN}{_NAME}){{2,}})"
    rf"|[^\n]{{0,60}}((?:\n+{_DOT}[^\n]+){{2,}}))"
)
_BETWEEN = re.compile(rf"(?i){_THEN}")
_BULLET = re.compile(rf"(?m)^{_DOT}[\"'`*]*([\w-]+(?: [\w-]+){{0,2}})")
_BODY = re.compile(r"\n[ \t]*(?i:ticket|text|message|customer|input|review)\b[^:\n]{0,20}:")

# "As JSON", "one JSON object"; but not a customer's "the JSON export is broken".
_JSON = re.compile(
    r"(?i)\b(?:as|in|a|one|only|valid|this|return|with) json\b|\bjson (?:object|schema)\b"
)
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
    """The right answer, and those among which a wrong one is chosen."""

    right: str
    among: tuple[str, ...] = ()


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

    asked = [_read_system(system), *map(_read, users)]
    frame = next((one for one in asked if one.labels), asked[0])
    solve = _label if frame.labels else _fact
    for one in asked[1:]:
        solved = solve(one.body, frame)
        if solved:
            break
    else:
        solved = _guess(frame, users[0] or system, dice)
    said = solved.right if coin < quality else _wrong(solved, dice)

    form = next((one for one in asked if one.field is not None), None)
    return said if form is None else _as_json(said, form, frame)


def offered(messages: list[dict[str, Any]]) -> tuple[str, ...]:
    """The labels among which messages let choose; none when they do not."""
    system, users = _texts(messages)
    asked = [_read_system(system), *map(_read, users)]
    return next((one.labels for one in asked if one.labels), ())


def _texts(messages: list[dict[str, Any]]) -> tuple[str, list[str]]:
    """All system text, and the user messages, the last one first; at least one."""
    system: list[str] = []
    users: list[str] = []
    for message in messages if isinstance(messages, list) else ():
        if not isinstance(message, dict):
            continue
        content, role = message.get("content"), message.get("role")
        if isinstance(content, list):
            parts = (part.get("text") for part in content if isinstance(part, dict))
            content = "\n".join(part for part in parts if isinstance(part, str))
        if isinstance(content, str) and role in ("system", "developer"):
            system.append(content)
        elif isinstance(content, str) and role == "user":
            users.append(content)
    return "\n".join(system), users[::-1] or [""]


def _read(text: str, *, is_system: bool = False) -> _Asked:
    """What `text` asks for. A user's JSON counts only beside a field or a schema."""
    field, numeric = None, False
    if ("json" in text or "JSON" in text) and (is_system or _JSON.search(text)):
        found = _FIELD.search(text)
        if found or is_system or "schema" in text:
            field, numeric = found.group(1) if found else "", bool(_NUMERIC.search(text))
    offers = [(_names(*match.groups()), match) for match in _OFFER.finditer(text)]
    if not offers:
        return _Asked(text, field=field, numeric=numeric)
    labels, match = max(offers, key=lambda offer: len(_known(offer[0])))
    body = f"\n{text[: match.start()]}\n{text[match.end() :]}"
    starts = [start.end() for start in _BODY.finditer(body)]
    return _Asked(body[starts[-1] :] if starts else body, labels, _known(labels), field, numeric)


@lru_cache(maxsize=64)
def _read_system(text: str) -> _Asked:
    return _read(text, is_system=True)


@lru_cache(maxsize=64)
def _names(inline: str | None, bare: str | None, bullets: str | None) -> tuple[str, ...]:
    """The labels of a list, which `_OFFER` found in one of three shapes."""
    names = _BULLET.findall(bullets) if bullets else _BETWEEN.split(inline or bare or "")
    return tuple(dict.fromkeys(filter(None, (name.strip(" \"'`") for name in names))))


@lru_cache(maxsize=64)
def _known(labels: tuple[str, ...]) -> Mapping[str, str]:
    """Our name to the offered one: {"bug": "Bug report"}; "other" is whatever means "none"."""
    ours = {name: name for name in (*LABELS, *MOODS, "other")} | {"none": "other", "bugs": "bug"}
    words = ((word, label) for label in labels for word in _WORD.findall(label.lower()))
    return {ours[word]: label for word, label in words if word in ours}


def _label(body: str, frame: _Asked) -> _Solved | None:
    """The offered label that `body` speaks for most, None when it speaks for none."""
    text, known = body.lower(), frame.known
    if not MOODS.keys().isdisjoint(known):
        weights, found = _MOODS, _WORD.findall(text)
    else:
        weights, found = _WEIGHTS, _PHRASE.findall(text)
    scores: dict[str, int] = {}
    for word in found:
        label, weight = weights.get(word, ("", 0))
        if label in known or (label and "other" in known):
            scores[label] = scores.get(label, 0) + weight
    if not scores:
        return None
    best = max(scores, key=scores.__getitem__)
    return _Solved(known.get(best) or known["other"], frame.labels)


def _guess(frame: _Asked, text: str, dice: int) -> _Solved:
    """When nothing is known: "other" when offered, else a label by the text's hash, else talk."""
    if not frame.labels:
        return _Solved(_echo(text, dice))
    right = frame.known.get("other") or frame.labels[_hash(text) % len(frame.labels)]
    return _Solved(right, frame.labels)


def _fact(body: str, _: _Asked) -> _Solved | None:
    """The gold answer of the last known question in `body`, or the value of its arithmetic."""
    sums = _ARITHMETIC.search(body)
    if sums:
        return _Solved(_value(sums.group(1) or sums.group(2)))
    found = _QUESTION.findall(" ".join(_WORD.findall(body.lower())))
    if not found:
        return None
    known = _KNOWN[found[-1]]
    return _Solved(known.gold, _GOLDS[known.subject])


def _value(chain: str) -> str:
    """The value of integers joined by + - * /, rounded to four places when it is not whole."""
    first = _NUMBER.match(chain)
    total, product = Fraction(0), Fraction(first.group() if first else 0)
    for operator, digits in _STEP.findall(chain, first.end() if first else 0):
        number = Fraction(digits)
        if operator in "*×":
            product *= number
        elif operator in "/÷":
            if not number:
                return "undefined"
            product /= number
        else:
            total, product = total + product, number if operator == "+" else -number
    return _plain(total + product)


def _plain(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    return f"{float(value):.4f}".rstrip("0").rstrip(".")


def _wrong(solved: _Solved, dice: int) -> str:
    """Another label, a number near by, or another answer of the same subject."""
    number = _NUMBER.fullmatch(solved.right)
    if number:
        places = len(number.group(1) or "")
        step = (1, -1, 2, -2, 10, -10)[dice % 6]
        return _plain(Fraction(solved.right) + Fraction(step, 10**places))
    others = [one for one in solved.among if one != solved.right]
    return others[dice % len(others)] if others else solved.right


def _echo(text: str, dice: int) -> str:
    """A sentence of 8 to 24 words that takes up a few words of `text`."""
    words = [word[:24] for word in _WORD.findall(text[:2000])] or ["nothing that can be read"]
    dice, length = divmod(dice, 6)
    dice, start = divmod(dice, len(words))
    return _SAYINGS[dice % len(_SAYINGS)].format(" ".join(words[start : start + 3 + length]))


def _as_json(said: str, form: _Asked, frame: _Asked) -> str:
    number = _NUMBER.fullmatch(said) if form.numeric else None
    value = (float(said) if number.group(1) else int(said)) if number else said
    return dumps(
        {form.field or ("label" if frame.labels else "answer"): value}, ensure_ascii=False
    )


def _hash(text: str) -> int:
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return int.from_bytes(digest, "little")
