"""The engine with a sender of the test's own, in virtual time: which row goes where, and when a run ends."""

import asyncio

import pytest

from batcher.errors import JobError, NoAnswer, RunStopped, ServerError
from batcher.records import Outcome, Prompt
from batcher.runtime.row_queue import MemoryBudget, RowQueue
from tests.support.engine import Fails, World, ok


def refused(request, status=Outcome.AUTH, http_status=401, error="refused"):
    return ok(request, status, http_status=http_status, error=error)


async def answers(request):
    await asyncio.sleep(1.0)
    return ok(request)


@pytest.fixture
def run(monkeypatch):
    def run(world, during=None):
        return world.run(monkeypatch, during)

    return run


def test_rows_are_sent_and_answered_in_their_order(run):
    world = World(30, answers)
    engine = run(world)
    assert [row for row, _model in world.sent] == list(range(30))
    assert [row for row, *_ in world.emitted] == list(range(30))
    assert (engine.stopped, world.sink.all_ok) == (None, True)


@pytest.mark.parametrize("places", [1, 4, 16])
def test_as_many_are_in_flight_as_there_are_slots(run, places):
    world = World(200, answers, places=places)
    run(world)
    assert world.most["m"] == places


def test_one_request_goes_ahead_of_the_others(run):
    """Until it shows that the model responds, or ten seconds have passed."""
    seen = []

    async def answer(request):
        seen.append(asyncio.get_running_loop().time())
        await asyncio.sleep(3.0 if request.row == 0 else 1.0)
        return ok(request)

    run(World(9, answer, places=8))
    assert seen == [0.0] + [3.0] * 8


def test_a_first_answer_that_takes_its_time_is_not_waited_for(run):
    seen = []

    async def answer(request):
        seen.append(asyncio.get_running_loop().time())
        await asyncio.sleep(60.0)
        return ok(request)

    run(World(3, answer, places=8))
    assert seen == [0.0, 10.0, 10.0]


def test_rows_are_read_no_further_ahead_than_the_queue_holds(run):
    read = []

    async def answer(request):
        read.append(world.read - request.row)
        return await answers(request)

    world = World(3000, answer)
    run(world)
    assert 400 <= max(read) <= 400 + 2 * 200


def test_a_queue_is_full_by_rows_or_by_bytes():
    small, large = RowQueue(MemoryBudget()), RowQueue(MemoryBudget())
    for n in range(400):
        assert not small.full
        small.put(Prompt(n, str(n), b"{}"))
    assert small.full
    for n in range(32):
        assert not large.full
        large.put(Prompt(n, str(n), b" " * (1 << 20)))
    assert large.full


def test_a_slow_model_does_not_hold_up_a_fast_one(run):
    done = {}

    async def answer(request):
        await asyncio.sleep(100.0 if request.model == "slow" else 0.1)
        done[request.model] = asyncio.get_running_loop().time()
        return ok(request)

    world = World(1500, answer, models=("slow", "fast"), places=4)
    run(world)
    assert done["fast"] < 200.0 < done["slow"]
    assert world.statuses == {"slow": {"ok": 1500}, "fast": {"ok": 1500}}
    assert len({*world.sent}) == len(world.sent) == 3000


def test_rows_that_name_their_own_models_open_them_on_the_way(run):
    rows = [Prompt(n, str(n), b"{}", model="ab"[n % 2]) for n in range(1000)]
    world = World(rows, answers, models=(), places=2)
    run(world)
    assert world.statuses == {"a": {"ok": 500}, "b": {"ok": 500}}


def test_samples_of_a_row_are_sent_each(run):
    world = World(5, answers, samples=3)
    run(world)
    assert [row for row, _model in world.sent] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]


def test_a_row_that_cannot_be_read_ends_unsent_for_every_model(run):
    rows = [Prompt(0, "0", error="line 1 is no JSON"), Prompt(1, "1", b"{}")]
    world = World(rows, answers, models=("a", "b"))
    run(world)
    assert world.statuses == {m: {"unreadable": 1, "ok": 1} for m in "ab"}
    assert not world.sink.all_ok


class Dedupe:
    """Holds back rows with an odd number."""

    def __init__(self):
        self.looked, self.asked = [], []

    def look(self, prompt):
        self.looked.append(prompt.row)

    def fresh(self, prompt, slot):
        self.asked.append((prompt.row, slot))
        return prompt.row % 2 == 0


def test_requests_that_equal_another_one_are_not_sent(run):
    dedupe = Dedupe()
    world = World(6, answers, dedupe=dedupe)
    run(world)
    assert [row for row, _model in world.sent] == [0, 2, 4]
    assert dedupe.looked == list(range(6))
    assert dedupe.asked == [(row, 0) for row in range(6)]


