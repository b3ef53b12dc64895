"""Each row has its own answer or none, whatever was put back, moved, edited or replaced.

An answer names the bytes of its request, so one beside another row shows.
"""

import contextlib
import os
import shutil
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from batcher.api import Runner
from batcher.cli.export import export
from batcher.errors import JobError
from batcher.job.job import Job
from batcher.records import Outcome, Result
from batcher.write import sidecar
from batcher.write.entries import load_all
from batcher.write.journal import Journal
from batcher.write.lines import line_of
from batcher.write.manifest import Manifest
from batcher.write.moved import Moved
from batcher.write.names import MOVED
from tests.support import echo
from tests.support.program import read_jsonl, write_jsonl
from tests.test_identity import run as ran

RUN = Path("out.jsonl.run")
FIRST = RUN / "journal-000001.jsonl"


@pytest.fixture(scope="module")
def gateway():
    with echo.running() as serving:
        yield serving


class Output:
    """One output: rows in, how many answers were bought, and each row's answer checked."""

    def __init__(self, gateway):
        self.gateway, self.said = gateway, []

    def rows(self, texts):
        write_jsonl(Path("in.jsonl"), [{"prompt": text} for text in texts])

    def run(self, on_request=lambda: None, **options):
        before = self.gateway.bought.total()
        self.gateway.heard = lambda _body: on_request()
        job = Job.of(
            inputs=["in.jsonl"], output="out.jsonl", models=["m"], base_url=self.gateway.url,
            quiet=True, **options,
        )  # fmt: skip
        try:
            ran(Runner(job, say=self.said.append))
        finally:
            self.gateway.heard = lambda _body: None
        samples = options.get("samples", 1)
        assert self.each_has_its_own("out.jsonl") == samples * len(read_jsonl(Path("in.jsonl")))
        return self.gateway.bought.total() - before

    def each_has_its_own(self, path):
        """How many rows an output has; asserts that each has the answer to its own request."""
        rows = read_jsonl(Path(path))
        for row in rows:
            own = echo.name(echo.asked(row["prompt"], "m"))
            assert row["status"] == "ok"
            assert row["content"].partition(":")[0] == own
        return len(rows)


@pytest.fixture
def output(tmp_path, monkeypatch, gateway):
    monkeypatch.chdir(tmp_path)
    return Output(gateway)


TEN = [f"row {n}" for n in range(10)]


def test_an_older_run_folder_put_back_over_a_newer_one(output):
    """As tar, cp -a or rsync without --delete do, together with the older input."""
    output.rows(TEN)
    output.run()
    shutil.copytree(RUN, "backup")
    output.rows(["new 1", "new 2", "new 3", *TEN])
    assert output.run() == 3
    output.rows(TEN)
    shutil.copytree("backup", RUN, dirs_exist_ok=True)
    assert export("out.jsonl", "part.jsonl") in (0, 3)
    output.each_has_its_own("part.jsonl")
    output.said.clear()
    assert output.run() == 0
    assert "runs that run.json does not know" in output.said[0]
    output.said.clear()
    assert output.run() == 0
    assert not output.said


def test_two_states_of_one_run_folder_mixed(output):
    """Both continue one state, with different rows at the same positions."""
    output.rows(TEN)
    output.run()
    shutil.copytree(RUN, "before")
    output.rows([*TEN, "one"])
    output.run()
    shutil.copytree(RUN, "one")
    shutil.rmtree(RUN)
    shutil.copytree("before", RUN)
    output.rows([*TEN, "two"])
    output.run()
    for path in Path("one").glob("journal-*"):
        shutil.copy2(path, RUN)
    Path("out.jsonl").unlink()
    export("out.jsonl", "part.jsonl")
    output.each_has_its_own("part.jsonl")
    output.run()


@pytest.mark.parametrize(
    "hurt",
    [
        lambda lines: lines[1:],
        lambda lines: [*lines[:3], lines[7], *lines[3:]],
        lambda lines: lines[::-1],
    ],
    ids=["a line removed", "a line doubled", "lines moved"],
)
def test_lines_moved_in_a_segment_that_later_runs_need(output, hurt):
    output.rows(TEN)
    output.run()
    output.rows([*TEN[:5], "new", *TEN[5:]])
    assert output.run() == 1
    lines = FIRST.read_bytes().splitlines(True)
    FIRST.write_bytes(b"".join(hurt(lines)))
    assert output.run() == max(0, len(lines) - len(hurt(lines)))


@pytest.mark.parametrize("copy", [shutil.copy2, os.replace])
def test_a_segment_renamed_or_copied_in_the_folder(output, copy):
    output.rows(TEN)
    output.run()
    output.rows([*TEN[:5], "new", *TEN[5:]])
    output.run()
    for suffix in (".jsonl", ".idx"):
        copy(FIRST.with_suffix(suffix), RUN / f"journal-000007{suffix}")
    assert output.run() == 0


