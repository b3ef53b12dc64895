"""The run folder as a place: moved, removed, replaced, shared or planted while or before a run is at work."""

import json
import os
import shutil
import threading
from decimal import Decimal
from pathlib import Path

import pytest

import batcher
from batcher.cli import app as cli
from batcher.engine import Engine
from batcher.errors import JobError, OutputError, RunStopped
from batcher.read import marks
from batcher.write import lock, spending, status
from batcher.write.journal import Journal
from batcher.write.lock import Lock
from batcher.write.manifest import Manifest
from tests.support.echo import asked, name, running

ROWS = [{"prompt": f"p{n}"} for n in range(40)]


@pytest.fixture
def gateway(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with running() as echo:
        monkeypatch.setenv("OPENAI_BASE_URL", echo.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-never-shown")
        yield echo


def run(rows=ROWS, output="out.jsonl", **more):
    return batcher.run(rows, output=output, models=["m"], concurrency=2, dedupe=False, **more)


def after(echo, requests, act, until=None):
    """Does something once, when so many requests have come; then nothing is answered for a while."""
    seen = []

    def heard(body):
        seen.append(body)
        if len(seen) == requests:
            act()
            assert until is None or until.wait(30)

    echo.heard = heard


@pytest.fixture
def noticed(monkeypatch):
    """Is set when a run stops sending."""
    event, stop = threading.Event(), Engine.stop

    def stopped(engine, why=None):
        stop(engine, why)
        event.set()

    monkeypatch.setattr(Engine, "stop", stopped)
    return event


def answers(path):
    return [json.loads(line)["content"] for line in Path(path).read_text().splitlines()]


def right(rows):
    return [f"{name(asked(row['prompt'], 'm'))}:1" for row in rows]


def test_a_folder_that_is_moved_stops_the_run_and_keeps_every_answer(gateway, noticed):
    """They are written where the folder is now, and nothing into another one at its old place."""
    after(gateway, 8, lambda: os.rename("out.jsonl.run", "aside"), noticed)
    with pytest.raises(OutputError, match=r"moved to .*aside.*nothing more was sent.*in .*aside"):
        run()
    assert not Path("out.jsonl.run").exists()
    bought = gateway.bought.copy()
    assert len(bought) < len(ROWS)
    os.rename("aside", "out.jsonl.run")
    run()
    assert answers("out.jsonl") == right(ROWS)
    assert set(gateway.bought.values()) == {1}


def test_a_run_that_begins_in_the_place_of_a_moved_folder_stays_its_own(gateway):
    """Neither takes an answer of the other."""
    other = [{"prompt": f"q{n}"} for n in range(10)]

    def replaced():
        os.rename("out.jsonl.run", "aside")
        shutil.copytree("aside", "out.jsonl.run")

    after(gateway, 8, replaced)
    with pytest.raises(OutputError, match=r"moved to .*aside"):
        run()
    gateway.heard = lambda _body: None
    run(other)
    assert answers("out.jsonl") == right(other)
    shutil.rmtree("out.jsonl.run")
    os.rename("aside", "out.jsonl.run")
    run(overwrite=False)
    assert answers("out.jsonl") == right(ROWS)


@pytest.mark.parametrize("what", ["folder", "files"])
def test_what_is_removed_under_a_run_is_put_back(gateway, noticed, what):
    """What was paid for and is still in memory or in an open file is not lost; nothing more is bought."""

    def removed():
        if what == "folder":
            shutil.rmtree("out.jsonl.run")
        else:
            for path in Path("out.jsonl.run").iterdir():
                path.unlink()

    after(gateway, 8, removed, noticed)
    with pytest.raises(
        OutputError, match=r"removed while .*nothing more was sent.*journal-000001"
    ):
        run()
    assert len(gateway.bought) < len(ROWS)
    run()
    assert answers("out.jsonl") == right(ROWS)
    assert set(gateway.bought.values()) == {1}


def test_a_removed_lock_lets_no_second_run_in(gateway):
    """The folder itself is locked; LOCK is made again."""
    refused = []

    def second():
        os.unlink("out.jsonl.run/LOCK")
        try:
            run()
        except JobError as error:
            refused.append(str(error))

    after(gateway, 8, second)
    run()
    assert "is at work on this output" in refused[0]
    assert set(gateway.bought.values()) == {1}


def test_the_program_around_it_may_go_to_another_folder(gateway, tmp_path):
    """What was named by a relative path is opened and written where it was meant."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    Path("p.txt").write_text("{{ prompt }}")
    after(gateway, 8, lambda: os.chdir(elsewhere))
    run("in.jsonl", prompt="@p.txt")
    assert answers(tmp_path / "out.jsonl") == right(ROWS)
    assert not list(elsewhere.iterdir())


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "out.jsonl.run"
    made.mkdir(mode=0o700)
    return made


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_a_folder_of_another_user_is_refused(folder):
    """Whoever made it decides what stands in it."""
    os.chown(folder, 4321, -1)
    with pytest.raises(JobError, match=r"belongs to another user \(user 4321, .*chown -R 0 "):
        Lock(folder)
    assert not os.listdir(folder)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_that_others_can_write_into_is_refused(folder, mode):
    """Links may be planted there, and answers."""
    folder.chmod(mode)
    with pytest.raises(JobError, match=rf"mode is {mode:o}.*chmod 700 "):
        Lock(folder)
    folder.chmod(0o755)  # Who only reads can plant nothing.
    Lock(folder).release()


def test_a_file_system_that_shows_one_owner_and_mode_for_all_is_taken(folder, monkeypatch):
    """As network and Windows drives do: there a folder of ours looks like any other."""
    shown = os.stat_result((0o40777, *os.stat(folder)[1:4], 65534, *os.stat(folder)[5:]))
    monkeypatch.setattr(lock.os, "fstat", lambda _file: shown)
    monkeypatch.setattr(lock.os, "stat", lambda *_, **__: shown)
    lock._check_trusted(folder, os.open(folder, os.O_RDONLY))


@pytest.mark.parametrize(
    "name", ["LOCK", "reserve", "status.json", "run.json.tmp", "journal-000001.jsonl", "any"]
)
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_batcher_makes_none_of_is_refused_before_it_is_opened(folder, kind, name, tmp_path):
    """A link leads to somebody's file, a pipe is waited for for ever."""
    target = tmp_path / "target"
    target.write_text("precious")
    (folder / name).symlink_to(target) if kind == "link" else os.mkfifo(folder / name)
    (folder / "run.json").touch()
    with pytest.raises(JobError, match=f"{name}: it is .*Remove it"):
        Lock(folder)
    for command in (cli.export, cli.status, cli.clean, lambda output: cli.explain(output, "0")):
        with pytest.raises(JobError, match=f"{name}: it is .*Remove it"):
            command(str(tmp_path / "out.jsonl"))
    assert target.read_text() == "precious"


@pytest.mark.parametrize(
    "name", ["reserve", "status.json.tmp", "run.json.tmp", "budget.json.tmp", "lines.idx.tmp"]
)
def test_what_is_planted_later_is_replaced_and_not_followed(folder, name, tmp_path):
    """Files are made anew, so that no link of their name leads out of the folder."""
    target = tmp_path / "target"
    target.write_text("precious")
    held = Lock(folder)
    (folder / name).symlink_to(target)
    Manifest(output="out.jsonl").save(folder)
    status.save(folder, {"state": "running"})
    spending.save(folder, Decimal(1), 1, spending.Spent())
    marks.save(folder, [], {})
    Journal(folder).close()
    held.release()
    assert target.read_text() == "precious"
    assert not (folder / name).is_symlink()


def test_a_run_folder_that_is_a_link_is_refused(folder, tmp_path):
    """It is known by where it is; the output can stand where the link leads."""
    (tmp_path / "o.jsonl.run").symlink_to(folder)
    with pytest.raises(JobError, match="it is a link"):
        Lock(tmp_path / "o.jsonl.run")


def filtered(path):
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))


