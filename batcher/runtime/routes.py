"""Which model sends a row of a split: whichever can at once, and did not just fail. Touches: the clock.

Rows stand in one queue for all models, also between the attempts of one row: a row that waited at a
model would be held up with it while another is idle.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from batcher.records import Prompt, Result
from batcher.runtime.channel import ModelChannel
from batcher.send.retry import FATAL
from batcher.send.sender import FailedAttempt

__all__ = ["Split"]

Place = tuple[int, int]  # Row and sample.


class Split:
    """What is known of the rows that were not answered yet.

    Args:
        lanes: All lanes of the run by model, those that are still to come as well.
    """

    def __init__(self, lanes: Mapping[str, ModelChannel]) -> None:
        self._lanes = lanes
        self._refused: dict[Place, set[str]] = {}  # The models that will never send it.
        # The last attempt, and when to try again.
        self._failed: dict[Place, tuple[Prompt, FailedAttempt, float]] = {}

    def pick(self, lane: ModelChannel) -> Prompt | None:
        """Takes the next row that this model can send at once, if there is one."""

        def fits(prompt: Prompt) -> bool:
            size = len(prompt.fields) - prompt.image_bytes
            return (
                self._may(lane, (prompt.row, prompt.sample))
                and lane.room.free(prompt)
                and lane.gate.free(*lane.way.tokens.tokens(size, prompt.max_tokens))
            )

        picked = lane.queue.pick(fits) if lane.gate.free(0.0) else None
        if picked is not None:
            lane.room.enter(picked)
        return picked

    def before(self, prompt: Prompt) -> FailedAttempt | None:
        """How a row failed last, to be told when it is sent again."""
        failed = self._failed.pop((prompt.row, prompt.sample), None)
        return None if failed is None else failed[1]

    def left(self) -> Iterator[tuple[Prompt, FailedAttempt]]:
        """Rows that failed and are not sent again, as the run was stopped."""
        for prompt, failed, _until in self._failed.values():
            yield prompt, failed

    def failed(self, prompt: Prompt, ended: FailedAttempt) -> None:
        """An attempt failed: any other model may try at once, this one after its wait."""
        self._failed[prompt.row, prompt.sample] = prompt, ended, time.monotonic() + ended.wait

    def passes_on(self, lane: ModelChannel, result: Result) -> bool:
        """Whether a row that ended goes to another model: this one refuses whatever it is sent."""
        if result.status in FATAL:
            refused = self._refused.setdefault((result.row, result.sample), set())
            refused.add(lane.model)
            if self._left(refused):
                return True
        self._refused.pop((result.row, result.sample), None)
        return False

    def _may(self, lane: ModelChannel, place: Place) -> bool:
        refused = self._refused.get(place)
        if refused and lane.model in refused and self._left(refused):
            return False
        failed = self._failed.get(place)
        if failed is None or failed[1].request.model != lane.model:
            return True
        return time.monotonic() >= failed[2]

    def _left(self, refused: set[str]) -> bool:
        """Whether there is a model that works and did not refuse."""
        return any(of.dead is None and of.model not in refused for of in self._lanes.values())
