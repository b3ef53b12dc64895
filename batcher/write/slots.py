"""The slots of a row: one for each model and sample, and when they need no answer any more. Touches: nothing.

The arithmetic of models, samples and routes is here and nowhere else. It is in this folder because the outputs
are laid out by slot as well, and imports point down. With two models and two samples the slots of a row are:

    slot    0  1  2  3
    model   a  a  b  b      (the model's number is its place)
    sample  0  1  0  1
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, Literal

import numpy as np

__all__ = ["Route", "Slots"]

Route = Literal["each", "fallback", "split"]
"""Who answers a sample: each model; the next model where one fails; any one model."""


class Slots:
    """The slots of every row of a job.

    >>> slots = Slots(("a", "b"), samples=2)
    >>> [(slots.place(slot), slots.sample(slot)) for slot in range(len(slots))]
    [(0, 0), (0, 1), (1, 0), (1, 1)]

    Args:
        models: IDs of the models; none where each row names its own.
        samples: How many answers a model gives to a row.
        route: Who answers a sample.

    Attributes:
        one: Whether the answer of one model is enough for a sample.
    """

    def __init__(
        self, models: Sequence[str], samples: int = 1, route: Route | str = "each"
    ) -> None:
        self.models = tuple(models) or ("",)
        self.samples = samples
        self.route = route
        self.one = route != "each"

    def __len__(self) -> int:
        return len(self.models) * self.samples

    def __iter__(self) -> Iterator[str]:
        """Yields the model of each slot."""
        return (model for model in self.models for _sample in range(self.samples))

    @property
    def per_row(self) -> int:
        """How many results a row has in the output."""
        return self.samples if self.one else len(self)

    def place(self, slot: int) -> int:
        """The number of a slot's model."""
        return slot // self.samples

    def sample(self, slot: int) -> int:
        """The number of a slot's sample."""
        return slot % self.samples

    def slot(self, place: Any, sample: Any) -> Any:
        """The slot of a model's place and a sample; numbers or arrays of them."""
        return place * self.samples + sample

    def model(self, slot: int, own: str | None = None) -> str:
        """The model of a slot; `own` is the one that the row itself names."""
        return self.models[slot // self.samples] or own or ""

    def of_place(self, place: int) -> range:
        """The slots of a model."""
        return range(place * self.samples, (place + 1) * self.samples)

    def of_sample(self, sample: int) -> range:
        """The slots of a sample."""
        return range(sample, len(self), self.samples)

    def by_sample(self) -> Iterator[tuple[int, range]]:
        """Yields each sample and its slots."""
        return ((sample, self.of_sample(sample)) for sample in range(self.samples))

    def by_place(self, slots: Iterable[int]) -> Iterator[tuple[int, Iterator[int]]]:
        """Groups ascending slots by the place of their model."""
        return groupby(slots, self.place)

    def only(self, slots: Iterable[int], place: int) -> tuple[int, ...]:
        """Those of the slots that belong to a model."""
        return tuple(slot for slot in slots if self.place(slot) == place)

    def sent_first(self, slots: Sequence[int]) -> tuple[int, ...]:
        """Those of the slots that a row is sent to at once; the models of the others may never be needed."""
        if not self.one or len(slots) == 1:
            return tuple(slots)
        first = {self.sample(slot): slot for slot in reversed(slots)}
        return tuple(sorted(first.values()))

    def with_samples(self, slots: Iterable[int], samples: Collection[int]) -> tuple[int, ...]:
        """Those of the slots whose sample is one of these."""
        return tuple(slot for slot in slots if self.sample(slot) in samples)

    def still_to_send(
        self, slots: Sequence[int], ended: Collection[int], ok: Collection[int]
    ) -> tuple[int, ...]:
        """Those of the slots that are still to be sent.

        Args:
            slots: Some slots of a row.
            ended: Those that have a result which is not sent again.
            ok: Those that have an answer which is ok.
        """
        left = tuple(slot for slot in slots if slot not in ended)
        if not self.one or len(left) == len(slots):
            return left
        enough = ended if self.route == "split" else ok
        done = {self.sample(slot) for slot in enough}
        return tuple(slot for slot in left if self.sample(slot) not in done)

    def settled(self, outcomes: Sequence[Any], ends: Any, rows: int = 0) -> Any:
        """By position, whether no slot of the row is still to be sent.

        Args:
            outcomes: For each slot, by position 0 for no result, else 1 + the outcome's number.
            ends: By such a number, whether the slot is not sent again.
            rows: How many rows there are at least.
        """
        rows = max([rows, *map(len, outcomes)])
        settled = np.ones(rows, np.bool_)
        for _sample, slots in self.by_sample():
            every, some, ok = (
                np.ones(rows, np.bool_),
                np.zeros(rows, np.bool_),
                np.zeros(rows, np.bool_),
            )
            for slot in slots:
                states = np.pad(outcomes[slot], (0, rows - len(outcomes[slot])))
                every &= ends[states]
                some |= ends[states]
                ok |= states == 1
            settled &= {"each": every, "split": some, "fallback": every | ok}[self.route]
        return settled
