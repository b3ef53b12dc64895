import asyncio
import json
import resource
import time
from collections import Counter
from decimal import Decimal

import aiohttp
import pytest

from batcher.simulate.faults import FAULTS
from batcher.simulate.server import running, serve, start
from batcher.simulate.settings import MODELS, Simulation

ASKED = {"model": "sim-small", "messages": [{"role": "user", "content": "What is 2 + 3?"}]}
PROMPT = 8


def body(n=0, model="sim-small", **more):
    return {"model": model, "messages": [{"role": "user", "content": f"What is {n} + 3?"}], **more}


async def until(condition):
    """Looks until it is so, at most ten seconds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the gateway tells by its ledger alone
            await asyncio.sleep(0.01)


async def ask(session, url, asked=ASKED, **options):
    """Status, headers and text of one answer; `asked` may be bytes."""
    data = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    async with session.post(f"{url}/chat/completions", data=data, **options) as reply:
        return reply.status, reply.headers, await reply.text()


def asked(simulation, *bodies, together=False, **options):
    """Answers to these bodies, one after another or together, and the gateway's ledger."""

    async def talk(url):
        async with aiohttp.ClientSession() as session:
            calls = [ask(session, url, one, **options) for one in bodies]
            return await asyncio.gather(*calls) if together else [await call for call in calls]

    with running(simulation) as gateway:
        return asyncio.run(talk(gateway.url)), gateway.ledger


def one(simulation, sent=ASKED, **options):
    [(status, headers, text)], ledger = asked(simulation, sent, **options)
    return status, headers, text, ledger


def test_an_answer_has_the_shape_of_openais():
    """Any OpenAI client can read it."""
    status, headers, text, _ = one(Simulation(speed=0))
    got = json.loads(text)
    assert (status, headers["content-type"]) == (200, "application/json")
    assert got.pop("id").startswith("chatcmpl-")
    assert abs(got.pop("created") - time.time()) < 60
    assert headers["x-request-id"]
    [choice] = got.pop("choices")
    assert choice["message"].keys() == {"role", "content", "refusal"}
    assert (choice["message"]["role"], choice["message"]["refusal"]) == ("assistant", None)
    assert (choice["index"], choice["finish_reason"]) == (0, "stop")
    completion = -(-len(choice["message"]["content"].encode()) // 4)
    assert got == {
        "object": "chat.completion",
        "model": "sim-small",
        "usage": {
            "prompt_tokens": PROMPT,
            "completion_tokens": completion,
            "total_tokens": PROMPT + completion,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"{", 400, None),
        (b"[" * 100_000, 400, None),
        (b'{"model": "sim-small", "messages": [{"role": "user", "content": "\xff"}]}', 400, None),
        ([], 400, None),
        ({"messages": ASKED["messages"]}, 400, None),
        ({"model": "sim-small"}, 400, None),
        ({"model": "sim-small", "messages": []}, 400, None),
        ({"model": "sim-small", "messages": [{"role": "user"}]}, 400, None),
        ({"model": "sim-small", "messages": ["hello"]}, 400, None),
        (body(max_tokens="9"), 400, None),
        (body(max_completion_tokens=0), 400, None),
        (body(stream_options={"include_usage": True}), 400, None),
        (body(model="gpt-9"), 404, "model_not_found"),
    ],
)
def test_what_is_wrong_with_a_request_is_said_in_openais_shape(sent, status, code):
    """Nothing that a client sends makes the gateway fail itself."""
    got, _, text, ledger = one(Simulation(speed=0), sent)
    error = json.loads(text)["error"]
    assert (got, error["code"], error["param"]) == (status, code, None)
    assert (error["type"], bool(error["message"])) == ("invalid_request_error", True)
    assert sum(ledger.received_by_key.values()) == 1
    assert not ledger.billed_by_key


