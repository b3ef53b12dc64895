"""Which model takes a row of a split: one that has a free slot and did not just fail it."""

import time

import pytest

from batcher.errors import NoAnswer
from batcher.records import Outcome, Prompt
from batcher.runtime.channel import ModelChannel
from batcher.runtime.health import Health
from batcher.runtime.routes import Split
from batcher.runtime.row_queue import MemoryBudget
from batcher.send.attempt import SendChannel
from batcher.send.dialect import RepairState
from batcher.send.estimate import TokenEstimator
from batcher.send.sender import FailedAttempt
from tests.support.made import request, result


class Gate:
    """A gate that is open or not."""

    def __init__(self):
        self.open = True
        self.most = 1e9

    def free(self, tokens, _most=None):
        return self.open and tokens <= self.most


class World:
    """Models a and b, and one queue."""

    def __init__(self):
        self.channels = {}
        self.split = Split(self.channels, None, lambda _channel: None)
        self.memory = MemoryBudget()
        self.queue = self.split.queue(self.memory)
        self.channels |= {name: self.channel(name, place) for place, name in enumerate("ab")}
        self.a, self.b = self.channels.values()

    def channel(self, model, place):
        sending = SendChannel(Gate(), TokenEstimator(), None, {}, None, None)
        return ModelChannel(model, place, sending, self.queue, self.memory, Health())

    def put(self, *rows, fields=b"{}"):
        for row in rows:
            self.queue.put(Prompt(row, str(row), fields))

    def pick(self, channel):
        picked = self.split.pick(channel)
        return None if picked is None else picked.row

    def fail(self, row, model, wait):
        failed = FailedAttempt(
            request(row=row, model=model), NoAnswer("x"), [], 0.0, wait, RepairState()
        )
        assert self.split.retry_elsewhere(Prompt(row, str(row)), failed)

    def passes_on(self, channel, status):
        """Whether a row goes to another model after this result."""
        return (
            self.split.next_queue(channel, None, result(status, model=channel.model)) is not None
        )


@pytest.fixture
def world():
    return World()


def test_rows_are_taken_in_their_order_by_whichever_model_asks(world):
    world.put(0, 1, 2)
    assert [world.pick(channel) for channel in (world.a, world.b, world.a, world.b)] == [
        0,
        1,
        2,
        None,
    ]


def test_a_model_without_a_free_slot_takes_nothing(world):
    world.put(0)
    world.a.limiter.open = False
    assert world.pick(world.a) is None
    assert world.pick(world.b) == 0


def test_a_row_that_does_not_fit_is_passed_over(world):
    """The next one that does goes before it."""
    world.put(0, fields=b"x" * 4000)
    world.put(1)
    world.a.limiter.most = 500
    assert world.pick(world.a) == 1
    assert world.pick(world.b) == 0


def test_large_rows_wait_for_memory(world):
    large = b"x" * (100 << 20)
    world.put(0, 1, fields=large)
    assert world.pick(world.a) == 0
    assert world.pick(world.b) is None
    world.a.release(Prompt(0, "0", large))
    assert world.pick(world.b) == 1


def test_a_row_that_failed_may_go_to_another_model_at_once_and_to_the_same_after_its_wait(world):
    world.fail(0, "a", 60.0)
    assert world.pick(world.a) is None
    assert world.pick(world.b) == 0
    world.fail(1, "a", 0.0)
    time.sleep(0.001)
    assert world.pick(world.a) == 1


def test_how_a_row_failed_is_told_once_when_it_is_sent_again(world):
    world.fail(0, "a", 0.0)
    before = world.split.last_failure(Prompt(0, "0"))
    assert before is not None
    assert before.request.model == "a"
    assert world.split.last_failure(Prompt(0, "0")) is None


def test_samples_of_a_row_fail_apart(world):
    world.fail(0, "a", 60.0)
    assert world.split.last_failure(Prompt(0, "0", sample=1)) is None
    assert [prompt.row for prompt, _again in world.split.unsent()] == [0]


FATAL = ["auth", "quota", "not_found"]


@pytest.mark.parametrize("status", list(Outcome))
def test_a_row_passes_on_where_its_model_refuses_all_rows(world, status):
    assert world.passes_on(world.a, status) == (status in FATAL)


def test_a_row_does_not_come_back_to_a_model_that_refuses_it(world):
    assert world.passes_on(world.a, Outcome.AUTH)
    world.put(0)
    assert world.pick(world.a) is None
    assert world.pick(world.b) == 0


def test_a_row_that_every_model_refuses_ends(world):
    assert world.passes_on(world.a, Outcome.AUTH)
    assert not world.passes_on(world.b, Outcome.QUOTA)
    world.put(0)  # It is another matter when it is asked again.
    assert world.pick(world.a) == 0


def test_what_was_refused_is_forgotten_once_the_row_ended(world):
    assert world.passes_on(world.a, Outcome.AUTH)
    assert not world.passes_on(world.b, Outcome.OK)
    world.put(0)
    assert world.pick(world.a) == 0


def test_a_row_that_only_a_closed_model_could_take_ends(world):
    world.b.health.close(result(Outcome.AUTH, model="b"))
    assert not world.passes_on(world.a, Outcome.AUTH)


def test_a_row_whose_other_models_closed_meanwhile_goes_back_to_the_one_that_refused(world):
    assert world.passes_on(world.a, Outcome.AUTH)
    world.b.health.close(result(Outcome.AUTH, model="b"))
    world.put(0)
    assert world.pick(world.a) == 0
