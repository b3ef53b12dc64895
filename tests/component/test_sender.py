"""One request's whole life with a transport that is not there: attempts, decisions, limits, money."""

import asyncio
import json
import random
import time
from decimal import Decimal

import msgspec
import pytest

from batcher.errors import JobError, NoAnswer
from batcher.limits.port import Closed, ExchangeOutcome, Ticket
from batcher.money.bill import Bill
from batcher.money.budget import NOTHING, LocalBudget
from batcher.money.prices import Price
from batcher.money.reserve import max_cost
from batcher.records import Outcome, Result
from batcher.send.answers import Expected
from batcher.send.attempt import SendChannel, SendConfig
from batcher.send.dialect import AnswerPolicy, ModelDialect
from batcher.send.estimate import TimeoutEstimator, TokenEstimator
from batcher.send.http import Reply
from batcher.send.sender import Sender
from tests.support.made import request

ASKED = request(b'{"model":"m","messages":[{"role":"user","content":"?"}]}', max_tokens=100)
PRICE = Price(Decimal(1), Decimal(2))


def answer(content="hi", finish="stop", prompt=10, completion=4, **more):
    """A reply with a completion."""
    usage = {"prompt_tokens": prompt, "completion_tokens": completion,
             "total_tokens": prompt + completion}  # fmt: skip
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": content},
        "finish_reason": finish,
    }
    body = {"choices": [choice], "usage": usage, **more}
    return Reply(200, {}, json.dumps(body).encode())


def failure(status, message="no", headers=None, **error):
    """A reply with an error."""
    body = {"error": {"message": message, **error}}
    return Reply(status, headers or {}, json.dumps(body).encode())


def unsent(outcome=Outcome.CONNECTION, *, sent=True):
    """What the transport raises."""
    error = NoAnswer("gone", outcome=outcome)
    error.sent = sent
    return error


class Transport:
    """Gives one reply after the other, or raises it; keeps what was asked."""

    def __init__(self, *replies):
        self.replies = list(replies)
        self.asked = []

    async def post(self, body, seconds, idle=None):
        self.asked.append((body, seconds, idle))
        reply = self.replies.pop(0)
        if isinstance(reply, BaseException):
            raise reply
        return reply

    def redact(self, _status, body):
        return body


class Limiter:
    """Lets everything through and keeps what it heard."""

    def __init__(self):
        self.asked, self.heard = [], []
        self.closed_after = None
        self.waits_for = None

    async def enter(self, tokens, most=None):
        if self.closed_after is not None and len(self.asked) >= self.closed_after:
            raise Closed
        self.asked.append((tokens, most))
        if self.waits_for is not None:
            await asyncio.sleep(self.waits_for)
        return Ticket(tokens, 0.0, "requests", most)

    def leave(self, _ticket, heard):
        self.heard.append(heard)


class World:
    """A sender, one model, and all that they touch."""

    def __init__(self, *replies, price=None, policy=None, budget=None, **more):
        self.transport = Transport(*replies)
        self.limiter = Limiter()
        self.slept = []
        self.budget = budget
        self.lane = SendChannel(
            self.limiter,
            TokenEstimator(),
            TimeoutEstimator(600.0),
            {},
            ModelDialect(),
            Bill(price),
        )
        config = SendConfig(**{"max_retries": 2, "row_timeout": 60.0, **more})
        self.sender = Sender(self.transport, config, self.sleep, policy, budget, random.Random(1))

    async def sleep(self, seconds):
        self.slept.append(seconds)

    async def send(self, asked=ASKED, **more):
        """The result; attempts after the first included."""
        ended = await self.sender.send(asked, self.lane, **more)
        return ended if isinstance(ended, Result) else await self.sender.retry(ended, self.lane)


def sent(*replies, asked=ASKED, **more):
    """(the result, the world) of one request that gets these replies."""
    world = World(*replies, **more)
    return asyncio.run(world.send(asked)), world


# Attempts

