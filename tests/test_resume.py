"""A second start: what is sent again, what is not, and what is said before."""

import os
import pty
import signal
import subprocess
import time
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow.json as arrow_json
import pyarrow.parquet as pq
import pytest

import batcher
from batcher.errors import JobError
from batcher.simulate.server import running
from batcher.simulate.settings import Simulation
from batcher.write import overwrite
from tests.support import program
from tests.support.program import read_jsonl, started, write_jsonl

ROWS = [{"id": n, "prompt": f"Ticket {n}: my parcel is late"} for n in range(40)]


@pytest.fixture
def run(tmp_path, monkeypatch, gateway):
    """Runs the job on `in.jsonl`; returns how many answers it bought."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "in.jsonl", ROWS)

    def run(**options):
        before = billed(gateway)
        asked = {"models": ["sim-small"], "base_url": gateway.url, **options}
        batcher.run("in.jsonl", "out.jsonl", **asked)
        return billed(gateway) - before

    return run


def billed(gateway):
    return sum(
        model.billed + model.billed_unseen for model in list(gateway.ledger.models.values())
    )


def lines():
    """How many lines the journal has."""
    return sum(path.read_bytes().count(b"\n") for path in Path("out.jsonl.run").glob("j*.jsonl"))


@pytest.mark.parametrize(
    "change",
    [
        "touch in.jsonl",
        "cp -p in.jsonl copy && mv copy in.jsonl",
        "chmod 600 in.jsonl",
        """echo '{"id": 40, "prompt": "Ticket 40"}' >> in.jsonl""",
    ],
)
def test_the_same_rows_cost_nothing_and_no_line(run, change):
    """Tomorrow's rows behind today's: only they are sent, and the journal grows by them alone."""
    assert run() == 40
    subprocess.run(["sh", "-c", change], check=True)
    added = "40" in change
    assert run() == added
    assert lines() == 40 + added
    assert [row["id"] for row in read_jsonl(Path("out.jsonl"))] == list(range(40 + added))


def test_a_row_edited_without_a_trace_is_sent_again(run):
    """Equal size, equal time: only the bytes tell, and nothing stale may come out."""
    run()
    stat = os.stat("in.jsonl")
    with open("in.jsonl", "r+b") as file:
        content = file.read().replace(b"Ticket 7:", b"Ticket X:")
        file.seek(0)
        file.write(content)
    os.utime("in.jsonl", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert run() == 1


@pytest.mark.parametrize(
    "option",
    [{"rpm": 60000}, {"concurrency": 3}, {"max_retries": 1}, {"keep_raw": True},
     {"attempt_timeout": 50.0}, {"api_key_env": "OTHER_KEY"}],
    ids=str,
)  # fmt: skip
def test_what_shapes_no_request_sends_none(run, monkeypatch, option):
    """Limits, retries, key and output are not what an answer answers."""
    monkeypatch.setenv("OTHER_KEY", "x")
    assert run() == 40
    assert run(**option) == 0


@pytest.mark.parametrize(
    ("option", "named"),
    [({"params": {"temperature": 0.5}}, "--param temperature"), ({"system": "Be brief."}, "--system"),
     ({"prompt": "{{ prompt }}!"}, "--prompt")],
)  # fmt: skip
def test_a_changed_setting_is_said_before_it_costs(run, option, named):
    """Which one, and how many paid answers it concerns; then exactly those go again."""
    run()
    with pytest.raises(JobError, match=rf"{named} changed .* 40 answers paid for match no longer"):
        run(**option)
    assert run(**option, changed="resend") == 40
    assert run(**option) == 0


def test_kept_answers_stay_when_rows_are_added_or_move(run, tmp_path):
    """Who said keep once is not asked again, and does not pay for them later either."""
    run()
    before = {row["id"]: row["content"] for row in read_jsonl(Path("out.jsonl"))}
    assert run(system="Be brief.", changed="keep") == 0
    write_jsonl(tmp_path / "in.jsonl", [{"id": 40, "prompt": "Ticket 40"}, *reversed(ROWS)])
    assert run(system="Be brief.") == 1
    after = {row["id"]: row["content"] for row in read_jsonl(Path("out.jsonl"))}
    assert after == {**before, 40: after[40]}


def test_what_was_kept_can_be_sent_after_all(run):
    """Keep is no decision for ever."""
    run()
    assert run(system="Be brief.", changed="keep") == 0
    assert run(system="Be brief.", changed="resend") == 40
    assert run(system="Be brief.") == 0


def test_fewer_rows_are_no_changed_setting(run):
    """Answers that were only not asked for are not lost."""
    run(limit=20)
    assert run(system="Be brief.", changed="keep", limit=20) == 0
    assert run(limit=10) == 0


def test_keep_works_when_the_input_changed_as_well(run, tmp_path):
    """Rows are found by what the old settings made of them."""
    run()
    write_jsonl(tmp_path / "in.jsonl", [*ROWS[5:], {"id": 40, "prompt": "Ticket 40"}])
    assert run(params={"top_p": 1}, changed="keep") == 1
    assert len(read_jsonl(Path("out.jsonl"))) == 36


def test_a_model_in_place_of_another_must_be_meant(run):
    """Else its paid answers would vanish from the output, unsaid."""
    run()
    with pytest.raises(
        JobError, match=r"--model changed .*40 of sim-small.* -m sim-small -m sim-"
    ):
        run(models=["sim-medium"])
    assert run(models=["sim-small", "sim-medium"]) == 40
    assert run(models=["sim-medium"]) == 0
    assert {row["model"] for row in read_jsonl(Path("out.jsonl"))} == {"sim-medium"}


def test_overwrite_forgets_nothing_when_the_job_cannot_be_done(run):
    """A typo beside --overwrite must not cost the answers."""
    run()
    with pytest.raises(JobError):
        batcher.run("inn.jsonl", "out.jsonl", models=["sim-small"], overwrite=True, simulate=True)
    assert run() == 0
    assert run(overwrite=True) == 40


def test_overwrite_keeps_what_was_there_until_there_is_an_answer(run, gateway):
    """A wrong key beside --overwrite must not cost the answers of weeks either."""
    run()
    before = Path("out.jsonl").read_bytes()
    gateway.gateway.shares = {"quota": 1.0}
    with pytest.raises(JobError):
        run(overwrite=True, params={"top_p": 1})
    assert Path("out.jsonl").read_bytes() == before
    gateway.gateway.shares = {}
    assert run() == 0
    assert run(overwrite=True, params={"top_p": 1}) == 40
    assert {path.name for path in Path("out.jsonl.run").glob("*l*r*")} <= {"lines.idx"}


@pytest.mark.parametrize("restoring", [False, True])
def test_a_kill_at_any_step_of_overwrite_loses_nothing(run, monkeypatch, restoring):
    """What was set aside is moved back by the next start, however much of it there is."""
    run(limit=20)
    run()
    folder = Path("out.jsonl.run")
    steps = 0
    while True:
        steps += 1
        left = steps + (5 if restoring else 0)

        def step(*names, through=os.rename):
            nonlocal left
            left -= 1
            if not left:
                raise KeyboardInterrupt
            return through(*names)

        with monkeypatch.context() as patched:
            patched.setattr(os, "rename", step)
            try:
                overwrite.set_aside(folder)
                if restoring:
                    overwrite.restore(folder)
            except KeyboardInterrupt:
                killed = True
            else:
                killed = False
        overwrite.settle(folder)
        assert run() == 0
        if not killed:
            break
    assert steps > 4


def test_overwrite_keeps_what_was_there_when_every_row_fails(run, gateway):
    """A handful of rows is too few for a breaker, and no answer all the same."""
    run(limit=5)
    before = Path("out.jsonl").read_bytes()
    gateway.gateway.shares = {"bad_request": 1.0}
    with pytest.raises(JobError, match="Not one row was answered: "):
        run(limit=5, overwrite=True)
    assert Path("out.jsonl").read_bytes() == before
    gateway.gateway.shares = {}
    assert run(limit=5) == 0


def test_the_other_commands_know_of_results_set_aside(run, tmp_path):
    """A run with --overwrite was killed: what it set aside is not nothing."""
    run()
    overwrite.set_aside(tmp_path / "out.jsonl.run")
    told = program.batcher("status", "out.jsonl", cwd=tmp_path)
    assert b"40 ok" in told.stdout
    overwrite.set_aside(tmp_path / "out.jsonl.run")
    assert program.batcher("export", "out.jsonl", cwd=tmp_path).returncode == 0
    assert len(read_jsonl(Path("out.jsonl"))) == 40


def test_an_exact_answer_goes_before_a_kept_one(run):
    """B was tried on ten rows, A came back, and B is meant after all: those ten are paid for."""
    a, b = {"params": {"top_p": 0.1}}, {"params": {"top_p": 0.2}}
    assert run(**a) == 40
    assert run(**b, changed="resend", limit=10) == 10
    tried = {r["content"] for r in read_jsonl(Path("out.jsonl"))}
    assert run(**a, changed="resend") == 0
    assert run(**b, changed="keep") == 0
    assert {r["content"] for r in read_jsonl(Path("out.jsonl"))[:10]} == tried


def test_what_vanishes_while_a_run_goes_on_is_sent_again(run, monkeypatch):
    """A whole output is not replaced by what is left."""
    run()
    from batcher.write import finish

    export, gone = finish.export, []

    def robbed(*args, **more):
        if not gone:
            gone.append(Path("out.jsonl.run/journal-000001.jsonl"))
            gone[0].unlink()
        return export(*args, **more)

    monkeypatch.setattr(finish, "export", robbed)
    assert run() == 40
    assert len(read_jsonl(Path("out.jsonl"))) == 40


def test_export_replaces_no_output_by_one_with_fewer_rows(run, tmp_path, gateway):
    """But writes another file."""
    run()
    gateway.gateway.shares = {"quota": 1.0}
    with pytest.raises(JobError):
        run(params={"top_p": 1}, changed="resend")
    refused = program.batcher("export", "out.jsonl", cwd=tmp_path)
    assert refused.returncode == 2
    assert b"has 40 rows, and only" in refused.stderr
    assert len(read_jsonl(Path("out.jsonl"))) == 40
    assert program.batcher("export", "out.jsonl", "part.jsonl", cwd=tmp_path).returncode == 3


@pytest.mark.parametrize("less", [{"limit": 10}, {"models": ["sim-medium"]}])
def test_clean_removes_no_answer_that_is_in_no_output(run, tmp_path, less):
    """A trial with fewer rows or models wrote the last output."""
    run(models=["sim-small", "sim-medium"])
    run(**{"models": ["sim-small", "sim-medium"], **less})
    refused = program.batcher("clean", "out.jsonl", cwd=tmp_path)
    assert refused.returncode == 2
    assert b"answers of rows or models that the last run did not ask for" in refused.stderr
    run(models=["sim-small", "sim-medium"])
    assert program.batcher("clean", "out.jsonl", cwd=tmp_path).returncode == 0


def test_explain_follows_names_that_moved(run, tmp_path):
    """Rows reversed and named anew: each name shows the answer that stands beside it."""
    write_jsonl(
        tmp_path / "in.jsonl", [{"prompt": f"p{n}", "custom_id": f"c{n}"} for n in range(6)]
    )
    run()
    moved = [{"prompt": f"p{n}", "custom_id": f"c{(n + 1) % 6}"} for n in range(6)][::-1]
    write_jsonl(tmp_path / "in.jsonl", moved)
    assert run() == 0
    for row in read_jsonl(Path("out.jsonl")):
        told = program.batcher("explain", "out.jsonl", row["custom_id"], cwd=tmp_path)
        assert row["request_id"].encode() in told.stdout
        assert told.stdout.startswith(f"row {row['row']} ({row['custom_id']})".encode())
        assert told.stdout.count(b"sim-small") == 1


def test_a_trial_of_changed_settings_says_so_again_for_the_rest(run):
    """`--changed resend -n 5` is consent for five rows."""
    run()
    other = {"params": {"top_p": 1}}
    assert run(**other, changed="resend", limit=5) == 5
    with pytest.raises(JobError, match="--param top_p changed since an earlier run: 35 answers"):
        run(**other)
    with pytest.raises(JobError, match="15 answers"):
        run(**other, limit=20)
    assert run(**other, changed="keep") == 0
    assert run(**other) == 0
    assert run(**other, changed="resend") == 35


def test_a_model_that_leaves_a_split_takes_its_answers_along_and_says_so(run):
    """Its rows have no answer then, and would be paid for again unsaid."""
    both = ["sim-small", "sim-medium"]
    assert run(models=both, route="split") == 40
    with pytest.raises(
        JobError, match="without an answer of sim-medium or sim-large are sent there"
    ):
        run(models=[both[1], "sim-large"], route="split")
    with pytest.raises(JobError, match="of sim-small"):
        run(models=[both[1]])


def test_explain_is_of_the_row_that_is_there_now(run, tmp_path):
    """Not of the one that stood at its place before the file was sorted."""
    run()
    write_jsonl(tmp_path / "in.jsonl", [{"id": 99, "prompt": "new"}, *ROWS[::-1]])
    assert run() == 1
    told = program.batcher("explain", "out.jsonl", "0", cwd=tmp_path).stdout.decode()
    assert told.count("sim-small") == 1


def test_a_run_folder_that_cannot_be_read_is_a_sentence(run, tmp_path):
    """Whatever stands in the place of a segment."""
    run()
    (tmp_path / "out.jsonl.run" / "journal-000002.jsonl").mkdir()
    for words in (["status"], ["export"], ["run", "in.jsonl", "-m", "m", "--simulate", "-o"]):
        ended = program.batcher(*words, "out.jsonl", cwd=tmp_path)
        assert ended.returncode == 1
        assert b"journal-000002.jsonl: Is a directory" in ended.stderr
        assert b"Traceback" not in ended.stderr


def test_answers_are_found_without_the_record_of_what_was_asked(run, tmp_path):
    """run.json deleted: what was sent is in the journal."""
    run()
    (tmp_path / "out.jsonl.run" / "run.json").unlink()
    assert run() == 0


def test_an_answer_that_moved_is_asked_again_where_retry_names_it(tmp_path, monkeypatch):
    """And until a better one comes, it stands in the output."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "in.jsonl", ROWS[:4])
    with running(Simulation(speed=0, faults={"truncated": 1.0})) as gateway:
        words = {"models": ["sim-small"], "base_url": gateway.url}
        batcher.run("in.jsonl", "out.jsonl", **words)
        write_jsonl(tmp_path / "in.jsonl", ROWS[3::-1])
        batcher.run("in.jsonl", "out.jsonl", **words)
        assert billed(gateway) == 4
        write_jsonl(tmp_path / "in.jsonl", ROWS[:4])
        batcher.run("in.jsonl", "out.jsonl", retry=["truncated"], **words)
        assert billed(gateway) == 8
    assert [row["status"] for row in read_jsonl(Path("out.jsonl"))] == ["truncated"] * 4


