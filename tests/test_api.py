"""`batcher.run` and `batcher.stream` from Python."""

import asyncio
import re
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import batcher
from batcher.job.job import Job
from batcher.simulate.server import running
from batcher.simulate.settings import Simulation
from tests.support.program import environment


@pytest.fixture
def gateway(monkeypatch):
    monkeypatch.delenv("AIHUBMIX_API_KEY", raising=False)
    with running(Simulation(speed=0)) as up:
        monkeypatch.setenv("OPENAI_BASE_URL", up.url)
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        yield up


def test_run_takes_dicts_and_returns_a_report(tmp_path, gateway):
    """Six lines to a result."""
    report = batcher.run(
        ({"q": f"What is {n} + 1?"} for n in range(5)),
        output=tmp_path / "out.parquet",
        models=["sim-small"],
        prompt="{{ q }}",
        params={"temperature": 0},
        concurrency=2,
    )
    assert report.exit_status == 0
    assert pq.read_table(tmp_path / "out.parquet")["q"].to_pylist()[0] == "What is 0 + 1?"


def test_run_takes_a_table_and_keeps_its_types(tmp_path, gateway):
    """Anything that speaks the Arrow stream interface."""
    table = pa.table({"q": ["a", "b"], "at": pa.array([1, 2], pa.timestamp("us"))})
    batcher.run(table, output=tmp_path / "out.parquet", models="sim-small", prompt="{{ q }}")
    out = pq.read_table(tmp_path / "out.parquet")
    assert out.schema.field("at").type == pa.timestamp("us")
    assert out["at"].to_pylist() == table["at"].to_pylist()


def test_run_works_where_a_loop_runs_already(tmp_path, gateway):
    """A notebook has a running loop."""

    async def cell():
        return batcher.run([{"prompt": "x"}], output=tmp_path / "o.jsonl", models=["sim-small"])

    assert asyncio.run(cell()).exit_status == 0


def test_stream_yields_every_result(tmp_path, gateway):
    """Also from an async iterable; nothing is left on the disk."""

    async def rows():
        for n in range(20):
            yield {"prompt": f"p {n}"}

    async def read():
        found = batcher.stream(rows(), models=["sim-small", "sim-large"])
        return [(result.row, result.model, result.status) async for result in found]

    got = asyncio.run(read())
    assert sorted(got) == sorted(
        (n, m, batcher.Outcome.OK) for n in range(20) for m in ("sim-small", "sim-large")
    )


def test_leaving_a_stream_early_stops_the_run(gateway):
    """What was not asked for is not paid for."""

    async def read():
        found = batcher.stream(({"prompt": f"p {n}"} for n in range(5000)), models=["sim-small"])
        async for _ in found:
            break
        await found.aclose()

    asyncio.run(read())
    assert gateway.ledger.models["sim-small"].received < 5000


def test_what_cannot_be_done_is_a_job_error(tmp_path, gateway):
    """The same sentences as on the command line."""
    with pytest.raises(batcher.JobError, match="no option 'modles'"):
        batcher.run([{"prompt": "x"}], output=tmp_path / "o.jsonl", modles=["m"])
    with pytest.raises(batcher.JobError, match="item 2 is a int"):
        batcher.run([{"prompt": "x"}, 7], output=tmp_path / "o.jsonl", models=["m"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"changed": "Keep"}, "one of 'resend', 'keep'"),
        ({"overwrite": "no"}, "Expected `bool`"),
        ({"route": "any"}, "one of 'each', 'fallback', 'split'"),
        ({"limit": 2.5}, "limit=2.5"),
        ({"max_retries": "3"}, "Expected `int`"),
        ({"attempt_timeout": "soon"}, "attempt_timeout='soon': it is a number or 'auto'"),
        ({"params": {"temperature": float("nan")}}, "JSON cannot hold this value"),
        ({"params": {"stop": {"a"}}}, "JSON cannot hold this value"),
        ({"output": None}, "output=None"),
        ({"models": [1]}, "Expected `str`"),
        ({"retry": ["fault"]}, "no such outcome"),
        ({"inputs": 5}, "inputs=5"),
    ],
)
def test_an_option_of_the_wrong_kind_is_not_guessed_at(options, said):
    """`overwrite="no"` once forgot every answer, `changed="Keep"` sent them all again."""
    with pytest.raises(batcher.JobError, match=re.escape(said)):
        Job.of(**{"output": "o.jsonl", "models": ["m"], **options})