def test_a_key_is_wanted_only_when_there_is_one():
    """No key and any key pass, unless the simulation names its own."""
    for headers in ({}, {"Authorization": "Bearer any"}):
        assert one(Simulation(speed=0), headers=headers)[0] == 200
        status, _, text, ledger = one(Simulation(speed=0, api_key="right"), headers=headers)
        assert (status, json.loads(text)["error"]["code"]) == (401, "invalid_api_key")
        assert ledger.strangers == {401: 1}
    headers = {"Authorization": "Bearer right"}
    assert one(Simulation(speed=0, api_key="right"), headers=headers)[0] == 200


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_max_tokens_cuts_the_answer(name):
    """What is billed is what came out."""
    sent = {**ASKED, "messages": [{"role": "user", "content": "Tell me about the sea"}], name: 3}
    got = json.loads(one(Simulation(speed=0), sent)[2])
    assert got["choices"][0]["finish_reason"] == "length"
    assert got["usage"]["completion_tokens"] == 3
    assert 9 <= len(got["choices"][0]["message"]["content"].encode()) <= 12


def test_a_prompt_above_the_context_is_refused():
    """As real gateways do; nothing is billed."""
    sent = {"model": "sim-small", "messages": [{"role": "user", "content": "long " * 110_000}]}
    status, _, text, ledger = one(Simulation(speed=0), sent)
    assert (status, json.loads(text)["error"]["code"]) == (400, "context_length_exceeded")
    assert not ledger.billed_by_key


ERRORS = {
    "http_500": (500, None),
    "http_503": (503, None),
    "http_429": (429, "1"),
    "context_length": (400, None),
}
ANSWERS = {
    "truncated": ("length", False),
    "empty": ("stop", False),
    "refused": ("stop", True),
    "filtered": ("content_filter", False),
    "slow": ("stop", False),
}


@pytest.mark.parametrize("fault", ERRORS)
def test_faults_that_are_errors(fault):
    """A status, OpenAI's shape, nothing billed."""
    status, headers, text, ledger = one(Simulation(speed=0, headers=False, faults={fault: 1}))
    assert (status, headers.get("retry-after")) == ERRORS[fault]
    assert json.loads(text)["error"].keys() == {"message", "type", "param", "code"}
    account = ledger.models["sim-small"]
    assert (account.by_status, account.by_fault) == ({status: 1}, {fault: 1})
    assert account.billed + account.billed_unseen == 0


@pytest.mark.parametrize("fault", ANSWERS)
def test_faults_that_are_answers_of_a_kind(fault):
    """200 with usage: billed, and the client can know it."""
    _, _, whole, _ = one(Simulation(speed=0))
    status, _, text, ledger = one(Simulation(speed=0, faults={fault: 1}))
    [choice], usage = json.loads(text)["choices"], json.loads(text)["usage"]
    message = choice["message"]
    finish, refused = ANSWERS[fault]
    assert (status, choice["finish_reason"]) == (200, finish)
    assert (message["refusal"] is not None, message["content"] is None) == (refused, refused)
    full = json.loads(whole)["choices"][0]["message"]["content"]
    if fault in ("empty", "filtered"):
        assert (message["content"], usage["completion_tokens"]) == ("", 0)
    elif fault == "truncated":
        assert full.startswith(message["content"])
    assert ledger.models["sim-small"].billed == 1
    assert ledger.models["sim-small"].tokens["completion"] == usage["completion_tokens"]


def test_faults_under_200():
    """A 200 is not an answer: a page, an error, no choice; nothing of it is billed."""
    for fault in ("html", "error_200", "no_choices"):
        status, headers, text, ledger = one(Simulation(speed=0, faults={fault: 1}))
        assert (status, ledger.models["sim-small"].by_status) == (200, {200: 1})
        if fault == "html":
            assert headers["content-type"].startswith("text/html")
            assert text.startswith("<html>")
        else:
            assert ("error" in json.loads(text)) == (fault == "error_200")
            assert not json.loads(text).get("choices")
        assert not ledger.billed_by_key


