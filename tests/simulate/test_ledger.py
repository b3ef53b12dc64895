from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from batcher.simulate.ledger import Ledger, Spent
from batcher.simulate.settings import MODELS

small = MODELS[0]
counts = st.integers(0, 10_000)
answers = st.lists(st.tuples(counts, counts, counts, st.booleans(), st.sampled_from("abc")))


@given(answers)
def test_the_account_is_the_sum_of_its_answers(answers):
    """To the last of all digits, or it could not be compared with what is on disk."""
    ledger, total = Ledger(), Decimal(0)
    for cached, fresh, completion, seen, key in answers:
        spent = Spent(cached + fresh, completion, cached)
        ledger.bill(small, key, spent, seen=seen)
        total += spent.cost(small)
    account = ledger.models[small.id]
    assert account.cost + account.cost_unseen == total
    assert account.billed + account.billed_unseen == len(answers)
    assert sum(ledger.billed_by_key.values()) == len(answers)
    assert account.tokens["completion"] == sum(a[2] for a in answers if a[3])


def test_a_million_tokens_cost_the_price_and_cached_ones_their_own():
    """Prices are dollars per million tokens."""
    million = 1_000_000
    assert Spent(million, million).cost(small) == Decimal("0.50")
    assert Spent(million, 0, cached=million).cost(small) == Decimal("0.025")


def test_a_reset_keeps_what_is_in_flight():
    """Else the number in flight would go below zero when it ends."""
    ledger = Ledger()
    ledger.enter()
    ledger.enter()
    ledger.leave("sim-small", 200)
    ledger.reset()
    assert (ledger.in_flight, ledger.peak_in_flight, dict(ledger.models)) == (1, 1, {})
    ledger.leave(None, 404)
    assert (ledger.in_flight, ledger.asdict()["strangers"]) == (0, {"404": 1})
