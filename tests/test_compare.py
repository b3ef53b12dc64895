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
    assert "1 row only in b.parquet" in text


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


def compared(folder, one, other, *words):
    write_jsonl(folder / "one.jsonl", one)
    write_jsonl(folder / "other.jsonl", other)
    ended = batcher("compare", "one.jsonl", "other.jsonl", *words, cwd=folder)
    return ended.returncode, ended.stdout.decode(), ended.stderr.decode()


def test_rows_without_gold_are_neither_right_nor_wrong(tmp_path):
    """As in a report."""
    some = rows("1111", gold=[1.0, 1.0, None, float("nan")])
    pq.write_table(pa.Table.from_pylist(some), tmp_path / "p.parquet")
    text = batcher("compare", "p.parquet", "p.parquet", "--gold", "gold", cwd=tmp_path).stdout
    assert text.count(b"100.0 % right (34.2 to 100.0) of 2 rows with gold") == 2
    none = rows("aaaa", gold=[None] * 4)
    status, _, said = compared(tmp_path, none, none, "--gold", "gold")
    assert (status, "the column is empty" in said) == (2, True)


def test_samples_of_a_row_are_no_more_rows(tmp_path):
    """Four rows gained are four, however often each was asked."""

    def sampled(answers):
        return [{**row, "sample": n} for row in rows(answers, gold="a" * 20) for n in range(3)]

    one, other = sampled("x" * 4 + "a" * 16), sampled("a" * 20)
    _, text, _ = compared(tmp_path, one, other, "--gold", "gold")
    assert "m: 20 rows in both" in text
    assert "one.jsonl: 80.0 % right (58.4 to 91.9)" in text
    assert "gained 4: rows 0, 1, 2, 3, by first answers" in text
    assert "p = 0.12, no more than chance" in text
    one[0]["content"] = "a"  # One of three: a third of a row.
    _, told, _ = compared(tmp_path, one, other, "--gold", "gold", "--json")
    assert json.loads(told)["m"]["right"] == [pytest.approx(16 + 1 / 3), 20]


def test_two_failures_are_no_same_answer(tmp_path):
    """Agreement is among what both answered."""
    _, text, _ = compared(tmp_path, rows("!!ab"), rows("!bax"))
    assert "the same answer 1 times of 2 that both answered: 50.0 %" in text
    assert "1 row answered only in other.jsonl" in text
    assert "changed 2: rows 1, 3" in text
    _, text, _ = compared(tmp_path, rows("!!"), rows("!!"))
    assert "the same answer" not in text


def test_outputs_of_other_rows_are_noticed(tmp_path):
    """By gold that differs, by rows that stand twice, by nothing in common."""
    status, _, said = compared(
        tmp_path, rows("ab", gold="ab"), rows("ba", gold="ba"), "--gold", "gold"
    )
    assert status == 0
    assert "gold differs in 2 of 2 rows" in said
    twice = [{**row, "custom_id": "same"} for row in rows("ab")]
    for one, other in ((twice, rows("ab")), ([*twice[:1]], twice)):
        status, _, said = compared(tmp_path, one, other)
        assert (status, "custom_id 'same' of m stands twice" in said) == (2, True)
    others = [{**row, "custom_id": "x"} for row in rows("a")]
    status, _, said = compared(tmp_path, rows("a"), others)
    assert (status, "no row in common" in said) == (2, True)
    status, _, said = compared(tmp_path, rows("a"), rows("a") + rows("a", "n"))
    assert (status, said) == (0, "batcher: only in other.jsonl: n.\n")


def test_objects_are_the_same_in_whatever_order_their_names_stand(tmp_path):
    """JSONL keeps the order of each answer, Parquet that of the schema, and null for what is left out."""
    one = [
        {**row, "parsed": {"x": "a", "y": [1]}, "gold": '{"y": [1], "x":"a"}'} for row in rows("a")
    ]
    other = [{**row, "parsed": {"y": [1], "x": "a", "z": None}} for row in rows("a")]
    _, told, _ = compared(tmp_path, one, other, "--gold", "gold", "--json")
    assert (json.loads(told)["m"]["same"], json.loads(told)["m"]["right"]) == (1, [1, 1])
