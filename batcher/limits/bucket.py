"""Requests and tokens per minute, as arithmetic on a given time. Touches: nothing.

Every method is told the time (a monotonic clock, seconds) and answers at once; `send.gate` alone
waits. Three sources, the strictest wins: what the user *told* and what headers *say* are each an
`TokenBucket`; what refusals teach is `AdaptiveRate`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from statistics import fmean, pstdev

__all__ = ["AdaptiveRate", "SlidingSum", "TokenBucket"]

# A client that uses 99 % of a limit and saves up half a second of it sends no more than the limit
# in any minute (0.99 + 0.5 / 60 < 1), and does not bunch where servers count by the second.
_SHARE = 0.99
_SAVED_SECONDS = 0.5
_YOUNG_SECONDS = 10.0
_ROUNDING = 1e-9
_NEVER = float("inf")


class TokenBucket:
    """So many units a minute, evenly spread.

    Half a second of them is saved up, as whoever is to go may be late. That begins with what one request
    takes and grows for ten seconds from the first one on, so that a start is no burst.

    >>> requests = Allowance(per_minute=60, now=0.0)
    >>> requests.take(1, now=0.0)
    >>> round(requests.wait(1, now=0.0), 2)
    1.01

    Args:
        per_minute: The limit that the gateway sets.
        now: The clock at the start, when nothing is saved up but one unit.
    """

    def __init__(self, per_minute: float, now: float) -> None:
        self._now = now
        self.set(per_minute)
        self._level = self._asked = 1.0
        self._whole_at = _NEVER  # When half a second may be saved up.

    def set(self, per_minute: float) -> None:
        """Another limit from now on."""
        self.per_minute = per_minute
        self._rate = per_minute * _SHARE / 60
        self._most = max(1.0, self._rate * _SAVED_SECONDS)

    @property
    def pace(self) -> float:
        """Units a second that it lets through."""
        return self._rate

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` is allowed; 0.0 if it is allowed now.

        An amount above all that can be saved up waits for a full allowance instead of for ever,
        and is paid off by those after it.
        """
        if now > self._now:
            self._fill(now)
        missing = min(amount, self._most) - self._level
        # Less than a billionth is rounding, and waiting for it could go on for ever.
        if missing <= _ROUNDING:
            return 0.0
        self._asked = amount
        return missing / self._rate

    def take(self, amount: float, now: float) -> None:
        """Uses `amount`; below zero when more was needed than could be saved up."""
        if now > self._now:
            self._fill(now)
        self._level -= amount
        if self._whole_at == _NEVER:
            self._whole_at = now + _YOUNG_SECONDS

    def settle(self, reserved: float, used: float, now: float) -> None:
        """Puts back what was reserved and not used, or takes what was used beyond it."""
        if now > self._now:
            self._fill(now)
        self._level = min(self._most, self._level + reserved - used)

    def hold(self, until: float) -> None:
        """Saves up nothing before a time: after a pause there is no burst."""
        self._level = min(self._level, 0.0)
        self._now = max(self._now, until)

    def _fill(self, now: float) -> None:
        most, level = self._most, self._level + (now - self._now) * self._rate
        if now < self._whole_at and level > self._asked:
            young = most * (1.0 - (self._whole_at - now) / _YOUNG_SECONDS)
            most = min(most, max(self._asked, self._level, young))
        self._level = min(most, level)
        self._now = now


class SlidingSum:
    """Sums of the last minute, in steps of half a second."""

    _STEP, _SPAN = 0.5, 60.0

    def __init__(self) -> None:
        self._steps: deque[list[float]] = deque()
        self._newest, self._begins, self._ends = [0.0, 0.0, 0.0], 0.0, 0.0

    def add(self, amount: float, at: float, count: int = 1) -> None:
        """Adds `amount`, as so many, at a time, which may lie a little in the past."""
        if self._begins <= at < self._ends:  # Most often.
            self._newest[1] += amount
            self._newest[2] += count
            return
        step = at // self._STEP
        for held in reversed(self._steps):
            if held[0] == step:
                held[1] += amount
                held[2] += count
                return
            if held[0] < step:
                break
        self._newest = [step, amount, count]
        self._steps.append(self._newest)
        self._begins = step * self._STEP
        self._ends = self._begins + self._STEP

    def sum(self, now: float, seconds: float = _SPAN) -> float:
        """What was added in the last so many seconds, 60 at most."""
        return sum(amount for _step, amount, _count in self._since(now, seconds))

    def count(self, now: float) -> float:
        """As how many it was added in the last minute."""
        return sum(count for _step, _amount, count in self._since(now, self._SPAN))

    def _since(self, now: float, seconds: float) -> Iterator[list[float]]:
        oldest = (now - self._SPAN) // self._STEP
        while self._steps and self._steps[0][0] < oldest:
            self._steps.popleft()
        since = (now - seconds) / self._STEP
        return (step for step in self._steps if step[0] >= since)


