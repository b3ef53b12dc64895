"""An output that is a folder of Parquet files keeps all promises that one file keeps."""

import datetime
import os
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import batcher
from batcher.errors import BatcherError, JobError, OutputError
from batcher.job.job import Job
from batcher.runtime.output import check_output, sweep
from batcher.runtime.run_folder import keep_output
from batcher.write import parquet, parts
from tests.support import program

TABLE = pa.table(
    {
        "prompt": [f"What is {n} + {n}?" for n in range(10)],
        "day": [datetime.date(2026, 2, n + 1) for n in range(10)],
        "tags": [["x", "y"], []] * 5,
        "kind": pa.array(["a", "b"] * 5).dictionary_encode(),
        "wide": [{f"f{n}": n for n in range(80)}] * 10,
    }
)


@pytest.fixture
def run(tmp_path, monkeypatch, gateway):
    """Runs the table, with four rows a row group and one row group a part."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_BASE_URL", gateway.url)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.delenv("AIHUBMIX_API_KEY", raising=False)
    monkeypatch.setattr(parquet, "_GROUP_ROWS", 4)
    monkeypatch.setattr(parquet, "_PART_BYTES", 100)
    pq.write_table(TABLE, "in.parquet")

    def run(output="labels/", rows="in.parquet", **more):
        return batcher.run(rows, output, **{"models": ["sim-small"], **more})

    return run


def printed(*words: str) -> str:
    """What a command prints; it must succeed."""
    ended = program.batcher(*words, cwd=Path.cwd())
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.decode()


def billed(gateway) -> int:
    return sum(model.billed for model in list(gateway.ledger.models.values()))


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def names() -> set[str]:
    return set(os.listdir())


def test_the_parts_together_are_what_one_file_would_be(run):
    """The same rows, order and types; models and samples of a row are neighbours."""
    report = run(models=["sim-small", "sim-large"], samples=2)
    assert report.exit_status == 0
    assert report.output == "labels/"
    assert names() == {"in.parquet", "labels", "labels.run"}
    printed("export", "labels/", "one.parquet")
    one = pq.read_table("one.parquet")
    assert sorted(contents("labels")) == [f"part-{n:05}.parquet" for n in range(10)]
    found = [pq.read_table(path) for path in parts.files(Path("labels"))]
    assert [len(part) for part in found] == [4] * 10
    assert all(part.schema.equals(one.schema, check_metadata=True) for part in found)
    assert pa.concat_tables(found).equals(one)
    assert one["row"].to_pylist() == [n // 4 for n in range(40)]


def test_a_part_ends_with_the_row_group_that_fills_it(run, monkeypatch):
    """No part is empty, and only the last one is smaller."""
    run()
    group = pq.ParquetFile("labels/part-00000.parquet").metadata.row_group(0)
    size = sum(group.column(n).total_compressed_size for n in range(group.num_columns))
    monkeypatch.setattr(parquet, "_PART_BYTES", size * 3 // 2)
    run(samples=2)
    found = [pq.ParquetFile(path).metadata for path in parts.files(Path("labels"))]
    assert [of.num_rows for of in found] == [8, 8, 4]
    assert [of.num_row_groups for of in found] == [2, 2, 1]


def test_a_second_start_sends_nothing_and_makes_the_same_parts(run, gateway):
    """A start with fewer rows leaves no part of the earlier output."""
    run()
    before = contents("labels")
    assert len(before) == 3
    run()
    assert billed(gateway) == 10
    assert contents("labels") == before
    run(limit=3)
    assert list(contents("labels")) == ["part-00000.parquet"]
    assert pq.read_table("labels")["row"].to_pylist() == [0, 1, 2]
    assert names() == {"in.parquet", "labels", "labels.run"}


def test_an_output_without_rows_is_one_part(run, gateway):
    """So a reader finds the columns. An export makes its folder."""
    gateway.gateway.shares = {"server_error": 1.0}
    run(limit=1, max_retries=0)
    Path("labels.run/journal-000001.jsonl").write_bytes(b"")
    Path("labels.run/journal-000001.idx").unlink(missing_ok=True)
    assert program.batcher("export", "labels/", "none/", cwd=Path.cwd()).returncode == 3
    assert list(contents("none")) == ["part-00000.parquet"]
    assert pq.read_table("none").num_rows == 0
    assert pq.read_schema("none/part-00000.parquet").field("status").type == pa.string()


KILLED = """
import os, sys
from pathlib import Path
from batcher.write import parts

