"""Commands run by processes that are forked from one which has imported everything already."""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

_FORKS = "from tests.support.forked import serve; serve()"
_IMPORTED = (
    "batcher.cli.app", "batcher.cli.rows", "batcher.cli.stderr", "batcher.runtime.runner",
    "batcher.cluster.backends", "batcher.read.jsonl", "batcher.read.parquet", "batcher.write.parquet",
    "batcher.write.finish", "encodings.idna", "jinja2.sandbox", "pyarrow.parquet", "uvloop",
)  # fmt: skip
"""What most commands would import otherwise, each for itself."""


def run(
    words: list[str], cwd: Path, env: dict[str, str], timeout: float
) -> subprocess.CompletedProcess[bytes]:
    """Runs `batcher` with these words to its end, like `subprocess.run` with captured output."""
    process = Forked(words, cwd, env)
    try:
        out, err = process.communicate(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return subprocess.CompletedProcess(words, process.wait(), out, err)


class Forked:
    """A command at work; the methods are those of `subprocess.Popen` with captured output."""

    def __init__(self, words: list[str], cwd: Path, env: dict[str, str]) -> None:
        self._words = words
        self._out = tempfile.TemporaryFile()  # noqa: SIM115 (`communicate` closes them)
        self._err = tempfile.TemporaryFile()  # noqa: SIM115
        with open(os.devnull, "rb") as nothing:
            files = [file.fileno() for file in (nothing, self._out, self._err)]
            self._line, self.pid = _ask(address(), words, cwd, env, files)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """How it ended; None while it is at work."""
        if self.returncode is None and select.select([self._line], [], [], 0)[0]:
            self._end()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end; how it ended."""
        if self.returncode is None:
            if not select.select([self._line], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self._words, timeout or 0.0)
            self._end()
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[bytes, bytes]:
        """Waits for its end; what it wrote to stdout and to stderr."""
        self.wait(timeout)
        said = []
        for file in (self._out, self._err):
            with file:
                file.seek(0)
                said.append(file.read())
        return said[0], said[1]

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Sends SIGKILL, unless it has ended."""
        self.send_signal(signal.SIGKILL)

    def _end(self) -> None:
        self.returncode = int.from_bytes(_exactly(self._line, 4), signed=True)
        self._line.close()


def forward(address: str, words: list[str]) -> int:
    """Runs a command with the streams, folder and environment of this process; how it ended."""
    line, _pid = _ask(address, words, Path.cwd(), dict(os.environ), [0, 1, 2])
    with line:
        status = int.from_bytes(_exactly(line, 4), signed=True)
    return status if status >= 0 else 128 - status


def _ask(
    address: str, words: list[str], cwd: Path, env: dict[str, str], files: list[int]
) -> tuple[socket.socket, int]:
    """Has a command started; the line on which its end is told, and its process ID."""
    line = socket.socket(socket.AF_UNIX)
    line.connect(address)
    asked = json.dumps({"words": words, "cwd": str(cwd), "env": env}).encode()
    socket.send_fds(line, [len(asked).to_bytes(4)], files)
    line.sendall(asked)
    return line, int.from_bytes(_exactly(line, 4))


@functools.cache
def address() -> str:
    """Starts the process that forks; returns the address at which it listens."""
    folder = tempfile.mkdtemp(prefix="forks-")
    path = os.path.join(folder, "socket")
    env = {**os.environ, "PYTHONWARNINGS": "ignore", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", _FORKS, path],
        cwd=root,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()  # It listens.
    atexit.register(shutil.rmtree, folder)
    atexit.register(process.kill)
    return path


def serve() -> None:
    """Forks for each connection, until stdin closes: whoever started this ended, however it did."""
    import pyarrow.parquet  # noqa: F401

    for name in _IMPORTED:
        importlib.import_module(name)
    sys.modules["pyarrow"].array([0])  # Imports pandas where that is installed.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(sys.argv[1])
        listening.listen(16)
        sys.stdout.write("listening\n")
        sys.stdout.flush()
        while sys.stdin not in select.select([listening, sys.stdin], [], [])[0]:
            line, _ = listening.accept()
            if not os.fork():
                listening.close()
                _supervise(line)
            line.close()


def _supervise(line: socket.socket) -> None:
    """Runs one command in a child, tells how it ended, and ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, files, *_ = socket.recv_fds(line, 4, 3)
    asked = json.loads(_exactly(line, int.from_bytes(size)))
    child = os.fork()
    if not child:
        line.close()
        _become(asked, files)
    line.sendall(child.to_bytes(4))
    _, status = os.waitpid(child, 0)
    line.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, signed=True))
    os._exit(0)


def _become(asked: dict[str, object], files: list[int]) -> None:
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.chdir(str(asked["cwd"]))
    os.environ.clear()
    os.environ.update(asked["env"])
    sys.argv = ["batcher", *asked["words"]]
    status = 1
    try:
        from batcher.__main__ import main

        main()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:  # noqa: BLE001 (shown as Python itself would)
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _exactly(line: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        part = line.recv(size - len(found))
        assert part, "the process that forks is gone"
        found += part
    return found
