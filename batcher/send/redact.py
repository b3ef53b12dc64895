"""Removes the key, secret headers and the proxy's password from what a server sends. Touches: nothing.

Some gateways repeat them in their errors or in a header.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import chain

from multidict import CIMultiDict

from batcher.job.endpoint import Endpoint, Proxy
from batcher.records import clean

__all__ = ["Redactor"]

_ESCAPED = r"\\{1,8}"  # Without a bound, a long run of them would be read again from each of them.
_MAX_ERROR = 300
_ERROR_BYTES = (
    64 << 10
)  # An error of this length is searched for a key that JSON writes differently.
_MIN_SECRET, _MIN_RANDOM, _MIN_PASSWORD = 8, 16, 4


class Redactor:
    """Removes the secrets of one endpoint.

    A word such as "none" in the place of a key is no secret. What may stand in an answer by chance, such
    as 00000000, is removed from errors and headers only.

    Args:
        endpoint: Its key and headers.
        proxy: What requests go through, if anything.
    """

    def __init__(self, endpoint: Endpoint, proxy: Proxy | None) -> None:
        self._key = key if _is_secret(key := endpoint.key or "") else ""
        self._key_bytes = self._key.encode()
        self._key_by_chance = not _is_random(self._key)
        self._key_spelled = _any_spelling(self._key) if self._key else None
        # The longest part of the key that JSON writes in one way only.
        parts = re.findall(rb"[A-Za-z0-9]+", self._key_bytes)
        self._key_part = max(parts, key=len, default=b"")
        secrets = [secret for secret in endpoint.secrets if _is_secret(secret)]
        self._secrets = [_any_spelling(secret) for secret in secrets]
        self._secrets_by_chance = not all(map(_is_random, secrets))
        login = () if proxy is None else proxy.login or ()
        sent = {} if proxy is None else proxy.headers
        tokens = (value.partition(" ")[2] for value in sent.values())  # Without the word `Basic`.
        self._passwords = [word for word in (*login[1:], *tokens) if len(word) >= _MIN_PASSWORD]

    def error(self, error: BaseException | str) -> str:
        """The text of an error, which may quote what was received."""
        text: str = clean(" ".join((str(error) or type(error).__name__).split()))
        if self._key_spelled is not None:
            text = self._key_spelled.sub(b"[key]", text.encode()).decode()
        for word in self._passwords:
            text = text.replace(word, "[password]")
        return self._without_secrets(text.encode()).decode()[:_MAX_ERROR]

    def body(self, status: int, body: bytes) -> bytes:
        """The body of a reply; also one that was put together from the events of a stream."""
        if self._key_bytes or self._secrets:
            body = self._without_key(status, body)
        if status >= 300:  # Perhaps of the proxy.
            for word in self._passwords:
                body = body.replace(word.encode(), b"[password]")
        return body

    def _without_key(self, status: int, body: bytes) -> bytes:
        is_answer = 200 <= status < 300
        if (self._key_by_chance or self._secrets_by_chance) and is_answer:
            is_answer = b'"choices"' in body or b'"error"' not in body
        if (key := self._key_bytes) and not (is_answer and self._key_by_chance):
            if key in body:
                body = body.replace(key, b"[key]")
            # Letters and digits are spelled differently only in errors, if ever.
            if (
                self._key_spelled is not None
                and (b"\\u" in body or b"\\/" in body)
                and (self._key_part in body or (status >= 400 and len(body) <= _ERROR_BYTES))
            ):
                body = self._key_spelled.sub(b"[key]", body)
        if self._secrets and not (is_answer and self._secrets_by_chance):
            body = self._without_secrets(body)
        return body

    def headers(
        self, status: int, headers: Mapping[str, str], raw: Sequence[tuple[bytes, bytes]]
    ) -> Mapping[str, str]:
        """The headers of a reply, `raw` as they were received."""
        head = b"".join(chain.from_iterable(raw))
        if not head.isascii():  # Bytes that are no UTF-8 could not be written anywhere.
            headers = CIMultiDict((name, clean(value)) for name, value in headers.items())
        if (key := self._key_bytes) and key in head:
            headers = _replaced(headers, self._key, "[key]")
        if self._secrets and self._without_secrets(head) != head:
            headers = CIMultiDict(
                (name, self._without_secrets(value.encode()).decode())
                for name, value in headers.items()
            )
        if status >= 300:
            for word in self._passwords:
                if word.encode() in head:
                    headers = _replaced(headers, word, "[password]")
        return headers

    def _without_secrets(self, text: bytes) -> bytes:
        for secret in self._secrets:
            text = secret.sub(b"[secret]", text)
        return text


def _replaced(headers: Mapping[str, str], word: str, by: str) -> Mapping[str, str]:
    return CIMultiDict((name, value.replace(word, by)) for name, value in headers.items())


def _is_secret(key: str) -> bool:
    return len(key) >= _MIN_SECRET and not key.isalpha()


def _is_random(key: str) -> bool:
    """Whether no answer has these letters by chance; "00000000" and "sk-no-key-required" are no secrets."""
    return len(key) >= _MIN_RANDOM and len(set(key)) >= 10 and any(char.isdigit() for char in key)


def _any_spelling(key: str) -> re.Pattern[bytes]:
    r"""Finds the key, also where JSON writes \u002d or \/, and an error quotes that."""
    chars = (
        rf"(?:{re.escape(char)}|{_ESCAPED}u{ord(char):04x}{f'|{_ESCAPED}/' if char == '/' else ''})"
        for char in key
    )
    return re.compile("".join(chars).encode(), re.IGNORECASE)
