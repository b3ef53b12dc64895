"""The answers to one row put together: what most say, and how far they disagree. Touches: nothing.

Several samples of one model, or several models as judges: each answer is one vote.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from batcher.errors import JobError
from batcher.evaluate.scorers import Scorer
from batcher.records import Outcome
from batcher.send.reasoning import answer_in

__all__ = [
    "VOTE",
    "Answer",
    "Panel",
    "Vote",
    "answer_of",
    "labels_in",
    "panels",
    "value_of",
    "vote",
    "vote_row",
]

_MOST_LABELS = 1000

VOTE = ("row", "custom_id", "vote", "share", "votes", "tied", "disagreement", "answers")
"""What a row of votes has besides the columns of the input."""

Panel = list[tuple[int, Mapping[str, Any]]]
"""The rows of an output that answer one row of its input, each with its place in the output."""


class Answer(NamedTuple):
    """What one row of an output says.

    Attributes:
        value: What was parsed, else the text.
        said: What of it counts, as the scorer reads it.
        key: The same for answers that are the same.
    """

    value: Any
    said: str
    key: str


class Vote(NamedTuple):
    """What several answers say together.

    Attributes:
        winner: The answer that most gave; None of no answers, and where several are first.
        share: Part of the answers that say so, or that say each of those that are first.
        votes: How many answers there are.
        tied: What stands first, when that is more than one.
        disagreement: Part of all pairs of answers that differ; None of fewer than two answers.
    """

    winner: Answer | None
    share: float | None
    votes: int
    tied: tuple[str, ...]
    disagreement: float | None


def panels(rows: Iterable[tuple[int, Mapping[str, Any]]], name: str) -> Iterator[Panel]:
    """Rows of an output by the row of the input that they answer; those stand together.

    Args:
        rows: Each with its place in the output.
        name: Of the output, as it is shown to people.

    Raises:
        JobError: They do not stand together: somebody sorted the output.
    """
    panel: Panel = []
    last = -1
    for place, row in rows:
        position = row.get("row")
        if not isinstance(position, int):
            raise JobError(
                f"{name}: it is no output of batcher, it has rows without a number in 'row'."
            )
        if panel and position != last:
            yield panel
            panel = []
        if position < last:
            raise JobError(
                f"{name}: row {position} stands behind row {last}; take the output as it was written, or "
                "sort it by 'row'."
            )
        last = position
        panel.append((place, row))
    if panel:
        yield panel


def value_of(row: Mapping[str, Any]) -> Any:
    """What was parsed of a row's answer, else its text without the reasoning; None for what is no answer."""
    if row.get("status") != Outcome.OK:
        return None
    parsed = row.get("parsed")
    if parsed is not None:
        return parsed
    content = row.get("content")
    return answer_in(content) if isinstance(content, str) else content


def labels_in(rows: Iterable[Mapping[str, Any]]) -> set[str]:
    """The labels that answers were held to, by what was parsed; none where it is anything else.

    Args:
        rows: With their columns `status` and `parsed`.
    """
    found: set[str] = set()
    for row in rows:
        if row.get("status") == Outcome.OK:
            label = row.get("parsed")
            if not isinstance(label, str) or len(found) > _MOST_LABELS:
                return set()
            found.add(label)
    return found


def answer_of(row: Mapping[str, Any], scorer: Scorer) -> Answer | None:
    """What a row says; None for what is no answer, or none that the scorer can read."""
    value = value_of(row)
    said = None if value is None else scorer.said(value)
    return None if said is None else Answer(value, said, scorer.same(said))


def vote(answers: Iterable[Answer | None]) -> Vote:
    """The majority of the answers that there are.

    >>> of = [Answer(one, one, one.lower()) for one in ("Bug", "bug", "billing")]
    >>> found = vote([*of, None])
    >>> found.winner.said, round(found.share, 2), found.votes, round(found.disagreement, 2)
    ('Bug', 0.67, 3, 0.67)
    >>> vote(of[1:]).tied, vote(of[1:]).winner
    (('bug', 'billing'), None)
    """
    given = [answer for answer in answers if answer is not None]
    if not given:
        return Vote(None, None, 0, (), None)
    counts = Counter(answer.key for answer in given)
    most = max(counts.values())
    first = {answer.key: answer for answer in reversed(given)}
    leading = [first[key] for key, n in counts.items() if n == most]
    n = len(given)
    alike = sum(count * (count - 1) for count in counts.values())
    return Vote(
        leading[0] if len(leading) == 1 else None,
        most / n,
        n,
        tuple(answer.said for answer in leading) if len(leading) > 1 else (),
        1 - alike / (n * (n - 1)) if n > 1 else None,
    )


def vote_row(panel: Panel, scorer: Scorer) -> dict[str, Any]:
    """What a panel says together, as a row with the columns of `VOTE`."""
    rows = [row for _place, row in panel]
    answers = [answer_of(row, scorer) for row in rows]
    found = vote(answers)
    given = [
        {
            "model": row.get("model"),
            "sample": row.get("sample") or 0,
            "answer": None if answer is None else answer.said,
        }
        for row, answer in zip(rows, answers, strict=True)
    ]
    return {
        "row": rows[0].get("row"),
        "custom_id": rows[0].get("custom_id"),
        "vote": None if found.winner is None else found.winner.said,
        "share": found.share,
        "votes": found.votes,
        "tied": list(found.tied),
        "disagreement": found.disagreement,
        "answers": given,
    }
