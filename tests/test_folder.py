"""A run folder that is moved, removed, replaced, shared or prepared by others, before or during a run."""

import json
import os
import re
import shutil
import threading
from decimal import Decimal
from pathlib import Path

import pytest

import batcher
from batcher.cli import app
from batcher.cli import app as cli
from batcher.errors import JobError, OutputError, RunStopped
from batcher.job.job import Job
from batcher.money import spending
from batcher.read import copies, line_index
from batcher.read.files import expand
from batcher.records import Outcome, Result
from batcher.runtime.engine import Engine
from batcher.runtime.output import check_output, sweep
from batcher.send import connections
from batcher.write import lock, status
from batcher.write.journal import Journal
from batcher.write.lock import Lock
from batcher.write.manifest import Manifest
from batcher.write.reserve import sweep_reserves
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
    """Does something once, after so many requests; then no request is answered for a while."""
    seen = []

    def on_request(body):
        seen.append(body)
        if len(seen) == requests:
            act()
            assert until is None or until.wait(30)

    echo.heard = on_request


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
    """They are written where the folder is now, not into a folder at its old path."""
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


def test_a_run_at_the_path_of_a_moved_folder_is_independent(gateway):
    """Neither run takes answers of the other."""
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


@pytest.mark.parametrize("what", ["folder", "files", "linked", "moved", "replaced"])
def test_files_removed_during_a_run_are_written_again(gateway, noticed, what):
    """From memory or the open file; nothing more is sent."""

    def removed():
        journal = Path("out.jsonl.run/journal-000001.jsonl")
        if what == "folder":
            shutil.rmtree("out.jsonl.run")
        elif what == "linked":  # A backup of hard links: the file still has a name.
            os.link(journal, "backup")
            shutil.rmtree("out.jsonl.run")
        elif what == "moved":
            journal.rename("aside")
        elif what == "replaced":  # As sed -i does it, with a backup.
            journal.rename("aside")
            shutil.copy("aside", journal)
        else:
            for path in Path("out.jsonl.run").iterdir():
                path.unlink()

    after(gateway, 8, removed, noticed)
    with pytest.raises(
        OutputError, match=r"removed while .*nothing more was sent.*journal-00000[12]"
    ):
        run()
    assert len(gateway.bought) < len(ROWS)
    run()
    assert answers("out.jsonl") == right(ROWS)
    assert set(gateway.bought.values()) == {1}


def test_answers_that_fit_no_folder_are_kept_for_the_user_to_copy(gateway, noticed):
    """An older state was restored over a removed folder: the message says where to copy the answers."""

    def restored():
        shutil.copytree("out.jsonl.run", "old", ignore=shutil.ignore_patterns("reserve"))
        shutil.rmtree("out.jsonl.run")
        os.rename("old", "out.jsonl.run")

    after(gateway, 8, restored, noticed)
    with pytest.raises(OutputError) as stop:
        run()
    said = re.search(r"answers is in (\S+)\. Copy that file to (\S+), else", str(stop.value))
    shutil.copy(*said.groups())
    run()
    assert answers("out.jsonl") == right(ROWS)
    assert set(gateway.bought.values()) == {1}


def test_removing_LOCK_lets_no_second_run_in(gateway):
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


def test_a_program_may_change_its_working_directory_during_a_run(gateway, tmp_path):
    """Relative paths keep their meaning from the start."""
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
    """Its owner can change what is in it."""
    os.chown(folder, 4321, -1)
    with pytest.raises(JobError, match=r"belongs to another user \(user 4321, .*chown -R 0 "):
        Lock(folder)
    assert not os.listdir(folder)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_that_others_can_write_into_is_refused(folder, mode):
    """They could put links or answers there."""
    folder.chmod(mode)
    with pytest.raises(JobError, match=rf"mode is {mode:o}.*chmod 700 "):
        Lock(folder)
    folder.chmod(0o755)  # Readers can change nothing.
    Lock(folder).release()


def test_a_file_system_that_shows_one_owner_and_mode_for_all_is_accepted(folder, monkeypatch):
    """Network and Windows drives do: there a folder just made looks like any other."""
    shown = os.stat_result((0o40777, *os.stat(folder)[1:4], 65534, *os.stat(folder)[5:]))
    monkeypatch.setattr(lock.os, "fstat", lambda _file: shown)
    monkeypatch.setattr(lock.os, "stat", lambda *_, **__: shown)
    lock._check_trusted(folder, os.open(folder, os.O_RDONLY))


