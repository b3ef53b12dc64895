"""The rate of a server that does not publish it, found from what it refuses. Touches: nothing."""

from __future__ import annotations

import math
from collections import deque
from statistics import fmean, pstdev
from typing import NamedTuple

from batcher.limits.bucket import ROUNDING_SECONDS, SlidingSum

__all__ = ["AdaptiveRate"]

_PLATEAU_SECONDS = 20.0
_SAVED_SECONDS = 0.25


class _Cubic(NamedTuple):
    """A rate that grows from `start` along a cubic: it is flat at the plateau, 20 s after its start."""

    start: float
    plateau: float
    since: float

    def at(self, now: float) -> float:
        x = (now - self.since) / _PLATEAU_SECONDS - 1.0
        return self.plateau + (self.plateau - self.start) * x**3


class _Trial:
    """A period at twice the rate, to see whether the server refuses a larger part."""

    def __init__(self, began: float, rate_before: float, share: float) -> None:
        self.began, self.rate_before, self.share = began, rate_before, share
        self.sent = self.refused = 0

    @property
    def failed(self) -> bool:
        """Whether the server refuses more than the share found before; at twice a limit it is half of them."""
        return self.refused > 2.0 * (1.0 + self.share * self.sent)


class AdaptiveRate:
    """The rate that a server lets through, found from what it refuses.

    Before the first refusal there is no limit. A refusal cuts the rate a little and shuts; then one
    request at a time goes as a probe, and the first that is not refused opens the rate again. The rate
    grows back along a cubic: fast, then slowly near the rate of the refusal, then faster (as TCP
    CUBIC, RFC 9438, with a fixed time to the plateau). If the server stays shut for seconds, it counts
    by the minute: the rate is then what it let through in the last minute.

    Gateways with many upstreams refuse a few requests at any rate, and a lower rate does not help there. A
    limit refuses at regular distances, each time when the rate has grown back. Where the distances are
    irregular and most requests pass, twice the rate is tried, and again twice that, as long as the share of
    refusals does not grow. Then refusals of that share are ignored.

    An amount is a number of requests or of tokens; a rate is an amount per second.

    Attributes:
        limited: Whether there is a rate yet.
    """

    _COUNTS_BY_THE_MINUTE = 5.0
    _SEEN_A_MINUTE = 50.0
    _CHANCE_CUTS, _CHANCE_MOST, _CHANCE_LASTS, _IRREGULAR = 6, 0.2, 600.0, 0.5
    _TRIAL_SENT, _TRIAL_SECONDS, _TRIAL_AGAIN, _TRIAL_RARELY = 60, 3.0, 30.0, 3600.0
    _REGULAR_DENIALS = 3
    _PROBE_FIRST, _PROBE_MOST, _PROBE_LATER = 0.25, 5.0, 60.0

    def __init__(self) -> None:
        self.limited = False
        self._curve: _Cubic | None = None
        self._level, self._since = 0.0, 0.0  # Units that are saved up at that time.
        self._began: float | None = None
        self._sent, self._refused = SlidingSum(), SlidingSum()
        self._shut_at: float | None = None
        self._probe_after = 0.0
        self._probe_sent: float | None = None
        self._denied = 0  # Probes in a row.
        self._minute_before = 0.0
        self._verdict = 0.25
        self._known = False
        self._passed = 0  # Requests since the last cut.
        self._distances: deque[int] = deque(maxlen=2 * self._CHANCE_CUTS)
        self._chance, self._chance_until = 0.0, float("-inf")
        self._trial: _Trial | None = None
        self._no_trial_before, self._trial_pause = float("-inf"), self._TRIAL_AGAIN

    # Questions

    def shut(self, now: float) -> bool:
        """Whether only probes are let through."""
        opens = self._opens_at()
        return self._shut_at is not None and (opens is None or now < opens)

    def by_chance(self, now: float) -> bool:
        """Whether some requests are refused at any rate, or a trial looks whether they are."""
        return now < self._chance_until or self._trial is not None

    def rate(self, now: float) -> float | None:
        """The rate at this moment; None when there is no limit."""
        curve = self._curve_at(now)
        return None if curve is None else curve.at(now)

    def delay(self, amount: float, now: float) -> float:
        """Seconds until `amount` is allowed; 0.0 if it is allowed now."""
        if self._curve is None:
            return 0.0
        level, since, curve = self._level, self._since, self._curve
        if self._shut_at is not None:
            if (opens := self._opens_at()) is None:
                return max(0.0, self._probe_after - now)
            level, since, curve = 0.0, opens, self._opened(self._curve, self._shut_at, opens)
        rate = curve.at(max(now, since))
        # The capacity is that at the last change: if it grew, a delay that is over would not be enough.
        missing = min(amount, _capacity(curve.at(since))) - level
        seconds = since + missing / rate - now
        return seconds if seconds > ROUNDING_SECONDS else 0.0

    def sent(self, now: float) -> float:
        """How many requests were let through in the last minute."""
        return self._sent.count(now)

    # Changes

    def begin_at(self, rate: float, now: float) -> None:
        """Starts from a rate that was found before, with nothing saved up."""
        self.limited, self._curve = True, _Cubic(rate, rate, now)
        self._level, self._since = 0.0, now

    def take(self, amount: float, now: float) -> None:
        """Uses `amount`."""
        if self._began is None:
            self._began = now
        self._sent.add(amount, now)
        self._passed += 1
        if self._curve is not None:
            self._use(amount, now)

    def _use(self, amount: float, now: float) -> None:
        self._open_in_time(now)
        if self._trial is not None:
            self._sent_in_trial(self._trial, now)
        if self._shut_at is not None:
            self._probe_sent = now
        else:
            self._fill(now)
            self._level -= amount

    def settle(self, reserved: float, used: float, now: float) -> None:
        """Returns what was taken and not used, or takes what was used beyond it."""
        self._sent.add(used - reserved, now, 0)
        if self._curve is not None:
            self._open_in_time(now)
            self._level += reserved - used

    def accepted(self, sent_at: float, now: float) -> None:
        """A request that was sent then was not refused."""
        self._open_in_time(now)
        if self._probe_sent is not None and sent_at >= self._probe_sent:
            self._open(now)

    def refused(
        self,
        amount: float,
        sent_at: float,
        now: float,
        retry_after: float | None,
        known: float | None = None,
    ) -> bool:
        """A request was refused; False when that says nothing about the rate.

        Args:
            amount: Its amount.
            sent_at: When it was sent.
            now: When the refusal came.
            retry_after: Seconds that the server named.
            known: The rate that was kept so far, where a limit is known.
        """
        self._open_in_time(now)
        self._refused.add(amount, sent_at)
        self._verdict = max(0.25, 0.9 * self._verdict, min(10.0, 2 * (now - sent_at)))
        trial = self._trial
        if trial is not None:
            trial.refused += sent_at >= trial.began
            if not trial.failed:
                return False
            self._trial = None
            self._no_trial_before = now + self._trial_pause
            self._trial_pause = min(self._TRIAL_RARELY, 2.0 * self._trial_pause)
        elif now < self._chance_until and self._as_often(now):
            return False
        if self._shut_at is not None:
            if self._probe_sent is not None and sent_at >= self._probe_sent:
                self._probe_refused(self._shut_at, now, retry_after)
            return True
        if self._curve is not None and sent_at < self._curve.since:
            return True  # It was on its way before the last cut could help.
        return self._cut(amount, now, retry_after, known, trial)

    def _probe_refused(self, shut_at: float, now: float, retry_after: float | None) -> None:
        self._probe_sent = None
        closed = now - shut_at
        most = self._PROBE_MOST if closed < 70 else self._PROBE_LATER
        pause = max(self._PROBE_FIRST, min(most, closed / 4))
        self._probe_after = now + (pause if retry_after is None else retry_after)
        self._denied += 1
        if self._denied >= self._REGULAR_DENIALS:
            self._distances.clear()

    def _cut(
        self,
        amount: float,
        now: float,
        retry_after: float | None,
        known: float | None,
        trial: _Trial | None,
    ) -> bool:
        """Cuts the rate and shuts, unless a trial begins instead."""
        self._shut_at, self._probe_sent, self._denied = now, None, 0
        self._minute_before = self._let_through(now, 60.0)
        since = math.inf
        if self._curve is not None:
            rate, since = self._curve.at(now), now - self._curve.since
        elif known is not None:
            rate = known
        else:
            began = now if self._began is None else self._began
            seconds = max(0.5, min(5.0, now - began))
            rate = max(
                self._let_through(now, seconds) / seconds, self._minute_before / 60, amount / 60
            )
        if trial is not None:
            rate, since = trial.rate_before, _PLATEAU_SECONDS
        elif self._is_irregular(rate, now):
            return False
        self._known = known is not None
        start = rate * (0.95 if since > 10 else 0.85 if since > 2 else 0.7)
        self.limited, self._curve = True, _Cubic(start, rate, now)
        self._probe_after = now + (
            min(self._PROBE_FIRST, 1 / start) if retry_after is None else retry_after
        )
        return True

    # Trials

    def _is_irregular(self, rate: float, now: float) -> bool:
        """Whether the distances between cuts are those of chance; then a trial begins."""
        distances = self._distances
        distances.append(self._passed)
        self._passed = 0
        if len(distances) <= self._CHANCE_CUTS or now < self._no_trial_before:
            return False
        mean = fmean(distances)
        share = 1.0 / max(1.0, mean)
        if share > self._CHANCE_MOST or pstdev(distances) < self._IRREGULAR * mean:
            return False
        self._try_twice(rate, share, now)
        return True

    def _try_twice(self, rate: float, share: float, now: float) -> None:
        self._trial = _Trial(now, rate, share)
        self._shut_at = self._probe_sent = None
        self.limited, self._curve = True, _Cubic(2.0 * rate, 2.0 * rate, now)
        self._distances.clear()

    def _sent_in_trial(self, trial: _Trial, now: float) -> None:
        """Counts one more; after enough of them the next trial begins."""
        trial.sent += 1
        if trial.sent >= self._TRIAL_SENT and now - trial.began >= self._TRIAL_SECONDS:
            self._chance, self._chance_until = trial.share, now + self._CHANCE_LASTS
            self._trial_pause = self._TRIAL_AGAIN
            self._try_twice(2.0 * trial.rate_before, trial.share, now)

    def _as_often(self, now: float) -> bool:
        """Whether no larger share is refused than was found to be refused at any rate."""
        sent = self._sent.sum(now, 10.0)
        return self._refused.sum(now, 10.0) <= (1.5 * self._chance + 0.02) * max(sent, 30.0)

    def _let_through(self, now: float, seconds: float) -> float:
        return max(0.0, self._sent.sum(now, seconds) - self._refused.sum(now, seconds))

    # Opening

    def _opens_at(self) -> float | None:
        """When a probe that is not refused opens the rate; None when no probe is under way.

        A refusal comes at once, an answer takes its time: no refusal is as good as an answer.
        """
        return None if self._probe_sent is None else self._probe_sent + self._verdict

    def _curve_at(self, now: float) -> _Cubic | None:
        opens = self._opens_at()
        if self._curve is None or self._shut_at is None or opens is None or now < opens:
            return self._curve
        return self._opened(self._curve, self._shut_at, opens)

    def _opened(self, cut: _Cubic, shut_at: float, at: float) -> _Cubic:
        """The curve after an opening at that time."""
        # In a run younger than a minute the last minute says nothing about a minute's limit.
        seen = self._began is not None and at - self._began >= self._SEEN_A_MINUTE
        if at - shut_at >= self._COUNTS_BY_THE_MINUTE and seen and not self._known:
            by_the_minute = 0.99 * self._minute_before / 60
            if 0 < by_the_minute < cut.start:
                return _Cubic(by_the_minute, by_the_minute / 0.95, at)
        return cut._replace(since=at)

    def _open_in_time(self, now: float) -> None:
        """Opens the rate if the time for a refusal of the probe is over."""
        opens = self._opens_at()
        if opens is not None and now >= opens - ROUNDING_SECONDS:
            self._open(opens)

    def _open(self, now: float) -> None:
        assert self._shut_at is not None
        assert self._curve is not None
        self._curve = self._opened(self._curve, self._shut_at, now)
        self._shut_at = self._probe_sent = None
        self._level, self._since = 0.0, now

    def _fill(self, now: float) -> None:
        assert self._curve is not None
        if now > self._since:
            rate = self._curve.at(now)
            self._level = min(_capacity(rate), self._level + (now - self._since) * rate)
            self._since = now


def _capacity(rate: float) -> float:
    return max(1.0, rate * _SAVED_SECONDS)
