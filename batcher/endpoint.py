"""Where requests go, and with which key. Touches: nothing; the environment is given.

A key goes to one host only: that of AiHubMix to AiHubMix, that of OpenAI to OpenAI and to the address
that stands beside it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from batcher.errors import JobError

__all__ = ["AIHUBMIX", "Endpoint", "endpoint_of", "is_loopback"]

AIHUBMIX = "https://aihubmix.com/v1"
OPENAI = "https://api.openai.com/v1"
AIHUBMIX_KEY, OPENAI_KEY = "AIHUBMIX_API_KEY", "OPENAI_API_KEY"


@dataclass(frozen=True)
class Endpoint:
    """Where requests go.

    Attributes:
        url: Full address of `chat/completions`.
        name: The address as a part of each request's identity; the simulated gateway has one name
            on whatever port it listens.
        key: The API key; None for a server that wants none. Kept out of `repr`.
        headers: Name and value of those to send besides. Kept out of `repr`.
        secrets: Those of their values that must be shown nowhere. Kept out of `repr`.
    """

    url: str
    name: str
    key: str | None = field(default=None, repr=False)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)


def endpoint_of(
    base_url: str | None,
    key_env: str | None,
    environment: Mapping[str, str],
    *,
    keyless: bool = False,
) -> Endpoint:
    """The address and key: as asked, else AiHubMix, else OPENAI_*.

    Args:
        base_url: As asked.
        key_env: Name of the variable that holds the key, as asked.
        environment: Where it stands.
        keyless: Whether a header says who is asking, so that no key is needed.

    Raises:
        JobError: The address is not one, or the key that goes with it is not set.
    """
    base = (base_url or _default_base(key_env, environment)).strip()
    try:
        parts = urlsplit(base)
        host, _port = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not host:
        raise JobError(
            f"--base-url {_without_secrets(base)!r} is not an address; "
            "write it in full, such as https://aihubmix.com/v1."
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise JobError(
            "--base-url must carry no user, password, query or fragment; the key comes from the "
            "environment (--api-key-env)."
        )
    url = base.rstrip("/")
    url = url if url.endswith("/chat/completions") else f"{url}/chat/completions"
    key_name = key_env or _key_name(base, host, environment)
    if parts.scheme == "http" and _key_name(base, host, {}) is not None:
        raise JobError(
            f"--base-url {base}: the key would go there for everybody on the way to read; write https."
        )
    if keyless and key_env is None and not (key_name and environment.get(key_name)):
        return Endpoint(url, url)
    if key_name is None:
        if is_loopback(host):
            return Endpoint(url, url)
        raise JobError(
            f"No API key for {host}: name the environment variable that holds it with "
            f"--api-key-env ({AIHUBMIX_KEY} goes only to AiHubMix, {OPENAI_KEY} only to "
            "OpenAI and to OPENAI_BASE_URL)."
        )
    key = environment.get(key_name, "").strip()
    if not key:
        # Somebody may have given the key itself in the place of its name.
        name = key_name if re.fullmatch(r"[A-Z][A-Z0-9_]*", key_name) else "that variable"
        raise JobError(
            f"No API key for {host}: set {name} in the environment "
            "(or name another variable with --api-key-env; or try --simulate, which needs none)."
        )
    if not key.isascii() or not key.isprintable():
        raise JobError(f"{key_name} holds characters that no HTTP header can carry; set it anew.")
    return Endpoint(url, url, key)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine: there no key is needed, and no proxy is between."""
    return host in ("localhost", "::1") or host.startswith("127.")


def _default_base(key_name: str | None, environment: Mapping[str, str]) -> str:
    """Where requests go when no address is given: AiHubMix unless all that is set is OpenAI's."""
    openai = key_name == OPENAI_KEY or (
        AIHUBMIX_KEY not in environment
        and ("OPENAI_BASE_URL" in environment or (OPENAI_KEY in environment and not key_name))
    )
    return environment.get("OPENAI_BASE_URL", OPENAI) if openai else AIHUBMIX


def _key_name(base: str, host: str, environment: Mapping[str, str]) -> str | None:
    """The variable whose key belongs to this host; None for hosts to which none belongs."""
    if host == "aihubmix.com" or host.endswith(".aihubmix.com"):
        return AIHUBMIX_KEY
    if host == "api.openai.com":
        return OPENAI_KEY
    theirs = environment.get("OPENAI_BASE_URL")
    if theirs and urlsplit(theirs).hostname == host and OPENAI_KEY in environment:
        return OPENAI_KEY
    return None


def _without_secrets(url: str) -> str:
    return url.rpartition("@")[2] if "@" in url else url
