"""A server of raw sockets that sends what it is told, whatever HTTP says of it."""

import asyncio
import contextlib


class Server:
    """Sends canned bytes for each request; counts connections, keeps requests.

    Args:
        sends: What to send, in turn, for each request; a number is a wait in seconds, None closes.
    """

    def __init__(self, *sends):
        self.sends = sends
        self.connections = 0
        self.requests = []
        self.serving = set()

    async def __aenter__(self):
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self.server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v1/chat/completions"
        return self

    async def __aexit__(self, *_):
        self.server.close()
        for task in self.serving:
            task.cancel()
        await asyncio.gather(*self.serving, return_exceptions=True)

    async def _serve(self, reader, writer):
        self.connections += 1
        self.serving.add(asyncio.current_task())
        with (
            contextlib.closing(writer),
            contextlib.suppress(
                ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError
            ),
        ):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().split(b"content-length:")[1].split(b"\r\n")[0]
                self.requests.append((head, await reader.readexactly(int(length))))
                if await self.answer(writer, self.requests[-1][1]):
                    return

    async def answer(self, writer, _body):
        """Sends what there is to send; whether the connection is closed then."""
        for part in self.sends:
            if part is None:
                return True
            if isinstance(part, bytes):
                writer.write(part)
                await writer.drain()
            else:
                await asyncio.sleep(part)
        return False
