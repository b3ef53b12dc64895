"""Rows a second of the whole command, beside a loop of aiohttp as one would write it by hand.

Both send the same rows to the same server and write what comes back to a file; batcher does so with
journal, limits, retries and live view. They take turns, so that both meet the same machine, and each
is measured as a whole process, from its start to its end. Client and server have a core each.

The server is one of raw asyncio (uvloop): it looks for the end of a request and answers with the same
bytes, at once or after a while. Its own CPU time is printed: a server that is busy all the time would
be what is measured.
"""

import argparse
import asyncio
import contextlib
import json
import os
import pty
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

SAID = "The customer was charged twice and asks for the money back; this is about billing. " * 3
USAGE = {"prompt_tokens": 40, "completion_tokens": 60, "total_tokens": 100}
CHOICE = {"index": 0, "message": {"role": "assistant", "content": SAID}, "finish_reason": "stop"}
ANSWER = json.dumps(
    {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m", "choices": [CHOICE], "usage": USAGE}
).encode()  # fmt: skip
HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: Wed, 25 Nov 2026 12:00:00 GMT\r\n"
    b"X-Request-Id: 7d1c3a52\r\nContent-Length: %d\r\n\r\n"
)


# The server


class Origin(asyncio.Protocol):
    """Answers each POST with the same bytes, each GET with what was counted."""

    latency = 0.0
    slow = 0.0  # Every thousandth takes so long.
    received = flying = most = 0
    first = last = last_fast = 0.0

    def connection_made(self, transport):
        self.transport, self.buffer, self.wanted = transport, b"", 0

    def data_received(self, data):
        self.buffer = self.buffer + data if self.buffer else data
        while True:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self.buffer[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self.buffer) < end + 4 + length:
                return
            self.buffer = self.buffer[end + 4 + length :]
            self.request(head)

    def request(self, head):
        of = Origin
        if head.startswith(b"get"):
            told = {"received": of.received, "most": of.most, "first": of.first, "last": of.last,
                    "fast": of.last_fast, "cpu": time.process_time()}  # fmt: skip
            body = json.dumps(told).encode()
            self.transport.write(HEAD % len(body) + body)
            of.received = of.most = 0
            of.first = of.last = 0.0
            return
        of.received += 1
        of.flying += 1
        of.most = max(of.most, of.flying)
        of.first = of.first or time.monotonic()
        slow = bool(of.slow) and of.received % 1000 == 500
        wait = of.slow if slow else of.latency
        if wait:
            asyncio.get_running_loop().call_later(wait, self.answer, slow)
        else:
            self.answer(slow)

    def answer(self, slow):
        Origin.flying -= 1
        Origin.last = time.monotonic()
        if not slow:
            Origin.last_fast = Origin.last
        if not self.transport.is_closing():
            self.transport.write(HEAD % len(ANSWER) + ANSWER)


def serve(latency, slow, certificate):
    import uvloop

    async def main():
        Origin.latency, Origin.slow = latency, slow
        context = None
        if certificate:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(certificate)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Origin, "127.0.0.1", 0, backlog=8192, ssl=context)
        print(server.sockets[0].getsockname()[1], flush=True)
        await loop.run_in_executor(None, sys.stdin.read)

    uvloop.run(main())


# What one would write by hand


async def bare(url, source, target, in_flight):
    import aiohttp

    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), headers={"Authorization": "Bearer none"}
    ) as session:
        with open(source) as rows, open(target, "w") as out:

            async def work():
                for line in rows:
                    row = json.loads(line)
                    message = {"role": "user", "content": row["prompt"]}
                    body = {"model": "m", "messages": [message]}
                    async with session.post(f"{url}/chat/completions", json=body) as response:
                        answer = await response.json()
                    row["content"] = answer["choices"][0]["message"]["content"]
                    row.update(answer["usage"])
                    out.write(json.dumps(row) + "\n")

            await asyncio.gather(*(work() for _ in range(in_flight)))


# The event loop while it runs at full rate


