"""The gateway's HTTP server. Touches: the network (loopback), the clock."""

from __future__ import annotations

import asyncio
import resource
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from math import ceil
from typing import Any, Self, TypeVar

import msgspec
from aiohttp import web

from batcher.simulate import faults, stream
from batcher.simulate.answers import answer, offered
from batcher.simulate.ledger import UNANSWERED, Ledger, Spent
from batcher.simulate.logprobs import logprobs
from batcher.simulate.meters import ModelMeter, Refusal, duration
from batcher.simulate.settings import SimulatedModel, Simulation
from batcher.simulate.structured import choices_of, hint, schema_of, shaped
from batcher.simulate.tokens import PrefixCache, prompt_tokens, text_of, text_tokens

__all__ = ["Gateway", "Running", "running", "serve", "start"]

T = TypeVar("T")

_encode = msgspec.json.Encoder(decimal_format="number").encode
_decode = msgspec.json.Decoder().decode
_HANG_S, _LOOK_S = 3600, 0.5
_LIMIT = "rate_limit_exceeded"
_UNSEEN = ("cut_json", "no_usage")
_PAGE = b"<html><head><title>502</title></head><body><h1>Bad gateway</h1></body></html>"


class _Refused(Exception):
    """The request is answered with an error in OpenAI's shape."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        kind: str = "invalid_request_error",
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}
        self.body = {"message": message, "type": kind, "param": None, "code": code}

    def reply(self) -> web.Response:
        return _json({"error": self.body}, self.status, self.headers)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request that can be answered.

    Attributes:
        bound: The most tokens of its answer.
        logprobs: How many tokens are told in the place of each; None for no log probabilities.
        streams: Whether it wants a stream, and its usage at the end.
    """

    model: SimulatedModel
    messages: list[dict[str, Any]]
    texts: list[bytes]
    prompt: int
    bound: int
    schema: Mapping[str, Any] | None
    logprobs: int | None
    streams: tuple[bool, bool] = (False, False)


