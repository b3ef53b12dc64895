"""What gateways really send, over HTTP and through a whole run."""

import asyncio
import json
import subprocess
from collections import Counter

import pytest
from aiohttp import web

from batcher.simulate.server import running
from batcher.simulate.settings import Simulation
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


def test_rows_are_the_same_with_and_without_a_stream(tmp_path):
    """But for when the first token came, among faults of all kinds; and nothing is bought twice."""
    write_jsonl(
        tmp_path / "in.jsonl",
        [{"prompt": f"Ticket {n}: Müller's parcel is late"} for n in range(60)],
    )
    words = ("run", "in.jsonl", "-m", "sim-small", "--labels", "shipping,bug", "--param", "logprobs=true",
             "--max-retries", "20")  # fmt: skip
    faults = {"http_500": 0.02, "cut_json": 0.04, "error_200": 0.02, "truncated": 0.1, "invalid": 0.1,
              "refused": 0.1}  # fmt: skip
    found = {}
    for how in ((), ("--stream",)):
        with running(Simulation(speed=0, faults=faults)) as gateway:
            ended = program.batcher(
                *words, *how, "-o", f"o{len(how)}.jsonl", cwd=tmp_path, url=gateway.url
            )
            assert ended.returncode == 3, ended.stderr
            ledger = gateway.ledger.models["sim-small"]
            if how:  # Another way to receive is no other request.
                again = program.batcher(*words, "-o", "o1.jsonl", cwd=tmp_path, url=gateway.url)
                assert again.returncode == 3
                assert gateway.ledger.models["sim-small"].received == ledger.received
        found[how] = read_jsonl(tmp_path / f"o{len(how)}.jsonl")
    streamed = found["--stream",]
    assert [row for row in streamed if row["status"] == "ok" and row["ttft_ms"] is None] == []
    told = ("prompt", "custom_id", "status", "content", "parsed", "refusal", "finish_reason", "total_tokens",
            "http_status")  # fmt: skip
    whole = found[()]
    # Which fault a request suffers hangs on its bytes, which are not the same.
    pairs = zip(whole, streamed, strict=True)
    sure = [pair for pair in pairs if all((r["status"], r["attempts"]) == ("ok", 1) for r in pair)]
    assert len(sure) > 10
    assert [(a, b) for a, b in sure if any(a.get(n) != b.get(n) for n in told)] == []
    assert "ttft_ms" not in whole[0]


def test_a_server_that_refuses_stream_options_is_asked_without(tmp_path):
    """And one that answers whole is taken at that; a row's own `stream: false` does not count."""
    bodies = []

    async def answer(request):
        asked = await request.json()
        bodies.append(asked)
        if "stream_options" in asked:
            text = "Unknown field: stream_options"
            return web.json_response({"error": {"message": text}}, status=400)
        return web.json_response(completion("yes"))

    asked = {"messages": [{"role": "user", "content": "x"}], "stream": False}
    write_jsonl(tmp_path / "in.jsonl", [{"body": asked}, {"body": {**asked, "seed": 1}}])
    with echo.running(answer) as up:
        ended = program.batcher(
            "run", "in.jsonl", "-o", "o.jsonl", "-m", "m", "--stream", cwd=tmp_path, url=up.url
        )
    assert ended.returncode == 0, ended.stderr
    assert [body.get("stream") for body in bodies] == [True] * 3
    assert "stream_options" in bodies[0]
    assert [row["content"] for row in read_jsonl(tmp_path / "o.jsonl")] == ["yes", "yes"]


