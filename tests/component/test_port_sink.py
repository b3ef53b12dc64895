"""What every `Sink` promises to an engine, tried on each implementation."""

import asyncio

import pytest

from batcher.live.summary import Summary
from batcher.records import Outcome, Prompt
from batcher.runtime.sink import ObservedSink, ResultSink
from tests.support.made import attempt, result


class FakeJournal:
    """A journal in memory that is full for as many looks as it is told."""

    def __init__(self):
        self.results = []
        self.looks = 0

    def put(self, put):
        self.results.append(put)

    @property
    def full(self):
        self.looks -= 1
        return self.looks >= 0


class World:
    """One sink and all that can be seen behind it."""

    def __init__(self, kind):
        self.kind = kind
        self.emitted, self.observed = [], []
        self.order = []
        self.journal = None if kind == "without a journal" else FakeJournal()
        self.summary = Summary(lambda: 0.0, ["m"])
        self.inner = ResultSink(self.summary, self.journal, self.emit)
        self.sink = self.inner
        if kind == "observed":
            self.sink = ObservedSink(self.inner, self.observed.append)

    async def emit(self, prompt, put):
        self.emitted.append((prompt.row, put.status, self.summary.rows))

    def put(self, *puts):
        async def work():
            for put, last in puts:
                await self.sink.put(put, Prompt(put.row, str(put.row)), last=last)

        asyncio.run(work())


@pytest.fixture(params=["with a journal", "without a journal", "observed"])
def world(request):
    return World(request.param)


def test_every_result_is_counted_and_stored_in_the_order_of_put(world):
    puts = [result(row=row) for row in (3, 1, 2)]
    world.put(*((put, True) for put in puts))
    assert world.summary.models["m"].outcomes == {Outcome.OK: 3}
    if world.journal is not None:
        assert world.journal.results == puts
    assert world.observed == (puts if world.kind == "observed" else [])


def test_only_the_last_result_of_a_row_is_emitted(world):
    world.put((result(Outcome.AUTH), False), (result(), True))
    assert [status for _row, status, _n in world.emitted] == [Outcome.OK]
    assert world.summary.rows == 2


def test_a_result_is_stored_and_counted_before_it_is_emitted(world):
    world.put((result(), True))
    assert [counted for _row, _status, counted in world.emitted] == [1]


def test_all_ok_looks_at_the_last_results_only(world):
    world.put((result(Outcome.AUTH), False), (result(), True))
    assert world.inner.all_ok
    world.put((result(Outcome.INVALID, row=1), True))
    assert not world.inner.all_ok


def test_attempts_without_a_result_count_as_requests_and_not_as_a_row(world):
    world.sink.put_pending("m", [attempt(Outcome.RATE_LIMITED, http_status=429), attempt()])
    of = world.summary.models["m"]
    assert (of.rows, of.requests, of.answered_429) == (0, 2, 1)


def test_an_error_of_the_emitter_reaches_the_engine(world):
    async def fails(_prompt, _put):
        raise BrokenPipeError

    world.inner = world.sink = ResultSink(world.summary, world.journal, fails)
    if world.kind == "observed":
        world.sink = ObservedSink(world.inner, world.observed.append)
    with pytest.raises(BrokenPipeError):
        world.put((result(), True))
    assert world.summary.rows == 1


@pytest.mark.parametrize("wait", ["put", "room"])
def test_put_and_room_return_once_the_journal_can_take_more(world, monkeypatch, wait):
    """So that a slow disk slows the sending, and nothing piles up in memory."""
    monkeypatch.setattr("batcher.runtime.sink._POLL_SECONDS", 0.0)
    if world.journal is not None:
        world.journal.looks = 3
    if wait == "put":
        world.put((result(), True))
    else:
        asyncio.run(world.sink.room())
    if world.journal is not None:
        assert world.journal.looks < 0
