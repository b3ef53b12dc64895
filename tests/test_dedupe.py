"""Equal requests: sent once, answered together."""

import json
import signal
from collections import Counter

import pyarrow.parquet as pq
import pytest

from batcher.simulate.server import running
from batcher.simulate.settings import Simulation
from tests.support import echo, program
from tests.support.program import read_jsonl, write_jsonl

ZERO = ("--param", "temperature=0")
SMALL = ("-m", "sim-small")
TEXTS = [f"Ticket {n % 7}: I was charged twice" for n in range(40)]


@pytest.fixture
def run(tmp_path, gateway):
    write_jsonl(tmp_path / "in.jsonl", [{"id": n, "prompt": t} for n, t in enumerate(TEXTS)])

    def run(*words):
        ended = program.batcher("run", "in.jsonl", *words, cwd=tmp_path, url=gateway.url)
        return ended, answers(gateway)

    return run


def billed_tokens(gateway):
    """What the ledger has of both kinds of tokens."""
    tokens = [model.tokens for model in list(gateway.ledger.models.values())]
    return sum(of["prompt"] + of["completion"] for of in tokens)


def answers(gateway):
    """How many were billed."""
    return sum(model.billed for model in list(gateway.ledger.models.values()))


def test_equal_requests_are_sent_once_and_each_row_has_the_answer(run, tmp_path, gateway):
    """In JSONL and Parquet: every row out, copies marked, with no tokens and no cost of their own."""
    ended, billed = run("-o", "o.jsonl", *SMALL, "-m", "sim-large", *ZERO)
    assert ended.returncode == 0, ended.stderr.decode()
    assert billed == 14
    assert ended.stderr.count(b"33 copied from equal requests") == 2
    rows = read_jsonl(tmp_path / "o.jsonl")
    assert [row["id"] for row in rows] == [n for n in range(40) for _model in range(2)]
    assert len({(row["prompt"], row["model"], row["content"]) for row in rows}) == 14
    assert Counter(row["copied"] for row in rows) == {True: 66, False: 14}
    assert all(row["copied"] == (row["id"] >= 7) == (row["attempts"] == 0) for row in rows)
    assert sum(row["total_tokens"] for row in rows) == billed_tokens(gateway)
    copy = next(row for row in rows if row["copied"])
    assert (copy["latency_ms"], copy["prompt_tokens"], copy["completion_tokens"]) == (None, 0, 0)
    assert copy["custom_id"] == str(copy["id"]) == str(copy["row"])

    program.batcher("export", "o.jsonl", "o.parquet", cwd=tmp_path)
    table = pq.read_table(tmp_path / "o.parquet").to_pylist()
    assert [row["copied"] for row in table] == [row["copied"] for row in rows]
    assert [row["content"] for row in table] == [row["content"] for row in rows]
    assert [row["attempts"] for row in table] == [row["attempts"] for row in rows]
    told = program.batcher("explain", "o.jsonl", str(copy["id"]), cwd=tmp_path).stdout
    assert told.count(b"nothing was sent: it is a copy of the answer to an equal request") == 2
    told = program.batcher("show", "o.jsonl", cwd=tmp_path).stdout
    assert told.count(b"a copy of the answer to an equal request") == 66


@pytest.mark.parametrize(
    ("words", "billed"),
    [
        ((), 40),
        (ZERO, 7),
        (("--param", "temperature=0.0"), 7),
        (("--param", "temperature=0.7"), 40),
        (("--param", "temperature=false"), 40),
        ((*ZERO, "--no-dedupe"), 40),
        (("--dedupe",), 7),
        (("--dedupe", "--param", "temperature=1"), 7),
        ((*ZERO, "--samples", "2"), 14),
        ((*ZERO, "-n", "10"), 7),
    ],
    ids=str,
)
def test_only_what_is_asked_at_temperature_0_is_taken_for_equal(run, words, billed):
    """Unless told otherwise; several samples of a row are meant to be several answers."""
    assert run("-o", "o.jsonl", *SMALL, *words)[1] == billed


