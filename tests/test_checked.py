"""Answers that must be labels or fit a schema: asked for, checked, asked again, kept with their type."""

import asyncio
import json
import threading
from collections import Counter
from contextlib import contextmanager

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp import web

import batcher
from batcher.job.job import Job
from batcher.money import spending
from batcher.runtime.runner import Runner
from tests.support import program
from tests.support.program import read_jsonl, write_jsonl

LABELS = "bug,billing,account,shipping,other"
ROWS = [{"id": n, "text": f"Ticket {n}: I was charged twice."} for n in range(40)]
TICKET = {
    "type": "object",
    "properties": {
        "label": {"type": "string", "enum": ["bug", "billing"]},
        "urgent": {"type": "boolean"},
        "score": {"type": ["number", "null"]},
    },
    "required": ["label", "urgent", "score"],
}


@pytest.fixture
def run(tmp_path, gateway):
    write_jsonl(tmp_path / "in.jsonl", ROWS)

    def run(*words):
        return program.batcher(
            "run", "in.jsonl", "--prompt", "{{ text }}", *words, cwd=tmp_path, url=gateway.url
        )

    return run


@contextmanager
def answering(answer):
    """A server whose answers are made by a function of the body: (status, JSON)."""
    bodies = []

    async def handle(request):
        body = await request.json()
        bodies.append(body)
        status, data = answer(body, len(bodies))
        if status == 200:
            message = {"role": "assistant", "content": data}
            data = {
                "choices": [{"message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11},
            }
        return web.json_response(data, status=status)

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start():
        app = web.Application()
        app.router.add_post("/v1/chat/completions", handle)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    runner = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1", bodies
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def test_labels_are_asked_for_in_the_form_that_a_model_takes(run, tmp_path, gateway):
    """One that refuses schemas costs one refusal, not one for each row; its rows keep their keys."""
    words = ("-o", "out.parquet", "--labels", LABELS, "-m", "sim-small", "-m", "sim-large")
    ended = run(*words)
    assert ended.returncode == 0, ended.stderr.decode()
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.field("parsed").type == pa.string()
    assert set(table["parsed"].to_pylist()) <= set(LABELS.split(","))
    assert table.column_names.index("parsed") == table.column_names.index("content") + 1
    models = gateway.ledger.models
    assert [models[name].received for name in ("sim-small", "sim-large")] == [40, 40]
    assert gateway.ledger.strangers[400] == 1
    assert run(*words).returncode == 0
    assert sum(model.received for model in models.values()) == 80


def test_answers_of_a_schema_have_its_type(run, tmp_path):
    """A struct in Parquet, JSON in JSONL, the same in both."""
    (tmp_path / "ticket.json").write_text(json.dumps(TICKET))
    for name in ("out.parquet", "out.jsonl"):
        assert run("-o", name, "--schema", "ticket.json", "-m", "sim-small").returncode == 0
    column = pq.read_table(tmp_path / "out.parquet")["parsed"]
    assert column.type == pa.struct(
        {"label": pa.string(), "urgent": pa.bool_(), "score": pa.float64()}
    )
    assert column.to_pylist() == [row["parsed"] for row in read_jsonl(tmp_path / "out.jsonl")]
    exported = program.batcher("export", "out.parquet", "again.parquet", cwd=tmp_path)
    assert exported.returncode == 0
    assert pq.read_table(tmp_path / "again.parquet")["parsed"].equals(column)


def test_what_does_not_fit_is_asked_for_again_and_all_of_it_is_counted(run, tmp_path, gateway):
    """The row's tokens are those of every answer to it, as the ledger has them."""
    gateway.gateway.shares = {"invalid": 0.4, "http_500": 0.1}
    ended = run("-o", "out.jsonl", "--labels", LABELS, "-m", "sim-large", "--json")
    rows = read_jsonl(tmp_path / "out.jsonl")
    assert ended.returncode == 3
    assert {row["status"] for row in rows} == {"ok", "invalid"}
    again = [row for row in rows if row["status"] == "ok" and row["attempts"] > 1]
    assert again
    for row in rows:
        assert (row["parsed"] in LABELS.split(",")) is (row["status"] == "ok")
        assert (row["error"] is None) is (row["status"] == "ok")
    bad = next(row for row in rows if row["status"] == "invalid")
    assert bad["content"] == "Let me think about that first."
    assert "none of the labels bug, billing" in bad["error"]
    account = gateway.ledger.models["sim-large"]
    assert sum(row["attempts"] for row in rows) == account.received
    for name in ("prompt", "completion", "cached"):
        assert sum(row[f"{name}_tokens"] for row in rows) == account.tokens[name]
    told = json.loads(ended.stdout)["models"]["sim-large"]
    assert told["thrown_away"]["answers"] == account.billed - len(rows)
    assert b"thrown away: " in ended.stderr
    explained = program.batcher("explain", "out.jsonl", str(bad["row"]), cwd=tmp_path).stdout
    assert explained.count(b"none of the labels") == 2
    before = account.received
    assert run("-o", "out.jsonl", "--labels", LABELS, "-m", "sim-large").returncode == 3
    assert account.received == before
    gateway.gateway.shares = {}
    words = ("-o", "out.jsonl", "--labels", LABELS, "-m", "sim-large", "--retry", "invalid")
    assert run(*words).returncode == 0


@pytest.mark.parametrize("content", ['{"a": "\\\\ud83d"}', f'{{"a": {"[" * 400}1{"]" * 400}}}'])
def test_an_odd_answer_is_a_row_and_not_the_end(tmp_path, content):
    """Half an emoji, or lists without end: it was paid for, and the others go on."""
    content = content.replace("\\\\", "\\")

    def answer(_body, n):
        return 200, content if n == 2 else '{"a": "b"}'

    with answering(answer) as (url, bodies):
        rows = [{"prompt": str(n)} for n in range(5)]
        how = {"models": ["m"], "base_url": url, "reask": 0, "concurrency": 1}
        schema = {"type": "object", "properties": {"a": {}}}
        batcher.run(rows, output=tmp_path / "o.parquet", schema=schema, **how)
    statuses = pq.read_table(tmp_path / "o.parquet")["status"].to_pylist()
    assert sorted(statuses) in (["invalid", *["ok"] * 4], ["ok"] * 5)
    assert len(bodies) == 5


def test_answers_that_fit_no_one_type_are_kept_as_text(tmp_path):
    """Kept under another schema, or of a schema that allows more than its properties say."""
    said = iter(['{"a": 1}', "5", '"x"'])
    with answering(lambda _body, _n: (200, next(said))) as (url, _):
        rows = [{"prompt": str(n)} for n in range(3)]
        how = {"models": ["m"], "base_url": url, "concurrency": 1}
        schema = {"properties": {"a": {"type": "integer"}}, "required": ["a"]}
        batcher.run(rows, output=tmp_path / "o.parquet", schema=schema, **how)
    column = pq.read_table(tmp_path / "o.parquet")["parsed"]
    assert sorted(column.to_pylist()) == ['"x"', "5", '{"a":1}']


@pytest.mark.parametrize("route", ["each", "split", "fallback"])
@pytest.mark.parametrize("asks", [{"labels": ["a", "b"]}, {"grow_max_tokens": 64}])
def test_a_stop_between_an_answer_and_its_re_ask_leaves_the_row_to_be_asked(tmp_path, asks, route):
    """What was answered was paid for: it is kept, counted, and never the last word."""
    stopping = []

    def answer(_body, n):
        if n == 1:
            stopping[0].stop()
        good = 3 if "grow_max_tokens" in asks else 2  # One re-ask, or two larger bounds.
        said = "spam" if n < good else "a"
        finish = "length" if n < good == 3 else "stop"
        message = {"role": "assistant", "content": said}
        usage = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
        return 201, {"choices": [{"message": message, "finish_reason": finish}], "usage": usage}

    with answering(answer) as (url, bodies):
        write_jsonl(tmp_path / "in.jsonl", [{"prompt": "x"}])
        job = Job.of(
            inputs=[str(tmp_path / "in.jsonl")], output=tmp_path / "o.jsonl", base_url=url, quiet=True,
            models=["m"] if route == "each" else ["m", "n"], route=route, params={"max_tokens": 16},
            concurrency=1, **asks,
        )  # fmt: skip
        stopping.append(Runner(job))
        assert asyncio.run(stopping[0].run()).exit_status == 130
        assert len(bodies) == 1
        status = program.batcher("status", "o.jsonl", cwd=tmp_path).stdout
        exported = program.batcher("export", "o.jsonl", "part.jsonl", cwd=tmp_path)
        assert exported.returncode == 3, exported.stderr
        (kept,) = read_jsonl(tmp_path / "part.jsonl")
        assert asyncio.run(Runner(job).run()).exit_status == 0
    assert b"1 of 1 pending" in status
    assert kept["content"] == "spam"
    assert kept["error"].endswith("asked again: the run was stopped")
    (row,) = read_jsonl(tmp_path / "o.jsonl")
    assert (row["status"], row["content"]) == ("ok", "a")
    # The next start went on where the talk had ended, and bought nothing twice.
    if "labels" in asks:
        assert [len(body["messages"]) for body in bodies] == [1, 3]
    else:
        assert [body["max_tokens"] for body in bodies] == [16, 32, 64]
    assert not row.keys() & {"stopped", "copied"}
    # The first bill stands in the journal, and in no row.
    assert spending.begin(tmp_path / "o.jsonl.run", 0, bounded=True).tokens == 11 * len(bodies)


def test_a_server_that_says_no_more_than_bad_request_is_tried_without_a_schema(tmp_path):
    """Before anything was answered, that may be what it means."""

    def answer(body, _n):
        if "response_format" in body:
            return 400, {"error": {"message": "Bad request"}}
        return 200, "a"

    with answering(answer) as (url, _):
        how = {"models": ["m"], "base_url": url, "labels": ["a", "b"]}
        report = batcher.run([{"prompt": "x"}] * 5, output=tmp_path / "o.jsonl", **how)
    assert report.exit_status == 0


@pytest.mark.parametrize("route", ["split", "fallback"])
def test_a_route_asks_again_as_often_as_one_model_would(run, tmp_path, gateway, route):
    """However many models there are: in a split they share the row's tries."""
    gateway.gateway.shares = {"invalid": 1.0}
    words = ("--labels", LABELS, "-m", "sim-medium", "-m", "sim-large", "--route", route)
    ended = run("-o", "o.jsonl", *words, "--json")
    (tmp_path / "told.json").write_bytes(ended.stdout)
    assert ended.returncode == 3
    assert {row["status"] for row in read_jsonl(tmp_path / "o.jsonl")} == {"invalid"}
    models = gateway.ledger.models.values()
    asked = sum(model.received for model in models)
    assert asked == (80 if route == "split" else 160)
    if route == "split":  # A row has the tokens of both its answers, whoever gave them.
        billed = sum(model.tokens["prompt"] for model in models)
        assert sum(row["prompt_tokens"] for row in read_jsonl(tmp_path / "o.jsonl")) == billed
        told = json.loads((tmp_path / "told.json").read_bytes())["models"].values()
        assert sum(model["tokens"]["prompt"] for model in told) == billed


def test_without_a_re_ask_the_first_answer_is_the_last(run, tmp_path, gateway):
    """--reask 0 pays for one answer a row."""
    gateway.gateway.shares = {"invalid": 1.0}
    ended = run("-o", "o.jsonl", "--labels", LABELS, "-m", "sim-large", "--reask", "0")
    assert ended.returncode == 3
    assert {row["status"] for row in read_jsonl(tmp_path / "o.jsonl")} == {"invalid"}
    assert gateway.ledger.models["sim-large"].received == 40


def test_a_model_that_takes_no_response_format_at_all_is_told_in_the_prompt(tmp_path):
    """And what it is told says everything."""

    def answer(body, _n):
        if "response_format" in body:
            return 400, {"error": {"message": "response_format is not supported", "type": "x"}}
        return 200, 'Here: {"label": "bug", "urgent": false, "score": 1}'

    with answering(answer) as (url, bodies):
        report = batcher.run(
            [{"prompt": "a"}, {"prompt": "b"}],
            output=tmp_path / "o.jsonl",
            models=["m"],
            base_url=url,
            schema=TICKET,
        )
    forms = [body.get("response_format", {}).get("type") for body in bodies]
    # The second row may be on its way before the first is answered.
    assert list(dict.fromkeys(forms)) == ["json_schema", "json_object", None]
    assert forms.count(None) == 2
    assert len(forms) <= 6
    assert '"enum": ["bug", "billing"]' in bodies[-1]["messages"][0]["content"]
    assert report.summary.models["m"].loose == 2
    assert [row["parsed"]["label"] for row in read_jsonl(tmp_path / "o.jsonl")] == ["bug"] * 2


def test_a_re_ask_that_fails_keeps_the_answer_that_was_paid_for(tmp_path):
    """It is no ok, but it is an answer, and is not bought again."""

    def answer(_body, n):
        return (200, "spam") if n == 1 else (500, {"error": {"message": "down"}})

    with answering(answer) as (url, bodies):
        how = {"models": ["m"], "base_url": url, "labels": ["a", "b"], "max_retries": 0}
        batcher.run([{"prompt": "x"}], output=tmp_path / "o.jsonl", **how)
        batcher.run([{"prompt": "x"}], output=tmp_path / "o.jsonl", **how)
    (row,) = read_jsonl(tmp_path / "o.jsonl")
    assert (row["status"], row["content"], row["attempts"]) == ("invalid", "spam", 2)
    assert row["error"] == "it is none of the labels a, b; asked again: down"
    assert row["prompt_tokens"] == 10
    assert len(bodies) == 2
    assert [message["role"] for message in bodies[1]["messages"]] == ["user", "assistant", "user"]


def test_an_answer_of_many_kilobytes_is_not_sent_back(tmp_path):
    """It would be paid for once more, as input."""
    with answering(lambda _body, n: (200, "x" * 70_000 if n == 1 else "a")) as (url, bodies):
        how = {"models": ["m"], "base_url": url, "labels": ["a", "b"]}
        batcher.run([{"prompt": "x"}], output=tmp_path / "o.jsonl", **how)
    assert read_jsonl(tmp_path / "o.jsonl")[0]["status"] == "invalid"
    assert len(bodies) == 1


def test_a_schema_may_be_a_model_of_pydantic(tmp_path, gateway):
    """Or whatever has its method."""

    class Ticket:
        @classmethod
        def model_json_schema(cls):
            return TICKET

    batcher.run(
        [{"prompt": "I was charged twice"}],
        output=tmp_path / "o.parquet",
        models=["sim-large"],
        base_url=gateway.url,
        schema=Ticket,
    )
    (value,) = pq.read_table(tmp_path / "o.parquet")["parsed"].to_pylist()
    assert value["label"] == "billing"


def test_a_number_beyond_arrow_is_kept_as_text(tmp_path):
    """The output is written all the same, and says so."""
    with answering(lambda _body, _n: (200, str(1 << 70))) as (url, _):
        write_jsonl(tmp_path / "in.jsonl", [{"prompt": "x"}])
        (tmp_path / "s.json").write_text('{"type": "integer"}')
        words = ("run", "in.jsonl", "-o", "o.parquet", "-m", "m", "--schema", "s.json")
        ended = program.batcher(*words, cwd=tmp_path, url=url)
    assert ended.returncode == 0, ended.stderr.decode()
    assert b"'parsed' is a column of JSON text" in ended.stderr
    assert pq.read_table(tmp_path / "o.parquet")["parsed"].to_pylist() == [str(1 << 70)]


def test_what_was_truncated_is_sent_again_with_a_larger_bound(run, tmp_path, gateway):
    """Twice as much each time, never above N; the tokens of all of it are the row's."""
    words = ("-o", "o.jsonl", "-m", "sim-large", "--param", "max_tokens=2")
    assert run(*words).returncode == 3
    assert {row["status"] for row in read_jsonl(tmp_path / "o.jsonl")} == {"truncated"}
    assert run(*words, "--grow-max-tokens", "64", "--retry", "truncated").returncode == 0
    rows = read_jsonl(tmp_path / "o.jsonl")
    assert {row["status"] for row in rows} == {"ok"}
    assert min(row["attempts"] for row in rows) > 2
    short = run("-o", "p.jsonl", *words[2:], "--grow-max-tokens", "3")
    assert short.returncode == 3
    rows = read_jsonl(tmp_path / "p.jsonl")
    assert {(row["status"], row["attempts"]) for row in rows} == {("truncated", 2)}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--labels", "a,b", "--schema", "s.json"], "one of them"),
        (["--labels", "a"], "two or more"),
        (["--labels", "a,b,a"], "a is in it twice"),
        (["--labels", '["a", 1]'], "no JSON list of texts"),
        (["--labels", '["a", "'], "no JSON list of texts"),
        (["--schema", "none.json"], "cannot be read"),
        (["--schema", "in.jsonl"], "invalid JSON"),
        (["--schema", "bad.json"], "no JSON Schema"),
        (["--schema", "far.json"], "no JSON Schema"),
        (["--labels", "a,b", "--param", "response_format={}"], "leave it out"),
        (["--labels", "a,b", "--reask", "-1"], "--reask"),
        (["--grow-max-tokens", "0"], "more than 0"),
    ],
)
def test_what_cannot_be_checked_is_said_before_anything_is_sent(
    run, tmp_path, gateway, words, said
):
    """Exit 2, with what to change."""
    (tmp_path / "bad.json").write_text('{"type": "objct"}')
    (tmp_path / "far.json").write_text('{"$ref": "http://127.0.0.1:9/x.json"}')
    (tmp_path / "s.json").write_text("{}")
    ended = run("-o", "o.jsonl", "-m", "sim-small", *words)
    assert ended.returncode == 2
    assert said in ended.stderr.decode()
    assert not gateway.ledger.models
    assert not (tmp_path / "o.jsonl.run").exists()


