"""A stream comes out as the answer that would have come whole, or as what went wrong in it."""

import asyncio
import contextlib
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.errors import NoAnswer, RateLimited, RequestError
from batcher.job.endpoint import Endpoint
from batcher.records import Outcome
from batcher.send import sse, wire
from batcher.send.http import Client
from batcher.simulate.stream import events
from tests.support.canned import Server

SSE = {"Content-Type": "text/event-stream"}
USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}


def chunk(delta, finish=None, **more):
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "c1", "model": "m", "choices": [choice], **more}


def body(*chunks, done=True, end="\n\n"):
    told = "".join(f"data: {json.dumps(of, ensure_ascii=False)}{end}" for of in chunks)
    return (told + f"data: [DONE]{end}" * done).encode()


def read(*chunks, **how):
    data, _first = sse.whole(body(*chunks, **how))
    return wire.read(200, {}, data, keep_raw=False)


@given(
    st.none() | st.text(max_size=60), st.none() | st.text(max_size=20),
    st.sampled_from(["stop", "length"]), st.booleans(),
)  # fmt: skip
def test_any_answer_is_the_same_in_pieces(content, refusal, finish, told):
    """The simulated gateway cuts it, the sender puts it together."""
    message = {"role": "assistant", "content": content, "refusal": refusal}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    data = {"id": "c", "created": 1, "model": "m", "choices": [choice]}
    if content is not None:
        message["refusal"] = None
    usage = USAGE if told else None
    streamed = b"".join(events(data, usage, cut=False))
    got = wire.read(200, {}, sse.whole(streamed)[0], keep_raw=False)
    want = wire.read(200, {}, json.dumps({**data, "usage": usage}).encode(), keep_raw=False)
    assert (got.response is None) == (want.response is None)  # Where there is none to see.
    assert msgspec.structs.replace(got, response=want.response) == want


@given(
    st.binary(max_size=300) | st.text(max_size=100).map(lambda text: f"data: {text}\n\n".encode())
)
def test_whatever_comes_is_a_row(noise):
    """Nothing but a RequestError ever leaves."""
    for sent in (noise, body(chunk({"content": "a"}), done=False) + noise):
        with contextlib.suppress(RequestError):
            wire.read(200, SSE, sse.whole(sent)[0], keep_raw=True)


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n", "\r\r"])
def test_comments_line_ends_and_usages_of_every_kind_are_taken(end):
    """Gemini tells a usage with each chunk, OpenAI one in a chunk of its own, some none."""
    said = read(
        chunk({"role": "assistant", "content": ""}, usage={"prompt_tokens": 5, "completion_tokens": 1}),
        chunk({"content": "né"}, usage={**USAGE, "completion_tokens": 3}),
        chunk({"content": " là"}, "stop"),
        {"id": "c1", "choices": [], "usage": USAGE},
        end=end,
    )  # fmt: skip
    assert (said.content, said.finish_reason, said.usage.completion_tokens) == ("né là", "stop", 7)
    data, first = sse.whole(
        b": keep-alive\n\n: OPENROUTER PROCESSING\n\n" + body(chunk({"content": "x"}, "stop"))
    )
    assert json.loads(data)["choices"][0]["message"]["content"] == "x"
    assert first == len(
        b": keep-alive\n\n: OPENROUTER PROCESSING\n\n"
        + body(chunk({"content": "x"}, "stop"), done=False)
    )


def test_calls_of_tools_are_joined_from_their_pieces():
    """Names come once, arguments in pieces, several calls by their numbers."""

    def call(index, **of):
        return chunk({"tool_calls": [{"index": index, **of}]})

    said = read(
        call(0, id="a", type="function", function={"name": "look", "arguments": ""}),
        call(0, function={"arguments": '{"x":'}),
        call(1, id="b", type="function", function={"name": "find", "arguments": "{}"}),
        call(0, function={"arguments": "1}"}),
        chunk({}, "tool_calls"),
    )  # fmt: skip
    assert json.loads(said.tool_calls) == [
        {"id": "a", "type": "function", "function": {"name": "look", "arguments": '{"x":1}'}},
        {"id": "b", "type": "function", "function": {"name": "find", "arguments": "{}"}},
    ]
    assert said.content is None
    assert said.outcome is Outcome.OK


