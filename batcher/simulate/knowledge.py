"""The facts that the simulated model answers from, loaded from `knowledge.json`. Touches: files (reads).

`scripts/sample_data` writes the questions to `sample_data/` and checks that these phrases label every ticket
it makes as intended, so the gold columns and the simulated answers agree.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

__all__ = ["LABELS", "MOODS", "PHRASES", "QUESTIONS", "Question"]


class Question(NamedTuple):
    """A question and its right answer; a wrong answer is the right one to another question of the subject."""

    subject: str
    question: str
    gold: str


_DATA = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))

# By label, then by weight: 3 decides, 1 only leans. Lower case; found anywhere in a ticket.
PHRASES: dict[str, dict[int, tuple[str, ...]]] = {
    label: {int(weight): tuple(phrases) for weight, phrases in weights.items()}
    for label, weights in _DATA["phrases"].items()
}
LABELS = tuple(PHRASES)
MOODS: dict[str, list[str]] = _DATA["moods"]
QUESTIONS = tuple(
    Question(subject, question, gold)
    for subject, questions in _DATA["questions"].items()
    for question, gold in questions
)
