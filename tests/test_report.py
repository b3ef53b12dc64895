"""`batcher report`: the figures, the files of votes, and the page in a real browser."""

import asyncio
import datetime
import decimal
import json
from collections import Counter

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.browser import CHROMIUM, opened
from tests.support.program import batcher, read_jsonl, write_jsonl

HOSTILE = "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'><b>bold</b>"
LABELS = ("bug", "billing", "praise")


def rows(count=60, models=("small", "large", "huge")):
    """Three models that are right in 3, 4 and 5 of 6 rows; one row in ten of the first times out."""
    for n in range(count):
        gold = LABELS[n % 3]
        for at, model in enumerate(models):
            wrong = n % 6 < 3 - at
            failed = at == 0 and n % 10 == 9
            said = LABELS[(n + 1) % 3] if wrong else gold
            yield {
                "text": f"ticket {n}", "gold": gold, "channel": "mail" if n % 4 else "chat",
                "row": n, "custom_id": f"t-{n}", "model": model, "sample": 0,
                "status": "timeout" if failed else "ok",
                "content": None if failed else said,
                "prompt_tokens": 100, "completion_tokens": 10 + at,
                "cost_usd": 0.001 * (at + 1), "latency_ms": 100 * (at + 1) + n, "attempts": 1,
                "error_type": "timeout" if failed else None,
                "error": "no answer after 600 s" if failed else None,
                "created_at": f"2026-01-02T03:04:{n % 60:02}.000Z",
            }  # fmt: skip


@pytest.fixture
def output(tmp_path):
    write_jsonl(tmp_path / "out.jsonl", list(rows()))
    return tmp_path


def report(where, *words):
    ended = batcher("report", "out.jsonl", *words, cwd=where)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.decode()


def test_the_terminal_tells_who_is_right_how_often(output):
    """With the interval, and what pairs of models have in common."""
    text = report(output, "--gold", "gold")
    assert "43.3 % (31.6–55.9)" in text  # Failed rows are not right: 26 of 60.
    assert "66.7 % (54.1–77.3)" in text
    assert "large, huge: the same answer 83.3 %, Cohen's κ 0.74" in text
    assert "Krippendorff's α" in text
    assert (output / "out.jsonl.html").exists()


def test_json_has_the_figures_and_makes_no_page(output):
    """For whoever goes on with them."""
    told = json.loads(report(output, "--gold", "gold", "--by", "channel", "--json"))
    assert not (output / "out.jsonl.html").exists()
    small = told["models"]["small"]
    lines = [row for row in rows() if row["model"] == "small"]
    right = sum(row["content"] == row["gold"] for row in lines)
    assert small["accuracy"]["right"] == right
    assert small["outcomes"] == Counter(row["status"] for row in lines)
    assert small["groups"]["chat"]["of"] == 15
    assert small["cost_usd"] == pytest.approx(0.06)
    assert told["majority"]["of"] == 60


def test_votes_are_a_row_for_each_row_of_the_input(output):
    """The majority, its share, and who is tied; in JSONL and in Parquet the same."""
    report(output, "--vote", "votes.jsonl", "--json")
    report(output, "--vote", "votes.parquet", "--json")
    votes = read_jsonl(output / "votes.jsonl")
    assert votes == pq.read_table(output / "votes.parquet").to_pylist()
    assert len(votes) == 60
    given = {}
    for row in rows():
        given.setdefault(row["row"], []).append(row["content"])
    for vote in votes:
        said = Counter(filter(None, given[vote["row"]]))
        most = max(said.values())
        first = [label for label, n in said.items() if n == most]
        assert vote["vote"] == (first[0] if len(first) == 1 else None)
        assert sorted(vote["tied"]) == (sorted(first) if len(first) > 1 else [])
        assert vote["votes"] == sum(said.values())
        assert vote["share"] == pytest.approx(most / vote["votes"])
        assert vote["text"] == f"ticket {vote['row']}"
        assert [a["answer"] for a in vote["answers"]] == given[vote["row"]]
    assert not {"content", "model", "status"} & votes[0].keys()


def test_disputed_rows_are_a_file_for_a_person_to_label(output):
    """The most disputed first; what all say alike is not in it."""
    report(output, "--disputed", "disputed.parquet", "--json")
    found = duckdb.sql(f"select disagreement, tied from '{output}/disputed.parquet'").fetchall()
    assert found
    assert [d for d, _ in found] == sorted((d for d, _ in found), reverse=True)
    assert all(d > 0 for d, _ in found)
    shown = batcher("show", "out.jsonl", "--disputed", cwd=output).stdout.decode()
    assert shown.count("\n\n") == 3 * len(found)
    assert "ticket 19" in shown


