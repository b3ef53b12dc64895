"""What the engine knows of one model's way through the run, and of one pass over the input.

Touches: the clock.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from batcher.errors import SUSPENDED
from batcher.job.endpoint import Endpoint
from batcher.limits.port import RateLimiter
from batcher.money.prices import Bill, Price, is_free
from batcher.records import Outcome, Prompt, Result
from batcher.send.attempt import SendChannel
from batcher.send.dialect import ModelDialect, RequestDialect
from batcher.send.estimate import TimeoutEstimator, TokenEstimator
from batcher.send.retry import FATAL

__all__ = [
    "PENDING",
    "Channel",
    "ChannelStatus",
    "MemoryBudget",
    "ModelChannel",
    "Prefetcher",
    "RowQueue",
    "lost_result",
    "may_answer",
    "silent_result",
    "why_dead",
]

PENDING = frozenset({Outcome.QUOTA, Outcome.CONNECTION, Outcome.RATE_LIMITED})
"""What may pass: rows of a model that ended so are not sent, and stay pending."""

_FATAL_FIRST = 3
_FATAL_LATER = 10
_SAME_FIRST = 50
_ADVICE = {
    Outcome.AUTH: "check the API key and what it may use",
    Outcome.QUOTA: "the account's money or allowance is used up; top it up or wait",
    Outcome.NOT_FOUND: "check the model ID and --base-url",
    Outcome.RATE_LIMITED: "the gateway refuses every request; ask for less, or wait",
    Outcome.CONNECTION: "check --base-url and the network, or wait",
    Outcome.BAD_REQUEST: "every request was refused with these words; check --param",
}
_SUSPENDED = (
    "the account is suspended and no request will be answered: write to the gateway's support"
)

_QUEUE_ROWS = 400
_QUEUE_BYTES = 32 << 20
_AT_ONCE_SECONDS = 5.0
_LARGE_BYTES = 64 << 10
_ROOM_BYTES = 256 << 20


class MemoryBudget:
    """Memory for large requests on their way; the small ones are not counted.

    A thousand requests in flight are nothing, unless each carries a picture. Each model has room of
    its own, as requests that wait for a limit keep theirs.

    Args:
        shares: Among how many the memory is divided.
    """

    def __init__(self, shares: int = 1) -> None:
        self._most = _ROOM_BYTES // shares
        self._taken = 0

    def free(self, prompt: Prompt) -> bool:
        """Whether there is room for a prompt; for one alone there always is."""
        return not self._taken or self._taken + _large(prompt) <= self._most

    def enter(self, prompt: Prompt) -> None:
        """Takes the room of a prompt, until it leaves."""
        self._taken += _large(prompt)

    def leave(self, prompt: Prompt) -> bool:
        """Gives the room of a prompt back; whether it had any."""
        size = _large(prompt)
        self._taken -= size
        return size > 0


def _large(prompt: Prompt) -> int:
    """Memory of a large prompt and the request made of it; 0 of a small one."""
    size = len(prompt.fields)
    return 2 * size if size >= _LARGE_BYTES else 0


class RowQueue:
    """Prompts for one lane, or for all lanes of a split; bounded in rows and bytes.

    Args:
        room: Without room in it nothing is taken.
    """

    def __init__(self, room: MemoryBudget) -> None:
        self._room = room
        self._prompts: deque[Prompt] = deque()
        self._bytes = 0
        self._takers: deque[asyncio.Future[None]] = deque()
        self.feed: Prefetcher | None = None
        self.closed = False

    def __len__(self) -> int:
        return len(self._prompts)

    def pick(self, fits: Callable[[Prompt], bool]) -> Prompt | None:
        """The first prompt that fits, if there is one."""
        for at, prompt in enumerate(self._prompts):
            if fits(prompt):
                del self._prompts[at]
                self._taken(prompt)
                return prompt
        return None

    @property
    def full(self) -> bool:
        """Whether the reader should wait."""
        return len(self._prompts) >= _QUEUE_ROWS or self._bytes >= _QUEUE_BYTES

    def put(self, prompt: Prompt) -> None:
        """Adds a prompt, also where it is full: whoever puts asks first."""
        self._prompts.append(prompt)
        self._bytes += len(prompt.fields)
        self.wake()

    async def take(self) -> Prompt | None:
        """The next prompt, which has entered the room; None when there will be none."""
        while not self._prompts or not self._room.free(self._prompts[0]):
            if self.closed and not self._prompts:
                return None
            taker = asyncio.get_running_loop().create_future()
            self._takers.append(taker)
            await taker
        prompt = self._prompts.popleft()
        self._room.enter(prompt)
        self._taken(prompt)
        if self._prompts:  # Whoever was woken for it may have found no room.
            self.wake()
        elif self.closed:
            self.close()
        return prompt

    def _taken(self, prompt: Prompt) -> None:
        self._bytes -= len(prompt.fields)
        if self.feed is not None:
            self.feed.room.set()

    def close(self) -> None:
        """Nothing more comes; whoever waits is told."""
        self.closed = True
        while self._takers:
            self.wake()

    def clear(self) -> None:
        """Drops what stands in it; it stays pending."""
        self._prompts.clear()
        self._bytes = 0

    def wake(self) -> None:
        """Lets one of those that wait look again."""
        while self._takers:
            taker = self._takers.popleft()
            if not taker.done():
                taker.set_result(None)
                return


class ChannelStatus(NamedTuple):
    """How a model stands, for whoever watches.

    Attributes:
        waiting: Requests that wait for a limit or a backoff, and
        waiting_for: for what the first of them does.
        longest: (age in seconds, name of the row) of the oldest in flight.
    """

    in_flight: int
    waiting: int
    waiting_for: str
    longest: tuple[float, str] | None


class ModelChannel:
    """One model's way through the run.

    Attributes:
        place: Of the model among those asked.
        awake: Whether it has all its workers: the first answer came, or takes its time.
        alive: Whether it ever answered.
        proven: Whether it did in an earlier run of this output.
        responds: Whether it answered, or refused rows for reasons of their own.
        fatal: The last result that may be the same for every row.
        dead: The result that closed the lane, or None.
        dead_since: When that was (monotonic clock).
        dropped: Whether rows of it stay pending since it is dead.
        last: What was said of the last failure.
        room: For its large requests, also where the queue is not its own.
        turn: Held by the one worker that looks for room before it takes a row (`split`).
    """

    def __init__(
        self,
        model: str,
        place: int,
        gate: RateLimiter,
        queue: RowQueue,
        patience: TimeoutEstimator,
        room: MemoryBudget,
        price: Price | None,
        before: RequestDialect | None = None,
    ) -> None:
        self.model = model
        self.place = place
        self.gate = gate
        self.queue = queue
        self.room = room
        self.way = SendChannel(
            gate,
            TokenEstimator(),
            patience,
            {},
            ModelDialect(before),
            Bill(price, free=is_free(model)),
        )
        self.workers = 0
        self.awake = False
        self.alive = self.proven = False
        self.responds = False
        self.dead: Result | None = None
        self.dead_since = 0.0
        self.dropped = False
        self.fatal: Result | None = None
        self.streak = 0
        self._doubted = 0.0
        self.last = ""
        self.retrying: set[asyncio.Task[None]] = set()
        self.next: ModelChannel | None = None
        self.turn = asyncio.Lock()

    def standing(self) -> ChannelStatus:
        """How it stands now."""
        now, gate = time.monotonic(), self.gate
        ages = [(now - since, name) for name, since in self.way.in_flight.values()]
        if gate.waiting and gate.waits_for:
            cause = gate.waits_for
        elif self.retrying:
            cause = "retry"
        else:
            cause = "" if self.awake else "first answer"
        # Of those that go again some are in flight, some in line, some wait out a backoff.
        waiting = max(gate.waiting, len(self.retrying) - gate.in_flight)
        return ChannelStatus(gate.in_flight, waiting, cause, max(ages, default=None))

    def leave(self, prompt: Prompt) -> None:
        """Gives back the room of a prompt that was taken for this lane."""
        if self.room.leave(prompt):
            self.queue.wake()

    @property
    def hopeless(self) -> bool:
        """Whether it is closed, or all that ever came of it was one fatal outcome."""
        fatal = self.fatal is not None and self.fatal.status in FATAL
        answers = self.alive or self.proven
        return self.dead is not None or (fatal and self.streak > 0 and not answers)

    @property
    def at_work(self) -> bool:
        """Whether answers may still come: its workers end with its rows."""
        return self.dead is None and bool(self.workers or self.retrying)

    @property
    def in_doubt(self) -> bool:
        """Whether all were refused alike so far, and what was sent before may still be answered.

        Nothing more is sent meanwhile: it would be refused as well.
        """
        if self.streak < _SAME_FIRST or self.dead is not None or self.alive or self.proven:
            return False
        return any(t <= self._doubted for _name, t in self.way.in_flight.values())

    def judge(self, result: Result) -> bool:
        """Takes a result into account; whether it is one too many of those that stay.

        A few 400s say little of the others, 50 that begin the run with the same words do, once what was
        sent before the last of them is back: an answer takes longer than a refusal. Money that ran out is
        believed at once, unless by 400 or 403: a gateway that reserves the price of a request may refuse
        the dear ones only, and says so. An account that is suspended is believed at once.
        """
        status = result.status
        if status is Outcome.OK:
            self.alive, self.responds, self.streak = True, True, 0
            return False
        self.last = result.error or self.last
        if status is Outcome.BAD_REQUEST and not (self.alive or self.proven):
            same = self.fatal is not None and _words(self.fatal) == _words(result)
            self.responds |= self.fatal is not None and not same
            self.streak = self.streak + 1 if same else 1
            self.fatal = result
            if self.streak == _SAME_FIRST:
                self._doubted = time.monotonic()
            flying = self.way.in_flight.values()
            return self.streak >= _SAME_FIRST and all(t > self._doubted for _name, t in flying)
        if status in FATAL:
            self.streak += 1
            self.fatal = result
            most = _FATAL_LATER if self.alive or self.proven else _FATAL_FIRST
            return (
                self.streak >= most
                or result.error_type == SUSPENDED
                or (status is Outcome.QUOTA and result.http_status not in (400, 403))
            )
        if status.answered or result.http_status is not None:
            self.alive |= status.answered
            self.responds |= status.answered or status is Outcome.CONTEXT_LENGTH
            self.streak = 0
        return False


class Channel(Protocol):
    """A model's way through a run, as seen from outside."""

    model: str

    def standing(self) -> ChannelStatus:
        """How it stands now."""


