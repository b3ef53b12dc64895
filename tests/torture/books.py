"""What the gateway billed, bill by bill, and what a run folder holds of it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from batcher.records import Result
from batcher.simulate.server import Running, running
from batcher.simulate.settings import Simulation
from batcher.write import sidecar
from batcher.write.lines import is_sound, segments
from tests.support.forked import Forked

__all__ = ["Bill", "Books", "answers", "key_of", "opened"]

_SETTLE_S = 0.05  # What lay on the wire at a kill has come by then, also on a busy machine.
_decode = msgspec.json.Decoder(Result).decode
Process = subprocess.Popen[bytes] | Forked


class Bill(NamedTuple):
    """One answer that the gateway billed; `at` is when, on the monotonic clock."""

    at: float
    key: str
    model: str
    prompt: int
    completion: int
    seen: bool


class Books:
    """A gateway that is up, and every bill it made.

    Attributes:
        bills: In the order they were made; a thread appends to it.
        bound: How many answers the kills so far may have cost.
        kills: How many there were.
    """

    def __init__(self, gateway: Running) -> None:
        self.url, self.gateway, self.ledger = gateway.url, gateway.gateway, gateway.ledger
        self.bills: list[Bill] = []
        self.kills = self.bound = 0
        self._arrivals: list[str] = []
        bill, receive = self.ledger.bill, self.ledger.receive

        def noted(model: Any, key: str, spent: Any, *, seen: bool) -> None:
            now = time.monotonic()
            self.bills.append(Bill(now, key, model.id, spent.prompt, spent.completion, seen))
            bill(model, key, spent, seen=seen)

        def arrived(key: str) -> int:
            self._arrivals.append(key)
            return receive(key)

        self.ledger.bill, self.ledger.receive = noted, arrived  # type: ignore[method-assign]

    @property
    def cut(self) -> int:
        """Bills for answers that nobody could read."""
        return sum(of.by_fault["cut_json"] for of in list(self.ledger.models.values()))

    def kill(self, process: Process, number: int = signal.SIGKILL) -> bytes:
        """Ends a process by a signal, adds to `bound` what was in flight then; what it wrote to stderr.

        In flight is: with the gateway, on the way to it (it comes later), and on the way from it
        (answered within the last moment).
        """
        process.send_signal(number)
        now = time.monotonic()
        flying, arrivals = self.ledger.in_flight, len(self._arrivals)
        _, stderr = process.communicate(timeout=300)
        recent = sum(now - _SETTLE_S <= bill.at <= now for bill in self.bills[-1000:])
        self.quiet()
        self.kills += 1
        self.bound += flying + recent + len(self._arrivals) - arrivals
        return stderr

    def quiet(self) -> None:
        """Waits until nothing is in flight any more."""
        calm = time.monotonic()
        while time.monotonic() - calm < _SETTLE_S:
            if self.ledger.in_flight:
                calm = time.monotonic()
            time.sleep(0.005)

    def lost(self, folder: Path) -> int:
        """Answers that were billed, could be read, and are not in the folder."""
        # A journal may hold an answer twice, for good measure; each has a name of its own.
        kept = {result.request_id for result in answers(folder)}
        return len(self.bills) - self.cut - len(kept)

    def doubled(self) -> int:
        """Bills beyond the first of each request."""
        return sum(n - 1 for n in Counter(bill.key for bill in self.bills).values())


@contextmanager
def opened(simulation: Simulation) -> Iterator[Books]:
    """A gateway with open books."""
    with running(simulation) as gateway:
        yield Books(gateway)


def answers(folder: Path) -> Iterator[Result]:
    """Every answer that the journal holds, as a start would find it; changes nothing."""
    for number, path in segments(folder):
        file = os.open(path, os.O_RDONLY)
        try:
            for entry in sidecar.load(path, number, keep=False).entries:
                if int(entry["segment"]) != number:
                    continue  # It refers to a line that is counted where it stands.
                line = os.pread(file, int(entry["length"]), int(entry["offset"]))
                assert is_sound(line), f"{path.name} at {entry['offset']}: not a line"
                result = _decode(line)
                if result.status.answered:
                    yield result
        finally:
            os.close(file)


def key_of(request_id: str) -> str:
    """The beginning of the gateway's key for a request, from the name it gave the answer."""
    return request_id.split("-")[1]