def probe(who, source, target, in_flight):
    """Runs one of them in this process; prints how late a timer of 5 ms was, in ms."""
    import uvloop

    late = []

    async def look():
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.005)
            late.append(1000 * (time.perf_counter() - began - 0.005))

    async def main():
        looking = asyncio.create_task(look())
        if who == "bare":
            await bare(os.environ["OPENAI_BASE_URL"], source, target, int(in_flight))
        else:
            from batcher.job.job import Job
            from batcher.runtime.runner import Runner

            asked = {"concurrency": (in_flight,), "overwrite": True, "quiet": True}
            await Runner(Job.of(inputs=[source], output=target, models=["m"], **asked)).run()
        looking.cancel()

    uvloop.run(main()) if who == "batcher" else asyncio.run(main())
    late.sort()
    told = {"p50": late[len(late) // 2], "p99": late[int(0.99 * len(late))], "max": late[-1]}
    print(json.dumps(told), flush=True)


# The bench


class Bench:
    """Starts servers and contestants, each with a core of its own."""

    def __init__(self, folder):
        self.folder = folder
        cores = sorted(os.sched_getaffinity(0))
        self.client, self.server = {cores[0]}, {cores[-1]}
        self.certificate = folder / "server.pem"

    @contextlib.contextmanager
    def origin(self, *, latency=0.0, slow=0.0, certificate=""):
        words = [sys.executable, __file__, "--serve", str(latency), str(slow), str(certificate)]
        self.env = {**os.environ, "OPENAI_API_KEY": "none"}
        if certificate:
            self.env["SSL_CERT_FILE"] = str(certificate)
        with subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            preexec_fn=lambda: os.sched_setaffinity(0, self.server),
        ) as process:  # fmt: skip
            scheme = "https" if certificate else "http"
            self.url = f"{scheme}://127.0.0.1:{int(process.stdout.readline())}/v1"
            self.env["OPENAI_BASE_URL"] = self.url
            try:
                yield
            finally:
                process.stdin.close()

    def counted(self):
        context = ssl._create_unverified_context() if self.url.startswith("https") else None
        with urllib.request.urlopen(f"{self.url}/counted", context=context) as answer:
            return json.load(answer)

    def rows(self, count):
        path = self.folder / f"{count}.jsonl"
        if not path.exists():
            with path.open("w") as file:
                for n in range(count):
                    text = f"Ticket {n}: I was charged twice for my subscription. Which team is it for?"
                    file.write(json.dumps({"id": n, "prompt": text}) + "\n")
        return path

    def run(self, who, rows, in_flight, *more):
        """Seconds, CPU seconds, peak MB, and what the server counted."""
        source, target = self.rows(rows), self.folder / f"out-{who}.jsonl"
        if who == "batcher":
            words = [str(Path(sys.executable).with_name("batcher")), "run", str(source), "-o", str(target),
                     "-m", "m", "--concurrency", str(in_flight), "--overwrite",
                     *(("--rpm", "100000000", "--tpm", "1000000000000") if not more else more)]  # fmt: skip
        else:
            words = [sys.executable, __file__, "--bare", self.url, source, target, str(in_flight)]
        before = self.counted()["cpu"]
        ours, its = pty.openpty()  # With the live view, as on a terminal.
        began = time.monotonic()
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=its, stderr=its,
            env=self.env,
            preexec_fn=lambda: os.sched_setaffinity(0, self.client),
        )  # fmt: skip
        os.close(its)
        seen = []
        drain = threading.Thread(target=_drain, args=(ours, seen))
        drain.start()
        _pid, status, used = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        drain.join()
        os.close(ours)
        told = self.counted()
        with target.open("rb") as file:
            written = sum(1 for _ in file)
        if process.returncode or written != rows:
            sys.stdout.write(b"".join(seen).decode(errors="replace")[-2000:])
            raise SystemExit(f"{who}: exit status {process.returncode}, {written:,} of {rows:,} rows")
        cpu = used.ru_utime + used.ru_stime
        return {
            "seconds": seconds,
            "cpu": cpu,
            "peak": used.ru_maxrss / 1024,
            "sending": told["last"] - told["first"],
            "fast": told["fast"] - told["first"],
            "server": (told["cpu"] - before) / seconds,
            "most": told["most"],
            "received": told["received"],
        }


def _drain(handle, seen):
    with contextlib.suppress(OSError):
        while block := os.read(handle, 1 << 16):
            seen.append(block)


def spread(numbers, form=".2f"):
    low, mid, high = min(numbers), statistics.median(numbers), max(numbers)
    return f"{mid:{form}} ({low:{form}}–{high:{form}})"


def beside(bench, rows, in_flight, rounds, title=""):
    told = {"bare": [], "batcher": []}
    for _ in range(rounds):
        for who, found in told.items():
            found.append(bench.run(who, rows, in_flight))
    pairs = list(zip(told["bare"], told["batcher"], strict=True))
    faster = [one["seconds"] / ours["seconds"] for one, ours in pairs]
    cpu = [ours["cpu"] / one["cpu"] for one, ours in pairs]
    print(f"{title}{in_flight} in flight, {rows:,} rows, {rounds} rounds:")
    for who, found in told.items():
        rate = [rows / one["seconds"] for one in found]
        each = [one["cpu"] / rows * 1000 for one in found]
        peak, server = max(one["peak"] for one in found), max(one["server"] for one in found)
        print(f"  {who:8} {spread(rate, ',.0f')} rows/s, {spread(each)} CPU s per 1,000, "
              f"peak {peak:.0f} MB; server busy {server:.0%}")  # fmt: skip
    print(f"  batcher ÷ bare: rows/s {spread(faster)}, CPU {spread(cpu)}", flush=True)


