"""Lines of batches, as the software that made them what they are reads them."""

import json
import subprocess

import pytest
from aiohttp import web

from tests.support import echo, program
from tests.support.program import read_jsonl, write_jsonl
from tests.third_party.servers import python_of

# What a chat completion, and a request for one, has to be: by the models of OpenAI's own package.
CHECK = """
import json, sys
from openai.types.chat import ChatCompletion
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from pydantic import ConfigDict, TypeAdapter

requests = TypeAdapter(CompletionCreateParamsNonStreaming)
for line in map(json.loads, sys.stdin):
    if "body" in line:
        assert set(line) == {"custom_id", "method", "url", "body"}, line
        requests.validate_python(line["body"])
        continue
    assert set(line) == {"id", "custom_id", "response", "error"}, line
    assert (line["response"] is None) != (line["error"] is None), line
    if line["error"] is not None:
        assert set(line["error"]) == {"code", "message"}
    elif line["response"]["status_code"] == 200:
        ChatCompletion.model_validate(line["response"]["body"], strict=True)
    print(line["custom_id"], "fits")
"""
CALL = {"id": "c", "type": "function", "function": {"name": "label", "arguments": "{}"}}
LOGPROBS = {"content": [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}]}
USAGE = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10,
         "prompt_tokens_details": {"cached_tokens": 4},
         "completion_tokens_details": {"reasoning_tokens": 1}}  # fmt: skip


def message(finish="stop", **more):
    choice = {"index": 0, "finish_reason": finish, "logprobs": None}
    told = {"role": "assistant", "content": "a"}
    return {**choice, "message": {**told, **more}}


CHOICES = {
    "ok": message(),
    "cut": message("length"),
    "called": message("tool_calls", content=None, tool_calls=[CALL]),
    "called in the old way": message("function_call", content=None, function_call=CALL["function"]),
    "refused": message(content=None, refusal="I cannot."),
    "filtered": message("content_filter"),
    "sure": {**message(), "logprobs": LOGPROBS},
    "finished in a way of its own": message("eos"),
    "thought": message(reasoning_content="hm"),
}  # fmt: skip


@pytest.mark.parametrize("raw", [(), ("--keep-raw",)], ids=["made", "raw"])
def test_openais_models_read_every_kind_of_line(tmp_path, raw):
    """Answers of every kind, failures over HTTP, and what was never answered."""

    async def answer(request):
        asked = (await request.json())["messages"][-1]["content"]
        if asked == "gone":
            request.transport.abort()
        if asked not in CHOICES:
            return web.json_response({"error": {"message": "no"}}, status=400)
        body = {"id": "r", "object": "chat.completion", "created": 1, "model": "m-1"}
        usage = {} if asked == "sure" else {"usage": USAGE}
        return web.json_response({**body, "choices": [CHOICES[asked]], **usage})

    asked = [name for name in CHOICES if not (raw and "way of its own" in name)]
    write_jsonl(tmp_path / "rows.jsonl", [{"prompt": name} for name in [*asked, "bad", "gone"]])
    with echo.running(answer) as gateway:
        for words in (
            (
                "convert",
                "rows.jsonl",
                "-o",
                "in.jsonl",
                "--model",
                "m",
                "--param",
                "temperature=0",
            ),
            ("run", "in.jsonl", "-o", "out.jsonl", "--max-retries", "0", *raw),
        ):
            ended = program.batcher(*words, cwd=tmp_path, url=gateway.url)
            assert ended.returncode in (0, 3), ended.stderr.decode()
    lines = (tmp_path / "in.jsonl").read_bytes() + (tmp_path / "out.jsonl").read_bytes()
    words = [python_of("openai"), "-c", CHECK]
    checked = subprocess.run(words, input=lines, capture_output=True, check=False, timeout=120)
    assert checked.returncode == 0, checked.stderr.decode()
    assert checked.stdout.count(b" fits\n") == len(asked) + 2
    told = {line["custom_id"]: line for line in read_jsonl(tmp_path / "out.jsonl")}
    assert [line["response"] is None for line in told.values()] == [False] * (len(asked) + 1) + [
        True
    ]
    assert json.dumps(told["2"]["response"]["body"]).count('"label"') == 1
