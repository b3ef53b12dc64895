"""The gate in virtual time: which request goes when, and what outcomes teach."""

import asyncio
import random

import pytest

from batcher.job.job import Limits
from batcher.limits.gate import Gate, KeyGate
from batcher.limits.headers import rate_limits
from batcher.limits.port import Closed, ExchangeOutcome
from tests.support import clock
from tests.torture import times


def a_gate(limits=None, key=None):
    time = asyncio.get_running_loop().time
    return Gate(limits or Limits(), key or KeyGate(Limits(), time), time)


async def goes(gate, outcome=None, tokens=100.0):
    """Enters, leaves at once, and returns when it was let in."""
    ticket = await gate.enter(tokens)
    gate.leave(ticket, outcome or ExchangeOutcome("answered", 0.1, tokens))
    return ticket.sent_at


def test_a_429_stops_this_model_for_the_named_time_and_no_other_model():
    """The other model of the same key goes on as if nothing had happened."""

    async def work():
        time = asyncio.get_running_loop().time
        key = KeyGate(Limits(), time)
        one, other = Gate(Limits(rpm=600), key, time), Gate(Limits(rpm=600), key, time)
        await goes(one, ExchangeOutcome("refused", retry_after=30.0))
        return await goes(one), await goes(other)

    first, second = clock.run(work())
    assert first == pytest.approx(30.0, abs=0.2)
    assert second <= 31.0


def test_after_a_pause_there_is_no_burst():
    """Or the pause would end in the next refusal."""

    async def work():
        gate = a_gate(Limits(rpm=6000))
        await goes(gate, ExchangeOutcome("refused", retry_after=10.0))
        return [await goes(gate) for _ in range(20)]

    at = clock.run(work())
    assert at[-1] - at[0] >= 19 / 100


def test_an_advertised_limit_is_kept_without_being_configured():
    """From the first answer on."""
    headers = {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
    }

    async def work():
        gate = a_gate()
        outcome = ExchangeOutcome("answered", 0.1, 100.0, headers=rate_limits(headers, 0.0))
        return [await goes(gate, outcome) for _ in range(5)]

    at = clock.run(work())
    assert at[4] - at[1] == pytest.approx(3 * 60 / (60 * 0.99), rel=0.1)


@pytest.mark.parametrize("configured", [Limits(rpm=30), Limits(rpm=600)])
def test_the_stricter_of_the_configured_and_the_advertised_limit_counts(configured):
    """A user may know better than the server, and the server better than the user."""
    headers = {"x-ratelimit-limit-requests": "120", "x-ratelimit-remaining-requests": "9"}

    async def work():
        gate = a_gate(configured)
        outcome = ExchangeOutcome("answered", 0.1, 100.0, headers=rate_limits(headers, 0.0))
        return [await goes(gate, outcome) for _ in range(9)]

    at = clock.run(work())
    rate = min(configured.rpm, 120) / 60
    assert (at[8] - at[2]) == pytest.approx(6 / rate, rel=0.15)


def test_a_limit_per_day_is_no_pace():
    """Groq's requests are counted by the day: a pace of a day's limit would be 1,440 times slow."""
    headers = {
        "x-ratelimit-limit-requests": "1000",
        "x-ratelimit-remaining-requests": "999",
        "x-ratelimit-reset-requests": "1m26.4s",
    }

    async def work():
        gate = a_gate()
        outcome = ExchangeOutcome("answered", 0.1, 100.0, headers=rate_limits(headers, 0.0))
        return [await goes(gate, outcome) for _ in range(50)]

    assert clock.run(work())[-1] < 1.0


def test_tokens_that_were_not_used_are_returned():
    """A request that was refused, or wrong, was charged nothing."""

    async def work(outcome):
        gate = a_gate(Limits(tpm=60_000))
        return [await goes(gate, outcome, tokens=1000.0) for _ in range(11)][-1]

    assert clock.run(work(ExchangeOutcome("rejected"))) < 1.0
    assert clock.run(work(ExchangeOutcome("answered", 0.1, 1000.0))) == pytest.approx(
        10.0, rel=0.1
    )
    assert clock.run(work(ExchangeOutcome("answered", 0.1, 100.0))) == pytest.approx(1.0, abs=1.0)


