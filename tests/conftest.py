"""Settings that hold for all tests."""

import signal

import pytest
from hypothesis import HealthCheck, settings

from batcher.simulate.server import running
from batcher.simulate.settings import Simulation

# A loaded machine is no reason to fail: what is slow is seen in the durations, not as an error.
settings.register_profile("batcher", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("batcher")

# Of a job in a script's background the shell ignores Ctrl-C, and what it starts would do so, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def gateway():
    """A simulated gateway of the test's own that answers at once."""
    with running(Simulation(speed=0)) as up:
        yield up
