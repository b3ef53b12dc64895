"""The names of the files in a run folder. Touches: nothing."""

from __future__ import annotations

import re

__all__ = [
    "BUDGET", "JOURNAL_FILE", "LOCK", "MOVED", "RUN", "STATUS", "WRITTEN", "index_file", "journal_file",
]  # fmt: skip

RUN = "run.json"
"""What was asked, run after run."""
STATUS = "status.json"
"""How the run is doing, for other processes."""
WRITTEN = "written.json"
"""What the output holds, once it is written."""
BUDGET = "budget.json"
"""What all runs of the output spent."""
MOVED = "journal-moved.idx"
"""Which answers belong to another row than the one they were asked for."""
LOCK = "LOCK"
"""Held by the process that writes into the folder."""
JOURNAL_FILE = re.compile(r"journal-(\d{6,})\.jsonl")
"""Matches the name of a segment of the journal; its group is the number."""


def journal_file(number: int) -> str:
    """The name of a segment of the journal.

    >>> journal_file(7)
    'journal-000007.jsonl'
    """
    return f"journal-{number:06}.jsonl"


def index_file(number: int) -> str:
    """The name of the index beside a sealed segment.

    >>> index_file(7)
    'journal-000007.idx'
    """
    return f"journal-{number:06}.idx"
