"""The meaning of the text behind each flag. Touches: files (`@FILE`); the environment is passed in."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
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
    "params_of",
    "schema_of",
    "seconds_until",
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
_LENGTH = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_SET_BY_BATCHER = frozenset(
    {
        "accept-encoding", "connection", "content-encoding", "content-length", "content-type", "expect", "host",
        "keep-alive", "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip
"""Headers that say how a request is sent. The HTTP client sets them."""


def headers_of(
    texts: Sequence[str], environment: Mapping[str, str] | None
) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    """(name and value of each header, those of the values that are secret).

    Args:
        texts: `NAME=VALUE`, or `NAME=$VARIABLE` for the value of an environment variable, which is a secret.
        environment: Holds these variables; None to check the texts alone.

    Raises:
        JobError: A header cannot be sent, or a secret is written out.

    >>> headers_of(["X-Title=My run", "X-Auth=$TOKEN"], {"TOKEN": "abc"})
    ((('X-Title', 'My run'), ('X-Auth', 'abc')), ('abc',))
    """
    found: dict[str, tuple[str, str]] = {}
    secrets = []
    for text in texts:
        name, equals, value = text.partition("=")
        name, value = name.strip(), value.strip()
        flag = f"--header {name}"
        if not equals or not _TOKEN.fullmatch(name):
            begins = shown[0] if (shown := _TOKEN.match(name)) else ""  # The rest may be a secret.
            raise JobError(
                f"--header {begins}…: write it as NAME=VALUE or NAME=$VARIABLE; a NAME has no spaces, and no colon."
            )
        if name.lower() in _SET_BY_BATCHER:
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
    """Whether a header of this name identifies the sender."""
    return _CREDENTIAL.search(name) is not None


def variables_of(texts: Sequence[str]) -> set[str]:
    """Names of the environment variables that headers take their values from."""
    values = (_VARIABLE.fullmatch(text.partition("=")[2].strip()) for text in texts)
    return {variable[1] or variable[2] for variable in values if variable is not None}


def text_of(flag: str, text: str | None) -> str | None:
    """The text itself, or the content of the file for `@FILE`.

    Raises:
        JobError: The file cannot be read.
    """
    if text is None or not text.startswith("@"):
        return text
    try:
        content = Path(text[1:]).read_bytes()
        # Notepad writes a byte order mark before UTF-8, and PowerShell writes UTF-16.
        return content.decode("utf-16" if content[:2] in _UTF_16 else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise JobError(f"{flag} {text}: the file cannot be read: {why}.") from None


def encoding_of(name: str) -> str:
    """Python's name of an encoding; "" for UTF-8, the default.

    >>> encoding_of("Latin1"), encoding_of("UTF8"), encoding_of("utf-8-sig")
    ('iso8859-1', '', '')

    Raises:
        JobError: There is no such encoding.
    """
    try:
        found = codecs.lookup(name)
        b"a".decode(name)  # rot13 and base64 are codecs too, but not of text.
        codecs.getincrementaldecoder(name)
    except (LookupError, ValueError):
        raise JobError(
            f"--encoding {name!r}: there is no such encoding; write utf-8, cp1252, utf-16 or gb18030, "
            "for example."
        ) from None
    return "" if found.name in ("utf-8", "utf-8-sig", "ascii") else found.name


def delimiter_of(text: str) -> str:
    r"""The delimiter of CSV.

    >>> delimiter_of(";"), delimiter_of("tab"), delimiter_of("\\t")
    (';', '\t', '\t')

    Raises:
        JobError: It is no single printable character.
    """
    found = {"tab": "\t", "\\t": "\t"}.get(text.lower(), text)
    if len(found) != 1 or found in '"\r\n\0' or (not found.isprintable() and found != "\t"):
        raise JobError(f"--delimiter {text!r}: it is one character, such as ';', or tab.")
    return found


def json_of(text: str) -> Any:
    """Parses JSON.

    Raises:
        ValueError: It is no JSON, or nested deeper than servers and validators accept.
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
    """Labels separated by commas, or a JSON list where labels contain commas.

    Raises:
        JobError: There are fewer than two, or two are equal.
    """
    labels = [label.strip() for label in text.split(",")]
    if text.lstrip().startswith("["):
        try:
            labels = msgspec.json.decode(text, type=list[str])
        except msgspec.DecodeError as error:
            raise JobError(f"--labels {text!r}: it is no JSON list of texts ({error}).") from None
    if len(labels) < 2 or not all(label.strip() for label in labels):
        raise JobError(f"--labels {text!r}: give two or more, separated by commas: bug,billing.")
    if twice := {label for label in labels if labels.count(label) > 1}:
        raise JobError(f"--labels {text!r}: {', '.join(sorted(twice))} is in it twice.")
    return tuple(labels)


