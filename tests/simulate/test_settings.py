from itertools import pairwise
from statistics import median

import pytest

from batcher.simulate.faults import point
from batcher.simulate.settings import MODELS, Simulation


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.id)
def test_latencies_are_around_the_median_and_longer_answers_take_longer(model):
    """Demos and benchmarks feel like the real thing."""
    taken = [model.latency_s(point(0, f"{n}", 0, "latency"), 0) for n in range(4000)]
    assert median(taken) == pytest.approx(model.median_s, rel=0.05)
    assert model.latency_s(0.5, 600) == pytest.approx(model.median_s + 600 / model.tokens_per_s)


def test_better_models_are_slower_and_dearer():
    """So that comparing them shows a trade."""
    for less, more in pairwise(MODELS):
        assert less.quality < more.quality
        assert less.median_s < more.median_s
        assert less.output_price < more.output_price


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"speed": -1}, "speed -1: it must be 0 or more"),
        ({"max_in_flight": 0}, "max_in_flight 0: it must be 1 or more"),
        ({"meter": "bucket-2s"}, "meter 'bucket-2s': it must be one of bucket-60s, bucket-1s"),
        ({"charge": "none"}, "charge 'none': it must be one of output, max-tokens"),
        ({"rpm": 0}, "a limit of 0 a minute: it must be above 0"),
        ({"tpm_by_model": {"gpt": 1}}, "a limit for 'gpt'; the models are sim-large"),
        ({"faults": {"html": 2}}, "fault html=2: a share is from 0 to 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused_with_a_sentence(settings, words):
    """The sentence is what the user of a flag reads."""
    with pytest.raises(ValueError, match=words):
        Simulation(**settings)


def test_one_models_limit_wins_over_the_limit_of_all():
    """None lifts it for that model."""
    simulation = Simulation(
        rpm=10, rpm_by_model={"sim-small": None}, tpm_by_model={"sim-large": 5}
    )
    assert simulation.limits("sim-small") == (None, None)
    assert simulation.limits("sim-large") == (10, 5)