@pytest.mark.parametrize(
    "name", ["LOCK", "reserve", "status.json", "run.json.tmp", "journal-000001.jsonl", "any"]
)
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_links_and_pipes_in_the_folder_are_refused_unopened(folder, kind, name, tmp_path):
    """A link leads to another file; reading a pipe blocks forever."""
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
def test_links_put_there_later_are_replaced_and_not_followed(folder, name, tmp_path):
    """Each file is created, so a link of its name does not lead out of the folder."""
    target = tmp_path / "target"
    target.write_text("precious")
    held = Lock(folder)
    (folder / name).symlink_to(target)
    Manifest(output="out.jsonl").save(folder)
    status.save(folder, {"state": "running"})
    spending.save(folder, Decimal(1), 1, spending.Spent())
    line_index.save(folder, [], {})
    Journal(folder).close()
    held.release()
    assert target.read_text() == "precious"
    assert not (folder / name).is_symlink()


def test_a_run_folder_that_is_a_link_is_refused(folder, tmp_path):
    """It is identified by its place; the output can be where the link leads."""
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
    """It compares content, not times."""
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
def test_clean_accepts_an_output_that_was_copied_or_touched(gateway, name):
    """All answers are in it, whatever its times say."""
    run(output=name)
    shutil.copy(name, "copy")
    os.replace("copy", name)
    os.utime(name, (1, 1))
    cli.clean(name)
    assert not Path(f"{name}.run").exists()


def test_clean_knows_another_runs_journal_of_the_same_size(gateway):
    """Its answers are in no output here."""
    run()
    journal = Path("out.jsonl.run/journal-000001.jsonl")
    size = journal.stat().st_size
    run([{"prompt": "q"}], output="q.jsonl")
    line = Path("q.jsonl.run/journal-000001.jsonl").read_bytes()
    journal.write_bytes(b" " * (size - len(line) - 1) + b"\n" + line)
    with pytest.raises(JobError, match=r"were not written to out.jsonl"):
        cli.clean("out.jsonl")


def test_clean_removes_no_answers_that_came_after_the_output(gateway):
    """Such as those of a stopped run; an export adds them to the output."""
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
    """A user's file, the output of another run, a copy of an output."""
    run()
    path = Path("out.jsonl.run") / name
    path.write_text("precious")
    with pytest.raises(JobError, match=f"holds {name}"):
        cli.clean("out.jsonl")
    run()
    assert path.read_text() == "precious"


def replaceable(output):
    """Whether a run accepts this output."""
    output = Path(output)
    check_output(
        output, output.parent / f"{output.name}.run", Job(output=str(output), overwrite=True)
    )


def test_a_name_too_long_for_the_finish_is_refused_at_the_start(tmp_path):
    """The new output is made beside the old one, under a longer name."""
    long = "x" * 244 + ".jsonl"
    with pytest.raises(JobError, match=r"cannot be written.*File name too long"):
        replaceable(tmp_path / long)
    replaceable(tmp_path / long[100:])
    assert not os.listdir(tmp_path)