def test_an_output_without_copies_has_no_column_for_them(run, tmp_path):
    """Nor does a run with `--no-dedupe`."""
    run("-o", "o.jsonl", *SMALL, *ZERO, "--no-dedupe")
    assert "copied" not in read_jsonl(tmp_path / "o.jsonl")[0]


def test_the_temperature_of_a_row_counts(tmp_path, gateway):
    """Batch lines of their own models and bodies: only those at 0, with the same model."""
    lines = [
        {
            "custom_id": f"{n}",
            "body": {
                "model": f"sim-{'small' if n % 2 else 'large'}",
                "temperature": n % 3 and 0.5,
                "messages": [{"role": "user", "content": "What is 2 + 2?"}],
            },
        }
        for n in range(30)
    ]
    write_jsonl(tmp_path / "in.jsonl", lines)
    ended = program.batcher("run", "in.jsonl", "-o", "o.jsonl", cwd=tmp_path, url=gateway.url)
    assert ended.returncode == 0, ended.stderr.decode()
    rows = read_jsonl(tmp_path / "o.jsonl")
    assert [row["custom_id"] for row in rows] == [line["custom_id"] for line in lines]
    assert [row["model"] for row in rows] == [line["body"]["model"] for line in lines]
    assert answers(gateway) == 20 + 2


@pytest.fixture
def unsure(tmp_path):
    """A gateway that fails as it is told, and a run against it."""
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": text} for text in TEXTS])
    with echo.running() as up:

        def run(*words):
            words = ("run", "in.jsonl", "-o", "o.jsonl", *ZERO, *words)
            ended = program.batcher(*words, cwd=tmp_path, url=up.url)
            return ended, read_jsonl(tmp_path / "o.jsonl")

        yield up, run


def test_what_failed_fails_for_all_and_is_asked_again_once(unsure):
    """A row's failure is that of its equals; the next start asks for one of them."""
    up, run = unsure
    up.fails = lambda body: "Ticket 3" in body
    ended, rows = run("-m", "a")
    assert ended.returncode == 3
    assert Counter(row["status"] for row in rows) == {"ok": 34, "bad_request": 6}
    assert Counter(row["copied"] for row in rows) == {True: 33, False: 7}
    up.fails = lambda _body: False
    ended, rows = run("-m", "a")
    assert (ended.returncode, up.bought.total()) == (0, 7)
    assert {row["status"] for row in rows} == {"ok"}


@pytest.mark.parametrize("route", ["fallback", "split"])
def test_one_answer_a_row_is_shared_too(unsure, route):
    """Whichever model gave it; in a fallback also what the first one refused."""
    up, run = unsure
    if route == "fallback":
        up.fails = lambda body: '"a"' in body and "Ticket 3" in body
    for _again in range(2):
        ended, rows = run("-m", "a", "-m", "b", "--route", route)
        assert ended.returncode == 0, ended.stderr.decode()
        assert (len(rows), up.bought.total()) == (40, 7)
        assert len({(row["prompt"], row["model"], row["content"]) for row in rows}) == 7
        if route == "fallback":
            assert all(
                row["model"] == ("b" if "Ticket 3" in row["prompt"] else "a") for row in rows
            )


def test_rows_written_as_they_finish_are_all_there(run):
    """Copies come at the end, with their own columns."""
    ended, billed = run("-o", "-", *SMALL, *ZERO)
    rows = [json.loads(line) for line in ended.stdout.splitlines()]
    assert (len(rows), billed) == (40, 7)
    assert {row["id"]: row["prompt"] for row in rows} == dict(enumerate(TEXTS))


