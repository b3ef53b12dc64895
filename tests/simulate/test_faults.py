import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.simulate.faults import FAULTS, check_shares, drawn, point

SHARES = {"http_500": 0.2, "html": 0.1, "slow": 0.05}


@given(st.integers(), st.text(), st.integers(0, 100))
def test_the_same_request_suffers_the_same_fault(seed, key, nth):
    """A failing test of another part can be run again."""
    assert drawn(SHARES, seed, key, nth) == drawn(dict(SHARES), seed, key, nth)
    assert 0 < point(seed, key, nth, "latency") < 1


def test_faults_come_as_often_as_asked():
    """A share of 0.2 is a fifth of the requests."""
    faults = [drawn(SHARES, 0, f"{n}", 0) for n in range(20_000)]
    for name, share in {**SHARES, None: 0.65}.items():
        assert faults.count(name) / 20_000 == pytest.approx(share, abs=0.01)


def test_a_retry_draws_anew():
    """Or a body that failed once would fail for ever."""
    failed = [n for n in range(2000) if drawn({"http_500": 0.5}, 0, f"{n}", 0)]
    again = [n for n in failed if drawn({"http_500": 0.5}, 0, f"{n}", 1)]
    assert len(again) / len(failed) == pytest.approx(0.5, abs=0.06)


def test_no_shares_no_fault_and_a_share_of_one_is_always():
    """The two ends, for every fault."""
    assert drawn({}, 0, "a", 0) is None
    for name in FAULTS:
        assert drawn({name: 1}, 3, "a", 7) == name
        assert drawn({name: 0}, 3, "a", 7) is None


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ({"http_500": 0.6, "html": 0.5}, "the faults' shares are 1.1 together; 1 is the most"),
        ({"http_418": 0.1}, "no fault 'http_418'; there are http_500, http_503"),
        ({"html": -0.1}, "fault html=-0.1: a share is from 0 to 1"),
        ({"html": float("nan")}, "fault html=nan"),
    ],
)
def test_shares_that_make_no_sense_are_refused_with_a_sentence(shares, words):
    """The sentence is what the user of a flag reads."""
    with pytest.raises(ValueError, match=words):
        check_shares(shares)