def test_a_stream_that_falls_silent_is_tried_again(tmp_path):
    count = Counter()

    async def answer(request):
        count["asked"] += 1
        reply = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await reply.prepare(request)
        part = {"choices": [{"index": 0, "delta": {"content": "ye"}}]}
        await reply.write(b"data: %b\n\n" % json.dumps(part).encode())
        if count["asked"] == 1:
            await asyncio.sleep(2)
        part["choices"][0] |= {"delta": {"content": "s"}, "finish_reason": "stop"}
        await reply.write(b"data: %b\n\n" % json.dumps(part).encode())
        return reply

    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "x"}])
    with echo.running(answer) as up:
        ended = program.batcher(
            "run", "in.jsonl", "-o", "o.jsonl", "-m", "m", "--stream", "--idle-timeout", "0.5",
            cwd=tmp_path, url=up.url,
        )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    (row,) = read_jsonl(tmp_path / "o.jsonl")
    assert (row["content"], row["attempts"], count["asked"]) == ("yes", 2, 2)
    told = program.batcher("explain", "o.jsonl", "0", cwd=tmp_path).stdout
    assert b"no more of the answer within 0.5 s" in told


def test_a_certificate_of_ones_own_is_trusted_by_the_environment(tmp_path):
    """`SSL_CERT_FILE`, as for curl: gateways inside a company have one. Without it the run ends at once."""
    certificate = tmp_path / "own.pem"
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
             "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "-", "-out", certificate]  # fmt: skip
    made = subprocess.run(words, check=True, capture_output=True)
    certificate.write_bytes(certificate.read_bytes() + made.stdout)
    rows = [{"prompt": f"p {n}"} for n in range(20)]
    write_jsonl(tmp_path / "in.jsonl", rows)
    with echo.running(certificate=certificate) as gateway:
        for trusted, status in (("", 2), (str(certificate), 0)):
            ended = subprocess.run(
                program.command("run", "in.jsonl", "-o", "out.jsonl", "-m", "m"),
                cwd=tmp_path, capture_output=True, timeout=60, check=False,
                env=program.environment(OPENAI_BASE_URL=gateway.url, OPENAI_API_KEY="sk-1",
                                        **({"SSL_CERT_FILE": trusted} if trusted else {})),
            )  # fmt: skip
            assert ended.returncode == status, ended.stderr.decode()
            assert (b"SSL_CERT_FILE" in ended.stderr) == (status != 0)
            assert gateway.bought.total() == (0 if status else 20)


def judging(request_of):
    """Refuses at once what it does not like, in words that could be said of anything; answers in 0.1 s."""

    async def answer(request):
        text = (await request.json())["messages"][-1]["content"]
        if request_of(text):
            return web.json_response({"error": {"message": "Refused by policy 17."}}, status=400)
        await asyncio.sleep(0.1)
        return web.json_response(completion("yes"))

    return answer


def run_all(tmp_path, url, *words):
    return program.batcher(
        "run", "in.jsonl", "-o", "o.jsonl", "-m", "m", *words, cwd=tmp_path, url=url
    )


def test_bad_rows_at_the_top_do_not_condemn_those_behind_them(tmp_path):
    """What was sent before the fiftieth refusal is waited for: an answer takes longer."""
    rows = [{"prompt": f"bad {n}"} for n in range(60)] + [
        {"prompt": f"good {n}"} for n in range(40)
    ]
    write_jsonl(tmp_path / "in.jsonl", rows)
    with echo.running(judging(lambda text: text.startswith("bad"))) as up:
        ended = run_all(tmp_path, up.url)
    assert ended.returncode == 3, ended.stderr.decode()
    found = Counter(row["status"] for row in read_jsonl(tmp_path / "o.jsonl"))
    assert found == {"bad_request": 60, "ok": 40}


def test_a_model_that_answered_in_an_earlier_run_is_not_doubted(tmp_path):
    """A second start sends what was refused once more, and nothing else."""
    rows = [{"prompt": f"good {n}"} for n in range(5)] + [
        {"prompt": f"bad {n}"} for n in range(200)
    ]
    write_jsonl(tmp_path / "in.jsonl", rows)
    with echo.running(judging(lambda text: text.startswith("bad"))) as up:
        for _time in range(2):
            ended = run_all(tmp_path, up.url)
            assert ended.returncode == 3, ended.stderr.decode()
    found = Counter(row["status"] for row in read_jsonl(tmp_path / "o.jsonl"))
    assert found == {"ok": 5, "bad_request": 200}