def test_one_digit_of_run_json_changed(output):
    """Nothing in the file counts then, and each answer is found by its request."""
    output.rows(TEN)
    output.run()
    output.rows(["new", *TEN])
    output.run()
    whole = (RUN / "run.json").read_bytes()
    digits = [at for at, byte in enumerate(whole) if 48 <= byte <= 57]
    for at in digits[:: len(digits) // 3]:
        edited = bytearray(whole)
        edited[at] = 48 + (edited[at] - 47) % 10
        (RUN / "run.json").write_bytes(edited)
        with pytest.raises(JobError):
            export("out.jsonl", "part.jsonl")
        with contextlib.suppress(JobError):  # An impossible value, or a later version.
            assert output.run() == 0
        (RUN / "run.json").write_bytes(whole)


@pytest.mark.parametrize("back", [True, False], ids=["and put back", "for good"])
def test_an_input_replaced_during_a_run_by_one_of_equal_size_and_time(output, back):
    output.rows(TEN)
    shutil.copy2("in.jsonl", "first.jsonl")
    stat = os.stat("in.jsonl")
    other = Path("in.jsonl").read_bytes().replace(b"row", b"new")
    heard = []

    def replace():
        heard.append(1)
        if len(heard) == 3:
            Path("in.jsonl").write_bytes(other)
            os.utime("in.jsonl", ns=(stat.st_atime_ns, stat.st_mtime_ns))
        if len(heard) == 5 and back:
            shutil.copy2("first.jsonl", "in.jsonl")

    output.run(replace, concurrency=1)
    output.run()


def test_a_killed_run_and_an_input_touched_since(output):
    """What that run read is unknown, so its answers are found by their requests."""
    output.rows(TEN)
    output.run()
    manifest = Manifest.load(RUN)
    epoch = manifest.epochs[-1]
    epoch.runs, epoch.open = [], epoch.runs
    manifest.save(RUN)
    assert export("out.jsonl", "part.jsonl") == 0
    shutil.copy2("in.jsonl", "copy")
    os.replace("copy", "in.jsonl")
    with pytest.raises(JobError, match="run the job again"):
        export("out.jsonl", "part.jsonl")
    assert output.run() == 0
    assert "touched since a run that did not end" in output.said[0]


def test_a_run_folder_of_the_first_version(output):
    """Its lines name no run: answers are found by their requests, once, without a message."""
    output.rows(TEN)
    output.run()
    lines = FIRST.read_bytes().splitlines()
    old = [line_of(line[: line.rindex(b',"run":')] + b"}") for line in lines]
    FIRST.write_bytes(b"".join(old))
    FIRST.with_suffix(".idx").unlink()
    written = msgspec.json.decode((RUN / "run.json").read_bytes())
    del written["check"], written["strange"], written["edited"]
    written["version"] = 1
    for epoch in written["epochs"]:
        del epoch["runs"], epoch["open"]
        epoch["first_segment"] = 1
    (RUN / "run.json").write_bytes(msgspec.json.encode(written))
    assert output.run() == 0
    assert output.said == []
    moved = (RUN / MOVED).stat().st_mtime_ns
    assert output.run() == 0
    assert (RUN / MOVED).stat().st_mtime_ns == moved
    output.rows(["new", *TEN])
    assert output.run() == 1


def test_inserted_rows_add_no_line_to_the_journal_for_those_that_moved(output):
    output.rows([f"row {n}" for n in range(400)])
    output.run()
    for n in range(2):
        output.rows([f"new {m}" for m in range(n + 1)] + [f"row {m}" for m in range(400)])
        before = sum(path.stat().st_size for path in RUN.iterdir())
        assert output.run() == 1
        assert sum(path.stat().st_size for path in RUN.iterdir()) - before < 3000


def a_journal(folder, run="0123456789ab", rows=5, begin=0):
    folder.mkdir(exist_ok=True)
    log = Journal(folder, run=run)
    for row in range(begin, begin + rows):
        log.put(Result(row=row, model="m", sample=0, key=f"{row:032x}", status=Outcome.OK, custom_id=str(row)))  # fmt: skip
    log.close()
    return folder / "journal-000001.jsonl"


def test_a_sidecar_counts_only_for_the_segment_it_was_made_of(tmp_path):
    """Another segment of equal size and time has other lines."""
    one, two = a_journal(tmp_path / "a"), a_journal(tmp_path / "b", begin=5)
    assert one.stat().st_size == two.stat().st_size
    time.sleep(0.01)
    stat = one.stat()
    one.write_bytes(two.read_bytes())
    os.utime(one, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert sidecar.load(one, 1).entries["row"].tolist() == [5, 6, 7, 8, 9]


def test_moves_count_only_for_a_known_run_and_the_same_lines(tmp_path):
    path = a_journal(tmp_path)
    found = sidecar.load(path, 1).entries[[1, 3]].copy()
    found["row"], found["sample"] = [7, 2], [0, 3]
    Moved().more("a run", load_all(tmp_path), found).save(tmp_path)
    (segment,) = load_all(tmp_path)
    taken, there = Moved.load(tmp_path, {"a run"}).of(segment)
    assert taken.tolist() == [False, True, False, True, False]
    assert there[["row", "sample"]].tolist() == [(7, 0), (2, 3)]
    assert not Moved.load(tmp_path, {"another"}).parts
    path.write_bytes(b"".join(path.read_bytes().splitlines(True)[1:]))
    (segment,) = load_all(tmp_path)
    assert not np.any(Moved.load(tmp_path).of(segment)[0])


@pytest.mark.parametrize("more", [{}, {"samples": 2}])
def test_an_answer_whose_line_was_copied_is_given_to_one_row(output, more):
    """No equal row or other sample gets the copy: the answer was paid for once."""
    output.rows(texts := [f"c{n} {more}" for n in range(4)])
    output.run()
    output.rows(["first", *texts])
    output.run()
    shutil.copy(FIRST, RUN / "journal-000007.jsonl")
    output.rows(rows := ["first", *texts] if more else ["first", *texts, texts[0]])
    assert output.run(**more) == (5 if more else 1)
    answers = [row["content"] for row in read_jsonl(Path("out.jsonl"))]
    assert len({*answers}) == len(answers) == len(rows) * more.get("samples", 1)
