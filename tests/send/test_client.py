"""One exchange over a real socket."""

import asyncio
import contextlib
import gzip
import threading
import time

import pytest

from batcher.errors import BadResponse, NoAnswer
from batcher.job.endpoint import Endpoint
from batcher.records import Outcome
from batcher.send import bodies, connections
from batcher.send.http import Client
from tests.support.canned import Server

KEY = "sk-secret"
BODY = b'{"model":"m","messages":[{"role":"user","content":"\xc3\xa9"}]}'
OK = b"HTTP/1.1 200 OK\r\n"
PLAIN = OK + b"X-Request-Id: 7\r\nContent-Length: 4\r\n\r\nfine"
MOST = 64 << 20


async def exchanged(server, *, times=1, within=10.0, body=BODY):
    """How each of some exchanges ended: (status, headers, body), or what was raised."""
    found = []
    async with Client(Endpoint(server.url, server.url, KEY)) as client:
        for _ in range(times):
            try:
                reply = await client.post(body, within)
                found.append((reply.status, sorted(reply.headers.items()), reply.body))
            except (NoAnswer, BadResponse) as error:
                found.append((type(error), error.outcome, str(error)))
    return found


def ended(*sends, **how):
    """How each exchange with a server of these bytes ended; and the server."""

    async def work():
        async with Server(*sends) as server:
            return await exchanged(server, **how), server

    return asyncio.run(work())


def _port(server):
    return server.url.split(":")[2].split("/")[0]


CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
ZIPPED = gzip.compress(b"fine" * 1000)
ANSWERS = {
    "plain": ((PLAIN,), 200, b"fine"),
    "in two parts": ((PLAIN[:20], 0.02, PLAIN[20:-2], 0.02, PLAIN[-2:]), 200, b"fine"),
    "chunked": ((CHUNKED + b"2\r\nfi\r\n", 0.02, b"2\r\nne\r\n0\r\n\r\n"), 200, b"fine"),
    "gzip": ((OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(ZIPPED) + ZIPPED,),
             200, b"fine" * 1000),
    "until it closes": ((OK + b"\r\nfi", 0.02, b"ne", None), 200, b"fine"),
    "nothing": ((b"HTTP/1.1 204 No Content\r\n\r\n",), 204, b""),
    "empty": ((OK + b"Content-Length: 0\r\n\r\n",), 200, b""),
    "early hints": ((b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + PLAIN,), 200, b"fine"),
    "continue": ((b"HTTP/1.1 100 Continue\r\n\r\n", 0.02, PLAIN), 200, b"fine"),
    "a redirect": ((b"HTTP/1.1 307 Moved\r\nLocation: http://x/\r\nContent-Length: 2\r\n\r\nno",),
                   307, b"no"),
    "HTTP/1.0": ((PLAIN.replace(b"HTTP/1.1", b"HTTP/1.0"), None), 200, b"fine"),
    "long headers": ((OK + b"X-Long: %b\r\nContent-Length: 4\r\n\r\nfine" % (b"x" * 60_000),),
                     200, b"fine"),
    "large": ((OK + b"Content-Length: 3000000\r\n\r\n", b"x" * 3_000_000), 200, b"x" * 3_000_000),
    "an error": ((b"HTTP/1.1 429 Too Many\r\nRetry-After: 1\r\nContent-Length: 4\r\n\r\nslow",),
                 429, b"slow"),
}  # fmt: skip


@pytest.mark.parametrize(("sends", "status", "body"), ANSWERS.values(), ids=ANSWERS.keys())
def test_an_answer_comes_out_as_it_was_sent(sends, status, body):
    """Whatever HTTP allows; three in a row, so that a connection is used again where it may be."""
    found, server = ended(*sends, times=3)
    assert [(one[0], one[2]) for one in found] == [(status, body)] * 3
    assert server.connections == (3 if None in sends else 1)


