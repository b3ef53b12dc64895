"""Makes a prompt of each row; an unreadable row becomes a prompt with an error. Touches: images, if any.

The kinds of rows, recognized row by row:

1. A row that has the columns of `--prompt`: the template makes the user message.
2. An OpenAI batch line (`body`): the body is the request; its own fields win over `--param`.
3. `messages`: a list of chat messages.
4. `prompt`: a text that becomes one user message.

The images that `image_path` names follow the text of the last user message, whatever the kind.
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
# msgspec writes bytes, which Parquet may hold, as base64.
_encode = msgspec.json.Encoder(decimal_format="number", enc_hook=str).encode


class Prompter:
    """Makes prompts of rows by the job's templates and parameters.

    Args:
        prompt: Template of the user message; None where rows hold their own.
        system: Template of the system message; None for none.
        params: Fields of the request body.
        own_model: Whether each row has to name its model.

    Attributes:
        columns: The columns that are needed; a reader can skip the rest.
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
        self._bounds = _bounds(self._params)
        self._own_model = own_model
        self.columns = _NATIVE
        for template in (self._prompt, self._system):
            if template is not None:
                self.columns |= template.names

    def prompt(self, row: Row) -> Prompt:
        """Makes the prompt of a row; one with an `error` when nothing can be sent."""
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
                raise _Invalid('no "model" in the row, and none given with -m')
        except (_Invalid, MissingColumn, images.InvalidImage) as error:
            note = f" ({row.note})" if row.note else ""
            return Prompt(row.position, name, error=f"{row.where}: {error}{note}")
        except (TypeError, ValueError, UnicodeEncodeError, RecursionError) as error:
            return Prompt(row.position, name, error=f"{row.where}: no JSON can hold it ({error})")
        model = model if isinstance(model, str) else None
        max_tokens, exact = self._bounds if body is None else _bounds(body)
        return Prompt(
            row.position, name, fields, model, max_tokens, image_bytes=image_bytes, exact=exact
        )

    @property
    def template_names(self) -> frozenset[str]:
        """The columns of `--prompt`."""
        return frozenset() if self._prompt is None else self._prompt.names

    def uses(self, row: Row) -> bool:
        """Whether the request depends on the row: on a column, on its own messages or on an image."""
        columns, template = row.columns, self._prompt
        if template is None or columns is None:
            return True
        names = template.names | (frozenset() if self._system is None else self._system.names)
        if not names.isdisjoint(columns) or columns.get(images.COLUMN) is not None:
            return True
        return not template.fits(columns) and any(
            columns.get(name) is not None for name in ("body", "messages", "prompt")
        )

    def uses_no_column(self, where: str, columns: Mapping[str, object]) -> JobError:
        """The error for templates that use no column of any row.

        Args:
            where: Names the rows for the user.
            columns: The columns of one of them.
        """
        template = self._prompt or self._system
        assert template is not None
        have = ", ".join(columns) or "none"
        return JobError(
            f"{template.flag} uses no column of {where}, so each row would be sent the same. Write "
            f"{template.expression(columns)} where the row's own text belongs (the first row has: {have})."
        )

    def ignores_template(self, row: Row) -> bool:
        """Whether `--prompt` is given and names columns that this row does not have."""
        return (
            self._prompt is not None
            and row.error is None
            and row.columns is not None
            and not self._prompt.fits(row.columns)
        )

    def _fields(
        self, columns: dict[str, Any], folder: str
    ) -> tuple[bytes, str | None, dict[str, Any] | None, int]:
        """(body without model as bytes, model named in it, the row's own body if any, `image_bytes`)."""
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
            raise _Invalid(f'"prompt" must be a text, not {_kind(text)}')
        else:
            have = ", ".join(columns) or "none"
            raise _Invalid(
                'nothing to send: no "messages", "prompt" or "body" '
                f"(the row has: {have}); name columns with --prompt '{{{{ … }}}}'"
            )
        messages = _with_images(self._with_system(messages, columns), columns, folder)
        fields = b'"messages":' + _encode(messages) + self._tail
        return fields, None, None, images.image_bytes(messages)

    def _batch_line(
        self, columns: dict[str, Any], body: object, folder: str
    ) -> tuple[bytes, str | None, dict[str, Any] | None, int]:
        if isinstance(body, str):
            try:
                body = msgspec.json.decode(body)
            except msgspec.DecodeError as error:
                raise _Invalid(f'"body" is a text but not JSON ({error})') from None
        if not isinstance(body, dict):
            raise _Invalid(f'"body" must be an object, not {_kind(body)}')
        url = columns.get("url")
        if isinstance(url, str) and not url.endswith("/chat/completions"):
            raise _Invalid(f'"url" is {url!r}; batcher sends chat completions only')
        if body.get("n", 1) not in (1, None):
            raise _Invalid(
                f'"n" is {body["n"]} in the body; batcher keeps one answer of a request'
            )
        if body.get("stream"):
            raise _Invalid('"stream" is true in the body; leave it out, --stream is for that')
        merged = {**self._params, **body}
        model = merged.pop("model", None)
        messages = self._with_system(_checked(merged.pop("messages", None)), columns)
        messages = _with_images(messages, columns, folder)
        merged = {"messages": messages, **merged}
        own = model if isinstance(model, str) else None
        return _encode(merged)[1:], own, merged, images.image_bytes(messages)

    def _with_system(self, messages: list[Any], columns: dict[str, Any]) -> list[Any]:
        """Puts the system message first, unless the row has one of its own."""
        if self._system is None or messages[0].get("role") in ("system", "developer"):
            return messages
        return [{"role": "system", "content": self._system.render(columns)}, *messages]


