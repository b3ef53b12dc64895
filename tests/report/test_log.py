"""A run as JSON lines, for who collects logs."""

import asyncio
import json

import pytest

from batcher.live.log import Log
from batcher.records import Outcome, Prompt, Result


def told(level, act):
    lines = []
    act(Log(level, lines.append))
    return [json.loads(line) for line in lines]


def result(status, **more):
    return Result(row=7, model="m", sample=0, key="k" * 32, status=status, custom_id="seven",
                  content="what was answered", **more)  # fmt: skip


def everything(log):
    prompt = Prompt(row=7, custom_id="seven", fields=b"", columns={"secret": "what was asked"})
    log.event("info", "started")
    asyncio.run(log.row(prompt, result(Outcome.OK)))
    asyncio.run(log.row(prompt, result(Outcome.TIMEOUT, error="too late", attempts=3)))
    log.say("a sentence")
    for status in (0, 3, 130, 4):
        log.ended(status, "words", None)


@pytest.mark.parametrize(
    ("level", "events"),
    [
        ("debug", "started row row message ended ended ended ended"),
        ("info", "started row message ended ended ended ended"),
        ("warning", "row message ended ended ended"),
        ("error", "ended"),
    ],
)
def test_a_level_holds_those_above(level, events):
    lines = told(level, everything)
    assert " ".join(line["event"] for line in lines) == events
    assert all(line["time"].endswith("Z") for line in lines)


def test_a_row_is_told_without_what_was_asked_and_answered():
    """Logs go many ways."""
    row = next(line for line in told("warning", everything) if line["event"] == "row")
    assert (row["level"], row["row"], row["status"], row["attempts"]) == (
        "warning",
        7,
        "timeout",
        3,
    )
    assert row["error"] == "too late"
    assert "what was" not in json.dumps(told("debug", everything))


def test_progress_is_told_now_and_then():
    waits, lines = [], []

    async def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            raise asyncio.CancelledError

    async def watch():
        await Log("info", lines.append, sleep).watch(lambda: {"state": "running"})

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(watch())
    assert waits == [30.0] * 3
    assert [json.loads(line)["state"] for line in lines] == ["running"] * 2


def test_a_name_that_is_no_text_and_a_reader_that_is_gone_end_nothing():
    """A file's name may hold any bytes."""

    def gone(_line):
        raise BrokenPipeError

    Log("info", gone).say("to nobody")
    assert told("info", lambda log: log.say("a\udcffb"))[0]["message"] == "a\udcffb"
