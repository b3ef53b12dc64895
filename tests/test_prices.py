"""What requests cost: from which price, to the last digit, and nothing where it is not known."""

import json
from collections import Counter
from decimal import Decimal

import genai_prices
import pytest
from aiohttp import web
from genai_prices.data_snapshot import get_snapshot

from batcher.errors import JobError
from batcher.job.endpoint import Endpoint
from batcher.money.bill import Bill
from batcher.money.catalogue import address
from batcher.money.price_sources import catalogue_prices, file_prices, package_prices
from batcher.money.prices import Price, Prices, cost_of
from batcher.money.reserve import max_cost
from batcher.records import Usage
from batcher.send import wire
from batcher.simulate.server import running
from batcher.simulate.settings import MODELS, Simulation
from tests.support import echo, program
from tests.support.program import read_jsonl, write_jsonl

PRICE = Price(Decimal("0.15"), Decimal("0.60"), Decimal("0.075"), "a file")
TOML = '["gpt-4o-mini"]\ninput = 0.15\ncached = 0.075\noutput = 0.60\n'
JSON = '{"gpt-4o-mini": {"input": 0.15, "cached": 0.075, "output": "0.60"}}'
CSV = "model, input, cached, output\ngpt-4o-mini, 0.15, 0.075, 0.60\n"


@pytest.mark.parametrize(("name", "text"), [("a.toml", TOML), ("a.json", JSON), ("a.csv", CSV)])
def test_prices_are_read_exactly_from_each_kind_of_file(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    [(model, price)] = file_prices(str(path)).items()
    assert (model, price.input, price.output, price.cached) == ("gpt-4o-mini", *PRICE_NUMBERS)
    assert price.source.startswith(f"{path} of 20")


PRICE_NUMBERS = (PRICE.input, PRICE.output, PRICE.cached)


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("a.toml", "input = 1", "must have input and output"),
        ("a.toml", "[m]\ninput = 1", "output is None, and must be dollars per million"),
        ("a.toml", "[m]\ninput = -1\noutput = 1", "input is -1"),
        ("a.toml", "[m]\ninput = nan\noutput = 1", "input is Decimal"),
        ("a.toml", "[m]\ninput = true\noutput = 1", "input is True"),
        ("a.toml", "[m]\nin = 1\noutput = 1", "'in' is none of input, output, cached"),
        ("a.toml", "[m", "Expected"),
        ("a.json", "[]", "there are no models"),
        ("a.json", "{", "Expecting"),
        ("a.csv", "name,input\nm,1\n", "no column 'model'"),
        ("a.csv", "model,input,output\nm,1,2\nm,3,4\n", "m is set twice"),
        ("a.json", '{"m": {"input": 1, "output": 2}, "m": {"input": 2}}', "m is set twice"),
        ("a.toml", "[m]\ninput = 0.00000015\noutput = 0.0000006", "look like dollars per token"),
        ("a.txt", "", ".toml, .json or .csv"),
        ("none.toml", None, "No such file"),
    ],
)
def test_a_file_that_tells_no_price_is_said_to(tmp_path, name, text, why):
    """A price that is wrong is worse than none."""
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(JobError, match=why):
        file_prices(str(tmp_path / name))