def test_types_of_the_input_stay_in_a_file_of_votes(tmp_path):
    """Also a column that has the name of a vote's."""
    schema = pa.schema([("when", pa.timestamp("us")), ("vote", pa.int8()), ("row", pa.int64())])
    table = pa.Table.from_pylist(
        [{"when": None, "vote": 3, "row": 0}, {"when": None, "vote": 4, "row": 1}], schema
    )
    for name, values in (("model", ["m"] * 2), ("status", ["ok"] * 2), ("content", ["a", "b"])):
        table = table.append_column(name, pa.array(values))
    pq.write_table(table, tmp_path / "out.parquet")
    ended = batcher("report", "out.parquet", "--vote", "v.parquet", "--json", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    votes = pq.read_table(tmp_path / "v.parquet")
    assert votes.schema.field("when").type == pa.timestamp("us")
    assert votes.schema.field("input_vote").type == pa.int8()
    assert votes["vote"].to_pylist() == ["a", "b"]
    assert votes["input_vote"].to_pylist() == [3, 4]


def test_gold_and_groups_of_any_type_are_read(tmp_path):
    """Days, decimals and times come out of Parquet as such; pandas writes times as numbers."""
    day, price = datetime.date(2026, 1, 2), decimal.Decimal("1.50")
    common = {"row": 0, "model": "m", "status": "ok", "gold": price, "day": day}
    table = pa.Table.from_pylist(
        [{**common, "content": "1.50", "created_at": 1_767_323_045_000, "latency_ms": 20}]
    )
    pq.write_table(table, tmp_path / "out.parquet")
    words = ("out.parquet", "--gold", "gold", "--by", "day")
    told = json.loads(batcher("report", *words, "--json", cwd=tmp_path).stdout)
    assert told["models"]["m"]["groups"]["2026-01-02"]["right"] == 1
    ended = batcher("report", *words, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "2026-01-02 03:04" in (tmp_path / "out.parquet.html").read_text()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["nothing.jsonl"], "there is no such output"),
        (["out.jsonl", "--gold", "golden"], "there is no such column"),
        (["out.jsonl", "--by", "channel"], "--by needs --gold"),
        (["out.jsonl", "--vote", "votes.csv"], "end it in .jsonl or .parquet"),
        (["out.jsonl", "--vote", "out.jsonl"], "that is the output itself"),
        (["out.jsonl", "--vote", "none/votes.jsonl"], "there is no folder"),
        (["plain.jsonl"], "it is no output of batcher"),
        (["sorted.jsonl"], "row 0 stands behind row 1"),
        (["empty.jsonl"], "there are no rows"),
        (["out.jsonl", "--scorer", "nice"], "there is none of that name"),
        (["nothing.jsonl", "--vote", "plain.jsonl"], "there is no such output"),
        (["out.jsonl", "--vote", "v.jsonl", "--disputed", "./v.jsonl"], "name two files"),
    ],
)
def test_what_cannot_be_reported_is_said(output, words, why):
    """In a sentence, with exit 2."""
    write_jsonl(output / "plain.jsonl", [{"text": "a"}])
    write_jsonl(output / "sorted.jsonl", [{"row": 1, "model": "m", "status": "ok"}, {"row": 0}])
    write_jsonl(output / "empty.jsonl", [])
    ended = batcher("report", *words, cwd=output)
    assert ended.returncode == 2
    assert why in ended.stderr.decode()
    assert not list(output.glob("*.html"))


def hostile(count=24):
    for row in rows(count, ("small", HOSTILE)):
        row["text"] += HOSTILE
        row["channel"] = HOSTILE
        row[f"{HOSTILE}"] = "a column"
        if row["row"] % 5 == 0 and row["content"]:
            row["content"] = HOSTILE
        if row["error"]:
            row["error"] = HOSTILE
        yield row


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
class TestPage:
    """In a browser, because a page that is only looked at as text proves little."""

    def test_every_chart_is_drawn_and_tells_what_the_file_holds(self, output):
        """In the light and in the dark, on a desk and on a phone; the console says nothing."""
        report(output, "--gold", "gold", "--by", "channel")
        told = json.loads(report(output, "--gold", "gold", "--by", "channel", "--json"))

        async def look():
            async with opened(output / "out.jsonl.html") as page:
                await page.until(DRAWN)
                names = await page.run(NAMES)
                cells = await page.run(CELLS)
                data = await page.run(DATA)
                colors = [await page.run(COLOR)]
                await page.screen(390, 800, dark=True)
                await page.until(f"{COLOR} !== {json.dumps(colors[0])}")
                await page.until(DRAWN)
                width = await page.run("document.documentElement.scrollWidth")
                boxes = await page.run(WIDTHS)
                return names, cells, data, width, boxes, page.complaints

        names, cells, data, width, boxes, complaints = asyncio.run(look())
        assert complaints == []
        assert names == [
            "accuracy", "dear", "groups", "confusion-0", "confusion-1", "confusion-2", "labels",
            "agreement", "outcomes", "latency", "tokens", "cost", "course",
        ]  # fmt: skip
        assert width <= 390
        assert all(0 < box <= 390 for box in boxes)
        for line, (model, of) in zip(cells, told["models"].items(), strict=True):
            share = of["accuracy"]
            assert line[:6] == [
                model,
                "60",
                str(of["outcomes"]["ok"]),
                f"{100 * share['share']:.1f} %",
                f"{100 * share['low']:.1f} % – {100 * share['high']:.1f} %",
                f"{of['macro_f1']:.3f}",
            ]
        right = sum(row["content"] == row["gold"] for row in rows() if row["model"] == "large")
        assert sum(data["confusion-1"][0]["customdata"][n][n] for n in range(3)) == right
        assert data["accuracy"][0]["x"][1] == pytest.approx(100 * right / 60)
        assert sum(map(sum, (of["x"] for of in data["tokens"]))) == 60 * (300 + 30 + 3)
        assert sum(sum(of["customdata"]) for of in data["outcomes"]) == 180
        assert data["cost"][0]["x"] == pytest.approx([0.06, 0.12, 0.18])

    def test_what_a_model_says_stays_text(self, tmp_path):
        """In tables, in charts, and where rows are opened."""
        write_jsonl(tmp_path / "out.jsonl", list(hostile()))
        report(tmp_path, "--gold", "gold", "--by", "channel")

        async def look():
            async with opened(tmp_path / "out.jsonl.html") as page:
                await page.until(DRAWN)
                await page.run("document.querySelectorAll('details').forEach(d => d.open = true)")
                await page.run(HOVER)
                return (
                    await page.run("window.hacked === undefined"),
                    await page.run("document.querySelectorAll('main img, main b b, dd b').length"),
                    await page.run("document.body.innerText"),
                    await page.run(
                        "[...document.querySelectorAll('svg text')].map(t => t.textContent)"
                    ),
                    page.complaints,
                )

        unhacked, tags, text, drawn, complaints = asyncio.run(look())
        assert unhacked
        assert tags == 0
        assert HOSTILE in text
        assert any(label.startswith("<script>window.hacked") for label in drawn)
        assert complaints == []


