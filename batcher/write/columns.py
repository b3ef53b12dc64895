"""The columns that a result adds to a row of the output: the only list of them. Touches: nothing.

A new column is a field of `records.Result`, an entry here, the place that fills the field
(`send.result`), and a line of the table in README.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any, NamedTuple

__all__ = ["COLUMNS", "EXTRAS", "TIME", "Column", "renames", "result_names"]

TIME = "timestamp[ms, UTC]"
"""The type of a time, which the journal holds as milliseconds since 1970."""


class Column(NamedTuple):
    """One column, and how its value is read from the field of the same name in a journal line.

    Attributes:
        name: Of the column and the field.
        type: Arrow type by name; that of `parsed` follows from its JSON Schema.
        missing: The value where the line leaves the field out.
        null: A value that stands for "none" in the journal and becomes null.
        extra: Bit in the index of lines that have the field (`write.index`), of a column that an output has only
            when a line has it. Bits are on disk: give a new column a free one. 16 is taken.
        asked: Whether an output has the column only when it was asked for.
        json: Whether the field is JSON as text, which JSONL output writes as JSON.
    """

    name: str
    type: str
    missing: Any = None
    null: Any = None
    extra: int = 0
    asked: bool = False
    json: bool = False

    @property
    def optional(self) -> bool:
        """Whether there are outputs without it."""
        return self.asked or bool(self.extra)


_ALL = (
    Column("row", "int64"),
    Column("custom_id", "string"),
    Column("model", "string", null=""),
    Column("sample", "int32"),
    Column("status", "string"),
    Column("content", "string"),
    Column("parsed", "string", asked=True, json=True),
    Column("confidences", "string", extra=4, json=True),
    Column("finish_reason", "string"),
    Column("refusal", "string"),
    Column("tool_calls", "string", extra=1, json=True),
    Column("logprobs", "string", extra=2, json=True),
    Column("prompt_tokens", "int64"),
    Column("completion_tokens", "int64"),
    Column("total_tokens", "int64"),
    Column("cached_tokens", "int64"),
    Column("cache_write_tokens", "int64"),
    Column("reasoning_tokens", "int64"),
    Column("cost_usd", "double"),
    Column("latency_ms", "int64"),
    Column("ttft_ms", "int64", extra=32),
    Column("attempts", "int32", missing=0),
    Column("copied", "bool", missing=False, extra=8),
    Column("http_status", "int32"),
    Column("error_type", "string"),
    Column("error", "string"),
    Column("response_model", "string"),
    Column("request_id", "string"),
    Column("created_at", TIME),
    Column("response", "string", asked=True, json=True),
)

COLUMNS = {column.name: column for column in _ALL}
"""By name, in the order of the output."""
EXTRAS = {column.name: column.extra for column in _ALL if column.extra}
"""Bits of the index by name."""


def renames(names: Iterable[str], results: Container[str] = COLUMNS) -> dict[str, str]:
    """New names for input columns that have the name of a result column.

    >>> renames(["text", "model", "input_model"])
    {'model': 'input_input_model'}
    """
    own = list(names)
    taken = set(own)
    found: dict[str, str] = {}
    for name in own:
        if name in results:
            new = f"input_{name}"
            while new in taken or new in results:
                new = f"input_{new}"
            taken.add(new)
            found[name] = new
    return found


def result_names(*, keep_raw: bool, shown: Iterable[str] = ()) -> list[str]:
    """Names of an output's result columns, in order.

    Args:
        keep_raw: Whether it has `response`.
        shown: The other optional columns that it has.
    """
    kept = {*shown, *(("response",) if keep_raw else ())}
    return [column.name for column in _ALL if not column.optional or column.name in kept]
