"""`batcher simulate`: the embedded gateway alone, on a port. Touches: the terminal."""

from __future__ import annotations

import signal
import sys
from typing import Annotated

from cyclopts import Parameter

from batcher.errors import JobError
from batcher.live.terminal import say

__all__ = ["simulate"]


def simulate(
    *,
    port: int = 8765,
    seed: int = 0,
    speed: float = 1.0,
    rpm: float | None = None,
    tpm: float | None = None,
    max_in_flight: int | None = None,
    cache_writes: Annotated[bool, Parameter(negative="")] = False,
    fault: Annotated[
        tuple[str, ...], Parameter(negative_iterable="", consume_multiple=False)
    ] = (),
    until_stdin_closes: Annotated[bool, Parameter(show=False, negative="")] = False,
) -> int:
    """Run the simulated gateway: models sim-small, sim-medium, sim-large; no key.

    It prints its base URL, answers POST /v1/chat/completions, and tells at GET /ledger what it
    received and billed.

    Args:
        port: Port on 127.0.0.1; 0 takes a free one.
        seed: Answers, latencies and faults follow from it.
        speed: How many times faster than real it answers; 0 is at once.
        rpm: Requests a minute that each model takes; more are answered 429.
        tpm: Tokens a minute that each model takes; more are answered 429.
        max_in_flight: Requests at once that are taken; more are answered 503.
        cache_writes: Report and bill prompt tokens written to the cache, at 1.25 times the input price.
        fault: NAME=SHARE, such as http_500=0.05; repeatable. Names: see the README.
        until_stdin_closes: Ends with the process that started it.
    """
    import asyncio

    import uvloop

    from batcher.simulate import server
    from batcher.simulate.settings import Simulation

    try:
        faults = {name: float(share) for name, _, share in (text.partition("=") for text in fault)}
        simulation = Simulation(
            port=port,
            seed=seed,
            speed=speed,
            rpm=rpm,
            tpm=tpm,
            max_in_flight=max_in_flight,
            cache_writes=cache_writes,
            faults=faults,
        )
    except ValueError as error:
        raise JobError(
            f"simulate: {error}; faults are NAME=SHARE, such as http_500=0.05."
        ) from None

    async def serve() -> None:
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, ended.set)
        running = await server.start(simulation)
        say(running.url, flush=True)
        if until_stdin_closes:
            loop.add_reader(sys.stdin.fileno(), ended.set)
        else:
            say("The simulated gateway is up; end it with Ctrl-C.", error=True)
        await ended.wait()
        await running.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(serve())
        except OSError as error:
            raise JobError(f"simulate: port {port} cannot be used: {error.strerror}.") from None
    return 0