def test_rows_written_as_they_finish_have_what_was_bought_before_a_stop(run):
    """There is no next start that could write them."""
    ended, billed = run(
        "-o", "-", *SMALL, *ZERO, "--max-total-tokens", "200", "--param", "max_tokens=9"
    )
    assert ended.returncode == 4, ended.stderr
    rows = [json.loads(line) for line in ended.stdout.splitlines()]
    assert 0 < billed < 7
    assert len(rows) == sum(text in {row["prompt"] for row in rows} for text in TEXTS)
    assert sum(not row.get("copied") for row in rows) == billed


def test_rows_added_later_get_answers_of_earlier_runs(run, tmp_path):
    """Also where the input was sorted anew, and after an edit only what is new is asked."""
    assert run("-o", "o.jsonl", *SMALL, *ZERO)[1] == 7
    grown = [*TEXTS, *TEXTS[:20], "A new ticket", "A new ticket"]
    write_jsonl(tmp_path / "in.jsonl", [{"id": n, "prompt": t} for n, t in enumerate(grown)])
    assert run("-o", "o.jsonl", *SMALL, *ZERO)[1] == 8
    rows = read_jsonl(tmp_path / "o.jsonl")
    assert [row["prompt"] for row in rows] == grown
    grown = ["Another", *reversed(grown), *TEXTS]
    write_jsonl(tmp_path / "in.jsonl", [{"id": n, "prompt": t} for n, t in enumerate(grown)])
    assert run("-o", "o.jsonl", *SMALL, *ZERO)[1] == 9
    again = read_jsonl(tmp_path / "o.jsonl")
    assert [row["prompt"] for row in again] == grown
    assert len({(row["prompt"], row["content"]) for row in again}) == 9


def test_the_check_counts_what_will_be_sent(run):
    """And says what will not."""
    told = run("-o", "o.jsonl", *SMALL, *ZERO, "--dry-run")[0].stderr.decode()
    assert "33 rows ask the same as a row before." in told
    assert "33 requests will get the answer of an equal one" in told
    assert "sim-small: 7 requests, about" in told
    assert "7 requests to send" in told
    told = run("-o", "o.jsonl", *SMALL, "--dry-run")[0].stderr.decode()
    assert "sim-small: 40 requests, about" in told


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL])
def test_after_a_kill_nothing_is_bought_twice(tmp_path, kill):
    """What waits for an equal one stays pending, and is found at the next start.

    But for what was in flight when it was killed, and the answers that came in the moment before.
    """
    with running(Simulation(speed=5)) as gateway:
        _interrupted(tmp_path, gateway, kill)


def _interrupted(tmp_path, gateway, kill):
    texts = [f"Ticket {n % 150}: my parcel is late" for n in range(600)]
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": text} for text in texts])
    words = ("run", "in.jsonl", "-o", "o.jsonl", *SMALL, *ZERO, "--concurrency", "4")
    begun = program.started(*words, cwd=tmp_path, url=gateway.url)
    while answers(gateway) < 60:
        assert begun.poll() is None
    begun.send_signal(kill)
    begun.communicate(timeout=300)
    before = answers(gateway)
    assert before < 150
    ended = program.batcher(*words, cwd=tmp_path, url=gateway.url)
    assert ended.returncode == 0, ended.stderr.decode()
    assert answers(gateway) <= 150 + (2 * 4 if kill is signal.SIGKILL else 0)
    rows = read_jsonl(tmp_path / "o.jsonl")
    assert [row["prompt"] for row in rows] == texts
    assert len({(row["prompt"], row["content"]) for row in rows}) == 150


def test_an_answer_that_moved_to_another_sample_is_copied_to_that(unsure, tmp_path):
    """Three rows' answers, then two rows of two samples: the fourth is a copy, in its own place."""
    up, run = unsure
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "a"}] * 3)
    run("-m", "a")
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "a"}] * 2)
    up.fails = lambda _body: True
    run("-m", "a", "--samples", "2")
    up.fails = lambda _body: False
    ended, rows = run("-m", "a", "--samples", "2")
    assert ended.returncode == 0, ended.stderr.decode()
    assert [(row["row"], row["sample"]) for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert {row["status"] for row in rows} == {"ok"}
