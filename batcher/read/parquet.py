"""Parquet, read in record batches, in bounded memory. Touches: files, the network."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batcher.errors import JobError
from batcher.read import object_store
from batcher.read.arrow import check_names, dicts, plain, plain_array
from batcher.read.files import InputFile
from batcher.read.reader import Block, Format, Reader, ReportLoss, Span
from batcher.records import Row

__all__ = ["READER", "batches", "count", "without_nulls"]

# With pyarrow's defaults a file of one large row group is held whole: 510 MB against 10 MB.
_LEAN = {"pre_buffer": False, "buffer_size": 1 << 20}
_BATCH_BYTES = 4 << 20
_BATCH_ROWS = 1000
_SAMPLE_ROWS = 16
_WITHOUT_NULLS = frozenset({"messages", "body"})
"""Columns that go into a request as they are."""


class _ParquetReader(Reader):
    """Reads Parquet; columns and row groups that are not needed are not read."""

    def examine(
        self, path: str, _encoding: str | None, _delimiter: str | None
    ) -> tuple[Format | None, list[str]]:
        try:
            names = pq.read_schema(object_store.source(path)).names
        except (OSError, pa.ArrowException) as error:
            why = str(error).rstrip(".")
            raise JobError(f"{path}: it cannot be read as Parquet: {why}.") from None
        check_names(names, path)
        return None, []

    def rows(
        self, span: Span, columns: frozenset[str] | None
    ) -> Generator[Row, None, tuple[int, int]]:
        total = min(count(span.file.path), span.limit)
        names: list[str] | None = None
        if columns is not None:
            have = self.schema(span.file).names
            # One column at least, or the batches would not know their length.
            names = [name for name in have if name in columns] or have[:1]

        def needed(at: int, rows: int) -> bool:
            return span.next_wanted(span.first + at) < span.first + at + rows and at < total

        losses: list[tuple[Sequence[int], str]] = []

        def report(column: str, rows: Sequence[int], why: str) -> None:
            span.report(column, rows, why)
            losses.append((rows, f"the column {column!r} {why}"))

        for at, batch in batches(span.file.path, names, needed, report):
            batch = batch.slice(0, max(0, total - at))
            if not needed(at, batch.num_rows):
                continue
            wanted = span.next_wanted(span.first + at)
            for number, values in enumerate(dicts(batch), at):
                position = span.first + number
                if position < wanted:
                    continue
                for name in _WITHOUT_NULLS & values.keys():
                    values[name] = without_nulls(values[name])
                where = f"{span.file.name} row {number}"
                why = next((why for rows, why in losses if number in rows), None)
                yield Row(position, where, values, why and f"{where}: {why}", span.folder)
                wanted = span.next_wanted(position + 1)
            losses[:] = [loss for loss in losses if loss[0][-1] >= at + batch.num_rows]
        return total, total

    def blocks(
        self,
        file: InputFile,
        first: int,
        report: ReportLoss,
        columns: Collection[str] | None = None,
    ) -> Generator[Block, None, int]:
        for at, batch in batches(file.path, columns, report=report):
            yield list(range(first + at, first + at + batch.num_rows)), batch
        return count(file.path)

    def count(self, file: InputFile) -> int:
        return count(file.path)

    def schema(self, file: InputFile) -> pa.Schema:
        found = pq.read_schema(object_store.source(file.path))
        return pa.schema([field.with_type(plain(field.type)) for field in found])


READER = _ParquetReader()


def count(path: str) -> int:
    """Reads the number of rows from the footer."""
    return int(pq.read_metadata(object_store.source(path)).num_rows)


def batches(
    path: str,
    columns: Collection[str] | None = None,
    needed: Callable[[int, int], bool] = lambda _first, _rows: True,
    report: ReportLoss = lambda _column, _rows, _why: None,
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yields record batches as (row of the first record in this file, batch).

    A cell that cannot be read is null: one that is not UTF-8, or one in a damaged part of the file.

    Args:
        path: The file.
        columns: Only these columns, in the file's order; None for all.
        needed: Takes a row group's first row and its length; a group that is not needed is not read.
        report: Called for cells that cannot be read, before the batch that they are in.

    Raises:
        OSError: The file cannot be read, or is invalid.
    """
    try:
        yield from _batches(path, columns, needed, report)
    except pa.ArrowException as error:
        raise OSError(str(error)) from None