def start(bench, rounds):
    """A run of hardly any rows: what there is to a command before and after its rows."""
    told = {"bare": [], "batcher": []}
    with bench.origin():
        for _ in range(rounds):
            for who, found in told.items():
                found.append(bench.run(who, 100, 64)["seconds"])
    print(f"100 rows, 64 in flight, {rounds} rounds: bare {spread(told['bare'])} s, "
          f"batcher {spread(told['batcher'])} s", flush=True)  # fmt: skip


def waiting(bench, in_flight, rounds):
    """10,000 rows of a second each: ideally rows ÷ in flight seconds, and one for the first row."""
    told = {"bare": [], "batcher": []}
    with bench.origin(latency=1.0):
        for _ in range(rounds):
            for who, found in told.items():
                found.append(bench.run(who, 10_000, in_flight))
    print(f"10,000 rows of 1 s, {in_flight:,} in flight, {rounds} rounds:")
    for who, found in told.items():
        first = 1.0 if who == "batcher" else 0.0
        whole = spread([one["seconds"] for one in found])
        rest = spread([one["sending"] - first for one in found])
        cpu = spread([one["cpu"] for one in found])
        of = "first answer" if first else "first request"
        print(f"  {who:8} {whole} s in all, from the {of} to the last answer {rest} s; CPU {cpu} s; most in flight "
              f"{max(one['most'] for one in found):,}, peak {max(one['peak'] for one in found):.0f} MB", flush=True)  # fmt: skip


def slow_rows(bench, rows, seconds):
    """One row in a thousand takes very long: the others must not."""
    print(f"{rows:,} rows of 50 ms, 256 in flight; of the second run every thousandth takes {seconds:g} s:")
    for slow in (0.0, seconds):
        with bench.origin(latency=0.05, slow=slow):
            told = bench.run("batcher", rows, 256)
        print(f"  all fast rows answered after {told['fast']:.1f} s, the last row after {told['sending']:.1f} s; "
              f"peak {told['peak']:.0f} MB", flush=True)  # fmt: skip


def lag(bench, rows):
    print(f"event loop at full rate, {rows:,} rows, start and finish included; how late a timer is:")
    for in_flight in (16, 64, 256):
        for who in ("bare", "batcher"):
            with bench.origin():
                target = bench.folder / f"probed-{who}.jsonl"
                words = [sys.executable, __file__, "--probe", who, bench.rows(rows), target, str(in_flight)]
                done = subprocess.run(
                    words, check=True, capture_output=True, env=bench.env,
                    preexec_fn=lambda: os.sched_setaffinity(0, bench.client),
                )  # fmt: skip
            told = json.loads(done.stdout)
            print(f"  {in_flight:3} in flight, {who:8} {told['p50']:.1f} ms (p50), {told['p99']:.1f} ms (p99), "
                  f"{told['max']:.0f} ms at most", flush=True)  # fmt: skip


def certified(path):
    """A certificate for 127.0.0.1, signed by itself; False where there is no openssl."""
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
             "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "-", "-out", "-"]  # fmt: skip
    try:
        made = subprocess.run(words, check=True, capture_output=True)
    except OSError:
        return False
    path.write_bytes(made.stdout)
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one round of fewer rows")
    parser.add_argument("--only", default="", help="flat, start, tls, waiting, slow or lag")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--bare", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--probe", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve(float(asked.serve[0]), float(asked.serve[1]), asked.serve[2])
        return
    if asked.bare:
        asyncio.run(bare(*asked.bare[:3], int(asked.bare[3])))
        return
    if asked.probe:
        probe(*asked.probe)
        return
    rows, rounds = (20_000, 1) if asked.quick else (100_000, 5)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        if asked.only in ("", "flat"):
            with bench.origin():
                for in_flight in (64, 256):
                    beside(bench, rows, in_flight, rounds)
        if asked.only in ("", "start"):
            start(bench, rounds)
        if asked.only in ("", "tls"):
            if certified(bench.certificate):
                with bench.origin(certificate=bench.certificate):
                    beside(bench, rows, 64, min(rounds, 3), "TLS, ")
            else:
                print("TLS: not measured, there is no openssl to make a certificate with")
        if asked.only in ("", "waiting"):
            for in_flight in (1000, 5000):
                waiting(bench, in_flight, 1 if asked.quick else 3)
        if asked.only in ("", "slow"):
            slow_rows(bench, 10_000 if asked.quick else 20_000, 15.0 if asked.quick else 60.0)
        if asked.only in ("", "lag"):
            lag(bench, rows // 2)


if __name__ == "__main__":
    main()
