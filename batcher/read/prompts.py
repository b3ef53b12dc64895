"""One input row to one Prompt; an unreadable row stays a row, with its reason. Touches: pictures, if any.

The kinds of rows, told apart row by row:

1. A row that has the columns which `--prompt` names: the template makes the user message.
2. An OpenAI batch line (`body`): the body is the request; its own fields win over `--param`.
3. `messages`: a list of chat messages.
4. `prompt`: a text that becomes one user message.

Whatever the kind, the pictures that `image_path` names go behind the last user message.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from batcher.errors import JobError
from batcher.read import images
from batcher.read.template import MissingColumn, Template
from batcher.records import BOUNDS, Prompt, Row

__all__ = ["Prompter"]

_NATIVE = frozenset(
    {"custom_id", "model", "messages", "prompt", "body", "method", "url", images.COLUMN}
)
# Bytes values of Parquet have no JSON of their own; msgspec writes them as base64.
_encode = msgspec.json.Encoder(decimal_format="number", enc_hook=str).encode


class Prompter:
    """Makes Prompts of rows by the job's templates and parameters.

    Args:
        prompt: Template of the user message, None for rows that bring their own.
        system: Template of the system message, None for none.
        params: Fields of the request body.
        own_model: Whether a row without a model of its own is an error.

    Attributes:
        columns: Names of the columns that are needed, so that a reader can skip the rest.
    """

    def __init__(
        self,
        prompt: str | None,
        system: str | None,
        params: Mapping[str, object],
        *,
        own_model: bool,
    ) -> None:
        self._prompt = None if prompt is None else Template("--prompt", prompt)
        self._system = None if system is None else Template("--system", system)
        self._params = dict(params)
        self._tail = b"," + _encode(self._params)[1:] if self._params else b"}"
        self._told = _told(self._params)
        self._own_model = own_model
        self.columns = _NATIVE
        for template in (self._prompt, self._system):
            if template is not None:
                self.columns |= template.names

    def prompt(self, row: Row) -> Prompt:
        """The Prompt of a row; one with an `error` when the row asks nothing that can be sent."""
        columns = row.columns or {}
        custom_id, model = columns.get("custom_id"), columns.get("model")
        name = str(row.position) if custom_id is None else str(custom_id)
        if row.error is not None:
            return Prompt(row.position, name, error=row.error)
        try:
            fields, own, body, image_bytes = self._fields(columns, row.folder)
            if own is not None:
                model = own
            if self._own_model and not (isinstance(model, str) and model):
                raise _Unusable('no "model" in the row, and none given with -m')
        except (_Unusable, MissingColumn, images.NoPicture) as error:
            note = f" ({row.note})" if row.note else ""
            return Prompt(row.position, name, error=f"{row.where}: {error}{note}")
        except (TypeError, ValueError, UnicodeEncodeError, RecursionError) as error:
            return Prompt(row.position, name, error=f"{row.where}: no JSON can hold it ({error})")
        model = model if isinstance(model, str) else None
        max_tokens, exact = self._told if body is None else _told(body)
        return Prompt(
            row.position, name, fields, model, max_tokens, image_bytes=image_bytes, exact=exact
        )

    @property
    def template_names(self) -> frozenset[str]:
        """Columns that `--prompt` names."""
        return frozenset() if self._prompt is None else self._prompt.names

    def is_told_apart(self, row: Row) -> bool:
        """Whether what is sent for a row depends on it: on a column, on messages of its own, or a picture."""
        columns, template = row.columns, self._prompt
        if template is None or columns is None:
            return True
        names = template.names | (frozenset() if self._system is None else self._system.names)
        if not names.isdisjoint(columns) or columns.get(images.COLUMN) is not None:
            return True
        return not template.fits(columns) and any(
            columns.get(name) is not None for name in ("body", "messages", "prompt")
        )

    def not_told_apart(self, where: str, columns: Mapping[str, object]) -> JobError:
        """The error for templates that no row fills.

        Args:
            where: Of the rows, for people.
            columns: Of one of them.
        """
        template = self._prompt or self._system
        assert template is not None
        have = ", ".join(columns) or "none"
        return JobError(
            f"{template.flag} uses no column of {where}, so each row would be sent the same. Write "
            f"{template.expression(columns)} where the row's own text belongs (the first row has: {have})."
        )

    def ignores_template(self, row: Row) -> bool:
        """Whether `--prompt` is given but names columns that this row does not have."""
        return (
            self._prompt is not None
            and row.error is None
            and row.columns is not None
            and not self._prompt.fits(row.columns)
        )

    def _fields(
        self, columns: dict[str, Any], folder: str
    ) -> tuple[bytes, str | None, dict[str, Any] | None, int]:
        """(body without model as bytes, model named in it, the row's own body if any, excess)."""
        template = self._prompt
        body, messages, text = columns.get("body"), columns.get("messages"), columns.get("prompt")
        native = body is not None or messages is not None or text is not None
        if template is not None and (template.fits(columns) or not native):
            messages = [{"role": "user", "content": template.render(columns)}]
        elif body is not None:
            return self._batch_line(columns, body, folder)
        elif messages is not None:
            messages = _checked(messages)
        elif isinstance(text, str):
            messages = [{"role": "user", "content": text}]
        elif text is not None:
            raise _Unusable(f'"prompt" must be a text, not {_kind(text)}')
        else:
            have = ", ".join(columns) or "none"
            raise _Unusable(
                'nothing to send: no "messages", "prompt" or "body" '
                f"(the row has: {have}); name columns with --prompt '{{{{ … }}}}'"
            )
        messages = _with_pictures(self._with_system(messages, columns), columns, folder)
        fields = b'"messages":' + _encode(messages) + self._tail
        return fields, None, None, images.image_bytes(messages)

    def _batch_line(
        self, columns: dict[str, Any], body: object, folder: str
    ) -> tuple[bytes, str | None, dict[str, Any] | None, int]:
        if isinstance(body, str):
            try:
                body = msgspec.json.decode(body)
            except msgspec.DecodeError as error:
                raise _Unusable(f'"body" is a text but not JSON ({error})') from None
        if not isinstance(body, dict):
            raise _Unusable(f'"body" must be an object, not {_kind(body)}')
        url = columns.get("url")
        if isinstance(url, str) and not url.endswith("/chat/completions"):
            raise _Unusable(f'"url" is {url!r}; batcher sends chat completions only')
        if body.get("n", 1) not in (1, None):
            raise _Unusable(
                f'"n" is {body["n"]} in the body; batcher keeps one answer of a request'
            )
        if body.get("stream"):
            raise _Unusable('"stream" is true in the body; leave it out, --stream is for that')
        merged = {**self._params, **body}
        model = merged.pop("model", None)
        messages = self._with_system(_checked(merged.pop("messages", None)), columns)
        messages = _with_pictures(messages, columns, folder)
        merged = {"messages": messages, **merged}
        own = model if isinstance(model, str) else None
        return _encode(merged)[1:], own, merged, images.image_bytes(messages)

    def _with_system(self, messages: list[Any], columns: dict[str, Any]) -> list[Any]:
        """The messages behind the system message, unless the row brings one of its own."""
        if self._system is None or messages[0].get("role") in ("system", "developer"):
            return messages
        return [{"role": "system", "content": self._system.render(columns)}, *messages]


class _Unusable(ValueError):
    """A row that asks nothing that can be sent."""


def _checked(messages: object) -> list[Any]:
    if isinstance(messages, str):
        try:
            messages = msgspec.json.decode(messages)
        except msgspec.DecodeError:
            raise _Unusable('"messages" is a text; it must be a list') from None
    if not isinstance(messages, list) or not messages:
        raise _Unusable('"messages" must be a list of at least one message')
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise _Unusable('each of "messages" must be an object with a "role"')
    return messages


def _with_pictures(messages: list[Any], columns: Mapping[str, Any], folder: str) -> list[Any]:
    """The messages with the pictures that the row names, behind the words of the last user message."""
    named = columns.get(images.COLUMN)
    if named is None or not (parts := images.parts(named, folder)):
        return messages
    for at in range(len(messages) - 1, -1, -1):
        if messages[at]["role"] == "user":
            content = messages[at].get("content")
            said = content if isinstance(content, list) else [{"type": "text", "text": content}]
            shown = {**messages[at], "content": [*said, *parts] if content else parts}
            return [*messages[:at], shown, *messages[at + 1 :]]
    raise _Unusable(f'"{images.COLUMN}" is given, but no message is of the role "user"')


def _told(body: Mapping[str, object]) -> tuple[int | None, bool]:
    """(bound of the answer's tokens, whether the temperature is 0).

    Of two bounds the larger one counts, as it is not known which of them the server heeds; one that
    is no number above 0 bounds nothing (-1 means "as long as you like" to some).
    """
    temperature = body.get("temperature")
    exact = temperature == 0 and not isinstance(temperature, bool)
    told = [value for name in BOUNDS if (value := body.get(name)) is not None]
    whole = [value for value in told if type(value) is int and value > 0]
    return max(whole) if whole and len(whole) == len(told) else None, exact


def _kind(value: object) -> str:
    words = {
        dict: "an object", list: "a list", bool: "a truth value", str: "a text",
        bytes: "bytes", type(None): "null", int: "a number", float: "a number",
    }  # fmt: skip
    return words.get(type(value), f"a {type(value).__name__}")