@pytest.mark.parametrize("fault", ["cut_json", "no_usage"])
def test_faults_that_are_billed_though_the_client_cannot_see_it(fault):
    """Counted apart, so that what is on disk can be compared."""
    status, _, text, ledger = one(Simulation(speed=0, faults={fault: 1}))
    account = ledger.models["sim-small"]
    assert status == 200
    assert (account.billed, account.billed_unseen) == (0, 1)
    assert account.cost == 0 < account.cost_unseen
    if fault == "cut_json":
        with pytest.raises(json.JSONDecodeError):
            json.loads(text)
    else:
        got = json.loads(text)
        assert "usage" not in got
        assert got["choices"][0]["message"]["content"]


def test_a_disconnect_closes_the_connection_without_an_answer():
    """No status line; the ledger says so with a status of its own."""
    simulation = Simulation(speed=0, faults={"disconnect": 1})
    with running(simulation) as gateway:

        async def talk():
            async with aiohttp.ClientSession() as session:
                with pytest.raises(aiohttp.ClientConnectionError):
                    await ask(session, gateway.url)

        asyncio.run(talk())
        account = gateway.ledger.models["sim-small"]
        assert account.by_fault["disconnect"] == account.received > 0
        assert account.by_status.keys() == {444}


def test_a_hang_ends_when_the_client_gives_up():
    """In flight until then, and not for an hour more."""

    async def talk():
        async with await start(Simulation(speed=0, faults={"hang": 1})) as gateway:
            async with aiohttp.ClientSession() as session:
                with pytest.raises(TimeoutError):
                    await ask(session, gateway.url, timeout=aiohttp.ClientTimeout(total=0.2))
                assert gateway.ledger.in_flight == 1
            await until(lambda: not gateway.ledger.in_flight)
            assert not gateway.ledger.billed_by_key

    asyncio.run(talk())


def test_a_gateway_with_hanging_requests_stops_at_once():
    """A test that ends must not wait for an hour."""

    async def talk():
        gateway = await start(Simulation(speed=0, faults={"hang": 1}))
        async with aiohttp.ClientSession() as session:
            calls = [asyncio.create_task(ask(session, gateway.url, body(n))) for n in range(5)]
            await until(lambda: gateway.ledger.in_flight == 5)
            begin = time.monotonic()
            await gateway.stop()
            ended = await asyncio.gather(*calls, return_exceptions=True)
            assert time.monotonic() - begin < 3
            assert all(isinstance(one, aiohttp.ClientError) for one in ended)

    asyncio.run(talk())


def test_what_a_client_gave_up_on_is_billed_all_the_same():
    """As with real gateways: the work was done."""

    async def talk():
        async with await start(Simulation(speed=0.1)) as gateway:
            async with aiohttp.ClientSession() as session:
                with pytest.raises(TimeoutError):
                    await ask(session, gateway.url, timeout=aiohttp.ClientTimeout(total=0.3))
                await until(lambda: not gateway.ledger.in_flight)
            account = gateway.ledger.models["sim-small"]
            assert (account.billed, account.billed_unseen) == (0, 1)

    asyncio.run(talk())


def test_a_slow_answer_takes_ten_times_as_long():
    """And is the same answer."""

    def timed(**faults):
        begin = time.monotonic()
        text = one(Simulation(speed=3, seed=1, faults=faults))[2]
        return time.monotonic() - begin, json.loads(text)["choices"]

    usual, slow = timed(), timed(slow=1)
    assert slow[1] == usual[1]
    assert slow[0] > 3 * usual[0]


