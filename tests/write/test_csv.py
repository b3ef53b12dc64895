"""The output as CSV, and programs that read it."""

import csv as standard
import io
import json

import duckdb
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import batcher
from batcher.cli.compare import compare
from batcher.cli.export import export
from batcher.cli.outputs import rows_of
from batcher.cli.report import report
from batcher.cli.show import show
from batcher.read import csv
from batcher.write.csv import line_of

TEXTS = st.text("ab\"',; \t\r\n=é\u2028", max_size=6)


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.lists(TEXTS, min_size=2, max_size=2), min_size=1, max_size=4))
def test_any_text_is_read_back_as_it_was(tmp_path_factory, rows):
    """By Python, by batcher and by pandas."""
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    lines = [line_of(json.dumps(cell).encode() for cell in row) for row in [["a", "b"], *rows]]
    path.write_bytes(b"".join(lines))
    text = path.read_bytes().decode()
    assert list(standard.reader(io.StringIO(text, newline="")))[1:] == rows
    assert [list((record.columns or {}).values()) for record in csv.records(str(path))] == rows
    table = pd.read_csv(path, keep_default_na=False, dtype=str)
    assert table.to_numpy().tolist() == rows


ROWS = [
    {"custom_id": "a", "text": "first", "tags": ["x", "y"], "price": 1.5, "model": "mine"},
    {"custom_id": "b", "text": 'with "quotes",\r\nand lines', "tags": None, "more": {"k": "v"}},
    {"custom_id": "c", "text": "=SUM(A1)", "tags": []},
    {"custom_id": "d"},
]


@pytest.fixture
def out(tmp_path, monkeypatch):
    """A run to out.csv, and what it wrote as JSONL."""
    monkeypatch.chdir(tmp_path)
    batcher.run(ROWS, "out.csv", models=["sim-small", "sim-large"], prompt="{{ text }}",
                labels="bug,billing", simulate=True, quiet=True)  # fmt: skip
    assert export("out.csv", "out.jsonl") == 3
    return [json.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]


def test_a_csv_output_has_the_columns_and_the_values_of_any_other(out, capsys):
    """pandas and DuckDB find the same texts in it; every command reads it like another output."""
    table = pd.read_csv("out.csv", keep_default_na=False, dtype=str)
    names = list(dict.fromkeys(name for row in out for name in row))
    assert sorted(table.columns) == sorted(names)
    for row, cells in zip(out, table.to_dict("records"), strict=True):
        for name in names:
            value = row.get(name)
            if value is None:
                assert cells[name] == ""
            else:
                assert (
                    cells[name] if isinstance(value, str) else json.loads(cells[name])
                ) == value
    found = duckdb.sql(
        "select custom_id, text, input_model, status from 'out.csv' order by row, model desc"
    )
    assert found.fetchall() == [
        (row["custom_id"], row.get("text"), row.get("input_model"), row["status"]) for row in out
    ]
    typed = list(rows_of("out.csv"))
    for row, of in zip(out, typed, strict=True):
        for name in ("row", "sample", "status", "parsed", "prompt_tokens", "cost_usd", "error"):
            assert of[name] == row[name]
    assert show("out.csv") == 0
    assert report("out.csv", json_=True) == 0
    assert compare("out.csv", "out.jsonl", json_=True) == 0
    told = capsys.readouterr().out
    assert '"same": 3' in told
    assert export("out.csv") == 3
    assert list(rows_of("out.csv")) == typed
