"""The engine's moving parts, seen from the gateway."""

import asyncio
import collections
import contextlib
import dataclasses
import json
import re
import socket
import threading
import time
from datetime import datetime
from decimal import Decimal

import pytest
from aiohttp import web
from yarl import URL

from batcher import api
from batcher.errors import JobError
from batcher.job.job import Job
from batcher.runtime.runner import Runner
from batcher.simulate.server import running
from batcher.simulate.settings import SimulatedModel, Simulation
from tests.support import echo
from tests.support.canned import Server
from tests.support.program import batcher, read_jsonl, started, write_jsonl

PRICE = Decimal(1)
FAST = SimulatedModel("fast", 1.0, 0.0001, 0.1, PRICE, PRICE, PRICE)
SLOW = dataclasses.replace(FAST, id="slow", median_s=0.4)


@pytest.fixture
def rows(tmp_path):
    return write_jsonl(tmp_path / "in.jsonl", [{"prompt": f"p {n}"} for n in range(2000)])


@pytest.mark.parametrize("own", [False, True])
def test_a_slow_model_never_holds_up_a_fast_one(tmp_path, rows, own):
    """The fast model ends its 2,000 rows while the slow one has most of its own before it."""
    words = ["run", "in.jsonl", "-o", "out.jsonl", "--concurrency", "8"]
    if own:
        write_jsonl(rows, [
            {"prompt": f"p {n}", "model": m} for n in range(2000) for m in ("fast", "slow")
        ])  # fmt: skip
    else:
        words += ["-m", "slow", "-m", "fast"]
    with running(Simulation(models=(FAST, SLOW))) as gateway:
        process = started(*words, cwd=tmp_path, url=gateway.url)
        models = gateway.ledger.models
        until = time.monotonic() + 300
        while models["fast"].billed < 2000 and time.monotonic() < until:
            time.sleep(0.02)
        slow = models["slow"].received
        process.kill()
        process.communicate()
        assert models["fast"].billed == 2000
        assert 0 < slow < 1000


def test_a_lane_with_a_feed_of_its_own_misses_and_doubles_nothing(tmp_path, rows):
    """Models of different speed part from the common feed; every row still comes out once each."""
    slower = dataclasses.replace(SLOW, median_s=0.01)
    with running(Simulation(models=(FAST, slower))) as gateway:
        ended = batcher(
            "run",
            rows,
            "-o",
            "out.jsonl",
            "-m",
            "slow",
            "-m",
            "fast",
            "--concurrency",
            "fast=16",
            "--concurrency",
            "slow=32",
            cwd=tmp_path,
            url=gateway.url,
        )
        assert ended.returncode == 0, ended.stderr.decode()
        assert {m.received for m in list(gateway.ledger.models.values())} == {2000}
    out = read_jsonl(tmp_path / "out.jsonl")
    assert [(r["row"], r["model"]) for r in out] == [
        (n, model) for n in range(2000) for model in ("slow", "fast")
    ]


@pytest.mark.parametrize(("flag", "most"), [("--concurrency", 3), ("--total-concurrency", 3)])
def test_concurrency_is_never_more_than_told(tmp_path, rows, flag, most):
    """Per model, and for all models of the key together."""
    with running(Simulation(models=(SLOW, FAST), speed=20)) as gateway:
        words = ["-m", "slow"] if flag == "--concurrency" else ["-m", "slow", "-m", "fast"]
        ended = batcher(
            "run",
            rows,
            "-o",
            "out.jsonl",
            *words,
            flag,
            str(most),
            "-n",
            "60",
            cwd=tmp_path,
            url=gateway.url,
        )
        assert ended.returncode == 0, ended.stderr.decode()
        assert gateway.ledger.peak_in_flight == most