class Gateway:
    """Answers chat completions as a simulation says, and keeps the ledger.

    Attributes:
        shares: Name of a fault to its share of requests; may change at any time.
        dead: Models that answer 500 to everything; may change at any time.
    """

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.shares = dict(simulation.faults)
        self.dead: set[str] = set()
        self.ledger = Ledger()
        self._models = {model.id: model for model in simulation.models}
        self._meters = {
            name: ModelMeter(simulation.meter, simulation.charge, *simulation.limits(name))
            for name in self._models
        }
        self._prefixes = PrefixCache()

    def app(self) -> web.Application:
        """The application with all its routes."""
        app = web.Application(client_max_size=256 << 20)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._list)
        app.router.add_get("/api/v1/models", self._catalogue)
        app.router.add_get("/ledger", self._tell)
        app.router.add_post("/ledger/reset", self._reset)
        app.router.add_post("/faults", self._set_faults)
        app.router.add_get("/health", self._health)
        return app

    async def _chat(self, request: web.Request) -> web.Response:
        name, status = None, UNANSWERED
        self.ledger.enter()
        try:
            body = await request.read()
            key = blake2b(body, digest_size=16).hexdigest()
            nth = self.ledger.receive(key)
            try:
                self._check_key(request)
                asked = self._read(body)
                name = asked.model.id
                self.ledger.models[name].received += 1
                reply = await self._answer(request, asked, key, nth)
            except _Refused as refused:
                reply = refused.reply()
            status = reply.status
            reply.headers["x-request-id"] = f"req-{key[:16]}-{nth}"
            return reply
        finally:
            self.ledger.leave(name, status)

    def _check_key(self, request: web.Request) -> None:
        wanted = self.simulation.api_key
        if wanted is not None and request.headers.get("Authorization") != f"Bearer {wanted}":
            raise _Refused(401, "Incorrect API key provided.", "invalid_api_key")

    def _read(self, body: bytes) -> _Asked:
        try:
            asked = _decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise _Refused(400, "The body is not JSON.") from None
        if not isinstance(asked, dict) or not isinstance(name := asked.get("model"), str):
            raise _Refused(400, "You must provide a model parameter.")
        messages = asked.get("messages")
        if not (isinstance(messages, list) and messages and all(map(_is_message, messages))):
            raise _Refused(400, "'messages' must be a list of messages with role and content.")
        model = self._models.get(name)
        if model is None:
            text = f"The model '{name}' does not exist or you do not have access to it."
            raise _Refused(404, text, "model_not_found")
        streams, options = asked.get("stream") is True, asked.get("stream_options")
        if options is not None and not streams:
            raise _Refused(400, "'stream_options' is only allowed when 'stream' is enabled.")
        tells = isinstance(options, dict) and options.get("include_usage") is True
        bound = model.max_output
        for field in ("max_tokens", "max_completion_tokens"):
            most = asked.get(field)
            if most is not None:
                if type(most) is not int or most < 1:
                    raise _Refused(400, f"'{field}' must be an integer of at least 1.")
                bound = min(bound, most)
        form = asked.get("response_format")
        kind = form.get("type") if isinstance(form, dict) else None
        if kind == "json_schema" and not model.schemas:
            text = "'response_format' of type 'json_schema' is not supported with this model."
            raise _Refused(400, f"Invalid parameter: {text}")
        texts = [text_of(message) for message in messages]
        system = (t for t, m in zip(texts, messages, strict=True) if m["role"] == "system")
        schema = schema_of(form, b"\n".join(system).decode())
        top = asked.get("top_logprobs") or 0
        if type(top) is not int or not 0 <= top <= 20:
            raise _Refused(400, "'top_logprobs' must be an integer from 0 to 20.")
        told = top if asked.get("logprobs") is True else None
        prompt = prompt_tokens(texts)
        how = (streams, tells)
        return _Asked(model, messages, texts, prompt, bound, schema, told, how)

    async def _answer(
        self, request: web.Request, asked: _Asked, key: str, nth: int
    ) -> web.Response:
        """The answer to a request that is in order; raises `_Refused` instead of one."""
        simulation, model, ledger = self.simulation, asked.model, self.ledger
        most = simulation.max_in_flight
        if most is not None and ledger.in_flight > most:
            raise _Refused(503, "The server is overloaded.", "overloaded", "server_error")
        if model.id in self.dead:
            raise _Refused(500, "The server had an error.", "server_error", "server_error")
        meter = self._meters[model.id]
        refusal = meter.admit(asked.prompt, asked.bound, time.monotonic())
        if refusal is not None:
            raise self._limited(refusal, model.id)
        fault = faults.drawn(self.shares, simulation.seed, key, nth)
        if fault is not None:
            ledger.models[model.id].by_fault[fault] += 1
            failure = await _fail(request, fault, model)
            if failure is not None:
                return failure
        if asked.prompt > model.context_length:
            raise _too_long(model)

        messages, schema = asked.messages, asked.schema
        if schema is not None:
            messages = [{"role": "system", "content": hint(schema)}, *messages]
        text = answer(messages, model.id, model.quality, simulation.seed)
        if schema is not None:
            text = shaped(text, schema)
        content, refused, finish = _shape(text, asked.bound, fault)
        completion = text_tokens((refused or content or "").encode())
        streams, tells = asked.streams
        left = 0.0
        if simulation.speed > 0:
            point = faults.point(simulation.seed, key, nth, "latency")
            left = model.latency_s(point, completion) / simulation.speed
            left = left * 10 if fault == "slow" else left
            first = model.latency_s(point, 0) / simulation.speed if streams else left
            await asyncio.sleep(min(first, left))
            left -= min(first, left)
        cached, written = self._prefixes.cached(model.id, asked.texts)
        bills = simulation.cache_writes
        spent = Spent(asked.prompt, completion, cached, written=written if bills else None)
        now = time.monotonic()
        meter.settle(spent.prompt + spent.completion, now)

        def bill(*, seen: bool) -> None:
            ledger.bill(model, key, spent, seen=seen and fault not in _UNSEEN)

        if not streams:
            bill(seen=not _gone(request))

        message = {"role": "assistant", "content": content, "refusal": refused}
        sure = None
        if asked.logprobs is not None and content:
            labels = choices_of(schema) or offered(messages)
            sure = logprobs(content, labels, asked.logprobs, key)
        choice = {"index": 0, "message": message, "logprobs": sure, "finish_reason": finish}
        data: dict[str, Any] = {
            "id": f"chatcmpl-{key[:24]}-{nth}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": model.id,
            "choices": [choice],
        }
        headers = meter.headers(now) if simulation.headers else None
        if streams:
            usage = _usage(spent) if tells and fault != "no_usage" else None
            events = stream.events(data, usage, cut=fault == "cut_json")
            return web.Response(
                body=stream.paced(events, left, bill), headers=headers, content_type=stream.TYPE
            )
        if fault != "no_usage":
            data["usage"] = _usage(spent)
        reply = _json(data, headers=headers)
        if fault == "cut_json":
            whole = _encode(data)
            reply.body = whole[: len(whole) // 2]
        return reply

    def _limited(self, refusal: Refusal, name: str) -> _Refused:
        """A 429; without headers it says nothing of the limit or the wait."""
        kind, wait = refusal.what, refusal.wait_s
        text = f"Rate limit reached for {name} on {kind} per min."
        if not self.simulation.headers:
            return _Refused(429, text, _LIMIT, kind)
        headers = self._meters[name].headers(time.monotonic())
        headers["retry-after"] = str(ceil(wait))
        headers["retry-after-ms"] = str(ceil(wait * 1000))
        text += f" Limit {refusal.limit:.0f}. Please try again in {duration(wait)}."
        return _Refused(429, text, _LIMIT, kind, headers)

    async def _list(self, _request: web.Request) -> web.Response:
        models = [
            {"id": name, "object": "model", "created": 0, "owned_by": "batcher"}
            for name in self._models
        ]
        return _json({"object": "list", "data": models})

    async def _catalogue(self, _request: web.Request) -> web.Response:
        data = [
            {
                "model_id": model.id,
                "types": "llm",
                "features": "",
                "input_modalities": "text,image",
                "context_length": model.context_length,
                "max_output": model.max_output,
                "pricing": {
                    "input": model.input_price,
                    "output": model.output_price,
                    "cache_read": model.cached_price,
                    **({"cache_write": model.write_price} if self.simulation.cache_writes else {}),
                },
            }
            for model in self.simulation.models
        ]
        return _json({"data": data, "message": "", "success": True})

    async def _tell(self, request: web.Request) -> web.Response:
        return _json(self.ledger.asdict(keys=request.query.get("keys") == "1"))

    async def _reset(self, _request: web.Request) -> web.Response:
        self.ledger.reset()
        return _json(self.ledger.asdict())

    async def _set_faults(self, request: web.Request) -> web.Response:
        try:
            shares = msgspec.json.decode(await request.read(), type=dict[str, float])
            faults.check_shares(shares)
        except ValueError as error:  # msgspec's errors are ValueErrors too
            return _Refused(400, str(error)).reply()
        self.shares = shares
        return _json(shares)

    async def _health(self, _request: web.Request) -> web.Response:
        return _json({"status": "ok"})


def _is_message(message: object) -> bool:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        return False
    content = message.get("content")
    return isinstance(content, str | list) or (content is None and "tool_calls" in message)


def _json(data: object, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    body, kind = _encode(data), "application/json"
    return web.Response(body=body, status=status, headers=headers, content_type=kind)


def _usage(spent: Spent) -> dict[str, Any]:
    return {
        "prompt_tokens": spent.prompt,
        "completion_tokens": spent.completion,
        "total_tokens": spent.prompt + spent.completion,
        "prompt_tokens_details": {
            "cached_tokens": spent.cached,
            **({} if spent.written is None else {"cache_write_tokens": spent.written}),
        },
        "completion_tokens_details": {"reasoning_tokens": spent.reasoning},
    }


def _shape(text: str, bound: int, fault: str | None) -> tuple[str | None, str | None, str]:
    """Content, refusal and finish_reason of an answer of at most `bound` tokens."""
    match fault:
        case "empty":
            return "", None, "stop"
        case "refused":
            return None, "I can't help with that.", "stop"
        case "filtered":
            return "", None, "content_filter"
        case "invalid":
            return "Let me think about that first.", None, "stop"
        case "truncated":
            return text[: max(1, len(text) // 2)], None, "length"
    encoded = text.encode()
    if text_tokens(encoded) > bound:
        return encoded[: bound * 4].decode(errors="ignore"), None, "length"
    return text, None, "stop"


def _too_long(model: SimulatedModel) -> _Refused:
    text = f"This model's maximum context length is {model.context_length} tokens."
    return _Refused(400, text, "context_length_exceeded")


def _gone(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


async def _fail(request: web.Request, fault: str, model: SimulatedModel) -> web.Response | None:
    """What a fault sends in place of an answer; None when there is an answer all the same."""
    match fault:
        case "http_500":
            raise _Refused(500, "The server had an error.", "server_error", "server_error")
        case "http_503":
            raise _Refused(503, "The server is overloaded.", "overloaded", "server_error")
        case "http_429":
            raise _Refused(429, "Too many requests.", _LIMIT, "requests", {"retry-after": "1"})
        case "context_length":
            raise _too_long(model)
        case "bad_request":
            text = "Unsupported parameter: 'top_q' is not supported with this model."
            raise _Refused(400, text, "unsupported_parameter", "invalid_request_error")
        case "quota":
            text = "You exceeded your current quota, please check your plan and billing details."
            raise _Refused(429, text, "insufficient_quota", "insufficient_quota")
        case "day_limit":
            wait = {"retry-after": "86400"}
            raise _Refused(429, "Too many requests.", _LIMIT, "requests", wait)
        case "html":
            return web.Response(body=_PAGE, content_type="text/html")
        case "error_200":
            return _json({"error": {"message": "The upstream failed.", "code": 502}})
        case "no_choices":
            return _json({"object": "chat.completion", "model": model.id, "choices": []})
        case "disconnect":
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=UNANSWERED)
        case "hang":
            end = time.monotonic() + _HANG_S
            while not _gone(request) and time.monotonic() < end:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(_LOOK_S)
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=UNANSWERED)
    return None


@dataclass
class Running:
    """A gateway that is up; `async with` stops it.

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

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


async def start(simulation: Simulation) -> Running:
    """Starts a gateway in the running loop. Raises OSError when the port is taken."""
    _allow_connections()
    gateway = Gateway(simulation)
    runner = web.AppRunner(gateway.app(), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, simulation.host, simulation.port, backlog=8192).start()
    except OSError:
        await runner.cleanup()
        raise
    host, port = runner.addresses[0][:2]
    return Running(f"http://{f'[{host}]' if ':' in host else host}:{port}/v1", gateway, runner)


async def serve(simulation: Simulation) -> None:
    """Runs a gateway until cancelled."""
    async with await start(simulation):
        await asyncio.Event().wait()


@contextmanager
def running(simulation: Simulation) -> Iterator[Running]:
    """A gateway in a thread and a loop of its own, for tests; read its ledger from any thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="gateway", daemon=True)
    thread.start()

    def wait(work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, loop).result(30)

    try:
        gateway = wait(start(simulation))
        try:
            yield gateway
        finally:
            wait(gateway.stop())
            wait(_end_others())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()


async def _end_others() -> None:
    """Handlers that hang outlive the gateway, but not their loop."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _allow_connections(wanted: int = 65_536) -> None:
    """Raises the soft limit of open files as far as allowed; never lowers it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
