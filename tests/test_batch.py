"""Batches of OpenAI and of vLLM's run-batch: their files in, their files out, their answers taken."""

import gzip
import json
from collections import Counter

import pyarrow.parquet as pq
import pytest

from batcher.batches.batch_file import answers_in, row_of
from batcher.simulate.server import running
from batcher.simulate.settings import Simulation
from tests.support import program
from tests.support.program import read_jsonl, write_jsonl

SMALL = ("-m", "sim-small")


def line(n, model="sim-small", **more):
    messages = [{"role": "user", "content": f"What is {n} + 1?"}]
    return {"custom_id": f"request-{n}", "method": "POST", "url": "/v1/chat/completions",
            "body": {"model": model, "messages": messages, **more}}  # fmt: skip


def answer(n, content="from the batch", status=200, **more):
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": content},
        "finish_reason": "stop",
    }
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    body = {"id": "c", "object": "chat.completion", "created": 1, "model": "sim-small-2026", "choices": [choice],
            "usage": usage}  # fmt: skip
    return {"id": f"batch_req_{n}", "custom_id": f"request-{n}", "error": None,
            "response": {"status_code": status, "request_id": f"req_{n}", "body": body}, **more}  # fmt: skip


@pytest.fixture
def run(tmp_path, gateway):
    def run(*words, command="run"):
        return program.batcher(command, *words, cwd=tmp_path, url=gateway.url)

    return run


def billed(gateway):
    return sum(of.billed for of in list(gateway.ledger.models.values()))


def test_a_batchs_input_gives_a_batchs_output(run, tmp_path):
    """Without a word: each line its model's, in order, whole completions in OpenAI's shape."""
    lines = [
        line(0),
        line(123456, "sim-large", logprobs=True, max_tokens=1),
        line(2, "no-such-model"),
        line(3),
    ]
    write_jsonl(tmp_path / "in.jsonl", lines)
    ended = run("in.jsonl", "-o", "out.jsonl")
    assert ended.returncode == 3, ended.stderr
    out = read_jsonl(tmp_path / "out.jsonl")
    assert [of["custom_id"] for of in out] == [of["custom_id"] for of in lines]
    assert all(of.keys() == {"id", "custom_id", "response", "error"} for of in out)
    assert len({of["id"] for of in out}) == 4
    for of, want in zip(out, ("sim-small", "sim-large", None, "sim-small"), strict=True):
        assert of["error"] is None
        assert of["response"].keys() == {"status_code", "request_id", "body"}
        if want is None:
            assert of["response"]["status_code"] == 404
            assert of["response"]["body"]["error"]["code"] == "model_not_found"
            continue
        body = of["response"]["body"]
        assert (of["response"]["status_code"], body["object"], body["model"]) == (
            200,
            "chat.completion",
            want,
        )
        assert (
            body["usage"]["total_tokens"]
            == body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"]
        )
    assert out[1]["response"]["body"]["choices"][0]["finish_reason"] == "length"
    assert out[1]["response"]["body"]["choices"][0]["logprobs"]["content"]
    # Exported again it is the same, and other commands read it as rows.
    run("out.jsonl", "again.jsonl", command="export")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()
    shown = run("out.jsonl", command="show").stdout.decode()
    assert "(request-0) · sim-small · ok" in shown
    assert "not_found" in shown


def test_the_format_is_as_asked(run, tmp_path):
    """Rows of other kinds are rows, unless it is said; and the other way round."""
    write_jsonl(tmp_path / "batch.jsonl", [line(0), line(1)])
    write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    write_jsonl(tmp_path / "mixed.jsonl", [line(0), {"prompt": "b", "model": "sim-small"}])
    for name, words, rows in (
        ("batch", ("--format", "rows"), True),
        ("rows", (*SMALL, "--format", "openai"), False),
        ("mixed", (), True),
        ("rows", (*SMALL, "--format", "openai", "--keep-raw"), False),
    ):
        assert run(f"{name}.jsonl", "-o", "o.jsonl", *words, "--overwrite").returncode == 0
        assert all(("status" in row) == rows for row in read_jsonl(tmp_path / "o.jsonl")), (
            name,
            words,
        )
    assert read_jsonl(tmp_path / "o.jsonl")[0]["response"]["body"]["id"].startswith("chatcmpl-")
    assert (
        b"lines of a batch are JSONL"
        in run("rows.jsonl", "-o", "o.parquet", *SMALL, "--format", "openai").stderr
    )
    piped = run("rows.jsonl", "-o", "-", *SMALL, "--format", "openai").stdout.splitlines()
    assert sorted(json.loads(of)["custom_id"] for of in piped) == ["0", "1"]
    ended = run("batch.jsonl", "-o", "o2.parquet")
    assert ended.returncode == 0
    assert pq.read_table(tmp_path / "o2.parquet")["status"].to_pylist() == ["ok", "ok"]


