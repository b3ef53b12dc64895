"""What is wrong with a job before anything is read or sent. Touches: files (`@FILE`, schemas).

Values that are parsed anyway (limits, templates, a deadline) are checked by parsing them once.
"""

from __future__ import annotations

from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from batcher.errors import JobError
from batcher.job.values import headers_of
from batcher.read.object_store import is_object
from batcher.records import Outcome, clean

if TYPE_CHECKING:
    from batcher.job.job import Job

__all__ = ["check"]

_FORMATS = (".jsonl", ".parquet", ".csv")
_MORE_THAN_0 = (
    "limit", "sample", "total_rpm", "total_tpm", "total_concurrency", "attempt_timeout", "row_timeout",
    "idle_timeout", "grow_max_tokens", "max_cost", "max_total_tokens",
)  # fmt: skip


def check(job: Job) -> None:
    """Checks every option, and those that go together.

    Raises:
        JobError: The first thing that is wrong.
    """
    _check_text(job)
    if "" in job.models:
        raise JobError("--model is empty; give a model ID.")
    _check_output(job)
    _check_numbers(job)
    _check_which_rows(job)
    _check_cluster(job)
    _check_answers(job)
    headers_of(job.headers, None)
    # Each of these parses what the user wrote, and raises where it has no meaning.
    _ = (job.text_encoding, job.cell_delimiter, job.templates, job.seconds_left(datetime.now()))
    _check_limits(job)
    _check_gateway(job)


def _check_text(job: Job) -> None:
    for field in fields(job):
        value = getattr(job, field.name)
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and not text.isascii() and text != clean(text):
                flag = "" if field.name == "inputs" else f"--{field.name.replace('_', '-')} "
                raise JobError(
                    f"{flag}{clean(text)!r:.200}: it holds bytes that are not UTF-8, which no file of a run can "
                    "hold; rename the file, or write the text in UTF-8."
                )


def _check_output(job: Job) -> None:
    what, suffix = f"--output {job.output!r}", Path(job.output).suffix
    if not job.output.endswith("/"):
        if job.output != "-" and suffix not in _FORMATS:
            raise JobError(
                f"{what} has no suffix that names a format; end it in .jsonl, .parquet or .csv, or in / "
                "for a folder of Parquet files."
            )
    elif is_object(job.output):
        raise JobError(
            f"{what}: a folder cannot appear whole in object storage; name a file in .parquet."
        )
    elif suffix in (*_FORMATS, ".run"):
        raise JobError(f"{what}: no folder of Parquet files ends in {suffix}; leave it out.")
    if job.format == "openai" and job.output.endswith((".parquet", ".csv", "/")):
        raise JobError("--format openai: lines of a batch are JSONL; name an --output in .jsonl.")
    if job.from_batch and (job.overwrite or job.output == "-"):
        other = "--overwrite" if job.overwrite else "--output -"
        raise JobError(f"--from-batch and {other}: what is taken would be lost; leave one out.")


def _check_numbers(job: Job) -> None:
    for name in _MORE_THAN_0:
        value = getattr(job, name)
        if value not in (None, "auto") and not value > 0:
            raise JobError(f"--{name.replace('_', '-')} {value}: it must be more than 0.")
    for flag, number in (("--max-retries", job.max_retries), ("--reask", job.reask)):
        if number < 0:
            raise JobError(f"{flag} {number}: it must be 0 or more.")
    if not 0 <= job.seed < 1 << 63:
        raise JobError(f"--seed {job.seed}: it must be 0 or more, and fit 63 bits.")
    if not 1 <= job.samples <= 1000:
        raise JobError(f"--samples {job.samples}: it must be from 1 to 1000.")


def _check_which_rows(job: Job) -> None:
    for outcome in job.retry:
        if outcome not in list(Outcome):
            raise JobError(f"--retry {outcome}: there is no such outcome; see the README.")
        if outcome == Outcome.OK:
            raise JobError(
                "--retry ok: an answer that is ok is never sent again; use --overwrite."
            )
    if job.limit is not None and job.sample is not None:
        raise JobError("--limit and --sample: one of them says which rows; leave one out.")
    if job.seed and job.sample is None:
        raise JobError("--seed: it says which rows --sample draws; give that too.")
    if (job.encoding or job.delimiter) and job.inputs == ("-",):
        raise JobError("--encoding and --delimiter are for files; stdin (-) is JSONL in UTF-8.")


def _check_cluster(job: Job) -> None:
    if job.on is None:
        if job.shards is not None:
            raise JobError("--shards: it divides what goes to a cluster; give --on ray too.")
        return
    if job.on.partition("=")[0] != "ray" or job.on == "ray=":
        raise JobError(f"--on {job.on}: write ray, or ray=ADDRESS.")
    if job.shards is not None and job.shards < 1:
        raise JobError(f"--shards {job.shards}: it must be 1 or more.")
    if job.output == "-":
        raise JobError("--on ray: it needs an --output file, for the folder beside it.")


def _check_answers(job: Job) -> None:
    params = job.body_params
    if job.schema is not None and job.labels is not None:
        raise JobError("--schema and --labels: an answer is checked against one of them.")
    if "response_format" in params and (job.schema is not None or job.labels is not None):
        raise JobError("--param response_format: --schema and --labels set it; leave it out.")
    _ = job.expected


def _check_limits(job: Job) -> None:
    for model in (*job.models, ""):
        job.limits(model)
    for flag, limits in (
        ("--rpm", job.rpm),
        ("--tpm", job.tpm),
        ("--concurrency", job.concurrency),
    ):
        for text in limits:
            name = text.rpartition("=")[0]
            if name and job.models and name not in job.models:
                raise JobError(
                    f"{flag} {text}: there is no -m {name}; the models are {', '.join(job.models)}."
                )


def _check_gateway(job: Job) -> None:
    if job.route != "each" and len(job.models) < 2:
        raise JobError(f"--route {job.route} chooses between models; give two or more with -m.")
    if job.simulate and (job.base_url or job.api_key_env):
        raise JobError(
            "--simulate brings a gateway of its own; leave --base-url and --api-key-env out."
        )
