"""Settings that hold for all tests."""

import os
import signal
import sys

import pytest
from hypothesis import HealthCheck, settings

from batcher.simulate.server import running
from batcher.simulate.settings import Simulation
from tests.support import cluster

# A loaded machine is no reason to fail: what is slow is seen in the durations, not as an error.
settings.register_profile("batcher", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("batcher")

# A shell ignores Ctrl-C for a job in a script's background, and nohup ignores SIGHUP. The programs
# that tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Without bytecode files each of the hundreds of processes that the tests start compiles the package
# anew, and each pytest worker all test modules: a quarter of the suite's CPU time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


@pytest.fixture
def gateway():
    """A simulated gateway of the test's own that answers at once."""
    with running(Simulation(speed=0)) as up:
        yield up


@pytest.fixture(scope="session")
def ray_cluster():
    """A Ray cluster; each pytest worker that needs one starts its own, so one file has all its tests."""
    pytest.importorskip("ray", reason="Ray is not installed")
    with cluster.running() as up:
        yield up
