"""One HTTP exchange, and nothing about chat. Touches: the network.

aiohttp's exceptions end here: what goes wrong below HTTP comes out as `NoAnswer`.
"""

from __future__ import annotations

import contextlib
import resource
import ssl
from collections.abc import Mapping
from types import TracebackType
from typing import NamedTuple, Self

import aiohttp
from multidict import CIMultiDict

from batcher.errors import BadResponse, NoAnswer
from batcher.job import Endpoint
from batcher.records import Outcome

__all__ = ["Client", "Reply"]

_CONNECT_SECONDS = 30.0
_MOST_BYTES = 64 << 20
_MOST_HEADER_BYTES = 64 << 10


class Reply(NamedTuple):
    """What the server sent.

    Attributes:
        status: HTTP status.
        headers: As received, names in any case.
        body: Decompressed.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


class Client:
    """A pool of connections to one address; an async context manager.

    Args:
        endpoint: Address and key.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._url = endpoint.url
        self._headers = {"Content-Type": "application/json", "User-Agent": "batcher"}
        if endpoint.key:
            self._headers["Authorization"] = f"Bearer {endpoint.key}"
        self._key = endpoint.key or ""
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        _raise_open_files()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
            trust_env=True,
            max_line_size=_MOST_HEADER_BYTES,
            max_field_size=_MOST_HEADER_BYTES,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def post(self, body: bytes, timeout: float) -> Reply:  # noqa: ASYNC109 (aiohttp keeps it)
        """Sends the body and reads the whole answer, of at most 64 MB.

        A redirect is not followed: it would carry the key, or turn the POST into a GET.

        Args:
            body: The exact bytes.
            timeout: Seconds for the whole exchange, however slowly bytes come.

        Raises:
            NoAnswer: Connection or time; `outcome` says which.
            BadResponse: The answer is too large or its compression is broken.
        """
        if self._session is None:
            raise RuntimeError("Client is used outside of its `async with`")
        try:
            async with self._session.post(
                self._url,
                data=body,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=timeout, sock_connect=_CONNECT_SECONDS),
            ) as response:
                body = await _bounded(response)
                return self._without_key(response.status, response.headers, body)
        except TimeoutError as error:
            connecting = isinstance(error, aiohttp.ConnectionTimeoutError)
            limit = _CONNECT_SECONDS if connecting else timeout
            what = "connection" if connecting else "whole answer"
            raise NoAnswer(f"no {what} within {limit:g} s", outcome=Outcome.TIMEOUT) from None
        except aiohttp.ContentTypeError as error:
            raise BadResponse(f"the answer cannot be read: {error}") from None
        except (aiohttp.ClientPayloadError, aiohttp.http_exceptions.HttpProcessingError) as error:
            raise NoAnswer(f"the answer was cut: {_short(error)}") from None
        except (aiohttp.ClientError, ssl.SSLError, OSError) as error:
            raise NoAnswer(f"no connection: {_short(error)}") from None

    def _without_key(self, status: int, headers: Mapping[str, str], body: bytes) -> Reply:
        """The reply; some gateways echo the key in their errors, or in a header."""
        if self._key:
            if (key := self._key.encode()) in body:
                body = body.replace(key, b"[key]")
            if any(self._key in value for value in headers.values()):
                clean = (
                    (name, value.replace(self._key, "[key]")) for name, value in headers.items()
                )
                headers = CIMultiDict(clean)
        return Reply(status, headers, body)


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    length = response.content_length
    if length is not None and length > _MOST_BYTES:
        response.close()
        raise BadResponse(f"the answer is {length:,} bytes long; {_MOST_BYTES:,} is the most")
    chunks, size = [], 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > _MOST_BYTES:
            response.close()
            raise BadResponse(f"the answer is longer than {_MOST_BYTES:,} bytes")
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _short(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:300]


def _raise_open_files() -> None:
    """A thousand connections need more open files than most systems allow at first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        # Where even that is refused, the connections that are possible have to do.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