def test_each_request_is_shown_to_the_dedupe_once_even_where_the_input_is_read_twice(run):
    async def answer(request):
        await asyncio.sleep(9.0 if request.model == "slow" else 0.1)
        return ok(request)

    dedupe = Dedupe()
    world = World(1500, answer, models=("slow", "fast"), places=4, dedupe=dedupe)
    run(world)
    assert len(dedupe.asked) == len({*dedupe.asked}) == 3000
    assert len(world.sent) == 1500


# Retries


def test_a_failed_row_is_tried_again_while_others_go_on(run):
    tries = []

    async def answer(request):
        tries.append(request.row)
        await asyncio.sleep(1.0)
        if request.row == 1 and tries.count(1) < 3:
            raise Fails(ServerError("busy", status=503), wait=2.5)
        return ok(request)

    world = World(6, answer)
    engine = run(world)
    assert tries.index(2) < len(tries) - tries[::-1].index(1) - 1
    assert tries.count(1) == 3
    assert (world.statuses, engine.stopped) == ({"m": {"ok": 6}}, None)


def test_a_worker_waits_when_very_many_rows_wait_for_a_retry(run):
    async def answer(request):
        if world.summary.rows:
            raise Fails(ServerError("busy", status=503), wait=1000.0)
        return ok(request)

    world = World(100, answer, places=4)

    async def during(engine):
        await asyncio.sleep(500.0)
        [status] = engine.snapshot().values()
        assert status.waiting_for == "retry"
        assert status.waiting <= 2 * 4 + 4
        engine.stop()

    run(world, during)
    assert len(world.sent) <= 1 + 2 * 4 + 4


# Routes


def test_a_fallback_asks_the_next_model_where_one_did_not_answer(run):
    async def answer(request):
        await asyncio.sleep(1.0)
        return ok(
            request, Outcome.OK if request.model != "a" or request.row % 2 else Outcome.REFUSED
        )

    world = World(6, answer, models=("a", "b", "c"), route="fallback")
    run(world)
    assert world.statuses == {"a": {"ok": 3, "refused": 3}, "b": {"ok": 3}, "c": {}}
    assert sorted(world.emitted) == [(n, "a" if n % 2 else "b", "ok") for n in range(6)]
    assert world.sink.all_ok


def test_a_row_that_no_model_of_a_fallback_answers_keeps_the_last_result(run):
    async def answer(request):
        return ok(request, Outcome.INVALID)

    world = World(2, answer, models=("a", "b"), route="fallback")
    run(world)
    assert world.emitted == [(0, "b", "invalid"), (1, "b", "invalid")]
    assert not world.sink.all_ok


def test_a_fallback_waits_while_the_next_model_is_behind(run):
    async def answer(request):
        await asyncio.sleep(0.0 if request.model == "a" else 10.0)
        return ok(request, Outcome.REFUSED if request.model == "a" else Outcome.OK)

    world = World(1200, answer, models=("a", "b"), route="fallback", places=2)

    async def during(engine):
        await asyncio.sleep(1.0)
        assert 400 <= sent_to(world, "a") <= 410

    run(world, during)
    assert world.statuses == {"a": {"refused": 1200}, "b": {"ok": 1200}}


def sent_to(world, model):
    return sum(to == model for _row, to in world.sent)


def test_a_split_gives_each_row_to_whichever_model_is_free(run):
    async def answer(request):
        await asyncio.sleep(9.0 if request.model == "slow" else 1.0)
        return ok(request)

    world = World(100, answer, models=("slow", "fast"), route="split", places=2)
    run(world)
    assert sorted(row for row, _model in world.sent) == list(range(100))
    assert 5 <= sent_to(world, "slow") <= 25


def test_a_row_of_a_split_that_fails_goes_to_another_model(run):
    async def answer(request):
        await asyncio.sleep(1.0)
        if request.model == "a":
            raise Fails(NoAnswer("lost"), wait=60.0)
        return ok(request)

    world = World(20, answer, models=("a", "b"), route="split")
    engine = run(world)
    assert (world.statuses["b"], engine.stopped) == ({"ok": 20}, None)


def test_the_rows_of_a_closed_model_of_a_split_go_to_the_others(run):
    async def answer(request):
        await asyncio.sleep(1.0)
        return refused(request) if request.model == "a" else ok(request)

    world = World(50, answer, models=("a", "b"), route="split", places=2)
    engine = run(world)
    assert sorted(row for row, _model, status in world.emitted if status == "ok") == list(
        range(50)
    )
    assert sent_to(world, "a") == 3
    assert (engine.stopped, "refused" in engine.closed) == (None, True)


# Stops


def test_a_stop_sends_nothing_new_and_waits_for_what_is_in_flight(run):
    world = World(100, answers, places=4)

    async def during(engine):
        await asyncio.sleep(5.5)
        engine.stop(why)

    why = RunStopped("enough")
    engine = run(world, during)
    assert engine.stopped is why
    assert world.statuses == {"m": {"ok": len(world.sent)}}
    assert len(world.sent) == 1 + 4 * 5


