"""One request through a client that is not there: what the sender makes of its replies."""

import asyncio

from batcher.job.job import Limits
from batcher.limits.gate import Gate, KeyGate
from batcher.money.prices import Bill
from batcher.records import Outcome, Request, Result
from batcher.send.dialect import ModelDialect
from batcher.send.estimate import Estimate, TimeoutEstimator
from batcher.send.http import Reply
from batcher.send.sender import SendChannel, Sender

ASKED = Request(0, "r", "m", 0, "0" * 32, b'{"model":"m","messages":[]}', None)
EVENTS = (
    b'data: {"choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}\n\ndata: [DONE]\n\n'
)


class Replies:
    """A client that gives one reply after the other, or raises it."""

    def __init__(self, *replies):
        self.replies = list(replies)

    async def post(self, _body, _timeout, _idle=None):
        reply = self.replies.pop(0)
        if isinstance(reply, BaseException):
            raise reply
        return reply

    def without_keys(self, _status, body):
        return body


def sent(*replies, max_retries=5):
    """The result of a request that gets these replies."""

    async def work():
        async def sleep(_seconds):
            pass

        sender = Sender(
            Replies(*replies),
            max_retries=max_retries,
            row_timeout=60.0,
            keep_raw=False,
            sleep=sleep,
        )
        gate = Gate(Limits(), KeyGate(Limits()))
        lane = SendChannel(
            gate, Estimate(), TimeoutEstimator(600.0), {}, ModelDialect(), Bill(None)
        )
        ended = await sender.first(ASKED, lane)
        return ended if isinstance(ended, Result) else await sender.again(ended, lane)

    return asyncio.run(work())


def test_an_answer_that_comes_as_a_stream_unasked_is_taken():
    """It was paid for, and some gateways stream to everybody."""
    for kind in ("text/event-stream", "application/json"):
        result = sent(Reply(200, {"Content-Type": kind}, EVENTS))
        assert (result.status, result.content, result.attempts) == (Outcome.OK, "hi", 1)
        assert result.total_tokens == 4
        assert result.ttft_ms is None
