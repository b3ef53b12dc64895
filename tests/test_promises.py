"""The README's promises, one test each (DESIGN, section 1), as far as they stand."""

import collections
import signal
import time

import pyarrow.parquet as pq
import pytest
from aiohttp import web

from batcher.simulate.server import running
from batcher.simulate.settings import Simulation
from tests.support import echo
from tests.support.program import SECRET, batcher, read_jsonl, started, write_jsonl

MODELS = ("-m", "sim-small", "-m", "sim-medium", "-m", "sim-large")
FAULTS = {"http_500": 0.02, "cut_json": 0.01, "disconnect": 0.01, "html": 0.01}


@pytest.fixture
def rows(tmp_path):
    return write_jsonl(
        tmp_path / "in.jsonl",
        [{"id": n, "prompt": f"Ticket {n}: my parcel is late"} for n in range(300)],
    )


def billed(gateway, model=None):
    models = gateway.ledger.models
    return sum(m.billed for name, m in models.items() if model in (None, name))


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_every_row_comes_out_once_for_every_model_and_the_ledgers_agree(tmp_path, rows, suffix):
    """Promise 1, under faults: nothing missing, nothing twice, every token accounted for."""
    with running(Simulation(speed=0, faults=FAULTS)) as gateway:
        ended = batcher(
            "run",
            rows,
            "-o",
            f"out.{suffix}",
            *MODELS,
            "--max-retries",
            "9",
            cwd=tmp_path,
            url=gateway.url,
        )
        assert ended.returncode == 0, ended.stderr.decode()
        ledger = gateway.ledger.models
    path = tmp_path / f"out.{suffix}"
    out = read_jsonl(path) if suffix == "jsonl" else pq.read_table(path).to_pylist()
    assert [(r["row"], r["model"]) for r in out] == [
        (n, model) for n in range(300) for model in ("sim-small", "sim-medium", "sim-large")
    ]
    assert [r["id"] for r in out] == [r["row"] for r in out]
    for model in ("sim-small", "sim-medium", "sim-large"):
        mine = [r for r in out if r["model"] == model]
        assert len(mine) == ledger[model].billed
        assert sum(r["attempts"] for r in mine) == ledger[model].received
        for kind in ("prompt", "completion"):
            assert sum(r[f"{kind}_tokens"] for r in mine) == ledger[model].tokens[kind]


def test_an_answer_that_was_paid_for_is_not_bought_twice(tmp_path, rows):
    """Promise 2: a second start sends nothing, and gives the same file."""
    with running(Simulation(speed=0)) as gateway:
        batcher("run", rows, "-o", "out.jsonl", "-m", "sim-small", cwd=tmp_path, url=gateway.url)
        first, sent = (tmp_path / "out.jsonl").read_bytes(), billed(gateway)
        ended = batcher(
            "run", rows, "-o", "out.jsonl", "-m", "sim-small", cwd=tmp_path, url=gateway.url
        )
        assert ended.returncode == 0
        assert (billed(gateway), (tmp_path / "out.jsonl").read_bytes()) == (sent, first)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_keeps_what_was_paid_for_and_the_same_command_goes_on(tmp_path, rows, stop):
    """Promise 2, Ctrl-C: what the gateway billed is on disk, exactly.

    There are more rows than the queues hold, so that the reader waits when the stop comes.
    """
    write_jsonl(rows, [{"id": n, "prompt": f"Ticket {n}"} for n in range(700)])
    with running(Simulation(speed=20)) as gateway:
        words = ("run", rows, "-o", "out.jsonl", "-m", "sim-small", "--concurrency", "8")
        process = started(*words, cwd=tmp_path, url=gateway.url)
        while billed(gateway) < 20:
            time.sleep(0.01)
        process.send_signal(stop)
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 130, stderr.decode()
        assert stderr.decode().strip().splitlines()[-1].startswith("Go on with: batcher run ")
        assert not (tmp_path / "out.jsonl").exists()
        assert billed(gateway) < 700
        ended = batcher(*words, cwd=tmp_path, url=gateway.url)
        assert ended.returncode == 0, ended.stderr.decode()
        assert billed(gateway) == 700
        assert max(gateway.ledger.billed_by_key.values()) == 1


def test_after_a_kill_only_what_was_in_flight_is_bought_twice(tmp_path, rows):
    """Promise 2, kill -9: at most the requests in flight are lost."""
    with running(Simulation(speed=2)) as gateway:
        words = ("run", rows, "-o", "out.jsonl", "-m", "sim-small", "--concurrency", "8")
        for target in (40, 120):
            process = started(*words, cwd=tmp_path, url=gateway.url)
            while billed(gateway) < target:
                time.sleep(0.01)
            process.kill()
            process.communicate()
        ended = batcher(*words, cwd=tmp_path, url=gateway.url)
        assert ended.returncode == 0, ended.stderr.decode()
        assert billed(gateway) <= 300 + 2 * 8
    out = read_jsonl(tmp_path / "out.jsonl")
    assert [r["row"] for r in out] == list(range(300))
    assert {r["status"] for r in out} == {"ok"}


