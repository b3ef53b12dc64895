"""What goes on beside a run while it sends: live view, heartbeat, deadline, guard. Touches: files, the clock."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from batcher.errors import OutputError
from batcher.live.progress import Snapshot
from batcher.runtime.backend import Backend
from batcher.runtime.run_folder import RunFolder
from batcher.runtime.snapshot import heartbeat
from batcher.write import status

__all__ = ["Watch", "watched"]

Watch = Callable[[Callable[[], Snapshot]], Awaitable[None]]
"""Shows a run until it is cancelled; the callable gives the present state."""

_BEAT_SECONDS = 5.0
_LOOK_SECONDS, _MUCH_MORE = 0.02, 1.1
_GUARD_SECONDS = 0.2


@contextlib.asynccontextmanager
async def watched(
    backend: Backend,
    folder: RunFolder,
    state: Callable[[], Snapshot],
    watch: Watch,
    deadline: tuple[float, Exception] | None,
) -> AsyncIterator[None]:
    """Shows and guards a run while the body sends.

    Args:
        backend: Sends; is stopped when the folder is lost or the deadline is over.
        folder: The run folder.
        state: Gives the present state.
        watch: Shows it.
        deadline: Seconds until it is over, and why the run stops then; None for none.
    """
    timer = None
    if deadline is not None:
        timer = asyncio.get_running_loop().call_later(deadline[0], backend.stop, deadline[1])
    watching = asyncio.gather(
        watch(state), _beat(folder.path, backend, state), _guard(folder, backend)
    )
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching


async def _beat(folder: Path, backend: Backend, state: Callable[[], Snapshot]) -> None:
    """Keeps `status.json` fresh: every few seconds, and at once when many more requests are in flight.

    After a kill the file is all that says how many requests may have been billed. The number is polled: an
    event for each request would cost every row, a look costs a few hundred nanoseconds.
    """
    while True:
        written = backend.in_flight
        await asyncio.to_thread(status.save, folder, heartbeat(state()))
        until = time.monotonic() + _BEAT_SECONDS
        while time.monotonic() < until and backend.in_flight <= written * _MUCH_MORE:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_SECONDS)


async def _guard(folder: RunFolder, backend: Backend) -> None:
    """Stops the run when its folder was moved or removed, so that no answer is paid for and lost.

    A poll: no event tells of that on every file system. What is sent within one interval may be lost.
    """
    while True:
        await asyncio.sleep(_GUARD_SECONDS)
        what = await asyncio.to_thread(
            lambda: folder.check(journal_removed=backend.journal_removed())
        )
        if what is not None:
            backend.stop(OutputError(what))
            return
