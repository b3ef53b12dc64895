"""Rows of a file × model IDs → answered rows in a file.

    read/      FILE TO PROMPTS      what stands in the input, row by row
    plan       which requests are still to send
    send/      REQUEST TO RESULT    limits, attempts, retries, outcomes
    write/     RESULTS TO FILE      the journal, and the output made from it
    report/    RESULTS TO TOTALS    the live view and the table at the end
    engine     one run's moving parts, over lanes; runner: a job from first check to last word
    finish     journal and input put together to one output
    prices     dollars per million tokens, and what a usage costs
    cluster/   the same run on several machines
    api        batcher.run and batcher.stream; ray: the same for datasets; cli/: the commands
    simulate/  the embedded gateway

The names below are the promise; they are loaded when first used.
"""

from importlib import import_module
from typing import Any

__all__ = [
    "BatcherError",
    "Job",
    "JobError",
    "Outcome",
    "OutputError",
    "Report",
    "Result",
    "RunStopped",
    "run",
    "stream",
]

_HOMES = {
    "BatcherError": "errors",
    "Job": "job",
    "JobError": "errors",
    "Outcome": "records",
    "OutputError": "errors",
    "Report": "runner",
    "Result": "records",
    "RunStopped": "errors",
    "run": "api",
    "stream": "api",
}


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'batcher' has no attribute {name!r}")
    return getattr(import_module(f"batcher.{_HOMES[name]}"), name)