def schema_of(text: str) -> dict[str, Any]:
    """A JSON Schema from its text, or from the file that the text names.

    Raises:
        JobError: It cannot be read, or is no JSON object.
    """
    content = text if text.lstrip().startswith("{") else text_of("--schema", f"@{text}") or ""
    try:
        schema = json_of(content)
    except ValueError as error:
        raise JobError(f"--schema {text[:200]}: invalid JSON ({error}).") from None
    if not isinstance(schema, dict):
        raise JobError(f"--schema {text}: a JSON Schema is an object.")
    return schema


def params_of(texts: Sequence[str]) -> dict[str, object]:
    """Fields of the request body from `KEY=JSON` texts; of equal keys the last counts.

    Raises:
        JobError: A text is not of this form, or sets a field that batcher sets itself.
    """
    parsed: dict[str, object] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise JobError(f"--param {text!r}: write it as KEY=JSON, such as temperature=0.")
        try:
            parsed[name] = json_of(value)
        except ValueError as error:
            shown = value if len(value) <= 200 else f"{value[:200]}…"
            raise JobError(
                f"--param {name}: {shown!r} is not JSON that can be sent ({error}); "
                f"a text needs quotes: --param '{name}=\"{shown}\"'."
            ) from None
    if "model" in parsed or "messages" in parsed:
        raise JobError("--param sets body fields other than model and messages; use -m, --prompt.")
    if parsed.get("n", 1) != 1:
        raise JobError(
            "--param n: batcher keeps one answer of a request; it would pay for the others "
            "and drop them. Leave n out."
        )
    if parsed.get("stream"):
        raise JobError("--param stream=true: leave it out; --stream receives answers as streams.")
    return parsed


def seconds_until(text: str, now: datetime) -> float:
    """Seconds from a local time to a deadline: a length, a time of day, or a date and time.

    >>> seconds_until("1h30m", datetime(2030, 1, 1)), seconds_until("07:00", datetime(2030, 1, 1))
    (5400.0, 25200.0)

    Raises:
        JobError: It is none of these, or in the past.
    """
    if text and (length := _LENGTH.fullmatch(text)) is not None:
        units = zip((86400, 3600, 60, 1), length.groups(), strict=True)
        seconds = float(sum(unit * int(number or 0) for unit, number in units))
    else:
        try:
            if re.fullmatch(r"\d{1,2}:\d\d", text):
                hour, minute = map(int, text.split(":"))
                at = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
                at += timedelta(days=at <= now)
            else:
                at = datetime.fromisoformat(text)
                at = at.astimezone().replace(tzinfo=None) if at.tzinfo else at
        except (ValueError, OverflowError):
            raise JobError(
                f"--deadline {text!r}: write a length (90m, 7h30m), a time (07:30) or a date and "
                "time (2030-12-31T07:30)."
            ) from None
        seconds = (at - now).total_seconds()
    if seconds <= 0:
        raise JobError(f"--deadline {text}: that is over.")
    return seconds


def limit_of(flag: str, texts: tuple[str, ...], model: str) -> float | None:
    """The limit of a model from `N` for all or `MODEL=N`, each perhaps with "!"; None for none.

    Raises:
        JobError: It is no number above 0.
    """
    text = _for_model(texts, model)
    if text is None:
        return None
    try:
        number = float(text.removesuffix("!"))
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise JobError(f"{flag} {text!r}: it must be a number above 0, or MODEL=N.")
    return number


def wins(texts: tuple[str, ...], model: str) -> bool:
    """Whether the limit of a model holds whatever headers advertise: `N!`.

    >>> wins(("60!", "m=5"), "m"), wins(("60!", "m=5"), "n")
    (False, True)
    """
    return (_for_model(texts, model) or "").endswith("!")


def concurrency_of(texts: tuple[str, ...], model: str) -> int | None:
    """The largest number of requests in flight of a model; None for `auto` or none.

    Raises:
        JobError: It is no whole number from 1.
    """
    text = _for_model(texts, model)
    if text is None or text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise JobError(
            f"--concurrency {text!r}: it must be a whole number from 1, MODEL=N or auto."
        )
    return int(text)


def _for_model(texts: tuple[str, ...], model: str) -> str | None:
    plain = None
    for text in texts:
        name, equals, number = text.rpartition("=")
        if not equals:
            plain = text
        elif name == model:
            return number
    return plain
