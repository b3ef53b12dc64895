"""What every `Backend` promises to a run, tried on each implementation against a gateway that counts."""

import asyncio
import contextlib
import json
import threading
import time

import pytest

from batcher.cluster.backends import open_backend
from batcher.cluster.driver import ClusterBackend
from batcher.cluster.worker import owned
from batcher.errors import JobError, RunStopped
from batcher.live.summary import Summary
from batcher.money import spending
from batcher.money.account import opened
from batcher.money.prices import Prices
from batcher.plan.dedupe import Deduplicator
from batcher.runtime.backend import Work
from batcher.runtime.local import LocalBackend
from tests.support import echo
from tests.support.in_process_cluster import InProcessCluster
from tests.support.job_folder import JobFolder


@pytest.fixture
def gateway(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with echo.running() as up:
        yield up


class World:
    """A job folder, a gateway and one backend between them."""

    def __init__(self, kind, at, gateway, on=None):
        self.kind, self.gateway, self.on = kind, gateway, on
        self.jobs = JobFolder(at, [], base_url=gateway.url)
        self.emitted = []

    @contextlib.asynccontextmanager
    async def opened(self, job):
        folder = self.jobs.folder
        if self.kind == "local":
            yield LocalBackend(self.jobs.said.append)
        elif self.kind == "ray":
            async with open_backend(job, folder, self.jobs.said.append) as backend:
                yield backend
        else:
            with owned(folder) as token:
                self.cluster = InProcessCluster(job, token)
                yield ClusterBackend(self.cluster)

    def run(self, texts, *, before=lambda _backend: None, during=None, **asked):
        """Sends a prompt for each text; returns what the backend says at the end."""
        self.jobs.write([{"prompt": text} for text in texts])
        if self.on is not None:
            asked["on"] = self.on
        job = self.jobs.job(**asked)
        return asyncio.run(self._run(job, asked, before, during))

    async def _run(self, job, asked, before, during):
        async with self.opened(job) as self.backend:
            before(self.backend)
            ended = await self._send(job, asked, during)
            assert self.backend.in_flight == 0
            self.channels = self.backend.snapshot()
            return ended

    async def _send(self, job, asked, during):
        resumed = self.jobs.resume(**asked)
        summary = self.summary = Summary(time.monotonic, job.models)
        account = await opened(job, Prices(), self.jobs.folder, 0)
        rows = self.jobs.inputs.count()
        dedupe = Deduplicator(job, self.jobs.plan, self.jobs.folder, rows) if job.dedupe else None
        self.dedupe = dedupe

        async def emit(prompt, result):
            self.emitted.append((prompt.row, str(result.status)))
            if during is not None:
                during(self.backend)

        work = Work(
            job=job,
            endpoint=job.endpoint({}),
            plan=self.jobs.plan,
            folder=self.jobs.folder,
            run=resumed.run,
            rows=rows,
            summary=summary,
            prices=Prices(),
            account=account,
            dedupe=dedupe,
            emit=emit,
        )
        ended = await self.backend.run(work)
        self.jobs.end(resumed)
        return ended

    def journal(self):
        """(row, status) of every line."""
        paths = sorted(self.jobs.folder.glob("journal-*.jsonl"))
        lines = [json.loads(line) for path in paths for line in path.read_bytes().splitlines()]
        return [(line["row"], line["status"]) for line in lines]

    def bought(self):
        return self.gateway.bought.total()


@pytest.fixture(params=["local", "cluster"])
def world(request, tmp_path, gateway):
    return World(request.param, tmp_path, gateway)


def test_every_request_is_sent_once_and_its_result_journaled_counted_and_emitted(world):
    ended = world.run([f"p {n}" for n in range(150)])
    ok = [(row, "ok") for row in range(150)]
    assert (ended.stopped, ended.given_up, ended.all_ok) == (None, "", True)
    assert sorted(world.journal()) == sorted(world.emitted) == ok
    assert (world.bought(), world.summary.rows) == (150, 150)
    assert set(world.channels) == {"m"}
    assert not world.backend.journal_removed()


def test_a_row_that_fails_is_told(world):
    world.gateway.fails = lambda body: '"p 2"' in body
    ended = world.run([f"p {n}" for n in range(4)])
    assert (ended.stopped, ended.all_ok) == (None, False)
    assert (2, "bad_request") in world.journal()
    assert (2, "bad_request") in world.emitted


def test_what_earlier_runs_answered_is_not_sent_again(world):
    world.run(["a", "b"])
    world.run(["a", "b", "c"])
    assert sorted(world.journal()) == [(0, "ok"), (1, "ok"), (2, "ok")]
    assert world.bought() == 3


def test_a_stop_before_the_run_sends_nothing(world):
    """Ctrl-C may come while the plan is made."""
    why = RunStopped("enough")
    ended = world.run(["a", "b"], before=lambda backend: backend.stop(why))
    assert ended.stopped is why
    assert (world.journal(), world.bought()) == ([], 0)


def test_a_stop_keeps_what_is_in_flight_and_the_first_reason_counts(world):
    why = RunStopped("enough")

    def stop(backend):
        backend.stop(why)
        backend.stop(RunStopped("later"))

    ended = world.run([f"p {n}" for n in range(3000)], during=stop, concurrency="4")
    assert ended.stopped is why
    assert 0 < world.bought() < 3000
    assert len(world.journal()) == world.bought()


def test_a_stop_without_a_reason_is_the_users(world):
    ended = world.run(
        [f"p {n}" for n in range(3000)],
        during=lambda backend: backend.stop(),
        concurrency="4",
    )
    assert ended.stopped is None
    assert 0 < len(world.journal()) == world.bought() < 3000


def test_equal_requests_are_held_back(world):
    world.run(["a", "b", "a", "a"], dedupe=True)
    assert world.bought() == 2
    assert world.dedupe.waiting.total() == 2


def test_a_budget_is_kept_and_what_was_spent_is_recorded(world):
    """Each answer bills two tokens; what may be billed is set aside before."""
    ended = world.run(
        [f"p {n}" for n in range(60)],
        max_total_tokens=120,
        params={"max_tokens": 10},
        concurrency="1",
    )
    assert isinstance(ended.stopped, RunStopped)
    assert 0 < world.bought() < 60
    spent = spending.begin(world.jobs.folder, 0, bounded=True)
    assert spent.tokens == 2 * world.bought() <= 120


def test_a_gateway_that_refuses_every_request_stops_the_run(world):
    """Before all rows have been tried, and with what the gateway says."""
    world.gateway.fails = lambda _body: True
    ended = world.run([f"p {n}" for n in range(2000)])
    assert isinstance(ended.stopped, JobError)
    assert "no: " in str(ended.stopped)
    assert len(world.journal()) < 2000


@pytest.mark.ray
@pytest.mark.xdist_group("ray")
def test_ray_promises_the_same(tmp_path, gateway, ray_cluster):
    """In short: a start takes seconds, and the driver and the worker are those of the cluster above."""
    world = World("ray", tmp_path, gateway, f"ray={ray_cluster.address}")
    test_every_request_is_sent_once_and_its_result_journaled_counted_and_emitted(world)


# A cluster alone


def test_a_shard_whose_worker_died_sends_nothing_twice(tmp_path, gateway):
    """The next attempt finds the segments of the one before."""
    world = World("cluster", tmp_path, gateway)

    def dies(_backend):
        world.cluster.dies = 1

    ended = world.run([f"p {n}" for n in range(40)], before=dies)
    assert ended.stopped is None
    assert (world.bought(), len(world.journal())) == (40, 40)
    assert sorted(world.emitted) == [(row, "ok") for row in range(40)]


def test_rows_go_in_as_many_shards_as_asked_with_segments_of_their_own(tmp_path, gateway):
    world = World("cluster", tmp_path, gateway)
    world.run([f"p {n}" for n in range(10)], on="ray", shards=4)
    shards = world.cluster.shards
    assert [len(shard.rows) for shard in shards] == [3, 3, 3, 1]
    assert [shard.first for shard in shards] == [101, 201, 301, 401]


def test_a_worker_whose_folder_is_another_runs_sends_nothing(tmp_path, gateway):
    world = World("cluster", tmp_path, gateway)

    def other(_backend):
        (world.jobs.folder / "cluster.token").write_text("another")

    ended = world.run(["a"], before=other)
    assert isinstance(ended.stopped, JobError)
    assert "folder that all machines share" in str(ended.stopped)
    assert world.bought() == 0


# A file that is removed is known to the backend that writes it


def test_the_local_backend_knows_that_its_segment_was_removed(tmp_path, gateway):
    world = World("local", tmp_path, gateway)
    seen = threading.Event()

    def remove(backend):
        for path in world.jobs.folder.glob("journal-*.jsonl"):
            path.unlink()
        if backend.journal_removed():
            seen.set()

    ended = world.run(["a", "b"], during=remove)
    assert seen.is_set()
    assert ended.rescued is not None
    assert ended.rescued.read_bytes().count(b'"ok"') == 2
