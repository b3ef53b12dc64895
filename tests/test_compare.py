"""What changed between two outputs."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.program import batcher, write_jsonl


def rows(answers, model="m", gold="abcdabcdab", **more):
    return [
        {"gold": gold[n], "row": n, "custom_id": str(n), "model": model, "sample": 0,
         "status": "ok" if said != "!" else "timeout", "content": said, **more}
        for n, said in enumerate(answers)
    ]  # fmt: skip


@pytest.fixture
def two(tmp_path):
    """Ten rows: 6 and 8 right; rows 4, 5 and 8 gained, row 0 lost."""
    write_jsonl(tmp_path / "a.jsonl", rows("abcd!xcdxx"))
    pq.write_table(pa.Table.from_pylist(rows("xbcdabcdaX")), tmp_path / "b.parquet")
    return tmp_path


def test_what_was_gained_and_lost_is_told_with_its_rows(two):
    """In whatever form the outputs are; a row without an answer is not right."""
    ended = batcher("compare", "a.jsonl", "b.parquet", "--gold", "gold", cwd=two)
    assert ended.returncode == 0
    text = ended.stdout.decode()
    assert "m: 10 rows in both" in text
    assert "a.jsonl: 60.0 % right (31.3 to 83.2)" in text
    assert "b.parquet: 80.0 % right (49.0 to 94.3)" in text
    assert "gained 3: rows 4, 5, 8" in text
    assert "lost 1: rows 0" in text
    assert "p = 0.62, no more than chance" in text
    assert "the same answer 6 times" in text


def test_the_same_figures_as_json(two):
    """For whoever draws them."""
    ended = batcher("compare", "a.jsonl", "b.parquet", "--gold", "gold", "--json", cwd=two)
    told = json.loads(ended.stdout)["m"]
    assert (told["right"], told["gained"], told["lost"]) == ([6, 8], 3, 1)
    assert told["p"] == pytest.approx(0.625)
    assert (told["rows"], told["same"], told["only"]) == (10, 6, [0, 0])


def test_without_gold_what_changed_is_told(two):
    """Case and full stops are no change; rows that only one has are counted."""
    write_jsonl(two / "c.jsonl", rows(["A.", "b", "c", "d", "a", "b", "c", "d", "a"]))
    text = batcher("compare", "b.parquet", "c.jsonl", cwd=two).stdout.decode()
    assert "the same answer 8 times" in text
    assert "changed 1: rows 0" in text
    assert "1 rows only in b.parquet" in text


def test_two_models_are_compared_where_each_output_has_one(two):
    """And models that both have with themselves."""
    write_jsonl(two / "n.jsonl", rows("abcdabcdab", "n"))
    write_jsonl(two / "mn.jsonl", rows("abcdabcdab", "n") + rows("abcdabcdab", "m"))
    assert b"m \xe2\x86\x92 n: 10 rows" in batcher("compare", "a.jsonl", "n.jsonl", cwd=two).stdout
    both = batcher("compare", "mn.jsonl", "a.jsonl", cwd=two).stdout
    assert both.startswith(b"m: 10 rows in both")
    write_jsonl(two / "op.jsonl", rows("a", "o") + rows("a", "p"))
    none = batcher("compare", "mn.jsonl", "op.jsonl", cwd=two)
    assert none.returncode == 2
    assert b"no model in both" in none.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a.jsonl", "none.jsonl"], "no such output"),
        (["a.jsonl", "b.parquet", "--gold", "golden"], "no column 'golden'"),
        (["a.jsonl", "b.parquet", "--gold", "gold", "--scorer", "best"], "none of that name"),
        (
            ["a.jsonl", "b.parquet", "--gold", "gold", "--scorer", "python:mine:fails"],
            "it fails for",
        ),
        (["raw.jsonl", "b.parquet"], "no output of batcher"),
    ],
)
def test_what_cannot_be_compared_is_said(two, words, said):
    """In one sentence."""
    (two / "mine.py").write_text("def fails(answer, gold):\n    return 1 / 0\n")
    write_jsonl(two / "raw.jsonl", [{"prompt": "a"}])
    ended = batcher("compare", *words, cwd=two)
    assert ended.returncode == 2
    assert said in ended.stderr.decode()


def test_real_runs_are_compared(tmp_path, gateway):
    """A better model gains more than it loses, by the labels that it was asked for."""
    words = ("--quiet", "--prompt", "{{ text }}", "--labels",
             "billing,bug,account,shipping,feature,praise")  # fmt: skip
    tickets = __file__.rpartition("/tests/")[0] + "/sample_data/tickets.jsonl"
    for name, model in (("s.jsonl", "sim-small"), ("l.parquet", "sim-large")):
        ended = batcher(
            "run",
            tickets,
            "-o",
            name,
            "-m",
            model,
            "-n",
            "120",
            *words,
            cwd=tmp_path,
            url=gateway.url,
        )
        assert ended.returncode == 0, ended.stderr.decode()
    ended = batcher("compare", "s.jsonl", "l.parquet", "--gold", "gold", "--json", cwd=tmp_path)
    told = json.loads(ended.stdout)["sim-small"]
    assert told["rows"] == 120
    assert told["gained"] > told["lost"]
    assert told["right"][1] > told["right"][0]
