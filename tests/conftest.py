"""Settings that hold for all tests."""

import signal

from hypothesis import HealthCheck, settings

# A loaded machine is no reason to fail: what is slow is seen in the durations, not as an error.
settings.register_profile("batcher", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("batcher")

# Of a job in a script's background the shell ignores Ctrl-C, and what it starts would do so, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
