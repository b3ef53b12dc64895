"""What the engine knows of one model's way through the run, and of one pass over the input.

Touches: the clock.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

from batcher.records import Outcome, Prompt, Result
from batcher.send.estimate import Estimate, Patience
from batcher.send.gate import Gate
from batcher.send.retry import FATAL
from batcher.send.sender import Lane

__all__ = [
    "EngineLane",
    "Feed",
    "Queue",
    "at_work",
    "may_answer",
    "never_answered",
    "silent_result",
]

_QUEUE_ROWS = 400
_QUEUE_BYTES = 32 << 20
_AT_ONCE_SECONDS = 5.0


class Queue:
    """Prompts for one lane, or for all lanes of a split; bounded in rows and bytes."""

    def __init__(self) -> None:
        self._prompts: deque[Prompt] = deque()
        self._bytes = 0
        self._takers: deque[asyncio.Future[None]] = deque()
        self.feed: Feed | None = None
        self.closed = False

    def __len__(self) -> int:
        return len(self._prompts)

    @property
    def full(self) -> bool:
        """Whether the reader should wait."""
        return len(self._prompts) >= _QUEUE_ROWS or self._bytes >= _QUEUE_BYTES

    def put(self, prompt: Prompt) -> None:
        """Adds a prompt, also where it is full: whoever puts asks first."""
        self._prompts.append(prompt)
        self._bytes += len(prompt.fields)
        self._wake()

    async def take(self) -> Prompt | None:
        """The next prompt; None when there will be none."""
        while not self._prompts:
            if self.closed:
                return None
            taker = asyncio.get_running_loop().create_future()
            self._takers.append(taker)
            await taker
        prompt = self._prompts.popleft()
        self._bytes -= len(prompt.fields)
        if self.feed is not None:
            self.feed.room.set()
        return prompt

    def close(self) -> None:
        """Nothing more comes; whoever waits is told."""
        self.closed = True
        while self._takers:
            self._wake()

    def clear(self) -> None:
        """Drops what stands in it; it stays pending."""
        self._prompts.clear()
        self._bytes = 0

    def _wake(self) -> None:
        while self._takers:
            taker = self._takers.popleft()
            if not taker.done():
                taker.set_result(None)
                return


class EngineLane:
    """One model's way through the run.

    Attributes:
        slot: Which of the plan's slots its results belong to.
        dead: The fatal result that closed the lane, or None.
        last: How a first attempt failed last.
    """

    def __init__(
        self, model: str, slot: int, gate: Gate, queue: Queue, patience: Patience
    ) -> None:
        self.model = model
        self.slot = slot
        self.gate = gate
        self.queue = queue
        self.way = Lane(gate, Estimate(), patience, {})
        self.workers = 0
        self.awake = False
        self.alive = False
        self.dead: Result | None = None
        self.fatal: Result | None = None
        self.streak = 0
        self.last = ""
        self.retrying: set[asyncio.Task[None]] = set()
        self.next: EngineLane | None = None


class Feed:
    """One pass over the input for some lanes."""

    def __init__(self, queues: list[Queue], *, main: bool) -> None:
        self.queues = queues
        self.main = main
        self.room = asyncio.Event()


def at_work(lane: EngineLane) -> bool:
    """Whether answers may still come from a lane: its workers end with its rows."""
    return lane.dead is None and bool(lane.workers or lane.retrying)


def never_answered(lane: EngineLane) -> bool:
    """Whether all that ever came from a lane was one fatal outcome."""
    fatal = lane.fatal is not None and lane.fatal.status in FATAL
    return fatal and lane.streak > 0 and not lane.alive


def may_answer(lane: EngineLane) -> bool:
    """Whether something is in flight that was not refused at once."""
    now = time.monotonic()
    return any(now - since > _AT_ONCE_SECONDS for _name, since in lane.way.flying.values())


def silent_result(lane: EngineLane, seconds: float) -> Result:
    """What became of a lane of which nothing good was heard for so long."""
    last = f"; the last failure: {lane.last}" if lane.last else ""
    return Result(
        row=0,
        model=lane.model,
        sample=0,
        key="0" * 32,
        status=Outcome.RATE_LIMITED if lane.gate.refusing else Outcome.CONNECTION,
        custom_id="",
        error=f"no answer for {seconds:.0f} s{last}",
    )
