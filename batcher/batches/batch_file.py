"""Batch files of providers: input lines from rows, rows and journal results from output lines. Touches: files.

The format is that of OpenAI's Batch API and of vLLM's `run-batch`. Output and error files have the same lines.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from batcher.errors import JobError, NoAnswer, RequestError
from batcher.job.job import Job
from batcher.plan.requests import Plan
from batcher.read.files import expand
from batcher.read.inputs import Inputs
from batcher.read.prompts import Prompter
from batcher.records import Completion, Outcome, Prompt, Request, Result
from batcher.send import result, wire
from batcher.send.dialect import NO_REPAIR, AnswerPolicy
from batcher.write.journal import Journal
from batcher.write.jsonl import RowEncoder
from batcher.write.lines import sound_lines

__all__ = [
    "NAMES",
    "answers_in",
    "is_answer",
    "is_request",
    "requests_of",
    "row_of",
    "take_answers",
]


class _Response(msgspec.Struct):
    status_code: int = 200
    request_id: str | None = None
    body: msgspec.Raw = msgspec.Raw(b"null")


class _Line(msgspec.Struct):
    custom_id: str | int | float
    response: _Response | None
    error: Any = None


NAMES = frozenset({"custom_id", "method", "url", "body"})
"""Fields of an input line."""

_JOURNAL_SECONDS = 0.01
_decode = msgspec.json.Decoder(_Line).decode
_encode = msgspec.json.Encoder(decimal_format="number", enc_hook=str).encode
Answer = Completion | RequestError
_OWN_ID = re.compile(r"batch_req_[0-9a-f]{32}_(\d{1,5})")
_FAILURES = {str(outcome) for outcome in Outcome if not outcome.answered}


def is_request(columns: Mapping[str, Any]) -> bool:
    """Whether a row is an input line of a batch."""
    return columns.keys() >= NAMES


def is_answer(columns: Mapping[str, Any]) -> bool:
    """Whether a row is a line of an output or error file of a batch."""
    return {"custom_id", "response", "error"} <= columns.keys() and "status" not in columns


def answers_in(paths: Sequence[str], *, keep_raw: bool = False) -> Iterator[tuple[str, Answer]]:
    """(custom_id, answer or failure) of each line of output and error files.

    Raises:
        JobError: A file cannot be read, or a line has another format.
    """
    for row in Inputs(expand(paths, other="jsonl")).rows():
        if row.error is not None:
            raise JobError(f"{row.error}; the output of a batch is JSONL.")
        yield _answer(row.columns or {}, row.where, keep_raw=keep_raw)


def _answer(columns: Mapping[str, Any], where: str, *, keep_raw: bool) -> tuple[str, Answer]:
    line = {name: columns[name] for name in ("custom_id", "response", "error") if name in columns}
    try:
        found = _decode(_encode(line))
    except msgspec.DecodeError as error:
        raise JobError(f"{where}: not a line of a batch's output ({error}).") from None
    # Files that went through a table have numbers as custom_ids, and so have the rows that they name.
    return str(found.custom_id), _answer_of(found.response, found.error, keep_raw=keep_raw)


def _answer_of(response: _Response | None, error: Any, *, keep_raw: bool) -> Answer:
    if response is None or bytes(response.body) == b"null":
        fields = error if isinstance(error, dict) else {"message": error}
        code = fields.get("code")
        return NoAnswer(
            str(fields.get("message") or "no answer in the batch"),
            # Batch lines that batcher wrote have the outcome as their code.
            outcome=Outcome(code) if code in _FAILURES else None,
            status=None if response is None else response.status_code,
        )
    headers = {"x-request-id": response.request_id} if response.request_id else {}
    try:
        return wire.read(response.status_code, headers, bytes(response.body), keep_raw=keep_raw)
    except RequestError as failure:
        return failure


def _result(request: Request, answer: Answer) -> Result:
    """The answer as the result of a request that was sent once."""
    tries = [result.attempt(time.time(), 0.0, 0.0, "", answer, None)]
    if isinstance(answer, RequestError):
        return result.ended(request, answer, tries, NO_REPAIR)
    return result.answered(request, answer, tries)


def take_answers(job: Job, plan: Plan, inputs: Inputs, folder: Path, run: str) -> tuple[int, int]:
    """Writes the answers of finished batches (`--from-batch`) into the journal, for the rows of the same custom_id.

    Failures in a batch are left to be sent. A row that was ever answered here keeps its answer, as nothing tells
    what it asked when the batch was made. The answers have no cost: providers charge other prices for batches.

    Args:
        job: What was asked.
        plan: Of the job, without earlier answers.
        inputs: The rows.
        folder: The run folder, locked.
        run: ID that the lines of the journal name.

    Returns:
        How many answers were taken, and how many of them name another model than the job.

    Raises:
        JobError: A file is no output of a batch, or names none of the rows.
        OutputError: The journal cannot be written.
    """
    known = _answered(folder)
    lines = answers_in(job.from_batch, keep_raw=job.keep_raw)
    answers = {name: answer for name, answer in lines if isinstance(answer, Completion)}
    policy = AnswerPolicy(plan.expected)
    named = taken = others = 0
    journal: Journal | None = None
    try:
        for prompt, model, answer in _matched(plan, inputs, job.models, answers):
            named += 1
            if (prompt.custom_id, model) in known:
                continue
            taken += 1
            others += not (answer.response_model or model).startswith(model)
            if journal is None:
                journal = Journal(folder, run=run)
            found = _result(plan.request(prompt, model), policy.validate(answer))
            # No attempt of this output's: it counts for no budget.
            journal.put(msgspec.structs.replace(found, attempts=0, cost_usd=None))
            while (
                journal.full
            ):  # A poll, as the journal wakes nobody; this is a thread of its own.
                time.sleep(_JOURNAL_SECONDS)
    finally:
        if journal is not None:
            journal.close()
    if answers and not named:
        raise JobError(
            f"--from-batch {job.from_batch[0]}: no row of the input has one of its custom_ids; is it the output "
            "of another batch?"
        )
    return taken, others


def _matched(
    plan: Plan, inputs: Inputs, models: Sequence[str], answers: Mapping[str, Completion]
) -> Iterator[tuple[Prompt, str, Completion]]:
    """Each prompt and model that an answer names: by `ROW MODEL`, as `requests_of` writes, or by the row alone."""
    for row in inputs.rows(plan.columns):
        prompt = plan.prompt(row)
        if prompt.error is not None:
            continue
        for model in models or (prompt.model or "",):
            answer = answers.get(f"{prompt.custom_id} {model}")
            if answer is None and len(models) < 2:
                answer = answers.get(prompt.custom_id)
            if answer is not None:
                yield prompt, model, answer


def _answered(folder: Path) -> set[tuple[str, str]]:
    """(custom_id, model) of each answer in the journal, whatever its row asked then."""
    names = map(_decode_name, sound_lines(folder))
    return {(name.custom_id, name.model) for name in names if name.status.answered}


class _Name(msgspec.Struct):
    custom_id: str
    model: str
    status: Outcome


_decode_name = msgspec.json.Decoder(_Name).decode
_rows = RowEncoder()


def row_of(columns: Mapping[str, Any], position: int) -> dict[str, Any]:
    """A line of a batch's output as a row of batcher's output.

    Raises:
        JobError: The line has another format.
    """
    name, answer = _answer(columns, f"line {position + 1}", keep_raw=False)
    model = (answer.response_model if isinstance(answer, Completion) else None) or ""
    own = _OWN_ID.fullmatch(str(columns.get("id")))
    sample = int(own.group(1)) if own else 0
    request = Request(position, name, model, sample, "0" * 32, b"", None)
    made: dict[str, Any] = msgspec.json.decode(
        _rows.row({}, _encode(_result(request, answer)), position, sample)[0]
    )
    return {**made, "custom_id": name, "latency_ms": None, "created_at": None}


def requests_of(
    inputs: Inputs, prompter: Prompter, models: Sequence[str]
) -> Iterator[tuple[bytes | None, str | None]]:
    """(input line of a batch, None) for each row and model, or (None, error) for a row that cannot be sent.

    With several models a line's custom_id is "ROW MODEL", as a batch takes each custom_id once.
    """
    for row in inputs.rows(prompter.columns):
        prompt = prompter.prompt(row)
        if prompt.error is not None:
            yield None, prompt.error
            continue
        for model in models or (prompt.model or "",):
            head = b'{"model":' + _encode(model) + b","
            name = prompt.custom_id if len(models) < 2 else f"{prompt.custom_id} {model}"
            line = {
                "custom_id": name,
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": msgspec.Raw(head + prompt.fields),
            }
            yield _encode(line) + b"\n", None