def test_an_error_in_the_middle_is_the_error():
    """What came before it is no answer."""
    with pytest.raises(RateLimited, match="too many requests"):
        read(chunk({"content": "half"}), {"error": {"message": "too many requests", "code": 429}})
    with pytest.raises(RequestError, match="broke off"):
        read(chunk({"content": "half"}), chunk({}, "error"))


@pytest.mark.parametrize("done", [True, False])
def test_a_stream_without_its_end_is_no_answer(done):
    """With a reason why it ended it is one, though not all say that they are done."""
    assert read(chunk({"content": "all"}, "stop"), done=done).content == "all"
    if done:
        return
    with pytest.raises(NoAnswer, match="cut after 4 characters"):
        read(chunk({"content": "half"}), done=False)
    with pytest.raises(NoAnswer, match="middle of a chunk"):
        sse.whole(body(chunk({"content": "half"}), done=False) + b'data: {"choi')


def test_a_character_may_be_cut_in_two_and_an_event_may_be_empty():
    """Both are as the standard has it; the answer was paid for."""
    halves = body(chunk({"content": "a<1>"}), chunk({"content": "<2>b"}, "stop"))
    halves = halves.replace(b"<1>", rb"\ud83d").replace(b"<2>", rb"\ude00")
    data, _first = sse.whole(b"data:\n\n" + halves)
    assert json.loads(data)["choices"][0]["message"]["content"] == "a😀b"
    alone = b'data: {"choices":[{"index":0,"delta":{"content":"a\\ud83d"},"finish_reason":"stop"}]}\n\n'
    assert wire.read(200, {}, sse.whole(alone)[0], keep_raw=False).content == "a\ufffd"


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
SAID = body(chunk({"content": "né"}), chunk({"content": " là"}, "stop"))


def parts(data, size):
    return [b"%x\r\n%b\r\n" % (len(data[at : at + size]), data[at : at + size])
            for at in range(0, len(data), size)]  # fmt: skip


def posted(*sends, idle=0.3, requests=1, timeout=5.0):
    async def work():
        async with (
            Server(*sends) as server,
            Client(Endpoint(server.url, server.url)) as client,
        ):
            replies = [await client.post(b"{}", timeout, idle) for _ in range(requests)]
            return replies, server.connections

    return asyncio.run(work())


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_pieces_may_be_cut_anywhere(size):
    """In the middle of a character as well; and the connection is used again."""
    (first, second), connections = posted(HEAD, *parts(SAID, size), b"0\r\n\r\n", requests=2)
    assert first.body == second.body == SAID
    assert connections == 1
    data, place = sse.whole(first.body)
    assert json.loads(data)["choices"][0]["message"]["content"] == "né là"
    assert 0 <= first.seconds_to(place) < 1


def test_a_stream_that_is_done_need_not_end():
    """Some servers leave it open; the next request gets a new connection."""
    (first, second), connections = posted(HEAD, *parts(SAID, 50), 60.0, requests=2)
    assert first.body == second.body == SAID
    assert connections == 2


def test_a_stream_that_falls_silent_is_given_up():
    """Before or after its first piece; comments are not silence, but do not last for ever."""
    for sends in ([HEAD, 60.0], [HEAD, parts(SAID, 40)[0], 60.0]):
        with pytest.raises(NoAnswer, match=r"no more of the answer within 0\.3 s") as caught:
            posted(*sends)
        assert caught.value.outcome is Outcome.TIMEOUT
    comment = parts(b": keep-alive\n\n", 100)[0]
    with pytest.raises(NoAnswer, match="no whole answer within 1 s"):
        posted(HEAD, *[comment, 0.1] * 30, timeout=1.0)


