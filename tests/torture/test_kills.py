"""kill -9 at any moment: at most what was in flight is bought twice, and no file is torn."""

import collections
import os
import subprocess
import sys
import time

import msgspec
import pyarrow.parquet as pq
import pytest

from batcher.simulate import server
from batcher.simulate.answers import answer
from batcher.simulate.settings import MODELS, Simulation
from tests.support.program import environment, read_jsonl, started, write_jsonl
from tests.torture import dice, long_only, tell, times
from tests.torture.books import answers, key_of, opened

CONCURRENCY = 8
FAULTS = {"http_500": 0.03, "cut_json": 0.02, "disconnect": 0.02, "html": 0.02}
TWO, THREE = ("sim-small", "sim-medium"), ("sim-small", "sim-medium", "sim-large")
QUALITY = {model.id: model.quality for model in MODELS}


def words(rows, suffix, models):
    named = [word for model in models for word in ("-m", model)]
    more = ("--max-retries", "20", "--prompt", "{{ text }}")
    return ("run", rows, "-o", f"out.{suffix}", *named, "--concurrency", str(CONCURRENCY), *more)


def output_rows(path):
    """The rows of an output that is whole; None for no output. Anything else raises."""
    if not path.exists():
        return None
    return read_jsonl(path) if path.suffix == ".jsonl" else pq.read_table(path).to_pylist()


def said(text, model):
    """What the gateway answers to this text, always."""
    return answer([{"role": "user", "content": text}], model, QUALITY[model], 0)


def until(condition, process, seconds=300.0):
    """Waits, without a pause, for a condition or the end of the process; whether it came first."""
    end = time.monotonic() + seconds
    while process.poll() is None:
        for _ in range(50):
            if condition():
                return True
        assert time.monotonic() < end, "nothing happened"
    return False


def parts(folder):
    return [entry.name for entry in os.scandir(folder) if ".tmp-" in entry.name]


@pytest.mark.parametrize(
    ("suffix", "models"), [("jsonl", TWO), pytest.param("parquet", THREE, marks=long_only)]
)
def test_kills_cost_at_most_what_was_in_flight(tmp_path, suffix, models):
    """An answer that was billed is on disk, however often the process is killed."""
    rng, kills, began = dice(f"kills {suffix}"), times(3, 60), time.monotonic()
    texts = [f"Ticket {n}: my parcel {n * 7} is late" for n in range(times(24, 600))]
    rows = write_jsonl(tmp_path / "in.jsonl", [{"n": n, "text": t} for n, t in enumerate(texts)])
    command = words(rows, suffix, models)
    output, folder = tmp_path / f"out.{suffix}", tmp_path / f"out.{suffix}.run"
    with opened(Simulation(speed=3, faults=FAULTS)) as books:
        while books.kills < kills:
            process = started(*command, cwd=tmp_path, url=books.url)
            if rng.random() < 0.2:
                time.sleep(rng.uniform(0, 1))
            else:
                wanted = len(books.bills) + rng.randrange(1, 40)
                if not until(lambda n=wanted: len(books.bills) >= n, process):
                    process.communicate()
                    break  # All is answered: there is nothing in flight to kill.
            books.kill(process)
            lost = books.lost(folder)
            assert lost <= books.bound, f"after kill {books.kills}"
            found = output_rows(output)
            assert found is None or len(found) == len(texts) * len(models)
        process = started(*command, cwd=tmp_path, url=books.url)
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr.decode()
        lost, bills = books.lost(folder), books.bills
        tell(
            f"kills, {suffix}",
            kills=books.kills,
            answers=len(texts) * len(models),
            billed=len(bills),
            cut_by_the_gateway=books.cut,
            lost_and_bought_twice=lost,
            bound=books.bound,
            most_in_flight=books.ledger.peak_in_flight,
            seconds=round(time.monotonic() - began),
        )
        assert 0 <= lost <= books.bound

    out = output_rows(output)
    assert [(r["row"], r["model"]) for r in out] == [
        (n, model) for n in range(len(texts)) for model in models
    ]
    assert {r["status"] for r in out} == {"ok"}
    assert [r["content"] for r in out] == [said(texts[r["row"]], r["model"]) for r in out]
    # Tokens: of each request once, whatever was paid for it besides.
    price = {bill.key[:16]: (bill.prompt, bill.completion) for bill in bills}
    assert [price[key_of(r["request_id"])] for r in out] == [
        (r["prompt_tokens"], r["completion_tokens"]) for r in out
    ]
    seen = collections.Counter(bill.key[:16] for bill in bills if bill.seen)
    assert set(seen) == set(price)
    for number, kind in enumerate(("prompt", "completion")):
        again = sum((n - 1) * price[key][number] for key, n in seen.items())
        told = sum(of.tokens[kind] for of in list(books.ledger.models.values()))
        assert sum(r[f"{kind}_tokens"] for r in out) == told - again


