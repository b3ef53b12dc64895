"""Golden folders: how they are copied, continued and compared. Uses the command and the gateway's ledger alone."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import urllib.request
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

HERE = Path(__file__).parent
ADDRESS = "http://gateway.test/v1"
"""Where the requests of all golden jobs go; it is a part of each request's key, so a proxy leads to the gateway."""
CLOCKED = ("created_at", "latency_ms", "ttft_ms", "waited_ms")
"""Columns that tell when a request was sent and how long it took."""
_TIMES = re.compile(
    rb'(\\*"(?:created|created_at|started|latency_ms|ttft_ms|waited_ms)\\*":)[^,}]*'
)


@dataclass(frozen=True)
class Golden:
    """A golden folder.

    Attributes:
        words: The command that continues the job, without `batcher`.
        output: Name of the output.
        status: Exit status of the command.
        sent: How many requests it sends, by model.
        new: Rows of the expected output whose answers it sends for, by file.
        free: Columns of new rows in which two runs may differ besides those of the clock.
        left: What is in the run folder then: its names, and what `budget.json` says.
        stats: Mode and time of each file and folder of `start/`, which Git does not keep.
    """

    folder: Path
    words: list[str]
    output: str
    status: int
    sent: dict[str, int]
    new: dict[str, list[int]]
    free: list[str]
    left: dict[str, Any]
    stats: dict[str, tuple[int, int]]

    @classmethod
    def load(cls, folder: Path) -> Golden:
        """The golden folder as `save` left it."""
        return cls(folder, **json.loads((folder / "golden.json").read_bytes()))

    def save(self) -> None:
        """Writes `golden.json`."""
        told = {name: value for name, value in vars(self).items() if name != "folder"}
        (self.folder / "golden.json").write_text(json.dumps(told, indent=1) + "\n")

    @property
    def expected(self) -> Path:
        """The output that the job is finished with."""
        finished = self.folder / "expected" / self.output
        return finished if finished.exists() else self.folder / "start" / self.output

    def copy(self, to: Path) -> Path:
        """Copies `start/` as `cp -a` does, with the modes and times that Git lost."""
        shutil.copytree(self.folder / "start", to)
        for name, (mode, mtime_ns) in self.stats.items():
            (to / name).chmod(mode)
            os.utime(to / name, ns=(mtime_ns, mtime_ns))
        return to


def stats_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Mode and time of everything in a folder; what is in a folder goes before it."""
    found = sorted(folder.rglob("*"), reverse=True)
    of = {path: path.stat() for path in found}
    return {str(p.relative_to(folder)): (s.st_mode & 0o777, s.st_mtime_ns) for p, s in of.items()}


def left_in(job: Path) -> dict[str, Any]:
    """The names in a run folder, and what was spent as `budget.json` has it."""
    [folder] = job.glob("*.run")
    names = {re.sub(r"output-\d+T\d+", "output-TIME", path.name) for path in folder.iterdir()}
    budget = folder / "budget.json"
    spent = json.loads(budget.read_bytes()) if budget.exists() else {}
    return {"names": sorted(names), "spent": {n: spent[n] for n in spent if n != "z"}}


def through(gateway: str) -> dict[str, str]:
    """The environment in which `ADDRESS` is this gateway."""
    proxy = gateway.removesuffix("/v1")
    return {"OPENAI_BASE_URL": ADDRESS, "OPENAI_API_KEY": "sk-golden", "HTTP_PROXY": proxy}


def received(gateway: str) -> dict[str, int]:
    """How many requests the gateway received, by model."""
    with urllib.request.urlopen(f"{gateway.removesuffix('/v1')}/ledger") as answer:
        told = json.load(answer)
    return {model: of["received"] for model, of in sorted(told["models"].items())}


def files_of(output: Path) -> dict[str, Path]:
    """The files of an output by name: itself, or its parts."""
    found = sorted(output.iterdir()) if output.is_dir() else [output]
    return {path.name: path for path in found}


def rows_of(path: Path) -> list[Any]:
    """The rows of a file of an output: lines and records as bytes, rows of Parquet as dicts."""
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    lines = path.read_bytes().splitlines(keepends=True)
    if path.suffix == ".jsonl":
        return lines
    records = [b""]
    for line in lines:  # An odd number of quotes: the record goes on in the next line.
        records[-1] += line
        if records[-1].count(b'"') % 2 == 0:
            records.append(b"")
    return records[:-1]


def without_times(path: Path, row: Any, free: Collection[str]) -> Any:
    """A row of an output without what depends on the clock, and of Parquet and CSV without the columns in `free`."""
    hidden = {*CLOCKED, *free}
    if path.suffix == ".parquet":
        kept = {name: value for name, value in row.items() if name not in hidden}
        return {n: _timeless(v.encode()) if n == "response" and v else v for n, v in kept.items()}
    if path.suffix == ".jsonl":
        return _timeless(row)
    head, cells = (next(csv.reader(io.StringIO(r.decode()))) for r in (rows_of(path)[0], row))
    return [c for name, c in zip(head, cells, strict=True) if name not in hidden]


def _timeless(text: bytes) -> bytes:
    return _TIMES.sub(rb"\1-", text)


def same(
    expected: Path, written: Path, new: Collection[int] = (), free: Collection[str] = ()
) -> None:
    """Holds a written file to the expected one: byte for byte but for the times in new rows.

    Parquet is held to it where the same pyarrow wrote both; else to the same schema and rows.
    """
    before, after = expected.read_bytes(), written.read_bytes()
    if expected.suffix == ".parquet":
        a, b = pq.ParquetFile(expected), pq.ParquetFile(written)
        assert a.schema_arrow.equals(b.schema_arrow, check_metadata=True)
        assert a.num_row_groups == b.num_row_groups
        if not new and a.metadata.created_by == b.metadata.created_by:
            assert before == after
    elif not new:
        assert before == after
    wanted, found = rows_of(expected), rows_of(written)
    assert len(wanted) == len(found)
    for number, (one, other) in enumerate(zip(wanted, found, strict=True)):
        if number in new:
            one, other = (without_times(expected, row, free) for row in (one, other))
        assert one == other, f"row {number} of {written.name}"
