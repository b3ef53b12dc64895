"""The state of a run, as the live view and `status.json` show it. Touches: nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

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
    """The run at this moment.

    Args:
        state: Of the run.
        channels: The state of each model.
        summary: The results so far.
        rows: How many rows each model is to answer; None when that is not known.
        waiting_for_equals: How many requests wait for the answer of an equal one, by model ("" for all).
        route: Of the job.
    """
    seconds = max(summary.seconds, 1e-3)
    to_send = _to_send(channels, summary, rows, waiting_for_equals, route)
    models: list[ModelSnapshot] = []
    for model, status in channels.items():
        totals, left = summary.models[model], to_send.get(model)
        sent = totals.rows - totals.copied
        cost = None
        if left is not None and totals.cost is not None and not totals.cost_missing:
            cost = totals.cost * (sent + left) / sent
        age, row = status.longest or (None, "")
        tokens = totals.tokens[2]
        ended = {
            outcome: totals.outcomes.get(outcome, 0) + totals.earlier.get(outcome, 0)
            for outcome in dict.fromkeys((*totals.outcomes, *totals.earlier))
        }
        models.append(
            ModelSnapshot(
                model=model,
                done=sum(ended.values()),
                total=rows if route == "each" or (route == "fallback" and not models) else None,
                ok=ended.pop(Outcome.OK, 0),
                not_ok=ended,
                in_flight=status.in_flight,
                waiting=status.waiting,
                waiting_for=status.waiting_for,
                tokens_per_s=None if tokens is None else tokens / seconds,
                requests_per_s=totals.requests / seconds,
                to_send=left,
                cost=totals.cost,
                cost_in_all=cost,
                eta_s=None if left is None else left * seconds / sent,
                longest_in_flight_s=age,
                longest_row=row,
            )
        )
    return Snapshot(state, tuple(models))


def _to_send(
    channels: Iterable[str],
    summary: Summary,
    rows: int | None,
    waiting_for_equals: Mapping[str, int],
    route: str,
) -> dict[str, int]:
    """Rows that each model is still to be sent, as far as that can be said.

    Only `each` says which rows a model is to answer. Of a split, each model is taken to answer the same share of
    the remaining rows as of those before; of a fallback, to get the same share as before from the model in front.
    """
    found: dict[str, int] = {}
    totals = {model: summary.models[model] for model in channels}
    done = {model: of.rows + sum(of.earlier.values()) for model, of in totals.items()}
    sent = {model: of.rows - of.copied for model, of in totals.items()}
    in_front: tuple[int, int] | None = (
        None  # (rows that ended, rows to send) of the model in front.
    )
    for model, of in totals.items():
        if rows is None or not sent[model]:
            continue
        equals = waiting_for_equals.get(model, waiting_for_equals.get("", 0)) - of.copied
        left = max(0, rows - done[model] + of.stopped - max(0, equals))
        if route == "split":
            copied = sum(each.copied for each in totals.values())
            all_left = rows - sum(done.values()) + sum(each.stopped for each in totals.values())
            all_left -= max(0, waiting_for_equals.get("", 0) - copied)
            left = max(0, all_left) * sent[model] // sum(sent.values())
        elif route == "fallback" and in_front is not None:
            left = in_front[1] * of.rows // in_front[0]
        in_front = of.rows, left
        found[model] = left
    return found


def heartbeat(now: Snapshot) -> dict[str, object]:
    """The state for `status.json`; what is not known is null."""
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
