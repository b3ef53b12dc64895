"""Rows of a file × model IDs → answered rows in a file.

    read/      file to prompts: formats, inputs, templates
    write/     results to file: the journal while the run goes on, then the output
    job/       what was asked: the job, its checks, the gateway's address
    limits/    how fast: rate limits, concurrency, the gate that waits
    money/     how much: prices, the budget
    send/      request to result: attempts, retries, what an answer or an error says
    live/      the terminal while the run goes on
    plan/      which requests are still to send
    evaluate/  answers to findings: scores, votes, comparisons, the report
    batches/   batch files of providers
    runtime/   one run, from its first check to its output
    cluster/   the same run on Ray
    cli/       one file per command
    simulate/  the embedded gateway
    records    the data that flows; errors: one tree of exceptions
    api        batcher.run and batcher.stream; ray: the same for datasets

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
    "Job": "job.job",
    "JobError": "errors",
    "Outcome": "records",
    "OutputError": "errors",
    "Report": "runtime.runner",
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