def test_requests_a_minute_are_kept(tmp_path, rows):
    """600 a minute is 10 a second, and at most one second of it is saved up.

    The server refuses what is bunched beyond 12 in a second, a fifth more for a loaded machine.
    """
    with running(Simulation(models=(FAST,), rpm=720, meter="bucket-1s")) as gateway:
        began = time.monotonic()
        ended = batcher(
            "run",
            rows,
            "-o",
            "out.jsonl",
            "-m",
            "fast",
            "--rpm",
            "600",
            "-n",
            "30",
            cwd=tmp_path,
            url=gateway.url,
        )
        assert ended.returncode == 0, ended.stderr.decode()
        assert time.monotonic() - began >= 2.0
        assert gateway.ledger.models["fast"].by_status == {200: 30}


def test_a_429_is_waited_out_and_costs_no_retry(tmp_path, rows):
    """The gate of that model shuts for the time the server names."""
    with running(Simulation(models=(FAST,), rpm=1200, meter="window-1s")) as gateway:
        ended = batcher(
            "run",
            rows,
            "-o",
            "out.jsonl",
            "-m",
            "fast",
            "-n",
            "50",
            "--max-retries",
            "0",
            cwd=tmp_path,
            url=gateway.url,
        )
        assert ended.returncode == 0, ended.stderr.decode()
        assert gateway.ledger.models["fast"].by_status[200] == 50
    out = read_jsonl(tmp_path / "out.jsonl")
    assert {r["status"] for r in out} == {"ok"}


def test_max_retries_is_that_many_calls_more(tmp_path, rows):
    """No SDK below retries on its own: the ledger proves it."""
    with running(Simulation(models=(FAST,), faults={"http_500": 1.0})) as gateway:
        ended = batcher(
            "run",
            rows,
            "-o",
            "out.jsonl",
            "-m",
            "fast",
            "-n",
            "2",
            "--max-retries",
            "2",
            cwd=tmp_path,
            url=gateway.url,
        )
        assert ended.returncode == 3
        assert set(gateway.ledger.received_by_key.values()) == {3}
    out = read_jsonl(tmp_path / "out.jsonl")
    assert {(r["status"], r["attempts"], r["http_status"]) for r in out} == {
        ("server_error", 3, 500)
    }


def test_failed_rows_are_sent_again_by_a_second_start(tmp_path, rows):
    """Those and no others; an ok row after an error replaces it."""
    words = ("run", rows, "-o", "out.jsonl", "-m", "fast", "-n", "100", "--max-retries", "0")
    with running(Simulation(models=(FAST,), faults={"http_500": 0.3})) as gateway:
        assert batcher(*words, cwd=tmp_path, url=gateway.url).returncode == 3
        failed = {r["row"] for r in read_jsonl(tmp_path / "out.jsonl") if r["status"] != "ok"}
        gateway.gateway.shares = {}
        received = gateway.ledger.models["fast"].received
        assert batcher(*words, cwd=tmp_path, url=gateway.url).returncode == 0
        assert gateway.ledger.models["fast"].received == received + len(failed)
    assert {r["status"] for r in read_jsonl(tmp_path / "out.jsonl")} == {"ok"}


@pytest.mark.parametrize(
    ("fault", "calls", "said"),
    [
        ("quota", 1, "out of money|used up"),
        ("day_limit", 1, "asked to wait 24"),
        ("bad_request", 50, "check --param"),
    ],
)
def test_what_will_not_pass_stops_the_run_before_it_costs(tmp_path, rows, fault, calls, said):
    """Two thousand rows do not fail one by one; the sentence says what to change."""
    with running(Simulation(models=(FAST,), faults={fault: 1.0})) as gateway:
        ended = batcher(
            "run", rows, "-o", "out.jsonl", "-m", "fast", cwd=tmp_path, url=gateway.url
        )
        text = ended.stderr.decode()
        assert ended.returncode == 2, text
        assert re.search(said, text)
        assert calls <= gateway.ledger.models["fast"].received <= calls + 48
        gateway.gateway.shares = {}
        again = batcher(
            "run",
            rows,
            "-o",
            "out.jsonl",
            "-m",
            "fast",
            "-n",
            "100",
            cwd=tmp_path,
            url=gateway.url,
        )
        assert again.returncode == 0, again.stderr.decode()


