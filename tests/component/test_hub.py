"""Several workers with one limit, in virtual time: calls take milliseconds, workers and hubs die."""

import asyncio
import math
import random
from collections import Counter

import pytest

from batcher.cluster.hub import Hub
from batcher.cluster.link import Link, Unreachable
from batcher.job.job import Limits
from batcher.limits.port import ExchangeOutcome
from batcher.simulate.meters import ModelMeter
from tests.support import clock


class World:
    """A metering server, a hub that may be replaced, and workers."""

    def __init__(self, limits, *, kind="bucket-1s", rpm=600.0, latency=2.0, seed=1):
        self.time = asyncio.get_running_loop().time
        self.rng = random.Random(seed)
        self.limits = limits
        self.latency = latency
        self.meter = ModelMeter(kind, "output", rpm, None)
        self.sent, self.refused, self.by_worker = [], [], Counter()
        self.hub = self.new_hub()
        self.links = []
        self.cut = set()  # Workers whose calls get nowhere.
        self.in_flight = self.most_in_flight = 0

    def new_hub(self):
        return Hub(lambda _model: self.limits, Limits(), 3600.0, self.time)

    async def call(self, name, turn):
        await asyncio.sleep(self.rng.uniform(0.001, 0.01))
        if name in self.cut or self.hub is None:
            await asyncio.sleep(60)
        reply = self.hub.report(turn)
        await asyncio.sleep(self.rng.uniform(0.001, 0.01))
        if name in self.cut:
            raise Unreachable
        return reply

    def worker(self, name, many=150, attempt=1):
        stopped = asyncio.Event()
        number = 10 * name + attempt
        link = Link(lambda turn: self.call(name, turn), name, number, stopped.set, clock=self.time)
        self.links.append(link)
        tasks = [asyncio.create_task(self.send(link, name)) for _ in range(many)]
        tasks.append(asyncio.create_task(link.run()))
        return tasks, stopped, link

    async def send(self, link, name):
        gate = link.gate("m")
        while True:
            ticket = await gate.enter(100.0)
            now = self.time()
            self.sent.append(now)
            self.by_worker[name] += 1
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            refused = self.meter.admit(50, 50, now + 1000.0) is not None
            try:
                if refused:
                    self.refused.append(now)
                    await asyncio.sleep(0.02)
                    gate.leave(ticket, ExchangeOutcome("refused"))
                else:
                    took = self.latency * math.exp(0.5 * self.rng.gauss(0, 1))
                    await asyncio.sleep(took)
                    gate.leave(ticket, ExchangeOutcome("answered", took, 100.0))
            finally:
                self.in_flight -= 1

    def rate(self, since, until):
        ok = len([t for t in self.sent if since <= t < until])
        no = len([t for t in self.refused if since <= t < until])
        return (ok - no) / (until - since), no / max(1, ok)

    def most_in(self, seconds, since=0.0):
        sent = sorted(t for t in self.sent if t >= since)
        most, first = 0, 0
        for last, at in enumerate(sent):
            while at - sent[first] >= seconds:
                first += 1
            most = max(most, last - first + 1)
        return most


def end(tasks):
    for task in tasks:
        task.cancel()


@pytest.mark.parametrize("kind", ["bucket-1s", "window-1s", "bucket-60s", "window-60s"])
def test_three_workers_use_one_configured_limit(kind):
    """As evenly as one would."""

    async def work():
        world = World(Limits(rpm=6000), kind=kind, rpm=6000.0)
        tasks = [task for n in (1, 2, 3) for task in world.worker(n)[0]]
        await asyncio.sleep(120)
        end(tasks)
        return world

    world = clock.run(work())
    rate, refused = world.rate(20, 120)
    assert rate > 0.97 * 100
    assert refused <= 0.005
    assert world.most_in(1.0, since=40) <= 100 * 1.03
    assert min(world.by_worker.values()) > 0.25 * sum(world.by_worker.values())


def test_the_start_of_three_workers_is_no_burst():
    """With enough slots for all, the limit alone paces them from the first second on."""

    async def work():
        world = World(Limits(rpm=6000, concurrency=400), kind="window-1s", rpm=6000.0)
        tasks = [task for n in (1, 2, 3) for task in world.worker(n)[0]]
        await asyncio.sleep(15)
        end(tasks)
        return world

    world = clock.run(work())
    assert world.rate(1, 15)[0] > 0.95 * 100
    assert world.most_in(1.0) <= 100 * 1.1


def after(seconds, *acts):
    """The world and its workers, some seconds after each act on three workers with 6,000 requests a minute."""

    async def work():
        world = World(Limits(rpm=6000), rpm=6000.0)
        workers = {n: world.worker(n) for n in (1, 2, 3)}
        await asyncio.sleep(60)
        for act in acts:
            await act(world, workers)
            await asyncio.sleep(seconds)
        end([task for tasks, *_ in workers.values() for task in tasks])
        return world, workers

    return clock.run(work())


