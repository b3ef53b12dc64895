"""A journal whose pages did not all reach the disk: what was synced is found, nothing else is."""

import errno
import os

import pytest

from batcher.records import Outcome, Result
from batcher.write import sidecar
from batcher.write.journal import Journal
from batcher.write.lines import is_sound, line_of
from tests.torture import dice, tell, times

PAGE = 4096


def put(folder, rng, rows, rare=None):
    """A sealed segment of real lines, short ones and long ones; some have the column `rare`."""
    journal = Journal(folder)
    for row in range(rows):
        text = chr(rng.choice([97, 0x2028, 0x1F600, 0])) * rng.choice([1, 30, 300, 3000])
        journal.put(
            Result(
                row=row,
                model=rng.choice(["small", "large"]),
                sample=0,
                key=f"{rng.getrandbits(128):032x}",
                status=rng.choice([Outcome.OK, Outcome.OK, Outcome.TIMEOUT]),
                custom_id=str(row),
                content=text,
                prompt_tokens=row,
                **({rare: '[{"id":1}]'} if rare and rng.random() < 0.3 else {}),
            )
        )
    journal.close()
    return folder / "journal-000001.jsonl"


def entries(path):
    """What is found, with the name of each model for its number: that depends on what is left."""
    found = sidecar.load(path, 1)
    at = list(found.entries.dtype.names).index("model")
    return [(*e[:at], found.models[e[at]], *e[at + 1 :]) for e in found.entries.tolist()]


def damaged(rng, whole, synced):
    """The file after a power cut: whole up to `synced`, after it some pages, cut anywhere."""
    pages = bytearray(whole[: rng.randrange(synced, len(whole) + 1)])
    at = synced - synced % PAGE
    while at < len(pages):
        start, end = max(at, synced), min(at + PAGE, len(pages))
        chance = rng.random()
        if chance < 0.3:
            pages[start:end] = bytes(end - start)
        elif chance < 0.4:
            pages[start:end] = rng.randbytes(end - start)
        at += PAGE
    return bytes(pages)


def sidecars(rng, whole, sidecar, older):
    """What may lie beside a segment after a power cut."""
    torn = bytearray(sidecar)
    for _ in range(rng.randrange(1, 4)):
        torn[rng.randrange(len(torn))] ^= 1 << rng.randrange(8)
    return {
        "missing": None,
        "empty": b"",
        "zeros": bytes(len(sidecar)),
        "cut": sidecar[: rng.randrange(len(sidecar))],
        "flipped": bytes(torn),
        "of a shorter segment": older,
        "newer": sidecar.replace(b"batcher-index-1", b"batcher-index-2"),
        "text": whole[:500],
    }


@pytest.mark.parametrize("rare", [None, "tool_calls", "logprobs"])
def test_synced_rows_are_found_and_wrong_ones_are_not(tmp_path, rare):
    """A power cut keeps any part of what was not synced, in any order, or writes rubbish there."""
    rng, images = dice(f"pages {rare}"), times(50, 1000)
    lost = wrong = salvaged = 0
    for number in range(images):
        if number % 50 == 0:
            folder = tmp_path / f"{number}"
            folder.mkdir()
            path = put(folder, rng, 60, rare)
            whole, sidecar = path.read_bytes(), path.with_suffix(".idx").read_bytes()
            true = entries(path)
            ends = [entry[1] + entry[4] + 1 for entry in true]
            path.write_bytes(whole[: ends[20]])
            entries(path)
            older = path.with_suffix(".idx").read_bytes()
        synced = rng.randrange(len(true))
        image = damaged(rng, whole, ends[synced - 1] if synced else 0)
        path.write_bytes(image)
        beside = rng.choice(sorted(sidecars(rng, whole, sidecar, older).items()))
        path.with_suffix(".idx").unlink(missing_ok=True)
        if beside[1] is not None:
            path.with_suffix(".idx").write_bytes(beside[1])
        for _ in range(2):  # The second time from the sidecar that the first one wrote.
            found = entries(path)
            lost += len(set(true[:synced]) - set(found))
            wrong += len(set(found) - set(true))
            wrong += sum(not is_sound(image[e[1] : e[1] + e[4]]) for e in found)
        salvaged += len(found) - synced
        assert (lost, wrong) == (0, 0), f"image {number}, sidecar {beside[0]}"
    tell(f"pages, {rare or 'plain'}", images=images, lost=lost, wrong=wrong, salvaged=salvaged)


