"""Inputs and outputs in object storage: moto's S3, and an emulator of Google's."""

import gzip
import io
import json
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support import echo as echoes
from tests.support import program
from tests.support.program import command, environment, read_jsonl
from tests.third_party.servers import ALL, storage
from tests.torture import tell

RED = b"\x89PNG\r\n\x1a\n red"
long_only = pytest.mark.skipif(not ALL, reason="scripts/third_party only, for its time")
both = pytest.mark.parametrize("scheme", ["s3", "gs"])


@pytest.fixture
def echo():
    with echoes.running() as echo:
        yield echo


def run(folder, echo, of, *words):
    return program.batcher(
        "run", *words, "-m", "m", cwd=folder, url=echo.url, timeout=600, **of.variables
    )


def jsonl(first, last):
    rows = [{"id": n, "prompt": f"look at {n}"} for n in range(first, last)]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(first, last):
    table = pa.table(
        {"id": range(first, last), "prompt": [f"see {n}" for n in range(first, last)]}
    )
    content = io.BytesIO()
    pq.write_table(table, content, row_group_size=7)
    return content.getvalue()


def told(folder, name="o.jsonl"):
    facts = ("id", "row", "model", "status", "content", "error")
    return [{name: row.get(name) for name in facts} for row in read_jsonl(folder / name)]


@both
def test_a_folder_there_is_as_good_as_one_here(tmp_path, echo, scheme):
    """Same rows, same answers; the output is put back whole; what is new is all that is sent then."""
    files = {
        "a b/1.jsonl": jsonl(0, 20),
        "a b/2%20[x].jsonl.gz": gzip.compress(jsonl(20, 40)),
        "a b/3.parquet": parquet(40, 60),
        "a b/deep/4.csv": b"id,prompt\r\n60,\"see\r\n, 60\"\r\n61,\xed\x95\x9c\r\n",
        "a b/deep/5.jsonl.zst": pa.compress(jsonl(62, 70), "zstd", asbytes=True),
        "a b/notes.txt": b"no rows",
        "a b/.hidden.jsonl": jsonl(900, 901),
        "a b/out.jsonl.run/journal-000001.jsonl": jsonl(901, 902),
    }  # fmt: skip
    (tmp_path / "here" / "in" / "a b" / "deep").mkdir(parents=True)
    (tmp_path / "there").mkdir()
    with storage(tmp_path, scheme) as of:
        for key, content in files.items():
            of.put(f"in/{key}", content)
            path = tmp_path / "here" / "in" / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        assert run(tmp_path / "here", echo, of, "in", "-o", "o.jsonl").returncode == 0
        first = echo.bought.total()
        assert first == 70
        words = (f"{of.root}/in/", "-o", f"{of.root}/in/a b/o.jsonl")
        ended = run(tmp_path / "there", echo, of, *words)
        assert ended.returncode == 0, ended.stderr.decode()
        said = f"70 rows in o.jsonl, and uploaded to {of.root}/in/a b/o.jsonl."
        assert said in ended.stderr.decode()
        assert echo.bought.total() == 2 * first
        rows = [
            {**row, "content": row["content"].split(":")[0]} for row in told(tmp_path / "there")
        ]
        here = [
            {**row, "content": row["content"].split(":")[0]} for row in told(tmp_path / "here")
        ]
        assert rows == here
        assert of.content("in/a b/o.jsonl") == (tmp_path / "there" / "o.jsonl").read_bytes()

        of.put("in/b.jsonl", jsonl(70, 75))
        ended = run(tmp_path / "there", echo, of, *words)
        assert ended.returncode == 0, ended.stderr.decode()
        assert echo.bought.total() == 2 * first + 5
        put = [json.loads(line) for line in of.content("in/a b/o.jsonl").splitlines()]
        assert [row["id"] for row in put] == [*range(60), "60", "61", *range(62, 75)]
        # The object is an output like any other, and its run is found by its name.
        for ask in (("show", "--status", "ok"), ("report", "--json"), ("status",)):
            words = (ask[0], f"{of.root}/in/a b/o.jsonl", *ask[1:])
            ended = program.batcher(*words, cwd=tmp_path / "there", **of.variables)
            assert ended.returncode == 0, (words, ended.stderr.decode())
            assert b"75" in ended.stdout