def test_another_schema_asks_before_it_spends(run, tmp_path):
    """Answers to the old one were paid for."""
    assert run("-o", "o.jsonl", "-m", "sim-large", "--labels", "bug,billing").returncode == 0
    changed = run("-o", "o.jsonl", "-m", "sim-large", "--labels", "bug,billing,other")
    assert changed.returncode == 2
    assert b"--labels changed since the last run: 40 answers paid for" in changed.stderr
    assert msgspec.json.decode((tmp_path / "o.jsonl.run" / "run.json").read_bytes())["asked"]


def test_log_probabilities_tell_how_sure_a_model_was_of_each_label(run, tmp_path):
    """In both formats, and in neither where the server was not asked for them."""
    told = ("--labels", LABELS, "-m", "sim-small", "-m", "sim-large", "-n", "10")
    more = ("--param", "logprobs=true", "--param", "top_logprobs=5")
    assert run("-o", "out.jsonl", *told, *more).returncode == 0
    assert run("-o", "out.parquet", *told, *more).returncode == 0
    assert run("-o", "none.jsonl", *told).returncode == 0
    rows = read_jsonl(tmp_path / "out.jsonl")
    for row in rows:
        sure = row["confidences"]
        assert max(sure, key=sure.get) == row["parsed"] or sure[row["parsed"]] >= 0.4
        assert len(sure) == 5
        assert sum(sure.values()) == pytest.approx(1.0, abs=1e-4)
    assert len({row["confidences"]["billing"] for row in rows}) > 5
    table = pq.read_table(tmp_path / "out.parquet")
    assert [json.loads(text) for text in table["confidences"].to_pylist()] == [
        row["confidences"] for row in rows
    ]
    assert not any("confidences" in row for row in read_jsonl(tmp_path / "none.jsonl"))