def test_what_was_never_answered_has_an_error(tmp_path):
    """As OpenAI tells expired requests."""
    write_jsonl(tmp_path / "in.jsonl", [line(0)])
    with running(Simulation(speed=0, faults={"disconnect": 1})) as gateway:
        ended = program.batcher("run", "in.jsonl", "-o", "o.jsonl", "--max-retries", "0", cwd=tmp_path,
                                url=gateway.url)  # fmt: skip
    assert ended.returncode == 3
    (told,) = read_jsonl(tmp_path / "o.jsonl")
    assert (told["response"], told["error"]["code"]) == (None, "connection")


def test_answers_of_a_finished_batch_are_taken_and_the_rest_is_sent(run, tmp_path, gateway):
    """By custom_id: failures of it, and what it lacks, are sent; twice it costs nothing more."""
    write_jsonl(tmp_path / "in.jsonl", [line(n) for n in range(6)])
    write_jsonl(tmp_path / "output.jsonl", [answer(n) for n in (4, 0, 2)])
    failed = answer(1, status=429)
    failed["response"]["body"] = {"error": {"message": "rate", "code": "rate_limit_exceeded"}}
    expired = {"id": "x", "custom_id": "request-3", "response": None,
               "error": {"code": "batch_expired", "message": "expired"}}  # fmt: skip
    write_jsonl(tmp_path / "errors.jsonl", [failed, expired])
    words = ("in.jsonl", "-o", "o.jsonl", "--from-batch", "output.jsonl", "--from-batch", "errors.jsonl",
             "--format", "rows")  # fmt: skip
    ended = run(*words)
    assert ended.returncode == 0, ended.stderr
    assert b"3 answers are taken from output.jsonl, errors.jsonl" in ended.stderr
    assert billed(gateway) == 3
    rows = read_jsonl(tmp_path / "o.jsonl")
    assert [row["content"] == "from the batch" for row in rows] == [
        True,
        False,
        True,
        False,
        True,
        False,
    ]
    assert (rows[0]["total_tokens"], rows[0]["response_model"], rows[0]["request_id"]) == (
        10,
        "sim-small-2026",
        "req_0",
    )
    assert run(*words, "--max-total-tokens", "100000").returncode == 0
    assert billed(gateway) == 3
    assert [row["attempts"] == 0 for row in rows] == [
        row["content"] == "from the batch" for row in rows
    ]
    # A row that asks something else now is not answered by what the batch was asked.
    changed = [line(n) for n in range(6)]
    changed[0]["body"]["messages"][0]["content"] = "What is 10 + 10?"
    write_jsonl(tmp_path / "in.jsonl", changed)
    assert run(*words).returncode == 0
    assert billed(gateway) == 4
    assert read_jsonl(tmp_path / "o.jsonl")[0]["content"] != "from the batch"
    # Nor is one that was bought here replaced.
    write_jsonl(tmp_path / "output.jsonl", [answer(n) for n in range(6)])
    assert run(*words).returncode == 0
    assert [row["content"] == "from the batch" for row in read_jsonl(tmp_path / "o.jsonl")] == [
        False, False, True, False, True, False]  # fmt: skip
    # More of it later, such as the output of a second batch.
    write_jsonl(tmp_path / "in.jsonl", [line(n) for n in range(8)])
    write_jsonl(tmp_path / "output.jsonl", [answer(n) for n in (4, 0, 2, 7)])
    assert run(*words).returncode == 0
    assert billed(gateway) == 5
    assert read_jsonl(tmp_path / "o.jsonl")[7]["content"] == "from the batch"


