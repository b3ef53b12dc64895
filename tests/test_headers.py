"""`--header`: what is sent, what is refused, and secrets that are shown nowhere."""

import json
import pickle

import pytest
from aiohttp import web

from batcher.cli.config import with_settings
from batcher.errors import JobError
from batcher.job.job import Job
from batcher.job.values import headers_of
from tests.support import echo, program
from tests.support.program import write_jsonl

SECRET = "hdr-0123456789-secret"
USED = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
URL = "https://gateway.example/v1"


def job(*headers, **more):
    return Job.of(output="o.jsonl", models=["m"], headers=headers, **more)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("X-Title", "write it as NAME=VALUE"),
        ("=1", "write it as NAME=VALUE"),
        ("Authorization: Bearer abc", "--header Authorization…: write it as NAME=VALUE"),
        ("Authorization: Bearer abc==", "--header Authorization…: write it as NAME=VALUE"),
        ("X Title=1", "write it as NAME=VALUE"),
        ("X-Title\r\nX=1", "write it as NAME=VALUE"),
        ("Ünder=1", "write it as NAME=VALUE"),
        *((f"{name}=1", "batcher sets this header itself") for name in (
            "Host", "content-length", "Content-Type", "TRANSFER-ENCODING", "Connection", "Accept-Encoding")),
        ("X-Title=a\r\nX-Other: b", "other than printable ASCII"),
        ("X-Title=a\0b", "other than printable ASCII"),
        ("X-Title=日本", "other than printable ASCII"),
        ("Authorization=Bearer abc", "looks like a secret"),
        ("x-api-key=abc", "looks like a secret"),
        ("api-key=abc", "looks like a secret"),
        ("Cookie=a=b", "looks like a secret"),
        ("X-Auth-Token=abc", "looks like a secret"),
        ("X-Title=sk-proj-0123456789abcdef", "looks like a secret"),
        ("X-Title=Bearer abc", "looks like a secret"),
        ("X-Title=Bearer $TOKEN", "for the whole value"),
    ],
)  # fmt: skip
def test_a_header_that_cannot_be_sent_or_should_not_be_written_out_is_refused(text, why):
    """Before anything is read, and without its value in the message."""
    with pytest.raises(JobError, match=why) as caught:
        job(text)
    assert "abc" not in str(caught.value)


def test_a_header_is_given_once_and_its_variable_is_set():
    with pytest.raises(JobError, match="it is set twice"):
        job("X-A=1", "x-a=2")
    with pytest.raises(JobError, match="--header X-A: the environment variable TOKEN is not set"):
        job("X-A=$TOKEN", base_url=URL).endpoint({"OPENAI_API_KEY": "k", "TOKEN": " "})
    with pytest.raises(JobError, match="printable ASCII") as caught:
        headers_of(["X-A=${TOKEN}"], {"TOKEN": f"{SECRET}\n{SECRET}"})
    assert SECRET not in str(caught.value)


def test_headers_come_from_python_and_from_toml_as_mappings_too(tmp_path):
    told = ("X-Title=My run", "X-Auth=$TOKEN")
    assert (
        Job.of(output="o.jsonl", headers={"X-Title": "My run", "X-Auth": "$TOKEN"}).headers == told
    )
    (tmp_path / "job.toml").write_text('[headers]\nX-Title = "My run"\nX-Auth = "$TOKEN"\n')
    words = with_settings(["run", "--config", str(tmp_path / "job.toml")], {})
    assert words == ["run", *(f"--header={of}" for of in told)]


def test_a_header_that_says_who_is_asking_needs_no_key_and_does_not_stand_beside_one():
    """Two of them would leave it to the server which one counts."""
    asked = job("Authorization=$TOKEN", base_url=URL)
    found = asked.endpoint({"TOKEN": SECRET, "AIHUBMIX_API_KEY": "other"})
    assert (found.key, found.headers) == (None, (("Authorization", SECRET),))
    assert SECRET not in repr(found) + repr(asked)
    assert pickle.loads(pickle.dumps(found)) == found
    with pytest.raises(JobError, match="the key is sent in this header"):
        job("authorization=$TOKEN", base_url=URL, api_key_env="KEY").endpoint(
            {"TOKEN": SECRET, "KEY": "k"}
        )
    azure = job("api-key=$TOKEN", base_url=URL).endpoint({"TOKEN": SECRET})
    assert azure.key is None
    both = job("X-Auth-Token=$TOKEN", base_url=URL, api_key_env="KEY").endpoint(
        {"TOKEN": SECRET, "KEY": "k"}
    )
    assert both.key == "k"
    with pytest.raises(JobError, match=r"No API key for gateway\.example"):
        job("X-Title=a", base_url=URL).endpoint({})


def test_headers_are_sent_and_a_secret_one_is_shown_nowhere(tmp_path):
    """Not by a gateway that repeats it, in pieces of a stream too: in no file, log, error, or command that goes on."""
    seen = []

    async def answer(request):
        seen.append(dict(request.headers))
        error = {
            "error": {"message": f"no: {request.headers['X-Auth']}", "code": "insufficient_quota"}
        }
        if len(seen) == 1:
            return web.json_response(
                {"choices": [{"message": {"content": f"yes {SECRET}"}}], "usage": USED}
            )
        if len(seen) == 2:
            pieces = [{"choices": [{"delta": {"content": of}}]} for of in f"yes {SECRET}"]
            told = "".join(f"data: {json.dumps(of)}\n\n" for of in pieces) + "data: [DONE]\n\n"
            return web.Response(text=told, content_type="text/event-stream")
        return web.json_response(error, status=429, headers={"x-request-id": SECRET})

    write_jsonl(tmp_path / "in.jsonl", [{"prompt": f"{n}"} for n in range(5)])
    with echo.running(answer) as up:
        ended = program.batcher(
            "run", "in.jsonl", "-o", "o.jsonl", "-m", "m", "--header", "X-Auth=$BATCHER_TOKEN", "--header",
            "HTTP-Referer=https://example.com/a", "--header", "User-Agent=mine", "--log-level", "debug",
            cwd=tmp_path, url=up.url, BATCHER_TOKEN=SECRET,
        )  # fmt: skip
    assert ended.returncode == 4
    assert seen[0]["X-Auth"] == SECRET
    assert (seen[0]["HTTP-Referer"], seen[0]["User-Agent"]) == ("https://example.com/a", "mine")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 3
    for text in (ended.stdout, ended.stderr, *(path.read_bytes() for path in files)):
        assert SECRET.encode() not in text
    [last] = [json.loads(line) for line in ended.stderr.splitlines() if b'"ended"' in line]
    assert "'X-Auth=$BATCHER_TOKEN'" in last["go_on"]
    assert b"BATCHER_TOKEN is set, and is no option" not in ended.stderr
