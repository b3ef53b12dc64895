"""Makes the golden folders: `python -m tests.golden.make [--overwrite] [NAME…]`, in the repository.

A golden folder is worth something because an earlier version made it. Make one again only where its job is to be
another one, with the version that its `python` names, and never because a test of it fails.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.golden.folders import (
    HERE,
    Golden,
    files_of,
    left_in,
    received,
    rows_of,
    stats_of,
    through,
)
from tests.support.program import environment

AT = Path("/tmp/golden")
"""Where the jobs are done; their `run.json` name it."""
ROOT = HERE.parents[1]
FIRST = "0c88646"
"""A version whose `run.json` had no version, no seal and no IDs of runs."""

TEXTS = (
    "I was billed twice for order {n}.",
    "The app crashes when I open page {n}.",
    "Please add a dark mode, it would help {n} of us.",
    'He said "ok, {n}",\nand nothing happened.',
    "Bestellung {n} ist nicht angekommen – größter Ärger 😠",
    "What is {n} * 7?",
)
ASK = "Which label fits, of bug, billing, feature, other? Ticket: {{ text }}"
ALIKE = "Take note {{ text }}"


def tickets(count: int, begin: int = 0) -> list[dict[str, Any]]:
    """Rows of an input."""
    return [
        {"id": f"T-{n}", "text": TEXTS[n % len(TEXTS)].format(n=n), "priority": n % 4}
        for n in range(begin, begin + count)
    ]


def jsonl(rows: list[dict[str, Any]], name: str = "in.jsonl") -> Callable[[Path], None]:
    """Writes rows as JSONL."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return lambda job: (job / name).write_text(lines)


def parquet(rows: list[dict[str, Any]]) -> Callable[[Path], None]:
    """Writes rows as Parquet."""
    return lambda job: pq.write_table(pa.Table.from_pylist(rows), job / "in.parquet")


def csv(rows: list[dict[str, Any]]) -> Callable[[Path], None]:
    """Writes rows as CSV."""

    def quoted(cell: object) -> str:
        return '"' + str(cell).replace('"', '""') + '"'

    lines = [",".join(rows[0]), *(",".join(map(quoted, row.values())) for row in rows)]
    return lambda job: (job / "in.csv").write_text("\n".join(lines) + "\n")


def batch(count: int) -> Callable[[Path], None]:
    """Writes the input of a batch, as OpenAI takes it."""

    def line(n: int) -> dict[str, Any]:
        text = TEXTS[n % len(TEXTS)].format(n=n)
        body = {"model": "sim-small", "messages": [{"role": "user", "content": text}]}
        return {
            "custom_id": f"c-{n}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": body,
        }

    return jsonl([line(n) for n in range(count)])


def answers(count: int) -> Callable[[Path], None]:
    """Writes the output of a batch, as OpenAI gives it."""

    def line(n: int) -> dict[str, Any]:
        message = {"role": "assistant", "content": f"From the batch: {n}", "refusal": None}
        usage = {"prompt_tokens": 10 + n, "completion_tokens": 4, "total_tokens": 14 + n}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        body = {"id": f"chatcmpl-{n}", "object": "chat.completion", "created": 1_750_000_000 + n,
                "model": "sim-small", "choices": [choice], "usage": usage}  # fmt: skip
        response = {"status_code": 200, "request_id": f"batch-{n}", "body": body}
        return {"id": f"batch_req_{n}", "custom_id": f"c-{n}", "response": response, "error": None}

    return jsonl([line(n) for n in range(count)], "answers.jsonl")


@dataclass(frozen=True)
class Run:
    """One start of a job.

    Attributes:
        words: More words of the command.
        before: What the user does before it.
        faults: Of the gateway.
        stop: A signal, and after how many lines of the journal it is sent.
        status: The exit status it must have.
    """

    words: str = ""
    before: tuple[Callable[[Path], None], ...] = ()
    faults: str = ""
    stop: tuple[signal.Signals, int] | None = None
    status: int = 0


