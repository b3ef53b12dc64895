"""What every `LimitPolicy` promises, on a virtual clock: TokenBucket, AdaptiveRate, Limit, LimitSet and both policies."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.job.job import Limits
from batcher.limits.adaptive import AdaptiveRate
from batcher.limits.bucket import TokenBucket
from batcher.limits.concurrency import Concurrency
from batcher.limits.headers import RateLimitHeaders
from batcher.limits.limits import Limit, LimitSet
from batcher.limits.policy import KeyPolicy, ModelPolicy
from batcher.limits.port import ExchangeOutcome, Ticket

RPM, TPM = 600.0, 60_000.0
KINDS = ("answered", "refused", "overloaded", "failed", "rejected", "unsent")


def advertised(now):
    return [RateLimitHeaders("requests", 300.0, 299.0 - now % 100, 12.0, 60.0, named=False)]


class Subject:
    """A policy and the requests that it let go and that are not over."""

    def __init__(self, policy):
        self.policy, self.open, self.now = policy, [], 100.0

    def take(self, amount):
        self.policy.take(amount, self.now)
        self.open.append(Ticket(amount, self.now, "", 2 * amount))

    def end(self, kind, used, retry_after):
        """The oldest request is over."""
        if not self.open:
            return
        ticket, now, policy = self.open.pop(0), self.now, self.policy
        policy.settle(ticket.tokens, min(used, 2 * ticket.tokens), now)
        if isinstance(policy, ModelPolicy | KeyPolicy):
            headers = advertised(now) if kind in ("answered", "refused") else ()
            outcome = ExchangeOutcome(kind, 0.5, used, retry_after, None, headers)
            policy.observe(ticket, outcome, now)
        elif isinstance(policy, AdaptiveRate) and kind == "refused":
            policy.refused(ticket.tokens, ticket.sent_at, now, retry_after)
        elif isinstance(policy, AdaptiveRate):
            policy.accepted(ticket.sent_at, now)
        elif isinstance(policy, Limit):
            policy.advertised(advertised(now), ticket.sent_at, now, answered=kind == "answered")
            if kind == "refused":
                policy.refused(ticket.tokens, ticket.sent_at, now, retry_after)


SUBJECTS = {
    "bucket": lambda: TokenBucket(RPM, 100.0),
    "adaptive rate": AdaptiveRate,
    "limit, configured": lambda: Limit(RPM, 100.0, learns=True),
    "limit, learned": lambda: Limit(None, 100.0, learns=True),
    "set": lambda: LimitSet(Limits(rpm=RPM, tpm=TPM), Concurrency(None), 100.0, learns=False),
    "model": lambda: ModelPolicy(Limits(rpm=RPM, tpm=TPM), 100.0),
    "model, nothing configured": lambda: ModelPolicy(Limits(), 100.0),
    "key": lambda: KeyPolicy(Limits(rpm=RPM, tpm=TPM), 100.0),
}
every = pytest.mark.parametrize("name", SUBJECTS)
amounts = st.floats(1, 3000)
events = st.lists(
    st.tuples(
        st.floats(0, 8) | st.floats(0, 0.1),
        st.sampled_from(("take", "take", *KINDS)),
        amounts,
        st.none() | st.floats(0, 90),
    ),
    max_size=50,
)
# How long after the last change, and for how much.
questions = st.lists(st.tuples(st.floats(0, 200), amounts), min_size=1, max_size=20)


def after(name, events, ask=()):
    """A policy after some events, with questions before each of them."""
    subject = Subject(SUBJECTS[name]())
    for pause, what, amount, retry_after in events:
        for later, asked in ask:
            subject.policy.delay(asked, subject.now + later)
        subject.now += pause
        if what == "take":
            subject.take(amount)
        else:
            subject.end(what, amount, retry_after)
    return subject


@every
@given(events, questions)
@settings(max_examples=30)
def test_a_question_changes_no_later_answer(name, events, ask):
    """Asked never, once, or twenty times, about now or about later."""
    never, often = after(name, events), after(name, events, ask)
    for later, amount in ask:
        assert never.policy.delay(amount, never.now + later) == often.policy.delay(
            amount, often.now + later
        )


@every
@given(events, amounts, st.floats(0, 1))
@settings(max_examples=30)
def test_a_request_may_go_once_its_delay_is_over_and_waiting_never_makes_it_longer(
    name, events, amount, part
):
    """A waiter sets one timer; what it was told stays true while nothing changes."""
    subject = after(name, events)
    while subject.open:
        subject.end("answered", 1.0, None)
    policy, now = subject.policy, subject.now
    delay = policy.delay(amount, now)
    assert 0.0 <= delay < math.inf
    midway = now + part * delay
    assert policy.delay(amount, midway) <= now + delay - midway + 1e-6
    assert policy.delay(amount, now + delay + 1e-6) == 0.0


@every
@given(events, amounts)
@settings(max_examples=30)
def test_what_was_not_used_makes_no_later_request_wait_longer(name, events, amount):
    """Of two requests that are over, the one that used less leaves more."""
    delays = []
    for used in (amount, amount / 2):
        subject = after(name, events)
        subject.take(amount)
        subject.policy.settle(amount, used, subject.now)
        delays.append(subject.policy.delay(amount, subject.now))
    assert delays[1] <= delays[0]


@pytest.mark.parametrize("name", ["bucket", "limit, configured", "set", "model", "key"])
@given(st.lists(st.floats(0, 5) | st.just(0.0), min_size=2, max_size=300))
@settings(max_examples=30)
def test_no_minute_holds_more_requests_than_the_limit(name, pauses):
    """In any minute, whenever it begins, for a sender that goes as early as it may."""
    subject, sent = Subject(SUBJECTS[name]()), []
    for pause in pauses:
        subject.now += pause
        subject.now += subject.policy.delay(1, subject.now)
        subject.take(1)
        subject.end("answered", 1.0, None)
        sent.append(subject.now)
    for start in sent:
        assert sum(start <= at < start + 60.0 for at in sent) <= RPM
