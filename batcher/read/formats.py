"""The formats of input files: which suffix belongs to which reader. Touches: nothing.

To add a format, write a `Reader` in a file of its own and add its line to `_FORMATS`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from batcher.read.reader import Reader

__all__ = ["DEFAULT", "NAMES", "READERS", "kind_of", "reader_of", "without_metadata"]


class _Entry(NamedTuple):
    """A line of the table.

    Attributes:
        module: Where the reader is. It is imported when it is needed: pyarrow takes 0.2 s.
        suffixes: How names of such files end.
        packed: Whether they may be compressed, with `.gz` or `.zst` behind the suffix.
        name: Name of the reader in its module.
    """

    module: str
    suffixes: tuple[str, ...]
    packed: bool = True
    name: str = "READER"


READERS: dict[str, _Entry] = {
    "jsonl": _Entry("jsonl", (".jsonl", ".ndjson")),
    "json": _Entry("json_array", (".json",), name="ARRAY"),
    "objects": _Entry("json_array", (), name="OBJECTS"),
    "csv": _Entry("csv", (".csv", ".tsv")),
    "parquet": _Entry("parquet", (".parquet",), packed=False),
}
DEFAULT = "jsonl"
"""What stdin and rows from Python are, and files of an old run folder that names no format."""


def _names(*, packed: bool) -> str:
    return ", ".join(s for e in READERS.values() if e.packed is packed for s in e.suffixes)


NAMES = f"{_names(packed=True)} (each also with .gz or .zst) or {_names(packed=False)}"
"""The suffixes, for messages."""

_KINDS = {
    f"{suffix}{end}": kind
    for kind, entry in READERS.items()
    for suffix in entry.suffixes
    for end in (("", ".gz", ".zst") if entry.packed else ("",))
}


def kind_of(path: str) -> str | None:
    """The format that a file's name tells; None for none.

    >>> kind_of("rows.csv.gz"), kind_of("rows.txt")
    ('csv', None)
    """
    return next((kind for suffix, kind in _KINDS.items() if path.endswith(suffix)), None)


@cache
def reader_of(kind: str) -> Reader:
    """The reader of a format."""
    entry = READERS[kind]
    reader: Reader = getattr(import_module(f"batcher.read.{entry.module}"), entry.name)
    return reader


def without_metadata(paths: Iterable[str]) -> list[str]:
    """Leaves out the .json files of a folder that holds other data: they describe it."""
    paths = list(paths)
    return [path for path in paths if ".json" not in Path(path).suffixes[-2:]] or paths
