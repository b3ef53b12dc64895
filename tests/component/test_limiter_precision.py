"""An hour (some minutes of one in the short form) against servers that meter, in virtual time."""

import asyncio
import random
from statistics import fmean

import pytest

from batcher.job.job import Limits
from batcher.limits.gate import Gate, KeyGate
from batcher.limits.port import ExchangeOutcome
from tests.support import clock
from tests.support.metering import Case, reached
from tests.torture import times

KINDS = ("bucket-60s", "bucket-1s", "window-60s", "window-1s")
SECONDS = float(times(450, 3600))
BOUNDS = {"configured": (0.98, 0.005), "headers": (0.95, 0.006), "nothing": (0.90, 0.04)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("knows", BOUNDS)
def test_requests_a_minute_are_used_and_not_hit(kind, knows):
    """Configured, advertised or learned: the run reaches the limit, on every kind of meter."""
    share = reached(Case(kind, knows, seconds=SECONDS))[0]
    least, most = BOUNDS[knows]
    assert share.used >= least
    assert share.refused <= most


@pytest.mark.parametrize("unit", ["requests", "tokens"])
def test_a_flood_at_the_start_is_not_taken_for_refusals_by_chance(unit):
    """A deep bucket refuses later what it let through at first; a series of cuts is no chance."""
    limit, charge = (600.0, "output") if unit == "requests" else (300_000.0, "max-tokens")
    case = Case("bucket-60s", "nothing", unit, charge, limit, 180.0, 240.0)
    for seed in (1, 11, 21):
        share = reached(case, seed=seed)[0]
        assert share.used >= 0.98
        assert share.refused <= 0.02


# A server that counts tokens by the second and books them after the answer refuses at random when
# it is full: even a perfectly even client gets 86 % and 11 % of 429s there. See the README.
BY_CHANCE = {"bucket-1s": (0.80, 0.035), "window-1s": (0.55, 0.03)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("knows", BOUNDS)
@pytest.mark.parametrize("charge", ["output", "max-tokens"])
def test_tokens_a_minute_are_used_and_not_hit(kind, knows, charge):
    """Charged as the answer used them, or up front at their maximum."""
    limit = 300_000.0 if charge == "max-tokens" else 90_000.0
    by_chance = charge == "output" and kind in BY_CHANCE
    # Where chance has its part, a quarter of an hour of each of four seeds.
    seconds = max(900.0, SECONDS) if by_chance else SECONDS
    case = Case(kind, knows, "tokens", charge, limit, seconds, 300.0)
    shares = [reached(case, seed=seed)[0] for seed in ((1, 11, 21, 31) if by_chance else (1,))]
    least, most = BOUNDS[knows]
    if by_chance:
        least, most = BY_CHANCE[kind]
    elif (kind, knows) == ("window-1s", "nothing"):
        least = 0.85  # Ten requests fill a second: one more or less is a tenth.
    assert fmean(share.used for share in shares) >= least
    assert fmean(share.refused for share in shares) <= most


def test_two_models_with_different_limits_each_reach_theirs():
    """A limited model holds up no other."""
    small = Case("window-60s", "configured", limit=60.0, seconds=1200)
    large = Case("bucket-60s", "nothing", limit=900.0, seconds=1200)
    first, second = reached(small, large)
    assert first.used >= 0.97
    assert second.used >= 0.95


async def _outage(down: float, up: float, end: float):
    """A gateway that refuses every connection from `down` to `up`; 64 in flight."""
    loop = asyncio.get_running_loop()
    gate = Gate(Limits(concurrency=64), KeyGate(Limits(), loop.time), loop.time)
    sent = answered = 0
    rng = random.Random(1)

    async def worker():
        nonlocal sent, answered
        while loop.time() < end:
            ticket = await gate.enter(100)
            at = loop.time()
            if down <= at < up:
                sent += 1
                await asyncio.sleep(0.01)
                gate.leave(ticket, ExchangeOutcome("failed"))
                continue
            await asyncio.sleep(rng.expovariate(1.0))
            ok = not down <= loop.time() < up
            gate.leave(
                ticket,
                ExchangeOutcome("answered", 1.0, 100.0) if ok else ExchangeOutcome("failed"),
            )
            answered += at >= up and ok

    await clock.busy((worker() for _ in range(64)), end, gate)
    return sent, answered


@pytest.mark.parametrize("start", [20.0, 33.3, 47.9])
def test_an_outage_of_a_minute_costs_a_handful_of_requests(start):
    """Not one for every row: while everything fails, one at a time is sent."""
    sent, answered = clock.run(_outage(start, start + 60.0, start + 90.0))
    assert sent <= 20
    assert answered >= 500  # And afterwards it goes on as before.


async def _queue(slots: int, seconds: float):
    """A server that works at so many requests at once and queues the rest, like vLLM."""
    loop = asyncio.get_running_loop()
    gate = Gate(Limits(), KeyGate(Limits(), loop.time), loop.time)
    room = asyncio.Semaphore(slots)
    rng = random.Random(2)
    answered = 0

    async def worker():
        nonlocal answered
        while loop.time() < seconds:
            ticket = await gate.enter(100)
            began = loop.time()
            async with room:
                await asyncio.sleep(rng.lognormvariate(0.7, 0.3))
            answered += loop.time() > seconds / 2
            gate.leave(ticket, ExchangeOutcome("answered", loop.time() - began, 100.0))

    await clock.busy((worker() for _ in range(1000)), seconds, gate)
    return gate.max_in_flight, answered / (seconds / 2)


@pytest.mark.parametrize("slots", [1, 8, 140, 600])
def test_concurrency_stops_where_only_latency_grows(slots):
    """All of the throughput, and not six times the wait for it."""
    limit, rate = clock.run(_queue(slots, 200.0 if slots == 600 else 600.0))
    most = slots / 2.106  # the mean of that lognormal
    assert rate >= 0.93 * most
    assert limit <= max(40, 1.7 * slots)


async def _fair(total: float, sizes: list[float], seconds: float):
    """Models that share a key's tokens and want as many as they can get, at different sizes."""
    loop = asyncio.get_running_loop()
    key = KeyGate(Limits(tpm=total), loop.time)
    gates = [Gate(Limits(rpm=30 if n == 0 else None), key, loop.time) for n in range(len(sizes))]
    used = [0.0] * len(sizes)

    async def worker(n):
        while loop.time() < seconds:
            ticket = await gates[n].enter(sizes[n])
            await asyncio.sleep(1.0)
            used[n] += sizes[n]
            gates[n].leave(ticket, ExchangeOutcome("answered", 1.0, sizes[n]))

    await clock.busy((worker(n) for n in range(len(sizes)) for _ in range(50)), seconds, *gates)
    return [one / seconds * 60 for one in used]


def test_models_of_one_key_share_its_tokens_fairly():
    """The heavy model gets no more than the light one; a limited one leaves its part to the others."""
    limited, light, heavy = clock.run(_fair(120_000, [200.0, 100.0, 1000.0], 600.0))
    assert limited == pytest.approx(30 * 200, rel=0.1)
    assert light == pytest.approx(heavy, rel=0.05)
    assert limited + light + heavy >= 0.97 * 120_000


async def _own_and_total(own: float, total: float, seconds: float):
    """Two models of one key, one of them with a limit of its own; parts of both limits used."""
    loop = asyncio.get_running_loop()
    key = KeyGate(Limits(tpm=total), loop.time)
    gates = [Gate(Limits(tpm=own), key, loop.time), Gate(Limits(), key, loop.time)]
    used = [0.0, 0.0]
    rng = random.Random(1)

    async def worker(n):
        while loop.time() < seconds:
            ticket = await gates[n].enter(600.0)
            tokens = 450.0 + rng.expovariate(1 / 150)
            await asyncio.sleep(rng.expovariate(0.5))
            used[n] += tokens * (loop.time() >= 60.0)
            gates[n].leave(ticket, ExchangeOutcome("answered", 2.0, tokens))

    await clock.busy((worker(n) for n in (0, 1) for _ in range(100)), seconds, *gates)
    minutes = (seconds - 60.0) / 60
    return used[0] / own / minutes, sum(used) / total / minutes


def test_a_model_reaches_its_own_limit_below_that_of_the_key():
    """While it waits for its turn at the key, its own allowance must not run over."""
    own, total = clock.run(_own_and_total(30_000.0, 120_000.0, 360.0))
    assert own >= 0.95
    assert 0.97 <= total <= 1.01


async def _by_chance(part: float, seconds: float, seed: int):
    """A gateway that refuses a part of all requests, whatever the rate; answers a second at the end."""
    loop = asyncio.get_running_loop()
    gate = Gate(Limits(concurrency=64), KeyGate(Limits(), loop.time), loop.time)
    rng = random.Random(seed)
    answered = 0

    async def worker():
        nonlocal answered
        while loop.time() < seconds:
            ticket = await gate.enter(100.0)
            if rng.random() < part:
                await asyncio.sleep(0.02)
                gate.leave(ticket, ExchangeOutcome("refused"))
                continue
            await asyncio.sleep(rng.uniform(0.5, 1.0))
            answered += loop.time() >= seconds - 20.0
            gate.leave(ticket, ExchangeOutcome("answered", 0.75, 100.0))

    await clock.busy((worker() for _ in range(100)), seconds, gate)
    return answered / 20.0


@pytest.mark.parametrize("part", [0.005, 0.02, 0.05])
def test_a_few_refusals_at_whatever_rate_slow_nothing_down(part):
    """Gateways with many upstreams do that; to go slower for it would be to stand still."""
    reached = sorted(clock.run(_by_chance(part, 150.0, seed)) for seed in range(times(3, 9)))
    most = 64 / 0.75
    assert reached[len(reached) // 3] >= 0.8 * most  # Chance may spoil the first trials of one.