def test_the_first_token_is_timed():
    """Not the first byte."""
    pieces = [
        b": keep-alive\n\n",
        body(chunk({"role": "assistant", "content": ""}), done=False),
        SAID,
    ]
    sends = [sent for piece in pieces for sent in (0.2, *parts(piece, 10_000))]
    (reply,), _ = posted(HEAD, *sends, b"0\r\n\r\n", idle=2.0)
    _, place = sse.whole(reply.body)
    assert 0.55 < reply.seconds_to(place) < 2.0


@pytest.mark.parametrize("end", [(60.0,), (None,)], ids=["silent", "closed"])
def test_an_answer_that_has_its_reason_is_whole_without_an_end(end, monkeypatch):
    """It was paid for: the server may fall silent then, or go away."""
    monkeypatch.setattr("batcher.send.bodies._USAGE_SECONDS", 0.2)
    said = body(
        chunk({"content": "all"}, "stop"), {"id": "c", "choices": [], "usage": USAGE}, done=False
    )
    (reply,), _ = posted(HEAD, *parts(said, 30), *end, idle=2.0)
    got = wire.read(200, {}, sse.whole(reply.body)[0], keep_raw=False)
    assert (got.content, got.usage.total_tokens) == ("all", 12)


def test_calls_without_numbers_are_told_apart_by_their_ids():
    """Some servers send each call whole."""

    def call(**of):
        return chunk({"tool_calls": [of]})

    said = read(
        call(id="a", function={"name": "f", "arguments": "{"}), call(function={"arguments": "}"}),
        call(id="b", function={"name": "g", "arguments": "{}"}), chunk({}, "tool_calls"),
    )  # fmt: skip
    told = [
        (c["id"], c["function"]["name"], c["function"]["arguments"])
        for c in json.loads(said.tool_calls)
    ]
    assert told == [("a", "f", "{}"), ("b", "g", "{}")]


@pytest.mark.parametrize("kind", ["application/json", "text/event-stream; charset=utf-8", None])
@pytest.mark.parametrize(
    "before", [b"", b": ping\n\n", b"\n\0\n", b"id: 1\nretry: 3000\n", b"event: a\n"]
)
def test_events_are_a_stream_whatever_the_reply_is_called(kind, before):
    """Servers stream to those who did not ask for it, and say that it is JSON."""
    headers = {} if kind is None else {"Content-Type": kind}
    whole_in_one = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}
    for chunks in ([chunk({"content": "h"}), chunk({"content": "i"}, "stop")], [whole_in_one]):
        sent = before + body(*chunks)
        assert sse.is_stream(headers, sent)
        assert wire.read(200, {}, sse.whole(sent)[0], keep_raw=False).content == "hi"


def test_an_event_named_error_is_one():
    """Whatever its data looks like; and a byte-order mark is nothing."""
    with pytest.raises(RequestError, match="boom"):
        wire.read(
            200,
            {},
            sse.whole(b'event: error\ndata: {"message": "boom"}\n\n')[0],
            keep_raw=False,
        )
    assert sse.whole(b"\xef\xbb\xbf" + body(chunk({"content": "x"}, "stop")))[0]


NOTHING = ["", "null", "None", " ", None, "FINISH_REASON_UNSPECIFIED"]


@pytest.mark.parametrize("empty", NOTHING)
def test_a_reason_that_says_nothing_ends_no_stream(empty):
    """Some servers send one with each chunk; then the socket closes in the middle."""
    with pytest.raises(NoAnswer, match="cut after 4 characters"):
        read(chunk({"content": "half"}, empty), done=False)
    with pytest.raises(NoAnswer):  # Usage is no reason.
        read(
            chunk({"content": "half"}, empty, usage=USAGE),
            {"choices": [], "usage": USAGE},
            done=False,
        )
    all_of_it = read(
        chunk({"content": "all"}, empty), chunk({}, "stop"), chunk({}, empty), done=False
    )
    assert (all_of_it.content, all_of_it.finish_reason) == ("all", "stop")
    done = read(chunk({"content": "all"}, empty))
    assert (done.content, done.finish_reason) == ("all", None)