@pytest.mark.parametrize("suffix", [pytest.param("jsonl", marks=long_only), "parquet"])
def test_a_kill_while_the_output_is_written_leaves_the_old_one_whole(tmp_path, suffix):
    """The output is the old file or the new one. Nothing is in flight, so nothing is lost."""
    rng, kills, began = dice(f"finish {suffix}"), times(2, 40), time.monotonic()
    table = [
        {"n": n, "text": f"Ticket {n}", "blob": rng.randbytes(8000).hex()} for n in range(400)
    ]
    rows = tmp_path / "in.jsonl"
    output, folder = tmp_path / f"out.{suffix}", tmp_path / f"out.{suffix}.run"
    command = words(rows, suffix, ("sim-small",))
    writing = new = 0
    with opened(Simulation(speed=0)) as books:
        write_jsonl(rows, table)
        process = started(*command, cwd=tmp_path, url=books.url)
        process.communicate()
        assert process.returncode == 0
        while books.kills < kills:
            # A row more each time, so that old and new differ.
            table.append({"n": len(table), "text": f"Ticket {len(table)}", "blob": ""})
            write_jsonl(rows, table)
            old, litter = output.read_bytes(), set(parts(tmp_path))
            process = started(*command, cwd=tmp_path, url=books.url)
            if not until(lambda was=litter: set(parts(tmp_path)) - was, process):
                process.communicate()
                continue
            time.sleep(rng.uniform(0, 0.15))
            writing += bool(set(parts(tmp_path)) - litter)
            books.kill(process)
            if output.read_bytes() != old:
                new += 1
                assert len(output_rows(output)) == len(table)
            assert books.lost(folder) == 0
        process = started(*command, cwd=tmp_path, url=books.url)
        _, stderr = process.communicate()
        assert process.returncode == 0, stderr.decode()
        tell(
            f"kills in the finish, {suffix}",
            kills=books.kills,
            while_written=writing,
            new_output_already_there=new,
            billed=len(books.bills),
            rows=len(table),
            seconds=round(time.monotonic() - began),
        )
        assert len(books.bills) == len(table)
        assert books.doubled() == 0
    out = output_rows(output)
    assert [(r["n"], r["row"], r["content"]) for r in out] == [
        (row["n"], row["n"], said(row["text"], "sim-small")) for row in table
    ]


def test_a_killed_finish_leaves_no_part_of_a_file_for_good(tmp_path):
    """Each would be as large as the output, hidden, and nobody would know whose it is."""
    blob = os.urandom(20_000).hex()
    rows = write_jsonl(tmp_path / "in.jsonl", [{"text": f"{n}", "b": blob} for n in range(300)])
    command = words(rows, "jsonl", ("sim-small",))
    with opened(Simulation(speed=0)) as books:
        for _ in range(20):
            process = started(*command, cwd=tmp_path, url=books.url)
            if until(lambda: parts(tmp_path), process):
                process.kill()
            process.communicate()
            if parts(tmp_path):
                break
        else:
            pytest.skip("the output was always faster than the kill")
        process = started(*command, cwd=tmp_path, url=books.url)
        process.communicate()
        assert process.returncode == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl", "out.jsonl.run"]