def test_a_few_rows_that_are_all_refused_are_a_finished_run(tmp_path, rows):
    """One bad prompt is no reason to doubt the key, or to crash."""
    with running(Simulation(speed=0, faults={"bad_request": 1.0})) as gateway:
        ended = batcher("run", rows, "-o", "out.jsonl", "-m", "sim-small", "-n", "1", cwd=tmp_path,
                        url=gateway.url)  # fmt: skip
    assert ended.returncode == 3, ended.stderr.decode()
    assert [row["status"] for row in read_jsonl(tmp_path / "out.jsonl")] == ["bad_request"]
    assert b"bad_request, such as: " in ended.stderr


def test_money_that_runs_out_on_the_way_leaves_the_rest_pending(tmp_path, rows):
    """What was answered is kept, and the same command goes on when there is money again."""
    with running(Simulation(models=(FAST,), faults={"quota": 0.003})) as gateway:
        words = ("run", rows, "-o", "out.jsonl", "-m", "fast", "--concurrency", "4")
        ended = batcher(*words, cwd=tmp_path, url=gateway.url)
        assert ended.returncode == 4, ended.stderr.decode()
        assert b"Go on with: batcher run" in ended.stderr
        billed = gateway.ledger.models["fast"].billed
        assert 0 < billed < 2000
        gateway.gateway.shares = {}
        assert batcher(*words, cwd=tmp_path, url=gateway.url).returncode == 0
        assert gateway.ledger.models["fast"].billed == 2000
    assert {r["status"] for r in read_jsonl(tmp_path / "out.jsonl")} == {"ok"}


def test_an_outage_costs_a_handful_of_requests_and_no_row(tmp_path, rows):
    """Five seconds of 500s under load: one request at a time, until one is answered."""
    slower = dataclasses.replace(FAST, median_s=0.05)
    with running(Simulation(models=(slower,))) as gateway:
        process = started("run", rows, "-o", "out.jsonl", "-m", "fast", "--concurrency", "16",
                          "--rpm", "12000", cwd=tmp_path, url=gateway.url)  # fmt: skip
        of = gateway.ledger.models["fast"]
        until = time.monotonic() + 300
        while of.billed < 300 and time.monotonic() < until:
            time.sleep(0.01)
        gateway.gateway.shares = {"http_500": 1.0}
        before = of.received
        time.sleep(5.0)
        spent = of.received - before
        gateway.gateway.shares = {}
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr.decode()
        assert 0 < spent <= 20 + 16
    assert [r["status"] for r in read_jsonl(tmp_path / "out.jsonl")] == ["ok"] * 2000


def test_explain_lists_every_attempt_of_a_row(tmp_path):
    """With its waits and why; found by position and by custom_id, beside other rows."""
    rows = write_jsonl(
        tmp_path / "in.jsonl", [{"custom_id": f"t-{n}", "prompt": f"p {n}"} for n in range(20)]
    )
    with running(Simulation(models=(FAST,), faults={"http_500": 0.5})) as gateway:
        ended = batcher("run", rows, "-o", "out.jsonl", "-m", "fast", "--max-retries", "9",
                        cwd=tmp_path, url=gateway.url)  # fmt: skip
        assert ended.returncode == 0, ended.stderr.decode()
    tried = max(read_jsonl(tmp_path / "out.jsonl"), key=lambda r: r["attempts"])
    assert tried["attempts"] > 1
    for name in (str(tried["row"]), tried["custom_id"]):
        told = batcher("explain", "out.jsonl", name, cwd=tmp_path).stdout.decode().splitlines()
        assert told[0] == f"row {tried['row']} ({tried['custom_id']}) · fast · ok"
        assert len(told) == 1 + tried["attempts"]
        assert "server_error (HTTP 500)" in told[1]
        assert "for retry" in told[2]
        assert tried["request_id"] in told[-1]
    missing = batcher("explain", "out.jsonl", "t-99", cwd=tmp_path)
    assert missing.returncode == 2
    assert b"t-99" in missing.stderr


def _never_ends(listening, *, silent):
    """Answers one connection with headers and then nothing, or a byte every tenth of a second."""
    connection, _ = listening.accept()
    with connection, contextlib.suppress(OSError):
        connection.settimeout(0.1)
        while not connection.recv(65536).endswith(b"}"):
            pass
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while True:
            try:
                if not connection.recv(1):
                    return
            except TimeoutError:
                if not silent:
                    connection.sendall(b" ")