def test_answers_of_a_batch_are_checked_like_others(run, tmp_path, gateway):
    write_jsonl(tmp_path / "in.jsonl", [line(0), line(1)])
    write_jsonl(tmp_path / "output.jsonl", [answer(0, "BUG."), answer(1, "no idea")])
    ended = run(
        "in.jsonl",
        "-o",
        "o.jsonl",
        "--from-batch",
        "output.jsonl",
        "--format",
        "rows",
        "--labels",
        "bug,ok",
    )
    assert ended.returncode == 3
    rows = read_jsonl(tmp_path / "o.jsonl")
    assert [(row["status"], row["parsed"]) for row in rows] == [("ok", "bug"), ("invalid", None)]
    assert billed(gateway) == 0


@pytest.mark.parametrize("name", ["output.jsonl.gz", "output.json", "output.txt"])
def test_answers_are_found_in_whatever_the_output_was_saved_as(tmp_path, name):
    """Packed, as an array, with a mark at its start; with numbers for names, as a table leaves them."""
    lines = [{**answer(n), "custom_id": n} for n in (1, 2)]
    content = "\ufeff" + "\n".join(map(json.dumps, lines))
    if name.endswith(".json"):
        content = "\ufeff" + json.dumps(lines)
    path = tmp_path / name
    path.write_bytes(gzip.compress(content.encode()) if name.endswith("gz") else content.encode())
    found = dict(answers_in([str(path)]))
    assert [of.content for of in found.values()] == ["from the batch"] * 2
    assert list(found) == ["1", "2"]
    assert row_of(lines[0], 0)["custom_id"] == "1"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--from-batch", "none.jsonl"), b"none.jsonl: there is no such file"),
        (("--from-batch", "in.jsonl"), b"in.jsonl:1: not a line of a batch's output"),
        (("--from-batch", "other.jsonl"), b"no row of the input has one of its custom_ids"),
        (("--from-batch", "junk.jsonl"), b"junk.jsonl:1: not JSON"),
        (("--from-batch", "other.jsonl", "--overwrite"), b"--from-batch and --overwrite"),
    ],
)
def test_what_is_no_output_of_this_batch_is_said(run, tmp_path, gateway, words, why):
    """Before anything is sent."""
    write_jsonl(tmp_path / "in.jsonl", [line(0)])
    write_jsonl(tmp_path / "other.jsonl", [answer(9)])
    (tmp_path / "junk.jsonl").write_text("hello\n")
    ended = run("in.jsonl", "-o", "o.jsonl", *words)
    assert ended.returncode == 2
    assert why in ended.stderr
    assert billed(gateway) == 0


