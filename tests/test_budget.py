"""Budgets: held whatever gateways bill, over kills and stops, and told as they are."""

import asyncio
import json
import re
import shlex
import signal
import threading
import time
from collections import Counter
from decimal import Decimal

import pytest
from aiohttp import web

from batcher.money import spending
from batcher.simulate.server import running
from batcher.simulate.settings import Simulation
from tests.support import echo, program
from tests.support.program import read_jsonl, started, write_jsonl

INPUT, OUTPUT = Decimal("0.00001"), Decimal("0.0001")  # Dollars a token.
PRICES = '["m"]\ninput = 10\noutput = 100\n'


class Seller:
    """Bills each request, whatever it says of it.

    Args:
        how: Told the number of the request, says (status, tokens of the answer, what else stands in
            the reply); the tokens are billed in any case.
    """

    def __init__(self, how):
        self._how = how
        self._lock = threading.Lock()
        self.requests = self.tokens = 0
        self.dollars = Decimal(0)

    async def answer(self, request):
        prompt = len(await request.read()) // 4
        with self._lock:
            self.requests += 1
            status, completion, more = self._how(self.requests)
            self.tokens += prompt + completion
            self.dollars += prompt * INPUT + completion * OUTPUT
        usage = {"prompt_tokens": prompt, "completion_tokens": completion}
        usage["total_tokens"] = prompt + completion
        data = {
            "choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}],
            "usage": usage,
        }
        if status != 200:
            data = {"error": {"message": "failed"}}
        for name, value in more.items():
            data[name] = value(usage) if callable(value) else value
        return web.json_response(data, status=status)


@pytest.fixture
def sell(tmp_path):
    (tmp_path / "prices.toml").write_text(PRICES)
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": f"What is {n} + 1?"} for n in range(200)])

    sellers = []

    async def answer(request):
        return await sellers[-1].answer(request)

    with echo.running(answer) as up:

        def sell(how, *words):
            sellers.append(Seller(how))
            ended = program.batcher(
                "run", "in.jsonl", "-o", "o.jsonl", "-m", "m", "--prices", "prices.toml", "--json",
                "--param", "max_tokens=10", *words, cwd=tmp_path, url=up.url,
            )  # fmt: skip
            told = json.loads(ended.stdout or b"null")
            return sellers[-1], ended.returncode, told, " ".join(ended.stderr.decode().split())

        yield sell


@pytest.fixture
def spend(tmp_path, gateway):
    (tmp_path / "prices.toml").write_text('["sim-small"]\ninput = 10\noutput = 100\n')
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": f"What is {n} + 1?"} for n in range(60)])

    def spend(*words, prices="prices.toml", most="max_tokens=10"):
        told = ("--prices", prices) if prices else ()
        bound = ("--param", most) if most else ()
        ended = program.batcher(
            "run", "in.jsonl", "-o", "out.jsonl", "-m", "sim-small", *told, *bound, *words,
            cwd=tmp_path, url=gateway.url,
        )  # fmt: skip
        spent = gateway.ledger.models["sim-small"]
        tokens = spent.tokens["prompt"], spent.tokens["completion"]
        dollars = Decimal(tokens[0] * 10 + tokens[1] * 100) / 1_000_000
        return ended.returncode, ended.stderr.decode(), dollars, sum(tokens)

    return spend


def test_a_budget_holds_over_all_runs_of_an_output(spend, tmp_path):
    """And over those without one in between; a new output begins anew."""
    status, said, first, _ = spend("--max-cost", "0.004")
    assert status == 4
    assert Decimal("0.0015") < first <= Decimal("0.004")
    assert "--max-cost: $0.00" in said
    assert "of $0.004 spent; the next request may take $0.00" in said
    assert not (tmp_path / "out.jsonl").exists()
    assert spend("--max-cost", "0.004")[::2] == (4, first)
    status, _, second, _ = spend("--max-cost", "0.008")
    assert status == 4
    assert first < second <= Decimal("0.008")
    status, said, third, _ = spend("--max-cost", "5", "--json")
    assert status == 0
    assert len(read_jsonl(tmp_path / "out.jsonl")) == 60
    assert spend("--max-cost", "0.000001", "--max-retries", "1")[::2] == (0, third)
    status, _, fourth, _ = spend("--max-cost", "0.004", "--overwrite")
    assert status == 4
    assert third < fourth <= third + Decimal("0.004")


