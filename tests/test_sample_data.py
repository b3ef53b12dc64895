import json
import re
import subprocess
import sys
from collections import Counter
from datetime import datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from batcher.evaluate.statistics import wilson
from batcher.simulate.answers import answer
from batcher.simulate.settings import Simulation

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "sample_data"


def rows(name):
    return [json.loads(line) for line in (FOLDER / name).read_text("utf-8").splitlines()]


def test_the_files_are_what_the_script_writes():
    """A change by hand would be lost at the next run of the script."""
    command = [sys.executable, str(ROOT / "scripts" / "sample_data"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("name", "count"), [("tickets", 300), ("questions", 60)])
def test_jsonl_and_parquet_hold_the_same_rows(name, count):
    """Examples may then use either."""
    columnar = pq.read_table(FOLDER / f"{name}.parquet").to_pylist()
    lines = rows(f"{name}.jsonl")
    for line in lines:
        if "received" in line:
            line["received"] = datetime.fromisoformat(line["received"])
    assert lines == columnar
    assert len(lines) == count


def test_tickets_are_varied():
    """A stamped set would make a labelling example look easier than it is."""
    tickets = rows("tickets.jsonl")
    assert len({ticket["text"] for ticket in tickets}) == 300
    assert len({ticket["text"][:25] for ticket in tickets}) >= 150
    assert Counter(ticket["channel"] for ticket in tickets).keys() == {"email", "chat", "phone"}
    assert min(Counter(ticket["gold"] for ticket in tickets).values()) >= 20
    texts = "".join(ticket["text"] for ticket in tickets)
    assert all(re.search(letters, texts) for letters in ("[가-힣]", "[äöüß]", "[ñ¿¡]", "🙏", "\n"))


def test_prompts_show_every_kind_of_input_row():
    """The README points at this file for the kinds."""
    prompts = rows("prompts.jsonl")
    kinds = Counter(
        next((key for key in ("body", "messages", "prompt") if key in row), "columns")
        for row in prompts
    )
    assert kinds == {"body": 3, "messages": 4, "prompt": 3, "columns": 2}
    named = [row["custom_id"] for row in prompts if "custom_id" in row]
    assert len(named) == len(set(named))


def test_the_simulated_models_are_as_right_on_the_tickets_as_they_are_told_to_be():
    """What a report on the sample data shows can be held against what is true: 80, 90 and 97 %."""
    system = "You label support tickets. Answer with one of: {}.".format(
        ", ".join(sorted({ticket["gold"] for ticket in rows("tickets.jsonl")}))
    )
    told = {model.id: model.quality for model in Simulation().models}
    assert told == {"sim-small": 0.8, "sim-medium": 0.9, "sim-large": 0.97}
    for model, quality in told.items():
        right = 0
        for ticket in rows("tickets.jsonl"):
            messages = [
                {"role": "system", "content": system},
                {"role": "user", "content": ticket["text"]},
            ]
            right += answer(messages, model, quality, 0) == ticket["gold"]
        low, high = wilson(right, 300)
        assert low <= quality <= high, model
