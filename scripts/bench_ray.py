"""A run on Ray: what is left of a limit with three workers, and what is lost when something dies.

The server meters by the second and counts what it was sent, by row. Three nodes of one CPU stand for
three machines (`ray.cluster_utils`). Each case is a `batcher run` of its own on a cluster of its own.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path

LATENCY = 0.5


def serve(rpm: float) -> None:
    """The gateway, until killed; prints its port. A rate of 0 is no limit, and no latency."""
    import uvloop
    from aiohttp import web

    from batcher.simulate.meters import ModelMeter

    meter = ModelMeter("bucket-1s", "output", rpm or None, None)
    asked: list[tuple[float, str, bool]] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        if request.method == "GET":
            return web.json_response(asked)
        body = json.loads(await request.read())
        now = time.monotonic()
        no = rpm and meter.admit(50, 50, now) is not None
        asked.append((now, body["messages"][-1]["content"], not no))
        if no:
            return web.json_response({"error": {"message": "too many"}}, status=429)
        if rpm:
            await asyncio.sleep(LATENCY)
        choice = {"message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 50, "completion_tokens": 50, "total_tokens": 100}
        return web.json_response({"choices": [choice], "usage": usage})

    async def work() -> None:
        runner = web.ServerRunner(web.Server(answer))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.Event().wait()

    uvloop.run(work())


class Bench:
    """One case: its server, its cluster, its folder."""

    def __init__(self, folder: Path, rows: int, rpm: float) -> None:
        self.folder, self.rows, self.rpm = folder, rows, rpm
        folder.mkdir()
        with (folder / "in.jsonl").open("w") as file:
            file.writelines(
                json.dumps({"id": n, "prompt": f"row {n}"}) + "\n" for n in range(rows)
            )
        words = [sys.executable, __file__, "--serve", str(rpm)]
        self.server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self.server.stdout is not None
        self.url = f"http://127.0.0.1:{self.server.stdout.readline().strip()}/v1"
        self.nodes: list[object] = []

    def cluster(self, nodes: int) -> str:
        """Starts a cluster; returns its address."""
        from ray.cluster_utils import Cluster

        os.environ["OPENAI_BASE_URL"] = self.url  # By which its processes are told from others.
        self.made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        self.nodes = [self.made.add_node(num_cpus=1) for _ in range(nodes - 1)]
        return str(self.made.address)

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """The run."""
        told = [sys.executable, "-m", "batcher", "run", "in.jsonl", "-o", "out.jsonl", "-m", "m"]
        told += ["--concurrency", "200", *words]
        told += ["--rpm", f"{self.rpm:g}"] if self.rpm else []
        env = {**os.environ, "OPENAI_BASE_URL": self.url, "OPENAI_API_KEY": "none"}
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(told, cwd=self.folder, env=env, stderr=log, stdout=log)

    def asked(self) -> list[tuple[float, str, bool]]:
        """What the server was sent so far."""
        with urllib.request.urlopen(self.url, timeout=30) as reply:
            found: list[tuple[float, str, bool]] = json.load(reply)
        return found

    def until(self, many: int) -> None:
        """Waits for so many requests."""
        while len(self.asked()) < many:
            time.sleep(0.1)

    def processes(self, name: bytes) -> list[int]:
        """Ray's processes of this name that belong to this case."""
        found = []
        for entry in filter(str.isdecimal, os.listdir("/proc")):
            try:
                ours = self.url.encode() in Path(f"/proc/{entry}/environ").read_bytes()
                if ours and Path(f"/proc/{entry}/cmdline").read_bytes().startswith(name):
                    found.append(int(entry))
            except OSError:
                continue
        return found

    def end(self) -> None:
        """Stops all of it."""
        if self.nodes:  # Not gracefully, which takes half a minute each.
            for node in [*self.nodes, self.made.head_node]:
                self.made.remove_node(node, allow_graceful=False)
        self.server.kill()


def _in_a_second(times: list[float], first: int) -> int:
    return sum(1 for at in times[first : first + 400] if at - times[first] < 1)


def told(bench: Bench, status: int) -> str:
    """One line of the table."""
    asked = bench.asked()
    ok = sorted(at for at, _row, admitted in asked if admitted)
    counts = Counter(row for _at, row, admitted in asked if admitted)
    out = [json.loads(line)["id"] for line in (bench.folder / "out.jsonl").open()]
    lost, doubled = bench.rows - len(set(out)), len(out) - len(set(out))
    twice = sum(counts.values()) - len(counts)
    most = max(_in_a_second(ok, n) for n in range(len(ok)))
    later = max(_in_a_second(ok, n) for n in range(len(ok)) if ok[n] > ok[0] + 10)
    steady = [at for at in ok if ok[0] + 5 <= at < ok[-1] - 2]
    used = len(steady) / (steady[-1] - steady[0]) / (bench.rpm / 60)
    refused = sum(not admitted for _at, _row, admitted in asked) / len(asked)
    return (f"exit {status}, lost {lost}, doubled {doubled}, sent twice {twice}, {100 * used:5.1f} % of the limit, "
            f"429s {100 * refused:.2f} %, at most {most} in a second, {later} after the first ten")  # fmt: skip


