"""The gateway's HTTP server. Touches: the network (loopback), the clock."""

from __future__ import annotations

import asyncio
import contextlib
import random
import resource
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import msgspec
from aiohttp import web

from batcher.simulate import faults
from batcher.simulate.answers import answer
from batcher.simulate.ledger import Ledger
from batcher.simulate.meters import Meter, meter
from batcher.simulate.settings import SimulatedModel, Simulation

__all__ = ["Gateway", "Running", "running", "start"]

_encode = msgspec.json.Encoder(enc_hook=str).encode
_decode = msgspec.json.Decoder().decode
_CACHE_STEP, _CACHE_LEAST, _CACHE_MOST = 128, 1024, 50_000
_PAGE = b"<html><head><title>502</title></head><body><h1>Bad gateway</h1></body></html>"


class Gateway:
    """Answers chat completions as a simulation says, and keeps the ledger."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.shares = dict(simulation.faults)
        self.ledger = Ledger()
        self._models = {model.id: model for model in simulation.models}
        self._requests = self._meters(simulation.rpm)
        self._tokens = self._meters(simulation.tpm)
        self._prefixes: OrderedDict[bytes, None] = OrderedDict()

    def _meters(self, limit: float | None) -> dict[str, Meter]:
        return {m: meter(self.simulation.meter, limit) for m in self._models} if limit else {}

    def app(self) -> web.Application:
        """The application with all its routes."""
        app = web.Application(client_max_size=256 << 20)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._list)
        app.router.add_get("/api/v1/models", self._catalogue)
        app.router.add_get("/ledger", self._ledger)
        app.router.add_post("/faults", self._set_faults)
        app.router.add_get("/health", self._health)
        return app

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        ledger = self.ledger
        ledger.in_flight += 1
        ledger.peak_in_flight = max(ledger.peak_in_flight, ledger.in_flight)
        try:
            body = await request.read()
            key = blake2b(body, digest_size=16).hexdigest()
            model, reply = await self._answer(request, body, key)
            if model is not None:
                ledger.models[model].by_status[reply.status] += 1
            return reply
        finally:
            ledger.in_flight -= 1

    async def _answer(
        self, request: web.Request, body: bytes, key: str
    ) -> tuple[str | None, web.Response]:
        simulation = self.simulation
        wanted = simulation.api_key
        if wanted is not None and request.headers.get("Authorization") != f"Bearer {wanted}":
            return None, _refuse(401, "Incorrect API key provided.", "invalid_api_key")
        try:
            asked = _decode(body)
            messages = asked["messages"]
            name = asked["model"]
            if not (isinstance(messages, list) and messages and isinstance(name, str)):
                raise TypeError
            if any(not isinstance(m, dict) or "role" not in m for m in messages):
                raise TypeError
        except (msgspec.DecodeError, TypeError, KeyError):
            return None, _refuse(400, "The body needs a model and messages with roles.", None)
        model = self._models.get(name)
        if model is None:
            text = f"The model '{name}' does not exist or you do not have access to it."
            return None, _refuse(404, text, "model_not_found")
        account = self.ledger.models[name]
        account.received += 1
        nth = self.ledger.received_by_key[key]
        self.ledger.received_by_key[key] += 1
        if simulation.max_in_flight and self.ledger.in_flight > simulation.max_in_flight:
            return name, _refuse(503, "The server is overloaded.", "overloaded")

        prompt = sum(4 + len(_text(m)) // 4 for m in messages)
        bound = asked.get("max_completion_tokens") or asked.get("max_tokens")
        refusal = self._meter(name, prompt, bound or model.max_output)
        if refusal is not None:
            return name, refusal
        fault = faults.drawn(self.shares, simulation.seed, key.encode(), nth)
        if fault is not None:
            account.by_fault[fault] += 1
        failure = await self._fail(request, fault)
        if failure is not None:
            return name, failure
        dice = random.Random(f"{simulation.seed} {key} {nth}")
        await self._think(model, dice, slow=fault == "slow")

        text = answer(messages, name, model.quality, simulation.seed)
        finish, refused = "stop", None
        if fault == "truncated":
            text, finish = text[: max(1, len(text) // 2)], "length"
        elif fault == "empty":
            text = ""
        elif fault == "refused":
            text, refused = "", "I can't help with that."
        elif fault == "filtered":
            text, finish = "", "content_filter"
        completion = max(1, (len(text.encode()) + 3) // 4)
        if isinstance(bound, int) and completion > bound:
            text, completion, finish = (
                text.encode()[: bound * 4].decode(errors="ignore"),
                bound,
                "length",
            )
        cached = self._cached(name, messages)
        self._settle(name, prompt + completion)
        unseen = fault in ("cut_json", "no_usage")
        self.ledger.bill(model, key, prompt, completion, cached, seen=not unseen)
        data: dict[str, Any] = {
            "id": f"chatcmpl-{key[:24]}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": name,
            "choices": [
                {
                    "index": 0,
                    "message": {
                        "role": "assistant",
                        "content": None if refused else text,
                        "refusal": refused,
                    },
                    "logprobs": None,
                    "finish_reason": finish,
                }
            ],
        }
        if fault != "no_usage":
            data["usage"] = {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
                "prompt_tokens_details": {"cached_tokens": cached},
                "completion_tokens_details": {"reasoning_tokens": 0},
            }
        encoded = _encode(data)
        if fault == "cut_json":
            encoded = encoded[: len(encoded) // 2]
        return name, web.Response(
            body=encoded,
            content_type="application/json",
            headers={"x-request-id": f"req-{key[:16]}-{nth}", **self._limit_headers(name)},
        )

    def _meter(self, name: str, prompt: int, bound: int) -> web.Response | None:
        """Books the request, or returns the 429."""
        now = time.monotonic()
        up_front = prompt + (bound if self.simulation.charge == "max-tokens" else 0)
        requests, tokens = self._requests.get(name), self._tokens.get(name)
        waits = {
            "requests": requests.refusal(1, now) if requests else None,
            "tokens": tokens.refusal(up_front, now) if tokens else None,
        }
        for what, wait in waits.items():
            if wait is not None:
                reply = _refuse(
                    429, f"Rate limit reached for {what} per minute.", "rate_limit_exceeded"
                )
                if self.simulation.headers:
                    reply.headers["retry-after"] = f"{wait:.3f}"
                return reply
        if requests:
            requests.take(1, now)
        if tokens and self.simulation.charge == "max-tokens":
            tokens.take(up_front, now)
        return None

    def _settle(self, name: str, used: int) -> None:
        tokens = self._tokens.get(name)
        if tokens and self.simulation.charge == "output":
            tokens.take(used, time.monotonic())

    def _limit_headers(self, name: str) -> dict[str, str]:
        if not self.simulation.headers:
            return {}
        now, told = time.monotonic(), {}
        for what, meters in (("requests", self._requests), ("tokens", self._tokens)):
            if of := meters.get(name):
                left = of.remaining(now)
                told[f"x-ratelimit-limit-{what}"] = f"{of.limit:.0f}"
                told[f"x-ratelimit-remaining-{what}"] = f"{left:.0f}"
                told[f"x-ratelimit-reset-{what}"] = f"{(of.limit - left) / of.limit * 60:.3f}s"
        return told

    async def _fail(self, request: web.Request, fault: str | None) -> web.Response | None:
        match fault:
            case "http_500":
                return _refuse(500, "The server had an error.", "server_error")
            case "http_503":
                return _refuse(503, "The server is overloaded.", "overloaded")
            case "http_429":
                reply = _refuse(429, "Too many requests.", "rate_limit_exceeded")
                reply.headers["retry-after"] = "1"
                return reply
            case "html":
                return web.Response(body=_PAGE, content_type="text/html")
            case "error_200":
                return web.json_response({"error": {"message": "upstream failed", "code": "502"}})
            case "no_choices":
                return web.json_response({"object": "chat.completion", "choices": []})
            case "context_length":
                text = "This model's maximum context length is 128000 tokens."
                return _refuse(400, text, "context_length_exceeded")
            case "disconnect":
                if request.transport is not None:
                    request.transport.abort()
                return web.Response(status=500)
            case "hang":
                await asyncio.sleep(3600)
        return None

    async def _think(self, model: SimulatedModel, dice: random.Random, *, slow: bool) -> None:
        if self.simulation.speed > 0:
            seconds = model.median_s * dice.lognormvariate(0, model.sigma) / self.simulation.speed
            await asyncio.sleep(seconds * (10 if slow else 1))

    def _cached(self, name: str, messages: list[Any]) -> int:
        """Tokens of the prompt that stood at the start of an earlier one: from 1,024, by 128."""
        text = b"\x00".join(_text(m) for m in messages)
        tokens = len(text) // 4
        if tokens < _CACHE_LEAST:
            return 0
        cached, digest = 0, blake2b(name.encode(), digest_size=16)
        for end in range(_CACHE_STEP, tokens + 1, _CACHE_STEP):
            digest.update(text[(end - _CACHE_STEP) * 4 : end * 4])
            prefix = digest.digest()
            if prefix in self._prefixes:
                cached = end
            self._prefixes[prefix] = None
        while len(self._prefixes) > _CACHE_MOST:
            self._prefixes.popitem(last=False)
        return cached if cached >= _CACHE_LEAST else 0

    async def _list(self, _request: web.Request) -> web.Response:
        models = [{"id": m, "object": "model", "owned_by": "batcher"} for m in self._models]
        return web.json_response({"object": "list", "data": models})

    async def _catalogue(self, _request: web.Request) -> web.Response:
        data = [
            {
                "model_id": m.id,
                "types": "llm",
                "features": "",
                "input_modalities": "text,image",
                "context_length": m.context_length,
                "max_output": m.max_output,
                "pricing": {
                    "input": float(m.input_price),
                    "output": float(m.output_price),
                    "cache_read": float(m.cached_price),
                },
            }
            for m in self.simulation.models
        ]
        return web.json_response({"data": data, "message": "", "success": True})

    async def _ledger(self, request: web.Request) -> web.Response:
        told = self.ledger.asdict(keys="keys" in request.query)
        return web.Response(body=_encode(told), content_type="application/json")

    async def _set_faults(self, request: web.Request) -> web.Response:
        shares = await request.json()
        try:
            faults.check_shares(shares)
        except (ValueError, AttributeError, TypeError) as error:
            return _refuse(400, str(error), None)
        self.shares = shares
        return web.json_response(self.shares)

    async def _health(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})


@dataclass
class Running:
    """A gateway that is up.

    Attributes:
        url: Its base URL, with /v1.
    """

    url: str
    gateway: Gateway
    _runner: web.AppRunner

    @property
    def ledger(self) -> Ledger:
        """What it received and billed."""
        return self.gateway.ledger

    async def stop(self) -> None:
        """Closes it, without waiting for requests that hang."""
        await self._runner.cleanup()


async def start(simulation: Simulation) -> Running:
    """Starts a gateway in the running loop. Raises OSError when the port is taken."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    gateway = Gateway(simulation)
    runner = web.AppRunner(gateway.app(), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, simulation.host, simulation.port, backlog=4096)
    try:
        await site.start()
    except OSError:
        await runner.cleanup()
        raise
    host, port = runner.addresses[0][:2]
    return Running(f"http://{host}:{port}/v1", gateway, runner)


@contextlib.contextmanager
def running(simulation: Simulation) -> Iterator[Running]:
    """A gateway in a thread of its own, for tests."""
    ready, ended = threading.Event(), []
    box: list[Running] = []

    async def serve() -> None:
        stop = asyncio.Event()
        ended.append((asyncio.get_running_loop(), stop))
        up = await start(simulation)
        box.append(up)
        ready.set()
        await stop.wait()
        await up.stop()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="gateway", daemon=True)
    thread.start()
    if not ready.wait(10):
        raise RuntimeError("the simulated gateway did not start")
    try:
        yield box[0]
    finally:
        loop, stop = ended[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)


def _text(message: dict[str, Any]) -> bytes:
    content = message.get("content")
    if isinstance(content, str):
        return content.encode(errors="replace")
    return _encode(content) if content is not None else b""


def _refuse(status: int, message: str, code: str | None) -> web.Response:
    kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return web.Response(status=status, body=_encode(body), content_type="application/json")