ENDS = [
    # (replies, status, attempts)
    ([answer()], "ok", 1),
    ([failure(500), answer()], "ok", 2),
    ([failure(500), failure(503), answer()], "ok", 3),
    ([failure(500)] * 3, "server_error", 3),
    ([unsent(), unsent(Outcome.TIMEOUT), answer()], "ok", 3),
    ([unsent()] * 3, "connection", 3),
    ([failure(429)] * 7 + [answer()], "ok", 8),  # Refusals are no retries.
    ([failure(429), failure(500), failure(429), failure(500), failure(500)], "server_error", 5),
    ([Reply(200, {}, b"<html>")] * 3, "bad_response", 3),
    ([failure(400)], "bad_request", 1),
    ([failure(401)], "auth", 1),
    ([failure(404)], "not_found", 1),
    ([failure(429, code="insufficient_quota")], "quota", 1),
    ([failure(500), failure(400)], "bad_request", 2),
]


@pytest.mark.parametrize(("replies", "status", "attempts"), ENDS)
def test_what_goes_again_and_how_it_ends(replies, status, attempts):
    result, world = sent(*replies)
    assert (result.status, result.attempts) == (status, attempts)
    assert len(world.transport.asked) == attempts
    assert len(world.slept) == attempts - 1
    assert world.lane.in_flight == {}


def test_without_retries_a_failure_is_the_last_word_and_a_refusal_is_not():
    assert sent(failure(500), max_retries=0)[0].status == "server_error"
    assert sent(failure(429), answer(), max_retries=0)[0].status == "ok"


def test_the_wait_is_what_the_server_names_where_that_is_longer_than_the_backoff():
    _result, world = sent(failure(503, headers={"retry-after": "7"}), answer())
    assert world.slept == [7.0]
    _result, world = sent(failure(429, headers={"retry-after": "3"}), answer())
    assert world.slept == [3.0]


def test_a_wait_longer_than_any_row_may_take_is_a_quota_that_is_used_up():
    result, world = sent(failure(429, headers={"retry-after": "61"}))
    assert (result.status, result.attempts, world.slept) == ("quota", 1, [])
    assert "longer than --row-timeout" in result.error


def test_a_request_does_not_go_again_when_its_time_would_be_up_by_then():
    result, world = sent(failure(503, headers={"retry-after": "50"}), answer(), row_timeout=40.0)
    assert (result.status, result.attempts, world.slept) == ("server_error", 1, [])


def test_an_attempt_gets_the_time_that_its_row_has_left():
    _result, world = sent(failure(500), answer(), row_timeout=30.0, idle_timeout=9.0)
    [(_, first, idle), (_, second, _)] = world.transport.asked
    assert (first, idle) == (30.0, 9.0)
    assert 29.0 < second < 30.0


def test_a_row_whose_time_is_up_while_it_waits_for_its_turn_ends_as_it_failed():
    world = World(failure(500), answer())

    async def late():
        failed = await world.sender.send(ASKED, world.lane)
        world.limiter.waits_for = 30.0
        return await world.sender.retry(
            failed._replace(deadline=time.monotonic() + 0.02), world.lane
        )

    result = asyncio.run(late())
    assert (result.status, result.attempts) == ("server_error", 1)


def test_each_attempt_is_told_with_what_it_waited_for():
    result, _world = sent(failure(429), failure(500), answer())
    assert [t.cause for t in result.tries] == ["requests", "429", "retry"]
    assert [t.status for t in result.tries] == ["rate_limited", "server_error", "ok"]
    assert result.total_tokens == 14


EVENTS = (
    b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}\n\ndata: [DONE]\n\n'
)


@pytest.mark.parametrize("kind", ["text/event-stream", "application/json"])
def test_an_answer_that_comes_as_a_stream_unasked_is_taken(kind):
    """It was paid for, and some gateways stream to everybody."""
    result, _world = sent(Reply(200, {"Content-Type": kind}, EVENTS))
    assert (result.status, result.content, result.attempts) == ("ok", "hi", 1)
    assert (result.total_tokens, result.ttft_ms) == (4, None)


# What the limits hear

HEARD = [
    (answer(), "answered", 14.0),
    (failure(429, headers={"retry-after": "2"}), "refused", None),
    (failure(503), "overloaded", 0.0),
    (failure(529), "overloaded", 0.0),
    (unsent(Outcome.TIMEOUT), "overloaded", None),
    (failure(500), "failed", None),
    (unsent(), "failed", None),
    (Reply(200, {}, b"<html>"), "failed", None),
    (failure(400), "rejected", None),
    (failure(401), "rejected", None),
]


