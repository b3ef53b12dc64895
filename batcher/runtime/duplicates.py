"""The answers of requests that were not sent, as each equals another one. Touches: files (reads)."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from batcher.plan.dedupe import Deduplicator
from batcher.read.inputs import Inputs
from batcher.runtime.feed import in_thread
from batcher.runtime.sink import Sink

__all__ = ["copy_answers"]


async def copy_answers(
    dedupe: Deduplicator, inputs: Inputs, sink: Sink, stop: asyncio.Event
) -> None:
    """Gives each request that was held back the answer to its equal, once all others are answered.

    Args:
        dedupe: Held them back.
        inputs: The rows.
        sink: Takes the copies. Its journal is a new one, as answers are read from the closed one.
        stop: Ends the work after the present batch.
    """
    async with aclosing(in_thread(dedupe.copies(inputs), stop)) as batches:
        async for batch in batches:
            for prompt, results in batch:
                for left, result in enumerate(reversed(results)):
                    await sink.put(result, prompt, last=not left)
            await sink.room()