def test_catalogues_of_both_dialects_are_read():
    """AiHubMix tells dollars per million tokens, OpenRouter per token; both write texts."""
    aihubmix = {"data": [
        {"model_id": "gpt-4o", "context_length": 128000, "max_output": 16384,
         "pricing": {"input": 2.5, "output": "10", "cache_read": "1.25"}},
        {"model_id": "no-price", "pricing": {"input": None, "output": None}},
        {"model_id": "not-filled-in", "pricing": {"input": 0, "output": 0}},
        {"model_id": "glm-free", "pricing": {"input": 0, "output": 0}},
        {"model_id": "odd", "pricing": "dear"}, 7,
    ]}  # fmt: skip
    found = catalogue_prices(aihubmix, "2026-01-02")
    assert found.keys() == {"gpt-4o", "glm-free"}
    assert found["gpt-4o"].output == 10
    assert (found["gpt-4o"].context, found["gpt-4o"].max_output) == (128_000, 16_384)
    assert found["gpt-4o"].cached == Decimal("1.25")
    assert found["gpt-4o"].source == "the gateway's catalogue of 2026-01-02"
    routed = {"data": [{"id": "openai/gpt-4o", "pricing": {
        "prompt": "0.0000025", "completion": "0.00001", "input_cache_read": "0.00000125"}}]}  # fmt: skip
    [price] = catalogue_prices(routed, "").values()
    assert (price.input, price.output, price.cached) == (Decimal("2.5"), 10, Decimal("1.25"))
    for nothing in (None, [], {}, {"data": None}, {"data": [None]}):
        assert catalogue_prices(nothing, "") == {}


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("https://aihubmix.com/v1/chat/completions", "https://aihubmix.com/api/v1/models"),
        ("https://openrouter.ai/api/v1/chat/completions", "https://openrouter.ai/api/v1/models"),
        ("https://api.openai.com/v1/chat/completions", None),
        ("https://aihubmix.com.example.org/v1/chat/completions", None),
        ("http://127.0.0.1:8000/v1/chat/completions", None),
    ],
)
def test_only_gateways_that_tell_prices_are_asked_for_them(url, where):
    assert address(Endpoint(url, url)) == where


@pytest.mark.parametrize(
    ("usage", "dollars"),
    [
        ({"prompt_tokens": 1000, "completion_tokens": 100}, "0.00021"),
        ({"prompt_tokens": 1000, "completion_tokens": 100,
          "prompt_tokens_details": {"cached_tokens": 400}}, "0.00018"),
        # DeepSeek tells cached tokens so.
        ({"prompt_tokens": 1000, "completion_tokens": 100, "prompt_cache_hit_tokens": 400},
         "0.00018"),
        # OpenAI: reasoning inside the completion.
        ({"prompt_tokens": 10, "completion_tokens": 100, "total_tokens": 110,
          "completion_tokens_details": {"reasoning_tokens": 90}}, "0.0000615"),
        # xAI: outside of it, seen in the total alone.
        ({"prompt_tokens": 10120, "completion_tokens": 1499, "total_tokens": 14428,
          "completion_tokens_details": {"reasoning_tokens": 2809}}, "0.0041028"),
        # Gemini: not even named.
        ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 115}, "0.0000645"),
        # More cached tokens than the prompt has stand beside it.
        ({"prompt_tokens": 1000, "completion_tokens": 1, "prompt_cache_hit_tokens": 4000},
         "0.0004506"),
        ({"prompt_tokens": 1000}, None),
        ({}, None),
        (None, None),
    ],
)  # fmt: skip
def test_the_cost_of_literal_usages(usage, dollars):
    """Reasoning counts once, in whichever way a provider tells it; what is not told has no cost."""
    choice = {"message": {"content": "x"}, "finish_reason": "stop"}
    body = json.dumps({"choices": [choice], "usage": usage}).encode()
    completion = wire.read(200, {}, body, keep_raw=False)
    assert cost_of(completion.usage, PRICE) == (dollars and Decimal(dollars))


WRITES = Price(
    Decimal(4), Decimal(20), Decimal("0.4"), cache_write=Decimal(5), cache_write_1h=Decimal(8),
    served={"flex": Price(Decimal(2), Decimal(10), Decimal("0.2"), cache_write=Decimal("2.5"))},
)  # fmt: skip


