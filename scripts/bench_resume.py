"""What the journal costs, how long a second start takes until it sends, and a finish.

The run folder is written here, as a run of that size would have left it: every row answered but the
last one, results in order of completion (shuffled in windows of a thousand). For the largest size
the segments are holes of the right length with true sidecars, as a start does not read them.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import msgspec
import numpy as np

from batcher.job.job import Job
from batcher.plan.settings import settings_of
from batcher.read import line_index
from batcher.read.files import expand
from batcher.read.inputs import Inputs
from batcher.records import Outcome, Result
from batcher.write import index, sidecar
from batcher.write.journal import Journal
from batcher.write.manifest import Asked, Epoch, Manifest, now

LINE = 700
SEGMENT_LINES = 48_000
TEXT = "the customer was charged twice and asks for the money back " * 6


class First(BaseHTTPRequestHandler):
    """Notes when the first request comes, and answers it."""

    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        with contextlib.suppress(ConnectionResetError):  # It is killed where the start is all.
            super().handle()

    def do_POST(self) -> None:
        self.server.first.append(time.monotonic())
        self.rfile.read(int(self.headers["Content-Length"]))
        said = {"message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}
        body = json.dumps({"choices": [said], "usage": {"prompt_tokens": 5}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):  # The start was all that was measured.
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def written(folder: Path, rows: int, models: list[str], *, whole: bool, suffix: str) -> list[str]:
    """Input and run folder; returns the command that goes on."""
    path = folder / "in.jsonl"
    with path.open("w") as file:
        file.writelines(f'{{"id":{n},"prompt":"Ticket {n}"}}\n' for n in range(rows))
    run = folder / f"out.{suffix}.run"
    run.mkdir(mode=0o700)
    url = f"http://127.0.0.1:{PORT}/v1"
    words = ["run", "in.jsonl", "-o", f"out.{suffix}", "--base-url", url, "--quiet"]
    for model in models:
        words += ["-m", model]
    job = Job.of(inputs=["in.jsonl"], output=f"out.{suffix}", models=models, base_url=url)
    settings = msgspec.to_builtins(settings_of(job, f"{url}/chat/completions"))
    os.chdir(folder)
    pins = [msgspec.to_builtins(file.pin) for file in expand(["in.jsonl"])]
    epoch = Epoch(inputs=pins, settings=settings, runs=[RUN], started=now(), rows=rows)
    asked = Asked(models=tuple(models))
    Manifest(output=f"out.{suffix}", epochs=[epoch], asked=asked).save(run)
    inputs = Inputs(expand(["in.jsonl"]))
    deque(inputs.rows(), 0)
    line_index.save(run, inputs.pins, inputs.line_index)
    if whole:
        log = Journal(run, run=RUN)
        order = np.arange(rows - 1)
        rng = np.random.default_rng(0)
        for start in range(0, rows - 1, 1000):
            rng.shuffle(order[start : start + 1000])
        for row in order.tolist():
            for model in models:
                while log.full:
                    time.sleep(0.001)
                log.put(_result(row, model))
        log.close()
        return words
    made = np.zeros(SEGMENT_LINES, index.ENTRY)
    lines = (rows - 1) * len(models)
    for number, start in enumerate(range(0, lines, SEGMENT_LINES), 1):
        at = np.arange(start, min(start + SEGMENT_LINES, lines))
        entries = made[: len(at)].copy()
        entries["row"] = np.minimum(rows - 2, (at // len(models)) ^ 0x1FF)
        entries["model"] = at % len(models)
        entries["offset"] = (at - start) * LINE
        entries["length"], entries["segment"] = LINE - 1, number
        entries["key_high"] = entries["key_low"] = at
        segment = run / f"journal-{number:06}.jsonl"
        with segment.open("wb") as file:
            file.truncate(len(at) * LINE)
        sidecar.save(segment, index.Segment(number, models, [RUN], entries))
    return words


def journal_cost(folder: Path, rows: int) -> tuple[float, float]:
    """(CPU µs a row, MB/s) of writing results flat out, synced every 200 ms."""
    results = [_result(row, "a") for row in range(rows)]
    used, began = time.process_time(), time.monotonic()
    log = Journal(folder)
    for result in results:
        while log.full:
            time.sleep(0.001)
        log.put(result)
    log.close()
    seconds, size = time.monotonic() - began, (folder / "journal-000001.jsonl").stat().st_size
    return (time.process_time() - used) / rows * 1e6, size / seconds / 1e6


def _result(row: int, model: str) -> Result:
    return Result(
        row=row, model=model, sample=0, key=f"{row:032x}", status=Outcome.OK, custom_id=str(row),
        content=TEXT, finish_reason="stop", prompt_tokens=120, completion_tokens=90,
        total_tokens=210, latency_ms=950, attempts=1, http_status=200, response_model=model,
        request_id="req-123456789", created_at=1_790_000_000_000,
    )  # fmt: skip


def measured(
    folder: Path, words: list[str], server: HTTPServer, *, to_the_end: bool
) -> tuple[float, float, float]:
    """(seconds to the first request, seconds from there to the end, peak MB) of one start."""
    server.first = []
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "batcher", *words], cwd=folder)
    while not to_the_end and not server.first and process.poll() is None:
        time.sleep(0.005)
    if not to_the_end:
        process.kill()
    _pid, status, used = os.wait4(process.pid, 0)
    ended = time.monotonic()
    if not server.first or os.waitstatus_to_exitcode(status) not in (0, -9):
        raise SystemExit(f"ended with {os.waitstatus_to_exitcode(status)}")
    return server.first[0] - began, ended - server.first[0], used.ru_maxrss / 1024


def main() -> None:
    """Prints a line for each size."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a tenth of the sizes")
    parts = 10 if parser.parse_args().quick else 1
    server = HTTPServer(("127.0.0.1", PORT), First)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as name:
        cost, rate = journal_cost(Path(name), 40_000)
    print(f"journal: {cost:.1f} µs of CPU a row of {LINE} bytes, {rate:.0f} MB/s", flush=True)
    with tempfile.TemporaryDirectory() as name:
        words = written(Path(name), 1, ["a"], whole=True, suffix="parquet")
        first, _rest, peak = measured(Path(name), words, server, to_the_end=True)
    print(f"nothing done: first request after {first:.2f} s, peak {peak:.0f} MB", flush=True)
    for rows, models, whole, suffix in (
        (1_000_000 // parts, ["a"], True, "parquet"),
        (10_000_000 // parts, ["a", "b", "c"], False, "jsonl"),
    ):
        folder = Path(tempfile.mkdtemp(prefix="batcher-resume-"))
        try:
            words = written(folder, rows, models, whole=whole, suffix=suffix)
            first, rest, peak = measured(folder, words, server, to_the_end=whole)
            end = f", finished {rest:.1f} s later" if whole else ""
            what = f"{rows:,} rows × {len(models)} done"
            print(
                f"{what}: first request after {first:.2f} s{end}, peak {peak:.0f} MB", flush=True
            )
        finally:
            shutil.rmtree(folder)


PORT = 18431
RUN = "0123456789ab"

if __name__ == "__main__":
    main()
