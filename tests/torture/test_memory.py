"""Memory is bounded by bytes: large cells, large answers, quotes without an end, rows that moved."""

import asyncio
import json

import pyarrow as pa
import pyarrow.parquet as pq
from aiohttp import web

from tests.support import echo
from tests.support.program import command, write_jsonl
from tests.torture import long_only, tell
from tests.torture.memory import peak


def ran(url, *words):
    """Peak memory in MB of a command that ends well."""
    status, megabytes, _seconds = peak([str(word) for word in command(*words)], url)
    assert status == 0
    return megabytes


@long_only
def test_documents_take_no_more_memory_when_there_are_more_of_them(tmp_path):
    """50 KB each, in Parquet and out again; what is held is bounded by bytes, whatever the number of rows."""
    found = []
    schema = pa.schema([("prompt", pa.string()), ("document", pa.string())])
    for rows in (4_000, 16_000):
        path = tmp_path / f"{rows}.parquet"
        with pq.ParquetWriter(path, schema, write_batch_size=16) as writer:
            for first in range(0, rows, 500):
                texts = [(f"{n} " * 8000)[:50_000] for n in range(first, first + 500)]
                writer.write_table(pa.table([[t[:40] for t in texts], texts], schema=schema))
        with echo.running() as up:
            found.append(
                ran(up.url, "run", path, "-o", f"{path}.out.parquet", "-m", "m", "--quiet")
            )
    tell("documents of 50 KB", rows="4,000 and 16,000", peak_MB=found)
    assert found[1] < found[0] + 150


@long_only
def test_a_quote_that_is_never_closed_takes_little_more_memory(tmp_path):
    found = []
    for name, cell in (("sound", "a"), ("open", '"a')):
        lines = [
            f"id,text\n0,{cell}\n",
            *(f"{n},{'word ' * 20}{n}\n" for n in range(1, 1_000_000)),
        ]
        path = tmp_path / f"{name}.csv"
        path.write_text("".join(lines))
        words = command(
            "convert", path, "-o", f"{path}.jsonl", "-m", "m", "--prompt", "{{ text }}"
        )
        status, megabytes, _seconds = peak([str(word) for word in words], "http://127.0.0.1:9/v1")
        assert status == (0 if name == "sound" else 3)
        found.append(megabytes)
    tell("a CSV file of 110 MB", peak_MB_sound_and_with_an_open_quote=found)
    assert (
        found[1] < found[0] + 100
    )  # A record of 8 MB is held; it took four times the rest of the file.


@long_only
def test_large_answers_at_once_are_bounded_in_all(tmp_path):
    """40 answers of 60 MB are there at the same moment; they took 7 GB for 100."""
    rows = 40
    answer = json.dumps(
        {"choices": [{"message": {"content": "x" * (60 << 20)}, "finish_reason": "stop"}]}
    )
    together = asyncio.Event()
    waiting = 0

    async def large(_request):
        nonlocal waiting
        waiting += 1
        if waiting > rows // 2:
            together.set()
        if waiting > 1:  # The first row of a model is waited for.
            await together.wait()
        return web.Response(text=answer, content_type="application/json")

    write_jsonl(tmp_path / "in.jsonl", [{"prompt": str(n)} for n in range(rows)])
    with echo.running(large) as up:
        words = ("-m", "m", "--concurrency", str(rows), "--quiet")
        megabytes = ran(up.url, "run", tmp_path / "in.jsonl", "-o", tmp_path / "o.jsonl", *words)
    tell("40 answers of 60 MB at once", peak_MB=megabytes)
    assert megabytes < 1500


@long_only
def test_a_row_inserted_before_many_takes_little_more(tmp_path):
    """Every answer moves by a row: found again by key, within the memory of a plain second start."""
    rows = [{"prompt": f"Ticket {n}"} for n in range(200_000)]
    path = write_jsonl(tmp_path / "in.jsonl", rows)
    with echo.running() as up:
        words = (
            "run",
            path,
            "-o",
            tmp_path / "o.jsonl",
            "-m",
            "m",
            "--quiet",
            "--concurrency",
            "64",
        )
        ran(up.url, *words)
        again = ran(up.url, *words)
        size = sum(file.stat().st_size for file in (tmp_path / "o.jsonl.run").iterdir())
        write_jsonl(path, [{"prompt": "new"}, *rows])
        moved = ran(up.url, *words)
        assert max(up.bought.values()) == 1
    grown = sum(file.stat().st_size for file in (tmp_path / "o.jsonl.run").iterdir()) - size
    tell(
        "a row before 200,000",
        peak_MB_again=again,
        peak_MB_moved=moved,
        folder_grew_KB=grown // 1000,
    )
    assert moved < again + 60
    assert grown < 1_000_000
