"""The main job at size: every row once for every model, and the gateway's ledger to the last token."""

import resource
import time
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batcher.simulate.server import running
from batcher.simulate.settings import Simulation
from tests.support.program import batcher, read_jsonl, write_jsonl
from tests.torture import long_only, tell, times

MODELS = ("sim-small", "sim-medium", "sim-large")
# Five of a hundred requests fail, each in its way.
FAULTS = {"http_500": 0.02, "cut_json": 0.01, "disconnect": 0.01, "html": 0.01}
ROWS = times(300, 10_000)


@pytest.mark.parametrize("suffix", [pytest.param("jsonl", marks=long_only), "parquet"])
def test_rows_times_models_come_out_and_the_ledgers_agree(tmp_path, suffix):
    """Nothing missing, nothing twice, nothing paid for that is not on the disk."""
    rows = [{"id": n, "prompt": f"Ticket {n}: my parcel is late"} for n in range(ROWS)]
    path = tmp_path / f"in.{suffix}"
    if suffix == "jsonl":
        write_jsonl(path, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=ROWS)
    words = [word for model in MODELS for word in ("-m", model)]
    with running(Simulation(speed=0, faults=FAULTS)) as gateway:
        began = time.monotonic()
        ended = batcher("run", path, "-o", f"out.{suffix}", *words, "--max-retries", "9",
                        cwd=tmp_path, url=gateway.url)  # fmt: skip
        seconds = time.monotonic() - began
        assert ended.returncode == 0, ended.stderr.decode()
        ledger = gateway.ledger.models
    path = tmp_path / f"out.{suffix}"
    out = read_jsonl(path) if suffix == "jsonl" else pq.read_table(path).to_pylist()
    assert [(r["id"], r["row"], r["model"]) for r in out] == [
        (n, n, model) for n in range(ROWS) for model in MODELS
    ]
    assert {r["status"] for r in out} == {"ok"}
    sums: dict[str, Counter[str]] = {model: Counter() for model in MODELS}
    for row in out:
        of = sums[row["model"]]
        of["received"] += row["attempts"]
        for kind in ("prompt", "completion", "cached", "reasoning"):
            of[kind] += row[f"{kind}_tokens"] or 0
    for model in MODELS:
        assert sums[model]["received"] == ledger[model].received
        for kind in ("prompt", "completion", "cached", "reasoning"):
            assert sums[model][kind] == ledger[model].tokens[kind], (model, kind)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    tell(f"main job, {suffix}", rows_out=len(out), received=sum(s["received"] for s in sums.values()),
         seconds=round(seconds, 1), peak_mb=peak)  # fmt: skip
