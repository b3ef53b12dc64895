"""The README's commands run, and its tables name what the program has."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from batcher.job.job import Job
from batcher.records import Outcome
from batcher.simulate.faults import FAULTS
from batcher.simulate.server import running
from batcher.simulate.settings import Simulation
from batcher.write.columns import COLUMNS
from tests.support import forked
from tests.support.program import environment

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
RUNNABLE = [block for block in BLOCKS if "scripts/demo" not in block[1]]
FORKED = f"""#!{sys.executable} -IS
import sys
sys.path.append({{root!r}})
from tests.support.forked import forward
sys.exit(forward({{address!r}}, sys.argv[1:]))
"""  # What a command imports is imported already.


@pytest.mark.parametrize("number", range(len(RUNNABLE)))
def test_every_block_runs(tmp_path, number):
    """As a reader would run it; only the address of AiHubMix is one on loopback here."""
    kind, text = RUNNABLE[number]
    if "--on ray" in text:
        pytest.importorskip("ray")
    shutil.copytree(ROOT / "sample_data", tmp_path / "sample_data")
    program = tmp_path / "bin" / "batcher"
    program.parent.mkdir()
    program.write_text(FORKED.format(root=str(ROOT), address=forked.address()))
    program.chmod(0o755)
    env = environment(
        PATH=f"{program.parent}{os.pathsep}{os.environ['PATH']}", PYTHONPATH=str(ROOT)
    )
    with running(Simulation(speed=0)) as gateway:
        if "AIHUBMIX_API_KEY" in text:
            text = text.replace(
                "batcher run",
                f"batcher run --base-url {gateway.url} --api-key-env AIHUBMIX_API_KEY",
            ).replace("gpt-4o-mini", "sim-small")
        words = ["sh", "-eu", "-c", text] if kind == "sh" else [sys.executable, "-c", text]
        ended = subprocess.run(
            words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600, check=False
        )
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_two_commands_are_there():
    """They are the first thing that a reader does."""
    for name in ("demo", "test"):
        assert os.access(ROOT / "scripts" / name, os.X_OK)


def test_every_option_is_in_the_table():
    """And the table has no option that is not there."""
    table = README.split("## Options of")[1].split("\n## ")[0]
    told = set(re.findall(r"`(--[a-z-]+)`", table))
    names = {"models": "model", "params": "param", "headers": "header"}
    there = {f"--{names.get(f.name, f.name).replace('_', '-')}" for f in fields(Job)} - {
        "--inputs"
    }
    assert told - {"--dry-run", "--config", "--no-simulate"} == there - {"--dry-run"}


def test_every_column_status_and_fault_is_named():
    """In the tables of the README."""
    columns = README.split("## Output columns")[1].split("| status |")[0]
    table = "\n".join(
        line.split("|")[1] for line in columns.splitlines() if line.startswith("| `")
    )
    assert re.findall(r"`(\w+)`", table) == [*COLUMNS]
    statuses = README.split("| status |")[1].split("| exit status |")[0]
    assert set(re.findall(r"^\| (.*?) \|", statuses, re.MULTILINE)) >= {"`ok`"}
    for outcome in Outcome:
        assert f"`{outcome}`" in statuses
    for fault in FAULTS:
        assert f"`{fault}`" in README
