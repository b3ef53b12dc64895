"""`--sample N`: rows drawn by chance, to know what all of them will cost."""

import json
import re
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.read.files import expand
from batcher.read.inputs import Inputs
from tests.support import program
from tests.support.program import read_jsonl, write_jsonl

ROWS = [{"id": n, "prompt": f"Ticket {n}: I was charged twice"} for n in range(200)]
SMALL = ("-m", "sim-small")


@pytest.fixture
def run(tmp_path, gateway):
    write_jsonl(tmp_path / "in.jsonl", ROWS)

    def run(*words):
        words = ("run", "in.jsonl", "-o", "o.jsonl", *SMALL, *words)
        ended = program.batcher(*words, cwd=tmp_path, url=gateway.url)
        return ended, sum(model.billed for model in list(gateway.ledger.models.values()))

    return run


def ids(path):
    """Of the rows of an output, in its order."""
    return [row["id"] for row in read_jsonl(path)]


def test_so_many_rows_are_drawn_and_come_out_in_order(run, tmp_path):
    """Not the first ones; the same again, others by another seed."""
    ended, billed = run("--sample", "20")
    assert (ended.returncode, billed) == (0, 20), ended.stderr.decode()
    drawn = ids(tmp_path / "o.jsonl")
    assert drawn == sorted(set(drawn))
    assert len(drawn) == 20
    assert max(drawn) > 100
    assert run("--sample", "20")[1] == 20
    _ended, billed = run("--sample", "20", "--seed", "1")
    other = ids(tmp_path / "o.jsonl")
    assert billed == 40 - len({*drawn} & {*other})
    assert other != drawn


def test_more_rows_and_all_rows_pay_only_for_the_rest(run, tmp_path, gateway):
    """A sample of 50 holds the one of 20; then everything."""
    run("--sample", "20")
    drawn = {*ids(tmp_path / "o.jsonl")}
    assert run("--sample", "50")[1] == 50
    assert drawn < {*ids(tmp_path / "o.jsonl")}
    told = program.batcher("status", "o.jsonl", cwd=tmp_path).stdout
    assert b"50 ok, 0 of 50 pending" in told
    assert run()[1] == 200
    assert ids(tmp_path / "o.jsonl") == list(range(200))
    assert run("--sample", "20")[1] == 200
    assert {*ids(tmp_path / "o.jsonl")} == drawn
    told = program.batcher("status", "o.jsonl", cwd=tmp_path).stdout
    assert b"20 ok, 0 of 20 pending" in told
    assert program.batcher("export", "o.jsonl", "e.jsonl", cwd=tmp_path).returncode == 0
    assert {*ids(tmp_path / "e.jsonl")} == drawn
    cleaned = program.batcher("clean", "o.jsonl", cwd=tmp_path)
    assert cleaned.returncode == 2
    assert b"holds 180 answers of rows or models that the last run did not ask" in cleaned.stderr


def test_what_all_rows_will_cost_is_told(tmp_path, gateway):
    """The range holds what they do cost, and the check reads the sample alone."""
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": row["prompt"]} for row in ROWS])
    (tmp_path / "prices.toml").write_text('["sim-small"]\ninput = 10\noutput = 40\n')
    words = ("in.jsonl", "-o", "o.jsonl", *SMALL, "--prices", "prices.toml")
    batcher = partial(program.batcher, cwd=tmp_path, url=gateway.url)
    ended = batcher("run", *words, "--sample", "60", "--json")
    projected = json.loads(ended.stdout)["models"]["sim-small"]["projected"]
    assert projected["rows"] == 200
    told = batcher("run", *words, "--sample", "60", "--overwrite").stderr
    assert re.search(rb"all 200 rows: about \$0\.\d+ \(\$0\.\d+ to \$0\.\d+\)", told)
    ended = batcher("run", *words, "--overwrite", "--json")
    cost = json.loads(ended.stdout)["models"]["sim-small"]["cost_usd"]
    assert projected["from_usd"] <= cost <= projected["to_usd"]
    told = batcher("check", *words, "--sample", "60").stderr
    assert b"60 rows read" in told


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--sample", "0"), b"--sample 0: it must be more than 0"),
        (("--sample", "5", "-n", "5"), b"--limit and --sample: one of them"),
        (("--seed", "5"), b"--seed: it says which rows --sample draws"),
        (("--sample", "5", "--seed", "-1"), b"--seed -1: it must be 0 or more"),
    ],
)
def test_what_cannot_be_meant_is_said(run, words, why):
    ended, billed = run(*words)
    assert (ended.returncode, billed) == (2, 0)
    assert why in ended.stderr


def test_more_than_there_are_is_all(run, tmp_path):
    assert run("--sample", "1000")[1] == 200
    assert ids(tmp_path / "o.jsonl") == list(range(200))


@given(
    lines=st.lists(st.booleans(), min_size=1, max_size=60),
    more=st.integers(0, 40),
    number=st.integers(1, 60),
    seed=st.integers(0, (1 << 63) - 1),
    settled=st.binary(max_size=130),
)
def test_drawn_rows_are_the_same_in_every_reading(
    tmp_path_factory, lines, more, number, seed, settled
):
    """Whatever the blank lines, the files and what is settled; from Parquet as from JSONL."""
    folder = tmp_path_factory.mktemp("drawn")
    text = "".join(f'{{"a": {n}}}\n' if there else "\n" for n, there in enumerate(lines))
    (folder / "a.jsonl").write_text(text)
    pq.write_table(pa.table({"a": list(range(more))}), folder / "b.parquet", row_group_size=7)
    files = expand([str(folder / "a.jsonl"), str(folder / "b.parquet")])
    every = [row.position for row in Inputs(files).rows()]
    inputs = Inputs(files, drawn=(number, seed))
    drawn = [row.position for row in inputs.rows()]
    assert len(drawn) == min(number, len(every))
    assert drawn == sorted({*drawn} & {*every})
    assert [at for positions, _rows in inputs.dicts() for at in positions] == drawn
    native = [(at, rows) for positions, rows in inputs.native() for at in positions]
    assert [at for at, _rows in native] == drawn
    left = [row.position for row in inputs.rows(settled=settled)]
    assert left == [at for at in drawn if at >= len(settled) or not settled[at]]
    assert {*drawn} <= {row.position for row in Inputs(files, drawn=(number + 5, seed)).rows()}


def test_each_row_is_drawn_as_often_as_another(tmp_path):
    """10 of 100 by 2,000 seeds: each 200 times, within five standard deviations (13.4)."""
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n' * 100)
    files = expand([str(tmp_path / "a.jsonl")])
    counts = [0] * 100
    for seed in range(2000):
        for at, out in enumerate(Inputs(files, drawn=(10, seed)).left_out()):
            counts[at] += not out
    assert sum(counts) == 20_000
    assert max(abs(count - 200) for count in counts) < 5 * 13.4
