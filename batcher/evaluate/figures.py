"""What an output says of its models, summed up row by row: the figures of a report. Touches: nothing.

Nothing here grows with the rows, but for the different answers, up to so many.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Hashable, Mapping
from datetime import datetime
from itertools import combinations
from typing import Any, NamedTuple

from batcher.evaluate.scorers import Scorer, empty, text
from batcher.evaluate.statistics import Alpha, cohen_kappa, macro_f1, mcnemar, wilson
from batcher.evaluate.timeline import Course
from batcher.evaluate.votes import Answer, Panel, answer_of, vote
from batcher.live.summary import Latencies
from batcher.records import Outcome

__all__ = ["DISPUTED", "NO_ANSWER", "Figures", "ModelFigures", "PairFigures"]

NO_ANSWER = "(no answer)"
DISPUTED = 1000
"""How many of the most disputed rows are kept."""

_MOST_LABELS = 1000
_MOST_GROUPS = 500
_MOST_IN_CONFUSION = 40
_GROUP_CHARS = 80
_EXAMPLES = 3
_EXAMPLE_CHARS = 400
_TOKENS = (
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
)


class _Judged(NamedTuple):
    answer: Answer | None
    right: bool


class ModelFigures:
    """Of one model.

    Attributes:
        rows: Rows of the output.
        outcomes: Rows by status.
        examples: By (status, error_type): how many rows, and the first of them.
        tokens: Sums of what was reported, by column; None when nothing was.
        known: How many rows reported it.
        attempts: HTTP exchanges.
        cost: Dollars of the rows whose cost is known.
        latencies: Of answered rows.
        said: Rows by answer.
        confusion: (gold, answer) to rows, with None for no answer.
        scored: Rows that have gold.
        right: Those that are right.
        answered: Those that have an answer.
        inputs: Rows of the input among them: several samples of one count once.
        groups: By group: [rows that have gold, right ones, rows of the input].
        sameness: Sum over rows of the share of its samples that agree, and how many such rows.
        majority: Right ones among the majorities of its samples, and how many there are.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.outcomes: Counter[str] = Counter()
        self.examples: dict[tuple[str, str], tuple[int, list[dict[str, Any]]]] = {}
        self.tokens: dict[str, int | None] = dict.fromkeys(_TOKENS)
        self.known = dict.fromkeys((*_TOKENS, "cost_usd"), 0)
        self.attempts = 0
        self.cost: float | None = None
        self.latencies = Latencies()
        self.said: Counter[Hashable] = Counter()
        self.confusion: Counter[tuple[Hashable, Hashable]] = Counter()
        self.scored = self.right = self.answered = self.inputs = 0
        self.groups: dict[str, list[int]] = {}
        self.sameness = [0.0, 0]
        self.majority = [0, 0]

    def add(self, row: Mapping[str, Any]) -> None:
        """Takes a row of the output, but for what it answers."""
        self.rows += 1
        status = row.get("status") or ""
        self.outcomes[status] += 1
        self.attempts += row.get("attempts") or 0
        for name in _TOKENS:
            if (count := row.get(name)) is not None:
                self.tokens[name] = (self.tokens[name] or 0) + count
                self.known[name] += 1
        if (cost := row.get("cost_usd")) is not None:
            self.cost = (self.cost or 0.0) + cost
            self.known["cost_usd"] += 1
        if status in _ANSWERED and (latency := row.get("latency_ms")) is not None:
            self.latencies.add(latency)
        if status != Outcome.OK:
            kind = status, row.get("error_type") or ""
            count, examples = self.examples.get(kind, (0, []))
            if len(examples) < _EXAMPLES:
                examples.append(
                    {
                        "row": row.get("row"),
                        "custom_id": row.get("custom_id"),
                        "error": _cut(row.get("error")),
                        "content": _cut(row.get("content")),
                    }
                )
            self.examples[kind] = count + 1, examples


