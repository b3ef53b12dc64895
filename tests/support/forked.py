"""Commands run by processes that are forked from one which has imported everything already."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

_FORKS = "from tests.support.forked import serve; serve()"


def run(
    words: list[str], cwd: Path, env: dict[str, str], timeout: float
) -> subprocess.CompletedProcess[bytes]:
    """Runs `batcher` with these words to its end, like `subprocess.run` with captured output."""
    with (
        socket.socket(socket.AF_UNIX) as line,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        line.connect(_parent())
        line.settimeout(timeout)
        asked = json.dumps({"words": words, "cwd": str(cwd), "env": env}).encode()
        socket.send_fds(line, [len(asked).to_bytes(4)], [out.fileno(), err.fileno()])
        line.sendall(asked)
        child = int.from_bytes(_exactly(line, 4))
        try:
            ended = int.from_bytes(_exactly(line, 4), signed=True)
        except TimeoutError:
            os.kill(child, signal.SIGKILL)
            raise subprocess.TimeoutExpired(words, timeout) from None
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(words, ended, out.read(), err.read())


@functools.cache
def _parent() -> str:
    """Starts the process that forks; returns the address at which it listens."""
    folder = tempfile.mkdtemp(prefix="forks-")
    address = os.path.join(folder, "socket")
    env = {**os.environ, "PYTHONWARNINGS": "ignore", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", _FORKS, address], cwd=root, env=env, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()  # It listens.
    atexit.register(shutil.rmtree, folder)
    atexit.register(process.kill)
    return address


def serve() -> None:
    """Forks for each connection, until killed."""
    import pyarrow.parquet  # noqa: F401

    import batcher.cli.app
    import batcher.cli.rows
    import batcher.runtime.runner  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(sys.argv[1])
        listening.listen(16)
        sys.stdout.write("listening\n")
        sys.stdout.flush()
        while True:
            line, _ = listening.accept()
            if not os.fork():
                listening.close()
                _supervise(line)
            line.close()


def _supervise(line: socket.socket) -> None:
    """Runs one command in a child, tells how it ended, and ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, files, *_ = socket.recv_fds(line, 4, 2)
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
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, file in enumerate((nothing, *files)):
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
