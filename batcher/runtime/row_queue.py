"""Rows that wait for a worker, bounded in number and in bytes. Touches: nothing."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from batcher.records import Prompt

__all__ = ["MemoryBudget", "RowQueue"]

_QUEUE_ROWS = 400
_QUEUE_BYTES = 32 << 20
_LARGE_BYTES = 64 << 10
_LARGE_TOTAL_BYTES = 256 << 20


class MemoryBudget:
    """Memory for large requests in flight; small ones are not counted.

    A thousand requests in flight are nothing, unless each carries an image. Each model has a budget
    of its own, because requests that wait for a limit keep their memory.

    Args:
        shares: Number of models among which the memory is divided.
    """

    def __init__(self, shares: int = 1) -> None:
        self._limit = _LARGE_TOTAL_BYTES // shares
        self._used = 0

    def fits(self, prompt: Prompt) -> bool:
        """Whether there is memory for a prompt and the request made from it. One alone always fits."""
        size = len(prompt.fields)
        return size < _LARGE_BYTES or not self._used or self._used + 2 * size <= self._limit

    def reserve(self, prompt: Prompt) -> None:
        """Reserves the memory of a prompt."""
        size = len(prompt.fields)
        self._used += 2 * size if size >= _LARGE_BYTES else 0

    def release(self, prompt: Prompt) -> bool:
        """Releases the memory of a prompt; returns whether it had any."""
        size = len(prompt.fields)
        if size < _LARGE_BYTES:
            return False
        self._used -= 2 * size
        return True


class RowQueue:
    """Prompts for one model, or for all models of a split.

    Args:
        memory: `take` waits until the next prompt fits into it.

    Attributes:
        closed: Whether nothing more will be put.
        space: Set when a prompt leaves that `wait_for_space` waits for, and when the queue is empty.
            A reader of several queues gives them one event (`share_space`).
    """

    def __init__(self, memory: MemoryBudget) -> None:
        self._memory = memory
        self._prompts: deque[Prompt] = deque()
        self._bytes = 0
        self._takers: deque[asyncio.Future[None]] = deque()
        self.space = asyncio.Event()
        self.closed = self._stopped = self._awaited = False

    def __len__(self) -> int:
        return len(self._prompts)

    @property
    def full(self) -> bool:
        """Whether the reader should wait."""
        return len(self._prompts) >= _QUEUE_ROWS or self._bytes >= _QUEUE_BYTES

    @property
    def drained(self) -> bool:
        """Whether nothing is left and nothing more will come."""
        return self.closed and not self._prompts

    def share_space(self, space: asyncio.Event) -> None:
        """Sets this event from now on instead of its own."""
        self.space = space

    async def wait_for_space(self) -> None:
        """Waits until a prompt has left or the queue is stopped, or another one with its event is empty."""
        self._awaited = True
        self.space.clear()
        await self.space.wait()

    def put(self, prompt: Prompt) -> None:
        """Adds a prompt, even where the queue is full: the caller asks first if it can wait."""
        if self._stopped:
            return
        self._prompts.append(prompt)
        self._bytes += len(prompt.fields)
        if self._takers:
            self.wake()

    async def take(self) -> Prompt | None:
        """Removes the next prompt and reserves its memory; None when the queue is drained."""
        while not self._prompts or not self._memory.fits(self._prompts[0]):
            if self.drained:
                return None
            taker = asyncio.get_running_loop().create_future()
            self._takers.append(taker)
            await taker
        prompt = self._prompts.popleft()
        self._memory.reserve(prompt)
        self._left(prompt)
        if self._takers:
            if (
                self._prompts
            ):  # The one that was woken for the next prompt may have found no memory.
                self.wake()
            elif self.closed:
                self.close()
        return prompt

    def pick(self, fits: Callable[[Prompt], bool]) -> Prompt | None:
        """Removes the first prompt that fits, if there is one; reserves no memory."""
        for at, prompt in enumerate(self._prompts):
            if fits(prompt):
                del self._prompts[at]
                self._left(prompt)
                return prompt
        return None

    def _left(self, prompt: Prompt) -> None:
        self._bytes -= len(prompt.fields)
        if self._awaited or not self._prompts:
            self._awaited = False
            self.space.set()

    def close(self) -> None:
        """Nothing more will be put: takers that find nothing get None."""
        self.closed = True
        while self._takers:
            self.wake()

    def stop(self) -> None:
        """Closes the queue and drops its prompts, and those that are still put: they stay pending."""
        self._stopped = True
        self._prompts.clear()
        self._bytes = 0
        self.close()
        self.space.set()

    def wake(self) -> None:
        """Lets one waiting taker look again."""
        while self._takers:
            taker = self._takers.popleft()
            if not taker.done():
                taker.set_result(None)
                return