async def dies(world, workers):
    """And is restarted, as Ray does."""
    end(workers[1][0])
    await asyncio.sleep(5)
    workers[1] = world.worker(1, attempt=2)


async def sleeps(world, workers):
    """Its calls get nowhere for a minute, and it sends nothing that it may not."""
    world.cut.add(1)
    await asyncio.sleep(60)
    world.cut.discard(1)


async def hub_dies(world, _workers):
    world.hub = None
    await asyncio.sleep(5)
    world.hub = world.new_hub()


@pytest.mark.parametrize("act", [dies, sleeps, hub_dies])
def test_a_death_neither_wastes_the_limit_nor_exceeds_it(act):
    """Less than a second is lost with a worker; a hub that is gone is worked without."""
    world, workers = after(60, act)
    assert len(world.refused) / len(world.sent) < 0.005
    assert world.most_in(1.0, since=40) <= 100 * 1.1
    ended = 180 if act is sleeps else 125
    assert world.rate(ended - 55, ended - 1)[0] > 0.97 * 100
    if act is dies:
        assert (
            world.rate(62, 65)[0] > 0.8 * 100
        )  # The rest is left to the dead worker, which may only sleep.
        assert not workers[2][2].alone
    if act is hub_dies:
        assert 0.3 * 100 < world.rate(62.5, 65)[0] < 0.7 * 100


def test_an_unknown_limit_is_learned_by_all_workers_together():
    """A refusal to one slows them all."""

    async def work():
        world = World(Limits(), rpm=1200.0, latency=0.5)
        tasks = [task for n in (1, 2, 3) for task in world.worker(n)[0]]
        await asyncio.sleep(300)
        end(tasks)
        return world

    world = clock.run(work())
    rate, refused = world.rate(60, 300)
    assert rate > 0.95 * 20
    assert refused < 0.04


def test_slots_are_shared_and_none_stays_empty():
    """One limit for all: 24 in flight of answers that take 0.2 s are nearly 120 a second."""

    async def work():
        world = World(Limits(concurrency=24), rpm=600_000.0, latency=0.2)
        tasks = [task for n in (1, 2, 3) for task in world.worker(n)[0]]
        await asyncio.sleep(60)
        end(tasks)
        return world

    world = clock.run(work())
    assert world.most_in_flight <= 24
    assert world.rate(10, 60)[0] > 0.75 * 24 / (0.2 * math.exp(0.125))


def test_a_later_attempt_at_a_shard_stops_the_one_before():
    """Which may only have slept: two of them would send everything twice."""

    async def work():
        time = asyncio.get_running_loop().time
        hub = Hub(lambda _model: Limits(), Limits(), 3600.0, time)

        async def call(turn):
            return hub.report(turn)

        stopped = {1: [], 2: []}
        links = {n: Link(call, 7, n, lambda n=n: stopped[n].append(n), clock=time) for n in (1, 2)}
        running = [asyncio.create_task(link.run()) for link in links.values()]
        await asyncio.sleep(1)
        end(running)
        return stopped

    assert clock.run(work()) == {1: [1], 2: []}


@pytest.mark.parametrize("seconds", [6, 12, 25])
@pytest.mark.parametrize("overtaken", [False, True])
def test_no_request_waits_for_ever_after_a_hub_stalled(seconds, overtaken):
    """It then gets all calls of the meantime, whose replies nobody waits for."""

    async def work():
        time, rng = asyncio.get_running_loop().time, random.Random(seconds)
        hub = Hub(lambda _model: Limits(rpm=6000), Limits(), 3600.0, time)
        goes = asyncio.Event()
        goes.set()
        calls = set()

        async def answered(turn):
            await goes.wait()
            await asyncio.sleep(rng.uniform(0.001, 0.3 if overtaken else 0.001))
            return hub.report(turn)

        async def call(turn):
            task = asyncio.create_task(answered(turn))
            calls.add(task)
            return await asyncio.shield(task)

        async def send(gate):
            for _time in range(40):
                ticket = await gate.enter(100.0)
                await asyncio.sleep(rng.uniform(0.1, 0.9))
                gate.leave(ticket, ExchangeOutcome("answered", 0.5, 100.0))

        links = [Link(call, n, n, lambda: None, clock=time) for n in (1, 2)]
        running = [asyncio.create_task(link.run()) for link in links]
        senders = [asyncio.create_task(send(link.gate("m"))) for link in links for _ in range(20)]
        await asyncio.sleep(5)
        goes.clear()
        await asyncio.sleep(seconds)
        goes.set()
        await asyncio.sleep(120)
        left = sum(not task.done() for task in senders)
        end([*senders, *running, *calls])
        return left

    assert clock.run(work()) == 0
