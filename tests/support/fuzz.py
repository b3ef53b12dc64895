"""Damage for files that the program reads: of their bytes, of the values in them, of their types."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["damage", "options"]

_DEEP = 3000


def damage(path: Path, rng: random.Random) -> str:
    """Changes the file in one way that its kind allows; says how."""
    ways = [_bytes]
    if path.suffix in (".jsonl", ".json"):
        ways += [_json] * 3
    if path.suffix == ".parquet":
        ways += [_parquet] * 3
    return rng.choice(ways)(path, rng)


def options(flags: Sequence[str], rng: random.Random) -> list[str]:
    """One to three of these flags, each with a value that somebody may have typed or pasted."""
    words = []
    for flag in rng.sample(flags, rng.randrange(1, 4)):
        value = rng.choice([_value(rng), *_WORDS, rng.choice(flags)])
        text = value if isinstance(value, str) else json.dumps(value)
        clean = text.replace("\0", "").encode("utf-8", "replace").decode()[:9999]
        words += [flag, clean] if rng.random() < 0.9 else [flag]
    return words


_WORDS = (
    "-1", "0", "nan", "inf", "1e9", "1e400", "m=1", "=", "=1", "a=", "m=m=1", "@", "@/", "@in.jsonl", "@/dev/null",
    "{{", "{{ text", "{% for %}", "{{ nothing }}", "{% include 'x' %}", "a,b", "a", ",", '["a"]', '["a", 1]', "[",
    '{"a": 1}', "k={", "k=[[1]]", 'temperature="x"', "max_tokens=-5", "messages=[]", "model=1", "stream=true",
    "/", ".", "..", "in.jsonl", "new.jsonl/x", "~", "http://", "http://[", "http://a:99999", "ftp://x", "://", "auto",
    "ok", "error", "ray", "90m", "25:61", "2026-13-01", "é", "💥", "sim-small", "-", "--",
)  # fmt: skip


def _value(rng: random.Random) -> Any:
    """A value that somebody's program may have put in the place of another."""
    return rng.choice(
        [
            None, True, 0, -1, 1, 10**30, -(2**63), 1.5, 100.0, 1e308, float("nan"), float("inf"),
            "", " ", "ok", "0", "100.0", "\x1b[31mred\x9b2J", "\ud800", "a\x00b", "é" * 300,
            "x" * 70_000, "2026-01-01T00:00:00Z", "9" * 5000, "{", [], [None], [[1], "a"], {}, {"a": None},
            {"status": "ok"},
        ]
    )  # fmt: skip


def _bytes(path: Path, rng: random.Random) -> str:
    content = bytearray(path.read_bytes())
    at = rng.randrange(len(content) + 1)
    way = rng.randrange(7)
    if way == 0:
        content[at : at + 1] = bytes([rng.randrange(256)])
    elif way == 1:
        del content[at:]
    elif way == 2:
        del content[at : at + rng.randrange(1, 100)]
    elif way == 3:
        content[at:at] = rng.randbytes(rng.randrange(1, 100))
    elif way == 4:
        content[at:at] = rng.choice(
            [b"\xff", b"\x00", b"\xed\xa0\x80", b"[" * _DEEP, b'{"a":' * _DEEP]
        )
    elif way == 5:
        content = bytearray(content[at:] + content[:at])
    else:
        content = bytearray()
    path.write_bytes(content)
    return f"bytes, way {way} at {at}"


def _json(path: Path, rng: random.Random) -> str:
    whole = path.suffix == ".json"
    lines = [path.read_text()] if whole else path.read_text().splitlines()
    if not lines:
        return "nothing, as it is empty"
    number = rng.randrange(len(lines))
    try:
        document = json.loads(lines[number])
    except ValueError:  # run.json and its like may carry a line of their own.
        return _bytes(path, rng)
    holder = [document]
    told = _change(holder, rng)
    lines[number] = json.dumps(holder[0])
    path.write_bytes("\n".join([*lines, ""]).encode())
    return f"line {number}: {told}"


def _change(holder: list[Any], rng: random.Random) -> str:
    """One value somewhere in `holder[0]` becomes another one, goes, or gets a neighbour."""
    places: list[tuple[Any, Any]] = []
    left: list[tuple[Any, Any]] = [(holder, 0)]
    while left:
        of, key = left.pop()
        places.append((of, key))
        value = of[key]
        if isinstance(value, dict):
            left += [(value, name) for name in value]
        elif isinstance(value, list):
            left += [(value, n) for n in range(len(value))]
    of, key = rng.choice(places)
    way = rng.randrange(5)
    if way == 0 and isinstance(of, dict):
        del of[key]
        return f"without {key}"
    if way == 1 and isinstance(of, dict):
        of[str(_value(rng))] = _value(rng)
        return "one name more"
    of[key] = _value(rng)
    return f"{key} = {of[key]!r:.60}"


_TYPES: list[pa.DataType] = [
    pa.string(), pa.large_string(), pa.int64(), pa.uint8(), pa.float64(), pa.bool_(), pa.binary(),
    pa.timestamp("ns"), pa.timestamp("s", "Asia/Seoul"), pa.date32(), pa.decimal128(30, 5), pa.null(),
    pa.list_(pa.string()), pa.struct([("a", pa.int64())]), pa.map_(pa.string(), pa.int64()),
    pa.dictionary(pa.int32(), pa.string()), pa.duration("us"), pa.time64("ns"),
]  # fmt: skip


def _parquet(path: Path, rng: random.Random) -> str:
    table = pq.read_table(path)
    n = rng.randrange(table.num_columns)
    name = table.column_names[n]
    way = rng.randrange(5)
    if way == 0:
        table = table.remove_column(n)
    elif way == 1:
        kept = rng.sample(range(table.num_rows), rng.randrange(table.num_rows))
        table = pa.concat_tables([table.slice(row, 1) for row in kept] or [table.slice(0, 0)])
    elif way == 2:  # What pandas makes of a column with nulls.
        if pa.types.is_integer(table.schema.types[n]):
            table = table.set_column(n, name, table[n].cast(pa.float64()))
    elif way == 3:
        kind = rng.choice(_TYPES)
        try:
            column = table[n].cast(kind)
        except (
            pa.ArrowInvalid,
            pa.ArrowNotImplementedError,
        ):  # Not every type can become every other.
            column = pa.nulls(table.num_rows, kind)
        table = table.set_column(n, name, column)
    else:
        table = table.rename_columns([f"{c}x" if c == name else c for c in table.column_names])
    pq.write_table(table, path)
    return f"Parquet, way {way} of {name}"
