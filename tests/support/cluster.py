"""One Ray cluster for all tests that need any: a start takes seconds of two cores."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.support.program import environment

_HEAD = """
import sys
from ray.cluster_utils import Cluster
head = {"num_cpus": 2, "object_store_memory": 80 << 20, "include_dashboard": False,
        "include_log_monitor": False, "no_monitor": True, "temp_dir": sys.argv[1]}
cluster = Cluster(initialize_head=True, head_node_args=head)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.remove_node(cluster.head_node, allow_graceful=False)
"""


class RayCluster(NamedTuple):
    """A cluster of this machine; `head` is the process that started it."""

    address: str
    head: int

    def processes(self, name: bytes) -> list[int]:
        """Its processes of this name."""
        return [pid for pid in _children(_children([self.head])) if _command(pid).startswith(name)]


@contextmanager
def running() -> Iterator[RayCluster]:
    """Starts one, and ends it."""
    env = environment(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder,
        subprocess.Popen(
            [sys.executable, "-c", _HEAD, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
        ) as head,
    ):
        assert head.stdin is not None
        assert head.stdout is not None
        address = head.stdout.readline().decode().split()
        assert address, "Ray did not start"
        yield RayCluster(address[-1], head.pid)
        head.stdin.close()


def _children(parents: list[int]) -> list[int]:
    found = []
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            status = Path(f"/proc/{entry}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue
        if int(status[1]) in parents:
            found.append(int(entry))
    return found


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
