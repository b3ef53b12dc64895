"""Several workers with one budget, in virtual time: answers are lost, workers and hubs die."""

import asyncio
import random
from decimal import Decimal

import pytest

from batcher.cluster.hub import Hub
from batcher.cluster.link import Link, Unreachable
from batcher.errors import OutputError, RunStopped
from batcher.job.job import Limits
from batcher.limits.port import Closed, ExchangeOutcome
from batcher.money.budget import Amount, LocalBudget
from tests.support import clock

TOKENS = 120_000
AT_MOST = Amount(Decimal(0), 150)  # What a request may take; it takes 50 to 150.
EACH = 12  # Of a worker, at once.


@pytest.fixture(autouse=True)
def _no_threads(monkeypatch):
    async def at_once(function, *args):
        await asyncio.sleep(0.002)
        return function(*args)

    monkeypatch.setattr("batcher.money.budget.asyncio.to_thread", at_once)


class World:
    """A server that bills, a hub that may be replaced, and workers."""

    def __init__(self, seed=1, most=TOKENS):
        self.time = asyncio.get_running_loop().time
        self.rng = random.Random(seed)
        self.most = most
        self.recorded = Amount(Decimal(0), 0)
        self.billed = self.sent = 0
        self.full = False  # The disk.
        self.cut, self.deaf = set(), set()  # Whose calls, and whose answers, get nowhere.
        self.stopped = []
        self.hub = self.new_hub()

    def record(self, claimed):
        if self.full:
            raise OutputError("no space left")
        self.recorded = claimed

    def new_hub(self):
        budget = LocalBudget(None, self.most, self.recorded, self.record, clock=self.time)
        limits = Limits(rpm=60_000, concurrency=1000)
        self.budget = budget
        return Hub(lambda _model: limits, Limits(), 3600.0, self.time, budget)

    async def call(self, name, turn):
        await asyncio.sleep(self.rng.uniform(0.001, 0.01))
        if name in self.cut or self.hub is None:
            await asyncio.sleep(60)
        reply = self.hub.report(turn)
        await asyncio.sleep(self.rng.uniform(0.001, 0.01))
        if name in self.deaf:
            raise Unreachable
        return reply

    def worker(self, name, attempt=1):
        number = 10 * name + attempt
        link = Link(
            lambda turn: self.call(name, turn),
            name,
            number,
            lambda: self.stopped.append(number),
            clock=self.time,
            in_dollars=False,
        )
        tasks = [asyncio.create_task(self.send(link)) for _ in range(EACH)]
        return [*tasks, asyncio.create_task(link.run())]

    async def send(self, link):
        gate = link.gate("m")
        while True:
            try:
                hold = await link.budget.enter(AT_MOST, "m")
                try:
                    ticket = await gate.enter(100.0)
                    hold.sent()
                    took = self.rng.randint(50, 150)
                    self.billed += took
                    self.sent += 1
                    await asyncio.sleep(self.rng.uniform(0.2, 2.0))
                    hold.used(None, took)
                    gate.leave(ticket, ExchangeOutcome("answered", 1.0, took))
                finally:
                    hold.settle()
            except Closed:
                return


async def nothing(_world, _workers):
    """All goes well."""


async def dies(world, workers):
    """And is restarted, as Ray does."""
    for task in workers[1]:
        task.cancel()
    await asyncio.sleep(5)
    workers[1] = world.worker(1, attempt=2)


async def sleeps(world, _workers):
    """Its calls get nowhere for half a minute."""
    world.cut.add(1)
    await asyncio.sleep(30)
    world.cut.discard(1)


async def gets_no_replies(world, _workers):
    """The hub gets its reports, and the replies are lost, again and again."""
    for _time in range(5):
        world.deaf.add(2)
        await asyncio.sleep(0.3)
        world.deaf.discard(2)
        await asyncio.sleep(1)


async def hub_dies(world, _workers):
    world.hub = None
    await asyncio.sleep(4)
    world.hub = world.new_hub()


@pytest.mark.parametrize(
    ("act", "lost"),
    [(nothing, 0), (dies, EACH), (sleeps, 0), (gets_no_replies, 0), (hub_dies, 2 * EACH)],
)
@pytest.mark.parametrize("seed", [1])
def test_no_more_is_billed_than_the_budget_after_a_death(act, lost, seed):
    """And all of it is used, except what may have been billed and nobody can report."""

    async def work():
        world = World(seed)
        workers = {n: world.worker(n) for n in (1, 2, 3)}
        await asyncio.sleep(5)
        await act(world, workers)
        await asyncio.sleep(150)
        status = world.hub.status()
        for tasks in workers.values():
            for task in tasks:
                task.cancel()
        return world, status

    world, status = clock.run(work())
    assert world.billed <= TOKENS
    assert world.billed <= status.budget.committed.tokens <= TOKENS
    assert TOKENS - world.billed <= (lost + 1) * AT_MOST.tokens
    assert isinstance(status.why, RunStopped)
    assert "--max-total-tokens" in str(status.why)
    if not lost:
        assert status.budget.committed.tokens == world.billed
        assert status.budget.perhaps.tokens == 0
    assert {number // 10 for number in world.stopped} == {1, 2, 3}


def test_nothing_is_paid_for_that_cannot_be_recorded():
    """A full disk ends the run."""

    async def work():
        world = World()
        tasks = world.worker(1)
        await asyncio.sleep(5)
        world.full = True
        before = world.recorded
        await asyncio.sleep(60)
        for task in tasks:
            task.cancel()
        return world, before, world.hub.status()

    world, before, status = clock.run(work())
    assert world.billed <= before.tokens
    assert isinstance(status.why, OutputError)


def test_a_bill_above_its_reservation_makes_all_workers_reserve_more():
    """As without Ray, a budget is exceeded by what is in flight at the first such bill, not by each."""

    async def work():
        world = World()
        world.rng.randint = lambda _least, _most: 300
        workers = [task for n in (1, 2, 3) for task in world.worker(n)]
        await asyncio.sleep(150)
        for task in workers:
            task.cancel()
        return world

    world = clock.run(work())
    assert world.billed <= TOKENS
    assert world.billed > TOKENS - 4 * 300
