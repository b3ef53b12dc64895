"""A model's health: whether it answers, and when to give it up. Touches: nothing.

```text
              answered                    refused
  PROBING ───────────────► ANSWERING ◄──────────────► FAILING
     ▲ │                       ▲        answered         │
     │ │ refused               │ answered                │
     │ ▼             doubted   │                         │
  REFUSING ──────────────► IN_DOUBT                      │
     │                         │                         │
     └────────────┬────────────┴─────────────────────────┘
                  ▼  gave up
     CLOSED_PENDING │ CLOSED_FAILED
```

The left column is a model that never answered, in this run or an earlier one of the same output. A
refusal is here only one that may hold for every row: of the key, the account or the model's name, or a
400 before the first answer.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from enum import Enum, auto

from batcher.errors import SUSPENDED
from batcher.records import Outcome, Result
from batcher.send.retry import FATAL

__all__ = ["PENDING", "TRANSITIONS", "Event", "Health", "State"]

PENDING = frozenset({Outcome.QUOTA, Outcome.CONNECTION, Outcome.RATE_LIMITED})
"""Failures that may pass: the rows of a model that is closed with one of them stay pending."""

_MAX_REFUSALS_BEFORE_ANSWER = 3
_MAX_REFUSALS_AFTER_ANSWER = 10
_MAX_SAME_REFUSALS = 50


class State(Enum):
    """How a model is doing."""

    PROBING = auto()
    REFUSING = auto()
    IN_DOUBT = auto()
    ANSWERING = auto()
    FAILING = auto()
    CLOSED_PENDING = auto()
    CLOSED_FAILED = auto()

    # Members are compared by identity; Enum's own hash is a Python function, and costs as much as a look-up.
    __hash__ = object.__hash__


class Event(Enum):
    """What a result, or the lack of one, says about a model."""

    ANSWERED = auto()
    """The model answered, whether or not the answer is usable."""
    RESPONDED = auto()
    """The server responded, with something that says nothing about other rows."""
    REFUSED = auto()
    """A refusal that may hold for every row."""
    DOUBTED = auto()
    """So many refusals in the same words that only what is still in flight can prove them wrong."""
    GAVE_UP_PENDING = auto()
    """Too many failures, of a kind that may pass."""
    GAVE_UP_FAILED = auto()
    """Too many failures, of a kind that stays."""

    __hash__ = object.__hash__


_GAVE_UP = {
    Event.GAVE_UP_PENDING: State.CLOSED_PENDING,
    Event.GAVE_UP_FAILED: State.CLOSED_FAILED,
}
TRANSITIONS: dict[State, dict[Event, State]] = {
    State.PROBING: {
        Event.ANSWERED: State.ANSWERING,
        Event.RESPONDED: State.PROBING,
        Event.REFUSED: State.REFUSING,
        **_GAVE_UP,
    },
    State.REFUSING: {
        Event.ANSWERED: State.ANSWERING,
        Event.RESPONDED: State.PROBING,
        Event.REFUSED: State.REFUSING,
        Event.DOUBTED: State.IN_DOUBT,
        **_GAVE_UP,
    },
    State.IN_DOUBT: {
        Event.ANSWERED: State.ANSWERING,
        Event.RESPONDED: State.PROBING,
        Event.REFUSED: State.REFUSING,  # In other words than those before.
        Event.DOUBTED: State.IN_DOUBT,
        **_GAVE_UP,
    },
    State.ANSWERING: {
        Event.ANSWERED: State.ANSWERING,
        Event.RESPONDED: State.ANSWERING,
        Event.REFUSED: State.FAILING,
        **_GAVE_UP,
    },
    State.FAILING: {
        Event.ANSWERED: State.ANSWERING,
        Event.RESPONDED: State.ANSWERING,
        Event.REFUSED: State.FAILING,
        **_GAVE_UP,
    },
    # What was in flight when the model was closed changes nothing.
    State.CLOSED_PENDING: dict.fromkeys(Event, State.CLOSED_PENDING),
    State.CLOSED_FAILED: dict.fromkeys(Event, State.CLOSED_FAILED),
}
"""The next state, by state and event."""


class Health:
    """The health of one model.

    Args:
        clock: A monotonic clock, in seconds.
        proven: Whether the model answered in an earlier run of the same output.

    Attributes:
        state: See `State`.
        closed: Whether no more rows are sent to the model.
        in_doubt: Whether nothing more should be sent until requests in flight have ended.
        answered: Whether the model answered in this run.
        responded: Whether it did, or refused rows for reasons of their own: then it is no dead address.
        last_error: The text of the last failure, "" before the first.
        refusal: The last refusal that may hold for every row.
        closing: The result that closed the model; None while it is open.
        closed_at: When that was.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, *, proven: bool = False
    ) -> None:
        self.clock = clock
        self.state = State.ANSWERING if proven else State.PROBING
        self._proven = proven
        self.answered = self.responded = self.closed = self.in_doubt = False
        self.last_error = ""
        self.refusal: Result | None = None
        self.closing: Result | None = None
        self.closed_at = 0.0
        self._refusals = 0  # Since the last response of another kind.
        self._doubted_at = 0.0

    @property
    def works(self) -> bool:
        """Whether the model answered, in this run or an earlier one."""
        return self.answered or self._proven

    @property
    def hopeless(self) -> bool:
        """Whether the model is closed, or never did anything but refuse for a reason that stays."""
        if self.closed:
            return True
        refusing = self.state in (State.REFUSING, State.IN_DOUBT)
        return refusing and self.refusal is not None and self.refusal.status in FATAL

    def observe(self, result: Result) -> bool:
        """Takes a result into account; returns whether the state changed, or the model responded for the first time."""
        status = result.status
        responded = self.responded
        if status is not Outcome.OK:
            self.last_error = result.error or self.last_error
        if status.answered:
            self.answered = self.responded = True
            self._refusals = 0
            event = Event.ANSWERED
        elif status in FATAL:
            event = self._refused(result)
        elif status is Outcome.BAD_REQUEST and not self.works:
            event = self._refused_row(result)
        elif result.http_status is not None:
            self.responded |= status is Outcome.CONTEXT_LENGTH
            self._refusals = 0
            event = Event.RESPONDED
        else:
            return False
        return self._enter(event, result) or self.responded is not responded

    def note_failure(self, error: str) -> None:
        """Keeps the text of an attempt that failed and is not the row's last."""
        self.last_error = error

    def settle_doubt(self, in_flight_since: Iterable[float]) -> None:
        """Closes a model in doubt, unless a request sent before the doubt may still be answered.

        An answer takes longer than a refusal.

        Args:
            in_flight_since: When each request in flight was sent.
        """
        if not self.in_doubt or self.refusal is None:
            return
        if all(since > self._doubted_at for since in in_flight_since):
            self.close(self.refusal)

    def close(self, result: Result) -> None:
        """Gives the model up, for the reason in `result`, unless it is closed already."""
        pending = result.status in PENDING
        self._enter(Event.GAVE_UP_PENDING if pending else Event.GAVE_UP_FAILED, result)

    def _enter(self, event: Event, result: Result) -> bool:
        state = TRANSITIONS[self.state][event]
        if state is self.state:
            return False
        self.state = state
        self.in_doubt = state is State.IN_DOUBT
        self.closed = state in (State.CLOSED_PENDING, State.CLOSED_FAILED)
        if self.in_doubt:
            self._doubted_at = self.clock()
        elif self.closed:
            self.closing, self.closed_at = result, self.clock()
        return True

    def _refused(self, result: Result) -> Event:
        """The key, the account or the model's name was refused.

        Money that ran out is believed at once, unless by 400 or 403: a gateway that reserves the price of a
        request may refuse the expensive ones only. A suspended account is believed at once.
        """
        self._refusals += 1
        self.refusal = result
        limit = _MAX_REFUSALS_AFTER_ANSWER if self.works else _MAX_REFUSALS_BEFORE_ANSWER
        certain = result.error_type == SUSPENDED or (
            result.status is Outcome.QUOTA and result.http_status not in (400, 403)
        )
        if not certain and self._refusals < limit:
            return Event.REFUSED
        return Event.GAVE_UP_PENDING if result.status in PENDING else Event.GAVE_UP_FAILED

    def _refused_row(self, result: Result) -> Event:
        """A 400 before the first answer. A few say little about other rows; 50 in the same words do."""
        before, self.refusal = self.refusal, result
        if before is not None and _words(before) == _words(result):
            self._refusals += 1
        else:
            self._refusals = 1
            self.responded |= before is not None
        return Event.DOUBTED if self._refusals >= _MAX_SAME_REFUSALS else Event.REFUSED


def _words(result: Result) -> str:
    """The text of a refusal without the numbers and request IDs that differ each time."""
    return re.sub(r"(?<!\S)[^\s\d]*+\d\S*+", "", result.error or "")
