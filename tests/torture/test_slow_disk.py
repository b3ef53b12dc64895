"""A disk that takes half a second to sync: the event loop does not feel it, nor does memory."""

import asyncio
import os
import time

from batcher.records import Outcome, Result
from batcher.write import segment
from batcher.write.journal import Journal
from tests.torture import tell, times

RATE = 500  # results a second
SECONDS = times(3, 30)


async def lag(log):
    """Seconds that a short sleep took too long, at the 99th percentile."""
    late = []
    begun = time.monotonic()
    row = 0
    while (now := time.monotonic()) < begun + SECONDS:
        while row < (now - begun) * RATE:
            if log is not None:
                log.put(Result(row=row, model="m", sample=0, key=f"{row:032x}", status=Outcome.OK,
                               custom_id=str(row), content="x" * 1000))  # fmt: skip
            row += 1
        await asyncio.sleep(0.005)
        late.append(time.monotonic() - now - 0.005)
    return sorted(late)[int(0.99 * len(late))]


def test_a_slow_sync_is_not_felt_by_the_loop(tmp_path, monkeypatch):
    """Every request in flight would wait for it; a loop without a journal is the measure here."""
    sync = os.fdatasync
    monkeypatch.setattr(segment.os, "fdatasync", lambda file: (time.sleep(0.5), sync(file))[1])
    log = Journal(tmp_path)
    slow, most = asyncio.run(lag(log)), log._bytes_put - log._bytes_taken
    log.close()
    bare = asyncio.run(lag(None))
    tell(
        "syncs of 500 ms",
        lag_p99_ms=round(slow * 1000, 2),
        without_a_journal=round(bare * 1000, 2),
    )
    assert slow < max(0.02, 3 * bare)
    assert most < 8 << 20
