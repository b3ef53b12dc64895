"""Budgets of any size, at any concurrency, over a kill and a resume: never exceeded, and used."""

import json
import signal
import time
from decimal import Decimal

from batcher.simulate.server import running
from batcher.simulate.settings import MODELS, Simulation
from tests.support.program import started, write_jsonl
from tests.torture import dice, tell, times

PRICES = {m.id: {"input": str(m.input_price), "output": str(m.output_price),
                 "cached": str(m.cached_price)} for m in MODELS}  # fmt: skip
MODEL = {m.id: m for m in MODELS}["sim-large"]
BOUND = 40  # Tokens of an answer at most.
BYTES = 260  # Of a request, at most.
DEAREST = (BYTES * MODEL.input_price + BOUND * MODEL.output_price) / 1_000_000
USUAL = (40 * MODEL.input_price + 8 * MODEL.output_price) / 1_000_000
FAULTS = {"http_500": 0.03, "cut_json": 0.002, "disconnect": 0.002, "invalid": 0.03}


def billed(gateway):
    """Dollars in the gateway's books, of answers that nobody saw as well."""
    return sum(
        (of.cost + of.cost_unseen for of in list(gateway.ledger.models.values())), Decimal(0)
    )


def test_no_budget_is_ever_exceeded_and_each_is_used(tmp_path):
    """By the gateway's own books; what a kill leaves in flight is taken for billed."""
    rng, whole, killed_used = dice("budgets"), [], []
    (tmp_path / "prices.json").write_text(json.dumps(PRICES))
    rows = [{"text": f"Ticket {n}: my parcel {n * 7} is late"} for n in range(times(3000, 8000))]
    write_jsonl(tmp_path / "in.jsonl", rows)
    for number in range(times(2, 50)):
        concurrency = rng.choice([1, 2, 8, 64, 200, 500]) if number else 64
        budget = round(Decimal(rng.uniform(300, times(1000, 4000))) * USUAL, 6)
        command = (
            "run", "in.jsonl", "-o", f"out{number}.jsonl", "-m", "sim-large", "--max-cost", budget,
            "--concurrency", concurrency, "--prices", "prices.json", "--prompt", "{{ text }}",
            "--labels", "shipping,bug", "--param", f"max_tokens={BOUND}", "--max-retries", "50",
        )  # fmt: skip
        killed = number % 2
        with running(Simulation(speed=rng.choice([0, 50]), faults=FAULTS, seed=number)) as gateway:
            flying = 0
            if killed:
                process = started(*command, cwd=tmp_path, url=gateway.url)
                part = budget * Decimal(rng.uniform(0.1, 0.8))
                while process.poll() is None and billed(gateway) < part:
                    time.sleep(0.002)
                process.send_signal(signal.SIGKILL)
                process.communicate()
                flying = concurrency
            process = started(*command, cwd=tmp_path, url=gateway.url)
            _, stderr = process.communicate(timeout=300)
            spent, faults = billed(gateway), gateway.ledger.models["sim-large"].by_fault
        assert spent <= budget, f"budget {number}: {spent} of {budget} at {concurrency}"
        assert process.returncode == 4, stderr.decode()
        assert b"--max-cost: $" in stderr
        # Left over: less than one request, and what is taken for billed: lost answers, a kill's flight.
        lost = sum(faults[name] for name in ("cut_json", "disconnect")) * DEAREST
        kill = flying * DEAREST + budget / 50 if killed else 0
        assert spent >= budget - DEAREST - kill - lost, f"budget {number} at {concurrency}"
        (killed_used if killed else whole).append(float(spent / budget))
    tell(
        "budgets",
        budgets=len(whole) + len(killed_used),
        exceeded=0,
        least_used=round(min(whole), 3),
        least_used_after_a_kill=round(min(killed_used), 3),
        median_after_a_kill=round(sorted(killed_used)[len(killed_used) // 2], 3),
    )
