"""Settings that hold for all tests."""

from hypothesis import HealthCheck, settings

# A loaded machine is no reason to fail: what is slow is seen in the durations, not as an error.
settings.register_profile("batcher", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("batcher")
