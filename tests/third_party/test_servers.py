"""What batcher makes of servers that nobody here wrote."""

import json
import time

import pytest

from tests.support import program
from tests.support.program import read_jsonl, write_jsonl
from tests.third_party.servers import ALL, aimock, get, litellm, transformers
from tests.torture import tell

long_only = pytest.mark.skipif(not ALL, reason="scripts/third_party only, for its time")


def run(folder, url, *words, key="none", output="o.jsonl"):
    began = time.monotonic()
    ended = program.batcher("run", "in.jsonl", "-o", output, *words, cwd=folder, timeout=600,
                            OPENAI_BASE_URL=url, OPENAI_API_KEY=key)  # fmt: skip
    return (
        ended,
        read_jsonl(folder / output) if (folder / output).exists() else [],
        time.monotonic() - began,
    )


def test_chaos_costs_no_row_and_every_call_is_counted(tmp_path):
    """500s, broken JSON in a 200, cut connections: by aimock's own journal we know of each call."""
    rows = 2000 if ALL else 300
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": f"hello {n}"} for n in range(rows)])
    # Its 429s tell a limit of 60 a minute, which is obeyed: they would only make this long.
    chaos = ("--chaos-drop", "0.08", "--chaos-malformed", "0.05", "--chaos-disconnect", "0.05")
    with aimock(tmp_path, *chaos) as url:
        ended, out, seconds = run(tmp_path, f"{url}/v1", "-m", "gpt-x", "--max-retries", "12")
        _, headers = get(f"{url}/__aimock/journal?limit=1")
    assert ended.returncode == 0, ended.stderr.decode()
    assert [row["content"] for row in out] == ["Good day."] * rows
    calls = sum(row["attempts"] for row in out)
    assert int(headers["X-Total-Count"]) == calls
    assert calls > 1.1 * rows
    tell("aimock with chaos", rows=rows, calls=calls, seconds=f"{seconds:.0f}", failed=0)


@pytest.mark.parametrize("how", [(), ("--stream",)], ids=["whole", "stream"])
def test_each_kind_of_answer_is_told_apart(tmp_path, how):
    """By aimock, whole and as a stream."""
    said = ["hello", "cut short", "not allowed", "too long", "counted", "call it"]
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": text} for text in said])
    with aimock(tmp_path) as url:
        ended, out, _ = run(tmp_path, f"{url}/v1", "-m", "gpt-x", *how)
    assert ended.returncode == 3, ended.stderr.decode()
    statuses = ["ok", "truncated", "filtered", "context_length", "ok", "ok"]
    assert [row["status"] for row in out] == statuses
    assert (out[0]["content"], out[1]["content"], out[4]["content"]) == (
        "Good day.",
        "half an ans",
        "seven",
    )
    assert [call["function"] for call in out[5]["tool_calls"]] == [
        {"name": "label", "arguments": '{"label": "bug"}'}
    ]
    if not how:
        assert (out[4]["prompt_tokens"], out[4]["completion_tokens"]) == (11, 7)
    assert ("ttft_ms" in out[0]) == bool(how)


def test_litellms_proxy_gives_its_errors_names(tmp_path):
    """A model that it does not know is a 400 there, a key that is wrong another one."""
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": f"{n}"} for n in range(50)])
    with litellm(tmp_path) as url:
        ended, out, _ = run(tmp_path, url, "-m", "free", key="sk-loopback")
        streamed = run(
            tmp_path, url, "-m", "free", "--stream", key="sk-loopback", output="s.jsonl"
        )[1]
        unknown, _, _ = run(tmp_path, url, "-m", "nobody", key="sk-loopback", output="u.jsonl")
        wrong, _, _ = run(tmp_path, url, "-m", "free", key="sk-wrong", output="w.jsonl")
    assert ended.returncode == 0, ended.stderr.decode()
    assert {row["content"] for row in out} == {"bug"}
    assert all(row["total_tokens"] for row in out)
    assert [row["content"] for row in streamed] == [row["content"] for row in out]
    assert unknown.returncode == 2
    assert b"nobody" in unknown.stderr
    assert wrong.returncode == 2


@long_only
def test_the_limits_of_litellms_proxy_are_used_and_not_hit(tmp_path):
    """Nothing told: its headers and refusals are all there is. Two models at once."""
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": f"{n}"} for n in range(1500)])
    with litellm(tmp_path) as url:
        words = ("-m", "by-requests", "-m", "by-tokens", "--json", "--max-retries", "3")
        ended, out, seconds = run(tmp_path, url, *words, key="sk-loopback")
    assert ended.returncode == 0, ended.stderr.decode()
    told = json.loads(ended.stdout)["models"]
    refused = {model: of["answered_429"] / of["requests"] for model, of in told.items()}
    last = {
        model: max(row["created_at"] for row in out if row["model"] == model) for model in told
    }
    tell("LiteLLM's proxy", rows=len(out), seconds=f"{seconds:.0f}", last_sent=last,
         refused={m: f"{100 * part:.2f} %" for m, part in refused.items()})  # fmt: skip
    assert all(part <= 0.04 for part in refused.values())
    # 1,500 rows of 30 tokens are 45,000: three windows of a minute, of which the first is begun.
    assert seconds < 200


def test_a_real_models_counts_are_those_of_its_tokens(tmp_path):
    """`transformers serve`, whose tokens are bytes; the same answers whole and as streams."""
    texts = ["안녕 hi", "What is 2 + 2?", "né là", "x" * 200]
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": text} for text in texts])
    with transformers(tmp_path) as (url, model):
        words = (
            "-m",
            model,
            "--param",
            "max_tokens=12",
            "--param",
            "temperature=0",
            "--concurrency",
            "1",
        )
        ended, out, _ = run(tmp_path, url, *words)
        streamed = run(tmp_path, url, *words, "--stream", output="s.jsonl")[1]
        wrong, _, _ = run(tmp_path, url, "-m", "another", output="w.jsonl")
    assert ended.returncode in (0, 3), ended.stderr.decode()
    assert [row["prompt_tokens"] for row in out] == [len(text.encode()) + 1 for text in texts]
    assert all(row["http_status"] == 200 for row in out)
    same = ("status", "prompt_tokens", "completion_tokens", "finish_reason")
    assert [[row[n] for n in same] for row in streamed] == [[row[n] for n in same] for row in out]
    # Its streams leave out what is no whole character at the end; whole answers have U+FFFD there.
    texts = [[row["content"].replace("\ufffd", "") for row in rows] for rows in (out, streamed)]
    assert texts[0] == texts[1]
    assert wrong.returncode == 2
    assert b"pinned" in wrong.stderr
