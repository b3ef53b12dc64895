"""The names of a run folder and of the files in it. Touches: nothing.

Beside `labels.parquet` is `labels.parquet.run/`:

    LOCK                      locked while a process writes into the folder
    run.json                  what was asked, and of which input (`write.manifest`); never a key
    journal-000001.jsonl      segments of the journal (`write.journal`)
    journal-000001.idx        an index of each segment (`write.sidecar`)
    journal-moved.idx         answers that belong to another row than the one they were sent for (`write.moved`)
    reserve                   64 MB that a run keeps free for answers in flight when the disk fills up
    earlier/                  journal and run.json of before an unfinished --overwrite (`write.overwrite`)
    status.json               progress, for other processes (`write.status`)
    written.json              what the output held when it was written (`write.proof`)
    budget.json               what all runs of the output spent (`money.spending`)
    lines.idx                 where lines of the input begin (`read.line_index`)
    stdin-HASH.jsonl, rows-HASH.parquet    copies of input that cannot be read twice (`read.copies`)
    cluster.token             which run its workers belong to (`cluster.worker`)
"""

from __future__ import annotations

import re
from pathlib import Path

__all__ = [
    "BUDGET", "COPY", "EARLIER", "FORGOTTEN", "JOURNAL_FILE", "LINES", "LOCK", "MOVED", "OWN", "RUN", "STATUS",
    "TOKEN", "WRITTEN", "index_file", "journal_file", "reserve_file", "run_folder",
]  # fmt: skip

RUN = "run.json"
STATUS = "status.json"
WRITTEN = "written.json"
BUDGET = "budget.json"
MOVED = "journal-moved.idx"
LOCK = "LOCK"
LINES = "lines.idx"
TOKEN = "cluster.token"
EARLIER = "earlier"
FORGOTTEN = "forgotten"
"""What `earlier/` is called while it is removed."""
JOURNAL_FILE = re.compile(r"journal-(\d{6,})\.jsonl")
"""Matches the name of a segment of the journal; its group is the number."""
COPY = re.compile(r"(stdin|rows)(-[0-9a-f]{16}\.(jsonl|parquet)|\.copying)")
"""Matches a copy of input, and one that is being made."""
OWN = re.compile(
    r"LOCK|cluster\.token|reserve(-\d{6,})?|journal-\d{6,}\.jsonl|journal-(\d{6,}|moved)\.idx(\.tmp)?"
    rf"|(run|budget|status|written)\.json(\.tmp)?|lines\.idx(\.tmp)?|{COPY.pattern}|earlier|forgotten"
)
"""Matches everything that batcher makes in a run folder, except copies of outputs: the user removes those."""


def run_folder(output: str | Path) -> Path:
    """The run folder of an output.

    >>> str(run_folder("data/labels.parquet"))
    'data/labels.parquet.run'
    """
    return Path(f"{output}.run")


def journal_file(number: int) -> str:
    """The name of a segment of the journal.

    >>> journal_file(7)
    'journal-000007.jsonl'
    """
    return f"journal-{number:06}.jsonl"


def index_file(number: int) -> str:
    """The name of the index beside a segment.

    >>> index_file(7)
    'journal-000007.idx'
    """
    return f"journal-{number:06}.idx"


def reserve_file(first: int | None) -> str:
    """The name of a reserve: of a run, or of the cluster worker whose segments begin with this number.

    >>> reserve_file(None), reserve_file(20_001)
    ('reserve', 'reserve-020001')
    """
    return "reserve" if first is None else f"reserve-{first:06}"
