"""The peak memory of a command."""

import subprocess
import sys
import time

from tests.support.program import environment

__all__ = ["peak"]

# A process that starts another lends it its own peak: the one that measures must be a small one.
MEASURE = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, used = os.wait4(pid, 0)
print(os.waitstatus_to_exitcode(status), used.ru_maxrss // 1024)
"""


def peak(words, url):
    """(exit status, peak memory in MB, seconds) of a command; limited, so that a fault does not end the machine."""
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", MEASURE, *words],
        env=environment(OPENAI_BASE_URL=url, OPENAI_API_KEY="none"),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True, timeout=300,
    )  # fmt: skip
    status, megabytes = (int(part) for part in ended.stdout.split())
    return status, megabytes, time.monotonic() - began