def test_a_sidecar_is_written_only_of_lines_that_reached_the_disk(tmp_path, monkeypatch):
    """After a kill a start reads the segment from memory; the sidecar must not outlive the lines.

    Nor is there one when the disk does not take them.
    """
    path = put(tmp_path, dice("sidecars"), 60)
    true = entries(path)
    path.with_suffix(".idx").unlink()
    done = []
    sync, replace = os.fdatasync, os.replace

    def synced(file):
        done.append(os.path.basename(os.readlink(f"/proc/self/fd/{file}")))
        sync(file)

    def replaced(old, new, **at):
        done.append(os.path.basename(new))
        replace(old, new, **at)

    monkeypatch.setattr(sidecar.os, "fdatasync", synced)
    monkeypatch.setattr(sidecar.os, "replace", replaced)
    assert entries(path) == true
    assert done == [path.name, path.with_suffix(".idx").name]

    def failed(_file):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path.with_suffix(".idx").unlink()
    monkeypatch.setattr(sidecar.os, "fdatasync", failed)
    assert entries(path) == true
    assert not path.with_suffix(".idx").exists()


def test_a_cut_at_any_byte_of_the_last_three_lines_costs_those_cut(tmp_path):
    """The end of a file may be anywhere."""
    path = put(tmp_path, dice("cuts"), 12)
    whole, true = path.read_bytes(), entries(path)
    starts = [entry[1] for entry in true]
    for end in range(starts[-3], len(whole) + 1):
        path.write_bytes(whole[:end])
        path.with_suffix(".idx").unlink(missing_ok=True)
        # The newline is no part of a line: without it the line is whole.
        assert entries(path) == [e for e in true if e[1] + e[4] <= end]
    tell("cuts", bytes=len(whole) + 1 - starts[-3])


@pytest.mark.parametrize("place", ["first", "middle", "last", "last, without its newline"])
def test_garbage_that_parses_as_json_is_no_row(tmp_path, place):
    """A fragment of a number is JSON, and an object with our keys may be half of two lines."""
    path = put(tmp_path, dice("garbage"), 6)
    whole, true = path.read_bytes(), entries(path)
    line = whole[true[2][1] : true[2][1] + true[2][4]]
    garbage = [
        b"7",
        b"null",
        b"[]",
        b"{}",
        b'""',
        b'{"row":1}',
        b'{"z":"00000000"}',
        line[:-10] + b"00000000" + line[-2:],  # every key, but a checksum of something else
        line.replace(b'"row":2', b'"row":3'),
        line[1:],
        line + line,
        line[: len(line) // 2] + line[len(line) // 2 :].replace(b'"', b"'"),
        b" " + line,
        line + b"\r",
        bytes(40),
    ]
    for bad in garbage:
        at = {"first": 0, "middle": true[3][1]}.get(place, len(whole))
        newline = b"" if place.endswith("newline") else b"\n"
        path.write_bytes(whole[:at] + bad + newline + whole[at:])
        path.with_suffix(".idx").unlink(missing_ok=True)
        segment = sidecar.load(path, 1)
        rows = [(e[0], e[2], e[3]) for e in segment.entries.tolist()]
        assert rows == [(e[0], e[2], e[3]) for e in true], bad
        assert segment.bad == 1, bad


def test_a_line_with_a_good_checksum_and_a_bad_head_is_no_row(tmp_path):
    """Another program's line, or a newer one of ours, is left alone and stops nothing."""
    path = put(tmp_path, dice("heads"), 3)
    whole, true = path.read_bytes(), entries(path)
    head = b'{"row":1,"model":"m","sample":0,"key":"%032x","status":"ok","custom_id":"1"}' % 1
    strange = [
        b"{}",
        head.replace(b'"row":1', b'"row":-1'),
        head.replace(b'"row":1', b'"row":99999999999999999999'),
        head.replace(b'"row":1', b'"row":9223372036854775807'),
        head.replace(b'"row":1', b'"row":1.5'),
        head.replace(b'"sample":0', b'"sample":70000'),
        head.replace(b'"key":"0', b'"key":"g'),
        head.replace(b'"key":"0', b'"key":" '),
        head.replace(b'"key":"0', b'"key":"'),
        head.replace(b'"ok"', b'"wonderful"'),
        head.replace(b'"m"', b"null"),
        head[:-1] + b',"at":[1,2]}',
        head[:-1] + b',"at":[-1,0,10]}',
        head[:-1] + b',"at":[1,-5,10]}',
        head[:-1] + b',"at":[1,0,99999999999]}',
        head[:-1] + b',"content":"\xff"}',
    ]
    failed = {}
    for odd in strange:
        path.write_bytes(whole + line_of(odd))
        path.with_suffix(".idx").unlink(missing_ok=True)
        try:
            found = entries(path)
        except Exception as error:  # noqa: BLE001 - each line is tried, whatever the others do
            failed[odd] = repr(error)
            continue
        if found[: len(true)] != true or (len(found) > len(true) and b'"row":922' not in odd):
            failed[odd] = f"{len(found) - len(true)} rows accepted"
    assert not failed