def changed(path):
    path.write_text(path.read_text().replace(":1", ":9", 1))


def other(path):
    run([{"prompt": "x"}], output="x.jsonl")
    shutil.copy("x.jsonl", path)


@pytest.mark.parametrize(
    "loses", [filtered, changed, other, Path.unlink, lambda path: path.write_text("")]
)
def test_clean_removes_nothing_while_the_output_lacks_an_answer(gateway, loses):
    """It looks at what is in the output, not at when it was written."""
    run()
    loses(Path("out.jsonl"))
    os.utime("out.jsonl.run/LOCK")
    with pytest.raises(JobError, match="not there, or not as batcher wrote it"):
        cli.clean("out.jsonl")
    run()
    cli.clean("out.jsonl")
    assert answers("out.jsonl") == right(ROWS)
    assert not Path("out.jsonl.run").exists()


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_clean_takes_an_output_that_was_copied_or_touched(gateway, name):
    """All answers are in it, whatever its times say."""
    run(output=name)
    shutil.copy(name, "copy")
    os.replace("copy", name)
    os.utime(name, (1, 1))
    cli.clean(name)
    assert not Path(f"{name}.run").exists()


def test_clean_removes_no_answers_that_came_after_the_output(gateway):
    """Those of a run that was stopped, say; an export puts them into it."""
    rows = [{"prompt": f"p{n}"} for n in range(100)]
    run(rows, limit=5, params={"max_tokens": 1})
    with pytest.raises(RunStopped):
        run(rows, params={"max_tokens": 1}, max_total_tokens=150)
    assert 5 < len(gateway.bought) < len(rows)
    with pytest.raises(JobError, match=r"were not written to out.jsonl"):
        cli.clean("out.jsonl")
    cli.export("out.jsonl")
    cli.clean("out.jsonl")
    assert answers("out.jsonl")


@pytest.mark.parametrize(
    "name", ["x.jsonl", "notes", "output-20260101T000000.jsonl", "rows-2024.jsonl"]
)
def test_clean_removes_nothing_that_batcher_did_not_make(gateway, name):
    """Somebody's file, another run's output, an output from before damage."""
    run()
    path = Path("out.jsonl.run") / name
    path.write_text("precious")
    with pytest.raises(JobError, match=f"holds {name}"):
        cli.clean("out.jsonl")
    run()
    assert path.read_text() == "precious"