def test_waiting_requests_get_closed_when_the_run_stops():
    """They were not sent, and stay pending."""

    async def work():
        gate = a_gate(Limits(rpm=1))
        await goes(gate)
        waiting = asyncio.create_task(gate.enter(1))
        await asyncio.sleep(1)
        gate.close()
        with pytest.raises(Closed):
            await waiting
        with pytest.raises(Closed):
            await gate.enter(1)

    clock.run(work())


def test_a_cancelled_wait_leaves_its_place_to_the_next():
    """A second Ctrl-C must not leave a hole in the line."""

    async def work():
        gate = a_gate(Limits(rpm=60, concurrency=1))
        ticket = await gate.enter(1)
        first, second = (asyncio.create_task(gate.enter(1)) for _ in range(2))
        await asyncio.sleep(0.5)
        first.cancel()
        await asyncio.sleep(0.1)
        gate.leave(ticket, ExchangeOutcome("answered", 0.1, 1.0))
        return (await second).sent_at

    assert clock.run(work()) == pytest.approx(60 / 59.4, rel=0.05)


def test_the_line_knows_what_it_waits_for_and_for_how_long():
    """For the live view and the table at the end."""

    async def work():
        gate = a_gate(Limits(rpm=60))
        await goes(gate)
        task = asyncio.create_task(goes(gate))
        await asyncio.sleep(0.5)
        seen = [gate.waits_for]
        await task
        await goes(gate, ExchangeOutcome("refused", retry_after=5.0))
        task = asyncio.create_task(goes(gate))
        await asyncio.sleep(0.5)
        seen.append(gate.waits_for)
        await task
        return seen, gate.waited

    seen, waited = clock.run(work())
    assert seen == ["requests", "429"]
    assert waited["requests"] == pytest.approx(3.0, abs=0.2)
    assert waited["429"] == pytest.approx(5.0, abs=0.2)


def test_overloads_mean_fewer_at_once_and_429s_do_not():
    """503, 529 and timeouts mean load, once there are three; a 429 means a rate."""

    async def work(how, often):
        gate = a_gate()
        before = gate.max_in_flight
        for _ in range(often):
            await goes(gate, ExchangeOutcome(how))
        return before, gate.max_in_flight

    for how, often, part in (("overloaded", 2, 1), ("overloaded", 3, 2), ("refused", 3, 1)):
        before, after = clock.run(work(how, often))
        assert after == before // part, (how, often)


def test_a_probe_that_hangs_does_not_stop_the_others_for_ever():
    """An outage may end while the probe's connection stays silent."""

    async def work():
        gate = a_gate(Limits(concurrency=20))
        for _ in range(8):
            await goes(gate, ExchangeOutcome("failed"))
        await gate.enter(1)  # The probe; it never ends.
        return await goes(gate)

    assert clock.run(work()) == pytest.approx(31.0, abs=1.0)


async def flows(gate, seconds, refuses, latency=0.2, workers=8, wait=None):
    """(sent, answered) in the last quarter of so many seconds of a server that refuses some."""
    time = asyncio.get_running_loop().time
    sent = answered = 0

    async def worker():
        nonlocal sent, answered
        while time() < seconds:
            ticket = await gate.enter(100.0)
            counts = time() >= 0.75 * seconds
            sent += counts
            if refuses(time()):
                await asyncio.sleep(0.02)
                gate.leave(ticket, ExchangeOutcome("refused", 0.02, 0.0, wait, "requests"))
            else:
                await asyncio.sleep(latency)
                answered += counts
                gate.leave(ticket, ExchangeOutcome("answered", latency, 100.0))

    tasks = [asyncio.create_task(worker()) for _ in range(workers)]
    await asyncio.sleep(seconds)
    gate.close()
    await asyncio.gather(*tasks, return_exceptions=True)
    return sent, answered


@pytest.mark.parametrize("configured", [None, 1200.0])
@pytest.mark.parametrize("begins", [3.0, 20.0])
def test_a_refusal_early_in_a_run_is_no_verdict_on_the_minute(configured, begins):
    """Half a second of 429s once slowed a run to a tenth for minutes."""

    async def work():
        gate = a_gate(Limits(rpm=configured, concurrency=8))
        return await flows(gate, 120.0, lambda now: begins <= now < begins + 0.5, wait=6.0)

    _, answered = clock.run(work())
    per_second = answered / 30.0
    assert per_second >= (0.95 * 1200 / 60 if configured else 0.6 * 40)