def test_a_mount_point_is_refused_as_output(tmp_path, monkeypatch):
    """A file mounted into a container can be written, not replaced."""
    path = tmp_path / "a b.jsonl"
    path.touch()
    told = f"36 35 98:0 /x {path} rw - ext4 /dev/root rw\n".replace("a b", r"a\040b")
    real = Path.read_bytes
    monkeypatch.setattr(
        Path, "read_bytes", lambda of: told.encode() if of.name == "mountinfo" else real(of)
    )
    with pytest.raises(JobError, match=r"it is a mount point.*mount the folder"):
        replaceable(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_file_that_only_its_owner_can_replace_is_refused(tmp_path, monkeypatch):
    """In /tmp all users may write, but not replace files of others."""
    place = tmp_path / "open"
    place.mkdir()
    place.chmod(0o1777)
    os.chown(place, 77, -1)
    (place / "o.jsonl").touch()
    replaceable(place / "o.jsonl")
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    with pytest.raises(JobError, match="only its owner can replace it"):
        replaceable(place / "o.jsonl")


def test_an_output_replaces_only_regular_files(tmp_path):
    """A pipe is not even opened: nobody may ever write to it."""
    os.mkfifo(tmp_path / "o.jsonl")
    with pytest.raises(JobError, match="not a regular file"):
        replaceable(tmp_path / "o.jsonl")


def test_an_output_is_not_made_in_a_run_folder(folder):
    """`clean` could not tell it from the files of the folder."""
    (folder / "run.json").touch()
    with pytest.raises(JobError, match="is the run folder of another output"):
        replaceable(folder / "x.jsonl")


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet", "out/"])
def test_an_output_keeps_its_permissions(gateway, name):
    """Mode and owner are kept; a new output gets those of any new file."""
    output = Path(name)
    run(ROWS[:3], output=name)
    file = output / "part-00000.parquet" if output.is_dir() else output
    umask = os.umask(0o77)
    os.umask(umask)
    assert file.stat().st_mode & 0o777 == 0o666 & ~umask
    file.chmod(0o640)
    if output.is_dir():
        output.chmod(0o750)
    if os.geteuid() == 0:
        os.chown(file, 77, 78)
    run(ROWS[:4], output=name)
    assert file.stat().st_mode & 0o777 == 0o640
    assert not output.is_dir() or output.stat().st_mode & 0o777 == 0o750
    if os.geteuid() == 0:
        assert (file.stat().st_uid, file.stat().st_gid) == (77, 78)


def test_a_link_at_the_temporary_path_is_not_followed(gateway, tmp_path):
    """Its name can be predicted."""
    target = tmp_path / "target"
    target.write_text("precious")
    Path(f".out.jsonl.tmp-{os.getpid()}").symlink_to(target)
    run(ROWS[:3])
    assert target.read_text() == "precious"
    assert answers("out.jsonl") == right(ROWS[:3])


def test_sweep_removes_only_temporary_files_of_dead_processes(tmp_path):
    """Nothing whose name only begins like theirs."""
    dead = 4_194_304 + 5  # More than any process number of Linux.
    left = [f".o.jsonl.tmp-{dead}"]
    kept = [".o.jsonl.tmp-notes", ".o.jsonl.tmp-", f".o.jsonl.tmp-{os.getpid()}", ".o.jsonl.tmp-12345678901",
            f".x.jsonl.tmp-{dead}", ".o.jsonl.tmp-١٢٣"]  # fmt: skip
    for one in (*left, *kept):
        (tmp_path / one).touch()
    (tmp_path / f".o.jsonl.tmp-{dead + 1}").symlink_to(tmp_path)
    os.mkfifo(tmp_path / f".o.jsonl.tmp-{dead + 2}")
    before = set(os.listdir(tmp_path))
    sweep(tmp_path / "o.jsonl")
    assert set(os.listdir(tmp_path)) == before - set(left)


def test_files_with_similar_names_are_kept(folder):
    """A glob matches more than batcher makes."""
    names = {"reserve-notes", "rows-2024.jsonl", "stdin-a.jsonl", "x.copying"}
    for one in (*names, "rows-0123456789abcdef.jsonl", "stdin.copying", "reserve-000101"):
        (folder / one).touch()
    copies.sweep(folder, [])
    sweep_reserves(folder)
    assert set(os.listdir(folder)) == names


BUDGETS = ["", "{", "[]", "null", '{"perhaps_usd":"NaN"}', '{"perhaps_usd":"-1"}', '{"committed_usd":"Infinity"}',
           '{"perhaps_tokens":1e99}', '{"cut_off":"x"}', '{"perhaps_usd":"9"', '{"perhaps_usd":"0","z":"00000000"}']  # fmt: skip


@pytest.mark.parametrize("content", BUDGETS)
def test_a_damaged_budget_is_never_taken_for_an_empty_one(folder, content):
    """What may have been billed is then unknown: a run with a budget is refused, another leaves the file."""
    log = Journal(folder)
    log.put(Result(row=0, model="m", sample=0, key="ab" * 16, status=Outcome.OK, custom_id="0",
                   prompt_tokens=7, completion_tokens=5, cost_usd=0.125, attempts=1))  # fmt: skip
    log.close()
    path = folder / "budget.json"
    path.write_text(content)
    with pytest.raises(
        JobError, match=r"damaged.*proves: \$0\.125 and 12 tokens\. Remove the file"
    ):
        spending.begin(folder, 0, bounded=True)
    assert spending.begin(folder, 3, bounded=False) == spending.Spent()
    assert path.read_text() == content
    path.unlink()
    assert spending.begin(folder, 0, bounded=True).tokens == 12


def test_a_budget_of_an_earlier_version_still_counts(folder):
    """It had no checksum."""
    (folder / "budget.json").write_text('{"perhaps_usd":"0.5","perhaps_tokens":9}\n')
    assert spending.begin(folder, 0, bounded=True).perhaps_tokens == 9
    spending.save(folder, Decimal(1), 5, spending.Spent())
    flipped = (folder / "budget.json").read_bytes().replace(b'"1"', b'"0"')
    (folder / "budget.json").write_bytes(flipped)
    with pytest.raises(JobError, match="its checksum is wrong"):
        spending.begin(folder, 0, bounded=True)


@pytest.mark.parametrize(
    "content",
    ["[1]", '{"models": []}', '{"models": {"m": 3}}', '{"models": {"m": {"in_flight": "x"}}}', '{"state": 1}',
     '{"given_up": -1}', '{"models": {"m": {"eta_seconds": 1e300}}}', "\xff", "NaN"],
)  # fmt: skip
def test_a_damaged_heartbeat_counts_as_none(folder, content):
    """It only informs people."""
    (folder / "status.json").write_bytes(content.encode("latin-1"))
    assert status.load(folder) is None


@pytest.mark.parametrize(
    "change",
    [{"epochs": [{}]}, {"asked": {"samples": 0}}, {"asked": {"limit": -3}}, {"asked": {"route": "x"}}, {"last": -1},
     {"asked": {"drawn": [0, 0]}}, {"output": "../x"}, {"version": 0}, {"shared": [[1]]}, {"asked": {"models": "m"}},
     {"inputs": [{"path": "../../secret", "size": 1}]}, {"inputs": [{"size": 1}]}, {"settings": {}}, {"rows": -1}],
    ids=str,
)  # fmt: skip
def test_a_damaged_run_json_is_reported_in_a_sentence(gateway, change):
    """For any damage, a command says what to do."""
    run(ROWS[:2])
    path = Path("out.jsonl.run/run.json")
    record = json.loads(path.read_bytes())
    of_epoch = change.keys() & {"inputs", "settings", "rows"}
    (record["epochs"][0] if of_epoch else record).update(change)
    path.write_text(json.dumps(record))
    with pytest.raises(JobError, match=r"run\.json: it is damaged"):
        Manifest.load(Path("out.jsonl.run"))


@pytest.mark.parametrize("flag", ["inputs", "output", "images", "prompt", "models"])
def test_bytes_that_are_not_utf_8_are_refused_in_a_sentence(flag):
    """No run.json, request or message could hold them."""
    value = os.fsdecode(b"a\xff.jsonl")
    with pytest.raises(JobError, match="not UTF-8"):
        Job.of(**{"inputs": "a.jsonl", "output": "o.jsonl", flag: value})


def test_a_file_with_a_name_that_is_not_utf_8_is_refused(tmp_path):
    """A glob or a folder finds it."""
    odd = tmp_path / os.fsdecode(b"b\xfc cher")
    odd.mkdir()
    (odd / "a.jsonl").write_text("{}\n")
    with pytest.raises(JobError, match="not UTF-8; rename it"):
        expand([str(tmp_path)])


def test_a_file_that_looks_like_an_option_can_be_named():
    """After two dashes, as usual."""
    words = ["run", "-m", "x", "--", "-dash.jsonl", "-", "in.jsonl"]
    assert app._after_dashes(words) == [*words[:4], "./-dash.jsonl", "-", "in.jsonl"]
    assert app._after_dashes(words[:3]) == words[:3]


def test_a_limit_of_ten_open_files_is_refused(tmp_path, monkeypatch):
    """A run needs more, and would fail inside some library."""
    monkeypatch.setattr(connections, "open_files", lambda: 10)
    with pytest.raises(JobError, match=r"10 files open.*ulimit -n"):
        cli.run("in.jsonl", job=Job(output="o.jsonl", models=("m",)))