def whose_text_is(bad, *, without="response_format"):
    """Refuses rows of a text, whatever the form; and, if `without`, all that have this field, in words that say nothing."""

    def answer(body, _n):
        text = body["messages"][-1]["content"]
        if text.startswith(bad) or (without and without in body):
            return 400, {"error": {"message": "Bad request"}}
        return 200, "a"

    return answer


def forms_of(bodies):
    return Counter((body.get("response_format") or {}).get("type") for body in bodies)


def test_a_row_that_is_refused_for_its_own_text_takes_no_form_from_the_others(tmp_path):
    """Row 0 is refused in every form; the others are asked with the schema, and answered once."""
    rows = [{"prompt": "bad"}] + [{"prompt": f"good {n}"} for n in range(29)]
    with answering(whose_text_is("bad", without=None)) as (url, bodies):
        how = {"models": ["m"], "base_url": url, "labels": ["a", "b"]}
        report = batcher.run(rows, output=tmp_path / "o.jsonl", **how)
        first = len(bodies)
        batcher.run(
            rows, output=tmp_path / "o.jsonl", **how
        )  # Row 0 again: the form is known by now.
    assert forms_of(bodies[:first]) == {"json_schema": 30, None: 2}
    assert forms_of(bodies[first:]) == {"json_schema": 1}
    found = Counter(row["status"] for row in read_jsonl(tmp_path / "o.jsonl"))
    assert found == {"ok": 29, "bad_request": 1}
    assert report.summary.models["m"].given_up == ""