@pytest.mark.parametrize("wait", [None, 0.3])
def test_refusals_that_come_at_any_rate_do_not_end_in_a_crawl(wait):
    """Gateways with many upstreams refuse one of twenty, however slowly one asks."""
    rng = random.Random(1)

    async def work():
        gate = a_gate(Limits(concurrency=16))
        return await flows(gate, 400.0, lambda _now: rng.random() < 0.05, workers=16, wait=wait)

    sent, answered = clock.run(work())
    assert answered / 100.0 >= 0.8 * 16 / 0.2
    assert answered / sent >= 0.9


def test_a_window_that_is_used_up_is_waited_out():
    """Others share the key: the headers say what remains."""

    async def work():
        gate = a_gate()
        advertised = rate_limits(
            {"x-ratelimit-limit-requests": "600", "x-ratelimit-remaining-requests": "0",
             "x-ratelimit-reset-requests": "20s"}, now=0.0,
        )  # fmt: skip
        await goes(gate, ExchangeOutcome("answered", 0.1, 100.0, headers=advertised))
        return await goes(gate)

    assert clock.run(work()) == pytest.approx(20.0, abs=0.3)


def test_a_limit_below_one_a_minute_is_no_limit():
    """A header of 1e-9 would be a wait of ages."""

    async def work():
        gate = a_gate()
        advertised = rate_limits({"x-ratelimit-limit-requests": "0.5"}, now=0.0)
        await goes(gate, ExchangeOutcome("answered", 0.1, 100.0, headers=advertised))
        return await goes(gate)

    assert clock.run(work()) < 1.0


def test_a_limit_that_is_no_longer_advertised_is_forgotten():
    """A proxy sent "1" once."""

    async def work():
        gate = a_gate()
        advertised = rate_limits({"x-ratelimit-limit-requests": "1"}, now=0.0)
        await goes(gate, ExchangeOutcome("answered", 0.1, 100.0, headers=advertised))
        for _ in range(3):
            await goes(gate)
        return [await goes(gate) for _ in range(9)]

    at = clock.run(work())
    assert at[-1] - at[0] < 1.0


def test_one_outage_of_a_whole_gateway_is_probed_once_and_not_by_every_model():
    """Eight failures and seven probes, however many models there are."""

    async def work():
        time = asyncio.get_running_loop().time
        key = KeyGate(Limits(), time)
        gates = [Gate(Limits(concurrency=10), key, time) for _ in range(3)]
        sent = [0, 0, 0]

        async def worker(n):
            while time() < 60.0:
                ticket = await gates[n].enter(1.0)
                sent[n] += 1
                await asyncio.sleep(0.05)
                gates[n].leave(ticket, ExchangeOutcome("failed"))
                await asyncio.sleep(1.0)

        tasks = [asyncio.create_task(worker(n)) for n in range(3) for _ in range(20)]
        await asyncio.sleep(60.0)
        for gate in gates:
            gate.close()
        await asyncio.gather(*tasks, return_exceptions=True)
        return sent

    sent = clock.run(work())
    assert sum(sent) <= 30 + 15  # Those in flight when it began; then eight and seven.
    assert all(n >= 11 for n in sent)  # Each model takes its turn.


def test_a_model_that_only_refuses_is_silent_after_three_minutes():
    """Or a night would pass with one probe a minute."""

    async def work():
        gate = a_gate()
        silent = []
        for at in (1.0, 100.0, 185.0, 300.0):
            await asyncio.sleep(at - asyncio.get_running_loop().time())
            ticket = await gate.enter(1.0)
            gate.leave(ticket, ExchangeOutcome("refused", 0.0, 0.0, None))
            silent.append((gate.silent(3600.0, alive=False), gate.silent(3600.0, alive=True)))
        gate.leave(await gate.enter(1.0), ExchangeOutcome("answered", 0.1, 1.0))
        silent.append((gate.silent(10.0, alive=True), gate.silent(10.0, alive=False)))
        return silent

    assert clock.run(work()) == [(0.0, 0.0), (0.0, 0.0), (180.0, 0.0), (180.0, 0.0), (0.0, 0.0)]


