"""Pictures that rows name: sent inside the request, bounded, and noticed when they change."""

import asyncio
import base64
import json
import os
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import batcher
from batcher.read import images
from batcher.records import Prompt
from batcher.runtime.row_queue import MemoryBudget, RowQueue
from tests.support import echo as echoes
from tests.support import program
from tests.support.program import read_jsonl, write_jsonl

JPEG, GIF, WEBP = b"\xff\xd8\xff\xe0 a", b"GIF89a b", b"RIFF\x10\0\0\0WEBPVP8 c"
ASK = ("--prompt", "What is on it? {{ n }}", "-m", "m")


def png(colour):
    """A picture of one point that any program opens."""

    def chunk(kind, content):
        check = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + check

    head = bytes([0, 0, 0, 1, 0, 0, 0, 1, 8, 2, 0, 0, 0])
    point = zlib.compress(bytes([0, *colour]))
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", point) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


RED, BLUE = png((255, 0, 0)), png((0, 0, 255))


@pytest.fixture
def folder(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name, content in {
        "red.png": RED, "a.jpg": JPEG, "a.gif": GIF, "a.webp": WEBP, "secret.png": b"root:x:0:0",
        "large.png": RED + bytes(images.MAX_BYTES),
    }.items():  # fmt: skip
        (data / name).write_bytes(content)
    os.mkfifo(data / "pipe.png")
    return tmp_path


@pytest.fixture
def echo():
    with echoes.running() as echo:
        yield echo


def run(folder, echo, *words, rows="data/in.jsonl"):
    return program.batcher("run", rows, "-o", "out.jsonl", *ASK, *words, cwd=folder, url=echo.url)


def address(kind, content):
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def shown(body):
    """The addresses of the pictures in a request."""
    content = json.loads(body)["messages"][-1]["content"]
    return [part["image_url"]["url"] for part in content if part["type"] == "image_url"]


@pytest.mark.parametrize(
    ("value", "urls"),
    [
        ("red.png", [address("png", RED)]),
        (["a.jpg", "a.gif"], [address("jpeg", JPEG), address("gif", GIF)]),
        (["", None, "a.webp"], [address("webp", WEBP)]),
        ("https://example.org/a.png", ["https://example.org/a.png"]),
        (address("png", BLUE), [address("png", BLUE)]),
        (None, []),
        ("", []),
        ([], []),
    ],
)
def test_a_path_is_read_from_beside_the_input(folder, value, urls):
    found = [part["image_url"]["url"] for part in images.parts(value, str(folder / "data"))]
    assert found == urls


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("none.png", "No such file"),
        ("secret.png", "it is no PNG, JPEG, GIF or WebP"),
        ("large.png", "larger than 20 MB"),
        ("pipe.png", "it is no file"),
        (".", "it is no file"),
        ("../b.png", "outside of the folder .*data; name .* with --images"),
        ("a/../../b.png", "outside"),
        ("/etc/passwd", "outside"),
        ("s3://bucket/b.png", "No such file"),
        ("a\0b.png", "cannot be read"),
        ("x" * 300 + ".png", "File name too long"),
        (7, "must be a path or a list of paths, not 7"),
        ({"url": "a"}, "must be a path"),
    ],
)
def test_what_is_no_picture_is_not_sent(folder, value, why):
    """No row makes another file of the machine part of a request, nor waits for ever."""
    with pytest.raises(images.InvalidImage, match=why):
        images.parts(value, str(folder / "data"))


def test_the_folder_of_pictures_may_be_another_one(folder, echo):
    """Which they cannot leave either."""
    rows = [{"n": n, "image_path": name} for n, name in enumerate(("red.png", "../in.jsonl", "/"))]
    write_jsonl(folder / "in.jsonl", rows)
    assert run(folder, echo, "--images", "data", rows="in.jsonl").returncode == 3
    assert [row["status"] for row in read_jsonl(folder / "out.jsonl")] == ["ok"] + 2 * [
        "unreadable"
    ]
    absolute = {"n": 1, "image_path": str(folder / "data" / "red.png")}
    write_jsonl(folder / "in.jsonl", [absolute])
    assert run(folder, echo, "--images", "/", rows="in.jsonl").returncode == 0
    assert (
        run(folder, echo, "--images", folder / "none", "--overwrite", rows="in.jsonl").returncode
        == 2
    )


def test_rows_of_every_kind_show_their_pictures_after_their_words(folder, echo):
    words = [{"type": "text", "text": "look"}]
    rows = [
        {"n": 1, "image_path": "red.png"},
        {"messages": [{"role": "user", "content": "look"}, {"role": "assistant", "content": "?"}]},
        {"prompt": "look", "image_path": str(folder / "data" / "a.gif")},
        {"body": {"messages": [{"role": "user", "content": words}]}, "image_path": ["a.jpg"]},
        {"messages": [{"role": "system", "content": "look"}], "image_path": "red.png"},
        {"n": 2, "image_path": "none.png"},
    ]
    write_jsonl(folder / "data" / "in.jsonl", rows)
    ended = run(folder, echo)
    assert ended.returncode == 3
    bodies = [json.loads(body)["messages"] for body in echo.bought]
    contents = sorted(json.dumps(of[0]["content"], ensure_ascii=False) for of in bodies)
    picture = {"type": "image_url", "image_url": {"url": address("jpeg", JPEG)}}
    assert json.dumps([*words, picture], ensure_ascii=False) in contents
    assert sum("image_url" in content for content in contents) == 3
    out = read_jsonl(folder / "out.jsonl")
    assert [row["status"] for row in out] == ["ok"] * 4 + ["unreadable"] * 2
    assert 'no message is of the role "user"' in out[4]["error"]
    assert out[5]["error"].startswith("data/in.jsonl:6: ")
    assert "none.png: the image cannot be read: No such file" in out[5]["error"]
    assert out[0]["image_path"] == "red.png"
    assert "base64" not in (folder / "out.jsonl").read_text()