FAILURES = {
    "closed": ((None,), NoAnswer, Outcome.CONNECTION, "no connection"),
    "closed in the headers": ((PLAIN[:30], None), NoAnswer, Outcome.CONNECTION, "no connection"),
    "cut": ((PLAIN[:-2], None), NoAnswer, Outcome.CONNECTION, "the answer was cut"),
    "a chunk cut": ((CHUNKED + b"9\r\nfi", None), NoAnswer, Outcome.CONNECTION, "was cut"),
    "no HTTP": ((b"220 mail ready\r\n\r\n",), NoAnswer, Outcome.CONNECTION, "is no HTTP"),
    "no gzip": ((OK + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nfine",),
                BadResponse, Outcome.BAD_RESPONSE, "cannot be unpacked"),
    "an unknown packing": ((OK + b"Content-Encoding: br\r\nContent-Length: 4\r\n\r\nfine",),
                           BadResponse, Outcome.BAD_RESPONSE, "cannot be unpacked"),
    "headers without end": ((OK + b"X-Long: %b\r\n\r\n" % (b"x" * 80_000),),
                            NoAnswer, Outcome.CONNECTION, ""),
    "too long, and says so": ((OK + b"Content-Length: 67108865\r\n\r\nx",),
                              BadResponse, Outcome.BAD_RESPONSE, "67,108,865 bytes long"),
    "too long": ((CHUNKED, *[b"1000000\r\n" + b"x" * (16 << 20) + b"\r\n"] * 5),
                 BadResponse, Outcome.BAD_RESPONSE, "longer than 67,108,864 bytes"),
    "silent": ((60,), NoAnswer, Outcome.TIMEOUT, "no whole answer within 0.3 s"),
    "silent after the headers": ((PLAIN[:-4], 60), NoAnswer, Outcome.TIMEOUT, "within 0.3 s"),
    "a byte now and then": ((PLAIN[:-4], 0.2, b"f", 0.2, b"i", 0.2, b"n", 0.2, b"e"),
                            NoAnswer, Outcome.TIMEOUT, "within 0.3 s"),
}  # fmt: skip


@pytest.mark.parametrize(("sends", "kind", "outcome", "said"), FAILURES.values(), ids=FAILURES)
def test_what_is_no_answer_is_told_apart(sends, kind, outcome, said):
    """And its connection is not used again: what is left of the answer would be the next one's."""
    slow = outcome is Outcome.TIMEOUT
    found, server = ended(*sends, times=2, within=0.3 if slow else 20.0)
    for one in found:
        assert one[:2] == (kind, outcome)
        assert said in one[2]
    assert server.connections == 2


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
def test_a_body_of_any_size_arrives_as_it_is():
    """A prompt may be 20 MB of base64."""
    for size in (1, 65_536, 65_537, 20_000_000):
        body = b'"' + b"x" * size + b'"'
        found, server = ended(PLAIN, body=body)
        assert found[0][0] == 200
        assert server.requests[0][1] == body
        assert b"Authorization: Bearer sk-secret\r\n" in server.requests[0][0]


def test_a_key_that_comes_back_is_taken_out():
    """Some gateways repeat it in their errors."""
    said = b"HTTP/1.1 401 No\r\nX-Key: <sk-secret>\r\nContent-Length: 13\r\n\r\nbad sk-secret"
    found, _ = ended(said)
    assert (found[0][1][1], found[0][2]) == (("X-Key", "<[key]>"), b"bad [key]")


SLASHED = "ab/cd-ef12345"


@pytest.mark.parametrize(
    ("sends", "key"),
    [
        (b"220 sk-secret is ready\r\n\r\n", KEY),
        (b"HTTP/1.1 200 OK\r\nbad Bearer sk-secret\x00\r\n\r\n", KEY),
        (b"HTTP/1.1 502 X\r\nContent-Length: 1\r\n\r\n<p>sk-secret</p>", KEY),
        (b'HTTP/1.1 401 X\r\nContent-Length: 21\r\n\r\n"ab\\/cd\\u002Def12345"', SLASHED),
        (b'HTTP/1.1 401 X\r\nContent-Length: 2\r\n\r\n"ab\\/cd\\u002Def12345"', SLASHED),
    ],
)
def test_a_key_is_in_no_error(sends, key):
    """Neither where the answer is no HTTP, nor where JSON writes it in another way."""

    async def work():
        async with Server(sends, None) as server, Client(Endpoint(server.url, "", key)) as client:
            try:
                said = (await client.post(BODY, 10.0)).body.decode()
            except NoAnswer as error:
                said = str(error)
        assert "12345" not in said
        assert key not in said
        assert "[key]" in said or "secret" not in said

    asyncio.run(work())


@pytest.mark.parametrize(
    "word",
    ["none", "dummy", "x", "EMPTY", "placeholder", "00000000", "sk-1234", "sk-no-key-required"],
)
def test_a_word_in_the_place_of_a_key_changes_no_answer(word):
    """Local servers want any key; what people put there may be a label as well."""

    async def work():
        said = f"it is 1{word}0, and nonetheless fine".encode()
        sends = OK + b"Content-Length: %d\r\n\r\n%b" % (len(said), said)
        async with Server(sends) as server, Client(Endpoint(server.url, "", word)) as client:
            assert (await client.post(BODY, 10.0)).body == said
            assert f"Bearer {word}\r\n".encode() in server.requests[0][0]

    asyncio.run(work())


@contextlib.contextmanager
def in_thread(*sends):
    """A server that goes on while the test's own loop is held up."""
    loop, server = asyncio.new_event_loop(), Server(*sends)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result()
        yield server
        asyncio.run_coroutine_threadsafe(server.__aexit__(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class Chatty(Server):
    """Echoes each body, and sends something more after a wait.

    Args:
        more: What is sent unasked; None for the answer once more.
        wait: After how many seconds; None in one piece with the answer.
        often: With every how many-th answer.
    """

    def __init__(self, more=None, wait=0.0005, often=5):
        super().__init__()
        self.more, self.wait, self.often = more, wait, often

    async def answer(self, writer, body):
        said = b'{"id": "chatcmpl-%030d", "to": %b}' % (len(self.requests), body)
        answer = OK + b"Content-Length: %d\r\n\r\n%b" % (len(said), said)
        more = b"" if len(self.requests) % self.often else self.more or answer
        if self.wait is None:
            answer += more
        writer.write(answer)
        if self.wait is not None and more:
            await asyncio.sleep(self.wait)
            writer.write(more)


async def asked(client, count, at_once=8):
    """Asks so many questions, again where that fails; how many answers were to another question."""
    left, wrong = list(range(count)), 0

    async def work():
        nonlocal wrong
        while left:
            body = b'"row %d"' % left.pop()
            for _ in range(5):
                with contextlib.suppress(NoAnswer):
                    wrong += body not in (await client.post(body, 10.0)).body
                    break

    await asyncio.gather(*(work() for _ in range(at_once)))
    return wrong


@pytest.fixture
def long_rests(monkeypatch):
    """Connections rest for longer than a machine that does much else holds up a loop."""
    monkeypatch.setattr(connections, "_REST_SECONDS", 0.5)
    monkeypatch.setattr(connections, "_LONE_REST_SECONDS", 0.05)


STRAY = PLAIN.replace(b"fine", b"junk")


@pytest.mark.parametrize("more", [None, STRAY, b"H", b"\0" * 9])
@pytest.mark.parametrize("wait", [None, 0.0, 0.0005, 0.005])
@pytest.mark.usefixtures("long_rests")
def test_a_response_too_many_is_the_answer_to_nothing(more, wait):
    """HTTP/1.1 does not say which request it is of; it is seen while the connection rests."""

    async def work():
        async with Chatty(more, wait) as server, Client(Endpoint(server.url, "")) as client:
            assert await asked(client, 60) == 0
            assert len(server.requests) <= 60 + 30

    asyncio.run(work())


def test_a_copy_that_comes_late_is_known_by_its_name():
    """It was taken for the answer to the next request on its connection, which is sent again."""

    async def work():
        async with (
            Chatty(wait=0.05, often=3) as server,
            Client(Endpoint(server.url, "")) as client,
        ):
            assert await asked(client, 60) == 0
            assert server.connections >= 40

    asyncio.run(work())


def test_equal_answers_without_a_name_are_no_copies():
    """A label is the answer to many rows."""
    found, server = ended(PLAIN, times=5)
    assert {one[0] for one in found} == {200}
    assert len(server.requests) == 5
    assert server.connections == 1


def test_a_gateway_s_cache_may_answer_an_equal_request_with_the_same_bytes():
    """The identifier is the same as well; such an answer is right, and the connection is kept."""
    said = b'{"id": "chatcmpl-0123456789abcdef"}'
    found, server = ended(OK + b"Content-Length: %d\r\n\r\n" % len(said) + said, times=4)
    assert [one[2] for one in found] == [said] * 4
    assert server.connections == 1


@pytest.mark.usefixtures("long_rests")
def test_a_host_that_sent_something_unasked_is_given_new_connections_only():
    """From then on nothing can be taken for the answer to another request."""

    async def work():
        async with Chatty(often=4) as server, Client(Endpoint(server.url, "")) as client:
            assert await asked(client, 20, at_once=1) == 0
            assert server.connections == 1 + 16

    asyncio.run(work())


@pytest.mark.usefixtures("long_rests")
def test_the_408_that_ends_an_idle_connection_is_no_response_too_many():
    """HAProxy and others say so before they close it."""

    async def work():
        late = b"HTTP/1.0 408 Request Time-out\r\n\r\n"
        async with Chatty(late, wait=0.001, often=2) as server:
            async with Client(Endpoint(server.url, "")) as client:
                assert await asked(client, 20, at_once=1) == 0
            assert server.connections == 10

    asyncio.run(work())


@pytest.mark.usefixtures("long_rests")
def test_an_answer_before_the_question_is_the_answer_to_nothing():
    """A connection that was just made rests, too, before it is used."""

    class Early(Chatty):
        async def _serve(self, reader, writer):
            if self.connections < 3:
                writer.write(STRAY)
            await super()._serve(reader, writer)

    async def work():
        async with Early(often=1000) as server, Client(Endpoint(server.url, "")) as client:
            with pytest.raises(NoAnswer, match="before it is asked") as error:
                await client.post(b'"a"', 10.0)
            assert not error.value.sent
            assert not server.requests
            assert await asked(client, 10, at_once=1) == 0

    asyncio.run(work())


@pytest.mark.usefixtures("long_rests")
def test_a_host_that_once_answered_before_the_question_is_waited_for(monkeypatch):
    """What it sends on a new connection comes later than a first look, under load."""
    monkeypatch.setattr(connections, "_EARLY_REST_SECONDS", 0.4)

    class Early(Chatty):
        async def _serve(self, reader, writer):
            if self.connections % 2:
                await asyncio.sleep(0.1 if self.connections > 1 else 0.0)
                writer.write(STRAY)
            await super()._serve(reader, writer)

    async def work():
        async with Early(often=1000) as server, Client(Endpoint(server.url, "")) as client:
            assert await asked(client, 8) == 0
            assert len(server.requests) <= 8 + 8

    asyncio.run(work())


def test_a_flood_of_interim_responses_is_no_answer():
    """It held up the others for as long as it lasted; a few are usual."""
    some = b"HTTP/1.1 102 Processing\r\n\r\n" * 900
    found, _ = ended(some, PLAIN)
    assert found[0][2] == b"fine"
    found, _ = ended(b"HTTP/1.1 100 Continue\r\n\r\n" * 1_001, 60.0)
    assert found[0][:2] == (NoAnswer, Outcome.CONNECTION)
    assert "HTTP 100 (1,001 times)" in found[0][2]
    found, _ = ended(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", 60.0)
    assert found[0][:2] == (NoAnswer, Outcome.CONNECTION)


@pytest.mark.parametrize("body", [b"fine", b"x" * 3_000_000])
def test_an_answer_that_came_while_the_process_was_stopped_is_taken(body, monkeypatch):
    """A laptop's lid, or a signal: its time was over, but it is there and was paid for."""
    monkeypatch.setattr(connections, "_LATE_SECONDS", 0.1)
    monkeypatch.setattr(bodies, "_LATE_SECONDS", 0.1)

    async def work():
        sends = OK + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        with in_thread(0.05, sends) as server:
            async with Client(Endpoint(server.url, "")) as client:
                task = asyncio.create_task(client.post(BODY, 0.2))
                await asyncio.sleep(0.02)
                time.sleep(0.4)  # noqa: ASYNC251 (what holds up the loop)
                assert (await task).body == body

    asyncio.run(work())


def test_large_answers_wait_for_each_other(monkeypatch):
    """However many come at once, they are in memory one after the other; none fails for it."""
    monkeypatch.setattr(bodies, "_SMALL_BYTES", 1000)
    held, most = 0, 0

    async def work():
        nonlocal held, most
        sends = [CHUNKED, b"%x\r\n" % 300_000 + b"x" * 300_000 + b"\r\n0\r\n\r\n"]
        async with Server(*sends) as server, Client(Endpoint(server.url, "")) as client:

            async def one():
                nonlocal held, most
                reply = await client.post(BODY, 5.0)
                held += 1
                most = max(most, held)
                await asyncio.sleep(0.01)
                held -= 1
                reply.done()
                return len(reply.body)

            assert set(await asyncio.gather(*(one() for _ in range(20)))) == {300_000}
            assert most <= bodies._ALL_BYTES // bodies._MAX_BYTES

    asyncio.run(work())


def test_an_answer_for_which_there_is_no_memory_fails_alone(monkeypatch):
    """The others go on, and so does the run."""

    async def none(*_):
        raise MemoryError

    monkeypatch.setattr(bodies.BodyReader, "read", none)
    found, _ = ended(CHUNKED, 0.02, b"1\r\nx\r\n0\r\n\r\n", times=2)
    assert {one[:2] for one in found} == {(BadResponse, Outcome.BAD_RESPONSE)}


def test_what_comes_unasked_is_given_to_nobody():
    """An answer sent twice, while the connection was idle, is not the answer to the next row."""

    class Twice(Server):
        async def answer(self, writer, body):
            answer = OK + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            writer.write(answer)
            await asyncio.sleep(0.01)
            writer.write(answer)

    async def work():
        async with Twice() as server:
            async with Client(Endpoint(server.url, server.url)) as client:
                for n in range(10):
                    body = b'"row %d"' % n
                    assert (await client.post(body, 10.0)).body == body
                    await asyncio.sleep(0.05)
            assert server.connections == len(server.requests) == 10

    asyncio.run(work())


@pytest.mark.parametrize(
    "stray", [b"H", b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.1 500 X\r\nX-J: "]
)
def test_half_a_head_that_comes_unasked_is_no_part_of_the_next_answer(stray):
    """That was paid for, and is what the server sent."""

    async def work():
        async with Server(PLAIN + stray) as server:
            async with Client(Endpoint(server.url, server.url)) as client:
                for _ in range(5):
                    reply = await client.post(BODY, 10.0)
                    assert (reply.status, reply.body) == (200, b"fine")
            assert len(server.requests) == 5

    asyncio.run(work())


def test_answers_of_all_kinds_come_over_one_connection():
    """What one was packed in, or how its end was told, says nothing of the next."""
    packed = gzip.compress(b"packed")
    kinds = [
        (OK + b"Content-Length: 5\r\n\r\nplain", b"plain"),
        (OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (len(packed), packed), b"packed"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nchu\r\n4\r\nnked\r\n0\r\n\r\n", b"chunked"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 4\r\n\r\nlate", b"late"),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", b""),
    ]  # fmt: skip

    class InTurn(Server):
        async def answer(self, writer, _body):
            writer.write(kinds[(len(self.requests) - 1) % len(kinds)][0])

    async def work():
        async with InTurn() as server:
            async with Client(Endpoint(server.url, server.url)) as client:
                for _sent, body in 3 * kinds:
                    assert (await client.post(BODY, 10.0)).body == body
            assert server.connections == 1

    asyncio.run(work())


def test_a_row_of_little_time_has_no_more_of_it_on_a_connection_that_others_used():
    """The time of one exchange begins with it, whether the ones before had more or less."""

    class Slow(Server):
        async def answer(self, writer, body):
            await asyncio.sleep(float(body))
            writer.write(PLAIN)

    async def work():
        async with Slow() as server, Client(Endpoint(server.url, server.url)) as client:
            now = asyncio.get_running_loop().time
            for within in (60.0, 30.0, 0.6, 60.0, 0.6):
                assert (await client.post(b"0.01", within)).body == b"fine"
            # The timer of an earlier one is due in between, and does nothing.
            assert (await client.post(b"1.0", 60.0)).body == b"fine"
            assert server.connections == 1
            began = now()
            with pytest.raises(NoAnswer, match=r"no whole answer within 0\.3 s"):
                await client.post(b"5", 0.3)
            assert 0.25 < now() - began < 2.0

    asyncio.run(work())


def test_an_answer_before_all_of_the_question_was_sent_ends_the_connection():
    """A 413 does not read the rest, which would stand before the next request."""

    async def work():
        class Full(Server):
            async def _serve(self, reader, writer):
                self.serving.add(asyncio.current_task())
                self.connections += 1
                with contextlib.closing(writer), contextlib.suppress(Exception):
                    await reader.readuntil(b"\r\n\r\n")
                    writer.write(b"HTTP/1.1 413 Large\r\nContent-Length: 2\r\n\r\nno")
                    await asyncio.sleep(30)

        async with Full() as server:
            async with Client(Endpoint(server.url, server.url)) as client:
                for _ in range(3):
                    assert (await client.post(b"x" * (16 << 20), 5.0)).status == 413
            assert server.connections == 3

    asyncio.run(work())


def test_a_server_that_closes_without_a_word_is_given_new_connections():
    """A few requests are lost until that is known, and no more."""

    async def work():
        async with Server(PLAIN, 0.002, None) as server:
            lost = 0
            async with Client(Endpoint(server.url, server.url)) as client:
                for _ in range(100):
                    try:
                        await client.post(BODY, 10.0)
                    except NoAnswer:
                        lost += 1
            assert lost <= 3
            assert server.connections >= 97

    asyncio.run(work())


def test_many_at_once_have_a_connection_each():
    """And after a cancel in mid-answer the next exchange has a new one."""

    async def work():
        async with Server(0.1, PLAIN) as server:
            async with Client(Endpoint(server.url, server.url, KEY)) as client:
                answers = await asyncio.gather(*(client.post(BODY, 10.0) for _ in range(50)))
                assert {answer.body for answer in answers} == {b"fine"}
                assert server.connections == 50
                task = asyncio.create_task(client.post(BODY, 10.0))
                await asyncio.sleep(0.05)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await asyncio.gather(*(client.post(BODY, 10.0) for _ in range(50)))
            assert server.connections == 51

    asyncio.run(work())


@pytest.mark.parametrize(
    ("environment", "host", "proxied"),
    [
        ({}, "127.0.0.1", False),
        ({"http_proxy": "proxy"}, "gateway.test", True),
        ({"https_proxy": "proxy"}, "gateway.test", False),
        ({"http_proxy": "proxy", "no_proxy": "gateway.test"}, "gateway.test", False),
        ({"http_proxy": "proxy"}, "127.0.0.1", False),
    ],
)
def test_a_proxy_of_the_environment_is_used(monkeypatch, environment, host, proxied):
    """Many a cluster has no other way out; to this machine there is no need of one."""
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)

    async def work():
        async with Server(PLAIN) as server, Server(PLAIN) as proxy:
            for name, value in environment.items():
                at = value.replace("proxy", f"http://127.0.0.1:{_port(proxy)}")
                monkeypatch.setenv(name, at)
            server.url = server.url.replace("127.0.0.1", host)
            await exchanged(server)
            here = host == "127.0.0.1"
            assert (len(proxy.requests), len(server.requests)) == (proxied, here)
            if proxied:
                assert proxy.requests[0][0].startswith(f"POST {server.url} HTTP/1.1".encode())

    asyncio.run(work())


def test_an_address_where_nobody_is():
    """Refused at once is no timeout."""

    async def work():
        async with Server() as server:
            pass
        return await exchanged(server)

    (one,) = asyncio.run(work())
    assert one[:2] == (NoAnswer, Outcome.CONNECTION)


def test_a_header_that_is_no_utf8_can_be_written():
    """It would come to stand in the journal, in the output and on the terminal."""
    found, _ = ended(OK + b"X-Request-Id: r\xff\xc3\xa9\r\nContent-Length: 4\r\n\r\nfine")
    assert "r\ufffd\xe9" in dict(found[0][1]).values()