class _Invalid(ValueError):
    """Nothing can be sent for the row."""


def _checked(messages: object) -> list[Any]:
    if isinstance(messages, str):
        try:
            messages = msgspec.json.decode(messages)
        except msgspec.DecodeError:
            raise _Invalid('"messages" is a text; it must be a list') from None
    if not isinstance(messages, list) or not messages:
        raise _Invalid('"messages" must be a list of at least one message')
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise _Invalid('each of "messages" must be an object with a "role"')
    return messages


def _with_images(messages: list[Any], columns: Mapping[str, Any], folder: str) -> list[Any]:
    """Adds the images that the row names to the last user message, behind its text."""
    named = columns.get(images.COLUMN)
    if named is None or not (parts := images.parts(named, folder)):
        return messages
    for at in range(len(messages) - 1, -1, -1):
        if messages[at]["role"] == "user":
            content = messages[at].get("content")
            given = content if isinstance(content, list) else [{"type": "text", "text": content}]
            message = {**messages[at], "content": [*given, *parts] if content else parts}
            return [*messages[:at], message, *messages[at + 1 :]]
    raise _Invalid(f'"{images.COLUMN}" is given, but no message is of the role "user"')


def _bounds(body: Mapping[str, object]) -> tuple[int | None, bool]:
    """(bound of the answer's tokens, whether the temperature is 0).

    Of two bounds the larger counts, since servers differ in which they use. A bound that is not a
    positive number is none: -1 means "no limit" to some servers.
    """
    temperature = body.get("temperature")
    exact = temperature == 0 and not isinstance(temperature, bool)
    given = [value for name in BOUNDS if (value := body.get(name)) is not None]
    valid = [value for value in given if type(value) is int and value > 0]
    return max(valid) if valid and len(valid) == len(given) else None, exact


def _kind(value: object) -> str:
    words = {
        dict: "an object", list: "a list", bool: "a truth value", str: "a text",
        bytes: "bytes", type(None): "null", int: "a number", float: "a number",
    }  # fmt: skip
    return words.get(type(value), f"a {type(value).__name__}")
