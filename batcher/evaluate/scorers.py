"""Whether an answer is right, by the gold beside it. Touches: nothing but what `python:` names."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable, Iterable
from datetime import date, time
from decimal import Decimal, InvalidOperation
from math import isnan
from typing import Any, NamedTuple

from batcher.errors import JobError
from batcher.send.labels import Labels, without_marks
from batcher.send.labels import plain as plain_text

__all__ = ["Scorer", "empty", "plain", "same_by", "scorer", "text"]


class Scorer(NamedTuple):
    """How answers are read. An answer is what was parsed, else the text.

    Attributes:
        right: Whether (answer, gold) is right.
        said: What of an answer counts, as a text; None when there is no such thing in it.
        meant: The same of gold.
        same: Two such texts are the same answer when this makes the same of them.
        by_label: Whether an answer is right when it says what gold means, and only then.
    """

    right: Callable[[Any, Any], bool]
    said: Callable[[Any], str | None]
    meant: Callable[[Any], str | None]
    same: Callable[[str], str]
    by_label: bool = True


_NUMBER = re.compile(r"-?(?:\d[\d,]*)(?:\.\d+)?|-?\.\d+")


def scorer(name: str, labels: Iterable[str] = ()) -> Scorer:
    """The scorer of a name.

    | name | right when |
    |---|---|
    | `exact` | the texts are the same, blanks around them apart |
    | `label` | the same but for case, and quotes, marks and full stops around them |
    | `number` | the last number of the answer is the last of the gold, as GSM8K needs |
    | `contains` | the gold stands in the answer, in any case |
    | `regex:PATTERN` | what it finds (its first group, if it has one) is the gold, as for `label` |
    | `json:FIELD` | that field of the answer is the gold, as for `label` |
    | `python:MODULE:FUNCTION` | the function of (answer, gold) says so |

    Args:
        name: As in the table.
        labels: Where they are known, those that answers were held to: what tells them apart counts.

    Raises:
        JobError: There is none of that name.
    """
    kind, _, rest = name.partition(":")
    if name in _SIMPLE:
        return _SIMPLE[name]
    known_labels = Labels(sorted(labels))
    if name == "label":
        return _of_label(lambda answer: answer, known_labels)
    if kind == "regex" and rest:
        try:
            pattern = re.compile(rest)
        except re.error as error:
            raise JobError(f"scorer {name}: it is no regular expression ({error}).") from None
        return _of_label(lambda answer: _match(pattern, text(answer)), known_labels)
    if kind == "json" and rest:
        return _of_label(lambda answer: _field(answer, rest), known_labels)
    if kind == "python" and rest:
        return Scorer(_python(name, rest), _shown, _shown, plain, by_label=False)
    known = ", ".join(("label", *_SIMPLE, "regex:PATTERN", "json:FIELD", "python:MODULE:FUNCTION"))
    raise JobError(f"scorer {name}: there is none of that name; there are {known}.")


def text(value: Any) -> str:
    """A value as a text: a text itself, times in ISO 8601, decimals and bytes as they print, else JSON.

    Objects have their names in order and without those that are null: neither says anything.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float | dict | list):
        try:
            return json.dumps(_ordered(value), ensure_ascii=False, default=str)
        except RecursionError:  # Too deep to be put in order.
            return json.dumps(value, ensure_ascii=False, default=str)
    return value.isoformat() if isinstance(value, date | time) else str(value)


def _ordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _ordered(value[name]) for name in sorted(value) if value[name] is not None}
    return [_ordered(one) for one in value] if isinstance(value, list) else value


def _read(value: Any) -> Any:
    """A text that is an object or a list in JSON, as that."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def plain(value: Any) -> str:
    """What two labels have in common that are the same label.

    >>> plain(" **Billing**. "), plain(3.0), plain(True), plain('{"b":1, "a":[]}')
    ('billing', '3', 'true', '{"a": [], "b": 1}')
    """
    said = _read(value)
    if isinstance(said, dict | list):  # Its brackets are no marks around it.
        return " ".join(text(said).casefold().split())
    return plain_text(_label_text(said))


def same_by(labels: Labels) -> Callable[[Any], str]:
    """Gives what two answers have in common that are the same label: its spelling, else what is plain."""

    def same(value: Any) -> str:
        said = _label_text(value)
        label = labels.match(said)
        return plain(value) if label is None else label

    return same


def _label_text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return text(_read(value))


def empty(value: Any) -> bool:
    """Whether a value of a column is none: null, or what Parquet has for it in numbers."""
    return value is None or (isinstance(value, float) and isnan(value))


def _of_label(found: Callable[[Any], Any], labels: Labels) -> Scorer:
    """A scorer for what is found in an answer, which is right as labels are."""
    same = same_by(labels)

    def right(answer: Any, gold: Any) -> bool:
        said = found(answer)
        return said is not None and same(said) == same(gold)

    def shown(value: Any) -> str | None:
        said = _shown(value)
        return said if said is None else labels.match(text(value)) or said

    return Scorer(right, lambda answer: shown(found(answer)), shown, same)


def _shown(value: Any) -> str | None:
    """A label without what stands around it."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return None if value is None else without_marks(text(value))


def _is_number(answer: Any, gold: Any) -> bool:
    said, meant = _last_number(text(answer)), _last_number(text(gold))
    return said is not None and said == meant


def _last_number(said: str) -> Decimal | None:
    found = _NUMBER.findall(said.replace("−", "-"))
    try:
        return Decimal(found[-1].replace(",", "")) if found else None
    except InvalidOperation:
        return None


def _number(value: Any) -> str | None:
    found = _last_number(text(value))
    return None if found is None else f"{found.normalize():f}"


def _stripped(value: Any) -> str | None:
    return None if value is None else text(_read(value)).strip()


def _match(pattern: re.Pattern[str], said: str) -> str | None:
    match = pattern.search(said)
    if match is None:
        return None
    return match.group(1) if pattern.groups else match.group()


def _field(answer: Any, name: str) -> Any:
    if isinstance(answer, str):
        try:
            answer = json.loads(answer)
        except (ValueError, RecursionError):
            return None
    return answer.get(name) if isinstance(answer, dict) else None


def _python(name: str, rest: str) -> Callable[[Any, Any], bool]:
    module, _, function = rest.rpartition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # A file in the folder where the command is given.
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise JobError(f"scorer {name}: it cannot be had ({error}).") from None

    def score(answer: Any, gold: Any) -> bool:
        try:
            return bool(found(answer, gold))
        except Exception as error:  # noqa: BLE001 (it is the user's own code)
            said = f"{type(error).__name__}: {error}"
            raise JobError(f"scorer {name}: it fails for {answer!r:.80} ({said}).") from None

    return score


def _contains(answer: Any, gold: Any) -> bool:
    return bool(plain(gold)) and plain(gold) in text(answer).casefold()


_SIMPLE: dict[str, Scorer] = {
    "exact": Scorer(
        lambda answer, gold: _stripped(answer) == _stripped(gold),
        _stripped,
        _stripped,
        str,
    ),
    "number": Scorer(_is_number, _number, _number, str),
    "contains": Scorer(_contains, _shown, _shown, plain, by_label=False),
}