@pytest.mark.parametrize(("reply", "how", "used"), HEARD)
def test_what_the_limiter_hears_of_an_exchange(reply, how, used):
    _result, world = sent(reply, *[answer()] * 2)
    heard = world.limiter.heard[0]
    assert (heard.kind, heard.used) == (how, used)


def test_the_limiter_hears_what_headers_and_refusals_say():
    headers = {"x-ratelimit-limit-requests": "600", "x-ratelimit-remaining-requests": "599",
               "x-ratelimit-reset-requests": "100ms"}  # fmt: skip
    refusal = failure(429, "Rate limit reached on tokens per min", {"retry-after": "2", **headers})
    _result, world = sent(refusal, answer())
    refused, answered = world.limiter.heard
    assert (refused.retry_after, refused.about) == (2.0, "tokens")
    assert refused.headers[0].limit == 600.0
    assert not answered.headers


def test_what_was_cancelled_was_not_sent_as_far_as_limits_go():
    world = World(asyncio.CancelledError())
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(world.send())
    assert world.limiter.heard == [ExchangeOutcome("unsent")]
    assert world.lane.in_flight == {}


def test_answers_teach_how_many_tokens_to_reserve():
    _result, world = sent(answer(prompt=200, completion=50))
    tokens, most = world.lane.tokens.tokens(len(ASKED.body), 100)
    assert (round(tokens), round(most)) == (250, 300)
    first, bound = world.limiter.asked[0]
    assert bound - first == 0  # Before an answer, an answer of its bound is expected.


# A run that stops


def test_nothing_is_kept_of_a_row_that_was_not_sent():
    world = World(answer())
    world.limiter.closed_after = 0
    with pytest.raises(Closed):
        asyncio.run(world.send())


def test_a_row_that_failed_without_being_paid_for_stays_to_be_sent():
    world = World(failure(500), answer())
    world.limiter.closed_after = 1
    with pytest.raises(Closed):
        asyncio.run(world.send())


LABELS = AnswerPolicy(Expected(None, ["bug", "other"]), 1)


def test_an_answer_that_was_paid_for_is_kept_for_the_next_run():
    world = World(answer("neither"), answer("bug"), policy=LABELS)
    world.limiter.closed_after = 1
    result = asyncio.run(world.send())
    assert (result.status, result.content, result.stopped) == ("invalid", "neither", True)
    assert result.total_tokens == 14


# Asking again


def test_an_answer_that_does_not_fit_is_asked_for_once_more():
    result, world = sent(answer("neither"), answer("bug"), policy=LABELS)
    assert (result.status, result.parsed, result.attempts) == ("ok", '"bug"', 2)
    assert result.total_tokens == 28
    assert b"neither" in world.transport.asked[1][0]
    assert world.slept == [0.0]


def test_an_answer_that_never_fits_is_the_last_word():
    result, _world = sent(answer("neither"), answer("nor"), policy=LABELS)
    assert (result.status, result.content, result.attempts) == ("invalid", "nor", 2)


def test_answers_that_did_not_fit_are_no_failures():
    replies = [answer("neither"), failure(500), failure(500), answer("bug")]
    assert sent(*replies, policy=LABELS, max_retries=2)[0].status == "ok"


def test_a_refused_form_is_put_in_another_one_for_all_rows():
    refusal = failure(400, "response_format of type json_schema is not supported")
    result, world = sent(refusal, answer("bug"), policy=LABELS, max_retries=0)
    assert (result.status, result.attempts) == ("ok", 2)
    assert world.lane.dialect.current.form == "json_object"


def test_one_refusal_does_not_unmake_a_form_that_was_answered():
    refusal = failure(400, "response_format of type json_schema is not supported")
    world = World(answer("bug"), refusal, answer("bug"), policy=LABELS)

    async def two():
        return [(await world.send()).status for _ in range(2)]

    assert asyncio.run(two()) == ["ok", "ok"]
    assert world.lane.dialect.current.form == "json_schema"
    assert b"response_format" not in world.transport.asked[2][0]  # Of this row alone.