def test_a_form_is_given_up_when_the_same_row_passes_without_it_and_that_is_remembered(tmp_path):
    """The first row is refused for its text, the second for the form; a second start asks none with it again."""
    rows = [{"prompt": "bad"}] + [{"prompt": f"good {n}"} for n in range(9)]
    with answering(whose_text_is("bad")) as (url, bodies):
        how = {"models": ["m"], "base_url": url, "labels": ["a", "b"]}
        report = batcher.run(rows, output=tmp_path / "o.jsonl", limit=5, **how)
        first = len(bodies)
        assert report.summary.models["m"].given_up == "Bad request"
        batcher.run(rows, output=tmp_path / "o.jsonl", **how)
    assert forms_of(bodies[:first])["json_schema"] <= 5
    assert forms_of(bodies[first:]) == {None: 6}
    assert [row["status"] for row in read_jsonl(tmp_path / "o.jsonl")] == [
        "bad_request",
        *["ok"] * 9,
    ]


def test_a_model_that_gives_up_a_form_says_so_once(tmp_path):
    """In the table at the end, with what the refusal said."""

    def answer(body, _n):
        if "response_format" in body:
            return 400, {"error": {"message": "response_format is not supported here"}}
        return 200, "a"

    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "x"}] * 5)
    with answering(answer) as (url, _bodies):
        ended = program.batcher(
            "run", "in.jsonl", "-o", "o.jsonl", "-m", "m", "--labels", "a,b", cwd=tmp_path, url=url
        )
    told = " ".join(ended.stderr.decode().split())
    assert (
        told.count(
            "a schema in response_format, which it refuses (response_format is not supported here)"
        )
        == 1
    )
