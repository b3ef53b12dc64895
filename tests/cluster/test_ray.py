"""The same run on Ray, one machine standing for several: kills, the rows of a plain run, what it refuses."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from batcher.errors import JobError
from batcher.job.job import Job
from batcher.ray import map as map_dataset
from tests.support import echo
from tests.support.program import batcher, command, environment, read_jsonl, write_jsonl

WITHOUT = {"latency_ms", "created_at", "request_id"}
on_ray = pytest.mark.ray


class Gateway(echo.Echo):
    """Answers after a while, and knows when it was asked."""

    def __init__(self):
        super().__init__()
        self.asked = []

    async def wait(self, request):
        self.asked.append(time.monotonic())
        await asyncio.sleep(0.3)
        return await self.answer(request)


@pytest.fixture
def gateway():
    made = Gateway()

    async def answer(request):
        return await made.wait(request)

    with echo.running(answer) as up:
        made.url = up.url
        yield made


def start(folder, gateway, *words):
    words = command("run", "in.jsonl", "-o", "out.jsonl", "-m", "m", "--rpm", "6000", *words)
    env = environment(
        OPENAI_BASE_URL=gateway.url, OPENAI_API_KEY="sk-loopback-1", RAY_AUTH_MODE="disabled"
    )
    with (folder / "log").open("ab") as log, (folder / "said").open("wb") as said:
        return subprocess.Popen(words, cwd=folder, stderr=log, stdout=said, env=env)


@pytest.fixture
def on(ray_cluster):
    """The words that send a run to the cluster."""
    return "--on", f"ray={ray_cluster.address}"


def until(gateway, process, many):
    deadline = time.monotonic() + 600
    while len(gateway.asked) < many:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def most_in_a_second(gateway):
    asked = sorted(gateway.asked)
    return max(sum(1 for t in asked[i : i + 300] if t - asked[i] < 1) for i in range(len(asked)))


def rows(path):
    """Without times, and without which answer to a request of this kind it was."""
    for row in read_jsonl(path):
        row["content"] = row["content"] and row["content"].partition(":")[0]
        yield {name: value for name, value in row.items() if name not in WITHOUT}


@on_ray
def test_a_worker_and_the_hub_may_be_killed(tmp_path, gateway, ray_cluster, on):
    """No row is lost, and no more are bought twice than were in flight; limit and budget hold throughout."""
    write_jsonl(tmp_path / "in.jsonl", [{"id": n, "prompt": f"p {n}"} for n in range(1200)])
    bounds = ("--param", "max_tokens=20", "--max-total-tokens", "50000")
    process = start(tmp_path, gateway, *on, "--json", *bounds)
    for name, many in ((b"ray::_task", 300), (b"ray::_HubActor", 700)):
        until(gateway, process, many)
        os.kill(ray_cluster.processes(name)[0], signal.SIGKILL)
    process.wait(600)
    log = (tmp_path / "log").read_text()
    assert process.returncode == 0, log
    assert "sk-loopback" not in log
    assert json.loads((tmp_path / "said").read_text())["models"]["m"]["outcomes"] == {"ok": 1200}
    out = read_jsonl(tmp_path / "out.jsonl")
    assert [row["id"] for row in out] == list(range(1200))
    assert all(
        row["content"].startswith(echo.name(echo.asked(f"p {row['id']}", "m", max_tokens=20)))
        for row in out
    )
    spent = json.loads((tmp_path / "out.jsonl.run" / "budget.json").read_text())
    # Each answer takes 2, and what a kill leaves unknown counts whole: some 110 a request.
    assert 2 * len(gateway.asked) <= spent["committed_tokens"] <= 2 * 1200 + 2 * 64 * 110
    assert len(gateway.asked) - 1200 <= 64
    # Who is late makes up for half a second, as without Ray.
    assert most_in_a_second(gateway) <= 99 * 1.55


@on_ray
def test_a_driver_that_was_killed_is_gone_on_without_ray_and_the_other_way_round(
    tmp_path, gateway, on
):
    """The journal is the same. What is interrupted drains, and a third start has nothing to send."""
    write_jsonl(tmp_path / "in.jsonl", [{"id": n, "prompt": f"p {n}"} for n in range(500)])
    killed = start(tmp_path, gateway, *on, "--shards", "9")
    until(gateway, killed, 150)
    killed.kill()
    killed.wait()
    plain = start(tmp_path, gateway)
    until(gateway, plain, 300)
    plain.send_signal(signal.SIGINT)
    assert plain.wait(600) == 130
    stopped = start(tmp_path, gateway, *on)
    until(gateway, stopped, 400)
    stopped.send_signal(signal.SIGINT)
    assert stopped.wait(600) == 130, (tmp_path / "log").read_text()
    bought = len(gateway.asked)
    ended = start(tmp_path, gateway, *on)
    assert ended.wait(600) == 0, (tmp_path / "log").read_text()
    assert "is gone" not in (tmp_path / "log").read_text()
    assert [row["id"] for row in read_jsonl(tmp_path / "out.jsonl")] == list(range(500))
    assert bought < 500 + 64
    assert (
        len(gateway.asked) - 500 <= 2 * 64
    )  # In flight at the kill, and till Ray ended its workers.


@on_ray
def test_its_rows_are_those_of_a_plain_run(tmp_path, gateway, on):
    """Equal rows, several samples, models in turn, a row that cannot be read."""
    lines = [{"id": n, "prompt": f"p {n % 90}"} for n in range(100)] + [{"prompt": 7}]
    write_jsonl(tmp_path / "in.jsonl", lines)
    gateway.fails = lambda body: '"model":"a"' in body and '"p 1' in body
    words = (
        "-m",
        "a",
        "-m",
        "b",
        "--route",
        "fallback",
        "--samples",
        "2",
        "--param",
        "temperature=0",
    )
    for name, where in (("plain", ()), ("ray", on)):
        ended = batcher("run", "in.jsonl", "-o", f"{name}.jsonl", *words, *where,
                        cwd=tmp_path, url=gateway.url, RAY_AUTH_MODE="disabled")  # fmt: skip
        assert ended.returncode == 3, ended.stderr.decode()
        gateway.bought.clear()  # So that both are the first to be answered.
    assert list(rows(tmp_path / "ray.jsonl")) == list(rows(tmp_path / "plain.jsonl"))


MAPS = """
import batcher.ray, ray, sys
ray.init(sys.argv[1], log_to_driver=False)
rows = [{"id": n, "prompt": f"p {n}"} for n in range(90)]
data = ray.data.from_items(rows, override_num_blocks=4)
for _time in range(2):
    out = batcher.ray.map(data, "out.parquet", models=["m"])
