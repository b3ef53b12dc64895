"""What may be spent is never exceeded, and nobody waits for ever."""

import asyncio
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.errors import RunStopped
from batcher.limits.port import Closed
from batcher.money.budget import NOTHING, Amount, LocalBudget

CENT = Decimal("0.01")


@settings(max_examples=200)
@given(
    st.integers(1, 60), st.integers(1, 40), st.booleans(),
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(0, 3),
                       st.sampled_from(["used", "refused", "lost", "cancelled", "unsent"])),
             max_size=40),
)  # fmt: skip
def test_what_is_spent_and_in_flight_is_never_more_than_told(most, workers, tokens, requests):
    """Whatever requests use, as long as it is no more than was set aside for them."""
    spent = 0
    claims, ended = [], []

    async def work():
        nonlocal spent
        budget = LocalBudget(
            None if tokens else most * CENT, most if tokens else None, NOTHING, claims.append
        )
        budget.on_stop(ended.append)
        left, flying = list(requests), 0

        async def worker():
            nonlocal spent, flying
            while left:
                size, used, turns, fate = left.pop()
                used = min(used, size)
                try:
                    hold = await budget.enter(Amount(size * CENT, size))
                except Closed:
                    return
                flying += size
                assert spent + flying <= most
                claimed = claims[-1] if claims else NOTHING
                assert (claimed.tokens if tokens else claimed.dollars / CENT) >= spent + flying
                if fate != "unsent":
                    hold.sent()
                for _ in range(turns):
                    await asyncio.sleep(0)
                if fate == "used":
                    hold.used(used * CENT, used)
                elif fate == "refused":
                    hold.refused()
                flying -= size
                spent += {"used": used, "refused": 0, "unsent": 0}.get(fate, size)
                hold.settle()

        await asyncio.wait_for(asyncio.gather(*(worker() for _ in range(workers))), 10)
        committed = budget.committed
        assert spent == (committed.tokens if tokens else committed.dollars / CENT)
        if left:
            assert len(ended) == 1
            assert isinstance(ended[0], RunStopped)
        # A second run with what the first one claimed cannot spend it again.
        assert not claims or budget.committed.within(claims[-1])

    asyncio.run(work())


def test_those_who_wait_are_let_go_when_the_run_stops():
    """Ctrl-C, with the budget all in flight."""

    async def work():
        budget = LocalBudget(CENT, None, NOTHING, lambda _claimed: None)
        held = await budget.enter(Amount(CENT, 1))
        waiting = asyncio.create_task(budget.enter(Amount(CENT, 1)))
        await asyncio.sleep(0)
        budget.close()
        with pytest.raises(Closed):
            await asyncio.wait_for(waiting, 1)
        held.settle()
        assert budget.committed == NOTHING

    asyncio.run(work())


def test_a_claim_that_cannot_be_written_sends_nothing():
    """A disk that is full: what was set aside is free again, and the run ends with that."""

    def refuse(_claimed):
        raise OSError(28, "No space left on device")

    async def work():
        budget, ended = LocalBudget(CENT, None, NOTHING, refuse), []
        budget.on_stop(ended.append)
        with pytest.raises(Closed):
            await budget.enter(Amount(CENT, 1))
        assert budget.committed == NOTHING
        assert [str(error) for error in ended] == ["[Errno 28] No space left on device"]

    asyncio.run(work())


def test_no_more_is_claimed_than_the_budget():
    """After a kill all that was claimed counts as spent, which would be more than may be."""
    claims = []

    async def work():
        budget = LocalBudget(None, 1000, NOTHING, claims.append)
        holds = [await budget.enter(Amount(Decimal(0), 99)) for _ in range(10)]
        for hold in holds:
            hold.settle()

    asyncio.run(work())
    assert max(claim.tokens for claim in claims) <= 1000
