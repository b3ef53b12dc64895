"""Values of Python and TOML as the text that the fields of `Job` hold. Touches: nothing.

The command line has text already. `batcher.run()` and `--config` have numbers, lists and mappings: this module
gives both the same meaning.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from batcher.errors import JobError

if TYPE_CHECKING:
    from batcher.job.job import Job

__all__ = ["as_json", "checked", "texts_of"]

_MANY = frozenset({"inputs", "models", "params", "headers", "retry", "from_batch"})
_LIMITS = frozenset({"rpm", "tpm", "concurrency"})
_PATHS = frozenset({"output", "images", "schema", "prices"})


def texts_of(name: str, value: Mapping[Any, Any]) -> tuple[str, ...]:
    """A mapping as `KEY=VALUE` texts; values of `params` as JSON.

    >>> texts_of("params", {"temperature": 0, "stop": ["x"]}), texts_of("rpm", {"m": 60})
    (('temperature=0', 'stop=["x"]'), ('m=60',))

    Raises:
        JobError: JSON cannot hold a value.
    """
    if name in ("param", "params"):
        return tuple(f"{key}={as_json(name, of, key)}" for key, of in value.items())
    return tuple(f"{key}={of}" for key, of in value.items())


def as_json(name: str, value: object, key: object = "") -> str:
    """A value of an option, or of one `key` in it, as JSON text.

    Raises:
        JobError: JSON cannot hold it.
    """
    try:
        if not isinstance(key, str):
            raise TypeError("the name of a field is text")
        return json.dumps(value, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        where = name if key == "" else f"{name}: {key!r}"
        raise JobError(f"{where}: JSON cannot hold this value ({error}).") from None


def checked(job: type[Job], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments for a job, in the types of its fields; None leaves a list at its default.

    Raises:
        JobError: There is no such option, or a value has a wrong type.
    """
    known, types = {field.name for field in fields(job)}, get_type_hints(job)
    found: dict[str, Any] = {}
    for name, value in asked.items():
        if name not in known:
            raise JobError(
                f"batcher has no option {name!r}; there are {', '.join(sorted(known))}."
            )
        if value is None and name in _MANY | _LIMITS:
            continue
        found[name] = converted = _converted(name, value)
        try:
            msgspec.convert(converted, tuple[str, ...] if name == "retry" else types[name])
        except msgspec.ValidationError as error:
            raise JobError(f"{name}={value!r:.200}: {_choices(types[name]) or error}.") from None
    return found


def _converted(name: str, value: Any) -> Any:
    """The value in the type of its field, where it has a meaning there."""
    if isinstance(value, os.PathLike) and name in _PATHS:
        return os.fspath(value)
    if name == "schema":
        if hasattr(value, "model_json_schema"):  # A model of pydantic, without importing that.
            value = value.model_json_schema()
        return as_json(name, value) if isinstance(value, Mapping) else value
    if name == "labels":
        return as_json(name, list(value)) if isinstance(value, list | tuple) else value
    if name not in _MANY | _LIMITS:
        return value
    if isinstance(value, Mapping) and name in _LIMITS | {"params", "headers"}:
        return texts_of(name, value)
    if name in _LIMITS:
        return tuple(map(str, value)) if isinstance(value, list | tuple) else (str(value),)
    if isinstance(value, str):
        return (value,)
    return (
        tuple(value) if isinstance(value, Iterable) and not isinstance(value, Mapping) else value
    )


def _choices(kind: Any) -> str:
    """The words that a type allows, as a sentence; "" for a type without words."""
    parts = (kind,) if get_origin(kind) is Literal else get_args(kind)
    words = [repr(word) for p in parts if get_origin(p) is Literal for word in get_args(p)]
    number = "a number or " if any(part is float for part in parts) else ""
    return f"it is {number}{'one of ' * (len(words) > 1)}{', '.join(words)}" if words else ""