DRAWN = """[...document.querySelectorAll('[data-chart]')].every(
    (place) => place.dataset.drawn && place.querySelector('.main-svg'))"""
NAMES = "[...document.querySelectorAll('[data-chart]')].map((place) => place.dataset.chart)"
CELLS = """[...document.querySelectorAll('#models tbody tr')].map(
    (line) => [...line.cells].map((cell) => cell.innerText))"""
DATA = """Object.fromEntries([...document.querySelectorAll('[data-chart]')].map(
    (place) => [place.dataset.chart, place.data]))"""
COLOR = "document.querySelector('[data-chart]').data[0].marker.color[0]"
WIDTHS = (
    "[...document.querySelectorAll('.main-svg')].map((box) => box.getBoundingClientRect().width)"
)
HOVER = "document.querySelectorAll('[data-chart]').forEach((p) => Plotly.Fx.hover(p, [{curveNumber: 0, pointNumber: p.data[0].type === 'heatmap' ? [0, 0] : 0}]))"


def test_no_file_is_overwritten_that_a_report_did_not_make(output):
    """A mistyped name must not cost an input, nor the answers of another output."""
    write_jsonl(output / "in.jsonl", [{"text": "a"}])
    write_jsonl(output / "other.jsonl", list(rows(1)))
    (output / "notes.jsonl").write_text("not JSON\n")
    for flag in ("--vote", "--disputed"):
        for name in ("in.jsonl", "other.jsonl", "notes.jsonl"):
            before = (output / name).read_bytes()
            ended = batcher("report", "out.jsonl", flag, name, "--json", cwd=output)
            assert ended.returncode == 2
            assert f"{flag} {name}: it is there already".encode() in ended.stderr
            assert (output / name).read_bytes() == before
    for _ in range(2):  # Its own files it replaces, empty ones too.
        (output / "empty.jsonl").touch()
        report(output, "--vote", "votes.parquet", "--disputed", "empty.jsonl", "--json")


def test_what_a_scorer_says_is_not_contradicted(output):
    """F1 is of labels that are equal; an answer that only contains the gold is of none."""
    told = json.loads(report(output, "--gold", "gold", "--scorer", "contains", "--json"))
    assert {of["macro_f1"] for of in told["models"].values()} == {None}
    told = json.loads(report(output, "--gold", "gold", "--json"))
    assert all(of["macro_f1"] for of in told["models"].values())


def test_many_pairs_of_models_are_said_to_be_more(tmp_path):
    """On the terminal; the page and JSON have them all."""
    write_jsonl(tmp_path / "out.jsonl", list(rows(6, [f"m{n}" for n in range(8)])))
    text = report(tmp_path)
    assert text.count("the same answer") == 15
    assert "… and 13 more pairs of models" in text


def test_objects_are_the_same_vote_in_whatever_order_their_names_stand(tmp_path):
    """JSONL keeps each answer's own order."""
    said = [{"x": "a", "y": "b"}, {"y": "b", "x": "a", "z": None}]
    lines = [{**row, "parsed": said[at]} for at, row in enumerate(rows(1, ("large", "huge")))]
    for line in lines:
        line |= {"status": "ok", "content": "x"}
    write_jsonl(tmp_path / "out.jsonl", lines)
    assert json.loads(report(tmp_path, "--json"))["agreement"]["unanimous"] == 1
