"""A gateway that answers with what it was asked, so that a stale answer shows."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from aiohttp import web

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Echo:
    """The gateway's side of things.

    Attributes:
        bought: How often each body was answered.
        fails: Told a body, says whether this request fails (400).
        heard: Called with each body, before it is answered.
    """

    url = ""

    def __init__(self) -> None:
        self.bought: Counter[str] = Counter()
        self.fails: Callable[[str], bool] = lambda _body: False
        self.heard: Callable[[str], None] = lambda _body: None

    async def answer(self, request: web.Request) -> web.Response:
        """Every answer names the body it is to, and which of the answers to it it is."""
        body = (await request.read()).decode()
        self.heard(body)
        if self.fails(body):
            return web.json_response({"error": {"message": f"no: {body[-20:]}"}}, status=400)
        self.bought[body] += 1
        said = f"{name(body)}:{self.bought[body]}"
        choice = {"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return web.json_response({"choices": [choice], "usage": usage})


def name(body: str) -> str:
    """What an answer to this body begins with."""
    return sha256(body.encode()).hexdigest()[:16]


def asked(text: str, model: str, system: str | None = None, **params: object) -> str:
    """The body that a prompt becomes."""
    messages = [{"role": "user", "content": text}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return json.dumps(
        {"model": model, "messages": messages, **params}, separators=(",", ":"), ensure_ascii=False
    )


@contextmanager
def running(
    answer: Answer | None = None,
    path: str = "/v1/chat/completions",
    certificate: Path | None = None,
) -> Iterator[Echo]:
    """The gateway on a free port, in a thread of its own; `answer` takes the place of its own.

    With a certificate (and its key, one file) it speaks TLS.
    """
    context = None
    if certificate is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
    echo, up, loop = Echo(), threading.Event(), asyncio.new_event_loop()

    async def serve() -> web.AppRunner:
        app = web.Application()
        app.router.add_route("*", path, answer or echo.answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        echo.url = f"http{'s' if context else ''}://127.0.0.1:{runner.addresses[0][1]}/v1"
        return runner

    def work() -> None:
        try:
            runner = loop.run_until_complete(serve())
        finally:
            up.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    up.wait()
    try:
        yield echo
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