@pytest.mark.parametrize("silent", [True, False])
def test_a_server_that_never_ends_its_answer_is_cut(tmp_path, silent):
    """By the time for the whole exchange, however slowly bytes come."""
    rows = write_jsonl(tmp_path / "in.jsonl", [{"prompt": "a"}])
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=_never_ends, args=(listening,), kwargs={"silent": silent})
        thread.start()
        ended = batcher(
            "run", rows, "-o", "out.jsonl", "-m", "m", "--attempt-timeout", "1",
            "--max-retries", "0", cwd=tmp_path,
            url=f"http://127.0.0.1:{listening.getsockname()[1]}/v1",
        )  # fmt: skip
        thread.join(10)
    assert ended.returncode == 3, ended.stderr.decode()
    (row,) = read_jsonl(tmp_path / "out.jsonl")
    assert row["status"] == "timeout"
    assert 900 <= row["latency_ms"] <= 5000


def test_a_gateway_that_is_not_there_ends_the_run_with_a_sentence(tmp_path, rows):
    """Not a hundred thousand rows one by one, nor a wait without end."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1"
    began = time.monotonic()
    ended = batcher("run", rows, "-o", "out.jsonl", "-m", "m", cwd=tmp_path, url=url)
    text = ended.stderr.decode()
    assert ended.returncode == 2, text
    assert f"m: {url} cannot be reached: no connection" in text
    assert "check --base-url" in text
    assert time.monotonic() - began < 30  # A minute, where something answered before.


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://nobody.invalid/v1", b"there is no host of that name"),
        ("https://127.0.0.1:{port}/v1", b"there is no TLS"),
    ],
)
def test_an_address_that_cannot_work_is_not_waited_for(tmp_path, rows, url, said):
    """A mistyped host becomes no better with time; what was never reached costs no retries."""
    with running(Simulation(speed=0)) as gateway:
        url = url.format(port=URL(gateway.url).port)
        begun = time.monotonic()
        ended = batcher("run", "in.jsonl", "-o", "out.jsonl", "-m", "m", cwd=tmp_path, url=url)
    assert (ended.returncode, said in ended.stderr) == (2, True), ended.stderr
    assert time.monotonic() - begun < 20  # A minute, where time may help.
    assert not (tmp_path / "out.jsonl").exists()


def test_an_outage_of_one_model_leaves_its_rows_pending_and_the_others_alone(tmp_path, rows):
    """And the same command goes on when it is back."""
    words = ["run", rows, "-o", "out.jsonl", "-m", "fast", "-m", "slow", "-n", "300",
             "--row-timeout", "3", "--max-retries", "9"]  # fmt: skip
    quick = dataclasses.replace(SLOW, median_s=0.001)
    with running(Simulation(models=(FAST, quick))) as gateway:
        gateway.gateway.dead = {"slow"}
        ended = batcher(*words, cwd=tmp_path, url=gateway.url)
        assert ended.returncode == 4, ended.stderr.decode()
        assert b"slow: no answer for 3 s" in ended.stderr
        assert gateway.ledger.models["fast"].billed == 300
        gateway.gateway.dead = set()
        assert batcher(*words, cwd=tmp_path, url=gateway.url).returncode == 0
        assert {m.billed for m in list(gateway.ledger.models.values())} == {300}


def by_model(**ways):
    """A gateway whose models answer each in a way of its own.

    A way is "ok", "hangs", a status whose words name the row, or two of them and after how many
    answers the second begins.
    """
    asked = collections.Counter()

    async def answer(request):
        body = await request.json()
        way = ways[body["model"]]
        asked[body["model"]] += 1
        if isinstance(way, tuple):
            way = way[asked[body["model"]] > way[2]]
        if way == "ok":
            said = {"message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
            return web.json_response({"choices": [said]})
        if way == "hangs":
            await asyncio.sleep(4)
        if way == "limited":
            error = {"error": {"message": "slow down"}}
            return web.json_response(error, status=429, headers={"Retry-After": "100"})
        text = f"{way}: {body['messages'][0]['content']}"
        error = {"message": text, "code": "insufficient_quota" if way == 429 else None}
        return web.json_response({"error": error}, status=way)

    return echo.running(answer)


A_WORD_EACH = [
    {"prompt": "".join(map(chr, map((49).__add__, str(n).encode())))} for n in range(900)
]
"""Prompts without a number in them, so that each one's refusal has words of its own."""


