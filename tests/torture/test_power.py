"""Power cuts on a real ext4: what was synced is there again, and nothing that was not written.

The file system lies in a file, mounted through a loop device, and is cut off its disk with
EXT4_IOC_SHUTDOWN: what the kernel holds in memory is gone, its own log included.
"""

import os
import subprocess
import sys
import threading
import time

import msgspec

from batcher.records import Outcome, Result
from batcher.write import sidecar
from batcher.write.lines import is_sound, segments
from tests.support.program import environment
from tests.torture import dice, tell, times
from tests.torture.disks import cut_power, ext4, image

# Puts rows from FIRST on, and prints how many are on the disk each time that it is told so: the
# lines are counted before the sync begins, and printed when it has ended.
WRITER = """
import os, sys, threading, time
from pathlib import Path
folder, first, seal, pace = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
from batcher.records import Outcome
from batcher.write import journal
from tests.torture.test_power import line
written, synced = {}, {}
write, sync = os.write, os.fdatasync
def path(file):
    return os.readlink(f"/proc/self/fd/{file}")
def counted(file, block):
    done = write(file, block)
    if file > 2:
        name = path(file)
        written[name] = written.get(name, 0) + bytes(block[:done]).count(10)
    return done
def told(file):
    name = path(file)
    until = written.get(name, 0)
    sync(file)
    synced[name] = until
    rows = first
    for name in sorted(list(written)):  # A row counts when all before it do.
        rows += synced.get(name, 0)
        if synced.get(name, 0) < written[name]:
            break
    write(1, b"%d\\n" % rows)
os.write, os.fdatasync = counted, told
journal._SEAL_BYTES = seal
log = journal.Journal(folder)
row = first
while log.trouble is None:
    for _ in range(20):
        log.put(line(row))
        row += 1
    while log.full:
        time.sleep(0.001)
    time.sleep(20 * pace)
"""
_decode = msgspec.json.Decoder(Result).decode


def line(row):
    """The result that belongs to a row, always the same."""
    text = f"{row} " * (1 + row * 7919 % 300)
    return Result(row=row, model="m", sample=0, key=f"{row:032x}", status=Outcome.OK,
                  custom_id=str(row), content=text)  # fmt: skip


class Acknowledged:
    """What a writer said is on the disk, and when it was heard."""

    def __init__(self, process):
        self._heard = []
        self._begun = threading.Event()
        self._process = process
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self):
        for said in self._process.stdout:
            self._heard.append((time.monotonic(), int(said)))
            self._begun.set()

    def some(self):
        """Waits until some rows are on the disk: on a busy machine the writer's start takes seconds."""
        assert self._begun.wait(120)

    def before(self, moment):
        """How many rows were on the disk then; ends the writer."""
        self._process.kill()
        self._process.wait()
        self._thread.join()
        self._process.stdout.close()
        return max((rows for at, rows in self._heard if at < moment), default=0)


def found(folder):
    """The rows that a start would find; each must be a whole line of a row that was put."""
    rows = set()
    for number, path in segments(folder):
        content = path.read_bytes()
        for entry in sidecar.load(path, number).entries:
            start, length = int(entry["offset"]), int(entry["length"])
            text = content[start : start + length]
            assert is_sound(text), f"{path.name} at {start}: no line of ours was accepted"
            assert _decode(text) == line(int(entry["row"]))
            rows.add(int(entry["row"]))
    return rows


def writer(folder, first, rng):
    seal, pace = rng.choice([100_000, 1_000_000, 32 << 20]), rng.choice([0, 0.0001, 0.001])
    words = [sys.executable, "-c", WRITER, folder, first, seal, pace]
    return subprocess.Popen(
        [str(word) for word in words],
        stdout=subprocess.PIPE,
        env=environment(PYTHONPATH=os.getcwd()),
    )


def test_what_was_synced_survives_a_power_cut(tmp_path):
    """200 ms after an answer came it is on the disk, whatever happens to the machine."""
    rng, cuts, began = dice("power"), times(2, 40), time.monotonic()
    disk, place = image(tmp_path / "disk", 256), tmp_path / "mounted"
    acknowledged = lost = salvaged = torn = 0
    first = last = 0
    safe = set()
    for cut in range(cuts):
        if cut % 10 == 0:  # A new disk now and then: it fills up.
            disk, first, safe = image(tmp_path / "disk", 256), 0, set()
        with ext4(disk, place):
            (place / "out.run").mkdir(exist_ok=True)
            os.sync()
            process = writer(place / "out.run", first, rng)
            heard = Acknowledged(process)
            heard.some()
            time.sleep(rng.uniform(0.1, 1.5))
            moment = cut_power(place)
            last = heard.before(moment)
        with ext4(disk, place):
            rows = found(place / "out.run")
            safe |= set(range(first, last))
            acknowledged += max(0, last - first)
            lost += len(safe - rows)
            salvaged += len(rows - safe)
            torn += sum(sidecar.load(p, n).bad for n, p in segments(place / "out.run"))
            assert not safe - rows, f"cut {cut}: {len(safe - rows)} rows that were synced are lost"
        # What was salvaged may be written anew by the kernel or not at all: it is no promise.
        first = max([*rows, last - 1, first - 1]) + 1
    tell(
        "power cuts",
        cuts=cuts,
        acknowledged=acknowledged,
        lost=lost,
        wrong=0,
        salvaged_besides=salvaged,
        bad_lines=torn,
        seconds=round(time.monotonic() - began),
    )
    assert acknowledged > 0


def test_a_power_cut_after_a_kill_and_a_start_accepts_nothing_that_is_gone(tmp_path):
    """The start reads from memory what a killed process did not sync, and notes what it read.

    A file system that orders nothing (data=writeback) may then keep the note and lose the lines.
    """
    rng, cuts = dice("power after a kill"), times(2, 10)
    lost = wrong = 0
    for _ in range(cuts):
        disk, place = image(tmp_path / "disk", 256), tmp_path / "mounted"
        with ext4(disk, place, "data=writeback,nodelalloc"):
            folder = place / "out.run"
            folder.mkdir()
            os.sync()
            process = writer(folder, 0, rng)
            heard = Acknowledged(process)
            heard.some()
            time.sleep(rng.uniform(0.1, 0.7))
            last = heard.before(time.monotonic())  # Killed.
            found(folder)
            for path in folder.glob("*.idx"):  # The kernel happens to write this one first.
                file = os.open(path, os.O_RDONLY)
                os.fsync(file)
                os.close(file)
            cut_power(place)
        with ext4(disk, place):
            try:
                lost += len(set(range(last)) - found(place / "out.run"))
            except AssertionError:
                wrong += 1
    tell("power cuts after a kill", cuts=cuts, lost=lost, cuts_with_wrong_rows_accepted=wrong)
    assert (lost, wrong) == (0, 0)
