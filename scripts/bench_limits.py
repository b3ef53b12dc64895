"""How much of a limit is used and how much is answered 429, over HTTP and in real time.

The warm-up is long because a server that books tokens after the answer lets a flood through at the
start, before anything is known, and counts it against the minutes after it.

Each cell is a `batcher run` of its own against a metering gateway of its own; the cells of one
table run at once, as each sends some ten requests a second.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

from batcher.simulate.server import running
from batcher.simulate.settings import SimulatedModel, Simulation

KINDS = ("bucket-60s", "bucket-1s", "window-60s", "window-1s")
PRICE = Decimal(1)
MODEL = SimulatedModel("m", 0.9, 1.0, 0.6, PRICE, PRICE, PRICE, tokens_per_s=200)
TEXT = "I was charged twice for my subscription this month and would like my money back. " * 4
MOST = 400


def cell(
    kind: str, knows: str, unit: str, charge: str, limit: float, warm: float, seconds: float
) -> tuple[float, float]:
    """(share of the limit used, part of the requests answered 429) after the warm-up."""
    limits = {"rpm": limit} if unit == "requests" else {"tpm": limit}
    simulation = Simulation(
        models=(MODEL,), meter=kind, charge=charge, headers=knows == "headers", **limits
    )
    with tempfile.TemporaryDirectory() as folder, running(simulation) as gateway:
        rows = int((warm + seconds) * 40)
        with Path(folder, "in.jsonl").open("w") as file:
            file.writelines(json.dumps({"prompt": f"{n}: {TEXT}"}) + "\n" for n in range(rows))
        words = [sys.executable, "-m", "batcher", "run", "in.jsonl", "-o", "out.jsonl", "-m", "m"]
        words += ["--param", f"max_tokens={MOST}", "--quiet", "--base-url", gateway.url]
        if knows == "told":
            words += [f"--{'rpm' if unit == 'requests' else 'tpm'}", f"{limit:g}"]
        clean = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
        process = subprocess.Popen(words, cwd=folder, env=clean, stderr=subprocess.DEVNULL)
        try:
            of = gateway.ledger.models["m"]

            def now() -> tuple[float, float, int]:
                ok, no = of.by_status.get(200, 0), of.by_status.get(429, 0)
                if unit == "requests":
                    return ok, time.monotonic(), ok + no
                tokens = of.tokens["prompt"] + (
                    ok * MOST if charge == "max-tokens" else of.tokens["completion"]
                )
                return tokens, time.monotonic(), ok + no

            time.sleep(warm)
            used, began, sent = now()
            refused = of.by_status.get(429, 0)
            time.sleep(seconds)
            used_then, ended, sent_then = now()
            refused_then = of.by_status.get(429, 0)
            alive = process.poll() is None
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
    if not alive:
        return float("nan"), float("nan")
    share = (used_then - used) / (limit / 60 * (ended - began))
    return share, (refused_then - refused) / max(1, sent_then - sent)


def main() -> None:
    """Prints the table."""
    quick = "--quick" in sys.argv
    warm, seconds = (30.0, 45.0) if quick else (240.0, 180.0)
    print(f"after {warm:g} s of warm-up, over {seconds:g} s: share of the limit, 429s", flush=True)
    for unit, charge, limit in (
        ("requests", "output", 600.0),
        ("tokens", "output", 90_000.0),
        ("tokens", "max-tokens", 300_000.0),
    ):
        cells = [(kind, knows) for knows in ("told", "headers", "nothing") for kind in KINDS]
        with ThreadPoolExecutor(len(cells)) as pool:
            found = list(
                pool.map(
                    lambda c: cell(c[0], c[1], unit, charge, limit, warm, seconds),  # noqa: B023
                    cells,
                )
            )
        for (kind, knows), (share, refused) in zip(cells, found, strict=True):
            what = unit if unit == "requests" else f"tokens, {charge}"
            print(
                f"{what:20} {knows:8} {kind:11} {100 * share:6.1f} % {100 * refused:6.2f} %",
                flush=True,
            )


if __name__ == "__main__":
    main()