def test_parquet_and_csv_name_pictures_as_well(folder, echo):
    table = {"n": [1, 2], "image_path": [["red.png"], None], "more": ["x", "y"]}
    pq.write_table(pa.table(table), folder / "data" / "in.parquet")
    (folder / "data" / "in.csv").write_text("n,image_path\n3,a.gif\n4,\n")
    assert run(folder, echo, rows="data").returncode == 0
    found = [shown(body) if "image_url" in body else [] for body in echo.bought]
    assert sorted(found) == [[], [], [address("gif", GIF)], [address("png", RED)]]


def test_rows_from_python_name_pictures_from_where_they_are_run(folder, echo, monkeypatch):
    monkeypatch.chdir(folder / "data")
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    rows = [{"prompt": "look", "image_path": "red.png"}]
    how = {"models": ["m"], "base_url": echo.url, "api_key_env": "OPENAI_API_KEY"}
    assert batcher.run(rows, output=folder / "out.jsonl", **how).exit_status == 0
    assert [shown(body) for body in echo.bought] == [[address("png", RED)]]


def test_a_picture_that_changed_under_its_name_is_asked_about_again(folder, echo):
    """The input is the same file then; an answer about the old picture would be stale."""
    rows = [{"n": n, "image_path": "b.png" if n == 2 else "red.png"} for n in range(4)]
    write_jsonl(folder / "data" / "in.jsonl", rows)
    (folder / "data" / "b.png").write_bytes(RED)
    assert run(folder, echo, "-n", "3").returncode == 0
    assert echo.bought.total() == 3
    (folder / "data" / "b.png").write_bytes(BLUE)
    assert run(folder, echo).returncode == 0
    assert echo.bought.total() == 5, "the row with the new picture, and the one behind the limit"
    (folder / "data" / "red.png").touch()
    assert run(folder, echo).returncode == 0
    assert run(folder, echo).returncode == 0
    assert echo.bought.total() == 5, "the same bytes are the same request"
    (folder / "data" / "red.png").write_bytes(BLUE)
    assert run(folder, echo, "-n", "1").returncode == 0
    assert echo.bought.total() == 6
    assert run(folder, echo).returncode == 0
    assert echo.bought.total() == 8


def test_a_dry_run_names_pictures_that_are_missing_and_counts_no_base64(folder, echo):
    (folder / "data" / "b.png").write_bytes(RED + bytes(1 << 20))
    rows = [{"n": 1, "image_path": "b.png"}, {"n": 2, "image_path": "none.png"}]
    write_jsonl(folder / "data" / "in.jsonl", rows)
    ended = run(folder, echo, "--dry-run")
    said = ended.stderr.decode()
    assert ended.returncode == 3
    assert "data/in.jsonl:2: " in said
    assert "none.png: the image cannot be read" in said
    assert "m: 1 request, about 1,000 prompt tokens (690 to 2,100)" in said
    assert not echo.bought


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=30), st.integers(1, 9))
def test_large_prompts_in_flight_never_take_more_than_their_memory(prompts, workers):
    """Nobody waits for ever either: not behind the last prompt, nor behind one as large as the room."""
    third = Prompt(0, "", b" " * (1 << 17))
    sizes = {0: b"", 1: b" " * (1 << 16), 2: third.fields, 3: b" " * (1 << 20)}
    most = held = alone = 0

    async def work():
        nonlocal most, held, alone
        room = MemoryBudget()
        room._limit = 3 << 18  # Three thirds, each with the request made of it.
        queue = RowQueue(room)

        async def worker():
            nonlocal most, held, alone
            while (prompt := await queue.take()) is not None:
                size = 2 * len(prompt.fields)
                held, alone = held + size, alone + (size > 0)
                if alone > 1 or 0 < size <= room._limit:  # An empty one may go beside any.
                    most = max(most, held)
                for _ in range(prompt.row):
                    await asyncio.sleep(0)
                held, alone = held - size, alone - (size > 0)
                if room.release(prompt):
                    queue.wake()

        tasks = [asyncio.create_task(worker()) for _ in range(workers)]
        for kind, turns in prompts:
            queue.put(Prompt(turns, "", sizes[kind]))
            await asyncio.sleep(0)
        queue.close()
        await asyncio.wait_for(asyncio.gather(*tasks), 10)
        assert not len(queue)
        assert room._used == 0

    asyncio.run(work())
    assert most <= 3 << 18