@long_only
def test_a_kill_costs_no_more_when_the_disk_is_slow(tmp_path):
    """A disk that takes half a second to sync is no reason to lose half a second of answers."""
    slow = (
        "import os, time; sync = os.fdatasync; "
        "os.fdatasync = lambda file: (time.sleep(0.5), sync(file))[1]; "
        "from batcher.__main__ import main; main()"
    )
    rng, kills = dice("slow disk"), times(3, 20)
    texts = [f"Ticket {n}" for n in range(times(1500, 9000))]
    rows = write_jsonl(tmp_path / "in.jsonl", [{"text": text} for text in texts])
    command = [sys.executable, "-c", slow, *words(rows, "jsonl", ("sim-small",))]
    with opened(Simulation(speed=10)) as books:
        env = environment(OPENAI_BASE_URL=books.url, OPENAI_API_KEY="none")
        while books.kills < kills:
            process = subprocess.Popen(
                [str(word) for word in command],
                cwd=tmp_path,
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            wanted = len(books.bills) + rng.randrange(150, 350)
            if not until(lambda n=wanted: len(books.bills) >= n, process):
                break
            books.kill(process)
        lost = books.lost(tmp_path / "out.jsonl.run")
        tell("kills on a slow disk", kills=books.kills, lost=lost, bound=books.bound)
        assert lost <= books.bound


def test_a_kill_costs_no_more_when_answers_have_rare_fields(tmp_path, monkeypatch):
    """Tool calls and logprobs are found again like any other answer."""
    plain = server._json

    def with_logprobs(data, *more, **headers):
        for choice in data.get("choices", ()):
            choice["logprobs"] = {"content": [{"token": "a", "logprob": -0.5}]}
        return plain(data, *more, **headers)

    monkeypatch.setattr(server, "_json", with_logprobs)
    rows = write_jsonl(tmp_path / "in.jsonl", [{"text": f"{n}"} for n in range(80)])
    command = words(rows, "jsonl", ("sim-small",))
    with opened(Simulation(speed=3)) as books:
        process = started(*command, cwd=tmp_path, url=books.url)
        assert until(lambda: len(books.bills) >= 40, process)
        books.kill(process)
        lost = books.lost(tmp_path / "out.jsonl.run")
        process = started(*command, cwd=tmp_path, url=books.url)
        process.communicate()
        assert process.returncode == 0
        twice = books.doubled()
        tell("a kill with logprobs", lost=lost, bought_twice=twice, bound=books.bound)
        assert max(lost, twice) <= books.bound


def test_a_journal_read_after_a_kill_is_what_the_process_wrote(tmp_path):
    """The harness itself: a result counts as on disk only when its line can be read again."""
    rows = write_jsonl(tmp_path / "in.jsonl", [{"text": f"{n}"} for n in range(30)])
    with opened(Simulation(speed=0)) as books:
        process = started(*words(rows, "jsonl", ("sim-small",)), cwd=tmp_path, url=books.url)
        process.communicate()
        assert process.returncode == 0
        assert books.lost(tmp_path / "out.jsonl.run") == 0
        found = list(answers(tmp_path / "out.jsonl.run"))
        (segment,) = (tmp_path / "out.jsonl.run").glob("journal-*.jsonl")
        whole = segment.read_bytes()
        segment.write_bytes(whole[:-10])
        assert books.lost(tmp_path / "out.jsonl.run") == 1
    assert {key_of(r.request_id) for r in found} == {bill.key[:16] for bill in books.bills}
    assert all(msgspec.json.decode(line) for line in whole.splitlines())