def test_a_stream_without_a_reason_was_cut_where_others_tell_one(tmp_path):
    """A relay says that it is done, though the model behind it was cut off."""
    count = Counter()

    async def answer(request):
        text = (await request.json())["messages"][-1]["content"]
        count[text] += 1
        cut = text == "cut" and count[text] == 1
        reply = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await reply.prepare(request)
        choice = {"index": 0, "delta": {"content": "half" if cut else "whole"}}
        end = {"index": 0, "delta": {}, "finish_reason": "stop"}
        for of in [choice] if cut else [choice, end]:
            await reply.write(b"data: " + json.dumps({"choices": [of]}).encode() + b"\n\n")
        await reply.write(b"data: [DONE]\n\n")
        return reply

    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "first"}, {"prompt": "cut"}])
    with echo.running(answer) as up:
        ended = run_all(tmp_path, up.url, "--stream", "--concurrency", "1")
    assert ended.returncode == 0, ended.stderr.decode()
    assert [row["content"] for row in read_jsonl(tmp_path / "o.jsonl")] == ["whole", "whole"]
    assert count == {"first": 1, "cut": 2}


def test_a_reason_that_nobody_knows_is_told(tmp_path):
    """It counts as ok, which may be wrong."""

    async def answer(_request):
        return web.json_response(completion("yes", finish_reason="Very-odd"))

    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    with echo.running(answer) as up:
        ended = run_all(tmp_path, up.url)
    assert ended.returncode == 0
    assert "2 ok with the finish_reason 'very_odd', which is not known here" in " ".join(
        ended.stderr.decode().split()
    )


def test_what_a_row_alone_is_refused_for_ends_a_second_start_as_it_ended_the_first(tmp_path):
    """Some answer 403 to a prompt that is moderated; the key is good, as other answers show."""

    async def answer(request):
        text = (await request.json())["messages"][-1]["content"]
        if text == "bad":
            return web.json_response({"error": {"message": "forced"}}, status=403)
        return web.json_response(completion("yes"))

    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "bad"}])
    with echo.running(answer) as up:
        assert [run_all(tmp_path, up.url).returncode for _time in range(2)] == [3, 3]
    assert [row["status"] for row in read_jsonl(tmp_path / "o.jsonl")] == ["ok", "ok", "auth"]


@pytest.mark.parametrize(
    ("status", "says", "sent", "told"),
    [
        (400, {"error": {"message": "Budget has been exceeded! Current cost: 0.25, Max budget: 0.25", "code": "400"}}, 60, b"Budget"),
        (200, {"error": {"message": "no", "code": 402}}, 60, b"top it up"),
        (403, {"error": {"message": "Your account suspended (tid: 1234)"}}, 60, b"support"),
    ],
    ids=["budget", "402-in-200", "suspended"],
)  # fmt: skip
def test_an_account_that_can_pay_no_more_ends_the_run_and_not_every_row(
    tmp_path, status, says, sent, told
):
    """What was not sent stays pending."""
    seen = Counter()

    async def answer(_request):
        seen["all"] += 1
        if seen["all"] > 20:
            return web.json_response(says, status=status)
        return web.json_response(completion("yes"))

    write_jsonl(tmp_path / "in.jsonl", [{"prompt": f"{n}"} for n in range(300)])
    with echo.running(answer) as up:
        ended = run_all(tmp_path, up.url, "--concurrency", "4")
    if status == 403:  # A key's failure is each row's, and costs no request more.
        assert ended.returncode in (3, 4)
    else:
        assert ended.returncode == 4, ended.stderr.decode()
    assert seen["all"] < sent
    assert told in ended.stderr
