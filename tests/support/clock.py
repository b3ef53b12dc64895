"""Time that passes at once: an event loop whose sleeps take no time."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from batcher.limits.gate import Gate

T = TypeVar("T")


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop with a clock of its own; nothing in it may touch a socket or a thread.

    Timers are tuples in the heap, as comparing them takes most of the time otherwise.
    """

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._soon: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbers = itertools.count()

    def time(self) -> float:
        """Seconds since the loop was made."""
        return self._now

    def call_soon(self, callback, *args, context=None):
        handle = asyncio.Handle(callback, args, self, context)
        self._soon.append(handle)
        return handle

    def call_later(self, delay, callback, *args, context=None):
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(self, when, callback, *args, context=None):
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def _timer_handle_cancelled(self, handle):
        pass

    def _run_once(self) -> None:
        timers, soon = self._timers, self._soon
        if not soon and not self._stopping:
            while timers and timers[0][2]._cancelled:
                heapq.heappop(timers)
            if not timers:
                raise RuntimeError("everybody waits and nothing will ever happen")
            self._now = max(self._now, timers[0][0])
        while timers and timers[0][0] <= self._now:
            soon.append(heapq.heappop(timers)[2])
        for _ in range(len(soon)):
            handle = soon.popleft()
            if not handle._cancelled:
                handle._run()


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


async def busy(work: Iterable[Coroutine[Any, Any, None]], seconds: float, *gates: Gate) -> None:
    """Lets all of it work for so long, then closes the gates and ends it."""
    tasks = [asyncio.create_task(one) for one in work]
    await asyncio.sleep(seconds)
    for gate in gates:
        gate.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
