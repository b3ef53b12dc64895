"""The journal and its lock, and the outputs that are made of it."""

import errno
import io
import json
import os
import struct
import subprocess
import sys
import threading
import time

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batcher.errors import JobError, OutputError
from batcher.records import Attempt, Outcome, Result
from batcher.write import atomic, index, jsonl, lines, parquet, segment, sidecar
from batcher.write.journal import Journal
from batcher.write.latest import LatestResults
from batcher.write.lines import segments
from batcher.write.lock import Lock
from batcher.write.results import ResultReader

KEY = "ab" * 16


def result(row=0, **more):
    base = {
        "row": row,
        "model": "m",
        "sample": 0,
        "key": KEY,
        "status": Outcome.OK,
        "custom_id": str(row),
    }
    return Result(**{**base, **more})  # fmt: skip


def reading(folder, rows):
    latest = LatestResults(1, folder, rows)
    for number, path in segments(folder):
        found = sidecar.load(path, number)
        latest.add(found.entries, np.zeros(len(found.models), np.int32))
    return ResultReader(folder, latest, "each", 1)


def kept(folder, made):
    log = Journal(folder)
    for one in made:
        log.put(one)
    log.close()


texts = st.text(max_size=40) | st.sampled_from(
    ["\0", "\u2028\u2029", "𝄞", '"\\\n\r\t', "\ufeff", "nan"]
)
answers = st.builds(
    result,
    content=st.none() | texts,
    refusal=st.none() | texts,
    error=st.none() | texts,
    tool_calls=st.none() | st.just('[{"id": 123456789012345678901234567890}]'),
    status=st.sampled_from([Outcome.OK, Outcome.EMPTY, Outcome.TIMEOUT]),
    prompt_tokens=st.none() | st.integers(0, 2**62),
    cost_usd=st.none() | st.floats(0, 1e6),
    created_at=st.none() | st.integers(0, 4_000_000_000_000),
)


@given(st.lists(answers, min_size=1, max_size=8))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_every_result_comes_out_the_same_in_both_formats(tmp_path_factory, made):
    """Through journal, index, JSONL and Parquet, for any text of a model."""
    folder = tmp_path_factory.mktemp("run")
    made = [result(n, **{f: getattr(one, f) for f in ("content", "refusal", "error", "tool_calls",
            "status", "prompt_tokens", "cost_usd", "created_at")}) for n, one in enumerate(made)]  # fmt: skip
    kept(folder, made)
    positions = list(range(len(made)))
    with reading(folder, len(made)) as reader:
        jsonl.write_jsonl(
            folder / "o.jsonl",
            lambda: iter([(positions, [{"q": n} for n in positions])]),
            reader,
            keep_raw=False,
        )
        arrays = [pa.array(positions, pa.int64())]
        blocks = iter([parquet.Block(positions, arrays, [None] * len(positions))])
        parquet.write_parquet(
            folder / "o.parquet", blocks, pa.schema([("q", pa.int64())]), reader, keep_raw=False
        )
    rows = [json.loads(line) for line in (folder / "o.jsonl").read_bytes().split(b"\n") if line]
    table = pq.read_table(folder / "o.parquet").to_pylist()
    assert len(rows) == len(table) == len(made)
    for one, row, cells in zip(made, rows, table, strict=True):
        for name in ("content", "refusal", "error", "status", "prompt_tokens", "cost_usd"):
            assert row[name] == cells[name] == getattr(one, name), name
        if one.tool_calls:
            assert row["tool_calls"] == json.loads(one.tool_calls)
            assert json.loads(cells["tool_calls"]) == json.loads(one.tool_calls)
        when = cells["created_at"] and round(cells["created_at"].timestamp() * 1000)
        assert when == one.created_at


def test_each_start_opens_a_segment_and_leaves_the_others_alone(tmp_path):
    """A segment never changes after its run; an empty one is removed."""
    kept(tmp_path, [result(0)])
    before = segments(tmp_path)[0][1].read_bytes()
    kept(tmp_path, [])
    kept(tmp_path, [result(1)])
    assert [number for number, _ in segments(tmp_path)] == [1, 2]
    assert segments(tmp_path)[0][1].read_bytes() == before


