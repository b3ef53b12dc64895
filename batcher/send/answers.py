"""Checks an answer against labels or a schema, and words the request for them. Touches: nothing.

Models wrap what they are asked for in code fences and sentences. A label or a JSON value inside is taken
when it is the only one, and marked as `loose`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jsonschema_rs

from batcher.send.confidence import confidences
from batcher.send.labels import Labels, without_marks
from batcher.send.lenient_json import is_excessive
from batcher.send.reasoning import answer_in

__all__ = ["Expected", "Form", "Found", "Unfit"]

Form = Literal["json_schema", "json_object", "prompt"]
"""How a request says what to answer: by a schema, by JSON mode and words, or in words alone."""

# Not just any words: "Not: bug" is no bug.
_NAMES_IT = re.compile(
    r"(?i)(the )?((final|correct|best) )?(label|answer|category|class|classification|result|output|team|topic"
    r"|intent|sentiment|type|kind)( is)?"
)
_NAME_CHARS = 60  # Such words are shorter.
_FENCE = "```"
_INFO = re.compile(r"[\w-]{0,20}[ \t]{0,20}\n")
_OPENS = re.compile(r"[{\[]")
_WINDOW = (
    10_000  # Characters at either end of an answer that are searched for its first and last line.
)
_BEGINS_JSON = frozenset('{["-0123456789tfn')
_BLOCKS = _OBJECTS = 200  # Read of one answer, at most.
_MOST_CHARS = 1 << 20  # Of an answer that says a label.
_ERRORS = 3


class Found(NamedTuple):
    """The content of an answer.

    Attributes:
        value: The label, or the JSON value.
        loose: Whether it was picked out of other text.
    """

    value: Any
    loose: bool


class Unfit(ValueError):
    """The answer is not what was asked for; the message is for the model and for people."""


class Expected:
    """What answers must be.

    Args:
        schema: JSON Schema of the answer, None for labels.
        labels: The labels, when there is no schema.

    Attributes:
        response_format: The field of the request.
    """

    def __init__(self, schema: Mapping[str, Any] | None, labels: Sequence[str] = ()) -> None:
        self._labels = Labels(labels)
        self._exact = frozenset(labels)
        self._marked = _marked(max(1, self._labels.longest))
        own: Mapping[str, Any] = {"type": "string", "enum": list(labels)}
        own = own if schema is None else schema
        self._demand = _demand(schema, labels)
        # Providers want an object at the root.
        self._inside = "label" if schema is None else "answer" if _kind(own) != "object" else None
        sent = _closed(own)
        if self._inside is not None:
            defs = {name: sent.pop(name) for name in ("$defs", "definitions") if name in sent}
            sent = {
                "type": "object",
                "properties": {self._inside: sent},
                "required": [self._inside],
                "additionalProperties": False,
                **defs,
            }
        self._validator = jsonschema_rs.validator_for(dict(own), retriever=_nothing_remote)
        self.response_format = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": _is_strict(sent), "schema": sent},
        }

    def check(self, content: str | None) -> Found:
        """The label or value in an answer.

        Raises:
            Unfit: It is none of the labels, not of the schema, or says several things.
        """
        text = (content or "").strip()
        if text in self._exact:
            return Found(text, loose=False)
        whole = _loads(text)
        if whole is _NONE and (behind := answer_in(text)) != text:
            text, whole = behind, _loads(behind)
        return self._label(text, whole) if self._exact else self._json(text, whole)

    def confidences(self, found: Found, logprobs: str | None) -> dict[str, float]:
        """Probability of each label; {} where it is not known."""
        if not self._exact or found.loose or logprobs is None:
            return {}
        spellings, cased = self._labels.spellings
        return confidences(logprobs, found.value, spellings, cased=cased)

    def in_form(self, body: Mapping[str, Any], form: Form) -> dict[str, Any]:
        """The request in another form: for a model that does not take the schema, the prompt describes it."""
        if form == "json_schema":
            return dict(body)
        sent = {name: value for name, value in body.items() if name != "response_format"}
        if form == "json_object" and not self._exact:
            sent["response_format"] = {"type": "json_object"}
        first, *others = sent["messages"]
        if first.get("role") in ("system", "developer") and isinstance(first.get("content"), str):
            first = {**first, "content": f"{first['content']}\n\n{self._demand}"}
            sent["messages"] = [first, *others]
        else:
            sent["messages"] = [{"role": "system", "content": self._demand}, first, *others]
        return sent

    def corrected(self, body: Mapping[str, Any], content: str, why: str) -> dict[str, Any]:
        """The request followed by its last answer and what is wrong with it."""
        said = f"That answer cannot be used: {why}. {self._demand}"
        more = [{"role": "assistant", "content": content}, {"role": "user", "content": said}]
        return {**body, "messages": [*body["messages"], *more]}

    def _label(self, text: str, whole: Any) -> Found:
        if (label := self._of_json(whole)) is not None:
            return Found(label, loose=False)
        if isinstance(whole, dict | list):  # Other fields, and names of fields, are no answer.
            raise Unfit(self._none_of())
        if (label := self._labels.match(text)) is not None:
            return Found(label, loose=False)
        if len(text) > _MOST_CHARS:
            raise Unfit(f"it is {len(text):,} characters long, and no label is")
        parts = set(self._parts(text))
        found = {label for part in parts if (label := self._labels.match(part)) is not None}
        if found:
            found |= self._labels.mentions(text)
        if len(found) == 1:
            return Found(found.pop(), loose=True)
        if found:
            raise Unfit(f"it names several labels: {', '.join(sorted(found))}")
        raise Unfit(self._none_of())

    def _of_json(self, whole: Any) -> str | None:
        """The label in JSON: a text or a number, alone, as "label", or as the only field."""
        if isinstance(whole, dict):
            whole = whole.get("label", *whole.values()) if len(whole) == 1 else whole.get("label")
        if isinstance(whole, int | float):
            whole = json.dumps(whole)
            return whole if whole in self._exact else None
        return self._labels.match(whole) if isinstance(whole, str) else None

    def _none_of(self) -> str:
        return f"it is none of the labels {', '.join(self._labels.names)}"

    def _parts(self, text: str) -> Iterator[str]:
        """Parts of a longer answer that may be a label: whole lines, text after a colon, marked text."""
        for block in _blocks(text):
            yield block
            if (label := self._of_json(_loads(block))) is not None:
                yield label
        for line in _first_and_last(text):
            yield line
            before, colon, after = line.replace("：", ":").partition(":")
            if (
                colon
                and len(before) < _NAME_CHARS
                and _NAMES_IT.fullmatch(without_marks(before, _NONE_HELD))
            ):
                yield after
        for groups in self._marked.findall(text):
            yield from filter(None, groups)

    def _json(self, text: str, whole: Any) -> Found:
        if whole is not _NONE:
            if (value := self._fitting(whole)) is not _NONE:
                return Found(value, loose=False)
            raise Unfit(self._why(whole))
        inside = list(_values(text))
        fitting: list[Any] = []
        for one in inside:
            if (value := self._fitting(one)) is not _NONE and value not in fitting:
                fitting.append(value)
        if len(fitting) == 1:
            return Found(fitting[0], loose=True)
        if fitting:
            raise Unfit(f"it holds {len(fitting)} different answers")
        if inside:
            raise Unfit(self._why(inside[0]))
        raise Unfit("there is no JSON in it")

    def _fitting(self, value: Any) -> Any:
        """The value that fits the schema, with or without the object around it."""
        value = self._unwrapped(value)
        return value if self._validator.is_valid(value) else _NONE

    def _unwrapped(self, value: Any) -> Any:
        if self._inside is not None and isinstance(value, dict) and value.keys() == {self._inside}:
            return value[self._inside]
        return value

    def _why(self, value: Any) -> str:
        errors = []
        for error in self._validator.iter_errors(self._unwrapped(value)):
            path = ".".join(str(part) for part in error.instance_path)
            errors.append(f"{path}: {error.message}" if path else error.message)
            if len(errors) == _ERRORS:
                break
        return "; ".join(errors)[:500]


_NONE: Any = object()
_NONE_HELD: frozenset[str] = frozenset()


def _loads(text: str) -> Any:
    if text[:1] not in _BEGINS_JSON or is_excessive(text):
        return _NONE
    try:
        return json.loads(text, parse_constant=_no_number, object_pairs_hook=_object)
    except Unfit:
        raise
    except (ValueError, RecursionError):
        return _NONE


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names are unique, or repeat one value: which of several is meant is not guessed."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for name, value in pairs:
            if found[name] != value:
                raise Unfit(f"it gives {name!r} several values")
    return found


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _values(text: str) -> Iterator[Any]:
    """JSON values in fences; without fences, objects and lists anywhere in the text.

    After a bracket that begins no JSON, reading goes on at the next one; the sum of that is bounded.
    """
    fenced = [value for block in _blocks(text) if (value := _loads(block)) is not _NONE]
    if fenced:
        yield from fenced
        return
    if is_excessive(text):
        return
    read = json.JSONDecoder(parse_constant=_no_number, object_pairs_hook=_object).raw_decode
    at, looked, left = 0, 0, _MOST_CHARS + 4 * len(text)
    while (match := _OPENS.search(text, at)) and looked < _OBJECTS and left > 0:
        looked += 1
        begin = match.start()
        try:
            value, at = read(text, begin)
        except json.JSONDecodeError as error:
            left -= error.pos - begin
            at = begin + 1
            continue
        except (ValueError, RecursionError):
            left -= len(text) - begin
            at = begin + 1
            continue
        yield value


def _blocks(text: str) -> Iterator[str]:
    """Text between Markdown fences; the last one may lack its end."""
    at = text.find(_FENCE)
    for _ in range(_BLOCKS):
        if at < 0:
            return
        begin = at + len(_FENCE)
        if (info := _INFO.match(text, begin)) is not None:
            begin = info.end()
        end = text.find(_FENCE, begin)
        yield (text[begin:] if end < 0 else text[begin:end]).strip()
        at = -1 if end < 0 else text.find(_FENCE, end + len(_FENCE))


def _first_and_last(text: str) -> Iterator[str]:
    """The first and the last line that hold more than marks."""
    for at, part in ((0, text[:_WINDOW]), (-1, text[-_WINDOW:])):
        lines = part.splitlines()
        if len(part) < len(text):  # The line that was cut.
            del lines[-1 - at]
        said = [line for line in lines if without_marks(line, _NONE_HELD)]
        yield from said[at:][:1]


def _marked(most: int) -> re.Pattern[str]:
    """Matches text in bold, in backticks or in quotes, up to a length."""
    quotes = "“”„«»「」『』《》【】"
    return re.compile(
        rf"\*\*([^*\n]{{1,{most}}})\*\*|`([^`\n]{{1,{most}}})`|\"([^\"\n]{{1,{most}}})\""
        rf"|[“„«「『《【]([^{quotes}\n]{{1,{most}}})[”“»」』》】]"
    )


def _demand(schema: Mapping[str, Any] | None, labels: Sequence[str]) -> str:
    if schema is None:
        quoted = any("," in label or '"' in label for label in labels)
        shown = (json.dumps(one, ensure_ascii=False) if quoted else one for one in labels)
        return f"Answer with exactly one of these labels and nothing else: {', '.join(shown)}."
    said = json.dumps(schema, ensure_ascii=False)
    return f"Answer with JSON that fits this JSON Schema, and with nothing else:\n{said}"


def _kind(schema: Mapping[str, Any]) -> str | None:
    kind = schema.get("type")
    if kind is None and "properties" in schema:
        return "object"
    return kind if isinstance(kind, str) else None


def _closed(schema: Any) -> Any:
    """The schema with `additionalProperties: false` where it is not set, as providers want it."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    if "allOf" in schema:  # Closed, its branches would exclude each other.
        return dict(schema)
    closed = {
        name: {inner: _closed(of) for inner, of in value.items()}
        if name in ("properties", "$defs", "definitions") and isinstance(value, Mapping)
        else value
        if name in ("enum", "const", "default", "examples")
        else _closed(value)
        for name, value in schema.items()
    }
    if isinstance(closed.get("properties"), dict):
        closed.setdefault("additionalProperties", False)
    return closed


def _is_strict(schema: Any) -> bool:
    """Whether OpenAI's strict mode takes it: objects closed, every property required."""
    if isinstance(schema, list):
        return all(map(_is_strict, schema))
    if not isinstance(schema, Mapping):
        return True
    if _kind(schema) == "object":
        properties = schema.get("properties")
        if not isinstance(properties, Mapping) or schema.get("additionalProperties") is not False:
            return False
        if set(schema.get("required", ())) != set(properties):
            return False
    if schema.keys() & {"oneOf", "allOf", "not", "if", "patternProperties", "prefixItems"}:
        return False
    return all(
        _is_strict(
            list(value.values()) if name in ("properties", "$defs", "definitions") else value
        )
        for name, value in schema.items()
        if name not in ("enum", "const", "default", "examples")
    )


def _nothing_remote(uri: str) -> Any:
    raise ValueError(f"{uri} is not in the schema, and nothing is fetched")
