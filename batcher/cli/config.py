"""Options from `--config FILE` and from the environment, as words of the command line. Touches: files, the environment.

What stands on the command line goes before the file, and the file before the environment (`BATCHER_MAX_COST`).
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from cyclopts import Parameter

from batcher.errors import JobError
from batcher.job.convert import as_json, texts_of
from batcher.job.job import Job
from batcher.live.terminal import say

__all__ = ["of_options", "with_settings"]

_PREFIX = "BATCHER_"
# Commands that take some of the options, from the environment as well.
_SHARED = {
    "convert": ("model", "prompt", "system", "param"),
    "models": ("base_url", "api_key_env", "header", "prices"),
}
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


def of_options(environment: Mapping[str, str], secret: Collection[str]) -> dict[str, str]:
    """The variables that set options, with their values.

    Args:
        environment: Where they may stand.
        secret: Names of variables that are never among them, such as that of the key.
    """
    known = {f"{_PREFIX}CONFIG", *(f"{_PREFIX}{name.upper()}" for name in _options())}
    return {name: environment[name] for name in sorted(known - set(secret)) if name in environment}


def with_settings(words: Sequence[str], environment: Mapping[str, str] | None = None) -> list[str]:
    """The words of a command with those options that a file or the environment adds.

    Args:
        words: After `batcher`, such as `run in.jsonl -o out.jsonl`.
        environment: Where `BATCHER_…` may stand; that of the process when None.

    Raises:
        JobError: The file cannot be read, or tells an option that there is not.
    """
    if not words or words[0] not in ("run", "check", *_SHARED):
        return list(words)
    environment = os.environ if environment is None else environment
    command, *given = words
    if "--help" in given or "-h" in given:
        return list(words)
    options = _options()
    told: dict[str, Any] = {}
    if command in _SHARED:
        shared = _SHARED[command]
        known = {f"{_PREFIX}{name.upper()}" for name in shared}
        environment = {name: text for name, text in environment.items() if name in known}
    else:
        given, path = _without_config(given)
        path = path or environment.get(f"{_PREFIX}CONFIG")
        told = {} if path is None else _of_file(path, options)
    inputs = told.pop("inputs", None)
    # A variable that an option names holds a secret, and is no option itself.
    named = [*words, *map(str, told.values()), environment.get(f"{_PREFIX}API_KEY_ENV", "")]
    environment = {
        name: of
        for name, of in environment.items()
        if not any(word == name or word.endswith((f"={name}", f"${name}")) for word in named)
    }
    for name, value in _of_environment(environment, options):
        told.setdefault(name, value)
    given, off = _without_no(given, options)
    told = {name: value for name, value in told.items() if name not in off}
    added: list[str] = []
    last: list[str] = []
    for name, value in told.items():
        flags, kind = options[name]
        # Parameters of the request are merged by their names: the last one counts.
        if name == "param" or not any(_is_of(word, flags) for word in _before_inputs(given)):
            more = _words(name, flags[0], value, kind)
            (last if name == "retry" else added).extend(more)
    if inputs is not None and not _names_inputs(given, options):
        given = [*inputs, *given]
    # What takes several words would take the inputs, too.
    at = given.index("--") if "--" in given else len(given)
    found = [command, *added, *given[:at], *last, *given[at:]]
    _check_whole(found, options)
    return found


def _check_whole(words: Sequence[str], options: Mapping[str, tuple[list[str], Any]]) -> None:
    """What is a count is no fraction, which would be rounded without a word."""
    counts = {
        f
        for flags, kind in options.values()
        if kind is int or int in get_args(kind)
        for f in flags
    }
    for number, word in enumerate(words):
        flag, joined, value = word.partition("=")
        if flag in counts:
            told = value if joined else next(iter(words[number + 1 : number + 2]), "")
            if re.fullmatch(r"[-+]?\d+\.\d*|[-+]?\.\d+", told):
                raise JobError(f"{flag} {told}: it must be a whole number.")


def _before_inputs(given: Sequence[str]) -> Sequence[str]:
    return given[: given.index("--")] if "--" in given else given


def _is_of(word: str, flags: Sequence[str]) -> bool:
    """Whether a word is one of these flags, also with its value: --model=a, -ma."""
    if word.startswith("--"):
        return word.partition("=")[0] in flags
    return any(len(flag) == 2 and word.startswith(flag) for flag in flags)


def _options() -> dict[str, tuple[list[str], Any]]:
    """Name of each option (`max_cost`) to its flags, the long one first, and its type."""
    hints = get_type_hints(Job, include_extras=True)
    found = {}
    for field in fields(Job):
        kind, *more = get_args(hints[field.name]) or (hints[field.name],)
        parameter = next((of for of in more if isinstance(of, Parameter)), None)
        if parameter is not None and parameter.parse is False:
            continue
        names = list(parameter.name or ()) if parameter is not None else []
        long = next((n for n in names if n.startswith("--")), f"--{field.name.replace('_', '-')}")
        plain = long[2:].replace("-", "_")
        # Where "not asked" means something else, there is a flag for "no".
        no = [f"--no-{long[2:]}"] if _is_switch(kind) and kind is not bool else []
        found[plain] = ([long, *(n for n in names if n != long), *no], kind)
    return found


def _without_no(
    given: Sequence[str], options: Mapping[str, tuple[list[str], Any]]
) -> tuple[list[str], set[str]]:
    """The words without --no-simulate and its like; which switches these name."""
    switches = {
        f"--no-{flags[0][2:]}": name for name, (flags, kind) in options.items() if kind is bool
    }
    at = len(_before_inputs(given))
    left = [word for word in given[:at] if word not in switches]
    return [*left, *given[at:]], {switches[word] for word in given[:at] if word in switches}


def _without_config(given: list[str]) -> tuple[list[str], str | None]:
    left, path = [], None
    words = iter(given)
    for word in words:
        flag, joined, value = word.partition("=")
        if flag != "--config":
            left.append(word)
            continue
        path = value if joined else next(words, None)
        if not path:
            raise JobError("--config: name a TOML file.")
    return left, path


def _of_file(path: str, options: Mapping[str, Any]) -> dict[str, Any]:
    try:
        told = tomllib.loads(Path(path).read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise JobError(f"--config {path}: it cannot be read: {why}.") from None
    found: dict[str, Any] = {}
    for name, value in told.items():
        plain = _ALSO.get(name, name.replace("-", "_"))
        if plain == "inputs":
            value = [value] if isinstance(value, str) else value
            if not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
                raise JobError(f"--config {path}: inputs: it must be a text, or a list of texts.")
        elif plain not in options:
            raise JobError(
                f"--config {path}: there is no option {name!r}; there are inputs, {', '.join(options)}."
            )
        if plain == "overwrite":
            raise JobError(f"--config {path}: overwrite: {_ONCE}")
        if plain in found:
            raise JobError(f"--config {path}: {plain} stands in it twice, as {name!r} as well.")
        found[plain] = value
    return found


_ONCE = "what is paid for is forgotten once, and not by each start; give it on the command line."
_ALSO = {"models": "model", "params": "param", "headers": "header", "input": "inputs"}


def _of_environment(
    environment: Mapping[str, str], options: Mapping[str, tuple[list[str], Any]]
) -> Iterator[tuple[str, Any]]:
    for variable, text in sorted(environment.items()):
        if not variable.startswith(_PREFIX) or variable == f"{_PREFIX}CONFIG":
            continue
        name = variable.removeprefix(_PREFIX).lower()
        if name not in options:
            say(
                f"batcher: {variable} is set, and is no option; see batcher run --help.",
                error=True,
            )
        elif name == "overwrite":
            raise JobError(f"{variable}: {_ONCE}")
        elif _is_switch(options[name][1]):
            if text.lower() not in (*_TRUE, *_FALSE):
                raise JobError(f"{variable}={text}: it must be 1 or 0.")
            yield name, text.lower() in _TRUE
        elif _is_many(options[name][1]) and text.startswith("["):
            try:
                yield name, json.loads(text)
            except ValueError as error:
                raise JobError(f"{variable}: it is no JSON list ({error}).") from None
        else:
            yield name, text


def _words(name: str, flag: str, value: Any, kind: Any) -> list[str]:
    if _is_switch(kind):
        if not isinstance(value, bool):
            raise JobError(f"{name} = {value!r}: it must be true or false.")
        return [flag] if value else [f"--no-{flag[2:]}"] if kind is not bool else []
    if isinstance(value, bool):
        raise JobError(f"{name} = {str(value).lower()}: it must be something else.")
    if isinstance(value, Mapping):
        if name == "schema":
            return [f"{flag}={as_json(name, value)}"]
        if not _is_many(kind):
            raise JobError(f"{name}: it must be one value, not a table.")
        value = texts_of(name, value)
    elif isinstance(value, list) and name == "labels":
        value = as_json(name, value)
    if isinstance(value, list | tuple):
        if not _is_many(kind):
            raise JobError(f"{name}: it must be one value, not a list.")
        return [f"{flag}={one}" for one in value]
    return [f"{flag}={value}"]


def _is_switch(kind: Any) -> bool:
    return kind is bool or bool in get_args(kind)


def _is_many(kind: Any) -> bool:
    return getattr(kind, "__origin__", None) is tuple


def _names_inputs(given: Sequence[str], options: Mapping[str, tuple[list[str], Any]]) -> bool:
    """Whether a word is an input: not a flag, and not the value of one."""
    switches = {flag for flags, kind in options.values() if _is_switch(kind) for flag in flags}
    valued = False
    for number, word in enumerate(given):
        if word == "--":
            return number + 1 < len(given)
        if word.startswith("-") and word != "-":
            valued = "=" not in word and word not in switches
        elif valued:
            valued = False
        else:
            return True
    return False
