"""Batches of a provider: their output taken as answers, and turned into rows. Touches: files.

The lines are those of OpenAI's Batch API and of vLLM's `run-batch`; an output and an error file are read alike.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from batcher.errors import JobError, NoAnswer, RequestError
from batcher.plan.requests import Plan
from batcher.read.files import expand
from batcher.read.inputs import Inputs
from batcher.read.prompts import Prompter
from batcher.records import Completion, Outcome, Request, Result
from batcher.send import result, wire
from batcher.send.dialect import NO_REPAIR, AnswerPolicy
from batcher.write.journal import Journal
from batcher.write.jsonl import RowEncoder
from batcher.write.lines import sound_lines

__all__ = ["NAMES", "answers_in", "is_answer", "is_request", "requests_of", "row_of", "take"]


class _Response(msgspec.Struct):
    status_code: int = 200
    request_id: str | None = None
    body: msgspec.Raw = msgspec.Raw(b"null")


class _Line(msgspec.Struct):
    custom_id: str | int | float
    response: _Response | None
    error: Any = None


NAMES = frozenset({"custom_id", "method", "url", "body"})
"""Fields of a whole line of a batch's input."""

_decode = msgspec.json.Decoder(_Line).decode
_encode = msgspec.json.Encoder(decimal_format="number", enc_hook=str).encode
Answer = Completion | RequestError
_OWN_ID = re.compile(r"batch_req_[0-9a-f]{32}_(\d{1,5})")
_FAILURES = {str(outcome) for outcome in Outcome if not outcome.answered}


def is_request(columns: Mapping[str, Any]) -> bool:
    """Whether a row is a whole line of a batch's input."""
    return columns.keys() >= NAMES


def is_answer(columns: Mapping[str, Any]) -> bool:
    """Whether a row is a line of a batch's output or error file."""
    return {"custom_id", "response", "error"} <= columns.keys() and "status" not in columns


def answers_in(paths: Sequence[str], *, keep_raw: bool = False) -> Iterator[tuple[str, Answer]]:
    """(custom_id, the answer or how it failed) of each line.

    Raises:
        JobError: A file cannot be read, or a line is none of a batch's output.
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
        raise JobError(f"{where}: it is no line of a batch's output ({error}).") from None
    # Files that went through a table have numbers for names, and the rows that they name as well.
    return str(found.custom_id), answer_of(found.response, found.error, keep_raw=keep_raw)


def answer_of(response: _Response | None, error: Any, *, keep_raw: bool) -> Answer:
    """What a line holds."""
    if response is None or bytes(response.body) == b"null":
        said = error.get("message") if isinstance(error, dict) else error
        failed = NoAnswer(str(said or "no answer in the batch"))
        code = error.get("code") if isinstance(error, dict) else None
        if code in _FAILURES:  # One of our own.
            failed.outcome = Outcome(code)
        failed.status = None if response is None else response.status_code
        return failed
    headers = {"x-request-id": response.request_id} if response.request_id else {}
    try:
        return wire.read(response.status_code, headers, bytes(response.body), keep_raw=keep_raw)
    except RequestError as failure:
        return failure


def result_of(request: Request, answer: Answer) -> Result:
    """The answer as the result of a request that was sent once."""
    tried = [result.attempt(time.time(), 0.0, 0.0, "", answer, None)]
    if isinstance(answer, RequestError):
        return result.ended(request, answer, tried, NO_REPAIR)
    return result.answered(request, answer, tried)


def take(
    paths: Sequence[str],
    plan: Plan,
    inputs: Inputs,
    folder: Path,
    models: Sequence[str],
    run: str,
    *,
    keep_raw: bool,
) -> tuple[int, int]:
    """Writes the answers of a finished batch into the journal, to the rows that their `custom_id` names.

    What failed in it is left to be sent. A row that was ever answered here keeps that: what it asked
    when the batch was made is not known. Nor is the cost: providers take another price for batches.
    Each line names the `run`.

    Returns:
        How many were taken, and how many of them name another model than was asked for.

    Raises:
        JobError: A file is no output of a batch, or names none of the rows.
        OutputError: The journal cannot be written.
    """
    known = _answered(folder)
    told = answers_in(paths, keep_raw=keep_raw)
    lines = {name: answer for name, answer in told if isinstance(answer, Completion)}
    terms = AnswerPolicy(plan.expected)
    named = taken = others = 0
    journal: Journal | None = None
    try:
        for row in inputs.rows(plan.columns):
            prompt = plan.prompt(row)
            if prompt.error is not None:
                continue
            for model in models or (prompt.model or "",):
                found = lines.get(f"{prompt.custom_id} {model}")
                if found is None and len(models) < 2:
                    found = lines.get(prompt.custom_id)
                if found is None:
                    continue
                named += 1
                if (prompt.custom_id, model) in known:
                    continue
                others += not (found.response_model or model).startswith(model)
                taken += 1
                if journal is None:
                    journal = Journal(folder, run=run)
                request = plan.request(prompt, model)
                result = result_of(request, terms.validate(found))
                # By nobody's attempt here: it counts for no budget of this output.
                journal.put(msgspec.structs.replace(result, attempts=0, cost_usd=None))
                while journal.full:
                    time.sleep(0.01)
    finally:
        if journal is not None:
            journal.close()
    if lines and not named:
        raise JobError(
            f"--from-batch {paths[0]}: no row of the input has one of its custom_ids; is it the output "
            "of another batch?"
        )
    return taken, others


def _answered(folder: Path) -> set[tuple[str, str]]:
    """(custom_id, model) of all that was ever answered here, whatever its row said then."""
    names = map(_decode_name, sound_lines(folder))
    return {(name.custom_id, name.model) for name in names if name.status.answered}


class _Name(msgspec.Struct):
    custom_id: str
    model: str
    status: Outcome


_decode_name = msgspec.json.Decoder(_Name).decode
_rows = RowEncoder()


def row_of(columns: Mapping[str, Any], position: int) -> dict[str, Any]:
    """A line of a batch's output as the row that it would be.

    Raises:
        JobError: It is none.
    """
    name, answer = _answer(columns, f"line {position + 1}", keep_raw=False)
    model = (answer.response_model if isinstance(answer, Completion) else None) or ""
    own = _OWN_ID.fullmatch(str(columns.get("id")))
    sample = int(own.group(1)) if own else 0
    request = Request(position, name, model, sample, "0" * 32, b"", None)
    made: dict[str, Any] = msgspec.json.decode(
        _rows.row({}, _encode(result_of(request, answer)), position, sample)[0]
    )
    return {**made, "custom_id": name, "latency_ms": None, "created_at": None}


def requests_of(
    inputs: Inputs, prompter: Prompter, models: Sequence[str]
) -> Iterator[tuple[bytes | None, str | None]]:
    """(line of a batch's input, None) for each row and model, or (None, why there is none).

    With several models a line's name is that of its row and model, as a batch wants each once.
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
