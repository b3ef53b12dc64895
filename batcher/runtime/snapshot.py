"""How a running engine stands, as the live view wants it. Touches: nothing."""

from __future__ import annotations

from collections.abc import Mapping

from batcher.live.progress import ModelSnapshot, Phase, Snapshot
from batcher.live.summary import Summary
from batcher.records import Outcome
from batcher.runtime.channel import ChannelStatus

__all__ = ["heartbeat", "snapshot"]


def snapshot(
    state: Phase,
    channels: Mapping[str, ChannelStatus],
    summary: Summary,
    rows: int | None,
    waiting_for_equals: Mapping[str, int],
    route: str = "each",
) -> Snapshot:
    """One picture.

    Args:
        state: Of the run.
        channels: The state of each model.
        summary: What ended so far.
        rows: How many rows each model is to answer, None when not known.
        waiting_for_equals: How many requests take no time of their own, by model ("" for all).
        route: Of the job. Which rows a model is to answer is known of `each` alone; of a split each is
            taken to answer as many of the rest as of those that were, of a fallback to get as many from
            the one before.
    """
    seconds = max(summary.seconds, 1e-3)
    totals = [summary.models[model] for model in channels]
    all_done = sum(of.rows + sum(of.earlier.values()) for of in totals)
    all_copied = sum(of.copied for of in totals)
    all_equals = max(0, waiting_for_equals.get("", 0) - all_copied)
    all_asked = sum(of.rows for of in totals) - all_copied
    before: tuple[int, int] | None = None  # (rows that ended, rows to come) of the model before.
    models: list[ModelSnapshot] = []
    for model, stands in channels.items():
        of = summary.models[model]
        fresh, earlier = of.rows, sum(of.earlier.values())
        done = fresh + earlier
        equals = waiting_for_equals.get(model, waiting_for_equals.get("", 0)) - of.copied
        asked = fresh - of.copied
        left = in_all = ahead = None
        if rows is not None and asked:
            ahead = max(0, rows - done + of.stopped - max(0, equals))
            if route == "split":
                left_in_all = rows - all_done + sum(of.stopped for of in totals) - all_equals
                ahead = max(0, left_in_all) * asked // all_asked
            elif route == "fallback" and before is not None:
                ahead = before[1] * fresh // before[0]
            before = fresh, ahead
            left = ahead * seconds / asked
            if of.cost is not None and not of.cost_missing:
                in_all = of.cost * (asked + ahead) / asked
        age, row = stands.longest or (None, "")
        tokens = of.tokens[2]
        models.append(
            ModelSnapshot(
                model=model,
                done=done,
                total=rows if route == "each" or (route == "fallback" and not models) else None,
                ok=of.outcomes.get(Outcome.OK, 0) + of.earlier.get(Outcome.OK, 0),
                not_ok={
                    o: of.outcomes.get(o, 0) + of.earlier.get(o, 0)
                    for o in dict.fromkeys((*of.outcomes, *of.earlier))
                    if o is not Outcome.OK
                },
                in_flight=stands.in_flight,
                waiting=stands.waiting,
                waiting_for=stands.waiting_for,
                tokens_per_s=None if tokens is None else tokens / seconds,
                requests_per_s=of.requests / seconds,
                to_send=ahead,
                cost=of.cost,
                cost_in_all=in_all,
                eta_s=left,
                longest_in_flight_s=age,
                longest_row=row,
            )
        )
    return Snapshot(state, tuple(models))


def heartbeat(now: Snapshot) -> dict[str, object]:
    """The same for `status.json`; what is not known is null."""
    models = {
        m.model: {
            "done": m.done,
            "total": m.total,
            "ok": m.ok,
            "not_ok": {str(outcome): n for outcome, n in m.not_ok.items()},
            "in_flight": m.in_flight,
            "waiting": m.waiting,
            "waiting_for": m.waiting_for,
            "requests_per_second": round(m.requests_per_s, 3),
            "tokens_per_second": m.tokens_per_s and round(m.tokens_per_s, 1),
            "cost_usd": None if m.cost is None else float(m.cost),
            "cost_in_all_usd": None if m.cost_in_all is None else float(m.cost_in_all),
            "eta_seconds": m.eta_s and round(m.eta_s, 1),
        }
        for m in now.models
    }
    return {"state": now.state, "models": models}
