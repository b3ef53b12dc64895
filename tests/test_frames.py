"""Tables of the libraries that people have their data in: given to `batcher.run`, and read from what it writes."""

import datetime
import decimal

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import batcher
from batcher.simulate.server import running
from batcher.simulate.settings import Simulation

WHEN = datetime.datetime(2026, 2, 28, 23, 59, 59, 123456)
TABLE = pa.table(
    {
        "prompt": pa.array([f"What is {n} + {n}?" for n in range(50)], pa.large_string()),
        "price": pa.array([decimal.Decimal("12345678901234.56")] * 50, pa.decimal128(20, 2)),
        "at": pa.array([WHEN] * 50, pa.timestamp("us", "UTC")),
        "day": pa.array([WHEN.date(), None] * 25),
        "kind": pa.array(["a", "b"] * 25).dictionary_encode(),
        "tags": pa.array([["x", "y"], []] * 25),
        "who": pa.array([{"name": "Ann", "born": 1999}, None] * 25),
        "vector": pa.array([[0.25, -1.0]] * 50, pa.list_(pa.float32(), 2)),
        "nothing": pa.nulls(50),
    }
)
CHECKED = ["prompt", "price", "at", "day", "kind", "tags", "who"]


def in_duckdb():
    """As one relation; it knows no column without a type."""
    there = duckdb.from_arrow(TABLE.drop_columns(["nothing"]))
    return there.order("prompt")


class OfHuggingFace:
    """As a dataset of theirs gives its rows, with and without all of them in memory."""

    def with_format(self, kind):
        assert kind == "arrow"
        return self

    def iter(self, rows):
        return (pa.Table.from_batches([batch]) for batch in TABLE.to_batches(min(rows, 7)))

    def __iter__(self):
        return iter(TABLE.to_pylist())


KINDS = {
    "pyarrow": lambda: TABLE,
    "reader": lambda: TABLE.to_reader(7),
    "pandas": lambda: TABLE.to_pandas(types_mapper=pd.ArrowDtype),
    "polars": lambda: pl.from_arrow(TABLE),
    "duckdb": in_duckdb,
    "datasets": OfHuggingFace,
}


@pytest.fixture(scope="module")
def gateway():
    with running(Simulation(speed=0)) as up, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_BASE_URL", up.url)
        patch.setenv("OPENAI_API_KEY", "k")
        patch.delenv("AIHUBMIX_API_KEY", raising=False)
        yield up


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_comes_out_as_it_went_in(tmp_path, gateway, kind):
    """With its types, for each of them to read again; a second run finds its rows."""
    output = tmp_path / "out.parquet"
    billed = gateway.ledger.models["sim-small"].billed
    for _ in range(2):
        report = batcher.run(KINDS[kind](), output=output, models=["sim-small"])
        assert report.exit_status == 0
    assert gateway.ledger.models["sim-small"].billed - billed == 50
    wanted = [tuple(row.values()) for row in TABLE.select(CHECKED).to_pylist()]
    wanted.sort(key=lambda row: row[0])
    assert [tuple(row) for row in pl.read_parquet(output).sort("prompt")[CHECKED].rows()] == wanted
    told = pd.read_parquet(output, dtype_backend="pyarrow").sort_values("prompt")
    assert told["price"].tolist() == [row[1] for row in wanted]
    assert told["status"].tolist() == ["ok"] * 50
    columns = 'prompt, price, epoch_us("at"), day, kind, tags, who'
    micros = int(WHEN.replace(tzinfo=datetime.UTC).timestamp()) * 1_000_000 + WHEN.microsecond
    found = duckdb.sql(f"select {columns} from '{output}' order by prompt").fetchall()
    assert found == [(*row[:2], micros, *row[3:]) for row in wanted]
