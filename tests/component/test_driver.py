"""A run on a cluster that is not there: shards out, results in."""

import asyncio
from types import SimpleNamespace

import pytest

from batcher.cluster.driver import ClusterBackend
from batcher.cluster.worker import SEGMENTS, ShardEnded
from batcher.errors import JobError, OutputError, RunStopped
from batcher.job.endpoint import Endpoint
from batcher.live.summary import Summary
from batcher.money.prices import Prices
from batcher.records import Outcome
from batcher.runtime.backend import Work
from tests.support.job_folder import URL, JobFolder
from tests.support.made import result

ROWS = [{"prompt": f"p{n}"} for n in range(12)]


class Cluster:
    """Answers each shard at once, as it is told to."""

    token = "t"

    def __init__(self, workers=2, done=None):
        self.workers = workers
        self.shards, self.calls = [], []
        self.done = done or answered

    async def run(self, _job, shard):
        self.shards.append(shard)
        return self.done(shard)

    def begin(self, _folder, _spent):
        self.calls.append("begin")

    async def status(self):
        return None

    async def end(self):
        self.calls.append("end")

    async def stop(self):
        self.calls.append("stop")


def rows_of(shard):
    return [row.prompt.row for row in shard.rows]


def answered(shard):
    return ShardEnded([result(row=row) for row in rows_of(shard)])


class World:
    """A job and its driver."""

    def __init__(self, at, cluster, *, emit=None, **asked):
        self.folder = JobFolder(at, ROWS, on="ray", **asked)
        self.run_id = self.folder.resume().run
        self.cluster, self.asked, self.emit = cluster, asked, emit
        self.summary = Summary(lambda: 0.0, ["m"])

    def run(self):
        work = Work(
            self.folder.job(), Endpoint(URL, URL), self.folder.plan, self.folder.folder, self.run_id,
            len(ROWS), self.summary, Prices({}), emit=self.emit,
        )  # fmt: skip
        self.backend = ClusterBackend(self.cluster)
        return asyncio.run(self.backend.run(work))


def test_rows_go_out_in_shards_of_their_order_and_each_has_segments_of_its_own(tmp_path):
    world = World(tmp_path, Cluster(), shards=5)
    ended = world.run()
    assert [rows_of(s) for s in world.cluster.shards] == [[n, n + 1, n + 2] for n in (0, 3, 6, 9)]
    assert [s.first for s in world.cluster.shards] == [n * SEGMENTS + 1 for n in (1, 2, 3, 4)]
    assert (world.summary.rows, ended.all_ok, ended.stopped) == (12, True, None)
    assert world.cluster.calls == ["begin", "end"]


def test_segments_begin_behind_those_that_there_are(tmp_path):
    world = World(tmp_path, Cluster())
    (world.folder.folder / f"journal-{SEGMENTS + 5:06}.jsonl").touch()
    world.run()
    assert world.cluster.shards[0].first == 2 * SEGMENTS + 1


def test_a_row_that_is_told_of_twice_counts_once_and_a_strange_one_not_at_all(tmp_path):
    def twice(shard):
        ended = [result(row=row) for row in rows_of(shard)]
        return ShardEnded([*ended, *ended, result(row=99)])

    world = World(tmp_path, Cluster(done=twice))
    world.run()
    assert world.summary.rows == 12


def test_whoever_wants_rows_gets_each_with_its_prompt(tmp_path):
    seen = []

    async def emit(prompt, result):
        seen.append((prompt.row, result.row))

    World(tmp_path, Cluster(), emit=emit).run()
    assert seen == [(n, n) for n in range(12)]


@pytest.mark.parametrize(("route", "all_ok"), [("each", False), ("fallback", True)])
def test_a_row_that_is_not_ok_is_told_where_each_row_must_be(tmp_path, route, all_ok):
    def refused(shard):
        return ShardEnded([result(Outcome.REFUSED, row) for row in rows_of(shard)])

    assert (
        World(tmp_path, Cluster(done=refused), route=route, models=["m", "n"]).run().all_ok
        == all_ok
    )


STOPS = [
    # (why the first shard ended, what it had answered, what the run ends with)
    (RunStopped("spent"), True, RunStopped),
    (JobError("no key"), False, JobError),
    (JobError("no key"), True, RunStopped),  # It can be continued.
]


@pytest.mark.parametrize(("why", "answers", "kind"), STOPS)
def test_a_shard_that_was_stopped_stops_the_run(tmp_path, why, answers, kind):
    def stopped(shard):
        outcome = Outcome.OK if answers else Outcome.AUTH
        return ShardEnded([result(outcome, rows_of(shard)[0])], why, "m: closed")

    world = World(tmp_path, Cluster(workers=1, done=stopped), shards=12)
    ended = world.run()
    assert type(ended.stopped) is kind
    assert (str(ended.stopped), ended.given_up) == (str(why), "m: closed")
    assert len(world.cluster.shards) < 12


def test_a_journal_that_cannot_be_written_ends_the_run_at_once(tmp_path):
    world = World(tmp_path, Cluster(done=lambda _shard: ShardEnded((), OutputError("full"))))
    with pytest.raises(OutputError, match="full"):
        world.run()
    assert world.cluster.calls[-1] == "end"


def test_what_the_hub_tells_at_the_end_is_heeded(tmp_path):
    line = SimpleNamespace(
        in_flight=2, waiting=0, retrying=3, waits_for="", longest=None, share=0.5, waited={}
    )
    told = SimpleNamespace(
        ended=[], models={"m": line}, share=0.25, budget=None, why=RunStopped("over")
    )

    class Told(Cluster):
        async def end(self):
            return told

    world = World(tmp_path, Told())
    ended = world.run()
    assert world.backend.snapshot()["m"][:3] == (2, 3, "retry")
    assert (world.summary.models["m"].limit_used, world.summary.total_limit_used) == (0.5, 0.25)
    assert str(ended.stopped) == "over"
