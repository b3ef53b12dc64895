"""Servers that mean harm: a row with a reason, in bounded memory and time, and never the end of a run."""

import asyncio
import contextlib
import gzip
import json
import threading
from contextlib import contextmanager

import pytest

from tests.support.program import command, read_jsonl, write_jsonl
from tests.torture import LONG, tell
from tests.torture.memory import peak

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
MB = 1 << 20
MOST_MB = 300  # The largest answer is 64 MB, held twice for a moment, and once more as text.


async def endless(writer):
    """A body without an end."""
    writer.write(HEAD + b'\r\n{"choices": ["')
    while True:
        writer.write(b"x" * MB)
        await writer.drain()


async def bomb(writer):
    """A few megabytes that unpack to ten thousand."""
    packed = gzip.compress(b"\0" * (64 * MB), 9)
    writer.write(HEAD + b"Content-Encoding: gzip\r\n\r\n")
    for _ in range(160):
        writer.write(packed)
        await writer.drain()


async def one_header(writer):
    """A line of a gigabyte before any answer."""
    writer.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    for _ in range(1024):
        writer.write(b"x" * MB)
        await writer.drain()


async def many_headers(writer):
    """Short ones, without an end."""
    writer.write(b"HTTP/1.1 200 OK\r\n")
    for n in range(20_000_000):
        writer.write(b"X-%d: y\r\n" % n)
        if n % 10_000 == 0:
            await writer.drain()


async def deep(writer):
    """JSON of ten million brackets."""
    body = b'{"choices": ' + b"[" * 10_000_000
    writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()


async def numbers(writer):
    """A number of ten million digits, where a count is."""
    body = b'{"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": %b}}' % (
        b"9" * 10_000_000
    )
    writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()


async def loris(writer):
    """A byte now and then."""
    writer.write(HEAD + b"\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.1)


async def stream(writer):
    """Events without an end."""
    writer.write(HEAD.replace(b"application/json", b"text/event-stream") + b"\r\n")
    event = b'data: {"choices": [{"delta": {"content": "%b"}}]}\n\n' % (b"x" * 1000)
    while True:
        writer.write(event * 1000)
        await writer.drain()


async def promise(writer):
    """A length that no memory holds."""
    writer.write(HEAD + b"Content-Length: 99999999999999\r\n\r\n{")
    await writer.drain()
    await asyncio.sleep(60)


ATTACKS = {
    endless: ("bad_response", "the answer is longer than 67,108,864 bytes"),
    bomb: ("bad_response", "the answer is longer than 67,108,864 bytes"),
    one_header: ("connection", ""),
    many_headers: ("connection", ""),
    deep: ("bad_response", "HTTP 200 but not JSON"),
    numbers: ("bad_response", "HTTP 200 but not JSON"),
    loris: ("timeout", "no whole answer within 6 s"),
    promise: ("bad_response", "99,999,999,999,999 bytes long"),
    stream: ("bad_response", "the answer is longer than 67,108,864 bytes"),
}
NAMES = {attack.__name__: attack for attack in ATTACKS}


@contextmanager
def serving():
    """A server that does to each model what its name says."""
    loop, up, servers = asyncio.new_event_loop(), threading.Event(), []

    async def serve(reader, writer):
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while True:
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = head.lower().split(b"content-length:")[1].split(b"\r\n")[0]
                    body = json.loads(await reader.readexactly(int(length)))
                    await NAMES[body["model"]](writer)
                    if body["model"] not in ("deep", "numbers"):
                        break
        finally:
            writer.transport.abort()

    async def start():
        servers.append(await asyncio.start_server(serve, "127.0.0.1", 0))
        up.set()

    async def end():
        servers[0].close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def work():
        loop.run_until_complete(start())
        loop.run_forever()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert up.wait(10)
    try:
        yield f"http://127.0.0.1:{servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@pytest.mark.parametrize(
    "attacks",
    [[(attack,) for attack in ATTACKS], [tuple(ATTACKS)]][not LONG],
    ids=lambda of: of[0].__name__ if len(of) == 1 else "all of them",
)
def test_a_server_that_means_harm_costs_a_row(tmp_path, attacks):
    """In the short form one process gets all of it, one after the other."""
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "a"}])
    with serving() as url:
        words = command(
            "run", tmp_path / "in.jsonl", "-o", tmp_path / "o.jsonl", "--max-retries", "0", "--quiet", "--stream",
            "--total-concurrency", "1", "--attempt-timeout", "6",
            *(f"--model={attack.__name__}" for attack in attacks),
        )  # fmt: skip
        ended, megabytes, seconds = peak([str(word) for word in words], url)
    rows = read_jsonl(tmp_path / "o.jsonl")
    told = {row["model"]: row["status"] for row in rows}
    tell("a hostile server", peak_MB=megabytes, seconds=f"{seconds:.1f}", status=told)
    assert ended == (0 if set(told.values()) == {"ok"} else 3)
    for row in rows:
        status, says = ATTACKS[NAMES[row["model"]]]
        assert row["status"] == status, row["error"]
        assert says in (row["error"] or "")
    assert megabytes < MOST_MB