def test_an_answer_damaged_on_the_disk_is_bought_again(run):
    """The sidecar promises a line that the segment does not hold any more."""
    run()
    path = "out.jsonl.run/journal-000001.jsonl"
    with open(path, "r+b") as file:
        content = file.read()
        file.seek(content.index(b'"row":7'))
        file.write(b"\0\0\0")
    assert run() == 1
    assert run() == 0
    assert len(read_jsonl(Path("out.jsonl"))) == 40


def test_a_damaged_journal_never_replaces_a_whole_output_by_a_short_one(run, gateway, tmp_path):
    """Not by export either; to another file it writes what is left."""
    run()
    with open("out.jsonl.run/journal-000001.jsonl", "r+b") as file:
        size = len(file.read())
        file.seek(0)
        file.write(bytes(size))
    refused = program.batcher("export", "out.jsonl", cwd=tmp_path)
    assert refused.returncode == 1
    assert (
        b"40 answers there cannot be read any more; out.jsonl is left as it is" in refused.stderr
    )
    left = program.batcher("export", "out.jsonl", "left.jsonl", cwd=tmp_path)
    assert left.returncode == 3
    assert len(read_jsonl(Path("out.jsonl"))) == 40
    assert not read_jsonl(Path("left.jsonl"))
    gateway.gateway.shares = {"quota": 1.0}
    with pytest.raises(JobError):
        run()
    assert len(read_jsonl(Path("out.jsonl"))) == 40
    gateway.gateway.shares = {}
    assert run() == 40


