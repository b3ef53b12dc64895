"""Watches the health of all models: gives up those that will not answer, and ends a run without any.

Touches: the clock.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping

from batcher.errors import SUSPENDED, JobError, RunStopped
from batcher.job.endpoint import Endpoint
from batcher.records import Outcome, Result
from batcher.runtime.channel import ModelChannel
from batcher.runtime.config import EngineConfig
from batcher.runtime.routes import Route

__all__ = ["HealthMonitor", "why_closed"]

_WATCH_SECONDS = 1.0
_UNREACHED_SECONDS = 4.0
_DECIDE_SECONDS = 10.0
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


class HealthMonitor:
    """Decides over models together, where `Health` decides over one.

    Args:
        config: Of the engine.
        channels: The models of the run; those that come later are added to it.
        route: Tells which rows are a model's own.
        stop: Ends the run, with the reason.
        unreached_seconds: For how long nothing was found at the address. None where other processes may
            have found something.
    """

    def __init__(
        self,
        config: EngineConfig,
        channels: Mapping[str, ModelChannel],
        route: Route,
        stop: Callable[[Exception], None],
        unreached_seconds: Callable[[], float] | None,
    ) -> None:
        self._job, self._endpoint = config.job, config.endpoint
        self._proven = bool(config.proven)
        self._channels = channels
        self._route = route
        self._stop = stop
        self._unreached_seconds = unreached_seconds
        self._changed = asyncio.Event()
        self._read_all = self._stopped = False

    def notify(self, *, read_all: bool = False, stopped: bool = False) -> None:
        """Something changed that a decision may wait for: a worker ended, or a model responded.

        Args:
            read_all: The input was read to its end.
            stopped: The run stops.
        """
        self._read_all |= read_all
        self._stopped |= stopped
        self._changed.set()

    def observe(self, channel: ModelChannel, result: Result) -> None:
        """Takes a result of a model into account."""
        health = channel.health
        was_open = not health.closed
        changed = health.observe(result)
        if health.in_doubt or changed:
            channel.settle_doubt()
            self._changed.set()
        if health.closed:
            if was_open:
                self._note_closed(channel)
            self.end_without_models()

    def close(self, channel: ModelChannel, result: Result) -> None:
        """Gives a model up, for the reason in `result`."""
        if not channel.health.closed:
            channel.health.close(result)
            channel.settle_doubt()
            self._note_closed(channel)
        self.end_without_models()

    def _note_closed(self, channel: ModelChannel) -> None:
        closing = channel.health.closing
        own = not self._route.shares_rows and self._route.follower(channel) is None
        if own and closing is not None and closing.status is Outcome.QUOTA:
            channel.keep_rows()
        self._changed.set()

    def end_without_models(self) -> None:
        """Ends the run if every model is closed, and no row can name another one."""
        channels = self._channels.values()
        if (self._job.models or self._read_all) and all(c.health.closed for c in channels):
            self._stop(JobError(why_closed(channels, self._endpoint)))

    async def others_decided(self, channel: ModelChannel) -> None:
        """Waits until it is clear whether any model but this closed one works, for ten seconds at most.

        Not longer, as the others may need this one's queue to be emptied.
        """
        others = [other for other in self._channels.values() if other is not channel]
        until = channel.health.closed_at + _DECIDE_SECONDS
        now = asyncio.get_running_loop().time
        while not self._stopped and not any(other.health.responded for other in others):
            if now() >= until or (self._read_all and not any(other.busy for other in others)):
                return
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), until - now())

    async def watch(self) -> None:
        """Gives up models from which nothing comes any more; until cancelled.

        It looks once a second: that nothing comes is no event.
        """
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            unreachable = self._is_unreachable()
            for channel in list(self._channels.values()):
                if not channel.health.closed:
                    self._look_at(channel, unreachable=unreachable)

    def _look_at(self, channel: ModelChannel, *, unreachable: bool) -> None:
        health = channel.health
        silent = channel.limiter.silent(self._job.row_timeout, alive=health.answered)
        if unreachable:
            why = f"{self._endpoint.base} cannot be reached: {health.last_error}"
        elif silent and not channel.may_answer:
            last = f"; the last failure: {health.last_error}" if health.last_error else ""
            why = f"no answer for {silent:.0f} s{last}"
        else:
            channel.settle_doubt()
            if health.closed:
                self._note_closed(channel)
                self.end_without_models()
            return
        self.close(channel, channel.lost(why))
        channel.limiter.close()

    def _is_unreachable(self) -> bool:
        """Whether nothing was ever found at the address, in this run and in earlier ones."""
        if self._unreached_seconds is None or self._proven:
            return False
        return self._unreached_seconds() >= _UNREACHED_SECONDS and not self._any_answered()

    def _any_answered(self) -> bool:
        return any(channel.health.answered for channel in self._channels.values())

    def verdict(self, stopped: Exception | None) -> Exception | None:
        """Why the run has not answered every row: `stopped`, or what its models' health says."""
        channels = list(self._channels.values())
        if stopped is None and channels and all(c.health.hopeless for c in channels):
            stopped = JobError(why_closed(channels, self._endpoint))
        if stopped is None and (kept := [c for c in channels if c.keeps_rows]):
            stopped = RunStopped(why_closed(kept, self._endpoint))
        if isinstance(stopped, JobError) and self._any_answered():
            stopped = RunStopped(str(stopped))  # An answer came in while it drained.
        return stopped

    @property
    def closed(self) -> str:
        """Which models were given up, and why, in sentences; "" if none was."""
        closed = (channel for channel in self._channels.values() if channel.health.closed)
        return why_closed(closed, self._endpoint)


def why_closed(channels: Iterable[ModelChannel], endpoint: Endpoint) -> str:
    """A sentence for each reason for which models were given up, with what to do about it."""
    models_of: dict[str, list[str]] = {}
    for channel in channels:
        if (last := channel.health.closing or channel.health.refusal) is not None:
            status = f"the gateway answers {last.http_status}: " if last.http_status else ""
            why = f"{status}{last.error} — {_advice(last, endpoint)}."
            models_of.setdefault(why, []).append(channel.model)
    return " ".join(f"{', '.join(models)}: {why}" for why, models in models_of.items())


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