@both
@pytest.mark.parametrize(
    ("pattern", "ids"),
    [
        ("in/*.jsonl", [1]),
        ("in/x/*.jsonl", [2]),
        ("in/*/*.jsonl", [2]),
        ("in/**/*.jsonl", [1, 2, 3]),
        ("in/x", [2, 3]),
        ("in/1.jsonl", [1]),
        ("in/?.jsonl", [1]),
        ("in/[2-9].jsonl", "no object matches"),
        ("in/none", "no such object"),
        ("", [1, 2, 3]),
    ],
)
def test_globs_and_folders(tmp_path, echo, scheme, pattern, ids, servers):
    """As on a disk."""
    of = servers[scheme]
    ended = run(tmp_path, echo, of, f"{of.root}/{pattern}", "-o", "o.jsonl")
    if isinstance(ids, str):
        assert ended.returncode == 2
        assert ids in ended.stderr.decode()
        return
    assert ended.returncode == 0, ended.stderr.decode()
    assert [row["id"] for row in told(tmp_path)] == ids


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    with (
        storage(tmp_path_factory.mktemp("s3"), "s3") as s3,
        storage(tmp_path_factory.mktemp("gs"), "gs") as gs,
    ):
        for of in (s3, gs):
            for key, n in {
                "in/1.jsonl": 1,
                "in/x/2.jsonl": 2,
                "in/x/y/3.jsonl": 3,
                "in/.h/4.jsonl": 4,
            }.items():
                of.put(key, jsonl(n, n + 1))
        yield {"s3": s3, "gs": gs}


@both
def test_what_cannot_be_is_said_before_anything_is_sent(tmp_path, echo, scheme, servers):
    """Somebody else's object, another run's name, a bucket that is not there, a key in the address."""
    of = servers[scheme]
    of.put("theirs.jsonl", b"{}\n")
    (tmp_path / "in.jsonl").write_bytes(jsonl(0, 3))
    cases = {
        f"{of.root}/theirs.jsonl": "is there already and batcher has no record here",
        f"{scheme}://bkt-none/o.jsonl": "there is no bucket bkt-none",
        f"{scheme}://key:secret@bkt/o.jsonl": "give credentials in the environment",
        f"{scheme}:///o.jsonl": "it names no bucket",
        f"{of.root}/o.txt": "no suffix that names a format",
    }
    for output, why in cases.items():
        ended = run(tmp_path, echo, of, "in.jsonl", "-o", output)
        assert ended.returncode == 2, output
        assert why in ended.stderr.decode(), ended.stderr.decode()
    ended = run(tmp_path, echo, of, f"{of.root}/in/1.jsonl", "-o", f"{of.root}/in/1.jsonl")
    assert b"it is the input and the output" in ended.stderr
    assert not echo.bought
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    assert of.content("theirs.jsonl") == b"{}\n"

    assert run(tmp_path, echo, of, "in.jsonl", "-o", f"{of.root}/1/o.jsonl").returncode == 0
    ended = run(tmp_path, echo, of, "in.jsonl", "-o", f"{of.root}/2/o.jsonl")
    assert ended.returncode == 2
    assert f"it belongs to {of.root}/1/o.jsonl" in ended.stderr.decode()
    ended = run(tmp_path, echo, of, "in.jsonl", "-o", f"{of.root}/theirs.jsonl", "--overwrite")
    assert ended.returncode == 0
    assert len(of.content("theirs.jsonl").splitlines()) == 3