@dataclass(frozen=True)
class Scenario:
    """A job: its runs so far, and how it goes on.

    Attributes:
        words: The command that all runs have in common.
        runs: Runs that lead to the start.
        after: What happens to the folder then.
        more: Words that the continuing command has besides.
        status: Exit status of that.
        version: Commit that makes the start; "" for the present one.
        free: Columns of new rows in which two runs may differ: a split takes whichever
            model is free, and which of equal requests came first is in their IDs.
    """

    words: list[str]
    runs: tuple[Run, ...]
    after: tuple[Callable[[Path], None], ...] = ()
    more: str = ""
    status: int = 0
    version: str = ""
    free: tuple[str, ...] = ()


def prices(job: Path) -> None:
    """Prices in the user's own file, so that no catalogue is asked for."""
    each = {"input": 0.1, "cached": 0.025, "output": 0.4}
    models = ("sim-small", "sim-medium", "sim-large")
    (job / "prices.json").write_text(json.dumps(dict.fromkeys(models, each)))


def labels(job: Path) -> None:
    """A JSON Schema of an answer."""
    label = {"type": "string", "enum": ["bug", "billing", "feature", "other"]}
    schema = {"type": "object", "properties": {"label": label}, "required": ["label"]}
    (job / "schema.json").write_text(json.dumps(schema | {"additionalProperties": False}))