@pytest.mark.parametrize(
    ("usage", "price", "body", "dollars"),
    [
        (Usage(1000, 100, None, 300, cache_write_tokens=500), WRITES, b"", "0.00542"),
        (Usage(1000, 100, None, 300, cache_write_tokens=500, cache_write_1h_tokens=200), WRITES,
         b"", "0.00602"),
        (Usage(1000, 100, None, 300, cache_write_tokens=500, cache_write_1h_tokens=0), WRITES,
         b'{"ttl":"1h"}', "0.00542"),
        # More written than is left of the prompt: what was read is not billed twice.
        (Usage(1000, 100, None, 600, cache_write_tokens=900), WRITES, b"", "0.00424"),
        # Kept for an hour, perhaps, and it is not told how many of them.
        (Usage(1000, 100, None, 300, cache_write_tokens=500), WRITES, b'{"ttl":"1h"}', None),
        (Usage(1000, 100, None, 300, cache_write_tokens=0), PRICE, b"", "0.0001875"),
        (Usage(1000, 100, None, 300, cache_write_tokens=1), PRICE, b"", None),
        (Usage(1000, 100, cache_write_tokens=500, cache_write_1h_tokens=1), WRITES.served["flex"],
         b"", None),
        (Usage(1000, 100, None, 300, cache_write_tokens=500, service_tier="flex"), WRITES, b"",
         "0.00271"),
        (Usage(1000, 100, service_tier="priority"), WRITES, b"", None),
        (Usage(1000, 100, service_tier="priority", cost_usd=0.5), WRITES, b"", "0.5"),
    ],
)  # fmt: skip
def test_writes_to_the_cache_and_service_tiers_cost_what_is_known_of_them_or_nothing(
    usage, price, body, dollars
):
    bill = Bill(price)
    cost = bill.add(usage, body).cost_usd
    assert cost == (dollars and float(dollars))
    assert bool(bill.unpriced) is (dollars is None)


@pytest.mark.parametrize(
    ("body", "dollars"),
    [
        (b'{"model":"m"}', "0.007"),  # All of the prompt is written to the cache.
        (b'{"cache_control":{"ttl": "1h"}}', "0.010"),
        (b'{"service_tier":"auto"}', "0.007"),
        (b'{"service_tier":"flex"}', "0.007"),  # It may be served by the default tier.
        (b'{"service_tier":"priority"}', None),
    ],
)
def test_a_reservation_covers_the_dearest_way_to_serve_a_request(body, dollars):
    assert max_cost(WRITES, 1000, 100, body) == (dollars and Decimal(dollars))


def test_a_reservation_covers_writes_whose_price_is_unknown():
    """By the highest factors that providers document."""
    price = Price(Decimal(4), Decimal(20))
    assert max_cost(price, 1000, 100, b"") == Decimal("0.007")
    assert max_cost(price, 1000, 100, b'{"ttl":"1h"}') == Decimal("0.010")


