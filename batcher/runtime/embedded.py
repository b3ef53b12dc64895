"""Starts the simulated gateway for `--simulate`. Touches: processes."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

from batcher.errors import JobError
from batcher.job.endpoint import Endpoint

__all__ = ["simulated_gateway"]


@contextlib.asynccontextmanager
async def simulated_gateway() -> AsyncIterator[Endpoint]:
    """Runs the simulated gateway in a process that ends with this one; yields its endpoint."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "batcher",
        "simulate",
        "--port",
        "0",
        "--until-stdin-closes",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode().strip()
        if not line.startswith("http"):
            raise JobError("The simulated gateway did not start; see its message above.")
        yield Endpoint(f"{line}/chat/completions", "simulated:")
    finally:
        if process.stdin is not None:
            process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
