"""A server that meters, and a client that sends without end, in virtual time."""

from __future__ import annotations

import asyncio
import math
import random
from typing import Literal, NamedTuple

from batcher.job.job import Limits
from batcher.limits.gate import Gate, KeyGate
from batcher.limits.headers import rate_limits
from batcher.limits.port import ExchangeOutcome
from batcher.simulate.meters import Charge, MeterKind, ModelMeter
from tests.support import clock

MEDIAN_S, SIGMA = 2.0, math.log(10) / 2.326  # lognormal with a p99 of 20 s
PROMPT, ANSWER, MOST = 100, 50, 400  # tokens: an answer is exponential around ANSWER


class Share(NamedTuple):
    """What was reached after the warm-up."""

    used: float
    refused: float


class Case(NamedTuple):
    """One cell of the table; `limit` is units a minute."""

    kind: MeterKind
    knows: Literal["configured", "headers", "nothing"]
    unit: Literal["requests", "tokens"] = "requests"
    charge: Charge = "output"
    limit: float = 600.0
    seconds: float = 3600.0
    warm_up: float = 120.0


async def _model(case: Case, gate: Gate, rng: random.Random) -> Share:
    loop = asyncio.get_running_loop()
    by_requests = case.unit == "requests"
    meter = ModelMeter(
        case.kind,
        case.charge,
        case.limit if by_requests else None,
        None if by_requests else case.limit,
    )
    end = case.warm_up + case.seconds
    charged, sent, refused = 0.0, 0, 0

    async def worker() -> None:
        nonlocal charged, sent, refused
        while loop.time() < end:
            ticket = await gate.enter(PROMPT + ANSWER, PROMPT + MOST)
            now = loop.time()
            counts = case.warm_up <= now < end
            answer = min(MOST, max(1, int(rng.expovariate(1 / ANSWER))))
            # Refused within 10 to 30 ms, as gateways do.
            no = meter.admit(PROMPT, MOST, now + 1000.0)
            advertised = meter.headers(now + 1000.0) if case.knows == "headers" else {}
            sent += counts
            if no is not None:
                refused += counts
                await asyncio.sleep(rng.uniform(0.01, 0.03))
                wait = no.wait_s if case.knows == "headers" else None
                gate.leave(
                    ticket,
                    ExchangeOutcome(
                        "refused", 0.0, 0.0, wait, no.what, rate_limits(advertised, 0.0)
                    ),
                )
                continue
            used = PROMPT + answer
            if counts:
                up_front = case.charge == "max-tokens" and not by_requests
                charged += 1 if by_requests else PROMPT + MOST if up_front else used
            latency = MEDIAN_S * math.exp(SIGMA * rng.gauss(0, 1))
            await asyncio.sleep(latency)
            meter.settle(used, loop.time() + 1000.0)
            gate.leave(
                ticket,
                ExchangeOutcome(
                    "answered", latency, used, None, None, rate_limits(advertised, 0.0)
                ),
            )

    await clock.busy((worker() for _ in range(400)), end, gate)
    return Share(charged / (case.limit / 60 * case.seconds), refused / max(1, sent))


def reached(*cases: Case, seed: int = 1) -> list[Share]:
    """The share of its limit that each model used and the part of its requests answered 429."""

    async def all_at_once() -> list[Share]:
        time = asyncio.get_running_loop().time
        key = KeyGate(Limits(), time)
        work = []
        for number, case in enumerate(cases):
            configured = case.limit if case.knows == "configured" else None
            limit = Limits(rpm=configured) if case.unit == "requests" else Limits(tpm=configured)
            work.append(_model(case, Gate(limit, key, time), random.Random(seed + number)))
        return await asyncio.gather(*work)

    return clock.run(all_at_once())