def test_a_prices_file_names_writes_and_service_tiers(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text(
        "model,input,output,cached,cache_write,cache_write_1h\n"
        "m@1,4,20,0.4,5,8\nm@1@flex,2,10,,,\n"
    )
    price = Prices(file_prices(str(path)), {"m@1": PRICE}).of("m@1")
    assert (price.cache_write, price.cache_write_1h) == (5, 8)
    assert price.at("flex").input == 2
    assert price.at("priority") is None
    path.write_text("model,input,output,cache_write\nm,1,2,x\n")
    with pytest.raises(JobError, match="cache_write is 'x'"):
        file_prices(str(path))


def test_catalogues_tell_the_price_of_writes():
    """Not where it is below that of other input: that is a surcharge, or was not filled in."""
    ours = {
        "model_id": "a",
        "pricing": {"input": 3, "output": 15, "cache_read": 0.3, "cache_write": 3.75},
    }
    zero = {"model_id": "b", "pricing": {"input": 3, "output": 15, "cache_write": 0}}
    theirs = {"id": "c", "pricing": {
        "prompt": "0.000003", "completion": "0.000015", "input_cache_read": "0.0000003",
        "input_cache_write": "0.00000375", "input_cache_write_1h": "0.000006"}}  # fmt: skip
    gemini = {"id": "d", "pricing": {
        "prompt": "0.0000003", "completion": "0.0000025", "input_cache_write": "0.0000000833"}}  # fmt: skip
    found = catalogue_prices({"data": [ours, zero, theirs, gemini]}, "today")
    told = {name: (of.input, of.cache_write, of.cache_write_1h) for name, of in found.items()}
    assert told == {
        "a": (3, Decimal("3.75"), None),
        "b": (3, None, None),
        "c": (3, Decimal("3.75"), 6),
        "d": (Decimal("0.3"), None, None),
    }


@pytest.mark.parametrize(
    ("told", "dollars"),
    [
        ({"cost": 0.0125}, 0.0125),
        ({"cost": 0}, 0),
        ({"cost_in_usd_ticks": 37_756_000}, 0.0037756),
        ({"cost": -1}, None),
        ({"cost": "0.1"}, None),
        ({"cost": True}, None),
        ({"cost_in_usd_ticks": 10**400}, None),
        ({"cost_in_usd_ticks": True}, None),
    ],
)
def test_a_cost_that_the_gateway_tells_is_taken(told, dollars):
    """OpenRouter's is in dollars, xAI's in ten-billionths of them."""
    choice = {"message": {"content": "x"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 10, "completion_tokens": 1, **told}
    body = json.dumps({"choices": [choice], "usage": usage}).encode()
    assert wire.read(200, {}, body, keep_raw=False).usage.cost_usd == dollars


def test_sources_that_disagree_are_named():
    """The file counts."""
    listed = {"m": Price(Decimal("0.20"), Decimal("0.80"), None, "the list"), "n": PRICE}
    prices = Prices({"m": PRICE}, listed)
    assert prices.of("m") == PRICE
    assert prices.of("n") == PRICE
    assert prices.of("o") is None
    [said] = prices.conflicts(["m", "n", "o"])
    assert said.startswith("m: $0.15 + $0.6 a million tokens by a file, $0.2 + $0.8 a million")
    assert said.endswith("by the list; the first counts.")


@pytest.mark.parametrize(
    ("url", "model"),
    [
        ("https://api.openai.com/v1/chat/completions", "gpt-4o-mini"),
        ("https://api.openai.com/v1/chat/completions", "gpt-5.6-sol"),
        ("https://api.groq.com/openai/v1/chat/completions", "llama-3.3-70b-versatile"),
        ("https://generativelanguage.googleapis.com/v1beta/openai", "gemini-2.5-pro"),
        ("https://api.anthropic.com/v1/chat/completions", "claude-sonnet-4-5"),
    ],
)
def test_prices_of_the_package_are_used_as_it_uses_them_itself(url, model):
    """Cached tokens and long prompts too: the same dollars as its own arithmetic gives."""
    price = package_prices(url)(model)
    for prompt, cached, completion in ((1000, 0, 10), (1000, 600, 10), (300_000, 100_000, 999)):
        usage = genai_prices.Usage(
            input_tokens=prompt, cache_read_tokens=cached, output_tokens=completion
        )
        theirs = genai_prices.calc_price(usage, model, provider_api_url=url)
        ours = cost_of(Usage(prompt, completion, None, cached), price)
        assert ours == theirs.total_price
        written = min(500, prompt - cached)
        usage = genai_prices.Usage(
            input_tokens=prompt,
            cache_read_tokens=cached,
            cache_write_tokens=written,
            output_tokens=completion,
        )
        for tier in (None, *price.served):
            context = {} if tier is None else {"price_context": {"service_tier": tier}}
            theirs = genai_prices.calc_price(usage, model, provider_api_url=url, **context)
            used = Usage(prompt, completion, None, cached, cache_write_tokens=written)
            known = price.at(tier).for_prompt(prompt).cache_write is not None
            assert cost_of(used, price.at(tier)) == (theirs.total_price if known else None)
    assert price.source == f"genai-prices {genai_prices.__version__}"


def test_service_tiers_of_the_package_are_read():
    of = package_prices("https://api.openai.com/v1/chat/completions")
    assert {"flex", "priority"} <= of("gpt-5.6-sol").served.keys()
    assert of("gpt-5.6-sol").at("flex").cache_write == of("gpt-5.6-sol").cache_write / 2
    assert package_prices("https://api.anthropic.com/v1")("claude-opus-4-5").cache_write_1h == 10


@pytest.mark.parametrize(
    ("url", "model"),
    [
        ("https://api.openai.com/v1", "no-such-model"),
        ("https://gateway.example.com/v1", "gpt-4o-mini"),
        ("http://localhost:8000/v1", "gpt-4o-mini"),
        ("https://api.perplexity.ai/v1", "sonar-pro"),
        ("https://api.deepseek.com/chat/completions", "deepseek-chat"),
    ],
)
def test_what_another_seller_takes_is_not_guessed(url, model):
    """Nor the price of requests that cost something besides their tokens, or less by night."""
    assert package_prices(url)(model) is None


def test_all_prices_of_the_package_can_be_read():
    """Of every model of these providers, and most of them have one."""
    hosts = {
        "openai": "api.openai.com", "anthropic": "api.anthropic.com", "groq": "api.groq.com",
        "google": "generativelanguage.googleapis.com", "openrouter": "openrouter.ai",
        "mistral": "api.mistral.ai", "together": "api.together.xyz", "x-ai": "api.x.ai",
    }  # fmt: skip
    for provider in get_snapshot().providers:
        if (host := hosts.pop(provider.id, None)) is not None:
            of = package_prices(f"https://{host}/v1/chat/completions")
            read = [of(model.id) is not None for model in provider.models]
            assert sum(read) > len(read) / 2, f"{provider.id}: {sum(read)} of {len(read)}"
    assert not hosts


def test_the_package_comes_after_file_and_catalogue():
    """And tells what these do not."""
    told = {"a": Price(Decimal(1), Decimal(1), source="file")}
    listed = {"b": Price(Decimal(2), Decimal(2), source="list", max_output=5)}
    prices = Prices(told, listed, {"a": PRICE, "b": PRICE, "c": PRICE}.get)
    assert [prices.of(model).source for model in "abc"] == ["file", "list", "a file"]
    assert prices.of("d") is None
    assert len(prices.conflicts("abcd")) == 2


def test_the_bill_is_that_of_the_gateway_to_the_last_digit(tmp_path):
    """With retries, answers asked for again, truncated ones, and a prefix that is written to the cache."""
    told = {m.id: {"input": str(m.input_price), "output": str(m.output_price),
                   "cached": str(m.cached_price), "cache_write": str(m.write_price)}
            for m in MODELS}  # fmt: skip
    (tmp_path / "prices.json").write_text(json.dumps(told))
    write_jsonl(tmp_path / "in.jsonl", [{"text": f"Refund {n}, please."} for n in range(400)])
    faults = {"http_500": 0.05, "invalid": 0.1, "truncated": 0.05, "cut_json": 0.02}
    with running(Simulation(speed=0, faults=faults, seed=1, cache_writes=True)) as gateway:
        ended = program.batcher(
            "run", "in.jsonl", "-o", "out.jsonl", "-m", "sim-small", "-m", "sim-large",
            "--system", "x" * 6000, "--prompt", "{{ text }}", "--labels", "billing,bug",
            "--prices", "prices.json", "--json", "--param", "max_tokens=40", "--max-retries", "9",
            cwd=tmp_path, url=gateway.url,
        )  # fmt: skip
        ledger = gateway.ledger.models
    summary = json.loads(ended.stdout)["models"]
    rows = read_jsonl(tmp_path / "out.jsonl")
    for model in ("sim-small", "sim-large"):
        of, costs = ledger[model], [r["cost_usd"] for r in rows if r["model"] == model]
        assert sum(Decimal(str(cost)) for cost in costs) == of.cost
        assert Decimal(str(summary[model]["cost_usd"])) == of.cost
        assert of.tokens["cached"] > 100_000
        written = sum(r["cache_write_tokens"] or 0 for r in rows if r["model"] == model)
        assert (
            written == summary[model]["tokens"]["cache_write"] == of.tokens["cache_write"] > 1000
        )
        saved = Decimal(of.tokens["cached"]) * next(
            (m.input_price - m.cached_price) / 1_000_000 for m in MODELS if m.id == model
        )
        assert Decimal(str(summary[model]["cost_saved_by_cache_usd"])) == saved
        assert summary[model]["thrown_away"]["answers"] > 10
        thrown = summary[model]["thrown_away"]["cost_usd"] + summary[model]["cost_of_unusable_usd"]
        assert 0 < thrown < float(of.cost) / 2
        assert summary[model]["price"]["source"].startswith("prices.json of ")


def test_a_model_without_a_price_has_no_cost(tmp_path, gateway):
    """And not a cost of 0."""
    (tmp_path / "prices.toml").write_text('["sim-small"]\ninput = 1\noutput = 2\n')
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "hi"}])
    ended = program.batcher(
        "run", "in.jsonl", "-o", "out.jsonl", "-m", "sim-small", "-m", "sim-large",
        "--prices", "prices.toml", "--json", cwd=tmp_path, url=gateway.url,
    )  # fmt: skip
    assert ended.returncode == 0
    costs = {row["model"]: row["cost_usd"] for row in read_jsonl(tmp_path / "out.jsonl")}
    assert costs["sim-small"] > 0
    assert costs["sim-large"] is None
    assert json.loads(ended.stdout)["models"]["sim-large"]["price"] is None
    wrong = program.batcher(
        "run", "in.jsonl", "-o", "o.jsonl", "-m", "m", "--prices", "none.toml",
        cwd=tmp_path, url=gateway.url,
    )  # fmt: skip
    assert wrong.returncode == 2
    assert b"--prices none.toml: it cannot be read" in wrong.stderr