@pytest.mark.parametrize(
    ("route", "ways", "status", "ended"),
    [
        ("each", {"a": 400, "b": 401}, 3, {("a", "bad_request"), ("b", "auth")}),
        ("fallback", {"a": 400, "b": 401}, 3, {("b", "auth")}),
        ("fallback", {"a": 400, "b": 429}, 4, None),
        ("each", {"a": 400, "b": ("ok", 429, 300)}, 4, None),
        ("split", {"a": ("ok", 401, 50), "b": "ok"}, 0, {("a", "ok"), ("b", "ok")}),
        ("split", {"a": ("ok", 429, 50), "b": "ok"}, 0, {("a", "ok"), ("b", "ok")}),
        ("split", {"a": ("ok", 401, 50), "b": ("ok", 429, 60)}, 4, None),
    ],
)
def test_a_run_ends_however_its_models_do(tmp_path, route, ways, status, ended):
    """More rows than any queue holds; no model waits for another that waits for it."""
    write_jsonl(tmp_path / "in.jsonl", A_WORD_EACH)
    with by_model(**ways) as gateway:
        run = batcher("run", "in.jsonl", "-o", "out.jsonl", "-m", "a", "-m", "b", "--route", route,
                      cwd=tmp_path, url=gateway.url, timeout=60)  # fmt: skip
    assert run.returncode == status, run.stderr.decode()
    assert b"b: the gateway" in run.stderr or b"a: the gateway" in run.stderr
    if ended is None:
        assert b"top it up" in run.stderr
    else:
        out = read_jsonl(tmp_path / "out.jsonl")
        assert len(out) == (1800 if route == "each" else 900)
        assert {(row["model"], row["status"]) for row in out} == ended


@pytest.mark.parametrize("n", [2, 5, 40])
@pytest.mark.parametrize("own", [False, True])
def test_how_a_run_ends_does_not_hang_on_how_many_rows_it_has(tmp_path, n, own):
    """One model refuses every row, the other has a wrong key: nobody is left to wait for."""
    rows = [{"prompt": f"{n}", "model": model} for n in range(n) for model in ("bad", "keyless")]
    models = []
    if not own:
        rows, models = rows[::2], ["-m", "bad", "-m", "keyless"]
    write_jsonl(tmp_path / "in.jsonl", rows)
    with by_model(bad=400, keyless=401) as gateway:
        ended = batcher("run", "in.jsonl", "-o", "out.jsonl", *models, "--max-retries", "0",
                        cwd=tmp_path, url=gateway.url)  # fmt: skip
    assert ended.returncode == 3, ended.stderr.decode()
    assert len(read_jsonl(tmp_path / "out.jsonl")) == 2 * n


@pytest.mark.parametrize("n", [1, 5])
def test_money_that_is_out_leaves_rows_pending_however_many(tmp_path, rows, n):
    """The one that was refused as well: it is no result."""
    with by_model(works="ok", broke=429) as gateway:
        ended = batcher("run", rows, "-o", "out.jsonl", "-m", "works", "-m", "broke", "-n", f"{n}",
                        cwd=tmp_path, url=gateway.url)  # fmt: skip
    assert ended.returncode == 4, ended.stderr.decode()
    assert not (tmp_path / "out.jsonl").exists()


def test_each_model_that_ends_a_run_is_named_with_its_own_failure(tmp_path, rows):
    """Sixty refusals in the same words are more than bad luck."""
    with by_model(bad=400, keyless=401) as gateway:
        ended = batcher("run", rows, "-o", "out.jsonl", "-m", "bad", "-m", "keyless",
                        cwd=tmp_path, url=gateway.url)  # fmt: skip
    assert ended.returncode == 2
    text = ended.stderr.decode()
    assert re.search(r"bad: the gateway answers 400: .* check --param\. keyless: the .* 401", text)