_ANSWERED = frozenset(outcome for outcome in Outcome if outcome.answered)


class PairFigures:
    """Of two models: their first answers to the same rows.

    Attributes:
        both: Rows that both answer.
        same: Those with the same answer.
        pairs: (answer of one, of the other) to rows.
        gained: Rows that only the second has right.
        lost: Rows that only the first has right.
    """

    def __init__(self) -> None:
        self.both = self.same = self.gained = self.lost = 0
        self.pairs: Counter[tuple[Hashable, Hashable]] = Counter()


class Figures:
    """All of a report, as a running sum over the panels of an output.

    Args:
        scorer: How answers are read and judged.
        gold: Column that holds what is right; None when nothing does.
        by: Column whose values part the rows into groups.

    Attributes:
        models: By model, in order of first sight.
        pairs: By two models.
        panels: Rows of the input.
        spelling: How an answer is written, by its key.
        countable: Whether there are few enough different answers to count them.
        course: When it was.
        majority: Right ones among the majorities of all answers to a row; rows that have gold.
        ties: Rows where several answers are first.
        voted: Rows with two answers or more.
        unanimous: Those where all are the same.
        samples: Whether any row has more than one sample.
    """

    def __init__(self, scorer: Scorer, gold: str | None = None, by: str | None = None) -> None:
        self._scorer = scorer
        self.gold = gold
        self.by = by
        self.models: dict[str, ModelFigures] = {}
        self.pairs: dict[tuple[str, str], PairFigures] = {}
        self.panels = 0
        self.spelling: dict[str, str] = {}
        self.countable = True
        self.course = Course()
        self.majority = [0, 0]
        self.ties = self.voted = self.unanimous = 0
        self.samples = False
        self._alpha = Alpha()
        self._disputed: list[tuple[float, int, tuple[int, ...]]] = []
        self._wrong: list[tuple[int, int, tuple[int, ...]]] = []

    def add(self, panel: Panel) -> None:
        """Takes the rows of an output that answer one row of the input.

        Raises:
            JobError: A scorer from Python fails.
        """
        self.panels += 1
        rows = [row for _place, row in panel]
        places = tuple(place for place, _row in panel)
        truth = rows[0].get(self.gold) if self.gold is not None else None
        truth = None if empty(truth) else truth
        meant = None if truth is None else self._key(self._scorer.meant(truth))
        samples: dict[str, list[_Judged]] = {}
        for row in rows:
            model = row.get("model") or ""
            of = self.models.get(model)
            if of is None:
                of = self.models[model] = ModelFigures()
            of.add(row)
            begun, latency = row.get("created_at"), row.get("latency_ms")
            if begun is not None and latency is not None:
                self.course.add(_ms(begun), latency)
            answer = answer_of(row, self._scorer)
            key = None if answer is None else self._key(answer.said, answer.key)
            if self.countable and key is not None:
                of.said[key] += 1
            right = self._is_right(answer, truth)
            if truth is not None:
                of.scored += 1
                of.right += right
                of.answered += answer is not None
                if self.countable:
                    of.confusion[meant, key] += 1
            samples.setdefault(model, []).append(_Judged(answer, right))
        self.samples |= len(samples) < len(rows)
        if truth is not None:
            self._group(text(rows[0].get(self.by)) if self.by is not None else None, samples)
            wrong = sum(not judged.right for several in samples.values() for judged in several)
            if wrong:
                _keep(self._wrong, (wrong, -places[0], places))
        self._pair(samples, truth is not None)
        self._vote(places, samples, truth)

    def _is_right(self, answer: Answer | None, truth: Any) -> bool:
        if answer is None or truth is None:
            return False
        return self._scorer.right(answer.value, truth)

    def _group(self, value: str | None, samples: Mapping[str, list[_Judged]]) -> None:
        group = None if value is None else _cut(value or "(none)", _GROUP_CHARS)
        for model, several in samples.items():
            of = self.models[model]
            of.inputs += 1
            if group is None:
                continue
            if group not in of.groups and len(of.groups) >= _MOST_GROUPS:
                group = "(others)"
            counts = of.groups.setdefault(group, [0, 0, 0])
            counts[0] += len(several)
            counts[1] += sum(judged.right for judged in several)
            counts[2] += 1

    def _pair(self, samples: Mapping[str, list[_Judged]], has_gold: bool) -> None:
        for one, other in combinations(samples, 2):
            names = (other, one) if (other, one) in self.pairs else (one, other)
            (answer, was), (second, now) = (samples[model][0] for model in names)
            of = self.pairs.get(names)
            if of is None:
                of = self.pairs[names] = PairFigures()
            if has_gold:
                of.gained += now and not was
                of.lost += was and not now
            if answer is not None and second is not None:
                of.both += 1
                of.same += answer.key == second.key
                if self.countable:
                    of.pairs[answer.key, second.key] += 1

    def _vote(
        self, places: tuple[int, ...], samples: Mapping[str, list[_Judged]], truth: Any
    ) -> None:
        if self.countable:
            firsts = (several[0].answer for several in samples.values())
            self._alpha.add(Counter(answer.key for answer in firsts if answer is not None))
        if len(places) == 1:
            return
        found = vote(judged.answer for several in samples.values() for judged in several)
        self.ties += bool(found.tied)
        if found.disagreement is not None:
            self.voted += 1
            self.unanimous += not found.disagreement
            if found.disagreement:
                _keep(self._disputed, (found.disagreement, -places[0], places))
        if truth is not None:
            self.majority[0] += self._is_right(found.winner, truth)
            self.majority[1] += 1
        for model, several in samples.items():
            if len(several) < 2:
                continue
            own = found if len(samples) == 1 else vote(judged.answer for judged in several)
            of = self.models[model]
            if own.disagreement is not None:
                of.sameness[0] += 1 - own.disagreement
                of.sameness[1] += 1
            if truth is not None:
                of.majority[0] += self._is_right(own.winner, truth)
                of.majority[1] += 1

    def _key(self, said: str | None, key: str | None = None) -> str | None:
        """The key of an answer, whose spelling is kept; too many of them are not counted."""
        if said is None:
            return None
        key = self._scorer.same(said) if key is None else key
        if self.countable and key not in self.spelling:
            self.spelling[key] = said
            if len(self.spelling) > _MOST_LABELS:
                self._stop_counting()
        return key

    def _stop_counting(self) -> None:
        self.countable = False
        self.spelling.clear()
        self._alpha = Alpha()
        for of in self.models.values():
            of.said.clear()
            of.confusion.clear()
        for pair in self.pairs.values():
            pair.pairs.clear()

    @property
    def disputed(self) -> list[tuple[int, ...]]:
        """The most disputed rows, the most disputed first: places of their rows in the output."""
        return [places for _how, _first, places in sorted(self._disputed, reverse=True)]

    @property
    def wrong(self) -> list[tuple[int, ...]]:
        """Likewise, rows that are answered wrong, by most answers first."""
        return [places for _how, _first, places in sorted(self._wrong, reverse=True)]

    @property
    def alpha(self) -> float | None:
        """Krippendorff's α of the models' first answers; None where it means nothing."""
        return self._alpha.value if self.countable and len(self.models) > 1 else None

    def asdict(self) -> dict[str, Any]:
        """The figures as plain values; what is not known is None."""
        told: dict[str, Any] = {
            "rows": self.panels,
            "models": {model: self._of_model(of) for model, of in self.models.items()},
            "samples": self.samples,
            "agreement": {
                "pairs": [self._of_pair(*models, of) for models, of in self.pairs.items()],
                "alpha": self.alpha,
                "voted": self.voted,
                "unanimous": self.unanimous,
                "tied": self.ties,
            },
        }
        if self.gold is not None:
            told["gold"] = self.gold
            told["majority"] = _share(*self.majority) if self.majority[1] else None
        return told

    def _of_model(self, of: ModelFigures) -> dict[str, Any]:
        spread = {f"p{p}": of.latencies.percentile(p) for p in (50, 95, 99)}
        told: dict[str, Any] = {
            "rows": of.rows,
            "outcomes": dict(of.outcomes.most_common()),
            "tokens": of.tokens,
            "tokens_missing": {name: of.rows - of.known[name] for name in _TOKENS},
            "cost_usd": of.cost,
            "cost_missing": of.rows - of.known["cost_usd"],
            "attempts": of.attempts,
            "latency_ms": {**spread, "max": of.latencies.max},
            "answers": {self._spelled(key): n for key, n in of.said.most_common()}
            if self.countable
            else None,
        }
        if of.sameness[1]:
            told["samples_agree"] = of.sameness[0] / of.sameness[1]
        if self.gold is not None:
            told["accuracy"] = _share(of.right, of.scored, of.inputs)
            told["answered"] = of.answered
            told["macro_f1"] = (
                macro_f1(of.confusion) if self.countable and self._scorer.by_label else None
            )
            told["confusion"] = self._confusion(of)
            if of.majority[1]:
                told["majority"] = _share(*of.majority)
            if self.by is not None:
                told["groups"] = {
                    group: _share(right, scored, inputs)
                    for group, (scored, right, inputs) in of.groups.items()
                }
        return told

    def _confusion(self, of: ModelFigures) -> dict[str, dict[str, int]] | None:
        """By gold and answer, how many rows; None where there is too much of them for a table."""
        if (
            not self.countable
            or len({key for pair in of.confusion for key in pair}) > _MOST_IN_CONFUSION
        ):
            return None
        totals: Counter[Hashable] = Counter()
        for (meant, _said), n in of.confusion.items():
            totals[meant] += n
        order = [key for key, _n in sorted(totals.items(), key=lambda one: (-one[1], str(one[0])))]
        rest = {said for _meant, said in of.confusion} - totals.keys()
        order += sorted(rest, key=lambda key: (key is None, str(key)))
        return {
            self._spelled(meant): {
                self._spelled(said): of.confusion[meant, said]
                for said in order
                if (meant, said) in of.confusion
            }
            for meant in order
            if meant in totals
        }

    def _spelled(self, key: Hashable) -> str:
        return NO_ANSWER if key is None else self.spelling[str(key)]

    def _of_pair(self, one: str, other: str, of: PairFigures) -> dict[str, Any]:
        # Where nearly every answer is one of its own, there is nothing to agree on by chance.
        repeats = self.countable and len(of.pairs) <= of.both / 2
        told: dict[str, Any] = {
            "models": [one, other],
            "both": of.both,
            "same": of.same,
            "kappa": cohen_kappa(of.pairs) if repeats else None,
        }
        if self.gold is not None:
            told |= {"gained": of.gained, "lost": of.lost, "p": mcnemar(of.gained, of.lost)}
        return told


def _share(right: int, scored: int, inputs: int | None = None) -> dict[str, Any]:
    """A share with its interval, which is that of so many rows of the input."""
    inputs = scored if inputs is None else inputs
    share = right / scored if scored else None
    low, high = wilson((share or 0.0) * inputs if inputs != scored else right, inputs)
    return {"right": right, "of": scored, "share": share, "low": low, "high": high}


def _keep(heap: list[Any], one: Any) -> None:
    if len(heap) < DISPUTED:
        heapq.heappush(heap, one)
    else:
        heapq.heappushpop(heap, one)


def _ms(time: datetime) -> int:
    """Unix time in milliseconds of `created_at`, as `cli.outputs.typed` reads it."""
    return int(time.timestamp() * 1000)


def _cut(value: Any, most: int = _EXAMPLE_CHARS) -> str | None:
    if value is None:
        return None
    said = text(value)
    return said if len(said) <= most else f"{said[:most]} …"