@pytest.mark.parametrize(
    ("how", "named", "waits"),
    [
        ("failed", None, 60.0),
        ("overloaded", None, 60.0),
        ("overloaded", 110.0, 170.0),
        ("refused", None, 180.0),
        ("refused", 110.0, 180.0),
        ("refused", 1000.0, 1060.0),
        ("overloaded", 1000.0, 180.0),
    ],
)
def test_a_model_is_silent_only_after_the_wait_that_it_named(how, named, waits):
    """A minute for failures, three for refusals, or what it named at the start and a minute."""

    async def work():
        gate = a_gate()
        time = asyncio.get_running_loop().time
        begun = None
        while time() < 1400.0:
            ticket = await gate.enter(100.0)
            gate.leave(ticket, ExchangeOutcome(how, retry_after=named if begun is None else None))
            begun = time() if begun is None else begun
            while not gate.free(100.0):
                if gate.silent(3600.0, alive=False):
                    return time() - begun
                await asyncio.sleep(0.5)
        return None

    given_up = clock.run(work())
    assert waits <= given_up <= waits + 35.0  # A probe that is under way is waited for.


async def windowed(configured, seconds, span, limit, headers, workers=40, latency=0.2):
    """Answers by a server that takes `limit` in each window of `span` seconds: (answered, refused)."""
    loop, gate = asyncio.get_running_loop(), a_gate(configured)
    window, used, answered, refused = -1, 0, 0, 0

    async def worker():
        nonlocal window, used, answered, refused
        while loop.time() < seconds:
            ticket = await gate.enter(100.0)
            if (now := int(loop.time() // span)) != window:
                window, used = now, 0
            used += 1
            advertised = rate_limits(
                headers(limit, max(0, limit - used), span - loop.time() % span), 0.0
            )
            if used > limit:
                refused += 1
                await asyncio.sleep(0.02)
                gate.leave(ticket, ExchangeOutcome("refused", headers=advertised))
                continue
            await asyncio.sleep(latency)
            answered += 1
            gate.leave(ticket, ExchangeOutcome("answered", latency, 100.0, headers=advertised))

    await clock.busy((worker() for _ in range(workers)), seconds, gate)
    return answered, refused


def headers_of(limit, left, reset):
    return {
        "x-ratelimit-limit-requests": str(limit),
        "x-ratelimit-remaining-requests": str(left),
        "x-ratelimit-reset-requests": reset if isinstance(reset, str) else f"{reset:.3f}s",
    }


@pytest.mark.parametrize("limit", [50, 300][: times(1, 2)])
@pytest.mark.parametrize("whole", [True, False], ids=["1s", "what is left of it"])
def test_a_limit_per_second_is_not_taken_for_one_per_minute(limit, whole):
    """That would be a sixtieth of what the server takes."""

    def headers(limit, left, reset):
        return headers_of(limit, left, "1s" if whole else reset)

    answered, refused = clock.run(windowed(None, 20.0, 1.0, limit, headers, workers=100))
    assert answered >= 9 * limit
    assert refused <= 0.02 * answered


@pytest.mark.parametrize("limit", [50, 300, 3000][: times(2, 3)])
def test_a_limit_per_minute_is_not_taken_for_one_per_second(limit):
    """Also where the window turns soon."""
    answered, refused = clock.run(windowed(None, 240.0, 60.0, limit, headers_of, workers=200))
    assert 3.2 * limit <= answered <= 4 * limit
    assert refused <= max(12, 0.02 * answered)


def test_a_header_of_nothing_left_is_ignored_where_answers_come_all_the_same():
    """Some servers always send it; where it is true, the window is waited out."""

    def headers(_limit, _left, _reset):
        return headers_of(600, 0, "30s")

    answered, _refused = clock.run(windowed(None, 90.0, 60.0, 1 << 30, headers))
    assert answered >= 550


@pytest.mark.parametrize(
    ("configured", "least"), [(Limits(rpm=600), 0), (Limits(rpm=600, rpm_wins=True), 550)]
)
def test_a_configured_limit_that_wins_counts_whatever_headers_say(configured, least):
    """`--rpm 600!`: a user may know better."""

    def headers(_limit, _left, _reset):
        return headers_of(60, 0, "20s")

    answered, _refused = clock.run(windowed(configured, 60.0, 60.0, 1 << 30, headers))
    assert least <= answered <= (70 if not least else 600)