rows = out.take_all()
assert [row["id"] for row in rows] == list(range(90)), rows
assert {row["status"] for row in rows} == {"ok"}
"""


@on_ray
def test_a_dataset_comes_out_with_its_answers_and_is_paid_for_once(tmp_path, gateway, ray_cluster):
    """The second call finds them."""
    words = [sys.executable, "-c", MAPS, ray_cluster.address]
    ended = subprocess.run(
        words, cwd=tmp_path, capture_output=True, timeout=600, check=False,
        env=environment(OPENAI_BASE_URL=gateway.url, OPENAI_API_KEY="k", RAY_AUTH_MODE="disabled"),
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr.decode()
    assert len(gateway.asked) == 90


def test_the_output_of_a_dataset_is_parquet():
    """And nothing is written before that is said."""
    with pytest.raises(JobError, match=r"a \.parquet file"):
        map_dataset(None, "out.jsonl", models=["m"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"on": "spark"}, "write ray, or ray=ADDRESS"),
        ({"on": "ray="}, "write ray, or ray=ADDRESS"),
        ({"shards": 3}, "give --on ray too"),
        ({"on": "ray", "shards": 0}, "1 or more"),
        ({"on": "ray", "output": "-"}, "it needs an --output file"),
    ],
)
def test_what_cannot_be_is_refused(options, said):
    with pytest.raises(JobError, match=said):
        Job.of(**{"output": "o.jsonl", "models": ["m"], **options})


def test_without_ray_a_sentence_says_what_to_install(tmp_path):
    """And nothing is left behind."""
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "a"}])
    script = "import sys; sys.modules['ray'] = None; from batcher.__main__ import main; main()"
    words = ["run", "in.jsonl", "-o", "o.jsonl", "-m", "sim-small", "--simulate", "--on", "ray"]
    ended = subprocess.run(
        [sys.executable, "-c", script, *words], cwd=tmp_path, env=environment(),
        capture_output=True, timeout=600, check=False,
    )  # fmt: skip
    assert (ended.returncode, os.listdir(tmp_path)) == (2, ["in.jsonl"]), ended.stderr.decode()
    assert (
        ended.stderr == b"batcher: --on ray: Ray is not installed; pip install 'batcher[ray]'.\n"
    )