def test_a_budget_holds_where_every_prompt_is_written_to_the_cache_and_that_has_no_price(sell):
    """The gateway bills 1.25 times the input price; the rows have no cost, and the budget counts their most."""

    def written(usage):
        return {**usage, "prompt_tokens_details": {"cache_write_tokens": usage["prompt_tokens"]}}

    seller, status, told, said = sell(
        lambda _n: (200, 10, {"usage": written}), "--max-cost", "0.05"
    )
    billed = seller.dollars + (seller.tokens - 10 * seller.requests) * INPUT / 4
    assert status == 4
    assert Decimal("0.02") < billed <= Decimal("0.05")
    assert told["models"]["m"]["cost_usd"] is None
    assert told["models"]["m"]["price_missing"] == {"cache_write": seller.requests}
    assert "wrote to the cache, and its price is unknown: add cache_write to --prices" in said


def test_an_answer_of_a_service_tier_without_a_price_ends_a_run_with_a_budget(sell):
    seller, status, _, said = sell(
        lambda _n: (200, 10, {"service_tier": "priority"}), "--max-cost", "1", "--concurrency", "2"
    )
    assert status == 4
    assert seller.requests < 10
    assert "the price of m at the service tier priority is not known; add m@priority to" in said
    seller, status, told, said = sell(lambda _n: (200, 10, {"service_tier": "priority"}))
    assert status == 0
    assert told["models"]["m"]["cost_usd"] is None
    assert (
        "served at the tier priority, whose price is unknown: add m@priority to --prices" in said
    )


def test_a_service_tier_that_is_asked_for_needs_a_price_under_a_budget(sell, tmp_path):
    asked = ("--max-cost", "1", "--param", 'service_tier="flex"')
    seller, status, _, said = sell(lambda _n: (200, 10, {}), *asked)
    assert (status, seller.requests) == (2, 0)
    assert "the price of m at the service tier flex is not known; add m@flex to --prices" in said
    (tmp_path / "prices.toml").write_text(f'{PRICES}["m@flex"]\ninput = 5\noutput = 50\n')
    seller, status, told, _ = sell(lambda _n: (200, 10, {"service_tier": "flex"}), *asked)
    assert status == 0
    assert told["models"]["m"]["cost_usd"] == pytest.approx(float(seller.dollars) / 2)


def test_a_budget_of_tokens_needs_no_price(spend):
    status, said, _, tokens = spend("--max-total-tokens", "500", prices=None)
    assert status == 4
    assert 300 < tokens <= 500
    assert "of 500 spent; the next request may take" in said