def test_the_output_is_kept_when_answers_in_it_are_lost_from_the_journal(run, gateway):
    """Bought again they may be refused, and the output was the only place that still had them."""
    run()
    before = Path("out.jsonl").read_bytes()
    Path("out.jsonl.run/journal-000001.jsonl").unlink()
    gateway.gateway.shares = {"bad_request": 0.5}
    run()
    assert {row["status"] for row in read_jsonl(Path("out.jsonl"))} == {"ok", "bad_request"}
    (kept,) = Path("out.jsonl.run").glob("output-*.jsonl")
    assert kept.read_bytes() == before


def test_the_copy_of_stdin_stays_with_the_answers_to_it(tmp_path, gateway):
    """Another input that is refused must not stand beside the answers of the one before."""
    one, two = (b'{"prompt": "p", "tag": "%d"}\n' % tag for tag in (1, 2))
    words = ("run", "-", "-o", "out.jsonl", "-m", "sim-small")
    with_ = {"cwd": tmp_path, "url": gateway.url}
    assert program.batcher(*words, stdin=one, **with_).returncode == 0
    refused = program.batcher(*words, "--param", "top_p=1", stdin=two, **with_)
    assert refused.returncode == 2
    assert program.batcher("export", "out.jsonl", "part.jsonl", cwd=tmp_path).returncode == 0
    assert [row["tag"] for row in read_jsonl(tmp_path / "part.jsonl")] == ["1"]
    gateway.gateway.shares = {"quota": 1.0}
    assert program.batcher(*words, "--overwrite", stdin=two, **with_).returncode == 2
    assert program.batcher("export", "out.jsonl", "part.jsonl", cwd=tmp_path).returncode == 0
    assert [row["tag"] for row in read_jsonl(tmp_path / "part.jsonl")] == ["1"]
    gateway.gateway.shares = {}
    before = billed(gateway)
    assert program.batcher(*words, stdin=one, **with_).returncode == 0
    assert billed(gateway) == before
    assert len(list((tmp_path / "out.jsonl.run").glob("stdin-*"))) == 1


