"""What goes on beside a run while it sends: the deadline, the guard of the folder, the heartbeat."""

import asyncio
from pathlib import Path

import pytest

from batcher.errors import OutputError, RunStopped
from batcher.live.progress import ModelSnapshot, Snapshot
from batcher.runtime import watchers
from batcher.runtime.backend import Backend
from batcher.runtime.run_folder import RunFolder
from batcher.write import status


class FakeBackend(Backend):
    """A backend that only tells how it was stopped."""

    in_flight = 0

    def __init__(self):
        self.why = []
        self.removed = False
        self.stopped = asyncio.Event()

    async def run(self, work):
        raise AssertionError("watchers never start a backend")

    def stop(self, why=None):
        self.why.append(why)
        self.stopped.set()

    def snapshot(self):
        return {}

    def journal_removed(self):
        return self.removed


class FakeLock:
    """A lock on a folder whose fate the test decides."""

    folder = where = Path("/somewhere/o.run")
    fate = None

    def lost(self):
        return self.fate


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(watchers, "_GUARD_SECONDS", 0.001)
    monkeypatch.setattr(watchers, "_LOOK_SECONDS", 0.001)


def watch(folder, body, deadline=None, state=lambda: Snapshot("running"), look=None):
    """Runs a body beside the watchers; returns the backend."""

    async def still(_state):
        await asyncio.Event().wait()

    async def work():
        backend = FakeBackend()
        async with watchers.watched(backend, folder, state, look or still, deadline):
            await asyncio.wait_for(body(backend), 30)
        return backend

    return asyncio.run(work())


def test_a_deadline_stops_the_run_with_its_reason(tmp_path):
    why = RunStopped("over")
    backend = watch(RunFolder(tmp_path), lambda b: b.stopped.wait(), (0.0, why))
    assert backend.why == [why]


def test_a_run_that_ends_before_its_deadline_is_not_stopped(tmp_path):
    backend = watch(RunFolder(tmp_path), lambda _b: asyncio.sleep(0), (3600.0, RunStopped("over")))
    assert backend.why == []


@pytest.mark.parametrize(
    ("fate", "removed", "said"),
    [("it was removed", False, "it was removed"), (None, True, "files in it were removed")],
)
def test_a_folder_that_is_lost_stops_the_run(tmp_path, fate, removed, said):
    """What is answered after that could not be kept."""
    lock = FakeLock()
    folder = RunFolder(tmp_path, lock)

    async def lose(backend):
        lock.fate, backend.removed = fate, removed
        await backend.stopped.wait()

    [why] = watch(folder, lose).why
    assert isinstance(why, OutputError)
    assert said in str(why)
    lock.fate = None
    assert said in folder.check(), "a folder that comes back has missed results all the same"


def test_the_heartbeat_is_written_again_when_many_more_requests_are_in_flight(
    tmp_path, monkeypatch
):
    """After a kill it says how many requests may have been billed."""
    now, saved, loops, save = [0], asyncio.Queue(), [], status.save

    def state():
        loops.append(asyncio.get_running_loop())
        return Snapshot("running", (ModelSnapshot(model="m", in_flight=now[0]),))

    def noted(folder, content):
        save(folder, content)
        in_flight = content["models"]["m"]["in_flight"]
        loops[0].call_soon_threadsafe(saved.put_nowait, in_flight)

    async def grow(backend):
        assert await saved.get() == 0
        now[0] = backend.in_flight = 100
        assert await saved.get() == 100

    monkeypatch.setattr(status, "save", noted)
    watch(RunFolder(tmp_path), grow, state=state)
    assert status.load(tmp_path)["models"]["m"]["in_flight"] == 100


def test_a_view_that_fails_fails_the_run_once_it_has_ended(tmp_path):
    """Requests in flight are not given up for it."""

    async def fails(_state):
        raise ValueError("no terminal")

    ended = []

    async def body(_backend):
        await asyncio.sleep(0)
        ended.append(True)

    with pytest.raises(ValueError, match="no terminal"):
        watch(RunFolder(tmp_path), body, look=fails)
    assert ended
