"""What is meant by the words that follow some flags. Touches: files (`@FILE`); the environment is given."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from batcher.errors import JobError

__all__ = [
    "concurrency_of",
    "delimiter_of",
    "encoding_of",
    "headers_of",
    "is_credential",
    "json_of",
    "labels_of",
    "limit_of",
    "text_of",
    "variables_of",
    "wins",
]

_MOST_LEVELS = 100
_TOO_DEEP = f"it is nested deeper than {_MOST_LEVELS} levels"
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110, 5.6.2
_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})", re.ASCII)
_CREDENTIAL = re.compile(
    r"authorization|cookie|(?:key|token|secret|password|credentials?|signature)$", re.IGNORECASE
)
_CREDENTIAL_VALUE = re.compile(
    r"(?:bearer|basic|token)\s|(?:sk|pk|rk|key|ghp|xox\w|AIza|eyJ)[-_\w]{12}", re.IGNORECASE
)
_OURS = frozenset(
    {
        "accept-encoding", "connection", "content-encoding", "content-length", "content-type", "expect", "host",
        "keep-alive", "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip
"""Headers that say how a request is sent, which is ours to say."""


def headers_of(
    told: Sequence[str], environment: Mapping[str, str] | None
) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    """(name and value of each header, those of the values that are secret).

    Args:
        told: `NAME=VALUE`, or `NAME=$VARIABLE` for the value of an environment variable, which is a secret.
        environment: Where these stand; None to look at the words alone.

    Raises:
        JobError: A header cannot be sent, or a secret is written out.

    >>> headers_of(["X-Title=My run", "X-Auth=$TOKEN"], {"TOKEN": "abc"})
    ((('X-Title', 'My run'), ('X-Auth', 'abc')), ('abc',))
    """
    found: dict[str, tuple[str, str]] = {}
    secrets = []
    for text in told:
        name, equals, value = text.partition("=")
        name, value = name.strip(), value.strip()
        flag = f"--header {name}"
        if not equals or not _TOKEN.fullmatch(name):
            begins = shown[0] if (shown := _TOKEN.match(name)) else ""  # The rest may be a secret.
            raise JobError(
                f"--header {begins}…: write it as NAME=VALUE or NAME=$VARIABLE; a NAME has no spaces, and no colon."
            )
        if name.lower() in _OURS:
            raise JobError(f"{flag}: batcher sets this header itself; leave it out.")
        if name.lower() in found:
            raise JobError(f"{flag}: it is set twice; give it once.")
        if (variable := _VARIABLE.fullmatch(value)) is not None:
            key = variable[1] or variable[2]
            value = "" if environment is None else environment.get(key, "").strip()
            if environment is not None and not value:
                raise JobError(f"{flag}: the environment variable {key} is not set.")
            secrets.append(value)
        elif _VARIABLE.search(value):
            raise JobError(f"{flag}: write $VARIABLE for the whole value, or no $ in it.")
        elif is_credential(name) or _CREDENTIAL_VALUE.match(value):
            raise JobError(
                f"{flag}: this looks like a secret, and a secret is never written on a command line or in a file. "
                f"Put it into an environment variable and write '{name}=$VARIABLE', in single quotes."
            )
        if not value.isascii() or not value.replace("\t", " ").isprintable():
            raise JobError(
                f"{flag}: its value holds characters other than printable ASCII; no header can carry them."
            )
        found[name.lower()] = (name, value)
    return tuple(found.values()), tuple(secrets)


def is_credential(name: str) -> bool:
    """Whether a header of this name says who is asking."""
    return _CREDENTIAL.search(name) is not None


def variables_of(told: Sequence[str]) -> set[str]:
    """Names of the environment variables that headers take their values from."""
    values = (_VARIABLE.fullmatch(text.partition("=")[2].strip()) for text in told)
    return {variable[1] or variable[2] for variable in values if variable is not None}


def text_of(flag: str, text: str | None) -> str | None:
    """The text itself, or for `@FILE` what the file holds.

    Raises:
        JobError: It cannot be read.
    """
    if text is None or not text.startswith("@"):
        return text
    try:
        content = Path(text[1:]).read_bytes()
        # Notepad marks UTF-8 at its start, and PowerShell writes UTF-16.
        return content.decode("utf-16" if content[:2] in _UTF_16 else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise JobError(f"{flag} {text}: the file cannot be read: {why}.") from None


def encoding_of(name: str) -> str:
    """The encoding's name as Python spells it; "" for UTF-8, which is the default.

    >>> encoding_of("Latin1"), encoding_of("UTF8"), encoding_of("utf-8-sig")
    ('iso8859-1', '', '')

    Raises:
        JobError: There is none of that name.
    """
    try:
        found = codecs.lookup(name)
        b"a".decode(name)  # rot13 and base64 are codecs as well, but not of text.
        codecs.getincrementaldecoder(name)
    except (LookupError, ValueError):
        raise JobError(
            f"--encoding {name!r}: there is no such encoding; write utf-8, cp1252, utf-16 or gb18030, "
            "for example."
        ) from None
    return "" if found.name in ("utf-8", "utf-8-sig", "ascii") else found.name


def delimiter_of(told: str) -> str:
    r"""The delimiter as asked with --delimiter.

    >>> delimiter_of(";"), delimiter_of("tab"), delimiter_of("\\t")
    (';', '\t', '\t')

    Raises:
        JobError: It is none.
    """
    found = {"tab": "\t", "\\t": "\t"}.get(told.lower(), told)
    if len(found) != 1 or found in '"\r\n\0' or (not found.isprintable() and found != "\t"):
        raise JobError(f"--delimiter {told!r}: it is one character, such as ';', or tab.")
    return found


def json_of(text: str) -> Any:
    """What a text says in JSON.

    Raises:
        ValueError: It is no JSON, or nested deeper than servers and validators take.
    """
    try:
        value = msgspec.json.decode(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    level, depth = [value], 0
    while level := [
        inside
        for one in level
        if isinstance(one, dict | list)
        for inside in (one.values() if isinstance(one, dict) else one)
    ]:
        if (depth := depth + 1) > _MOST_LEVELS:
            raise ValueError(_TOO_DEEP)
    return value


def labels_of(text: str) -> tuple[str, ...]:
    """Labels parted by commas, or a JSON list for those that have some.

    Raises:
        JobError: There are fewer than two, or one stands there twice.
    """
    labels = [label.strip() for label in text.split(",")]
    if text.lstrip().startswith("["):
        try:
            labels = msgspec.json.decode(text, type=list[str])
        except msgspec.DecodeError as error:
            raise JobError(f"--labels {text!r}: it is no JSON list of texts ({error}).") from None
    if len(labels) < 2 or not all(label.strip() for label in labels):
        raise JobError(f"--labels {text!r}: give two or more, parted by commas: bug,billing.")
    if twice := {label for label in labels if labels.count(label) > 1}:
        raise JobError(f"--labels {text!r}: {', '.join(sorted(twice))} stands there twice.")
    return tuple(labels)


def limit_of(flag: str, told: tuple[str, ...], model: str) -> float | None:
    """The number told for a model, by `N` for all or `MODEL=N`, perhaps with "!"; None for none.

    Raises:
        JobError: It is no number above 0.
    """
    found = _of_model(told, model)
    if found is None:
        return None
    try:
        number = float(found.removesuffix("!"))
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise JobError(f"{flag} {found!r}: it must be a number above 0, or MODEL=N.")
    return number


def wins(told: tuple[str, ...], model: str) -> bool:
    """Whether the number told for a model counts whatever headers say: `N!`.

    >>> wins(("60!", "m=5"), "m"), wins(("60!", "m=5"), "n")
    (False, True)
    """
    return (_of_model(told, model) or "").endswith("!")


def concurrency_of(told: tuple[str, ...], model: str) -> int | None:
    """Likewise; None also for `auto`.

    Raises:
        JobError: It is no whole number from 1.
    """
    found = _of_model(told, model)
    if found is None or found == "auto":
        return None
    if not found.isdecimal() or int(found) < 1:
        raise JobError(
            f"--concurrency {found!r}: it must be a whole number from 1, MODEL=N or auto."
        )
    return int(found)


def _of_model(told: tuple[str, ...], model: str) -> str | None:
    plain = None
    for text in told:
        name, equals, number = text.rpartition("=")
        if not equals:
            plain = text
        elif name == model:
            return number
    return plain