def test_under_faults_the_ledger_is_what_the_client_saw():
    """Billed == usable usage on the client's side, token by token and cent by cent."""
    kinds = [name for name in FAULTS if name not in ("hang", "disconnect", "slow")]
    simulation = Simulation(speed=0, faults=dict.fromkeys(kinds, 0.05))
    bodies = [body(n % 150, ("sim-small", "sim-large")[n % 2]) for n in range(600)]
    answers, ledger = asked(simulation, *bodies, together=True)
    statuses, tokens, cost = Counter(), Counter(), Decimal(0)
    prices = {model.id: model for model in MODELS}
    for sent, (status, _, text) in zip(bodies, answers, strict=True):
        statuses[status] += 1
        try:
            usage = json.loads(text)["usage"]
        except (json.JSONDecodeError, KeyError):
            continue
        model = prices[sent["model"]]
        tokens.update(prompt=usage["prompt_tokens"], completion=usage["completion_tokens"], n=1)
        cost += usage["prompt_tokens"] * model.input_price
        cost += usage["completion_tokens"] * model.output_price
    accounts = ledger.models.values()
    assert sum((a.by_status for a in accounts), Counter()) == statuses
    assert set(sum((a.by_fault for a in accounts), Counter())) == set(kinds)
    assert sum(a.billed for a in accounts) == tokens.pop("n")
    assert {k: sum(a.tokens[k] for a in accounts) for k in tokens} == tokens
    assert sum(a.cost for a in accounts) == cost / 1_000_000
    assert sum(ledger.received_by_key.values()) == sum(a.received for a in accounts) == 600
    billed = sum(a.billed + a.billed_unseen for a in accounts)
    assert sum(ledger.billed_by_key.values()) == billed
    assert set(ledger.billed_by_key) <= set(ledger.received_by_key)
    assert ledger.in_flight == 0


def test_the_same_seed_gives_the_same_world_and_another_seed_another():
    """A run that failed can be run again."""

    def world(seed):
        simulation = Simulation(speed=0, seed=seed, faults={"http_500": 0.3, "empty": 0.3})
        answers, _ = asked(simulation, *[body(n % 40) for n in range(80)])
        return [(s, json.loads(t).get("choices"), h["x-request-id"]) for s, h, t in answers]

    assert world(7) == world(7) != world(8)


def test_above_the_limit_requests_are_429_with_the_wait():
    """Exactly the limit passes, and the answer tells what OpenAI tells."""
    simulation = Simulation(speed=0, rpm=20, meter="bucket-60s", rpm_by_model={"sim-large": None})
    bodies = [body(n, model) for n in range(30) for model in ("sim-small", "sim-large")]
    answers, ledger = asked(simulation, *bodies)
    assert ledger.models["sim-small"].by_status == {200: 20, 429: 10}
    assert ledger.models["sim-large"].by_status == {200: 30}
    _, headers, text = next(one for one in answers if one[0] == 429)
    error = json.loads(text)["error"]
    assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
    assert headers["retry-after"] == "3"
    assert 2000 < int(headers["retry-after-ms"]) <= 3000
    assert "Limit 20. Please try again in " in error["message"]
    assert headers["x-ratelimit-limit-requests"] == "20"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-reset-requests"] in ("1m0s", *(f"59.{n}s" for n in range(1000)))


def test_a_gateway_without_headers_tells_nothing_of_its_limits():
    """Nor does its text: clients must be able to learn from 429s alone."""
    answers, _ = asked(Simulation(speed=0, rpm=1, tpm=9999, headers=False), body(1), body(2))
    for _, headers, _ in answers:
        assert not [
            name for name in headers if "ratelimit" in name.lower() or name == "retry-after"
        ]
    assert answers[1][0] == 429
    assert "try again" not in answers[1][2]
    assert "Limit 1" not in answers[1][2]


def test_tokens_are_metered_as_they_come_out():
    """charge="output": answers are booked when they are there."""
    answers, ledger = asked(Simulation(speed=0, tpm=50, meter="window-60s"), *map(body, range(20)))
    used = ledger.models["sim-small"].tokens
    assert {status for status, _, _ in answers} == {200, 429}
    assert 50 - 9 <= used["prompt"] + used["completion"] <= 2 * 60