# Another model


def test_what_one_model_did_is_told_where_another_goes_on():
    world = World(failure(500), answer())

    async def work():
        failed = await world.sender.send(request(model="a", max_tokens=100), world.lane)
        return await world.sender.send(ASKED, world.lane, failed)

    result = asyncio.run(work())
    assert (result.model, result.status, result.attempts) == ("m", "ok", 2)
    assert [t.model for t in result.tries] == ["a", None]


# Money


def budget(dollars="1", spent=NOTHING):
    return LocalBudget(Decimal(dollars), None, spent, lambda _amount: None)


MICRO = Decimal("0.000001")
BILLS = [
    # (reply, millionths of a dollar that are spent then, of them perhaps; None: all that it may take)
    (answer(prompt=10, completion=4), 18, 0),
    (answer(prompt=10, completion=4, usage=None), None, None),
    (failure(400), 0, 0),
    (failure(500), 0, 0),
    (failure(502), None, None),
    (unsent(sent=False), 0, 0),
    (unsent(sent=True), None, None),
    (Reply(200, {}, b"<html>"), None, None),
]


@pytest.mark.parametrize(("reply", "spent", "perhaps"), BILLS)
def test_what_is_spent_is_what_was_used_or_all_that_it_may_have_been(reply, spent, perhaps):
    purse = budget()
    sent(reply, price=PRICE, budget=purse, max_retries=0)
    most = max_cost(PRICE, len(ASKED.body), 100, b"")  # A byte of the prompt may be a token.
    assert purse.committed.dollars == (most if spent is None else MICRO * spent)
    assert purse.perhaps.dollars == (most if perhaps is None else MICRO * perhaps)


def test_a_request_that_does_not_fit_is_not_sent():
    purse = budget("0.0001")
    world = World(answer(), price=PRICE, budget=purse)
    with pytest.raises(Closed):
        asyncio.run(world.send())
    assert world.transport.asked == []
    assert purse.spent


UNKNOWN = [
    (None, 100, "price of m is not known"),
    (PRICE, None, "set --param max_tokens=N"),
]


@pytest.mark.parametrize(("price", "bound", "why"), UNKNOWN)
def test_what_may_cost_anything_ends_the_run(price, bound, why):
    purse, whys = budget(), []
    purse.on_stop(whys.append)
    world = World(answer(), price=price, budget=purse)
    with pytest.raises(Closed):
        asyncio.run(world.send(request(max_tokens=bound)))
    [stopped] = whys
    assert isinstance(stopped, JobError)
    assert why in str(stopped)
    assert world.transport.asked == []


def test_an_answer_from_a_tier_without_a_price_ends_the_run_but_is_kept():
    purse, whys = budget(), []
    purse.on_stop(whys.append)
    result, _world = sent(answer(service_tier="priority"), price=PRICE, budget=purse)
    assert result.status == "ok"
    assert "priority" in str(whys[0])


def test_the_cost_stands_in_the_row():
    result, _world = sent(answer(prompt=10, completion=4), price=PRICE)
    assert result.cost_usd == 0.000018


def test_a_stream_that_ends_without_a_reason_was_cut_where_others_tell_one():
    events = (b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n',
              b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
              b"data: [DONE]\n\n")  # fmt: skip
    kind = {"Content-Type": "text/event-stream"}
    whole, cut = Reply(200, kind, b"".join(events)), Reply(200, kind, events[0] + events[2])
    assert sent(cut)[0].status == "ok"
    world = World(whole, cut, max_retries=0)

    async def both():
        return [(await world.send()).status for _ in range(2)]

    assert asyncio.run(both()) == ["ok", "connection"]


def test_a_reply_is_let_go_once_it_is_read():
    done = []
    reply = answer()
    result, _world = sent(Reply(200, {}, reply.body, (), lambda: done.append(1)))
    assert (result.status, done) == ("ok", [1])


def test_the_whole_body_is_kept_where_it_is_asked_for():
    assert (
        sent(answer(), keep_raw=True)[0].response
        == msgspec.json.format(answer().body, indent=-1).decode()
    )
    assert sent(answer())[0].response is None
