"""The program as a user starts it: a subprocess, real files, the simulated gateway beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support import forked

SECRET = "sk-never-shown-0123456789"


def environment(**more: str) -> dict[str, str]:
    """The environment without keys and proxies, plus `more`."""
    hidden = ("API_KEY", "BASE_URL", "_proxy", "_PROXY")
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.endswith(hidden) and not name.startswith("BATCHER_")
    }
    return {**clean, "PYTHONWARNINGS": "ignore", **more}


def batcher(
    *words: str | Path,
    cwd: Path,
    url: str | None = None,
    stdin: bytes | None = None,
    timeout: float = 600,
    **env: str,
):
    """Runs a command to its end; `url` is a gateway to use through OPENAI_BASE_URL.

    In a process of its own, forked from one that has imported all that a run needs: most of a short
    run are imports. What has a stdin begins from nothing, as a user's does.
    """
    told = environment(**_gateway(url), **env)
    if stdin is None:
        return forked.run([str(word) for word in words], cwd, told, timeout)
    return subprocess.run(
        command(*words),
        cwd=cwd,
        input=stdin,
        capture_output=True,
        timeout=timeout,
        env=told,
        check=False,
    )


def started(*words: str | Path, cwd: Path, url: str | None = None) -> forked.Forked:
    """Starts a command, forked as well, and does not wait."""
    return forked.Forked([str(word) for word in words], cwd, environment(**_gateway(url)))


def started_anew(*words: str | Path, cwd: Path, url: str) -> subprocess.Popen[bytes]:
    """Starts a command that imports everything itself, as a user's does, and does not wait."""
    return subprocess.Popen(
        command(*words),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(**_gateway(url)),
    )


def command(*words: str | Path) -> list[str]:
    """The words that start the program with this interpreter."""
    return [sys.executable, "-m", "batcher", *(str(word) for word in words)]


def _gateway(url: str | None) -> dict[str, str]:
    return {} if url is None else {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": SECRET}


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A JSONL file of these rows."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
