"""An engine whose requests go to a function of the test, in virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter

from batcher.job.endpoint import Endpoint
from batcher.job.job import Job
from batcher.limits.port import Closed
from batcher.live.summary import Summary
from batcher.plan.requests import Part, PendingRow
from batcher.plan.settings import settings_of
from batcher.records import Outcome, Prompt
from batcher.runtime import feed
from batcher.runtime.config import EngineConfig
from batcher.runtime.engine import Engine
from batcher.runtime.sink import ResultSink
from batcher.send import result as results
from batcher.send.dialect import RepairState
from batcher.send.sender import FailedAttempt
from tests.support import clock, made

ENDPOINT = Endpoint("http://gateway/v1/chat/completions", "gateway")


class Fails(Exception):
    """An attempt that fails and may be tried again after `wait` seconds."""

    def __init__(self, error, wait=1.0):
        super().__init__(str(error))
        self.error, self.wait = error, wait


class Limiter:
    """So many slots, and nothing else."""

    def __init__(self, places):
        self.max_in_flight = places
        self.in_flight = self.waiting = 0
        self.waits_for, self.refusing, self.waited = "", False, {}
        self.closed = False
        self.silence = 0.0

    def free(self, _tokens, _most=None):
        return self.in_flight < self.max_in_flight

    def silent(self, _most, *, alive):
        del alive
        return self.silence

    def share(self):
        return None

    def close(self):
        self.closed = True


class World:
    """One engine over some rows.

    Args:
        rows: How many rows there are, or prompts.
        answer: Called with each request, as a coroutine; returns a result or raises `Fails`.
        places: Requests in flight of each model at most.
        job: Fields of the job.
    """

    def __init__(self, rows, answer, *, models=("m",), places=1, proven=(), dedupe=None, **job):
        self.answer = answer
        self.places = places
        self.sent, self.emitted, self.results = [], [], []
        self.most = Counter()
        self.limiters = {}
        self.read = 0
        self.unreached = 0.0
        self.address_known = True
        self.wrong = None
        job = Job(inputs=("in.jsonl",), output="out.jsonl", models=models, prompt="{{ x }}", **job)
        prompts = rows if isinstance(rows, list) else [Prompt(n, str(n), b'"n":%d}' % n) for n in range(rows)]  # fmt: skip
        slots = tuple(range(max(1, len(models)) * job.samples))
        self.pending = [PendingRow(prompt, slots) for prompt in prompts]
        self.plan = Part(job, settings_of(job, ENDPOINT.url), self.pending, {})
        self.summary = Summary(lambda: 0.0, models)
        self.sink = ResultSink(self.summary, None, self.emit)
        config = EngineConfig(
            job, ENDPOINT, len(prompts), proven=proven, open_gateway=lambda *_parts: self.gateway(*_parts)
        )  # fmt: skip
        self.make = lambda: Engine(
            config, self.plan, self.sink, dedupe=dedupe, limiter_of=self.limiter
        )

    def limiter(self, model):
        return self.limiters.setdefault(model, Limiter(self.places))

    def gateway(self, _config, _policy, _budget, sleep, _room):
        self.sleep = sleep
        self.sender = self
        return self

    async def emit(self, prompt, result):
        self.emitted.append((prompt.row, result.model, str(result.status)))

    # As a gateway

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        pass

    async def warm(self, rows):
        pass

    def unreached_seconds(self):
        return self.unreached

    async def wrong_address(self, _ended):
        return self.wrong

    # As a sender

    async def send(self, request, channel, previous=None, repair=None):
        limiter, attempts = channel.limiter, [] if previous is None else list(previous.attempts)
        if limiter.closed:
            raise Closed
        self.sent.append((request.row, request.model))
        limiter.in_flight += 1
        self.most[request.model] = max(self.most[request.model], limiter.in_flight)
        channel.in_flight[id(request)] = request.custom_id, asyncio.get_running_loop().time()
        try:
            return await self.answer(request)
        except Fails as failed:
            attempts.append(made.attempt(failed.error.outcome))
            return FailedAttempt(request, failed.error, attempts, 1e9, failed.wait, RepairState())
        finally:
            del channel.in_flight[id(request)]
            limiter.in_flight -= 1

    async def retry(self, failed, channel):
        while True:
            await self.sleep(failed.wait)
            ended = await self.send(failed.request, channel, failed)
            if not isinstance(ended, FailedAttempt):
                return ended
            if len(ended.attempts) > 3:
                return results.ended(ended.request, ended.error, ended.attempts, ended.repair)
            failed = ended

    # The run

    def run(self, monkeypatch, during=None):
        """Runs the engine to its end in virtual time, with `during` beside it; returns it."""

        async def inline(batches, stop):
            for batch in batches:
                if stop.is_set():
                    return
                self.read += len(batch)
                yield batch
                await asyncio.sleep(0)

        monkeypatch.setattr(feed, "in_thread", inline)

        async def work():
            engine = self.engine = self.make()
            async with asyncio.timeout(1e6):
                beside = asyncio.create_task(during(engine)) if during else None
                await engine.run()
                if beside is not None:
                    beside.cancel()
                    await asyncio.gather(beside, return_exceptions=True)
            return engine

        return clock.run(work())

    @property
    def statuses(self):
        """How many rows ended in which way, by model."""
        return {
            model: {str(outcome): n for outcome, n in totals.outcomes.items()}
            for model, totals in self.summary.models.items()
        }


def ok(request, status=Outcome.OK, **more):
    """The result of a request."""
    more = {"custom_id": request.custom_id, "sample": request.sample, **more}
    return made.result(status, row=request.row, model=request.model, key=request.key, **{k: v for k, v in more.items() if k != "key"})  # fmt: skip