def test_a_simulated_run_knows_what_it_would_have_cost(tmp_path):
    """The simulated gateway lists its prices as AiHubMix does."""
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "hi"}])
    ended = program.batcher(
        "run", "in.jsonl", "-o", "out.jsonl", "-m", "sim-small", "--simulate", cwd=tmp_path
    )
    assert ended.returncode == 0
    assert b"prices: the gateway's catalogue of 20" in ended.stderr
    assert read_jsonl(tmp_path / "out.jsonl")[0]["cost_usd"] > 0


def check(tmp_path, gateway, *words):
    (tmp_path / "prices.toml").write_text("[m]\ninput = 2\noutput = 10\n")
    ended = program.batcher(
        "check", "in.jsonl", "-o", "out.jsonl", "--prices", "prices.toml", *words,
        cwd=tmp_path, url=gateway.url,
    )  # fmt: skip
    assert not gateway.ledger.models
    return ended.returncode, ended.stderr.decode().splitlines()


def test_a_check_tells_what_a_job_will_take(tmp_path, gateway):
    """Before a dollar is spent: requests, tokens, money and time of each model, and equal rows."""
    rows = [{"prompt": "p" * (400 - len('"messages":[{"role":"user","content":""}]}'))}] * 3
    write_jsonl(tmp_path / "in.jsonl", [*rows, {"prompt": 7}])
    told = ("-m", "m", "-m", "n", "--rpm", "n=2", "--samples", "2")
    status, lines = check(tmp_path, gateway, *told)
    assert status == 3
    assert lines[0].startswith('in.jsonl:4: "prompt" must be a text')
    tokens = "6 requests, about 600 prompt tokens (400 to 1,200)"
    answers = "$10 for a million tokens of answers"
    assert lines[1:] == [
        f"m: {tokens}, $0.0012 ($0.0008 to $0.0024), and {answers}.",
        f"n: {tokens}; its price is not known; 3.0 min or more at --rpm.",
        "2 rows ask the same as a row before.",
        "4 rows read, 1 of them unreadable; 12 requests to send. Nothing was sent.",
    ]
    write_jsonl(tmp_path / "in.jsonl", rows[:1])
    told = ("-m", "m", "--tpm", "1", "--param", "max_tokens=1000", "-m", "n", "--route", "split")
    status, lines = check(tmp_path, gateway, *told)
    assert status == 0
    assert lines[0].startswith("m: 1 request at most, about 1")
    assert ", and at most $0.01 for answers; " in lines[0]
    assert lines[-1] == "1 rows read, 0 of them unreadable; 1 request to send. Nothing was sent."


