"""A full disk: what was billed is written all the same, it is said, and making room is enough."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from batcher.errors import OutputError
from batcher.records import Outcome, Result
from batcher.simulate import server
from batcher.simulate.settings import MODELS, Simulation
from batcher.write import journal, sidecar
from tests.support.program import command, environment, read_jsonl, write_jsonl
from tests.torture import LONG, dice, long_only, tell, times
from tests.torture.books import opened
from tests.torture.disks import fill, tmpfs

# Answers of 20 kB that take no time to write, so that the disk is full soon.
FAST = tuple(replace(model, tokens_per_s=float("inf")) for model in MODELS)
PADDING = 20_000
ROOM = 100 << 20  # The program keeps 64 MB of it in reserve.
LIMITS = ("--concurrency", "16", "--max-retries", "20")


_begun = []


@pytest.fixture(autouse=True)
def _none_is_left():
    """A test that fails leaves no process behind that holds its disk."""
    yield
    while _begun:
        process = _begun.pop()
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def long_answers(monkeypatch):
    short = server.answer
    monkeypatch.setattr(server, "answer", lambda *of: short(*of) + " so" * (PADDING // 3))


@pytest.fixture
def disk(tmp_path):
    with tmpfs(tmp_path / "disk", f"{ROOM}") as folder:
        yield folder


def job(folder, rows, output, *more):
    texts = [{"text": f"Ticket {n}: parcel {n}"} for n in range(rows)]
    path = write_jsonl(folder / "in.jsonl", texts)
    words = ("--prompt", "{{ text }}", *LIMITS, *more)
    return ("run", path, "-o", output, "-m", "sim-small", "-m", "sim-medium", *words)


def begun(words, cwd, url, before="", **pipes):
    """Starts the program; `before` is Python that runs first, in the same process."""
    run = command(*words)
    if before:
        script = f"{before}\nfrom batcher.__main__ import main\nmain()"
        run = [sys.executable, "-c", script, *run[3:]]
    env = environment(OPENAI_BASE_URL=url, OPENAI_API_KEY="none")
    nowhere, pipe = subprocess.DEVNULL, subprocess.PIPE
    pipes = {"stdin": nowhere, "stdout": pipe, "stderr": pipe, **pipes}
    process = subprocess.Popen(run, cwd=cwd, env=env, **pipes)
    _begun.append(process)
    return process


def ended(process, seconds=120, stdin=None):
    _, stderr = process.communicate(stdin, timeout=seconds)
    _begun.remove(process)
    return process.returncode, stderr.decode()


def assert_says_so(status, stderr, name):
    """One sentence that names the disk and what to do, and no traceback."""
    assert "Traceback" not in stderr, stderr
    assert status == 1, stderr
    words = " ".join(stderr.split())
    assert re.search("(?i)no space left|disk is full|full disk|no room", words), stderr
    assert name in words, stderr
    assert re.search("(?i)make room", words), stderr
    assert "same command" in words, stderr


def assert_finishes(words, cwd, books, rows, output, **more):
    """The same command, with room: everything is there, and nothing was billed twice."""
    status, stderr = ended(begun(words, cwd, books.url, **more))
    assert status == 0, stderr
    out = read_jsonl(output)
    assert [(r["row"], r["model"]) for r in out] == [
        (n, model) for n in range(rows) for model in ("sim-small", "sim-medium")
    ]
    assert {r["status"] for r in out} == {"ok"}
    assert (len(books.bills), books.doubled()) == (2 * rows, 0)


def until_billed(books, answers, process):
    end = time.monotonic() + 300
    while len(books.bills) < answers and process.poll() is None:
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.002)


@pytest.mark.parametrize(
    "faults",
    [pytest.param({}, marks=long_only), {"http_500": 0.1, "html": 0.05}],
    ids=["calm", "faults"],
)
def test_what_was_billed_when_the_disk_fills_up_is_written(tmp_path, disk, long_answers, faults):
    """The money is spent by then: the reserve holds what is in flight."""
    rows = times(300, 700)
    output, folder = disk / "out.jsonl", disk / "out.jsonl.run"
    words = job(tmp_path, rows, output)
    with opened(Simulation(speed=5, models=FAST, faults=faults)) as books:
        process = begun(words, tmp_path, books.url)
        until_billed(books, 4, process)
        ballast = fill(disk, dice("room").randrange(1 << 20, 4 << 20))
        status, stderr = ended(process)
        books.quiet()
        billed, lost = len(books.bills), books.lost(folder)
        tell(f"full disk, {faults}", billed=billed, of=2 * rows, lost=lost, status=status)
        assert_says_so(status, stderr, "out.jsonl")
        assert billed < 2 * rows, "it went on sending"
        assert lost == 0
        assert not output.exists()
        ballast.unlink()
        assert_finishes(words, tmp_path, books, rows, output)


def test_a_start_on_a_disk_that_is_still_full_spends_nothing_for_nothing(
    tmp_path, disk, long_answers
):
    """A loop in a shell starts it again and again."""
    output, folder = disk / "out.jsonl", disk / "out.jsonl.run"
    words = job(tmp_path, 60, output)
    with opened(Simulation(speed=5, models=FAST)) as books:
        process = begun(words, tmp_path, books.url)
        until_billed(books, 4, process)
        ballast = fill(disk, 100_000)
        ended(process)
        before = books.lost(folder)
        for pages in (0, 2, 5):  # Too few for run.json, for a segment, for an answer in it.
            fill(disk, pages * 4096)
            status, stderr = ended(begun(words, tmp_path, books.url))
            assert_says_so(status, stderr, "out.jsonl")
        books.quiet()
        lost = books.lost(folder) - before
        tell("starts on a full disk", starts=3, lost_by_them=lost, billed=len(books.bills))
        assert lost == 0
        ballast.unlink()
        status, stderr = ended(begun(words, tmp_path, books.url))
        assert status == 0, stderr


@pytest.mark.parametrize("suffix", ["jsonl", pytest.param("parquet", marks=long_only)])
def test_no_room_for_the_output_leaves_the_old_one(tmp_path, suffix):
    """All answers are there; only the file does not fit."""
    rng = dice("output")
    table = [
        {"text": f"Ticket {n}", "blob": rng.randbytes(70_000 * (n > 4)).hex()} for n in range(1000)
    ]
    rows = write_jsonl(tmp_path / "in.jsonl", table)
    with tmpfs(tmp_path / "disk", f"{ROOM}") as disk, opened(Simulation(speed=0)) as books:
        output, folder = disk / f"out.{suffix}", disk / f"out.{suffix}.run"
        words = ("run", rows, "-o", output, "-m", "sim-small", "--prompt", "{{ text }}")
        status, stderr = ended(begun((*words, "-n", "5"), tmp_path, books.url))
        assert status == 0, stderr
        old = output.read_bytes()
        # 140 MB of JSONL, 70 of Parquet: more than there is, with and without the reserve.
        process = begun(words, tmp_path, books.url)
        until_billed(books, 10, process)
        ballast = fill(disk, 2 << 20)
        status, stderr = ended(process)
        tell(f"no room for {suffix}", billed=len(books.bills), lost=books.lost(folder))
        assert_says_so(status, stderr, output.name)
        assert output.read_bytes() == old
        assert not [p.name for p in disk.iterdir() if ".tmp-" in p.name]
        assert (len(books.bills), books.lost(folder)) == (1000, 0)
        ballast.unlink()
        subprocess.run(["mount", "-o", f"remount,size={4 * ROOM}", disk], check=True)
        status, stderr = ended(begun(words, tmp_path, books.url))
        assert status == 0, stderr
        assert (len(books.bills), books.doubled()) == (1000, 0)


def ends_well_or_says_so(words, cwd, books, folder, **more):
    """A start where there is little room: it may do the job or say why not, nothing else."""
    billed, lost = len(books.bills), books.lost(folder) if folder.exists() else 0
    status, stderr = ended(begun(words, cwd, books.url, **more))
    books.quiet()
    lost = (books.lost(folder) if folder.exists() else len(books.bills)) - lost
    problem = []
    if "Traceback" in stderr:
        problem.append(f"traceback: {stderr.strip().splitlines()[-1]}")
    elif status not in (0, 1):
        problem.append(f"exit {status}: {stderr.strip()}")
    elif status == 1 and not re.search("(?i)space|room|disk", stderr):
        problem.append(f"says {stderr.strip()}")
    if lost:
        problem.append(f"{lost} of {len(books.bills) - billed} answers billed are lost")
    return problem


@long_only
def test_any_number_of_free_pages_at_the_start(tmp_path):
    """The lock, run.json, the reserve, a segment, its sidecar, the output: each may not fit."""
    failed = {}
    for free in sorted({0, 2, 3, *range(times(0, 24))}):
        with tmpfs(tmp_path / "disk", "512k") as disk, opened(Simulation(speed=0)) as books:
            output = disk / "out.jsonl"
            words = job(tmp_path, 10, output)
            fill(disk, free * 4096)
            problem = ends_well_or_says_so(words, tmp_path, books, disk / "out.jsonl.run")
            # Whatever it was: with room the same command does the job.
            subprocess.run(["mount", "-o", "remount,size=200m", disk], check=True)
            status, stderr = ended(begun(words, tmp_path, books.url))
            if status:
                problem.append(f"with room: exit {status}: {stderr.strip()}")
            elif len(read_jsonl(output)) != 20:
                problem.append("with room: rows are missing")
        if problem:
            failed[f"{free} pages"] = problem
    tell("free pages", failed=len(failed))
    assert not failed


@long_only
def test_any_number_of_free_inodes_at_the_start(tmp_path):
    """A disk may be full of files with half of its bytes free; then no new file can be made."""
    failed = {}
    for inodes in (2, 3, 5) if not LONG else range(2, 12):
        with (
            tmpfs(tmp_path / "disk", "200m", inodes) as disk,
            opened(Simulation(speed=0)) as books,
        ):
            output = disk / "out.jsonl"
            words = job(tmp_path, 10, output)
            problem = ends_well_or_says_so(words, tmp_path, books, disk / "out.jsonl.run")
            subprocess.run(["mount", "-o", "remount,nr_inodes=100", disk], check=True)
            status, stderr = ended(begun(words, tmp_path, books.url))
            if status:
                problem.append(f"with room: exit {status}: {stderr.strip()}")
            elif len(read_jsonl(output)) != 20:
                problem.append("with room: rows are missing")
        if problem:
            failed[f"{inodes - 1} files"] = problem
    tell("free inodes", failed=len(failed))
    assert not failed


def test_no_room_for_the_next_segment(tmp_path, long_answers):
    """The segment before it is full, and there is no file for what comes next."""
    small = "from batcher.write import journal\njournal._SEAL_BYTES = 1_000_000"
    rows = 100
    with (
        tmpfs(tmp_path / "disk", "200m", 60) as disk,
        opened(Simulation(speed=5, models=FAST)) as books,
    ):
        output, folder = disk / "out.jsonl", disk / "out.jsonl.run"
        words = job(tmp_path, rows, output)
        process = begun(words, tmp_path, books.url, before=small)
        until_billed(books, 10, process)
        made = []
        try:
            for n in range(100):
                (disk / f"{n}").touch()
                made.append(disk / f"{n}")
        except OSError:
            pass
        status, stderr = ended(process)
        books.quiet()
        tell("no next segment", billed=len(books.bills), lost=books.lost(folder), status=status)
        assert_says_so(status, stderr, "out.jsonl")
        assert len(books.bills) < 2 * rows, "it went on sending"
        assert books.lost(folder) == 0
        for path in made:
            path.unlink()
        assert_finishes(words, tmp_path, books, rows, output)


def test_a_journal_that_finds_no_room_closes_only_what_is_its_own(tmp_path, monkeypatch):
    """The number of a file that it closed before may be that of a connection by now."""
    theirs, failures = [], [errno.ENOSPC]
    save, opening = sidecar.save, os.open

    def saved(*of):
        theirs.append(opening("/dev/null", os.O_RDONLY))  # Takes the number that is free.
        save(*of)

    def refused(path, flags, *more, **named):
        if str(path).endswith(".jsonl") and flags & os.O_CREAT and theirs and failures:
            raise OSError(failures.pop(), "No space left on device")
        return opening(path, flags, *more, **named)

    monkeypatch.setattr(journal, "_SEAL_BYTES", 100)
    monkeypatch.setattr(sidecar, "save", saved)
    log = journal.Journal(tmp_path)
    monkeypatch.setattr(os, "open", refused)
    end = time.monotonic() + 300
    while failures:
        log.put(Result(row=0, model="m", sample=0, key="0" * 32, status=Outcome.OK, custom_id="0"))
        assert time.monotonic() < end, "no next segment was wanted"
        time.sleep(0.01)
    with pytest.raises(OutputError):
        log.close()
    monkeypatch.undo()
    assert not failures
    for file in theirs:
        os.fstat(file)
        os.close(file)


def test_no_room_for_rows_from_stdin(tmp_path, disk):
    """They are copied first; nothing is sent before all of them are there."""
    with opened(Simulation(speed=0)) as books:
        fill(disk, 1 << 20)
        words = ("run", "-", "-o", disk / "out.jsonl", "-m", "sim-small")
        process = begun(words, tmp_path, books.url, stdin=subprocess.PIPE)
        status, stderr = ended(process, stdin=b'{"prompt":"%b"}\n' % (b"x" * 1000) * 3000)
        assert_says_so(status, stderr, "out.jsonl")
        assert not books.bills


@long_only
def test_no_room_for_the_memory_of_a_large_job(tmp_path, disk):
    """What is known of ten million rows is kept in a file; a full disk must not end as SIGBUS."""
    little = "from batcher.write import latest\nlatest._IN_MEMORY = 0"
    with opened(Simulation(speed=0)) as books:
        words = job(tmp_path, 3000, disk / "out.jsonl")
        fill(disk, 40_000)
        problem = ends_well_or_says_so(
            words, tmp_path, books, disk / "out.jsonl.run", before=little
        )
        assert not problem


def test_a_log_on_a_full_disk_stops_nothing_and_a_signal_is_still_heard(tmp_path):
    """`2> log` fills up with the disk; words that cannot be written are no reason to lose rows."""
    words = job(tmp_path, 300, tmp_path / "out.jsonl")
    with opened(Simulation(speed=3)) as books, open("/dev/full", "wb") as full:
        process = begun(words, tmp_path, books.url, stderr=full)
        until_billed(books, 40, process)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=300)
        books.quiet()
        billed, lost = len(books.bills), books.lost(tmp_path / "out.jsonl.run")
        tell("a full log", billed=billed, of=600, lost=lost, status=process.returncode)
        assert lost == 0
        assert billed < 600, "it went on sending"
        assert process.returncode == 130
        process = begun(words, tmp_path, books.url, stderr=full)
        process.communicate(timeout=300)
        assert process.returncode == 0
        assert (len(books.bills), books.doubled()) == (600, 0)