def test_a_model_that_does_not_exist_says_nothing_of_those_named_later(tmp_path, monkeypatch):
    """More rows than its queue holds stand before the first row of the good one."""
    monkeypatch.setattr("batcher.runtime.monitor._DECIDE_SECONDS", 0.3)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    rows = [{"prompt": f"{n}", "model": "gone" if n < 900 else "good"} for n in range(1000)]
    with by_model(gone=404, good="ok") as gateway:
        report = api.run(rows, tmp_path / "out.jsonl", base_url=gateway.url)
        with pytest.raises(JobError, match="check the model ID"):
            api.run(rows[:900], tmp_path / "none.jsonl", base_url=gateway.url)
    assert report.exit_status == 3
    ended = collections.Counter(row["status"] for row in read_jsonl(tmp_path / "out.jsonl"))
    assert ended == {"not_found": 900, "ok": 100}


def test_a_row_is_written_once_when_a_fallback_saves_it(tmp_path, rows):
    """To stdout too, where rows go as they finish."""
    with by_model(a=400, b="ok") as gateway:
        ended = batcher("run", rows, "-o", "-", "-m", "a", "-m", "b", "--route", "fallback", "-n",
                        "20", cwd=tmp_path, url=gateway.url)  # fmt: skip
    assert ended.returncode == 0, ended.stderr.decode()
    out = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [(r["model"], r["status"]) for r in out] == [("b", "ok")] * 20


@pytest.mark.parametrize("way", [503, 500, 401, "limited", "hangs"])
def test_a_model_of_a_split_that_fails_later_holds_up_no_other(tmp_path, rows, way):
    """Its rows go to the one that works, at once; what they went through is listed."""
    began = time.monotonic()
    with by_model(works="ok", fails=("ok", way, 20)) as gateway:
        ended = batcher("run", rows, "-o", "out.jsonl", "-m", "works", "-m", "fails", "--route",
                        "split", "-n", "300", "--attempt-timeout", "2", cwd=tmp_path,
                        url=gateway.url)  # fmt: skip
    assert ended.returncode == 0, ended.stderr.decode()
    assert time.monotonic() - began < 30
    out = read_jsonl(tmp_path / "out.jsonl")
    assert {r["status"] for r in out} == {"ok"}
    if way != 401:
        moved = next(r["row"] for r in out if r["attempts"] > 1 and r["model"] == "works")
        told = batcher("explain", "out.jsonl", f"{moved}", cwd=tmp_path).stdout.decode()
        assert "sent to fails" in told


def test_a_limited_model_keeps_no_row_of_a_split_from_an_idle_one(tmp_path, rows):
    """One request a minute: what it cannot send at once the other one sends."""
    with by_model(limited="ok", idle="ok") as gateway:
        ended = batcher("run", rows, "-o", "out.jsonl", "-m", "limited", "-m", "idle", "--route",
                        "split", "--rpm", "limited=1", cwd=tmp_path, url=gateway.url,
                        timeout=50)  # fmt: skip
    assert ended.returncode == 0, ended.stderr.decode()
    models = collections.Counter(r["model"] for r in read_jsonl(tmp_path / "out.jsonl"))
    assert models["limited"] <= 2
    assert models.total() == 2000


def test_split_gives_the_rows_of_a_model_that_never_worked_to_the_others(tmp_path, rows):
    """Whichever is free is not whichever fails fastest."""
    with by_model(missing=404, works="ok") as gateway:
        ended = batcher("run", rows, "-o", "out.jsonl", "-m", "missing", "-m", "works", "-n", "60",
                        "--route", "split", cwd=tmp_path, url=gateway.url)  # fmt: skip
    assert ended.returncode == 0, ended.stderr.decode()
    assert {r["model"] for r in read_jsonl(tmp_path / "out.jsonl")} == {"works"}