def test_a_split_of_what_each_answered_says_what_leaves_the_output(tmp_path, gateway):
    """Nothing is sent, and the answers come back with the old route."""
    write_jsonl(tmp_path / "in.jsonl", ROWS)
    words = ("run", "in.jsonl", "-o", "out.jsonl", "-m", "sim-small", "-m", "sim-medium")
    program.batcher(*words, cwd=tmp_path, url=gateway.url)
    before = billed(gateway)
    split = program.batcher(*words, "--route", "split", cwd=tmp_path, url=gateway.url)
    assert b"of a row with several answers one stays in the output" in split.stderr
    program.batcher(*words, cwd=tmp_path, url=gateway.url)
    assert len(read_jsonl(tmp_path / "out.jsonl")) == 80
    assert billed(gateway) == before


def test_ctrl_c_at_the_question_sends_nothing_and_says_how_to_go_on(tmp_path, gateway):
    """It is asked on a terminal only, so it is asked on one here."""
    write_jsonl(tmp_path / "in.jsonl", ROWS)
    words = ("run", "in.jsonl", "-o", "out.jsonl", "-m", "sim-small")
    program.batcher(*words, cwd=tmp_path, url=gateway.url)
    before = billed(gateway)
    ours, its = pty.openpty()
    try:
        with subprocess.Popen(
            program.command(*words, "--param", "top_p=1"),
            cwd=tmp_path, stdin=its, stdout=its, stderr=its, start_new_session=True,
            env=program.environment(OPENAI_BASE_URL=gateway.url, OPENAI_API_KEY=program.SECRET),
        ) as process:  # fmt: skip
            told = b""
            while b"or stop (stop)?" not in told:
                told += os.read(ours, 4096)
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130
            told += os.read(ours, 4096)
    finally:
        os.close(ours)
        os.close(its)
    last = told.decode().strip().splitlines()[-1]
    assert last.startswith("Go on with: batcher run in.jsonl -o out.jsonl")
    assert billed(gateway) == before