class Disk:
    """Replaces `os.write` and `os.fdatasync`, and fails as real disks do."""

    def __init__(self, monkeypatch, room=1 << 40, failing_syncs=()):
        self.room, self.failing = room, set(failing_syncs)
        self.syncs = []
        self._write, self._sync = os.write, os.fdatasync
        monkeypatch.setattr(segment.os, "write", self.write)
        monkeypatch.setattr(segment.os, "fdatasync", self.fdatasync)

    def write(self, file, block):
        if self.room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = self._write(file, bytes(block)[: self.room])  # First a short write, no error.
        self.room -= done
        return done

    def fdatasync(self, file):
        path = os.readlink(f"/proc/self/fd/{file}")
        self.syncs.append(os.path.basename(path))
        if len(self.syncs) in self.failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._sync(file)


def all_rows(folder):
    """(rows of the sound lines in order, how many lines are not sound)."""
    found = [sidecar.load(path, number) for number, path in segments(folder)]
    return [r for s in found for r in s.entries["row"].tolist()], sum(s.bad for s in found)


def until(condition):
    while not condition():
        time.sleep(0.001)


def test_a_full_disk_stops_the_sending_and_keeps_the_answers_in_flight(tmp_path, monkeypatch):
    """The reserve makes room for them; no line is torn."""
    stopped = threading.Event()
    log = Journal(tmp_path, stopped.set)
    reserve = tmp_path / "reserve"
    assert reserve.stat().st_blocks * 512 >= 64 << 20
    disk = Disk(monkeypatch, room=100)
    unlink = os.unlink

    def freed(name, **more):
        if name == reserve.name:
            disk.room = 1 << 40
        unlink(name, **more)

    monkeypatch.setattr(os, "unlink", freed)
    log.put(result(0))
    assert stopped.wait(10)
    for row in (1, 2, 3):  # They come in after the stop.
        log.put(result(row, content="late"))
    with pytest.raises(OutputError, match=r"No space left.*is written\. Make room.*again"):
        log.close()
    monkeypatch.undo()
    assert all_rows(tmp_path) == ([0, 1, 2, 3], 0)
    assert not reserve.exists()


def test_a_disk_that_stays_full_reports_how_many_answers_were_lost(tmp_path, monkeypatch):
    """Another program took the room that was freed; the answers will be asked for again."""
    log = Journal(tmp_path)
    log.put(result(0))
    until(lambda: log._segment.size)
    Disk(monkeypatch, room=10)
    log.put(result(1))
    until(lambda: log.trouble)
    log.put(result(2))
    with pytest.raises(OutputError, match="answers could not be written and will be asked for"):
        log.close()
    monkeypatch.undo()
    rows, bad = all_rows(tmp_path)
    assert (rows, bad) == ([0], 1)


@pytest.mark.parametrize("failing", [{1}, {2}])
def test_a_segment_whose_sync_failed_is_never_trusted_again(tmp_path, monkeypatch, failing):
    """The kernel reports the next sync as a success, although the pages are gone."""
    stopped = threading.Event()
    log = Journal(tmp_path, stopped.set)
    disk = Disk(monkeypatch, failing_syncs=failing)
    log.put(result(0))
    until(lambda: disk.syncs)
    log.put(result(1))
    assert stopped.wait(10)
    log.put(result(2))
    with pytest.raises(OutputError, match=r"Input/output error.*is written\. See to the disk"):
        log.close()
    failed = max(failing)
    assert disk.syncs[:failed] == ["journal-000001.jsonl"] * failed
    assert set(disk.syncs[failed:]) == {"journal-000002.jsonl"}
    assert not (tmp_path / "journal-000001.idx").exists()
    second = sidecar.load(tmp_path / "journal-000002.jsonl", 2).entries["row"].tolist()
    assert sorted({*second, *range(failed - 1)}) == [0, 1, 2]


