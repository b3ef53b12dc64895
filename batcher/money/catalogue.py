"""Fetches a gateway's list of models and prices. Touches: the network, files (a copy for the next time).

Only gateways that are known to publish prices are asked for them, without the key or the headers of the
user: the list is public. The models that a key may use are asked for like a row, with both.
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
"""A list of models, decoded, and the day it was fetched."""


def address(endpoint: Endpoint) -> str | None:
    """The URL of a gateway's price list; None when none is known."""
    host = urlsplit(endpoint.url).hostname or ""
    base = endpoint.url.removesuffix(_CHAT)
    if endpoint.name == "simulated:" or host == "aihubmix.com" or host.endswith(".aihubmix.com"):
        return f"{base.removesuffix('/v1')}/api/v1/models"
    return f"{base}/models" if host == "openrouter.ai" else None


async def names(endpoint: Endpoint) -> list[str]:
    """IDs of the models that a gateway offers to this key.

    Raises:
        JobError: It does not list them.
    """
    url = f"{endpoint.url.removesuffix(_CHAT)}/models"
    try:
        data = msgspec.json.decode(await _get(url, endpoint))
        return sorted({str(model["id"]) for model in data["data"]})
    except aiohttp.ClientResponseError as error:
        raise JobError(f"{url}: the gateway answers {error.status} {error.message}.") from None
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError, TypeError) as error:
        raise JobError(f"{url}: its models cannot be fetched: {_why(error)}.") from None


async def fetch(endpoint: Endpoint, say: Callable[[str], None]) -> Listed | None:
    """The gateway's list of today, else the copy of the last one; None for neither.

    Args:
        endpoint: The gateway.
        say: Called when there is neither.
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
                f"{url}: prices cannot be fetched ({_why(error)}), so costs are not known. Name them with "
                "--prices FILE."
            )
            return None
        return data, since
    if endpoint.name != "simulated:":
        await asyncio.to_thread(_keep, copy, content)
    return data, today


async def _get(url: str, endpoint: Endpoint | None = None) -> bytes:
    """The content at a URL; with an endpoint, its key and headers go along and redirects are not followed."""
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
    """Keeps a copy, if the folder can be written."""
    with contextlib.suppress(OSError, OutputError):
        copy.parent.mkdir(parents=True, exist_ok=True)
        with replacing(copy, of_run=False) as file:
            file.write(content)
