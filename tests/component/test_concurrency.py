"""How many may be in flight, against servers of different temper, in virtual time."""

import asyncio

import pytest

from batcher.job.job import Limits
from batcher.limits.gate import Gate, KeyGate
from batcher.limits.port import ExchangeOutcome
from tests.support import clock


def against(serve, seconds=300.0, workers=400):
    """(answered, overloaded, the limit at each second) of a gate that finds its concurrency."""

    async def work():
        time = asyncio.get_running_loop().time
        gate = Gate(Limits(), KeyGate(Limits(), time), time)
        answered = overloaded = 0

        async def worker():
            nonlocal answered, overloaded
            while time() < seconds:
                ticket = await gate.enter(1.0)
                began = time()
                how = await serve(time)
                answered += how == "answered"
                overloaded += how == "overloaded"
                gate.leave(ticket, ExchangeOutcome(how, time() - began, 1.0))

        tasks = [asyncio.create_task(worker()) for _ in range(workers)]
        limits = []
        while time() < seconds:
            await asyncio.sleep(1.0)
            limits.append(gate.max_in_flight)
        gate.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return answered, overloaded, limits

    return clock.run(work())


def queueing(count, latency):
    """Serves so many at once; the others stand in its queue."""
    slots = asyncio.Semaphore(count)

    async def serve(_time):
        async with slots:
            await asyncio.sleep(latency)
        return "answered"

    return serve


def refusing(count, latency):
    """Serves so many at once; the others are answered 503."""
    in_flight = 0

    async def serve(_time):
        nonlocal in_flight
        if in_flight >= count:
            await asyncio.sleep(0.01)
            return "overloaded"
        in_flight += 1
        try:
            await asyncio.sleep(latency)
        finally:
            in_flight -= 1
        return "answered"

    return serve


def test_it_grows_while_that_brings_more():
    """Three seconds an answer need hundreds in flight."""
    _, _, limits = against(queueing(10_000, 3.0), seconds=120.0)
    assert limits[-1] >= 256


def test_it_stops_where_the_server_only_queues():
    """The same throughput with a tenth of the wait."""
    answered, _, limits = against(queueing(40, 0.5))
    assert answered >= 0.9 * 300 * 40 / 0.5
    assert max(limits[60:]) <= 100


def test_a_server_of_so_many_places_refuses_little():
    """Doubling again after each cut once had most requests answered 503."""
    answered, overloaded, limits = against(refusing(50, 0.5))
    assert overloaded <= 0.03 * answered
    assert answered >= 0.75 * 300 * 50 / 0.5
    assert min(limits[120:]) >= 25


def test_after_an_outage_it_comes_back_to_what_was_enough():
    """Cut during a minute of 503s, it must not crawl from there."""

    async def serve(time):
        if 60.0 <= time() < 120.0:
            await asyncio.sleep(0.01)
            return "overloaded"
        await asyncio.sleep(0.5)
        return "answered"

    _, _, limits = against(serve, workers=64)
    assert limits[58] >= 64
    assert min(limits[60:120]) <= 32  # Cut; the breaker holds the rest back.
    assert max(limits[120:160]) >= 32


@pytest.mark.parametrize("every", [100, 50])
def test_a_few_overloads_at_whatever_width_are_no_reason_to_crawl(every):
    """One 503 of fifty once held a run at two in flight."""
    served = 0

    async def serve(_time):
        nonlocal served
        served += 1
        if served % every == 3:
            await asyncio.sleep(0.01)
            return "overloaded"
        await asyncio.sleep(1.0)
        return "answered"

    _, _, limits = against(serve, seconds=60.0)
    assert limits[-1] >= 128
