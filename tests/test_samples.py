"""Several answers per row and model."""

import json
from collections import Counter

import pyarrow.parquet as pq
import pytest

from tests.support import program
from tests.support.program import read_jsonl, write_jsonl

ROWS = [{"id": n, "prompt": f"Ticket {n}: I was charged twice"} for n in range(30)]


@pytest.fixture
def run(tmp_path, gateway):
    write_jsonl(tmp_path / "in.jsonl", ROWS)

    def run(*words):
        ended = program.batcher(
            "run",
            "in.jsonl",
            *words,
            "-m",
            "sim-small",
            "-m",
            "sim-large",
            cwd=tmp_path,
            url=gateway.url,
        )
        return ended, sum(model.billed for model in list(gateway.ledger.models.values()))

    return run


def test_every_row_has_so_many_answers_of_each_model(run, tmp_path):
    """In order of row, model and sample, in both forms; what is there is not bought again."""
    for name in ("o.jsonl", "o.parquet"):
        ended, _ = run("-o", name, "--samples", "3")
        assert ended.returncode == 0, ended.stderr.decode()
    rows = read_jsonl(tmp_path / "o.jsonl")
    expected = [(r, m, s) for r in range(30) for m in ("sim-small", "sim-large") for s in range(3)]
    assert [(row["row"], row["model"], row["sample"]) for row in rows] == expected
    table = pq.read_table(tmp_path / "o.parquet", columns=["row", "model", "sample"]).to_pylist()
    assert [tuple(row.values()) for row in table] == expected
    assert run("-o", "o.jsonl", "--samples", "3")[1] == 360


def test_more_samples_cost_the_new_ones_only_and_fewer_cost_nothing(run, tmp_path):
    """The others stay in the journal, and come back."""
    assert run("-o", "o.jsonl")[1] == 60
    assert run("-o", "o.jsonl", "--samples", "3")[1] == 180
    fewer, bought = run("-o", "o.jsonl", "--samples", "2")
    assert bought == 180
    assert b"--samples 2: answers beyond that leave the output" in fewer.stderr
    assert len(read_jsonl(tmp_path / "o.jsonl")) == 120
    assert run("-o", "o.jsonl", "--samples", "3")[1] == 180
    assert len(read_jsonl(tmp_path / "o.jsonl")) == 180
    told = program.batcher("status", "o.jsonl", cwd=tmp_path).stdout
    assert told.count(b"90 ok, 0 of 90 pending") == 2
    explained = program.batcher("explain", "o.jsonl", "7", cwd=tmp_path).stdout.decode()
    assert explained.count("sample 2") == 2


@pytest.mark.parametrize("route", ["split", "fallback"])
def test_a_route_chooses_for_each_sample(run, tmp_path, gateway, route):
    """Rows x samples come out, also when the first model fails now and then."""
    gateway.gateway.shares = {"bad_request": 0.3} if route == "fallback" else {"http_500": 0.1}
    ended, _ = run("-o", "o.jsonl", "--samples", "2", "--route", route, "--json")
    rows = read_jsonl(tmp_path / "o.jsonl")
    assert [(row["row"], row["sample"]) for row in rows] == [
        (r, s) for r in range(30) for s in (0, 1)
    ]
    if route == "fallback":
        assert Counter(row["model"] for row in rows)["sim-large"] > 0
    else:
        assert ended.returncode == 0
    told = json.loads(ended.stdout)["models"]
    ok = sum(model["outcomes"].get("ok", 0) for model in told.values())
    assert ok == sum(row["status"] == "ok" for row in rows)
    gateway.gateway.shares = {}
    assert run("-o", "o.jsonl", "--samples", "2", "--route", route)[0].returncode == 0


def test_a_row_that_cannot_be_read_comes_out_for_each_sample(run, tmp_path):
    """Rows in x models x samples = rows out."""
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "a"}, {"nothing": 1}])
    ended, _ = run("-o", "o.jsonl", "--samples", "2")
    assert ended.returncode == 3
    rows = read_jsonl(tmp_path / "o.jsonl")
    assert [row["status"] for row in rows] == ["ok"] * 4 + ["unreadable"] * 4
    assert [row["sample"] for row in rows] == [0, 1] * 4


def test_samples_are_counted_from_one(run):
    """None is no number of answers."""
    ended, bought = run("-o", "o.jsonl", "--samples", "0")
    assert (ended.returncode, bought) == (2, 0)
    assert b"from 1 to 1000" in ended.stderr
