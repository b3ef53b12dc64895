"""Outputs that another program wrote again are read as batcher wrote them."""

import json
from datetime import UTC, datetime

import pandas as pd
import pytest

from batcher.cli.outputs import rows_of, typed
from batcher.errors import JobError
from tests.support.program import batcher, write_jsonl

ROWS = [
    {
        "gold": "bug", "row": n, "custom_id": str(n), "model": "m", "sample": 0,
        "status": "ok" if n else "timeout", "content": "bug" if n else None,
        "prompt_tokens": 10 if n else None, "completion_tokens": 2 if n else None,
        "cost_usd": 0.25 if n else None, "latency_ms": 100 + n if n else None, "attempts": 1,
        "copied": False, "error": None if n else "no answer",
        "created_at": "2026-01-02T03:04:05.678Z",
    }
    for n in range(3)
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("latency_ms", 100.0, 100),
        ("latency_ms", float("nan"), None),
        ("latency_ms", "100.0", 100),
        ("prompt_tokens", "9007199254740993", 9007199254740993),
        ("row", 3.0, 3),
        ("cost_usd", "0.25", 0.25),
        ("cost_usd", float("nan"), None),
        ("cost_usd", 1, 1.0),
        ("custom_id", 7, "7"),
        ("custom_id", 7.0, "7"),
        ("content", float("nan"), None),
        ("content", {"label": "bug"}, '{"label":"bug"}'),
        ("copied", "True", True),
        ("copied", 0.0, False),
        ("created_at", "2026-01-02", datetime(2026, 1, 2, tzinfo=UTC)),
        ("created_at", 1767322800000, datetime(2026, 1, 2, 3, tzinfo=UTC)),
        ("gold", 100.0, 100.0),
    ],
)
def test_a_value_of_another_type_is_read_as_its_column_s(name, value, read):
    found = typed({name: value}, "out.jsonl:1")[name]
    assert (type(found), found) == (type(read), read)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("latency_ms", "fast"),
        ("latency_ms", 1.5),
        ("latency_ms", [1]),
        ("attempts", {"a": 1}),
        ("prompt_tokens", float("inf")),
        ("cost_usd", "much"),
        ("copied", "perhaps"),
        ("created_at", "yesterday"),
        ("created_at", 1e300),
        ("created_at", ["2026"]),
    ],
)
def test_a_value_that_cannot_be_read_is_named(name, value):
    with pytest.raises(JobError, match=rf"out.jsonl:1: '{name}' holds .*which is no "):
        typed({name: value}, "out.jsonl:1")


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_an_output_that_went_through_pandas_has_the_same_figures(tmp_path, suffix):
    write_jsonl(tmp_path / "out.jsonl", ROWS)
    frame = pd.read_json(tmp_path / "out.jsonl", lines=True)
    again = tmp_path / f"again.{suffix}"
    if suffix == "jsonl":
        frame.to_json(again, orient="records", lines=True, date_format="iso")
    else:
        frame.to_parquet(again)
    assert list(rows_of(str(again)))[1]["latency_ms"] == 101
    figures = [
        json.loads(batcher("report", name, "--json", "--gold", "gold", cwd=tmp_path).stdout)
        for name in ("out.jsonl", again.name)
    ]
    assert figures[0] == figures[1]
    assert batcher("show", again.name, cwd=tmp_path).returncode == 0
