"""What gateways really send, over HTTP and through a whole run."""

import json
from collections import Counter

import pytest
from aiohttp import web

from tests.support import echo, program
from tests.support.program import read_jsonl, write_jsonl

OPENAI = {
    "message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
    "'max_completion_tokens' instead.",
    "type": "invalid_request_error",
    "param": "max_tokens",
    "code": "unsupported_parameter",
}
OLD = {"message": "Unrecognized request argument supplied: max_completion_tokens"}
PYDANTIC = [{"type": "extra_forbidden", "loc": ["body", "max_completion_tokens"],
             "msg": "Extra inputs are not permitted"}]  # fmt: skip


def completion(content, **more):
    choice = {
        "message": {"role": "assistant", "content": content},
        "finish_reason": "stop",
        **more,
    }
    usage = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
    return {"choices": [choice], "usage": usage}


@pytest.mark.parametrize("checked", [(), ("--labels", "a,b")], ids=["free", "labels"])
@pytest.mark.parametrize(
    ("takes", "status", "says"),
    [
        ("max_completion_tokens", 400, {"error": OPENAI}),
        ("max_tokens", 400, {"error": OLD}),
        ("max_tokens", 422, {"detail": PYDANTIC}),
    ],
    ids=["openai", "old", "pydantic"],
)
def test_a_bound_goes_by_the_name_that_the_model_takes(tmp_path, takes, status, says, checked):
    """One refusal tells, and the form of the answer is not taken for the fault."""
    other = {"max_tokens": "max_completion_tokens"}.get(takes, "max_tokens")
    seen = Counter()

    async def answer(request):
        body = await request.json()
        name = next(name for name in (takes, other) if name in body)
        seen[name, body[name], "response_format" in body] += 1
        return (
            web.json_response(completion("a"))
            if name == takes
            else web.json_response(says, status=status)
        )

    write_jsonl(tmp_path / "in.jsonl", [{"prompt": f"{n}"} for n in range(30)])
    with echo.running(answer) as up:
        ended = program.batcher(
            "run", "in.jsonl", "-o", "o.jsonl", "-m", "m", "--param", f"{other}=7", *checked,
            cwd=tmp_path, url=up.url,
        )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert seen == {(other, 7, bool(checked)): 1, (takes, 7, bool(checked)): 30}
    told = program.batcher("explain", "o.jsonl", "0", cwd=tmp_path).stdout.decode()
    assert "bad_request (HTTP" in told


@pytest.mark.parametrize(
    "message",
    [
        "max_tokens is too large: 7. This model supports at most 4 completion tokens",
        "Invalid max_tokens value, the valid range of max_tokens is [1, 4]",
    ],
)
def test_a_bound_that_is_too_large_is_no_wrong_name(tmp_path, message):
    async def answer(request):
        body = await request.json()
        assert "max_tokens" in body
        return web.json_response({"error": {"message": message}}, status=400)

    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "x"}])
    with echo.running(answer) as up:
        ended = program.batcher(
            "run", "in.jsonl", "-o", "o.jsonl", "-m", "m", "--param", "max_tokens=7",
            cwd=tmp_path, url=up.url,
        )  # fmt: skip
    assert ended.returncode == 3, ended.stderr
    (row,) = read_jsonl(tmp_path / "o.jsonl")
    assert (row["status"], row["attempts"]) == ("bad_request", 1)


def test_a_model_that_takes_neither_name_is_left_at_that(tmp_path):
    seen = []

    async def answer(request):
        body = await request.json()
        name = next(name for name in body if name.startswith("max_"))
        seen.append(name)
        return web.json_response(
            {"error": {"message": f"Unsupported parameter: {name}"}}, status=400
        )

    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "x"}])
    with echo.running(answer) as up:
        ended = program.batcher(
            "run", "in.jsonl", "-o", "o.jsonl", "-m", "m", "--param", "max_tokens=7",
            cwd=tmp_path, url=up.url,
        )  # fmt: skip
    assert ended.returncode == 3, ended.stderr
    assert seen == ["max_tokens", "max_completion_tokens"]
    assert json.loads((tmp_path / "o.jsonl").read_text())["status"] == "bad_request"