def case(folder: Path, name: str, rows: int, rpm: float, pause: float) -> None:
    """Runs one case and prints its line."""
    bench = Bench(folder / name.replace(" ", "-"), rows, rpm)
    try:
        words = ("--on", f"ray={bench.cluster(3)}")
        process = bench.start(*words)
        bench.until(rows // 3)
        if name == "a worker is killed":
            os.kill(bench.processes(b"ray::_task")[0], signal.SIGKILL)
        elif name == "the hub is killed":
            os.kill(bench.processes(b"ray::_HubActor")[0], signal.SIGKILL)
        elif name == "a node is killed":
            bench.made.remove_node(bench.nodes.pop(), allow_graceful=False)
        elif name == "the driver is killed":
            process.kill()
            process.wait()
            process = bench.start(*words)
        elif name == "a worker sleeps":
            worker = bench.processes(b"ray::_task")[0]
            os.kill(worker, signal.SIGSTOP)
            time.sleep(pause)
            os.kill(worker, signal.SIGCONT)
        status = process.wait()
        print(f"{name:22} {told(bench, status)}", flush=True)
    finally:
        bench.end()


def beside(folder: Path, rows: int) -> None:
    """The cost of Ray on one machine."""
    for name, on in (("plain", ()), ("ray", ("--on", "ray"))):
        bench = Bench(folder / name, rows, 0)
        try:
            began = time.monotonic()
            assert bench.start(*on).wait() == 0, (bench.folder / "log").read_text()
            took = time.monotonic() - began
            asked = [at for at, *_ in bench.asked()]
            rate = len(asked) / (max(asked) - min(asked))
            print(
                f"{name:6} {rows:,} rows without a limit: {took:.1f} s in all, {rate:,.0f} rows/s while it sent"
            )
        finally:
            bench.end()


def hub(workers: int, seconds: float) -> None:
    """What a request costs the hub: its workers stand in the same process, and calls are pickled."""
    import pickle

    import uvloop

    from batcher.cluster.hub import Hub
    from batcher.cluster.link import Link
    from batcher.job.job import Limits
    from batcher.limits.port import ExchangeOutcome

    turns = sent = size = 0

    async def call(turn: object) -> object:
        nonlocal turns, size
        told = pickle.dumps(turn)
        answer = pickle.dumps(one.report(pickle.loads(told)))
        turns, size = turns + 1, size + len(told) + len(answer)
        await asyncio.sleep(0)
        return pickle.loads(answer)

    async def send(link: Link) -> None:
        nonlocal sent
        gate = link.gate("m")
        while True:
            ticket = await gate.enter(100.0)
            await asyncio.sleep(0.3)
            sent += 1
            gate.leave(ticket, ExchangeOutcome("answered", 0.3, 100.0))

    one = Hub(lambda _model: Limits(concurrency=20_000, rpm=600_000), Limits(), 3600.0)

    async def work() -> None:
        links = [Link(call, n, n + 1, lambda: None) for n in range(workers)]
        tasks = [asyncio.create_task(send(link)) for link in links for _ in range(400)]
        tasks += [asyncio.create_task(link.run()) for link in links]
        await asyncio.sleep(3)
        before, began, cpu = (turns, sent, size), time.monotonic(), time.process_time()
        await asyncio.sleep(seconds)
        took, cpu = time.monotonic() - began, time.process_time() - cpu
        calls, rows, told = (now - then for now, then in zip((turns, sent, size), before))
        print(f"hub and {workers} workers in one process, 4,000 in flight of 0.3 s: {rows / took:,.0f} requests/s, "
              f"{calls / took:,.0f} calls/s, {1e6 * cpu / rows:,.0f} us of CPU and {told / rows:,.0f} bytes a request")
        for task in tasks:
            task.cancel()

    uvloop.run(work())


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rows, a shorter sleep")
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    parser.add_argument("-k", default="", help="only cases with this in their name")
    given = parser.parse_args()
    if given.serve is not None:
        serve(given.serve)
        return
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    rows, pause = (1500, 10.0) if given.quick else (6000, 60.0)
    names = ("all is well", "a worker is killed", "the hub is killed", "a node is killed", "the driver is killed", "a worker sleeps")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        print(f"three nodes of one CPU, 6,000 requests a minute, {rows:,} rows of {LATENCY:g} s:")
        for name in names:
            if given.k in name:
                case(Path(folder), name, rows, 6000.0, pause)
        if given.k in "hub alone":
            hub(10, 10.0)
        if given.k in "beside plain":
            beside(Path(folder), 20_000)


if __name__ == "__main__":
    main()
