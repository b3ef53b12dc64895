"""What changed settings and models do to answers that are paid for: the user decides. Touches: nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from batcher.errors import JobError
from batcher.job.job import Job
from batcher.live.format import counted
from batcher.plan.settings import Settings
from batcher.write.manifest import Asked, Epoch

__all__ = ["SettingsChanged", "at_stake", "changes", "check_models", "is_kept"]


class SettingsChanged(JobError):
    """Settings changed so that answers already paid for do not match any more; the user has to decide."""


def at_stake(job: Job, last: Epoch, *, same: bool) -> list[dict[str, Any]]:
    """Settings whose answers this run would give up although nobody said so; newest first."""
    if not same:
        return [last.settings, *last.accepts, *last.gives_up]
    more = last.gave_up is not None and (job.limit is None or job.limit > last.gave_up)
    return last.gives_up if more else []


def changes(before: Settings, after: Settings) -> str:
    """Names the settings that differ, for a sentence."""
    names = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    words = sorted(names - {"--param"})
    if "--param" in names:
        old, new = before.get("--param") or {}, after.get("--param") or {}
        fields = sorted(n for n in {*old, *new} if old.get(n, ...) != new.get(n, ...))
        words.append(f"--param {'/'.join(fields)}")
    return ", ".join(words)


def is_kept(job: Job, changes: str, since: str, lost: int, say: Callable[[str], None]) -> bool:
    """Whether answers to earlier settings are kept.

    Raises:
        SettingsChanged: `job.changed` does not say so.
    """
    answers = counted(lost, "answer paid for matches", "answers paid for match")
    if not changes:
        say(f"{lost:,} answers kept so far are given up; those rows are sent again.")
        return False
    what = f"{changes} changed since {since}: {answers} no longer"
    if job.changed is None:
        raise SettingsChanged(
            f"{what}. Send those rows again with --changed resend, keep their old answers with "
            "--changed keep, or use another --output."
        )
    kept = job.changed == "keep"
    say(f"{what}; {'they are kept' if kept else 'those rows are sent again'}.")
    return kept


def check_models(
    job: Job, asked: Asked, dropped: Mapping[str, int], say: Callable[[str], None]
) -> None:
    """Checks that the answers of models that are not asked any more may leave the output."""
    gone = {model: n for model, n in dropped.items() if n}
    if asked.samples > job.samples:
        say(f"--samples {job.samples}: answers beyond that leave the output.")
    if asked.route == "each" != job.route and len({*asked.models} & {*job.models}) > 1:
        say(f"--route {job.route}: of a row with several answers one stays in the output.")
    if not gone or not job.models:
        return
    counts = ", ".join(f"{n:,} of {model}" for model, n in gone.items())
    # With one answer a row, the rows of a model that is gone have none.
    one = not job.route == asked.route == "each"
    takers = [model for model in job.models if one or model not in asked.models]
    if not takers or job.changed == "resend":
        say(f"Answers of models that are not asked any more leave the output: {counts}.")
        return
    what = (
        f"--model changed since the last run: the answers paid for leave the output ({counts}), and "
        f"rows without an answer of {' or '.join(takers)} are sent there"
    )
    both = " ".join(f"-m {model}" for model in (*gone, *job.models))
    if job.changed == "keep":
        raise JobError(f"{what}; to keep the old answers, ask for them as well: {both}.")
    raise SettingsChanged(
        f"{what}. Go on with --changed resend, keep both with {both}, or use another --output."
    )