def test_rows_become_a_batchs_input_which_runs_the_same(run, tmp_path, gateway):
    """The bodies are those that would have been sent."""
    write_jsonl(
        tmp_path / "rows.jsonl",
        [{"text": f"né {n}", "custom_id": f"r{n}"} for n in range(3)] + [{"x": 1}],
    )
    how = ("--prompt", "Say {{ text }}", "--system", "Be brief.", "--param", "max_tokens=5")
    ended = run("rows.jsonl", "-o", "batch.jsonl", *SMALL, *how, command="convert")
    assert ended.returncode == 3
    assert b"3 requests in batch.jsonl; 1 rows cannot be sent and are left out" in ended.stderr
    lines = read_jsonl(tmp_path / "batch.jsonl")
    assert [of["custom_id"] for of in lines] == ["r0", "r1", "r2"]
    assert lines[0]["body"] == {
        "model": "sim-small", "max_tokens": 5,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say né 0"}],
    }  # fmt: skip
    run("rows.jsonl", "-o", "a.jsonl", *SMALL, *how)
    run("batch.jsonl", "-o", "b.jsonl", "--format", "rows")
    contents = [
        [row["content"] for row in read_jsonl(tmp_path / f"{name}.jsonl")] for name in "ab"
    ]
    assert contents[0][:3] == contents[1]
    assert len(gateway.ledger.received_by_key) == 3  # Different bodies that came.
    two = run("rows.jsonl", "-o", "two.jsonl", *SMALL, "-m", "sim-large", *how, command="convert")
    assert two.returncode == 3
    assert (
        Counter(of["custom_id"] for of in read_jsonl(tmp_path / "two.jsonl")).most_common(1)[0][1]
        == 1
    )
    assert (
        b"it is there already"
        in run("rows.jsonl", "-o", "two.jsonl", *SMALL, command="convert").stderr
    )


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_batchs_output_becomes_rows(run, tmp_path, suffix):
    """OpenAI's and vLLM's, whose errors are texts beside a response without a body."""
    calls = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    called = answer(2, None)
    called["response"]["body"]["choices"][0] |= {
        "message": {"role": "assistant", "tool_calls": calls}
    }
    vllm = {"id": "vllm-1", "custom_id": "request-1", "error": "the prompt is too long",
            "response": {"status_code": 400, "request_id": "vllm-batch-1", "body": None}}  # fmt: skip
    write_jsonl(tmp_path / "output.jsonl", [answer(0, "né"), vllm, called])
    ended = run("output.jsonl", "-o", f"rows.{suffix}", command="convert")
    assert ended.returncode == 0, ended.stderr
    path = tmp_path / f"rows.{suffix}"
    rows = read_jsonl(path) if suffix == "jsonl" else pq.read_table(path).to_pylist()
    assert [row["custom_id"] for row in rows] == ["request-0", "request-1", "request-2"]
    assert [row["status"] for row in rows] == ["ok", "connection", "ok"]
    assert (rows[0]["content"], rows[0]["total_tokens"], rows[0]["model"]) == (
        "né",
        10,
        "sim-small-2026",
    )
    assert (rows[1]["error"], rows[1]["http_status"]) == ("the prompt is too long", 400)
    told = rows[2]["tool_calls"]
    assert (json.loads(told) if suffix == "parquet" else told) == calls


def test_answers_of_several_models_are_taken_by_the_names_that_convert_gave(
    run, tmp_path, gateway
):
    """And whose they are is said, where a body names another model."""
    write_jsonl(
        tmp_path / "in.jsonl", [{"prompt": f"{n}", "custom_id": f"r{n}"} for n in range(2)]
    )
    both = ("-m", "sim-small", "-m", "sim-large")
    run("in.jsonl", "-o", "batch.jsonl", *both, command="convert")
    made = [
        answer(n) | {"custom_id": of["custom_id"]}
        for n, of in enumerate(read_jsonl(tmp_path / "batch.jsonl"))
    ]
    write_jsonl(tmp_path / "output.jsonl", made[:3])
    ended = run("in.jsonl", "-o", "o.jsonl", *both, "--from-batch", "output.jsonl")
    assert ended.returncode == 0, ended.stderr
    assert b"3 answers are taken from output.jsonl, 1 of which name another model" in ended.stderr
    assert billed(gateway) == 1


def test_rows_that_could_not_be_read_stay_so(run, tmp_path):
    write_jsonl(tmp_path / "in.jsonl", [line(0), line(1) | {"body": "not JSON"}])
    assert run("in.jsonl", "-o", "o.jsonl").returncode == 3
    run("o.jsonl", "-o", "rows.jsonl", command="convert")
    assert [row["status"] for row in read_jsonl(tmp_path / "rows.jsonl")] == ["ok", "unreadable"]


def test_samples_keep_their_numbers(run, tmp_path):
    """So that an output of a batch's lines can be compared and read like another."""
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": f"{n}"} for n in range(3)])
    assert (
        run("in.jsonl", "-o", "o.jsonl", *SMALL, "--samples", "2", "--format", "openai").returncode
        == 0
    )
    run("o.jsonl", "-o", "rows.jsonl", command="convert")
    assert [row["sample"] for row in read_jsonl(tmp_path / "rows.jsonl")] == [0, 1] * 3
    assert run("o.jsonl", "rows.jsonl", command="compare").returncode == 0