@both
def test_pictures_lie_beside_the_rows_there(tmp_path, echo, scheme, servers):
    """Or where --images says; nowhere else."""
    of = servers[scheme]
    of.put("p/in/red.png", RED)
    of.put("p/out.png", RED)
    named = ["red.png", "../out.png", f"{of.root}/p/in/red.png", "/etc/passwd", "none.png"]
    rows = [{"prompt": "look", "image_path": name} for name in named]
    of.put("p/in/x.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    assert run(tmp_path, echo, of, f"{of.root}/p/in/x.jsonl", "-o", "o.jsonl").returncode == 3
    bad = "unreadable"
    assert [row["status"] for row in told(tmp_path)] == ["ok", bad, "ok", bad, bad]
    assert (
        sum("image/png;base64," in body for body in echo.bought) == 1
    )  # Equal ones are sent once.
    words = (f"{of.root}/p/in/x.jsonl", "-o", "b.jsonl", "--images", f"{of.root}/p")
    assert run(tmp_path, echo, of, *words).returncode == 3
    assert [row["status"] for row in told(tmp_path, "b.jsonl")] == [bad, bad, "ok", bad, bad]


def test_an_upload_that_fails_costs_no_answer(tmp_path, echo):
    """The storage is gone when the rows are done; the same command uploads, and sends nothing."""
    (tmp_path / "in.jsonl").write_bytes(jsonl(0, 30))
    with storage(tmp_path, "s3") as of:
        port = of.variables["AWS_ENDPOINT_URL"].rpartition(":")[2]
        slowly = ("--rpm", "600", "--concurrency", "1")
        words = command("run", "in.jsonl", "-o", f"{of.root}/o.jsonl", "-m", "m", *slowly)
        variables = {"OPENAI_BASE_URL": echo.url, "OPENAI_API_KEY": "none", **of.variables}
        with (tmp_path / "log").open("wb") as log:
            process = program.subprocess.Popen(
                words, cwd=tmp_path, env=environment(**variables), stderr=log
            )
        while not echo.bought:
            assert process.poll() is None
            time.sleep(0.05)
    assert process.wait(60) == 1
    said = (tmp_path / "log").read_text()
    assert f"{of.root}/o.jsonl: the upload failed" in said
    assert f"All rows are in {tmp_path}/o.jsonl" in said
    assert "Go on with: batcher run" in said
    assert len(read_jsonl(tmp_path / "o.jsonl")) == 30
    (tmp_path / "again").mkdir()
    with storage(tmp_path / "again", "s3", port) as of:
        ended = run(tmp_path, echo, of, "in.jsonl", "-o", f"{of.root}/o.jsonl", "--rpm", "600")
        assert ended.returncode == 0, ended.stderr.decode()
        assert of.content("o.jsonl") == (tmp_path / "o.jsonl").read_bytes()
    assert echo.bought.total() == 30


@long_only
@both
def test_a_storage_that_goes_away_stops_the_run_and_no_row_is_lost(tmp_path, echo, scheme):
    """In the middle of 40 MB, plain and packed: neither is taken for a damaged file."""
    content = "".join(json.dumps({"id": n, "prompt": f"{n:0900}"}) + "\n" for n in range(40_000))
    for key, stored in {
        "in.jsonl": content.encode(),
        "in.jsonl.zst": pa.compress(content.encode(), "zstd", asbytes=True),
    }.items():
        echo.bought.clear()
        folder = tmp_path / key
        folder.mkdir()
        with storage(folder, scheme) as of:
            of.put(key, stored)
            words = command(
                "run", f"{of.root}/{key}", "-o", "o.jsonl", "-m", "m", "--rpm", "60000"
            )
            variables = {"OPENAI_BASE_URL": echo.url, "OPENAI_API_KEY": "none", **of.variables}
            with (folder / "log").open("wb") as log:
                process = program.subprocess.Popen(
                    words, cwd=folder, env=environment(**variables), stderr=log
                )
            while len(echo.bought) < 3000:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.05)
        status, began = process.wait(200), time.monotonic()
        said = (folder / "log").read_text()
        tell(
            f"{scheme} goes away, {key}",
            status=status,
            seconds=f"{time.monotonic() - began:.0f}",
            bought=len(echo.bought),
        )
        assert status in (0, 4), said  # 0: all of a packed one was in the buffer.
        assert status == 0 or "cannot be read any further" in said
        port = next(iter(of.variables.values())).rpartition(":")[2]
        (folder / "again").mkdir()
        with storage(folder / "again", scheme, port) as of:
            of.put(key, stored)
            ended = run(folder, echo, of, f"{of.root}/{key}", "-o", "o.jsonl")
            assert ended.returncode == 0, ended.stderr.decode()
        assert [row["id"] for row in read_jsonl(folder / "o.jsonl")] == list(range(40_000))
        assert echo.bought.total() == 40_000
