"""Rows of finished outputs, as dicts. Touches: files (reads)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from batcher.errors import JobError

__all__ = ["rows_of"]


def rows_of(output: str, columns: Collection[str] | None = None) -> Iterator[dict[str, Any]]:
    """Its rows in order, one block of them at a time.

    Args:
        output: A finished output, .jsonl or .parquet.
        columns: Only these, where they are there; None for all.

    Raises:
        JobError: There is no such file, or it is none of ours.
    """
    path = Path(output)
    if not path.is_file():
        unfinished = Path(f"{output}.run").is_dir()
        how = f"; write what there is with: batcher export {output} FILE" if unfinished else ""
        raise JobError(f"{output}: there is no such output{how}.")

    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
                names = [n for n in file.schema_arrow.names if columns is None or n in columns]
                for batch in file.iter_batches(1000, columns=names):
                    yield from batch.to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise JobError(f"{path}: it is no Parquet ({error}).") from None
        return
    import msgspec

    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield msgspec.json.decode(line, type=dict[str, Any])
            except (msgspec.DecodeError, UnicodeDecodeError):
                raise JobError(f"{path}:{number}: it is no JSON object.") from None