left = int(sys.argv[1])

def counted(real):
    def step(*args, **more):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return real(*args, **more)
    return step

os.rename, os.unlink, os.rmdir = map(counted, (os.rename, os.unlink, os.rmdir))
parts._put(Path(sys.argv[2]), Path("labels"))
"""


@pytest.mark.parametrize("steps", range(10))
def test_a_kill_at_any_moment_leaves_a_whole_folder(run, gateway, steps):
    """The old one or the new one; the next start moves it back to its place and continues."""
    run()
    whole = {"old": contents("labels")}
    made = f".labels.tmp-{dead()}"
    shutil.copytree("labels", made)
    Path(made, "part-00002.parquet").unlink()
    whole["new"] = contents(made)
    words = [sys.executable, "-c", KILLED, str(steps), made]
    # Four renames (the first finds the old one there), then three parts and their folder are removed.
    assert subprocess.run(words, check=False).returncode == (9 if steps < 9 else 0)
    assert Path("labels").exists() == (steps != 2)
    found = "old" if steps < 3 else "new"
    assert contents(".labels.earlier" if steps == 2 else "labels") == whole[found]
    run(dry_run=True)
    assert contents("labels") == whole[found]
    assert names() == {"in.parquet", "labels", "labels.run"}
    run()
    assert contents("labels") == whole["old"]
    assert billed(gateway) == 10


def test_the_new_folder_is_synced_before_the_old_one_is_removed(run, monkeypatch, tmp_path):
    """A power cut loses what was not synced, and may keep renames that came later."""
    run()
    done = []
    fsync, rename = os.fsync, os.rename

    def synced(handle):
        fsync(handle)
        done.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)

    def renamed(old, new):
        rename(old, new)
        done.append(f"{Path(old).name} → {Path(new).name}")

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    run(limit=9)
    made = f".labels.tmp-{os.getpid()}"
    assert done[done.index("part-00000.parquet") :] == [
        *(f"part-{n:05}.parquet" for n in range(3)),
        made,
        "labels → .labels.earlier",
        f"{made} → labels",
        tmp_path.name,
        ".labels.earlier → .labels.tmp-earlier",
        "written.json.tmp",
        "labels.run",
    ]


def test_the_old_folder_is_moved_back_when_the_new_one_cannot_take_its_place(run, monkeypatch):
    """A disk that fails between the renames only costs the new output."""
    run()
    before = contents("labels")
    real = os.rename

    def rename(old, new):
        if Path(new).name == "labels" and ".tmp-" in str(old):
            real(old, new) if Path("labels").exists() else refused()
        else:
            real(old, new)

    def refused():
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OutputError, match=r"labels: it cannot be written.*labels\.run;"):
        run(limit=3)
    assert contents("labels") == before
    assert names() == {"in.parquet", "labels", "labels.run"}


def test_two_processes_can_replace_the_folder_at_the_same_time(run, monkeypatch):
    """An export beside a run: the folder of the later one remains, whole."""
    run()
    shutil.copytree("labels", "theirs")
    shutil.copytree("labels", "mine")
    Path("mine/part-00001.parquet").unlink()
    wanted = contents("mine")
    real = os.rename

    def rename(old, new):
        real(old, new)
        if str(old) == "labels" and Path("theirs").exists():
            real("theirs", "labels")

    monkeypatch.setattr(os, "rename", rename)
    parts._put(Path("mine"), Path("labels"))
    assert contents("labels") == wanted
    assert names() == {"in.parquet", "labels", "labels.run"}


def test_a_folder_that_batcher_did_not_write_is_refused(run, gateway):
    """Like a file; --overwrite replaces it. An empty one is accepted."""
    run("theirs/")
    shutil.rmtree("theirs.run")
    before = contents("theirs")
    with pytest.raises(JobError, match="no record of having written it"):
        run("theirs/", limit=3)
    assert contents("theirs") == before
    assert billed(gateway) == 10
    run("theirs/", limit=3, overwrite=True)
    assert pq.read_table("theirs").num_rows == 3
    Path("empty").mkdir()
    run("empty/")
    assert pq.read_table("empty").num_rows == 10


def test_a_folder_with_anything_else_in_it_is_never_removed(run, gateway):
    """Not by --overwrite or export, nor when something is added during the run."""
    run()
    Path("labels/notes.txt").write_text("mine")
    before = contents("labels")
    for more in ({}, {"overwrite": True}, {"dry_run": True}):
        with pytest.raises(JobError, match=r"labels/notes\.txt: it is no part of an output; move"):
            run(**more)
    refused = program.batcher("export", "labels/", cwd=Path.cwd())
    assert refused.returncode == 2
    assert b"notes.txt" in refused.stderr
    with pytest.raises(OutputError, match=r"notes\.txt"), parts.replacing(Path("labels")):
        pass
    assert contents("labels") == before
    assert names() == {"in.parquet", "labels", "labels.run"}
    assert billed(gateway) == 10


@pytest.mark.parametrize("what", ["file", "link", "up", "root"])
def test_a_folder_replaces_no_file_or_link(run, what):
    """A link would stay behind, pointing to what is gone."""
    target = {"up": "../", "root": "/"}.get(what, "labels/")
    if what == "file":
        Path("labels").write_text("mine")
    elif what == "link":
        Path("there").mkdir()
        Path("labels").symlink_to("there")
    with pytest.raises(JobError, match=r"name of its own|a file or a link"):
        run(target, overwrite=True, rows=TABLE)
    assert not Path("labels.run").exists()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"output": "labels"}, "or in / for a folder"),
        ({"output": "labels.parquet/"}, r"no folder of Parquet files ends in \.parquet"),
        ({"output": "labels.jsonl/"}, r"no folder of Parquet files ends in \.jsonl"),
        ({"output": "labels.run/"}, r"no folder of Parquet files ends in \.run"),
        ({"output": "s3://bucket/labels/"}, "cannot appear whole in object storage"),
        ({"output": "labels/", "format": "openai"}, "lines of a batch are JSONL"),
    ],
)
def test_ambiguous_names_are_refused(asked, said):
    """No two outputs share a run folder: `labels.run` is that of `labels/` alone."""
    with pytest.raises(JobError, match=said):
        Job(**asked)


@pytest.mark.parametrize("name", ["labels", "labels/"])
def test_commands_read_it_as_they_read_a_file(run, name):
    """With the slash and without."""
    labels = {"labels": ["1", "2"], "models": ["sim-small", "sim-large"], "reask": 0}
    run(**labels)
    one = "one.parquet"
    assert program.batcher("export", name, one, cwd=Path.cwd()).returncode == 3
    assert printed("show", name, "--sample", "7") == printed("show", one, "--sample", "7")
    figures = printed("report", name, "--gold", "kind", "--json", "--vote", "votes.parquet")
    assert figures == printed(
        "report", one, "--gold", "kind", "--json", "--vote", "one-votes.parquet"
    )
    assert pq.read_table("votes.parquet").equals(pq.read_table("one-votes.parquet"))
    assert pq.read_schema("votes.parquet").field("wide").type == TABLE.schema.field("wide").type
    printed("report", name)
    assert Path("labels.html").exists()
    assert "the same answer" in printed("compare", name, one)
    assert printed("status", name).count(", 0 of 10 pending") == 2
    assert "1. " in printed("explain", name, "3")
    before = pq.read_table("labels")
    assert program.batcher("export", name, cwd=Path.cwd()).returncode == 3
    assert pq.read_table("labels").equals(before)
    inside = program.batcher("report", name, "--vote", "labels/votes.jsonl", cwd=Path.cwd())
    assert b"that is the output itself" in inside.stderr
    missing = program.batcher("show", "labels.run", cwd=Path.cwd())
    assert b"there is no such output" in missing.stderr


def test_an_export_never_has_fewer_rows_than_the_output_it_replaces(run):
    """It counts the rows of all parts."""
    run()
    before = contents("labels")
    journal = Path("labels.run/journal-000001.jsonl")
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:7]))
    journal.with_suffix(".idx").unlink(missing_ok=True)
    for killed in (False, True):  # Killed between two renames: the parts are in .labels.earlier.
        if killed:
            os.rename("labels", ".labels.earlier")
        refused = program.batcher("export", "labels/", cwd=Path.cwd())
        assert b"labels has 10 rows, and only 7" in refused.stderr
        assert contents("labels") == before
    shutil.rmtree("labels")
    assert program.batcher("export", "labels/", cwd=Path.cwd()).returncode == 3
    assert pq.read_table("labels").num_rows == 7


def test_clean_checks_every_part(run):
    """One that is gone or was replaced lacks its answers."""
    run()
    part = Path("labels/part-00001.parquet")
    shutil.copy("labels/part-00000.parquet", part)
    refused = program.batcher("clean", "labels/", cwd=Path.cwd())
    assert b"labels is not there, or not as batcher wrote it" in refused.stderr
    printed("export", "labels/")
    printed("clean", "labels/")
    assert names() == {"in.parquet", "labels"}


def test_a_dry_run_of_some_rows_estimates_the_cost_of_all(run):
    """By the rows of all parts."""
    Path("prices.csv").write_text("model,input,output\nsim-small,1,2\n")
    report = run(limit=9, prices="prices.csv")
    projected = report.summary.models["sim-small"].projected
    assert projected is not None
    other = run("one.parquet", limit=9, prices="prices.csv")
    assert projected == other.summary.models["sim-small"].projected


def test_dataframes_and_databases_read_the_folder(run):
    """Like any folder of Parquet files."""
    run()
    wanted = TABLE["prompt"].to_pylist()
    assert pd.read_parquet("labels/")["prompt"].tolist() == wanted
    assert ds.dataset("labels").to_table()["prompt"].to_pylist() == wanted
    found = duckdb.sql("select prompt from 'labels/*.parquet' order by \"row\"").fetchall()
    assert [prompt for (prompt,) in found] == wanted


def test_it_can_be_the_input_of_another_run(run):
    """With its types, however many parts there are."""
    run()
    for name in ("labels/", "labels"):
        run("next.parquet", name, prompt="{{ prompt }}", overwrite=True)
        found = pq.read_table("next.parquet")
        assert found.select(TABLE.column_names).equals(
            pq.read_table("labels").select(TABLE.column_names)
        )
        assert found["row"].to_pylist() == list(range(10))
        assert found["input_row"].to_pylist() == list(range(10))


def test_it_cannot_be_the_input_of_its_own_run(run, gateway):
    """Its parts are left out of a folder or a glob; naming one is an error."""
    Path("data").mkdir()
    os.replace("in.parquet", "data/in.parquet")
    for inputs in ("data", "data/**/*.parquet"):
        for _ in range(2):
            run("data/labels/", inputs)
    assert billed(gateway) == 10
    for inputs in ("data/labels", "data/labels/part-00000.parquet"):
        with pytest.raises(JobError, match="it is the input and the output"):
            run("data/labels/", inputs)


def test_the_parts_are_kept_when_answers_in_them_are_lost_from_the_journal(run, gateway):
    """Unchanged, as a model may refuse to answer again."""
    run()
    before = contents("labels")
    Path("labels.run/journal-000001.jsonl").unlink()
    gateway.gateway.shares = {"quota": 1.0}
    with pytest.raises(BatcherError):
        run()
    (kept,) = Path("labels.run").glob("output-*")
    assert all(Path(kept, name).samefile(Path("labels", name)) for name in before)
    gateway.gateway.shares = {}
    run(limit=3)
    assert contents(kept) == before
    assert len(contents("labels")) == 1


def test_the_same_parts_are_kept_once(run):
    """However often a start finds damage; a new output is kept again."""
    for number, limit in enumerate([9, None, 3, 10]):
        if limit is not None:
            run(limit=limit)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("time.strftime", lambda *_, number=number: str(number))
            keep_output(Path("labels/"), Path("labels.run"))
    kept = {path.name for path in Path("labels.run").glob("output-*")}
    assert kept == {"output-0", "output-2", "output-3"}


def test_only_files_of_dead_processes_are_removed(run):
    """Also folders."""
    left = Path(f".labels.tmp-{dead()}")
    theirs, alive, own = (Path(f".labels.tmp-{n}") for n in ("theirs", os.getppid(), os.getpid()))
    for folder in (left, theirs, alive, own):
        folder.mkdir()
        Path(folder, "part-00000.parquet").touch()
    Path(theirs, "thesis.txt").touch()
    sweep(Path("labels"))
    assert not left.exists()
    assert len(contents(theirs)) == 2
    assert alive.exists()
    run()
    assert not own.exists()
    Path(".labels.earlier").mkdir()
    Path(".labels.earlier/thesis.txt").touch()
    with pytest.raises(OutputError, match=r"earlier/thesis\.txt: it is no part"):
        run(limit=3)
    assert pq.read_table("labels").num_rows == 10


def test_a_run_folder_that_batcher_did_not_make_is_refused(run):
    """Such as an output of that name."""
    Path("labels.run").mkdir()
    Path("labels.run/part-00000.parquet").touch()
    with pytest.raises(JobError, match="in the way of the run folder"):
        check_output(Path("labels"), Path("labels.run"), Job(output="labels/"))


def dead() -> int:
    """The number of a process that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid
