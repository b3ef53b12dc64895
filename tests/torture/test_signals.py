"""Signals at any moment: one drains, two stop at once; what was billed is on disk after a drain."""

import os
import pty
import re
import signal
import subprocess
import time

import pytest

from batcher.simulate.settings import Simulation
from tests.support.program import (
    command,
    environment,
    read_jsonl,
    started,
    started_anew,
    write_jsonl,
)
from tests.torture import dice, tell, times
from tests.torture.books import opened

# None of these bills anything: whatever is billed can be read, and must be on disk.
FAULTS = {"http_500": 0.1, "http_503": 0.03, "disconnect": 0.03, "html": 0.03}
MODELS = ("-m", "sim-small", "-m", "sim-medium", "--concurrency", "8", "--max-retries", "30")
ANY = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def job(folder, rows):
    texts = [{"text": f"Ticket {n}: where is parcel {n}?"} for n in range(rows)]
    path = write_jsonl(folder / "in.jsonl", texts)
    return ("run", path, "-o", "out.jsonl", *MODELS, "--prompt", "{{ text }}")


def until(condition, process, seconds=300.0):
    """Waits for a condition or the end of the process; whether the condition came first."""
    end = time.monotonic() + seconds
    while process.poll() is None:
        if condition():
            return True
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.002)
    return False


def assert_goes_on(process, stderr):
    text = stderr.decode()
    assert process.returncode == 130, text
    assert "Traceback" not in text
    assert text.strip().splitlines()[-1].startswith("Go on with: batcher run ")


def test_after_a_drain_all_that_was_billed_is_on_disk(tmp_path):
    """The first signal loses nothing at all, whichever it is and whenever it comes."""
    rng, signals, began = dice("signals"), times(4, 50), time.monotonic()
    rows = times(40, 700)
    words = job(tmp_path, rows)
    folder, sent, slowest = tmp_path / "out.jsonl.run", 0, 0.0
    with opened(Simulation(speed=3, faults=FAULTS)) as books:
        while sent < signals:
            process = started(*words, cwd=tmp_path, url=books.url)
            wanted = len(books.bills) + rng.randrange(1, 30)
            if not until(lambda n=wanted: len(books.bills) >= n, process):
                process.communicate()
                break
            time.sleep(rng.uniform(0, 0.2))
            process.send_signal(rng.choice(ANY))
            at = time.monotonic()
            _, stderr = process.communicate(timeout=300)
            if process.returncode == 0:
                break  # It had just finished.
            slowest = max(slowest, time.monotonic() - at)
            sent += 1
            assert_goes_on(process, stderr)
            books.quiet()
            assert books.lost(folder) == 0, f"after signal {sent}"
        process = started(*words, cwd=tmp_path, url=books.url)
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr.decode()
        tell(
            "signals",
            signals=sent,
            answers=2 * rows,
            billed=len(books.bills),
            lost=books.lost(folder),
            bought_twice=books.doubled(),
            slowest_drain_s=round(slowest, 2),
            seconds=round(time.monotonic() - began),
        )
        assert len(books.bills) == 2 * rows
        assert books.doubled() == 0
    out = read_jsonl(tmp_path / "out.jsonl")
    assert [(r["row"], r["model"]) for r in out] == [
        (n, model) for n in range(rows) for model in ("sim-small", "sim-medium")
    ]
    assert {r["status"] for r in out} == {"ok"}


def test_a_signal_in_the_middle_of_backoffs_ends_them_at_once(tmp_path):
    """Nobody waits a minute for a request that is not even in flight."""
    rng, signals = dice("backoff"), times(2, 12)
    words, slowest = job(tmp_path, 300), 0.0
    with opened(Simulation(speed=3)) as books:
        for _ in range(signals):
            books.gateway.shares = {}
            process = started(*words, cwd=tmp_path, url=books.url)
            wanted = len(books.bills) + 20
            assert until(lambda n=wanted: len(books.bills) >= n, process)
            books.gateway.shares = {"http_500": 1.0}
            time.sleep(rng.uniform(0.5, 4))
            process.send_signal(rng.choice(ANY))
            at = time.monotonic()
            _, stderr = process.communicate(timeout=300)
            slowest = max(slowest, time.monotonic() - at)
            assert_goes_on(process, stderr)
            books.quiet()
            assert books.lost(tmp_path / "out.jsonl.run") == 0
        tell("signals in backoff", signals=signals, slowest_s=round(slowest, 2))
        assert slowest < 5


def test_the_second_signal_stops_at_once_and_costs_what_was_in_flight(tmp_path):
    """It must not wait for a gateway that hangs; what it gives up is said, and bounded."""
    rng, signals = dice("twice"), times(2, 15)
    words, folder, slowest = job(tmp_path, times(40, 400)), tmp_path / "out.jsonl.run", 0.0
    sent = 0
    with opened(Simulation(speed=1)) as books:
        for _ in range(signals):
            process = started(*words, cwd=tmp_path, url=books.url)
            wanted = len(books.bills) + rng.randrange(5, 30)
            if not until(lambda n=wanted: len(books.bills) >= n, process):
                process.communicate()
                break
            first, second = rng.choice(ANY), rng.choice(ANY)
            process.send_signal(first)
            time.sleep(rng.uniform(0.01, 0.1))
            at = time.monotonic()
            stderr = books.kill(process, second)
            sent += 1
            slowest = max(slowest, time.monotonic() - at)
            assert_goes_on(process, stderr)
            assert 0 <= books.lost(folder) <= books.bound
        process = started(*words, cwd=tmp_path, url=books.url)
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr.decode()
        tell(
            "two signals",
            times=sent,
            lost=books.lost(folder),
            bought_twice=books.doubled(),
            bound=books.bound,
            slowest_s=round(slowest, 2),
        )
        assert books.doubled() <= books.bound
        assert slowest < 5


@pytest.mark.parametrize("number", ANY, ids=lambda number: number.name)
def test_a_signal_during_the_start_costs_nothing(tmp_path, number):
    """Ctrl-C on a command typed wrong: no traceback, no bill without its answer."""
    rng, words = dice(f"start {number.name}"), job(tmp_path, 40)
    with opened(Simulation(speed=3)) as books:
        for _ in range(times(3, 20)):
            process = started_anew(*words, cwd=tmp_path, url=books.url)
            time.sleep(rng.uniform(0.0, 0.8))
            process.send_signal(number)
            _, stderr = process.communicate(timeout=300)
            # While Python itself starts, before a line of ours runs, its own words cannot be helped.
            frames = re.findall(r'File "[^"]*/batcher/(\w+/)*(?!__)\w+\.py"', stderr.decode())
            assert not frames, stderr.decode()
            if re.search(rb"Python runtime state|Could not import runpy", stderr):
                continue
            # Before the program can say anything the signal itself ends it.
            assert process.returncode in (130, -number, 0), stderr.decode()
            if process.returncode == 130 and b"Traceback" not in stderr:
                last = stderr.decode().splitlines()[-1:]
                assert not last or last[0].startswith(("Go on with", "batcher: interrupted"))
                assert b"Stopped at once" not in stderr
            books.quiet()
            assert books.lost(tmp_path / "out.jsonl.run") == 0


def test_nohup_is_heeded(tmp_path):
    """Who starts a run with nohup and leaves does not mean to stop it."""
    words = job(tmp_path, 200)
    with opened(Simulation(speed=4)) as books:
        ignoring = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh"]
        env = environment(OPENAI_BASE_URL=books.url, OPENAI_API_KEY="none")
        process = subprocess.Popen([*ignoring, *command(*words)], cwd=tmp_path, env=env)
        assert until(lambda: len(books.bills) >= 20, process)
        process.send_signal(signal.SIGHUP)
        assert process.wait(300) == 0
    assert books.lost(tmp_path / "out.jsonl.run") == 0


@pytest.mark.parametrize("quiet", [False, True], ids=["with a view", "quiet"])
def test_a_terminal_that_is_closed_drains_the_run(tmp_path, quiet):
    """SIGHUP comes when there is nothing left to write to; what was billed is kept all the same."""
    words = (*job(tmp_path, 400), *(("--quiet",) if quiet else ()))
    with opened(Simulation(speed=4)) as books:
        env = environment(OPENAI_BASE_URL=books.url, OPENAI_API_KEY="none")
        child, terminal = pty.fork()
        if not child:
            os.chdir(tmp_path)
            os.execve(command()[0], command(*words), {**env, "TERM": "xterm"})
        os.set_blocking(terminal, False)
        shown = b""
        end = time.monotonic() + 300
        while len(books.bills) < 40:
            assert time.monotonic() < end, shown.decode()
            try:
                shown += os.read(terminal, 1 << 16)
            except BlockingIOError:
                time.sleep(0.01)
        os.close(terminal)
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            assert time.monotonic() < end, "it went on without a terminal"
            time.sleep(0.02)
        books.quiet()
        tell(
            "terminal closed", billed=len(books.bills), lost=books.lost(tmp_path / "out.jsonl.run")
        )
        assert books.lost(tmp_path / "out.jsonl.run") == 0
        assert len(books.bills) < 800, "it did not stop"


def test_the_command_that_is_printed_goes_on(tmp_path):
    """The last line is to be pasted into a shell, so a shell must make the same words of it."""
    words = (*job(tmp_path, 80), "--system", "It's \"$HOME\" & 'quotes'\n{{ text }}")
    with opened(Simulation(speed=3)) as books:
        process = started(*words, cwd=tmp_path, url=books.url)
        assert until(lambda: len(books.bills) >= 20, process)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=300)
        line = re.search(r"Go on with: (batcher run .*)\Z", stderr.decode(), re.DOTALL)
        assert line, stderr.decode()
        program = " ".join(command())
        ended = subprocess.run(
            ["/bin/sh", "-c", line[1].replace("batcher", program, 1)],
            cwd=tmp_path,
            env=environment(OPENAI_BASE_URL=books.url, OPENAI_API_KEY="none"),
            capture_output=True,
            timeout=120,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr.decode()
        assert (len(books.bills), books.doubled()) == (160, 0)
