"""The output's columns: their order, their types, one result as a row. Touches: nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pyarrow as pa

from batcher.records import Result

__all__ = ["JOURNAL", "NAMES", "RESULT", "json_row", "renames", "result_names"]

_TEXT, _COUNT = pa.string(), pa.int64()
RESULT = pa.schema(
    [
        ("row", pa.int64()),
        ("custom_id", _TEXT),
        ("model", _TEXT),
        ("sample", pa.int32()),
        ("status", _TEXT),
        ("content", _TEXT),
        ("finish_reason", _TEXT),
        ("refusal", _TEXT),
        ("tool_calls", _TEXT),
        ("logprobs", _TEXT),
        ("prompt_tokens", _COUNT),
        ("completion_tokens", _COUNT),
        ("total_tokens", _COUNT),
        ("cached_tokens", _COUNT),
        ("reasoning_tokens", _COUNT),
        ("cost_usd", pa.float64()),
        ("latency_ms", _COUNT),
        ("attempts", pa.int32()),
        ("http_status", pa.int32()),
        ("error_type", _TEXT),
        ("error", _TEXT),
        ("response_model", _TEXT),
        ("request_id", _TEXT),
        ("created_at", pa.timestamp("ms", "UTC")),
        ("response", _TEXT),
    ]
)
NAMES = dict.fromkeys(RESULT.names)
"""Their names, in order; a schema makes them anew each time it is asked."""
JOURNAL = pa.schema([pa.field(f.name, _COUNT) if f.name == "created_at" else f for f in RESULT])
"""The same as they stand in the journal, where time is a number."""

_EPOCH = datetime(1970, 1, 1)
_NATIVE = frozenset({"tool_calls", "logprobs", "response"})
_encode = msgspec.json.Encoder(decimal_format="number", enc_hook=str).encode


def renames(columns: Mapping[str, Any]) -> dict[str, str | None]:
    """Input columns that have the name of a result, and the names they get instead.

    Args:
        columns: Names of the input's columns to their Arrow types, or to anything else.

    A `custom_id` of texts is not repeated: it maps to None.

    >>> renames({"text": None, "model": None, "input_model": None})
    {'model': 'input_input_model'}
    """
    taken = {*columns, *NAMES}
    found: dict[str, str | None] = {}
    for name, kind in columns.items():
        if name not in NAMES:
            continue
        if name == "custom_id" and isinstance(kind, pa.DataType) and _is_text(kind):
            found[name] = None
            continue
        new = f"input_{name}"
        while new in taken:
            new = f"input_{new}"
        taken.add(new)
        found[name] = new
    return found


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def result_names(*, keep_raw: bool, shown: Iterable[str] = ()) -> list[str]:
    """Names of the result columns in order; `shown` are those optional ones that are needed."""
    optional = {"tool_calls", "logprobs", "response"} - set(shown)
    if keep_raw:
        optional.discard("response")
    return [name for name in NAMES if name not in optional]


def json_row(columns: Mapping[str, Any], result: Result, *, keep_raw: bool = False) -> bytes:
    """One output row as JSON: the input's columns, then the result's, null where there is none."""
    row: dict[str, Any] = {}
    for name, value in columns.items():
        if name in NAMES:
            if name == "custom_id" and _as_text(value) is not None:
                continue
            new = f"input_{name}"
            while new in columns or new in row:
                new = f"input_{new}"
            name = new
        row[name] = value
    for name in NAMES:
        value = getattr(result, name)
        if name in _NATIVE:
            if value is not None and (name != "response" or keep_raw):
                row[name] = msgspec.Raw(value.encode())
            continue
        if name == "created_at" and value is not None:
            value = _iso(value)
        elif name == "model" and value == "":
            value = None
        row[name] = value
    return _encode(row)


def _as_text(value: Any) -> str | None:
    if isinstance(value, msgspec.Raw):
        value = msgspec.json.decode(value)
    return value if isinstance(value, str) else None


def _iso(milliseconds: int) -> str:
    time = _EPOCH + timedelta(milliseconds=milliseconds)
    return time.isoformat(timespec="milliseconds") + "Z"