def _batches(
    path: str,
    columns: Collection[str] | None,
    needed: Callable[[int, int], bool],
    report: ReportLoss,
) -> Iterator[tuple[int, pa.RecordBatch]]:
    with pq.ParquetFile(object_store.source(path), **_LEAN) as file:
        footer = file.metadata
        names = [n for n in file.schema_arrow.names if columns is None or n in columns]
        end = 0
        for group in range(footer.num_row_groups):
            rows = footer.row_group(group).num_rows
            at, end = end, end + rows
            if not needed(at, rows):
                continue
            size = _batch_rows(file, group, names)
            try:
                for batch in file.iter_batches(size, row_groups=[group], columns=names):
                    yield at, _readable(batch, at, report)
                    at += batch.num_rows
            except (OSError, pa.ArrowException) as error:
                if _is_disk_error(error):
                    raise
                for first, batch in _column_by_column(file, group, names, end, report):
                    if (rest := batch.slice(max(0, at - first))).num_rows:
                        yield max(at, first), _readable(rest, max(at, first), report)


def _batch_rows(file: pq.ParquetFile, group: int, names: list[str]) -> int:
    """How many rows of a row group take about `_BATCH_BYTES`."""
    footer = file.metadata.row_group(group)
    mean = footer.total_byte_size / max(1, footer.num_rows)
    if footer.num_rows > _BATCH_ROWS:
        # The footer counts repeated text once; the first rows show how much memory rows take.
        with contextlib.suppress(OSError, pa.ArrowException, StopIteration):
            few = next(file.iter_batches(_SAMPLE_ROWS, row_groups=[group], columns=names))
            mean = max(mean, few.nbytes / max(1, few.num_rows))
    return max(1, min(_BATCH_ROWS, int(_BATCH_BYTES / max(1, mean))))


def _is_disk_error(error: BaseException) -> bool:
    """Whether reading failed; else the content is damaged."""
    return isinstance(error, OSError) and error.errno is not None


def _column_by_column(
    file: pq.ParquetFile, group: int, names: list[str], end: int, report: ReportLoss
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Reads a damaged row group; a column is null from the row where it cannot be read any more."""
    schema = pa.schema([file.schema_arrow.field(name) for name in names])
    readers: dict[str, Iterator[pa.RecordBatch] | None] = {
        name: file.iter_batches(_SAMPLE_ROWS, row_groups=[group], columns=[name]) for name in names
    }
    at = end - file.metadata.row_group(group).num_rows
    while at < end:
        rows, arrays = min(_SAMPLE_ROWS, end - at), []
        for name, kind in zip(names, schema.types, strict=True):
            array = None
            if (reader := readers[name]) is not None:
                try:
                    array = next(reader).column(name)
                    if len(array) != rows:
                        raise OSError("there are not as many values as rows")
                except (OSError, pa.ArrowException, StopIteration) as error:
                    if _is_disk_error(error):
                        raise
                    why = str(error) or "it ends too early"
                    report(name, range(at, end), f"is damaged ({why.splitlines()[0].rstrip('.')})")
                    readers[name] = array = None
            arrays.append(pa.nulls(rows, kind) if array is None else array)
        yield at, pa.RecordBatch.from_arrays(arrays, schema=schema)
        at += rows


def _readable(batch: pa.RecordBatch, at: int, report: ReportLoss) -> pa.RecordBatch:
    """Converts a batch to plain types, with null for cells that are not UTF-8."""
    arrays = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        column = plain_array(column)
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            column, broken = _valid_cells(column)
            if broken:
                report(name, [at + row for row in broken], "is not UTF-8")
        arrays.append(column)
    return pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)


def _valid_cells(column: pa.Array) -> tuple[pa.Array, list[int]]:
    """Replaces invalid cells by null; returns also the rows that these are in."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        values, broken = _valid_cells(column.dictionary.take(column.indices))
        values = values.dictionary_encode()
        indices = values.indices.cast(kind.index_type)
        return pa.DictionaryArray.from_arrays(
            indices, values.dictionary, ordered=kind.ordered
        ), broken
    broken = []
    for row in range(len(column)):
        try:
            column.take(pa.array([row])).validate(full=True)
        except pa.ArrowInvalid:
            broken.append(row)
    rows: list[int | None] = list(range(len(column)))
    for row in broken:
        rows[row] = None
    return column.take(pa.array(rows, pa.int64())), broken


def without_nulls(value: Any) -> Any:
    """Removes the null fields of a message or body, `content` excepted.

    Parquet gives every struct all fields of its type, so that a message without a `name` is read
    with `name: null`, which gateways refuse.
    """
    if isinstance(value, dict):
        return {
            name: without_nulls(inside)
            for name, inside in value.items()
            if inside is not None or name == "content"
        }
    if isinstance(value, list):
        return [without_nulls(inside) for inside in value]
    return value
