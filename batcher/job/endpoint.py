"""Where requests go, and with which key. Touches: nothing; the environment is passed in.

A key is sent to its own host only: AIHUBMIX_API_KEY to AiHubMix, OPENAI_API_KEY to OpenAI and to the host of
OPENAI_BASE_URL.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # Not in typeshed.

from yarl import URL

from batcher.errors import JobError

__all__ = ["AIHUBMIX", "Endpoint", "Proxy", "endpoint_of", "is_loopback", "proxy_of"]

AIHUBMIX = "https://aihubmix.com/v1"
OPENAI = "https://api.openai.com/v1"
AIHUBMIX_KEY, OPENAI_KEY = "AIHUBMIX_API_KEY", "OPENAI_API_KEY"
_CHAT = "/chat/completions"
_MAX_PORT = 65_535


@dataclass(frozen=True)
class Endpoint:
    """Where requests go.

    Attributes:
        url: Full address of `chat/completions`.
        name: The address as a part of each request's key; the simulated gateway has one name on
            any port.
        key: The API key; None for a server that needs none. Kept out of `repr`.
        headers: Names and values of additional headers. Kept out of `repr`.
        secrets: The values among them that must never be shown. Kept out of `repr`.
        unsent: Names of set variables whose key belongs to another host.
    """

    url: str
    name: str
    key: str | None = field(default=None, repr=False)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)
    unsent: tuple[str, ...] = ()

    @property
    def base(self) -> str:
        """The base address, as in `--base-url`."""
        return self.url.removesuffix(_CHAT)

    @property
    def host(self) -> str:
        """Host and port."""
        return urlsplit(self.url).netloc

    def at_version(self) -> Endpoint | None:
        """The endpoint with `/v1` after the base address; None where that has a version."""
        if re.search(r"/v\d", urlsplit(self.base).path):
            return None
        return replace(self, url=f"{self.base}/v1{_CHAT}")


@dataclass(frozen=True)
class Proxy:
    """A proxy that requests go through.

    Attributes:
        url: Its address, without a password.
        login: User and password; None for none. Kept out of `repr`.
    """

    url: str
    login: tuple[str, str] | None = field(default=None, repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """Headers for the proxy itself."""
        if self.login is None:
            return {}
        return {
            "Proxy-Authorization": f"Basic {b64encode(':'.join(self.login).encode()).decode()}"
        }


def endpoint_of(
    base_url: str | None,
    key_env: str | None,
    environment: Mapping[str, str],
    *,
    keyless: bool = False,
) -> Endpoint:
    """The endpoint of `--base-url`, else of AiHubMix, else of OPENAI_*.

    Args:
        base_url: From `--base-url`; None for the default.
        key_env: Name of the variable that holds the key, from `--api-key-env`.
        environment: Holds the key.
        keyless: Whether a header identifies the sender, so that no key is needed.

    Raises:
        JobError: The address is invalid, or its key is not set.
    """
    base, host = _checked_base(base_url, key_env, environment)
    url = base.rstrip("/")
    url = url if url.endswith(_CHAT) else f"{url}{_CHAT}"
    proxy_of(url, environment)  # Raises before anything is sent where the proxy cannot be used.
    key_name = key_env or _key_name(base, host, environment)
    if urlsplit(base).scheme == "http" and _key_name(base, host, {}) is not None:
        raise JobError(
            f"--base-url {base}: over http the key can be read on the way; write https."
        )
    unsent = tuple(name for name in (OPENAI_KEY, AIHUBMIX_KEY) if environment.get(name))
    if keyless and key_env is None and not (key_name and environment.get(key_name)):
        return Endpoint(url, url, unsent=unsent)
    if key_name is None:
        if is_loopback(host):
            return Endpoint(url, url, unsent=unsent)
        raise JobError(
            f"No API key for {host}: name the environment variable that holds it with "
            f"--api-key-env ({AIHUBMIX_KEY} goes only to AiHubMix, {OPENAI_KEY} only to "
            "OpenAI and to OPENAI_BASE_URL)."
        )
    key = environment.get(key_name, "").strip()
    if not key:
        # The user may have given the key itself in place of its name.
        name = key_name if re.fullmatch(r"[A-Z][A-Z0-9_]*", key_name) else "that variable"
        raise JobError(
            f"No API key for {host}: set {name} in the environment "
            "(or name another variable with --api-key-env; or try --simulate, which needs none)."
        )
    if not key.isascii() or not key.isprintable():
        raise JobError(f"{key_name} holds characters that no HTTP header can carry; set it again.")
    return Endpoint(url, url, key)


def _checked_base(
    base_url: str | None, key_env: str | None, environment: Mapping[str, str]
) -> tuple[str, str]:
    """(base address, its host)."""
    # An empty --base-url is most likely a shell variable that is not set; no other host is meant.
    base = (_default_base(key_env, environment) if base_url is None else base_url).strip()
    origin = "OPENAI_BASE_URL" if base_url is None else "--base-url"
    parts = _address(base)
    host = None if parts is None else parts.hostname
    if parts is None or parts.scheme not in ("http", "https") or not host:
        raise JobError(
            f"{origin} {_without_secrets(base)!a} is not an address; "
            "write it in full, such as https://aihubmix.com/v1."
        )
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise JobError(
            f"{origin} must carry no user, password, query or fragment; the key comes from the "
            "environment (--api-key-env)."
        )
    return base, host


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, which needs no key and is reached without a proxy."""
    return host in ("localhost", "::1") or host.startswith("127.")


