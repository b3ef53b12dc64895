"""The settings that shape requests, and the requests that they make of prompts. Touches: nothing.

A request is identified by what it sends: its key is a 128-bit hash of the URL and the exact body.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import msgspec

from batcher.errors import JobError
from batcher.job.job import Job
from batcher.read.prompts import Prompter
from batcher.records import Prompt, Request
from batcher.send.answers import Expected

__all__ = ["RequestBuilder", "Settings", "expected_of", "settings_of"]

_CHAT = "/chat/completions"

Settings = Mapping[str, Any]
"""All that shapes a request besides its row and model, by the names of the flags."""


def settings_of(job: Job, url: str) -> dict[str, object]:
    """The settings of a job whose requests go to this URL."""
    prompt, system = job.templates
    schema, labels = job.expected
    expected: dict[str, object] = {} if schema is None else {"--schema": schema}
    if labels:
        expected["--labels"] = list(labels)
    return {
        "--base-url": url.removesuffix(_CHAT),
        "--prompt": prompt,
        "--system": system,
        "--param": job.body_params,
        "--model": "asked" if job.models else "the row's own",
        **expected,
    }


def expected_of(settings: Settings) -> Expected | None:
    """What answers must be; None when anything is fine.

    Raises:
        JobError: The schema is not a JSON Schema.
    """
    schema, labels = settings.get("--schema"), settings.get("--labels")
    if schema is None and not labels:
        return None
    try:
        return Expected(schema, labels or ())
    except (ValueError, TypeError) as error:
        raise JobError(f"--schema: it is no JSON Schema: {str(error).splitlines()[0]}.") from None


class RequestBuilder:
    """Makes requests of rows under one set of settings.

    Attributes:
        prompter: Makes their prompts.
    """

    def __init__(self, settings: Settings) -> None:
        base = str(settings["--base-url"])
        self._salt = (base if base.endswith(":") else base + _CHAT).encode() + b"\n"
        params = dict(settings["--param"])
        if (expected := expected_of(settings)) is not None:
            params["response_format"] = expected.response_format
        self.prompter = Prompter(
            settings["--prompt"],
            settings["--system"],
            params,
            own_model=settings["--model"] != "asked",
        )
        self._heads: dict[str, bytes] = {}
        self._keys: dict[tuple[int, int, str], str] = {}

    def keep_key(self, request: Request) -> None:
        """Keeps the key of a request that will be made once more, so that it is hashed once."""
        self._keys[request.row, request.sample, request.model] = request.key

    def request(self, prompt: Prompt, model: str) -> Request:
        """The exact request of a prompt for a model."""
        head = self._heads.get(model)
        if head is None:
            head = self._heads[model] = b'{"model":' + msgspec.json.encode(model) + b","
        body = head + prompt.fields
        key = ""
        if self._keys:
            key = self._keys.pop((prompt.row, prompt.sample, model), "")
        if not key:
            key = blake2b(self._salt + body, digest_size=16).hexdigest()
        return Request(
            prompt.row,
            prompt.custom_id,
            model,
            prompt.sample,
            key,
            body,
            prompt.max_tokens,
            prompt.image_bytes,
        )