def test_a_check_tells_programs_the_same(tmp_path, gateway):
    """In one JSON object: what is known, and null where nothing is."""
    rows = [{"prompt": "p" * (400 - len('"messages":[{"role":"user","content":""}]}'))}] * 3
    write_jsonl(tmp_path / "in.jsonl", [*rows, {"prompt": 7}])
    (tmp_path / "prices.toml").write_text("[m]\ninput = 2\noutput = 10\n")
    ended = program.batcher(
        "check", "in.jsonl", "-o", "out.jsonl", "--prices", "prices.toml", "-m", "m", "-m", "n",
        "--rpm", "n=2", "--json", cwd=tmp_path, url=gateway.url,
    )  # fmt: skip
    told = json.loads(ended.stdout)["forecast"]
    assert (told["requests"], told["unreadable"], told["equal_to_an_earlier_row"]) == (6, 1, 2)
    tokens = {"about": 300.0, "from": 200.0, "to": 600.0}
    assert told["models"]["m"]["prompt_tokens"] == tokens
    assert told["models"]["m"]["prompt_cost_usd"]["to"] == 0.0012
    assert told["models"]["n"]["prompt_cost_usd"] is None
    assert told["models"]["n"]["minutes_at_least"] == 1.5


def test_a_check_of_a_simulated_run_knows_its_prices(tmp_path):
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "Hi"}])
    ended = program.batcher(
        "check", "in.jsonl", "-o", "out.jsonl", "-m", "sim-large", "--simulate", cwd=tmp_path
    )
    assert b"$12 for a million tokens of answers" in ended.stderr