class _Trial:
    """A while at twice the rate, to see whether more are refused then."""

    def __init__(self, began: float, before: float, share: float) -> None:
        self.began, self.before, self.share = began, before, share
        self.sent = self.refused = 0

    @property
    def failed(self) -> bool:
        """Whether too many are refused; of twice a limit it would be half of them."""
        return self.refused > 2.0 * (1.0 + self.share * self.sent)


class AdaptiveRate:
    """The rate that a server lets through, found from what it refused.

    Before the first refusal there is no limit. A refusal cuts the rate a little and shuts; then one
    request at a time goes as a probe, and with the first that is not refused the rate is open
    again. It grows back along a cubic: fast, then slow where the refusal was, then faster (as TCP
    CUBIC, RFC 9438, with a fixed time to the plateau). When the server stayed shut for seconds it
    counts by the minute: the rate is then what it let through in the last minute.

    Gateways with many upstreams refuse a few at whatever rate, and going slower is no help there. A
    limit refuses at regular distances, each time when the rate has grown back; where distances are
    irregular and most pass, twice the rate is tried, and again twice that, for as long as no larger
    part is refused. Then that part is taken as it comes.

    Amounts are requests, or tokens; rates are those a second.
    """

    _PLATEAU = 20.0
    _COUNTS_BY_THE_MINUTE = 5.0
    _SEEN_A_MINUTE = 50.0
    _NOISE_CUTS, _NOISE_MOST, _NOISE_LASTS, _IRREGULAR = 6, 0.2, 600.0, 0.5
    _TRIAL_SENT, _TRIAL_SECONDS, _TRIAL_AGAIN, _TRIAL_RARELY = 60, 3.0, 30.0, 3600.0
    _NO_CHANCE = 3
    _SAVED_SECONDS = 0.25
    _PROBE_FIRST, _PROBE_MOST, _PROBE_LATER = 0.25, 5.0, 60.0

    def __init__(self) -> None:
        self.rate: float | None = None
        self._plateau = 0.0
        self._cut_at = float("-inf")
        self._level = 0.0
        self._now = 0.0
        self._began: float | None = None
        self._sent, self._refused = SlidingSum(), SlidingSum()
        self._shut_at: float | None = None
        self._probe_after = 0.0
        self._probe_sent: float | None = None
        self._denied = 0  # Probes in a row.
        self._minute_before = 0.0
        self._verdict = 0.25
        self._known = False
        self._passed = 0  # Units of count, not of amount, since the last cut.
        self._distances: deque[int] = deque(maxlen=2 * self._NOISE_CUTS)
        self._noise, self._noise_until = 0.0, float("-inf")
        self._trial: _Trial | None = None
        self._no_trial_before, self._trial_pause = float("-inf"), self._TRIAL_AGAIN

    @property
    def shut(self) -> bool:
        """Whether only probes are let through."""
        return self._shut_at is not None

    def noisy(self, now: float) -> bool:
        """Whether some are refused at whatever rate, or it is being tried whether they are."""
        return now < self._noise_until or self._trial is not None

    def now(self, now: float) -> float | None:
        """The rate at this moment, a second; None when there is no limit."""
        return None if self.rate is None else self._grown(self.rate, now)

    def _grown(self, cut: float, now: float) -> float:
        """What the rate that was left by the last cut has become."""
        x = (now - self._cut_at) / self._PLATEAU - 1.0
        return self._plateau + (self._plateau - cut) * x**3

    def begin_at(self, rate: float, now: float) -> None:
        """Goes on from a rate that was found before, with nothing saved up."""
        self.rate = self._plateau = rate
        self._cut_at = self._now = now
        self._level = 0.0

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` is allowed; 0.0 if it is allowed now."""
        if self.rate is None:
            return 0.0
        if self._shut_at is not None:
            if self._probe_sent is None:
                return max(0.0, self._probe_after - now)
            # A refusal comes at once, an answer takes its time: no refusal is as good as an answer.
            if now - self._probe_sent < self._verdict - _ROUNDING:
                return self._verdict - (now - self._probe_sent)
            self._open(now)
        rate = self._fill(self.rate, now)
        missing = min(amount, max(1.0, rate * self._SAVED_SECONDS)) - self._level
        return missing / rate if missing > _ROUNDING else 0.0

    def take(self, amount: float, now: float) -> None:
        """Uses `amount`."""
        if self._began is None:
            self._began = now
        self._sent.add(amount, now)
        self._passed += 1
        if self._trial is not None:
            self._tried(self._trial, now)
        if self._shut_at is not None:
            self._probe_sent = now
        elif self.rate is not None:
            self._fill(self.rate, now)
            self._level -= amount

    def settle(self, reserved: float, used: float, now: float) -> None:
        """Puts back what was reserved and not used, or takes what was used beyond it."""
        self._sent.add(used - reserved, now, 0)
        if self.rate is not None:
            self._level += reserved - used

    def sent(self, now: float) -> float:
        """How many were let through in the last minute."""
        return self._sent.count(now)

    def accepted(self, sent_at: float, now: float) -> None:
        """What was sent then was not refused."""
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
        """What was sent then was refused; False when that says nothing of the rate.

        Args:
            amount: How much.
            sent_at: When it was sent.
            now: When the refusal came.
            retry_after: Seconds that the server named.
            known: The rate that was kept so far, where a limit is known.
        """
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
        elif now < self._noise_until and self._as_often(now):
            return False
        if self._shut_at is not None:
            if self._probe_sent is not None and sent_at >= self._probe_sent:
                self._probe_sent = None
                closed = now - self._shut_at
                most = self._PROBE_MOST if closed < 70 else self._PROBE_LATER
                pause = max(self._PROBE_FIRST, min(most, closed / 4))
                self._probe_after = now + (pause if retry_after is None else retry_after)
                self._denied += 1
                if self._denied >= self._NO_CHANCE:
                    self._distances.clear()
            return True
        if sent_at < self._cut_at:
            return True  # It was on its way before the last cut could help.
        self._shut_at, self._probe_sent, self._denied = now, None, 0
        self._minute_before = self._let_through(now, 60.0)
        rate = self.now(now)
        since = now - self._cut_at
        if rate is None:
            seconds = max(0.5, min(5.0, now - (self._began if self._began is not None else now)))
            rate = max(
                self._let_through(now, seconds) / seconds, self._minute_before / 60, amount / 60
            )
            rate = rate if known is None else known
        if trial is not None:
            rate, since = trial.before, self._PLATEAU
        elif self._doubtful(rate, now):
            return False
        self._known = known is not None
        self._plateau = rate
        self.rate = rate * (0.95 if since > 10 else 0.85 if since > 2 else 0.7)
        self._cut_at = now
        pause = min(self._PROBE_FIRST, 1 / self.rate) if retry_after is None else retry_after
        self._probe_after = now + pause
        return True

    def _doubtful(self, rate: float, now: float) -> bool:
        """Whether a trial begins in place of a cut."""
        distances = self._distances
        distances.append(self._passed)
        self._passed = 0
        if len(distances) <= self._NOISE_CUTS or now < self._no_trial_before:
            return False
        mean = fmean(distances)
        share = 1.0 / max(1.0, mean)
        if share > self._NOISE_MOST or pstdev(distances) < self._IRREGULAR * mean:
            return False
        self._try(rate, share, now)
        return True

    def _try(self, rate: float, share: float, now: float) -> None:
        self._trial = _Trial(now, rate, share)
        self._shut_at = self._probe_sent = None
        self.rate = self._plateau = 2.0 * rate
        self._cut_at = now
        self._distances.clear()

    def _tried(self, trial: _Trial, now: float) -> None:
        """One more was sent in a trial; after enough of them the next one begins."""
        trial.sent += 1
        if trial.sent >= self._TRIAL_SENT and now - trial.began >= self._TRIAL_SECONDS:
            self._noise, self._noise_until = trial.share, now + self._NOISE_LASTS
            self._trial_pause = self._TRIAL_AGAIN
            self._try(2.0 * trial.before, trial.share, now)

    def _as_often(self, now: float) -> bool:
        """Whether no more are refused than were found to be at whatever rate."""
        sent = self._sent.sum(now, 10.0)
        return self._refused.sum(now, 10.0) <= (1.5 * self._noise + 0.02) * max(sent, 30.0)

    def _let_through(self, now: float, seconds: float) -> float:
        return max(0.0, self._sent.sum(now, seconds) - self._refused.sum(now, seconds))

    def _open(self, now: float) -> None:
        assert self._shut_at is not None
        assert self.rate is not None
        # In a run younger than a minute the last minute says nothing of a minute.
        seen = self._began is not None and now - self._began >= self._SEEN_A_MINUTE
        if now - self._shut_at >= self._COUNTS_BY_THE_MINUTE and seen and not self._known:
            by_the_minute = 0.99 * self._minute_before / 60
            if 0 < by_the_minute < self.rate:
                self.rate, self._plateau = by_the_minute, by_the_minute / 0.95
        self._shut_at = self._probe_sent = None
        self._cut_at = now
        self._level, self._now = 0.0, now

    def _fill(self, cut: float, now: float) -> float:
        rate = self._grown(cut, now)
        if now > self._now:
            most = max(1.0, rate * self._SAVED_SECONDS)
            self._level = min(most, self._level + (now - self._now) * rate)
            self._now = now
        return rate