@pytest.mark.parametrize("edit", ["front", "reversed", "no record", "another input"])
def test_damage_heals_in_one_start_also_where_rows_moved(run, tmp_path, edit):
    """An answer that was found by its bytes is judged by its line, as one that was found by its place."""
    run()
    write_jsonl(tmp_path / "in.jsonl", ROWS)
    if edit == "another input":
        write_jsonl(tmp_path / "in.jsonl", [{"prompt": "another"}])
        run()
    path = Path("out.jsonl.run/journal-000001.jsonl")
    lines = path.read_bytes().split(b"\n")
    lines[30] = lines[30].replace(b'"content":"', b'"content":"!', 1)[: len(lines[30])]
    path.write_bytes(b"\n".join(lines))
    rows = {"front": [{"id": -1, "prompt": "new"}, *ROWS], "reversed": ROWS[::-1]}.get(edit, ROWS)
    write_jsonl(tmp_path / "in.jsonl", rows)
    if edit == "no record":
        Path("out.jsonl.run/run.json").unlink()
    assert run() == 1 + (edit == "front")
    out = read_jsonl(Path("out.jsonl"))
    assert [row["id"] for row in out] == [row["id"] for row in rows]
    assert {row["status"] for row in out} == {"ok"}
    assert run() == 0


def test_a_lost_answer_that_was_kept_counts_for_nothing_when_the_new_one_is_refused(
    run, gateway, tmp_path
):
    """Else each start would find the same damage, and none would end."""
    run()
    path = Path("out.jsonl.run/journal-000001.jsonl")
    lines = path.read_bytes().split(b"\n")
    lines[30] = lines[30].replace(b'"content":"', b'"content":"!', 1)[: len(lines[30])]
    path.write_bytes(b"\n".join(lines))
    write_jsonl(tmp_path / "in.jsonl", ROWS[::-1])
    gateway.gateway.shares = {"bad_request": 1.0}
    run()
    statuses = [row["status"] for row in read_jsonl(Path("out.jsonl"))]
    assert sorted(statuses) == ["bad_request", *["ok"] * 39]
    gateway.gateway.shares = {}
    assert run() == 1
    assert {row["status"] for row in read_jsonl(Path("out.jsonl"))} == {"ok"}


