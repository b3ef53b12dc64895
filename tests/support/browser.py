# ruff: noqa: ASYNC220, ASYNC240 (a test that waits for a file holds nobody up)
"""A page in a real headless Chromium, looked at through its DevTools protocol.

The protocol is JSON over a WebSocket on loopback; `Browser` speaks the few words that tests need.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--remote-debugging-port=0", "--hide-scrollbars",
)  # fmt: skip


class Browser:
    """One page of one Chromium.

    Attributes:
        complaints: What the console said that is an error, exceptions, and refused loads.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self.complaints: list[str] = []

    async def listen(self) -> None:
        async for message in self._socket:
            told = json.loads(message.data)
            if "id" in told:
                self._answers.pop(told["id"]).set_result(told)
            elif told["method"] == "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(told["params"])[:500])
            elif told["method"] == "Runtime.consoleAPICalled":
                if told["params"]["type"] in ("error", "warning", "assert"):
                    self.complaints.append(json.dumps(told["params"]["args"])[:500])
            elif told["method"] == "Log.entryAdded":
                self.complaints.append(told["params"]["entry"]["text"])

    async def call(self, method: str, **params: Any) -> Any:
        self._number += 1
        answer = self._answers[self._number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": self._number, "method": method, "params": params})
        told = await asyncio.wait_for(answer, 60)
        assert "error" not in told, told
        return told["result"]

    async def run(self, script: str) -> Any:
        """What a JavaScript expression is, awaited."""
        told = await self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    async def until(self, script: str) -> None:
        """Waits until an expression is true."""
        for _ in range(600):
            if await self.run(script):
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"never came true: {script}")

    async def screen(self, width: int, height: int, *, dark: bool = False) -> None:
        """Sets size and colour scheme."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 800}
        await self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def picture(self, path: Path) -> None:
        """All of the page as PNG."""
        told = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(told["data"]))


@contextlib.asynccontextmanager
async def opened(page: Path, *, width: int = 1280, dark: bool = False) -> AsyncIterator[Browser]:
    """A page from a file."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        words = [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port = await _port(Path(profile) / "DevToolsActivePort")
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
                    targets = await response.json()
                url = next(of["webSocketDebuggerUrl"] for of in targets if of["type"] == "page")
                async with session.ws_connect(url, max_msg_size=0) as socket:
                    browser = Browser(socket)
                    listening = asyncio.create_task(browser.listen())
                    for domain in ("Page", "Runtime", "Log"):
                        await browser.call(f"{domain}.enable")
                    await browser.screen(width, 900, dark=dark)
                    await browser.call("Page.navigate", url=page.resolve().as_uri())
                    await browser.until("document.readyState === 'complete'")
                    yield browser
                    listening.cancel()
        finally:
            process.kill()
            process.wait()


async def _port(path: Path) -> int:
    for _ in range(600):
        with contextlib.suppress(FileNotFoundError, IndexError, ValueError):
            return int(path.read_text().split()[0])
        await asyncio.sleep(0.05)
    raise AssertionError("Chromium did not start")