class Prefetcher:
    """One pass over the input for some lanes."""

    def __init__(self, queues: list[RowQueue], *, main: bool) -> None:
        self.queues = queues
        self.main = main
        self.room = asyncio.Event()


def may_answer(lane: ModelChannel) -> bool:
    """Whether something is in flight that was not refused at once."""
    now = time.monotonic()
    return any(now - since > _AT_ONCE_SECONDS for _name, since in lane.way.in_flight.values())


def silent_result(lane: ModelChannel, seconds: float) -> Result:
    """What became of a lane of which nothing good was heard for so long."""
    last = f"; the last failure: {lane.last}" if lane.last else ""
    return lost_result(lane, f"no answer for {seconds:.0f} s{last}")


def lost_result(lane: ModelChannel, error: str) -> Result:
    """What became of a lane that nothing will be heard of."""
    return Result(
        row=0,
        model=lane.model,
        sample=0,
        key="0" * 32,
        status=Outcome.RATE_LIMITED if lane.gate.refusing else Outcome.CONNECTION,
        custom_id="",
        error=error,
    )


def why_dead(lanes: Iterable[ModelChannel], endpoint: Endpoint) -> str:
    """A sentence for each way in which these lanes ended, and what to do about it."""
    ways: dict[str, list[str]] = {}
    for lane in lanes:
        if (last := lane.dead or lane.fatal) is not None:
            what = f"the gateway answers {last.http_status}: " if last.http_status else ""
            way = f"{what}{last.error} — {_advice(last, endpoint)}."
            ways.setdefault(way, []).append(lane.model)
    return " ".join(f"{', '.join(models)}: {way}" for way, models in ways.items())


def _advice(last: Result, endpoint: Endpoint) -> str:
    if last.error_type == SUSPENDED:
        return _SUSPENDED
    if last.status is Outcome.AUTH and endpoint.key is None:
        names = " or ".join(endpoint.unsent)
        how = (
            f"{names} is set, and goes there with --api-key-env {endpoint.unsent[0]}"
            if names
            else ("set a variable to the key and name it with --api-key-env")
        )
        return f"no API key was sent to {endpoint.host}: {how}"
    return _ADVICE[last.status]


def _words(result: Result) -> str:
    """What a refusal says, without the numbers and request IDs that differ each time."""
    return re.sub(r"(?<!\S)[^\s\d]*+\d\S*+", "", result.error or "")