def test_a_write_that_fails_is_made_again_in_a_new_segment(tmp_path, monkeypatch):
    """The torn line in the old one counts for nothing."""
    log = Journal(tmp_path)
    write, calls = os.write, []

    def broken(file, block):
        calls.append(file)
        if len(calls) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return write(file, bytes(block)[:10] if len(calls) == 1 else block)

    monkeypatch.setattr(segment.os, "write", broken)
    log.put(result(0))
    with pytest.raises(OutputError, match="Input/output error"):
        log.close()
    monkeypatch.undo()
    assert all_rows(tmp_path) == ([0], 1)


def test_a_disk_without_room_for_the_reserve_is_refused_before_anything_is_sent(
    tmp_path, monkeypatch
):
    """Such a run could lose its last answers."""

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutputError, match=r"No space left.*make room"):
        Journal(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("rows", [0, 1])
def test_a_segment_that_is_sealed_while_it_is_looked_for_was_not_removed(
    tmp_path, monkeypatch, rows
):
    """The guard looks in a thread of its own; an empty segment is unlinked when it is sealed."""
    opened = segment.OpenSegment(tmp_path, 1)
    opened.append([result(n) for n in range(rows)], lambda _error: False)
    stat = os.stat

    def sealed_first(*args, **more):
        monkeypatch.undo()
        opened.seal()
        return stat(*args, **more)

    monkeypatch.setattr(segment.os, "stat", sealed_first)
    assert not opened.removed


def test_a_writer_that_fails_stops_the_run(tmp_path, monkeypatch):
    """Or the run would pay for answers that nobody writes."""
    stopped = threading.Event()
    log = Journal(tmp_path, stopped.set)
    monkeypatch.setattr(lines, "line_of", lambda *_: 1 / 0)
    log.put(result(0))
    assert stopped.wait(10)
    log.put(result(1))
    with pytest.raises(OutputError, match=r"ZeroDivisionError.*2 answers could not be written"):
        log.close()


def test_half_a_surrogate_pair_costs_no_answer(tmp_path):
    """Some servers cut their answers in the middle of an emoji."""
    tried = Attempt(1, 2, 3, Outcome.SERVER_ERROR, request_id="r\udcff\udcfe")
    kept(tmp_path, [result(0, content="a\ud83d", error="\ude00", tries=[tried])])
    with reading(tmp_path, 1) as reader:
        ((_, _, line),) = reader.lines([0])
    assert json.loads(line)["content"] == "a\ufffd"
    assert json.loads(line)["tries"][0]["request_id"] == "r\ufffd\ufffd"


def test_a_result_that_cannot_be_written_fails_alone(tmp_path, monkeypatch):
    """Its row gets the reason and keeps its cost; the others are written, and it counts as no failure of the disk."""
    whole = index.entry_bytes

    def narrow(*fields):
        if fields[3] > 5000:  # Stands for a line of more than 4 GB.
            raise struct.error("'I' format requires 0 <= number <= 4294967295")
        return whole(*fields)

    monkeypatch.setattr(index, "entry_bytes", narrow)
    log = Journal(tmp_path)
    odd = [
        result(1, refusal=complex(1)),
        result(2, content="x" * 5000),
        result(3, tries=[object()]),
    ]
    for one in (result(0), *(msgspec.structs.replace(o, cost_usd=0.5) for o in odd), result(4)):
        log.put(one)
    log.close()
    assert log.trouble is None
    lines = [json.loads(line) for line in segments(tmp_path)[0][1].read_bytes().splitlines()]
    assert [line["status"] for line in lines] == ["ok", *["bad_response"] * 3, "ok"]
    assert all(
        "cannot be kept" in line["error"] and line["cost_usd"] == 0.5 for line in lines[1:4]
    )
    assert all_rows(tmp_path) == ([0, 1, 2, 3, 4], 0)


def test_a_result_that_no_line_can_hold_is_counted_and_takes_no_other_with_it(tmp_path):
    """Its row, key or sample does not fit the index: the run stops with an error."""
    log = Journal(tmp_path)
    for one in (
        result(0),
        result(1, sample=1 << 16),
        result(1 << 63),
        result(2, key="?"),
        result(3),
    ):
        log.put(one)
    with pytest.raises(OutputError, match="3 answers could not be written"):
        log.close()
    assert all_rows(tmp_path) == ([0, 3], 0)


def test_more_models_than_a_segment_can_number_begin_another(tmp_path, monkeypatch):
    """Each row may name a model of its own."""
    monkeypatch.setattr(segment, "_MOST_MODELS", 3)
    log = Journal(tmp_path)
    for row in range(5):
        log.put(result(row, model=f"m{row}"))
        until(lambda row=row: log._bytes_taken == log._bytes_put)
    log.close()
    assert len(segments(tmp_path)) == 2
    assert all_rows(tmp_path) == ([0, 1, 2, 3, 4], 0)


def test_a_second_process_is_kept_out(tmp_path):
    """It would send and pay for every row again."""
    lock = Lock(tmp_path / "run")
    script = "import sys; from pathlib import Path; from batcher.write.lock import Lock; Lock(Path(sys.argv[1]))"
    words = [sys.executable, "-c", script, str(tmp_path / "run")]
    refused = subprocess.run(words, capture_output=True, check=False)
    assert refused.returncode != 0
    assert (
        f"another batcher is at work on this output (pid {os.getpid()}".encode() in refused.stderr
    )
    lock.release()
    assert subprocess.run(words, capture_output=True, check=False).returncode == 0


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    """One sentence, not a traceback."""
    with pytest.raises(JobError, match="cannot be made or written"):
        Lock(tmp_path / "no" / "parent")


def test_the_old_output_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    """Also when the disk fills up while the output is written."""
    kept(tmp_path, [result(0, content="new")])
    output = tmp_path / "o.jsonl"
    output.write_text("old\n")

    def no_sync(_file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic.os, "fsync", no_sync)
    with reading(tmp_path, 1) as reader, pytest.raises(OutputError, match="cannot be written"):
        jsonl.write_jsonl(output, lambda: iter([([0], [{}])]), reader, keep_raw=False)
    assert output.read_text() == "old\n"
    assert not list(tmp_path.glob(".o.jsonl*"))


def test_rows_without_a_result_are_counted_and_left_out(tmp_path):
    """A partial output never shows a row that has no answer and no reason."""
    kept(tmp_path, [result(1, content="x")])
    with reading(tmp_path, 3) as reader:
        written = jsonl.write_jsonl(
            tmp_path / "o.jsonl",
            lambda: iter([([0, 1, 2], [{}, {}, {}])]),
            reader,
            keep_raw=False,
        )
    assert (written.rows, written.missing) == (1, 2)


def test_input_columns_with_names_of_results_get_new_names(tmp_path):
    """The input's `model` and `error` are kept; both formats name them alike."""
    kept(tmp_path, [result(0, content="x")])
    row = {"model": "theirs", "input_error": 1, "error": "old", "custom_id": "0"}
    block = [pa.array([value]) for value in row.values()]
    schema = pa.schema([(name, array.type) for name, array in zip(row, block, strict=True)])
    with reading(tmp_path, 1) as reader:
        one = jsonl.write_jsonl(
            tmp_path / "o.jsonl", lambda: iter([([0], [row])]), reader, keep_raw=False
        )
        other = parquet.write_parquet(
            tmp_path / "o.parquet",
            iter([parquet.Block([0], block, ["0"])]),
            schema,
            reader,
            keep_raw=False,
        )
    assert one.renamed == other.renamed == {"model": "input_model", "error": "input_input_error"}
    (made,), (cells,) = (
        [json.loads((tmp_path / "o.jsonl").read_bytes())],
        pq.read_table(tmp_path / "o.parquet").to_pylist(),
    )
    for out in (made, cells):
        assert (out["input_model"], out["input_input_error"], out["input_error"]) == (
            "theirs",
            "old",
            1,
        )
        assert (out["model"], out["custom_id"], out["content"]) == ("m", "0", "x")


def test_the_journal_can_be_read_by_anything(tmp_path):
    """It is plain JSONL at any time."""
    kept(tmp_path, [result(n, content="é\u2028") for n in range(3)])
    lines = io.BytesIO(segments(tmp_path)[0][1].read_bytes()).readlines()
    assert [json.loads(line)["row"] for line in lines] == [0, 1, 2]