def test_above_the_bound_in_flight_requests_are_503():
    """Overload looks different from a rate limit."""
    simulation = Simulation(speed=1, max_in_flight=3)
    answers, ledger = asked(simulation, *map(body, range(8)), together=True)
    assert Counter(status for status, _, _ in answers) == {200: 3, 503: 5}
    assert ledger.models["sim-small"].billed == 3


def test_a_prompt_that_began_before_is_cached_and_cheaper():
    """The second question under a long system prompt reads it from cache."""
    system = {"role": "system", "content": "You answer. " * 500}
    bodies = [{**ASKED, "messages": [system, {"role": "user", "content": q}]} for q in "ab"]
    answers, ledger = asked(Simulation(speed=0), *bodies)
    cached = [
        json.loads(text)["usage"]["prompt_tokens_details"]["cached_tokens"]
        for _, _, text in answers
    ]
    assert cached == [0, 1408]
    assert ledger.models["sim-small"].tokens["cached"] == 1408


def test_the_side_doors_tell_and_change():
    """Lists of models in two dialects, the ledger, its reset, faults while it runs, health."""

    async def talk(url):
        root = url.removesuffix("/v1")
        async with aiohttp.ClientSession() as session:

            async def get(path):
                async with session.get(root + path) as reply:
                    return await reply.json()

            async def post(path, data):
                async with session.post(root + path, json=data) as reply:
                    return reply.status, await reply.json()

            assert (await get("/health")) == {"status": "ok"}
            listed = await get("/v1/models")
            assert listed["object"] == "list"
            assert [m["id"] for m in listed["data"]] == ["sim-small", "sim-medium", "sim-large"]
            catalogue = await get("/api/v1/models")
            assert (catalogue["success"], catalogue["message"]) == (True, "")
            assert catalogue["data"][0]["types"] == "llm"
            assert catalogue["data"][0]["pricing"] == {
                "input": 0.1,
                "output": 0.4,
                "cache_read": 0.025,
            }
            await ask(session, url)
            assert (await post("/faults", {"http_500": 1}))[0] == 200
            assert (await ask(session, url))[0] == 500
            status, refused = await post("/faults", {"html": 1.5})
            assert (status, "html=1.5" in refused["error"]["message"]) == (400, True)
            assert (await post("/faults", ["html"]))[0] == 400
            told = await get("/ledger?keys=1")
            account = told["models"]["sim-small"]
            assert (account["received"], account["billed"]) == (2, 1)
            assert account["by_status"] == {"200": 1, "500": 1}
            assert Decimal(account["cost_usd"]) > 0
            assert list(told["received_by_key"].values()) == [2]
            assert list(told["billed_by_key"].values()) == [1]
            assert "billed_by_key" not in await get("/ledger")
            assert (await post("/ledger/reset", None))[1]["models"] == {}

    with running(Simulation(speed=0)) as gateway:
        asyncio.run(talk(gateway.url))


def test_serve_runs_until_it_is_cancelled():
    """And a port that is taken is said at once."""

    async def talk():
        async with await start(Simulation()) as first:
            port = int(first.url.split(":")[2].removesuffix("/v1"))
            with pytest.raises(OSError, match="address already in use"):
                await serve(Simulation(port=port))
        task = asyncio.create_task(serve(Simulation(port=port, speed=0)))
        async with aiohttp.ClientSession() as session:
            for _ in range(100):
                try:
                    assert (await ask(session, first.url))[0] == 200
                    break
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(talk())


def test_many_connections_are_taken_at_once():
    """A client with a thousand in flight meets its own limits, not the gateway's."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def talk():
        async with await start(Simulation(speed=0, faults={"hang": 1})) as gateway:
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(connector=connector) as session:
                calls = [
                    asyncio.create_task(ask(session, gateway.url, body(n))) for n in range(1000)
                ]
                await until(lambda: gateway.ledger.in_flight == 1000)
                for call in calls:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
            assert gateway.ledger.peak_in_flight == 1000

    try:
        asyncio.run(talk())
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= limits[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