def test_the_models_of_a_gateway_are_listed_with_what_is_known(tmp_path, gateway):
    (tmp_path / "prices.toml").write_text('["sim-small"]\ninput = 1.50\noutput = 2\n')
    told = ("--prices", "prices.toml")
    ended = program.batcher("models", *told, cwd=tmp_path, url=gateway.url)
    assert ended.returncode == 0
    lines = [line.split() for line in ended.stdout.decode().splitlines()]
    assert lines[1:] == [
        ["sim-large", *"——————"],
        ["sim-medium", *"——————"],
        ["sim-small", "—", "—", "1.5", "—", "—", "2"],
    ]
    assert b"3 models, 2 without a known price; prices.toml of 20" in ended.stderr
    ended = program.batcher("models", "SMALL", *told, "--json", cwd=tmp_path, url=gateway.url)
    [found] = [json.loads(line) for line in ended.stdout.splitlines()]
    assert (found["model"], found["input"], found["output"]) == ("sim-small", 1.5, 2)
    ended = program.batcher("models", cwd=tmp_path, url="http://127.0.0.1:9/v1")
    assert ended.returncode == 2
    assert b"its models cannot be fetched: " in ended.stderr


def test_the_first_rows_tell_what_all_of_them_will_cost(tmp_path, gateway):
    """With an interval that holds what all of them do cost."""
    rows = [{"prompt": "word " * (n * 37 % 200) + f"and {n}"} for n in range(1000)]
    write_jsonl(tmp_path / "in.jsonl", rows)
    (tmp_path / "prices.toml").write_text('["sim-small"]\ninput = 1\noutput = 4\n')
    words = ("run", "in.jsonl", "-o", "out.jsonl", "-m", "sim-small", "--prices", "prices.toml")
    few = program.batcher(*words, "--json", "-n", "100", cwd=tmp_path, url=gateway.url)
    told = json.loads(few.stdout)["models"]["sim-small"]["projected"]
    assert told["rows"] == 1000
    assert f"all 1,000 rows: about ${told['cost_usd']:.4f} (" in few.stderr.decode()
    every = json.loads(program.batcher(*words, "--json", cwd=tmp_path, url=gateway.url).stdout)[
        "models"
    ]["sim-small"]
    assert every["projected"] is None
    cost = sum(row["cost_usd"] for row in read_jsonl(tmp_path / "out.jsonl"))
    assert told["from_usd"] <= cost <= told["to_usd"]
    assert told["to_usd"] < 1.3 * told["from_usd"]


def test_rows_of_earlier_starts_tell_what_all_will_cost_too(tmp_path, gateway):
    """The projection is of all that the output holds, not of what the last start added."""
    write_jsonl(
        tmp_path / "in.jsonl", [{"prompt": "word " * (n * 7 % 50 + 1)} for n in range(300)]
    )
    (tmp_path / "prices.toml").write_text('["sim-small"]\ninput = 1\noutput = 4\n')
    words = ("run", "in.jsonl", "-m", "sim-small", "--prices", "prices.toml", "--json")

    def projected(output, *more):
        ended = program.batcher(*words, "-o", output, *more, cwd=tmp_path, url=gateway.url)
        return json.loads(ended.stdout)["models"]["sim-small"]["projected"]

    whole = projected("a.parquet", "--sample", "60")
    assert projected("b.jsonl", "--sample", "30")["to_usd"] > whole["to_usd"]
    assert projected("b.jsonl", "--sample", "60") == whole
    assert (whole["rows"], whole["drawn_by_chance"]) == (300, True)
    first = program.batcher(*words, "-o", "c.jsonl", "-n", "30", cwd=tmp_path, url=gateway.url)
    assert b"if the first rows are like the others" in b" ".join(first.stderr.split())