def damage(job: Path) -> None:
    """Changes a byte in the fifth line of the journal and tears its last one."""
    [segment] = job.glob("*.run/journal-*.jsonl")
    lines = segment.read_bytes().splitlines(keepends=True)
    lines[4] = lines[4].replace(b'"attempts":1', b'"attempts":2')
    lines[-1] = lines[-1][: len(lines[-1]) // 2]
    segment.write_bytes(b"".join(lines))


def asked(*words: str, to: str = "out.jsonl", models: str = "-m sim-small", of: str = "in.jsonl",
          prompt: str = ASK) -> list[str]:  # fmt: skip
    """A command."""
    template = ["--prompt", prompt] if prompt else []
    return ["run", of, "-o", to, *models.split(), *template, "--prices", "prices.json",
            "--param", "max_tokens=40", *words]  # fmt: skip


INT, KILL = signal.SIGINT, signal.SIGKILL
BOTH = "-m sim-small -m sim-medium"
FEW = ("--concurrency", "2")

SCENARIOS = {
    "jsonl": Scenario(asked(models=BOTH), (Run(before=(jsonl(tickets(16)),)),)),
    "parquet": Scenario(
        asked("--keep-raw", "--param", "logprobs=true", "--labels", "bug,billing,feature,other",
              of="in.parquet", to="out.parquet"),
        (Run(before=(parquet(tickets(20)),)),),
    ),
    "csv": Scenario(
        asked("--labels", "bug,billing,feature,other", of="in.csv", to="out.csv"),
        (Run(before=(csv(tickets(20)),)),),
    ),
    "parts": Scenario(
        asked(models=BOTH, of="in.parquet", to="out/"), (Run(before=(parquet(tickets(16)),)),)
    ),
    "batch": Scenario(asked(models="", prompt=""), (Run(before=(batch(20),)),)),
    "stream": Scenario(asked("--stream"), (Run(before=(jsonl(tickets(20)),)),)),
    "failures": Scenario(
        asked("--max-retries", "1"),
        (Run(before=(jsonl(tickets(24)),), status=3,
             faults="context_length=0.1 truncated=0.1 refused=0.1 filtered=0.1 empty=0.1 http_500=0.1"),),
        status=3,
    ),
    "retry": Scenario(
        asked(of="in.csv", to="out.csv"),
        (Run(before=(csv(tickets(20)),), status=3, faults="truncated=0.2 refused=0.2 filtered=0.2"),),
        more="--retry refused truncated",
        status=3,
    ),
    "budget": Scenario(
        asked("--concurrency", "1"),
        (Run("--max-cost 0.00022", before=(jsonl(tickets(30)),), status=4),),
        more="--max-cost 1",
    ),
    "fallback": Scenario(
        asked("--route", "fallback", *FEW, models=BOTH),
        (Run(before=(jsonl(tickets(30)),), stop=(INT, 14), faults="refused=0.3", status=130),),
    ),
    "split": Scenario(
        asked("--route", "split", *FEW, models=BOTH, to="out.csv"),
        (Run(before=(jsonl(tickets(30)),), stop=(INT, 12), status=130),),
        free=("model", "content", "completion_tokens", "total_tokens", "cost_usd", "response_model",
              "request_id"),
    ),
    "samples": Scenario(
        asked("--samples", "3", "--param", "temperature=0.7", *FEW, to="out.parquet"),
        (Run(before=(jsonl(tickets(12)),), stop=(INT, 14), status=130),),
        free=("request_id",),
    ),
    "models": Scenario(
        asked(*FEW, models=BOTH),
        (Run(before=(jsonl(tickets(20)),), stop=(INT, 15), status=130),),
    ),
    "killed": Scenario(
        asked("--max-cost", "1", *FEW, models=BOTH),
        (Run(before=(jsonl(tickets(20)),), stop=(KILL, 15), status=-9),),
    ),
    "parts_interrupted": Scenario(
        asked(*FEW, to="out/"),
        (Run(before=(jsonl(tickets(24)),), stop=(INT, 10), status=130),),
    ),
    "batch_interrupted": Scenario(
        asked(*FEW, models="", prompt=""),
        (Run(before=(batch(24),), stop=(INT, 10), status=130),),
    ),
    "from_batch": Scenario(
        asked("--from-batch", "answers.jsonl", *FEW, models="", prompt=""),
        (Run(before=(batch(24), answers(8)), stop=(INT, 14), status=130),),
    ),
    "reask": Scenario(
        asked("--schema", "schema.json", "--reask", "3", *FEW),
        (Run(before=(labels, jsonl(tickets(30))), stop=(INT, 10), faults="invalid=0.5", status=130),),
        status=3,
    ),
    "equal": Scenario(
        asked("--param", "temperature=0", *FEW),
        (Run(before=(jsonl([*tickets(16), *tickets(16)]),), stop=(INT, 8), status=130),),
    ),
    "damaged": Scenario(asked(), (Run(before=(jsonl(tickets(20)),)),), after=(damage,)),
    "moved": Scenario(
        asked(),
        (Run(before=(jsonl(tickets(20)),)),
         Run(before=(jsonl([*tickets(2, 20), *tickets(20)[::-1]]),))),
        after=(jsonl([*tickets(2, 20), *tickets(20)[::-1], *tickets(3, 22)]),),
    ),
    "kept": Scenario(
        asked(),
        (Run(before=(jsonl(tickets(20)),)),
         Run("--system Briefly. --changed keep", before=(jsonl(tickets(22)),))),
        after=(jsonl(tickets(25)),),
        more="--system Briefly.",
    ),
    "overwrite": Scenario(
        asked(*FEW),
        (Run(before=(jsonl(tickets(20)),)),
         Run("--overwrite --system Briefly.", stop=(KILL, 8), status=-9)),
        more="--system Briefly.",
    ),
    "first_version": Scenario(
        asked(*FEW, models=BOTH),
        (Run(before=(jsonl(tickets(20)),), stop=(INT, 15), status=130),),
        version=FIRST,
    ),
    "first_version_finished": Scenario(
        asked("--labels", "bug,billing,feature,other"),
        (Run(before=(jsonl(tickets(20)),)),),
        version=FIRST,
    ),
}  # fmt: skip


@contextlib.contextmanager
def gateway(speed: float, faults: str) -> Iterator[str]:
    """The simulated gateway of the present version."""
    words = [word for fault in faults.split() for word in ("--fault", fault)]
    with subprocess.Popen(
        [sys.executable, "-m", "batcher", "simulate", "--port", "0", "--speed", str(speed),
         "--until-stdin-closes", *words],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


def lines_in(job: Path) -> int:
    """How many lines the journal has."""
    return sum(path.read_bytes().count(b"\n") for path in job.glob("*.run/journal-*.jsonl"))


def start(run: Run, words: list[str], job: Path, source: Path) -> None:
    """Does one run."""
    for act in run.before:
        act(job)
    with gateway(2 if run.stop else 0, run.faults) as url:
        process = subprocess.Popen(
            [sys.executable, "-m", "batcher", *words, *run.words.split()],
            cwd=job, env=environment(PYTHONPATH=str(source), **through(url)), stderr=subprocess.PIPE,
        )  # fmt: skip
        if run.stop is not None:
            number, lines = run.stop
            aside = "--overwrite" not in words + run.words.split()
            while process.poll() is None and not (aside and lines_in(job) >= lines):
                aside = aside or any(job.glob("*.run/earlier/journal-*"))
                time.sleep(0.001)
            process.send_signal(number)
        _, said = process.communicate()
    assert process.returncode == run.status, (process.returncode, said.decode())


def source_of(version: str) -> Path:
    """The tree of a version."""
    if not version:
        return ROOT
    tree = AT / version
    if not tree.exists():
        packed = subprocess.run(
            ["git", "archive", version], cwd=ROOT, capture_output=True, check=True
        )
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
            archive.extractall(tree, filter="data")
    return tree


def make(name: str) -> None:
    """Makes one golden folder."""
    of, job, source = SCENARIOS[name], AT / name, source_of(SCENARIOS[name].version)
    shutil.rmtree(job, ignore_errors=True)
    job.mkdir(parents=True)
    prices(job)
    for run in of.runs:
        start(run, of.words, job, source)
    for act in of.after:
        act(job)
    for reserve in job.glob("*.run/reserve*"):  # 64 MB, which the next start removes unread.
        reserve.unlink()
    shutil.rmtree(HERE / name, ignore_errors=True)
    shutil.copytree(job, HERE / name / "start")
    words = [*of.words, *of.more.split()]
    output = words[words.index("-o") + 1].rstrip("/")
    golden = Golden(
        HERE / name, words, output, of.status, {}, {}, list(of.free), {}, stats_of(job)
    )
    once, again = (finish(golden, AT / f"{name}-finished-{n}") for n in range(2))
    # What the clock makes different was sent for.
    for file, path in files_of(once / output).items():
        other = files_of(again / output)[file]
        pairs = zip(rows_of(path), rows_of(other), strict=True)
        golden.new[file] = [n for n, (row, then) in enumerate(pairs) if row != then]
    if golden.sent or of.version or not (job / output).exists():
        copy = shutil.copytree if (once / output).is_dir() else shutil.copy2
        (HERE / name / "expected").mkdir()
        copy(once / output, HERE / name / "expected" / output)
    golden.save()
    sys.stderr.write(f"{name}: {lines_in(job)} lines, sends {golden.sent}, {golden.new}\n")


def finish(golden: Golden, at: Path) -> Path:
    """Finishes a copy of a golden folder with the present version."""
    shutil.rmtree(at, ignore_errors=True)
    job = golden.copy(at)
    with gateway(0, "") as url:
        ended = subprocess.run(
            [sys.executable, "-m", "batcher", *golden.words], cwd=job, capture_output=True,
            env=environment(**through(url), PYTHONPATH=str(ROOT)), check=False,
        )  # fmt: skip
        assert ended.returncode == golden.status, (ended.returncode, ended.stderr.decode())
        golden.sent.update(received(url))
        golden.left.update(left_in(job))
    time.sleep(1)  # Lines of a batch tell of seconds.
    return job


def main() -> None:
    """Makes what is named, or all that is not there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--overwrite", action="store_true")
    asked = parser.parse_args()
    for name in asked.names or SCENARIOS:
        if (HERE / name).exists() and not asked.overwrite:
            sys.stderr.write(f"{name} is there; --overwrite makes it again.\n")
        else:
            make(name)


if __name__ == "__main__":
    main()