def test_a_stop_ends_the_wait_for_a_retry_and_counts_what_was_tried(run):
    async def answer(request):
        raise Fails(ServerError("busy", status=503), wait=1e3)

    world = World(1, answer)

    async def during(engine):
        await asyncio.sleep(2.0)
        engine.stop()

    run(world, during)
    of = world.summary.models["m"]
    assert (of.rows, of.requests) == (0, 1)


@pytest.mark.parametrize("route", ["fallback", "split"])
def test_a_stop_ends_a_run_whatever_its_route(run, route):
    async def answer(request):
        await asyncio.sleep(0.0 if request.model == "a" else 1e3)
        return ok(request, Outcome.REFUSED if request.model == "a" else Outcome.OK)

    world = World(2000, answer, models=("a", "b"), route=route, places=2)

    async def during(engine):
        await asyncio.sleep(50.0)
        engine.stop()

    run(world, during)
    assert sent_to(world, "b") <= 2


def test_an_error_of_the_sink_ends_the_run(run):
    world = World(10, answers)

    async def broken(_prompt, _result):
        raise BrokenPipeError

    world.sink._emit = broken
    with pytest.raises(BrokenPipeError):
        run(world)
    assert len(world.sent) == 1


def test_a_wrong_address_stops_the_run_with_what_to_write(run):
    async def answer(request):
        return refused(request, Outcome.NOT_FOUND, 404)

    world = World(10, answer)
    world.address_known, world.wrong = False, JobError("write --base-url …/v1")
    assert run(world).stopped is world.wrong
    assert len(world.sent) == 1


# Health


def test_a_run_whose_only_model_refuses_the_key_stops_after_three(run):
    async def answer(request):
        return refused(request, error="wrong key")

    world = World(100, answer, places=1)
    engine = run(world)
    assert len(world.sent) == 3
    assert isinstance(engine.stopped, JobError)
    assert "m: the gateway answers 401: wrong key — " in str(engine.stopped)


def test_rows_of_a_closed_model_fail_unsent_once_another_one_works(run):
    async def answer(request):
        await asyncio.sleep(1.0)
        return refused(request) if request.model == "a" else ok(request)

    world = World(60, answer, models=("a", "b"), places=1)
    engine = run(world)
    assert world.statuses == {"a": {"auth": 60}, "b": {"ok": 60}}
    assert sent_to(world, "a") == 3
    assert (engine.stopped, engine.closed.split(":")[0]) == (None, "a")


def test_no_row_fails_unsent_while_no_other_model_has_shown_that_it_works(run):
    """They all refuse: the run stops, and a second start has all rows but those that were sent."""

    async def answer(request):
        await asyncio.sleep(1.0 if request.model == "a" else 2.0)
        return refused(request)

    world = World(60, answer, models=("a", "b"))
    engine = run(world)
    assert isinstance(engine.stopped, JobError)
    assert world.statuses == {"a": {"auth": 3}, "b": {"auth": 3}}


def test_money_that_runs_out_leaves_the_rest_pending(run):
    async def answer(request):
        if request.row >= 5:
            return refused(request, Outcome.QUOTA, 402, "no money")
        return ok(request)

    world = World(60, answer, models=("a",))
    engine = run(world)
    assert isinstance(engine.stopped, RunStopped)
    assert world.statuses == {"a": {"ok": 5, "quota": 1}}


@pytest.mark.parametrize("saved", [True, False])
def test_nothing_more_is_sent_while_refusals_of_all_rows_are_in_doubt(run, saved):
    """Until what was sent before has shown whether the model answers."""

    async def answer(request):
        if request.row == 7:
            await asyncio.sleep(30.0)
            if saved:
                return ok(request)
        elif sent_at_doubt() and saved:
            return ok(request)
        return refused(request, Outcome.BAD_REQUEST, 400, "no such parameter")

    def sent_at_doubt():
        return asyncio.get_running_loop().time() >= 30.0

    world = World(500, answer, places=8)

    async def during(_engine):
        await asyncio.sleep(29.0)
        assert len(world.sent) <= 50 + 2 * 8

    engine = run(world, during)
    assert (len(world.sent) == 500) == saved
    assert isinstance(engine.stopped, type(None) if saved else JobError)


def test_a_model_of_which_nothing_comes_is_given_up_and_its_rows_stay(run):
    async def answer(request):
        raise Fails(NoAnswer("connection refused"), wait=5.0)

    world = World(10, answer, places=2)

    async def during(_engine):
        await asyncio.sleep(7.0)
        world.limiters["m"].silence = 60.0

    engine = run(world, during)
    assert "no answer for 60 s; the last failure: connection refused" in str(engine.stopped)
    assert world.summary.models["m"].rows < 100.0


def test_a_connection_error_that_will_not_pass_closes_a_model_at_once(run):
    async def answer(request):
        error = NoAnswer("no such host")
        error.lasting = True
        raise Fails(error)

    world = World(10, answer)
    assert "no such host" in str(run(world).stopped)
    assert (len(world.sent), world.summary.rows) == (1, 0)