def test_a_rows_time_ends_an_attempt_in_flight(tmp_path, rows):
    """Ten minutes for the exchange are not ten minutes for the row."""
    with by_model(slow="hangs") as gateway:
        began = time.monotonic()
        ended = batcher("run", rows, "-o", "out.jsonl", "-m", "slow", "-n", "1", "--row-timeout",
                        "2", cwd=tmp_path, url=gateway.url)  # fmt: skip
        assert time.monotonic() - began < 20
    assert ended.returncode in (3, 4), ended.stderr.decode()


def test_rows_of_a_dead_model_all_have_the_same_short_reason(tmp_path, rows):
    """Each once quoted the one before it: hundreds of megabytes for a few thousand rows."""
    with by_model(keyless=401, works="ok") as gateway:
        ended = batcher("run", rows, "-o", "out.jsonl", "-m", "keyless", "-m", "works", "-n", "200",
                        cwd=tmp_path, url=gateway.url)  # fmt: skip
    assert ended.returncode == 3, ended.stderr.decode()
    errors = {r["error"] for r in read_jsonl(tmp_path / "out.jsonl") if r["model"] == "keyless"}
    assert max(map(len, errors)) < 200


@pytest.mark.parametrize(
    ("told", "connections"),
    [
        ({"concurrency": 20}, 12),
        ({"concurrency": 8}, 8),
        ({"concurrency": 20, "rpm": 180}, 4),
        ({"concurrency": 20, "total_concurrency": 5}, 6),
        ({"concurrency": 1}, 1),
        ({}, 1),
    ],
)
def test_connections_are_opened_while_the_first_answer_is_waited_for(tmp_path, told, connections):
    """As many as the rows and what was told of limits leave use for."""
    said = b'{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}]}'
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(said), said)

    async def work():
        async with Server(0.6, answer) as server:
            rows = [{"prompt": f"p {n}"} for n in range(12)]
            path = write_jsonl(tmp_path / "in.jsonl", rows)
            job = Job.of(
                inputs=[str(path)], output=tmp_path / "o.jsonl", models=["m"], quiet=True,
                base_url=server.url.removesuffix("/chat/completions"), **told,
            )  # fmt: skip
            running = asyncio.create_task(Runner(job).run())
            while not server.requests:  # noqa: ASYNC110 (the server has no event for it)
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.3)
            assert len(server.requests) == 1
            # The first request may have taken one of those.
            assert server.connections in (connections, max(1, connections - 1))
            assert (await running).exit_status == 0

    asyncio.run(work())


def test_a_deadline_stops_a_run_which_goes_on_later(tmp_path):
    """What is in flight is kept."""
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": f"What is {n} + 1?"} for n in range(40)])
    words = ("run", "in.jsonl", "-o", "out.jsonl", "-m", "sim-large", "--concurrency", "2")
    with running(Simulation(speed=5)) as gateway:
        begun = time.monotonic()
        ended = batcher(*words, "--deadline", "2s", cwd=tmp_path, url=gateway.url)
        took = time.monotonic() - begun
        first = gateway.ledger.models["sim-large"].billed
        assert ended.returncode == 4
        assert b"--deadline 2s: it is over, so nothing more is sent" in ended.stderr
        assert 0 < first < 40
        assert took < 10
        assert batcher(*words, cwd=tmp_path, url=gateway.url).returncode == 0
        assert gateway.ledger.models["sim-large"].billed == 40


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90m", 5400), ("7h30m", 27000), ("1d", 86400), ("45s", 45), ("1h1s", 3601),
        ("12:30", 1800), ("11:59", 86340), ("12:00", 86400), ("2026-05-06T12:00:10", 10),
        ("2026-05-07", 43200),
    ],
)  # fmt: skip
def test_a_deadline_is_a_length_or_a_time(text, seconds):
    noon = datetime(2026, 5, 6, 12)
    job = Job(output="-")
    object.__setattr__(job, "deadline", text)
    assert job.seconds_left(noon) == seconds


@pytest.mark.parametrize("text", ["", "90", "soon", "25:00", "0m", "2020-01-01", "7h30", "-5m"])
def test_a_deadline_that_is_none_or_over_is_refused(text):
    with pytest.raises(JobError, match="--deadline"):
        Job(output="-", deadline=text)
