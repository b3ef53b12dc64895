"""`batcher status`: how a run stands. Touches: files (reads), the terminal."""

from __future__ import annotations

from typing import Any

from batcher.live.terminal import say
from batcher.records import Outcome

__all__ = ["status"]


def status(output: str, /) -> int:
    """Tell how a run stands, from its journal and its last heartbeat; also beside a running process.

    Args:
        output: Output of a run, finished or not.
    """
    import numpy as np

    from batcher.cli.folder import found, inputs_of
    from batcher.live.format import dollars, duration
    from batcher.live.table import others
    from batcher.write import index
    from batcher.write import status as heartbeat
    from batcher.write.entries import load_present
    from batcher.write.latest import LatestResults, places_of
    from batcher.write.lock import holder as at_work
    from batcher.write.slots import Slots

    folder, manifest = found(output)
    holder, told = at_work(folder), heartbeat.load(folder) or {}
    state = str(told.get("state", "unknown"))
    if holder is not None:
        say(f"{output}: {state} ({holder})")
    else:
        killed = state in ("running", "stopping")
        say(f"{output}: {'was killed' if killed else state}, {told.get('updated', '')}")
    models, samples = manifest.asked.models, manifest.asked.samples
    layout = Slots(models, samples, manifest.asked.route)
    rows, asked = manifest.epochs[-1].rows, None
    inputs = inputs_of(folder, manifest)
    if not inputs.whole:
        rows = None  # Which they are is not known where the input is gone.
        if inputs.changed() is None:
            asked = np.frombuffer(inputs.left_out(), np.uint8) == 0
            rows = int(asked.sum())
    winners = LatestResults(len(models or ("",)), folder, rows or 0, samples=samples, places=False)
    for segment in load_present(folder, manifest.runs or {""}):
        winners.add(index.last_words(segment.entries), places_of(segment.models, models))
    if layout.one and rows is not None:
        answered = [winners.outcomes(slot) for slot in range(len(layout))]
        ended = layout.settled(answered, np.arange(256) > 0, rows)
        whole = int(_asked(ended, asked).sum())
        say(f"  all models: {whole:,} done, {rows - whole:,} of {rows:,} pending")
    rows = None if rows is None else rows * samples
    for place, model in enumerate(models or ("the rows' own models",)):
        states = np.concatenate(
            [_asked(winners.outcomes(slot), asked) for slot in layout.of_place(place)]
        )
        counts = {
            outcome: n
            for number, outcome in enumerate(index.OUTCOMES, 1)
            if (n := int((states == number).sum()))
        }
        facts = [f"{counts.get(Outcome.OK, 0):,} ok", others(counts)]
        if rows is not None and not layout.one:  # Else which are its rows is not known.
            facts.append(f"{rows - sum(counts.values()):,} of {rows:,} pending")
        now = told.get("models", {}).get(model, {}) if holder is not None else {}
        if now:
            facts.append(f"{now.get('in_flight', 0):,} in flight")
            facts.append(f"{now.get('requests_per_second', 0):.1f} requests/s")
            if (cost := now.get("cost_usd")) is not None:
                facts.append(f"{dollars(cost)} in this run")
            if (left := now.get("eta_seconds")) is not None:
                facts.append(f"{duration(left)} left")
        say(f"  {model}: {', '.join(filter(None, facts))}")
    return 0


def _asked(states: Any, asked: Any) -> Any:
    """Of the rows that the last run asked for."""
    return states if asked is None else states[: len(asked)][asked[: len(states)]]
