"""Damaged files of every kind that the program reads: each command ends with a sentence."""

import random
import shlex
import shutil
import subprocess

import pytest

from batcher.job.job import Job
from batcher.simulate.server import running
from batcher.simulate.settings import Simulation
from tests.support.fuzz import damage, options
from tests.support.program import batcher, write_jsonl
from tests.torture import dice, tell, times

CASES = times(60, 2000)
ASK = ("-m", "sim-small", "-m", "sim-large", "--prompt", "{{ text }}")
LABELS = ("--labels", "bug,billing", "--param", "temperature=0", "--param", "max_tokens=50")
READING = {
    "out.jsonl": [
        ("show", "{}"),
        ("show", "{}", "--disputed"),
        ("report", "{}", "--json"),
        ("report", "{}", "--gold", "gold", "--by", "text", "--vote", "v.parquet"),
        ("compare", "{}", "copy.jsonl"),
        ("compare", "copy.jsonl", "{}", "--gold", "gold"),
        ("convert", "{}", "-o", "c.jsonl"),
        ("clean", "{}"),
    ],
    "out.parquet": [
        ("show", "{}", "--sample", "3"),
        ("report", "{}", "--gold", "gold", "--disputed", "d.jsonl"),
        ("report", "{}", "--json", "--vote", "v.jsonl"),
        ("compare", "{}", "copy.jsonl"),
        ("clean", "{}"),
    ],
    "batch.jsonl": [
        ("show", "{}"),
        ("report", "{}", "--json"),
        ("convert", "{}", "-o", "c.parquet"),
        ("check", "in.jsonl", "-o", "new.jsonl", *ASK[:2], *ASK[4:], "--from-batch", "{}"),
        ("run", "in.jsonl", "-o", "new.jsonl", *ASK[:2], *ASK[4:], "--from-batch", "{}"),
    ],
    "in.jsonl": [
        ("check", "{}", "-o", "new.parquet", *ASK),
        ("run", "{}", "-o", "new.parquet", *ASK, *LABELS),
        ("run", "{}", "-o", "new.jsonl", *ASK, *LABELS),
        ("convert", "{}", "-o", "c.jsonl", *ASK),
    ],
    "in.parquet": [
        ("check", "{}", "-o", "new.parquet", *ASK),
        ("run", "{}", "-o", "new.parquet", *ASK, *LABELS),
        ("run", "{}", "-o", "new.jsonl", *ASK),
    ],
    "schema.json": [("run", "in.jsonl", "-o", "new.parquet", *ASK, "--schema", "{}")],
    "prices.json": [("run", "in.jsonl", "-o", "new.jsonl", *ASK, "--prices", "{}", "--max-cost", "1",
                     "--param", "max_tokens=9")],
    "job.toml": [("run", "--config", "{}", "-o", "new.jsonl")],
}  # fmt: skip
AGAIN = ("run", "in.jsonl", "-o", "out.jsonl", *ASK, *LABELS)
FOLDER = [
    (*AGAIN, "--max-total-tokens", "100000000"),
    (*AGAIN, "--changed", "resend"),
    ("status", "out.jsonl"),
    ("explain", "out.jsonl", "1"),
    ("export", "out.jsonl", "e.parquet"),
    ("clean", "out.jsonl"),
]
SCHEMA = '{"type": "object", "properties": {"label": {"enum": ["bug", "billing"]}}, "required": ["label"]}'
PRICES = '{"sim-small": {"input": 1, "output": 2}, "sim-large": {"input": 1, "output": 2, "cached": 0.5}}'
JOB = 'inputs = "in.jsonl"\nmodel = ["sim-small"]\nprompt = "{{ text }}"\nlabels = ["a", "b"]\n[param]\ntop_p = 1\n'


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with one sound file of each kind, and the gateway that they were made with."""
    folder = tmp_path_factory.mktemp("sound")
    rows = [
        {"text": f"Ticket {n}: the bill is wrong", "gold": "billing", "custom_id": f"t{n}", "n": n}
        for n in range(6)
    ]
    write_jsonl(folder / "in.jsonl", rows)
    (folder / "schema.json").write_text(SCHEMA)
    (folder / "prices.json").write_text(PRICES)
    (folder / "job.toml").write_text(JOB)
    with running(Simulation(speed=0)) as gateway:

        def ran(*words):
            ended = batcher(*words, cwd=folder, url=gateway.url)
            assert ended.returncode in (0, 3), ended.stderr.decode()

        ran(*AGAIN, "--max-total-tokens", "100000000")
        ran(*AGAIN[:3], "out.parquet", *AGAIN[4:])
        ran(*AGAIN[:3], "batch.jsonl", *ASK[:2], *ASK[4:], "--format", "openai")
        shutil.copy(folder / "out.jsonl", folder / "copy.jsonl")
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), folder / "in.parquet")
        for name in ("batch.jsonl.run", "out.parquet.run"):
            shutil.rmtree(folder / name)
        yield folder, gateway.url


def flags():
    """Every option of `batcher run` but those that start something beside it."""
    fields = {
        "--api-key-env",
        *(f"--{name.replace('_', '-')}" for name in Job.__dataclass_fields__),
    }
    return sorted(fields - {"--inputs", "--on", "--shards", "--deadline", "--log-level"})


def test_options_that_make_no_sense_end_in_a_sentence(made, tmp_path):
    """Each is refused or taken; none is a traceback or a hang."""
    sound, url = made
    rng, found = dice("options"), []
    shutil.copytree(sound, tmp_path / "case")
    for case in range(times(20, 1000)):
        command = ("run", "check")[case % 2]
        words = (command, "in.jsonl", "-o", "new.jsonl", *ASK, *options(flags(), rng))
        told = how_it_ends(words, tmp_path / "case", url)
        found += [f"batcher {shlex.join(words)}: {told}"] if told else []
        (tmp_path / "case" / "new.jsonl").unlink(missing_ok=True)
        shutil.rmtree(tmp_path / "case" / "new.jsonl.run", ignore_errors=True)
    tell("options", faults=len(found))
    assert not found, "\n".join(found)


def test_a_damaged_file_ends_in_a_sentence(made, tmp_path):
    """No traceback, no hang, no death by signal, whatever was damaged and whatever reads it."""
    sound, url = made
    rng = dice("fuzz")
    found = []
    files = [
        *READING,
        *(f"out.jsonl.run/{path.name}" for path in (sound / "out.jsonl.run").iterdir()),
    ]
    for case in range(CASES):
        seed = rng.getrandbits(32)
        told = one_case(
            random.Random(seed), files[case % len(files)], sound, tmp_path / "case", url
        )
        found += [f"seed {seed}: {told}"] if told else []
    tell("fuzz", cases=CASES, faults=len(found))
    assert not found, "\n".join(found)


def one_case(rng, name, sound, folder, url):
    """What is wrong with how one command ends; None when nothing is."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound, folder)
    how = damage(folder / name, rng)
    of_folder = ".run/" in name
    words = [
        word.replace("{}", name) for word in rng.choice(FOLDER if of_folder else READING[name])
    ]
    told = how_it_ends(words, folder, url)
    return told and f"{name}, {how}: batcher {shlex.join(words)}: {told}"


def how_it_ends(words, folder, url):
    """What is wrong with the end of a command; None when it ended as it should."""
    try:
        ended = batcher(*words, cwd=folder, url=url, timeout=60)
    except subprocess.TimeoutExpired:
        return "it hangs"
    said = ended.stderr.decode(errors="replace")
    if b"Traceback" in ended.stderr + ended.stdout or ended.returncode not in (0, 1, 2, 3, 4):
        return f"{ended.returncode}: {said[-1500:]}"
    if ended.returncode in (1, 2) and not said.strip():
        return f"{ended.returncode} without a word"
    return None
