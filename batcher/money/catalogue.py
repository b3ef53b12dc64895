"""What a gateway lists of its models' prices. Touches: the network, files (a copy for the next time).

Only gateways that are known to tell prices are asked for them, and without the key or headers of the
user: the list is public. The models that a key may use are asked for as a row is, with both.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
from multidict import CIMultiDict

from batcher.errors import JobError, OutputError
from batcher.job.endpoint import Endpoint, proxy_of
from batcher.write.atomic import replacing

__all__ = ["address", "fetch", "names"]

_SECONDS = 5.0
_MOST_BYTES = 64 << 20
_CHAT = "/chat/completions"

Listed = tuple[Any, str]
"""What came, decoded, and the day it came."""


def address(endpoint: Endpoint) -> str | None:
    """Where a gateway lists prices; None when it is not known to."""
    host = urlsplit(endpoint.url).hostname or ""
    base = endpoint.url.removesuffix(_CHAT)
    if endpoint.name == "simulated:" or host == "aihubmix.com" or host.endswith(".aihubmix.com"):
        return f"{base.removesuffix('/v1')}/api/v1/models"
    return f"{base}/models" if host == "openrouter.ai" else None


async def names(endpoint: Endpoint) -> list[str]:
    """IDs of the models that a gateway offers to this key.

    Raises:
        JobError: It does not say.
    """
    url = f"{endpoint.url.removesuffix(_CHAT)}/models"
    try:
        data = msgspec.json.decode(await _get(url, endpoint))
        return sorted({str(of["id"]) for of in data["data"]})
    except aiohttp.ClientResponseError as error:
        raise JobError(f"{url}: the gateway answers {error.status} {error.message}.") from None
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError, TypeError) as error:
        raise JobError(f"{url}: its models cannot be had: {_why(error)}.") from None


async def fetch(endpoint: Endpoint, say: Callable[[str], None]) -> Listed | None:
    """What the gateway lists now, or listed when it was asked last; None for nothing.

    Args:
        endpoint: The gateway.
        say: Told when it cannot be had.
    """
    url = address(endpoint)
    if url is None:
        return None
    today = time.strftime("%Y-%m-%d")
    copy = _copy(urlsplit(url).hostname or "")
    try:
        content = await _get(url)
        data = msgspec.json.decode(content)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        try:
            data = msgspec.json.decode(copy.read_bytes())
            since = time.strftime("%Y-%m-%d", time.localtime(copy.stat().st_mtime))
        except (OSError, ValueError):
            say(
                f"{url}: prices cannot be had ({_why(error)}); costs are not known. --prices FILE "
                "tells them."
            )
            return None
        return data, since
    if endpoint.name != "simulated:":
        await asyncio.to_thread(_keep, copy, content)
    return data, today


async def _get(url: str, endpoint: Endpoint | None = None) -> bytes:
    """What stands there; asked for by the user of an endpoint, who is not redirected to another host."""
    timeout = aiohttp.ClientTimeout(total=_SECONDS)
    proxy = proxy_of(url, os.environ)
    login = {} if proxy is None else proxy.headers
    async with aiohttp.ClientSession(timeout=timeout) as session:
        headers = CIMultiDict({"User-Agent": "batcher"})
        if endpoint is not None:
            headers.update(endpoint.headers)
            if endpoint.key:
                headers["Authorization"] = f"Bearer {endpoint.key}"
        if urlsplit(url).scheme == "http":  # Else only the tunnel's beginning carries it.
            headers.update(login)
        known = endpoint is not None and (endpoint.key or endpoint.headers)
        async with session.get(
            url,
            headers=headers,
            allow_redirects=not known,
            proxy=None if proxy is None else proxy.url,
            proxy_headers=login,
        ) as reply:
            reply.raise_for_status()
            content = await reply.content.read(_MOST_BYTES)
            while more := await reply.content.read(_MOST_BYTES - len(content)):
                content += more
            return content


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {_SECONDS:g} s"
    return str(error) or type(error).__name__


def _copy(host: str) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "batcher" / f"prices-{host}.json"


def _keep(copy: Path, content: bytes) -> None:
    """Keeps a copy, where there is a place for it."""
    with contextlib.suppress(OSError, OutputError):
        copy.parent.mkdir(parents=True, exist_ok=True)
        with replacing(copy, of_run=False) as file:
            file.write(content)