def test_a_dry_run_takes_no_notice_of_damage_away(tmp_path, gateway):
    """The run after it must still know, and keep the output."""
    write_jsonl(tmp_path / "in.jsonl", ROWS)
    words = ("in.jsonl", "-o", "out.jsonl", "-m", "sim-small")
    with_ = {"cwd": tmp_path, "url": gateway.url}
    program.batcher("run", *words, **with_)
    before = (tmp_path / "out.jsonl").read_bytes()
    path = tmp_path / "out.jsonl.run" / "journal-000001.jsonl"
    os.truncate(path, path.stat().st_size // 2)
    for more in ((), ("--param", "top_p=1", "--changed", "resend")):
        told = program.batcher("check", *words, *more, **with_).stderr
        assert told.count(b"became shorter") == 1
    gateway.gateway.shares = {"bad_request": 0.5}
    assert b"became shorter" in program.batcher("run", *words, **with_).stderr
    (kept,) = (tmp_path / "out.jsonl.run").glob("output-*")
    assert kept.read_bytes() == before


def test_a_segment_that_is_gone_or_shorter_is_said_once(tmp_path, gateway):
    """And its rows are bought again, which somebody with a copy of it may not want."""
    write_jsonl(tmp_path / "in.jsonl", ROWS)
    words = ("run", "in.jsonl", "-o", "out.jsonl", "-m", "sim-small")
    for n in ("10", "20", "40"):
        program.batcher(*words, "-n", n, cwd=tmp_path, url=gateway.url)
    folder = tmp_path / "out.jsonl.run"
    (folder / "journal-000001.jsonl").unlink()
    (folder / "journal-000002.jsonl").write_bytes(b"")
    (folder / "journal-000003.jsonl").unlink()
    before = billed(gateway)
    again = program.batcher(*words, cwd=tmp_path, url=gateway.url)
    assert b"journal-000001.jsonl is gone" in again.stderr
    assert b"journal-000002.jsonl became shorter" in again.stderr
    assert b"journal-000003.jsonl is gone" in again.stderr
    assert billed(gateway) == before + 40
    last = program.batcher(*words, cwd=tmp_path, url=gateway.url)
    assert b"journal-" not in last.stderr


def test_a_torn_line_is_said_once(tmp_path, gateway):
    """A kill leaves one; nobody wants to read of it every day."""
    write_jsonl(tmp_path / "in.jsonl", ROWS)
    words = ("run", "in.jsonl", "-o", "out.jsonl", "-m", "sim-small")
    program.batcher(*words, cwd=tmp_path, url=gateway.url)
    path = tmp_path / "out.jsonl.run" / "journal-000001.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    path.with_suffix(".idx").unlink()
    told = [program.batcher(*words, cwd=tmp_path, url=gateway.url).stderr for _ in range(2)]
    assert b"torn or damaged in one place" in told[0]
    assert b"torn" not in told[1]


def test_export_shows_what_is_answered_beside_a_running_process(tmp_path):
    """Hours before the end, and without touching the run."""
    write_jsonl(tmp_path / "in.jsonl", ROWS)
    with running(Simulation(speed=2)) as gateway:
        words = ("run", "in.jsonl", "-o", "out.parquet", "-m", "sim-large", "--concurrency")
        process = started(*words, "3", cwd=tmp_path, url=gateway.url)
        while billed(gateway) < 4:
            time.sleep(0.01)
        told = program.batcher("status", "out.parquet", cwd=tmp_path)
        made = program.batcher("export", "out.parquet", "part.jsonl", cwd=tmp_path)
        refused = program.batcher("clean", "out.parquet", cwd=tmp_path)
        process.send_signal(signal.SIGINT)
        process.communicate()
        assert program.batcher(*words, "40", cwd=tmp_path, url=gateway.url).returncode == 0
    assert made.returncode == 3, made.stderr
    part = read_jsonl(tmp_path / "part.jsonl")
    assert 0 < len(part) < 40
    assert b"are not answered yet" in made.stderr
    assert refused.returncode == 2
    assert b"another batcher is at work" in refused.stderr
    assert told.returncode == 0
    assert b"out.parquet: running (pid" in told.stdout
    assert b"of 40 pending" in told.stdout
    whole = pq.read_table(tmp_path / "out.parquet").to_pylist()
    by_row = {row["row"]: row["content"] for row in whole}
    assert len(by_row) == 40
    assert all(by_row[row["row"]] == row["content"] for row in part)


def test_status_and_clean_after_the_end(run, tmp_path):
    """The journal is removed only when the output holds what it holds."""
    run()
    told = program.batcher("status", "out.jsonl", cwd=tmp_path)
    assert b"out.jsonl: done" in told.stdout
    assert b"sim-small: 40 ok, 0 of 40 pending" in told.stdout
    os.rename("out.jsonl", "away.jsonl")
    refused = program.batcher("clean", "out.jsonl", cwd=tmp_path)
    assert refused.returncode == 2
    assert b"out.jsonl is not there, or not as batcher wrote it" in refused.stderr
    os.rename("away.jsonl", "out.jsonl")
    assert program.batcher("clean", "out.jsonl", cwd=tmp_path).returncode == 0
    assert not os.path.exists("out.jsonl.run")
    for command in ("status", "export", "clean", "explain"):
        words = ("out.jsonl", "0") if command == "explain" else ("out.jsonl",)
        ended = program.batcher(command, *words, cwd=tmp_path)
        assert ended.returncode == 2
        assert b"name the --output of a run" in ended.stderr


def test_a_kill_is_said_by_the_next_start(tmp_path):
    """Who pays the bill wants to know what may stand on it twice."""
    write_jsonl(tmp_path / "in.jsonl", ROWS)
    with running(Simulation(speed=5)) as gateway:
        words = ("run", "in.jsonl", "-o", "out.jsonl", "-m", "sim-large", "--concurrency", "4")
        process = started(*words, cwd=tmp_path, url=gateway.url)
        while billed(gateway) < 5:
            time.sleep(0.01)
        process.kill()
        process.communicate()
        assert b"was killed" in program.batcher("status", "out.jsonl", cwd=tmp_path).stdout
        ended = program.batcher(*words, cwd=tmp_path, url=gateway.url)
    assert b"The run before was killed" in ended.stderr
    assert ended.returncode == 0


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_before_the_first_request_ends_at_once(tmp_path, stop):
    """Here while stdin is read, which has no end."""
    with subprocess.Popen(
        program.command("run", "-", "-o", "out.jsonl", "-m", "sim-small", "--simulate"),
        cwd=tmp_path, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=program.environment(),
    ) as process:  # fmt: skip
        process.stdin.write(b'{"prompt": "a"}\n')
        process.stdin.flush()
        while not list(tmp_path.glob("out.jsonl.run/stdin.copying")):
            time.sleep(0.01)
        process.send_signal(stop)
        assert process.wait(20) == 130
        assert b"nothing was sent" in process.stderr.read()


def test_ctrl_c_while_the_output_is_written(run, tmp_path, monkeypatch):
    """Once lets it be finished, twice leaves the old one whole; the journal has everything."""
    run()
    old = Path("out.jsonl").read_bytes()
    write_jsonl(tmp_path / "in.jsonl", ROWS[1:])
    from batcher.runtime import runner as of
    from batcher.write import finish

    runners = []
    made, export = of.Runner.__init__, finish.export

    def noted(self, *args, **more):
        runners.append(self)
        made(self, *args, **more)

    def slow(*args, go_on, **more):
        runners[-1].stop()
        runners[-1].abandon()
        return export(*args, go_on=go_on, **more)

    monkeypatch.setattr(of.Runner, "__init__", noted)
    monkeypatch.setattr(finish, "export", slow)
    with pytest.raises(batcher.RunStopped, match="while the output was written"):
        run()
    assert Path("out.jsonl").read_bytes() == old
    assert not [name for name in os.listdir() if ".tmp-" in name]
    monkeypatch.undo()
    os.chdir(tmp_path)
    assert run() == 0
    assert len(read_jsonl(Path("out.jsonl"))) == 39


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_finished_output_opens_everywhere(tmp_path, gateway, monkeypatch, suffix):
    """Where the analysis goes on: pyarrow, pandas, DuckDB."""
    monkeypatch.chdir(tmp_path)
    rows = [
        {"id": n, "prompt": f"é\u2028 {n}", "tags": ["a"] * n, "of": {"n": n}} for n in range(5)
    ]
    write_jsonl(tmp_path / "in.jsonl", rows)
    output = f"out.{suffix}"
    batcher.run("in.jsonl", output, models=["sim-small"], base_url=gateway.url)
    table = pq.read_table(output) if suffix == "parquet" else arrow_json.read_json(output)
    frame = pd.read_parquet(output) if suffix == "parquet" else pd.read_json(output, lines=True)
    reader = "read_parquet" if suffix == "parquet" else "read_json"
    found = duckdb.sql(f"select id, prompt, status, total_tokens from {reader}('{output}')")
    expected = table.select(["id", "prompt", "status", "total_tokens"]).to_pylist()
    assert [row["id"] for row in expected] == list(range(5))
    assert found.fetchall() == [tuple(row.values()) for row in expected]
    assert frame["prompt"].tolist() == [row["prompt"] for row in rows]
    assert frame["total_tokens"].tolist() == [row["total_tokens"] for row in expected]
