"""Rows from stdin or from Python, copied to a file that can be read twice. Touches: files, stdin.

The name of a copy holds its hash. The copy that earlier answers belong to stays until a run with another one
begins.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any

import msgspec

from batcher.errors import JobError
from batcher.read.files import InputFile, Pin, digest
from batcher.read.text import BOM
from batcher.write import atomic
from batcher.write.names import COPY

__all__ = ["rows", "stdin", "sweep"]

_POLL_SECONDS = 0.2
_HEAD_BYTES = 4096
_TABLE_ROWS = 1000


def _plain(value: Any) -> Any:
    """Converts the numbers, dates and lists of numpy, pandas, polars and similar packages."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if getattr(value, "dtype", None) in ("float32", "float16"):  # 0.1, not 0.10000000149011612.
        return value.astype(str).astype(float).tolist()
    for name in ("isoformat", "tolist", "to_list", "to_pylist", "as_py", "model_dump"):
        if callable(convert := getattr(value, name, None)):
            return convert()
    raise TypeError(f"JSON has nothing for {type(value).__name__!r}")


_encode = msgspec.json.Encoder(decimal_format="number", enc_hook=_plain).encode


def stdin(folder: Path, go_on: Callable[[], None] = lambda: None) -> InputFile:
    """Copies JSONL from standard input to `stdin-HASH.jsonl` in the run folder.

    Args:
        folder: The run folder.
        go_on: Called now and then; what it raises ends the reading.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise JobError("Input is - but stdin is a terminal; pipe JSONL into it.")

    def write(file: IO[bytes]) -> None:
        source = sys.stdin.fileno()
        while True:
            go_on()
            # Another thread cannot interrupt a read, so this polls before it reads.
            if select.select([source], [], [], _POLL_SECONDS)[0]:
                if not (block := os.read(source, 1 << 20)):
                    return
                file.write(block)

    copy = _copied(folder, "stdin", "jsonl", write)
    with open(copy.path, "rb") as file:
        head = file.read(_HEAD_BYTES)
    if why := _no_jsonl(head):
        raise JobError(f"stdin: {why}.")
    return copy


def _no_jsonl(head: bytes) -> str:
    """Why stdin is no JSONL and what to do, by its beginning; "" when it may be JSONL."""
    if head.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd")):
        return "it is compressed; unpack it before the pipe (zcat, zstdcat), or name the file"
    if b"\0" in head:
        return "it is not UTF-8; write it to a file and name that, with its --encoding"
    lines = [line.strip() for line in head.removeprefix(BOM).splitlines()]
    if any(line.startswith(b"{") for line in lines) or not any(lines):
        return ""
    if lines[0].startswith(b"["):
        return "it is a JSON array, and - is JSONL; pipe it through jq -c '.[]'"
    first = lines[0][:40].decode("utf-8", "replace")
    return f"- is JSONL, and this begins with {first!r}; write CSV to a file such as rows.csv and name that"


def rows(folder: Path, given: Any, go_on: Callable[[], None] = lambda: None) -> InputFile:
    """Copies rows from Python: dicts to JSONL, tables (Arrow stream interface) to Parquet.

    `go_on` is called with every row; what it raises ends the reading.

    Raises:
        JobError: `given` is neither, or a row is not a dict.
    """
    hugging_face = hasattr(given, "with_format") and hasattr(given, "iter")
    if hasattr(given, "__arrow_c_stream__") or hugging_face:
        import pyarrow as pa  # Slow to import.
        import pyarrow.parquet as pq

        from batcher.read import arrow
        from batcher.read.columns import is_deep

        def write_table(file: IO[bytes]) -> None:
            try:
                if hugging_face:
                    reader = _reader_of(given.with_format("arrow").iter(_TABLE_ROWS))
                else:
                    reader = pa.RecordBatchReader.from_stream(given)
                arrow.check_names(reader.schema.names, "rows")
                for field in reader.schema:
                    if is_deep(field.type):
                        raise JobError(
                            f"rows: the column {field.name!r} is nested more deeply than Parquet can be read; "
                            "make it JSON text."
                        )
                fields = [field.with_type(arrow.plain(field.type)) for field in reader.schema]
                with pq.ParquetWriter(file, pa.schema(fields), compression="zstd") as writer:
                    for batch in reader:
                        go_on()
                        writer.write_batch(arrow.plain_batch(batch), row_group_size=10_000)
            except pa.ArrowException as error:
                raise JobError(f"rows: the table cannot be kept as Parquet: {error}.") from None

        return _copied(folder, "rows", "parquet", write_table)
    if not isinstance(given, Iterable) or isinstance(given, str | bytes | dict):
        raise JobError(
            f"rows must be an iterable of dicts or a table, not {type(given).__name__}."
        )

    def write(file: IO[bytes]) -> None:
        for number, row in enumerate(given, 1):
            go_on()
            if not isinstance(row, dict):
                raise JobError(f"rows: item {number} is a {type(row).__name__}, not a dict.")
            try:
                file.write(_encode(row) + b"\n")
            except (TypeError, ValueError, UnicodeEncodeError, RecursionError) as error:
                raise JobError(f"rows: item {number} cannot be kept as JSON ({error}).") from None

    return _copied(folder, "rows", "jsonl", write)


def _reader_of(tables: Iterator[Any]) -> Any:
    """A reader of tables which all have the columns of the first."""
    import pyarrow as pa

    first = next(tables, pa.table({}))
    batches = (batch for table in chain([first], tables) for batch in table.to_batches())
    return pa.RecordBatchReader.from_batches(first.schema, batches)


def sweep(folder: Path, pins: Iterable[Pin]) -> None:
    """Removes the copies in a run folder that no pin names."""
    kept = {pin.path for pin in pins}
    for path in folder.iterdir():
        if COPY.fullmatch(path.name) and path.name not in kept:
            path.unlink()


def _copied(folder: Path, name: str, kind: str, write: Any) -> InputFile:
    """Writes the copy and pins it by the hash of its content."""
    temporary = folder / f"{name}.copying"
    temporary.unlink(missing_ok=True)
    with atomic.synced_file(temporary, private=True) as file:
        write(file)
    size = temporary.stat().st_size
    content = digest(str(temporary), size)
    path = folder / f"{name}-{content[:16]}.{kind}"
    if path.exists() and digest(str(path), size) == content and path.stat().st_size == size:
        temporary.unlink()  # Keep the file whose pin earlier runs recorded.
    else:
        atomic.move(temporary, path)
    pinned = InputFile(str(path), name, kind, Pin(path=path.name, size=size, digest=content)).now()
    if pinned is None:
        raise JobError(f"{path}: it was removed.")
    return InputFile(str(path), name, kind, pinned)