def test_ctrl_c_in_a_script_keeps_what_is_in_flight(tmp_path):
    """The run has a thread of its own; Ctrl-C must reach it all the same."""
    script = """if True:
        import batcher, signal
        signal.signal(signal.SIGINT, signal.default_int_handler)  # Background jobs ignore it.
        batcher.run([{"prompt": str(n)} for n in range(500)], output="out.jsonl",
                    models=["sim-small"], concurrency=4)
    """
    with running(Simulation(speed=2)) as up:
        process = subprocess.Popen(
            [sys.executable, "-c", script], cwd=tmp_path, stderr=subprocess.PIPE,
            env=environment(OPENAI_BASE_URL=up.url, OPENAI_API_KEY="k"),
        )  # fmt: skip
        models = up.ledger.models
        while models["sim-small"].billed < 10:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=300)
        billed = models["sim-small"].billed
    assert stderr.decode().strip().endswith("KeyboardInterrupt")
    assert billed < 500
    kept = b"".join(p.read_bytes() for p in (tmp_path / "out.jsonl.run").glob("*.jsonl"))
    assert kept.count(b'"status":"ok"') == billed


def test_text_views_and_columns_without_a_name_come_through(tmp_path, gateway):
    """polars has all its texts as views; pandas writes its index as a CSV column named nothing."""
    views = pa.array(["a", "b"]).cast(pa.string_view())
    lists = pa.array([["x"], None]).cast(pa.list_(pa.string_view()))
    kinds = pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.uint32()), views)
    table = pa.table({"prompt": views, "tags": lists, "kind": kinds, "": pa.array([17, 18])})
    batcher.run(table, output=tmp_path / "rows.parquet", models=["sim-small"])
    plain = pa.table({name: table[name] for name in ("prompt", "tags", "")})
    pq.write_table(plain, tmp_path / "in.parquet")
    batcher.run(tmp_path / "in.parquet", output=tmp_path / "file.parquet", models=["sim-small"])
    for name in ("rows.parquet", "file.parquet"):
        out = pq.read_table(tmp_path / name)
        assert out["prompt"].to_pylist() == ["a", "b"]
        assert out["tags"].to_pylist() == [["x"], None]
        assert out[""].to_pylist() == [17, 18]


def test_two_columns_of_one_name_are_refused_in_a_table_too(tmp_path, gateway):
    """Else the last one would win without a word."""
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"])
    with pytest.raises(batcher.JobError, match="two columns named 'prompt'"):
        batcher.run(table, output=tmp_path / "o.jsonl", models=["sim-small"])


def test_values_of_other_packages_are_what_they_mean(tmp_path, gateway):
    """And never the text by which they are shown, which loses most of a long array."""
    np, pd, pl = (pytest.importorskip(name) for name in ("numpy", "pandas", "polars"))
    row = {
        "prompt": "a",
        "vector": np.arange(2000, dtype="float32"),
        "count": np.int64(3),
        "yes": np.bool_(True),
        "none": pd.NA,
        "at": pd.Timestamp("2026-01-02 03:04"),
        "never": pd.NaT,
        "few": pl.Series([1, 2]),
        "file": tmp_path,
    }
    batcher.run([row], output=tmp_path / "o.parquet", models=["sim-small"])
    (out,) = pq.read_table(tmp_path / "o.parquet").to_pylist()
    assert out["vector"] == list(range(2000))
    kept = [out[name] for name in ("count", "yes", "none", "at", "never", "few", "file")]
    assert kept == [3, True, None, "2026-01-02T03:04:00", None, [1, 2], str(tmp_path)]
    with pytest.raises(batcher.JobError, match="JSON has nothing for 'object'"):
        batcher.run([{"prompt": object()}], output=tmp_path / "p.jsonl", models=["sim-small"])


def test_rows_on_stdout_are_not_bought_from_python(gateway):
    """They would be seen by nobody."""
    with pytest.raises(batcher.JobError, match=r"use batcher\.stream"):
        batcher.run([{"prompt": "a"}], output="-", models=["sim-small"])
    assert not gateway.ledger.models


def test_a_slow_generator_does_not_stop_the_loop_of_a_stream(gateway):
    """It is read in a thread."""

    def slow():
        for n in range(4):
            time.sleep(0.2)
            yield {"prompt": f"p {n}"}

    async def work():
        beats = 0

        async def beat():
            nonlocal beats
            while True:
                await asyncio.sleep(0.02)
                beats += 1

        beating = asyncio.create_task(beat())
        rows = [result.row async for result in batcher.stream(slow(), models=["sim-small"])]
        beating.cancel()
        return rows, beats

    rows, beats = asyncio.run(work())
    assert sorted(rows) == [0, 1, 2, 3]
    assert beats > 10