@pytest.mark.parametrize(
    ("words", "how", "why"),
    [
        (("--max-cost", "1"), {"prices": None}, "the price of sim-small is not known"),
        (("--max-cost", "1"), {"most": None}, "set --param max_tokens=N"),
        (("--max-total-tokens", "9"), {"most": None}, "set --param max_tokens=N"),
        (("--max-cost", "0"), {}, "it must be more than 0"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused(spend, words, how, why):
    """Before a dollar is spent."""
    status, said, dollars, _ = spend(*words, **how)
    assert status == 2
    assert why in said
    assert dollars == 0


@pytest.mark.parametrize(
    "body",
    [
        {"max_tokens": -1},
        {"max_tokens": 0},
        {"max_tokens": "many"},
        {"max_completion_tokens": -1, "max_tokens": 10},
    ],
)
def test_a_bound_that_is_none_is_no_bound(spend, tmp_path, body):
    """-1 means "as long as you like" to some servers: nothing can be set aside for that."""
    body = {"messages": [{"role": "user", "content": "x"}], **body}
    write_jsonl(tmp_path / "in.jsonl", [{"body": body}])
    status, said, dollars, _ = spend("--max-cost", "1", most=None)
    assert (status, dollars) == (2, 0)
    assert "How long the answer to 0 by sim-small may be is not known" in said


@pytest.mark.parametrize("status", [408, 499, 502, 504, 520, 524])
def test_what_a_proxy_gave_up_may_have_been_billed(sell, status):
    """The model may have answered behind it: never more is spent than told, and it is said."""

    def how(n):
        return (200, 8, {}) if n % 3 else (status, 8, {})

    seller, ended, told, said = sell(how, "--max-cost", "0.05", "--max-retries", "9")
    assert ended == 4
    assert Decimal("0.03") < seller.dollars <= Decimal("0.05")
    assert "of it perhaps, where no answer or no usage came" in told["budget"]
    assert told["status"] == "stopped"
    assert "of it perhaps" in said


def test_a_failure_that_tells_its_usage_is_paid_for(sell, tmp_path):
    """By the row's own cost and the summary's, to the last digit; none of it is perhaps."""

    def how(n):
        return (200, 8, {}) if n % 3 else (500, 8, {"usage": lambda usage: usage})

    seller, ended, told, said = sell(how, "-n", "20", "--max-cost", "5", "--max-retries", "9")
    assert ended == 0, said
    assert seller.requests > 20
    rows = read_jsonl(tmp_path / "o.jsonl")
    assert sum(Decimal(str(row["cost_usd"])) for row in rows) == seller.dollars
    of = told["models"]["m"]
    assert of["cost_usd"] == float(seller.dollars)
    assert of["thrown_away"]["answers"] == seller.requests - 20
    assert "perhaps" not in told["budget"]
    assert "thrown away: " in said
    found = spending.begin(tmp_path / "o.jsonl.run", 0, bounded=True)
    assert (found.dollars, found.perhaps_dollars) == (seller.dollars, 0)


def test_who_bills_more_than_told_does_so_once(sell):
    """An answer three times as long as allowed: from the first bill on that much is set aside."""
    seller, ended, told, _ = sell(lambda _n: (200, 30, {}), "--max-cost", "0.05")
    assert ended == 4
    assert Decimal("0.04") < seller.dollars <= Decimal("0.05")
    assert "answers of m took up to" in told["budget"]


def test_a_bill_above_all_that_is_told_is_said_to_be_one(sell):
    """What nobody could know beforehand is not hidden."""
    seller, ended, told, _ = sell(
        lambda n: (200, 5000 if n == 30 else 8, {}), "--max-cost", "0.1", "--concurrency", "4"
    )
    assert ended == 4
    assert seller.dollars > Decimal("0.1")
    spent = Decimal(told["budget"].split("$")[1].split(" ")[0])
    assert abs(spent - seller.dollars) < Decimal("0.01")
    assert "times what its price" in told["budget"]


def test_a_gateway_that_bills_otherwise_than_its_price_says_is_named(sell):
    """Its own word counts; who reads the table learns of both."""

    def cost(usage):
        return {**usage, "cost": float(2 * (usage["prompt_tokens"] * INPUT + 8 * OUTPUT))}

    _, ended, told, said = sell(lambda _n: (200, 8, {"usage": cost}))
    assert ended == 0
    of = told["models"]["m"]
    assert of["told_by_gateway"]["cost_usd"] == pytest.approx(of["cost_usd"])
    assert of["told_by_gateway"]["by_price_usd"] == pytest.approx(of["cost_usd"] / 2)
    assert "prices: usage.cost in the answers" in said
    assert "the gateway says its answers cost $0." in said
    assert "which counts; by prices.toml of 20" in said


def test_a_number_that_no_request_costs_is_no_cost(sell):
    """Else one broken field would fill the table, and end every budget."""

    def cost(usage):
        return {**usage, "cost": 1e300}

    seller, ended, told, _ = sell(lambda _n: (200, 8, {"usage": cost}))
    assert ended == 0
    assert told["models"]["m"]["cost_usd"] == float(seller.dollars)


def test_the_command_that_goes_on_does(sell, tmp_path):
    """With a budget in it that has room for the rest, told with what that is."""
    _, ended, told, said = sell(lambda _n: (200, 8, {}), "--max-cost=0.05", "--overwrite")
    assert ended == 4
    assert told["exit_status"] == 4
    assert "The rest may take $0." in said
    words = said.partition("Go on with: batcher run ")[2].split()
    assert "--overwrite" not in words
    assert words[0] == "--max-cost"
    assert Decimal("0.1") < Decimal(words[1]) < Decimal("0.4")
    _, ended, told, said = sell(lambda _n: (200, 8, {}), *words[:2])
    assert ended == 0, said
    assert len(read_jsonl(tmp_path / "o.jsonl")) == 200


def test_a_deadline_that_is_over_is_not_told_to_be_kept_again(tmp_path):
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": f"{n}"} for n in range(2000)])
    soon = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 4))
    ended = program.batcher(
        "run", "in.jsonl", "-o", "o.jsonl", "-m", "sim-large", "--simulate", "--concurrency", "1",
        "--deadline", soon, cwd=tmp_path,
    )  # fmt: skip
    assert ended.returncode == 4, ended.stderr
    assert b"it is over, so nothing more is sent" in ended.stderr
    assert b"--deadline" not in ended.stderr.rpartition(b"Go on with: ")[2]


def test_a_stop_after_answers_prints_its_json(tmp_path):
    """Also where it is one that nothing goes on from: who was billed wants to know for what."""

    async def answer(request):
        if b"price" in await request.read():
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            choice = {"message": {"content": "yes"}, "finish_reason": "stop"}
            return web.json_response({"choices": [choice], "usage": usage})
        return web.json_response({}, status=401)

    rows = [{"prompt": f"price {n}", "model": "m"} for n in range(5000)]
    rows.append({"prompt": "x", "model": "unpriced"})
    write_jsonl(tmp_path / "in.jsonl", rows)
    (tmp_path / "prices.toml").write_text(PRICES)
    with echo.running(answer) as up:
        ended = program.batcher(
            "run", "in.jsonl", "-o", "o.jsonl", "--prices", "prices.toml", "--max-cost", "1",
            "--param", "max_tokens=10", "--json", cwd=tmp_path, url=up.url,
        )  # fmt: skip
    told = json.loads(ended.stdout)
    assert told["exit_status"] == ended.returncode
    assert told["models"]["m"]["cost_usd"] > 0.00011
    assert "the price of unpriced is not known" in told["message"]


@pytest.mark.parametrize("before", [(), ("--max-cost", "9")], ids=["without", "with a budget"])
def test_what_a_kill_left_in_flight_counts_as_perhaps_billed(tmp_path, before):
    """Whether or not the run that was killed had a budget."""
    (tmp_path / "prices.toml").write_text('["sim-small"]\ninput = 10\noutput = 100\n')
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": f"What is {n} + 1?"} for n in range(3000)])
    words = ("run", "in.jsonl", "-o", "o.jsonl", "-m", "sim-small", "--prices", "prices.toml",
             "--param", "max_tokens=10", "--concurrency", "20")  # fmt: skip
    with running(Simulation(speed=1)) as gateway:
        process = started(*words, *before, cwd=tmp_path, url=gateway.url)
        spent = gateway.ledger.models["sim-small"]
        while spent.tokens["completion"] < 600 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        dollars = Decimal(spent.tokens["prompt"] * 10 + spent.tokens["completion"] * 100) / 10**6
        ended = program.batcher(
            *words, "--max-cost", dollars / 2, "--json", cwd=tmp_path, url=gateway.url
        )
    assert ended.returncode == 4
    budget = json.loads(ended.stdout)["budget"]
    assert "of it perhaps, where no answer or no usage came" in budget
    found = spending.begin(tmp_path / "o.jsonl.run", 0, bounded=True)
    assert 0 < found.perhaps_dollars < 60 * Decimal("0.0015")
    assert found.dollars >= dollars


def test_what_is_not_known_is_kept_over_runs_without_a_budget(tmp_path):
    """And what a run without one leaves in flight is priced once an answer tells what one costs."""
    folder = tmp_path
    assert spending.begin(folder, 3, bounded=False) == spending.Spent(cut_off=3)
    spent = spending.begin(folder, 0, bounded=True)
    assert spent == spending.Spent(cut_off=3)
    spending.save(folder, Decimal("0.5"), 100, spent)
    spent = spending.begin(folder, 9, bounded=False)  # It had a budget, which tells more.
    assert (spent.perhaps_dollars, spent.perhaps_tokens, spent.cut_off) == (Decimal("0.5"), 100, 3)
    assert spending.begin(folder, 0, bounded=False) == spent
    assert spending.begin(folder, 0, bounded=True) == spent


@pytest.mark.parametrize("budget", [("--max-cost", "0.02"), ("--max-total-tokens", "500")])
def test_the_printed_commands_end_a_job_whose_answers_are_sent_back(tmp_path, budget):
    """Each buys what is missing and nothing twice: the first answer of every row, and its re-ask."""
    (tmp_path / "prices.toml").write_text(PRICES)
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": f"What is {n} + 1?"} for n in range(60)])
    asked = []

    async def answer(request):
        body = await request.json()
        asked.append(json.dumps(body["messages"]))
        said = "a" if len(body["messages"]) > 1 else "spam"
        usage = {"prompt_tokens": 12 * len(body["messages"]), "completion_tokens": 3}
        choice = {"message": {"content": said}, "finish_reason": "stop"}
        return web.json_response({"choices": [choice], "usage": usage})

    words = ["-o", "o.jsonl", "-m", "m", "--prices", "prices.toml", "--param", "max_tokens=10",
             "--labels", "a,b", "--concurrency", "4", *budget, "--", "in.jsonl"]  # fmt: skip
    with echo.running(answer) as up:
        for _start in range(3):
            ended = program.batcher("run", *words, cwd=tmp_path, url=up.url)
            if ended.returncode != 4:
                break
            words = shlex.split(ended.stderr.decode().rpartition("Go on with: batcher run ")[2])
    assert ended.returncode == 0, ended.stderr.decode()
    assert [row["parsed"] for row in read_jsonl(tmp_path / "o.jsonl")] == ["a"] * 60
    assert len(asked) == len(set(asked)) == 120


def test_a_budget_far_too_small_names_one_that_is_not(sell):
    """From the size of a request alone, where nothing was answered."""
    seller, ended, _, said = sell(lambda _n: (200, 8, {}), "--max-cost", "1e-9")
    assert (ended, seller.requests) == (4, 0)
    told = Decimal(said.partition("--max-cost ")[2].partition(" ")[0]) if "Go on" in said else 0
    words = said.partition("Go on with: batcher run ")[2].split()
    assert Decimal("0.0005") < Decimal(words[1]) < Decimal("0.01"), told


def test_a_total_is_a_count_of_tokens(sell):
    """Some gateways tell no more than that."""

    def total(usage):
        return {"total_tokens": usage["total_tokens"]}

    seller, ended, told, _ = sell(
        lambda _n: (200, 8, {"usage": total}), "--max-total-tokens", "3000"
    )
    assert ended == 4
    assert 2500 < seller.tokens <= 3000
    assert "perhaps" not in told["budget"]


@pytest.mark.parametrize("after", [0.5, 2.5])
def test_what_two_signals_left_in_flight_counts_as_perhaps_billed(tmp_path, after):
    """And a kill within the first second, without a budget: whole, as many as there were."""
    (tmp_path / "prices.toml").write_text(PRICES)
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": f"What is {n} + 1?"} for n in range(300)])
    billed = Counter()

    async def answer(request):
        billed["dollars"] += len(await request.read()) // 4 * INPUT + 10 * OUTPUT
        billed["came"] += 1
        await asyncio.sleep(0.2 if billed["came"] == 1 else after)
        usage = {"prompt_tokens": 30, "completion_tokens": 10}
        return web.json_response(
            {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": usage}
        )

    words = ("run", "in.jsonl", "-o", "o.jsonl", "-m", "m", "--prices", "prices.toml", "--param", "max_tokens=10",
             "--concurrency", "16")  # fmt: skip
    with echo.running(answer) as up:
        for end in (signal.SIGKILL, signal.SIGINT):
            wanted = billed["came"] + 17
            process = started(*words, cwd=tmp_path, url=up.url)
            while billed["came"] < wanted and process.poll() is None:
                time.sleep(0.005)
            time.sleep(0.1)  # It looks fifty times a second.
            process.send_signal(end)
            if end == signal.SIGINT:
                time.sleep(0.1)
                process.send_signal(end)
            process.communicate()
        folder = tmp_path / "o.jsonl.run"
        ended = program.batcher(*words, "--max-cost", "0.05", cwd=tmp_path, url=up.url)
    assert ended.returncode == 4
    assert billed["dollars"] <= Decimal("0.05")
    assert spending.begin(folder, 0, bounded=True).perhaps_dollars >= 16 * Decimal("0.0013")


def test_what_is_in_flight_is_kept_when_the_spending_cannot_be_recorded(tmp_path):
    """The disk has room for the journal, and not for one more file."""
    bought = Counter()

    async def answer(request):
        bought[(await request.json())["messages"][-1]["content"]] += 1
        await asyncio.sleep(0.2)
        usage = {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}
        choice = {"message": {"content": "yes"}, "finish_reason": "stop"}
        return web.json_response({"choices": [choice], "usage": usage})

    write_jsonl(tmp_path / "in.jsonl", [{"prompt": f"p {n}"} for n in range(400)])
    words = ("run", "in.jsonl", "-o", "o.jsonl", "-m", "m", "--param", "max_tokens=10", "--concurrency", "20",
             "--max-total-tokens", "30000")  # fmt: skip
    with echo.running(answer) as up:
        process = started(*words, cwd=tmp_path, url=up.url)
        while sum(bought.values()) < 60:
            time.sleep(0.02)
        in_the_way = tmp_path / "o.jsonl.run" / "budget.json.tmp"
        while True:
            try:
                in_the_way.mkdir()
                break
            except FileExistsError:  # Just being written.
                time.sleep(0.001)
        said = process.communicate(timeout=300)[1].decode()
        assert process.returncode == 1, said
        assert "spending cannot be recorded" in " ".join(said.split())
        journal = "".join(
            path.read_text() for path in tmp_path.glob("o.jsonl.run/journal-*.jsonl")
        )
        assert journal.count('"status":"ok"') == sum(bought.values()) < 400
        in_the_way.rmdir()
        assert program.batcher(*words, cwd=tmp_path, url=up.url).returncode == 0
    assert set(bought.values()) == {1}
    assert len(bought) == 400


@pytest.mark.parametrize("route", ["each", "split"])
def test_a_stop_does_not_wait_for_a_limit_and_its_refusals_are_counted(tmp_path, route):
    """Nothing is in flight, so there is nothing to wait for."""
    asked = Counter()

    async def answer(request):
        model = (await request.json())["model"]
        asked[model] += 1
        if asked[model] > 5:
            asked["429"] += 1
            return web.json_response(
                {"error": {"message": "slow down"}}, status=429, headers={"Retry-After": "50"}
            )
        choice = {"message": {"content": "yes"}, "finish_reason": "stop"}
        return web.json_response({"choices": [choice]})

    write_jsonl(tmp_path / "in.jsonl", [{"prompt": f"p {n}"} for n in range(60)])
    words = ("run", "in.jsonl", "-o", "o.jsonl", "-m", "a", "-m", "b", "--route", route, "--json")
    with echo.running(answer) as up:
        process = started(*words, cwd=tmp_path, url=up.url)
        while min(asked["a"], asked["b"]) < 6:
            time.sleep(0.05)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        out, said = process.communicate(timeout=300)
    assert time.monotonic() - began < 20
    assert process.returncode == 130, said.decode()
    told = json.loads(out)["models"]
    assert sum(of["answered_429"] for of in told.values()) == asked["429"]
    assert sum(of["requests"] for of in told.values()) == asked["a"] + asked["b"]


def test_what_a_split_may_still_take_is_what_its_rows_take(tmp_path):
    """And not what they would if each model had to answer them all."""

    async def answer(_request):
        usage = {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}
        choice = {"message": {"content": "yes"}, "finish_reason": "stop"}
        return web.json_response({"choices": [choice], "usage": usage})

    write_jsonl(tmp_path / "in.jsonl", [{"prompt": f"p {n}"} for n in range(300)])
    words = ("run", "in.jsonl", "-o", "o.jsonl", "-m", "a", "-m", "b", "-m", "c", "--route", "split", "--param",
             "max_tokens=5")  # fmt: skip
    with echo.running(answer) as up:
        ended = program.batcher(*words, "--max-total-tokens", "2000", cwd=tmp_path, url=up.url)
        said = ended.stderr.decode()
        assert ended.returncode == 4, said
        rest, unit = re.search(r"The rest may take ([\d.]+)(k?) tokens", said).groups()
        assert (
            900 <= float(rest) * (1000 if unit else 1) <= 1400
        )  # 1,000 and what 2,000 did not reach.
        assert program.batcher(*words, cwd=tmp_path, url=up.url).returncode == 0
    told = program.batcher("status", "o.jsonl", cwd=tmp_path).stdout.decode()
    assert "all models: 300 done, 0 of 300 pending" in told
    assert told.count("pending") == 1
    models = json.loads((tmp_path / "o.jsonl.run" / "status.json").read_text())["models"].values()
    assert [of["total"] for of in models] == [None, None, None]
    assert sum(of["done"] for of in models) == 300