@pytest.mark.parametrize("empty", ["", "null"])
def test_a_pause_after_such_a_reason_is_waited_out(empty, monkeypatch):
    """Patience after a real reason is short, as only the usage is still to come."""
    monkeypatch.setattr("batcher.send.bodies._USAGE_SECONDS", 0.05)
    first, second = (
        body(chunk({"content": "ha"}, empty), done=False),
        body(chunk({"content": "lf"}, "stop")),
    )
    sends = (HEAD, *parts(first, 10_000), 0.3, *parts(second, 10_000), b"0\r\n\r\n")
    (reply,), _ = posted(*sends, idle=2.0)
    assert wire.read(200, {}, sse.whole(reply.body)[0], keep_raw=False).content == "half"
    with pytest.raises(NoAnswer):  # Closed in the middle: nothing was whole yet.
        posted(HEAD, *parts(first, 10_000), None)


@pytest.mark.parametrize(
    ("end", "done"),
    [
        (b"data: [DONE]\n\n", True),
        (b"x\r\ndata:[DONE]\r\n", True),
        (b'{"content":"data: [DONE]', False),
        (b"[DONE]", False),
    ],
)
def test_the_word_for_the_end_ends_a_stream_only_as_an_event(end, done):
    """A model may write it."""
    assert sse.is_done(end) is done


def test_the_first_of_two_choices_is_the_answer():
    """Wherever it stands in a chunk, and whether or not it is numbered."""

    def choice(index, content, finish=None):
        return {"index": index, "delta": {"content": content}, "finish_reason": finish}

    both = [{"choices": [choice(1, "no"), choice(0, "ye")]}, {"choices": [choice(1, "", "stop")]}]
    with pytest.raises(NoAnswer):
        read(*both, done=False)
    assert read(*both, {"choices": [choice(None, "s", "stop")]}, done=False).content == "yes"


@pytest.mark.parametrize(
    "fault",
    [{"error": {"message": "x", "code": 429}}, {"code": 429, "message": "x"}, {"error_code": 18, "error_msg": "x"},
     {"success": False, "code": 429, "msg": "x"},
     {"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error", "error": {"code": 429, "message": "x"}}]},
     {"error": {"code": 429, "message": "x"}, "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}]}],
)  # fmt: skip
def test_an_error_in_the_middle_counts_as_the_status_that_it_names(fault):
    with pytest.raises(RateLimited):
        read(chunk({"content": "half"}), fault)


@pytest.mark.parametrize("delta", [{}, {"delta": {}}, {"delta": None}])
def test_a_whole_message_behind_its_pieces_is_not_said_twice(delta):
    """MiniMax ends a stream with the answer as it would have come whole."""
    call = {"id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {
        "role": "assistant",
        "content": "Hello",
        "reasoning_content": "Hm",
        "tool_calls": [call],
    }
    last = {"index": 0, "message": message, "finish_reason": "stop", **delta}
    pieces = [
        chunk({"role": "", "content": "", "reasoning_content": "H"}), chunk({"reasoning_content": "m"}),
        chunk({"content": "Hel"}), chunk({"content": "lo"}), chunk({"tool_calls": [{"index": 0, **call}]}),
    ]  # fmt: skip
    end = {"object": "chat.completion", "choices": [last], "usage": USAGE}
    answer = json.loads(sse.whole(body(*pieces, end))[0])
    assert answer["choices"][0]["message"] == message
    assert answer["usage"] == USAGE


def test_pieces_by_another_name_are_joined():
    pieces = [{"choices": [{"index": 0, "message": {"content": of}}]} for of in ("ha", "ha")]
    assert read(*pieces).content == "haha"


@pytest.mark.parametrize(
    "end",
    [
        {
            "choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": USAGE}]
        },  # Moonshot
        {**chunk({}, "stop"), "x_groq": {"id": "r", "usage": USAGE}},
        chunk({}, "stop", usage=USAGE),
    ],
)
def test_the_usage_is_found_wherever_it_stands(end):
    zero = dict.fromkeys(USAGE, 0)
    used = read(chunk({"content": "a"}, usage=zero), end, {"choices": [], "usage": zero}).usage
    assert used.total_tokens == 12