def test_a_check_counts_answers_that_are_asked_for_again(tmp_path, gateway):
    """A bound that a re-ask passes is none."""
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "x"}] * 10)
    (tmp_path / "prices.toml").write_text('["sim-small"]\ninput = 1\noutput = 4\n')
    words = ("in.jsonl", "-o", "o.jsonl", "-m", "sim-small", "--prices", "prices.toml", "--json")
    words += ("--param", "max_tokens=100")

    def at_most(*more):
        ended = program.batcher("check", *words, *more, cwd=tmp_path, url=gateway.url)
        assert ended.returncode == 0, ended.stderr
        told = json.loads(ended.stdout)
        assert told["models"]["sim-small"]["price"] is not None
        return told["forecast"]["models"]["sim-small"]["answer_tokens_at_most"]

    assert at_most() == 1000
    assert at_most("--labels", "a,b", "--reask", "2") == 3000
    assert at_most("--grow-max-tokens", "350") == 10 * (100 + 200 + 350)
    assert at_most("--grow-max-tokens", "350", "--labels", "a,b") == 10 * (100 + 200 + 350 + 350)


def test_a_gateway_that_lists_no_models_leaves_those_of_the_file(tmp_path):
    async def none(_request):
        return web.json_response({"object": "list", "data": []})

    (tmp_path / "prices.toml").write_text('["m"]\ninput = 1.50\noutput = 2\n')
    with echo.running(none, "/v1/models") as up:
        ended = program.batcher("models", "--prices", "prices.toml", cwd=tmp_path, url=up.url)
    assert ended.returncode == 0
    assert ended.stdout.decode().split()[-7:] == ["m", "—", "—", "1.5", "—", "—", "2"]
    assert b"the gateway lists no models; these are those of --prices" in ended.stderr


@pytest.mark.parametrize(
    ("price", "free", "cost", "completion", "expected"),
    [
        (Price(Decimal(2), Decimal(8)), False, 0.0, 100, 0.0028),
        (Price(Decimal(2), Decimal(8)), True, 0.0, 100, 0.0028),
        (Price(Decimal(0), Decimal(0)), False, 0.0, 100, 0.0),
        (None, False, 0.0, 100, None),
        (None, True, 0.0, 100, 0.0),
        (Price(Decimal(2), Decimal(8)), False, 0.0, None, None),
        (Price(Decimal(2), Decimal(8)), False, 0.0, 0, 0.0),
        (Price(Decimal(2), Decimal(8)), False, 0.5, 100, 0.5),
    ],
)  # fmt: skip
def test_a_cost_of_nothing_is_believed_of_what_is_free(price, free, cost, completion, expected):
    """Proxies say 0 of what they cannot price, and of what is billed to a key of one's own."""
    bill = Bill(price, free=free)
    assert bill.add(Usage(1000, completion, None, cost_usd=cost)).cost_usd == expected


def test_a_budget_stops_where_the_gateway_says_that_all_is_free(tmp_path):
    """By the price, and where no tokens are told either by what was set aside."""
    (tmp_path / "p.toml").write_text("[m]\ninput = 1.0\noutput = 1.0\n")
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": f"{n}"} for n in range(60)])
    for number, used in enumerate(
        (
            {
                "prompt_tokens": 5,
                "completion_tokens": 100,
                "total_tokens": 105,
                "cost": 0,
                "is_byok": True,
            },
            {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0, "cost": 0},
        )
    ):
        count = Counter()

        async def answer(_request, used=used, count=count):
            count["all"] += 1
            choice = {"message": {"content": "yes"}, "finish_reason": "stop"}
            return web.json_response({"choices": [choice], "usage": used})

        with echo.running(answer) as up:
            ended = program.batcher(
                "run", "in.jsonl", "-o", f"o{number}.jsonl", "-m", "m", "--param", "max_tokens=100", "--prices", "p.toml",
                "--max-cost", "0.002", cwd=tmp_path, url=up.url,
            )  # fmt: skip
        assert ended.returncode == 4, ended.stderr.decode()
        assert 5 <= count["all"] <= 20