def test_rows_that_moved_keep_their_answers_and_new_ones_are_sent(tmp_path, rows):
    """Promise 3: reorder, insert, append and delete rows, and only the new ones go."""
    with running(Simulation(speed=0)) as gateway:
        words = ("run", rows, "-o", "out.jsonl", "-m", "sim-small")
        batcher(*words, cwd=tmp_path, url=gateway.url)
        before = {r["id"]: r["content"] for r in read_jsonl(tmp_path / "out.jsonl")}
        old = read_jsonl(rows)
        new = [{"id": -n, "prompt": f"New ticket {n}"} for n in (1, 2)]
        write_jsonl(rows, [new[0], *reversed(old[10:]), new[1]])
        ended = batcher(*words, cwd=tmp_path, url=gateway.url)
        assert ended.returncode == 0, ended.stderr.decode()
        assert billed(gateway) == 302
    out = read_jsonl(tmp_path / "out.jsonl")
    assert [r["id"] for r in out] == [-1, *range(299, 9, -1), -2]
    assert all(r["content"] == before[r["id"]] for r in out if r["id"] >= 0)
    assert [r["row"] for r in out] == list(range(292))


def test_changed_settings_ask_before_they_spend(tmp_path, rows):
    """Promise 3: nothing stale is returned, nothing is bought again without being asked."""
    with running(Simulation(speed=0)) as gateway:
        words = ("run", rows, "-o", "out.jsonl", "-m", "sim-small", "--param")
        batcher(*words, "temperature=0", cwd=tmp_path, url=gateway.url)
        asked = batcher(*words, "temperature=1", cwd=tmp_path, url=gateway.url)
        assert asked.returncode == 2
        assert "--param temperature changed" in asked.stderr.decode()
        assert "300 answers" in asked.stderr.decode()
        assert billed(gateway) == 300
        kept = batcher(*words, "temperature=1", "--changed", "keep", cwd=tmp_path, url=gateway.url)
        assert (kept.returncode, billed(gateway)) == (0, 300)
        again = batcher(
            *words, "temperature=2", "--changed", "resend", cwd=tmp_path, url=gateway.url
        )
        assert (again.returncode, billed(gateway)) == (0, 600)
        back = batcher(
            *words, "temperature=0", "--changed", "resend", cwd=tmp_path, url=gateway.url
        )
        assert (back.returncode, billed(gateway)) == (0, 600)


@pytest.mark.parametrize(
    ("fault", "status"),
    [("truncated", "truncated"), ("empty", "empty"), ("refused", "refused"),
     ("filtered", "filtered"), ("error_200", "server_error"), ("html", "bad_response"),
     ("cut_json", "bad_response"), ("no_choices", "bad_response"),
     ("context_length", "context_length"), ("http_500", "server_error"),
     ("disconnect", "connection")],
)  # fmt: skip
def test_not_every_200_is_an_answer(tmp_path, rows, fault, status):
    """Promise 4: each way of failing is an outcome of its own, and exit status 3 says so."""
    with running(Simulation(speed=0, faults={fault: 1.0})) as gateway:
        ended = batcher(
            "run",
            rows,
            "-o",
            "out.jsonl",
            "-m",
            "sim-small",
            "-n",
            "3",
            "--max-retries",
            "0",
            cwd=tmp_path,
            url=gateway.url,
        )
        assert ended.returncode == 3, ended.stderr.decode()
    out = read_jsonl(tmp_path / "out.jsonl")
    assert collections.Counter(r["status"] for r in out) == {status: 3}
    if status == "truncated":
        assert all(r["content"] and r["completion_tokens"] for r in out)


def test_unknown_usage_is_null(tmp_path, rows):
    """Promise 7: what was not reported is not 0."""
    with running(Simulation(speed=0, faults={"no_usage": 1.0})) as gateway:
        batcher(
            "run",
            rows,
            "-o",
            "out.jsonl",
            "-m",
            "sim-small",
            "-n",
            "3",
            cwd=tmp_path,
            url=gateway.url,
        )
    for row in read_jsonl(tmp_path / "out.jsonl"):
        assert row["status"] == "ok"
        assert row["prompt_tokens"] is row["total_tokens"] is row["cost_usd"] is None


def test_the_key_is_nowhere(tmp_path, rows):
    """The key is never printed, logged or stored, not even when the gateway echoes it."""
    with running(Simulation(speed=0, api_key="another")) as gateway:
        ended = batcher(
            "run", rows, "-o", "out.jsonl", "-m", "sim-small", cwd=tmp_path, url=gateway.url
        )
        assert ended.returncode == 2
    assert "check the API key" in ended.stderr.decode()
    assert SECRET.encode() not in ended.stderr + ended.stdout
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes()
    assert (tmp_path / "out.jsonl.run").stat().st_mode & 0o077 == 0


def test_the_key_is_not_taken_back_from_a_header(tmp_path, rows):
    """A gateway that echoes it as its request id would have it in the journal and the output."""

    async def answer(request):
        said = {"message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
        echoed = {"x-request-id": request.headers["Authorization"]}
        return web.json_response({"choices": [said]}, headers=echoed)

    with echo.running(answer) as gateway:
        ended = batcher("run", rows, "-o", "out.jsonl", "-m", "m", "-n", "3", cwd=tmp_path,
                        url=gateway.url)  # fmt: skip
        told = batcher("explain", "out.jsonl", "0", cwd=tmp_path)
    assert ended.returncode == 0
    assert SECRET.encode() not in ended.stderr + ended.stdout + told.stdout
    assert b"Bearer [key]" in told.stdout
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes()