def _default_base(key_name: str | None, environment: Mapping[str, str]) -> str:
    """The base address when none is given: AiHubMix, unless only OpenAI's variables are set."""
    openai = key_name == OPENAI_KEY or bool(
        AIHUBMIX_KEY not in environment
        and (environment.get("OPENAI_BASE_URL") or (OPENAI_KEY in environment and not key_name))
    )
    return environment.get("OPENAI_BASE_URL") or OPENAI if openai else AIHUBMIX


def _key_name(base: str, host: str, environment: Mapping[str, str]) -> str | None:
    """The variable whose key belongs to a host; None where no key is known to belong."""
    if host == "aihubmix.com" or host.endswith(".aihubmix.com"):
        return AIHUBMIX_KEY
    if host == "api.openai.com":
        return OPENAI_KEY
    openai = _address(environment.get("OPENAI_BASE_URL", "").strip())
    if openai is not None and openai.hostname == host and OPENAI_KEY in environment:
        return OPENAI_KEY
    return None


def _address(text: str) -> SplitResult | None:
    """The parts of an address that one can connect to; None for any other text."""
    if re.search(
        r"[\x00-\x20\x7f-\xa0\\\ufffd\ud800-\udfff]", text
    ):  # urlsplit drops some of these.
        return None
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
        encoded = URL(text).raw_host or ""
        encoded.encode("idna")  # As the lookup of the name does.
    except ValueError:  # UnicodeError is one.
        return None
    whole = bool(host and encoded) and not parts.netloc.endswith(":") and "%" not in host
    return parts if whole and (port is None or 0 < port <= _MAX_PORT) else None


def _without_secrets(text: str) -> str:
    """An address for a message, without anything that may be a password or a key."""
    text = re.split(r"[?#]", text.rpartition("@")[2])[0]
    return re.sub(r"(?<=[^/:]):(?!//|\d{1,5}(?:/|$))[^/]*", ":...", text)[:200]


def proxy_of(url: str, environment: Mapping[str, str]) -> Proxy | None:
    """The proxy for requests to an address; None for none.

    `HTTPS_PROXY` or `HTTP_PROXY`, by the scheme of the address, else `ALL_PROXY`; lower case comes first,
    and an empty value means no proxy. `NO_PROXY` lists hosts that are reached directly.

    Raises:
        JobError: The proxy cannot be used. The message omits its address, which may hold a password.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    names = [f"{scheme}_proxy" for scheme in (parts.scheme, "all")]
    spellings = (spelling for name in names for spelling in (name, name.upper()))
    name = next((spelling for spelling in spellings if spelling in environment), None)
    value = "" if name is None else environment[name].strip()
    exempt = environment.get("no_proxy", environment.get("NO_PROXY", ""))
    listed = host if ":" in host else parts.netloc  # With its port, which NO_PROXY may name.
    if not value or is_loopback(host) or proxy_bypass_environment(listed, {"no": exempt}):
        return None
    scheme, apart, rest = value.rpartition("://")
    scheme = scheme.lower() if apart else "http"
    if scheme.startswith("socks"):
        raise JobError(
            f"{name} names a SOCKS proxy, and batcher can only use HTTP proxies. Set {name} to one, or "
            f"NO_PROXY={host} to go without."
        )
    login = None
    proxy = _address(f"{scheme}://{rest}") if scheme in ("http", "https") else None
    if proxy is not None and "@" in proxy.netloc:
        login = unquote(proxy.username or ""), unquote(proxy.password or "")
    if (
        proxy is None
        or proxy.path not in ("", "/")
        or proxy.query
        or proxy.fragment
        or ":" in (login or ("",))[0]
    ):
        raise JobError(
            f"{name} is not the address of a proxy. Write it as http://HOST:PORT or "
            "http://USER:PASSWORD@HOST:PORT, with %40 for @, %3A for :, %2F for / in user and password."
        )
    return Proxy(f"{scheme}://{proxy.netloc.rpartition('@')[2]}", login)
