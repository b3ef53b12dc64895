"""The log probabilities of a simulated answer's tokens. Touches: nothing.

A token is up to four letters, or one other character. Where the answer names one of the labels that
were asked for, its first token has the first tokens of the others beside it; all others are certain.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

__all__ = ["logprobs"]

_TOKEN = re.compile(r"[^\W_]{1,4}|[\W_]")


def logprobs(text: str, labels: Sequence[str], top: int, key: str) -> dict[str, Any]:
    """The `logprobs` of a choice.

    Args:
        text: The answer.
        labels: What it may be.
        top: How many tokens are told in the place of each.
        key: What the request is known by; decides how sure the answer is.
    """
    named = next((label for label in labels if label in text), None)
    at = -1 if named is None else text.rindex(named)
    told = []
    for match in _TOKEN.finditer(text):
        token = match.group()
        sure = {token: 1.0}
        if match.start() == at and named is not None:
            sure = _shares(key, named, labels)
            sure = {token: sure.pop(token), **sure}
        entries = [_entry(one, share) for one, share in sure.items()]
        told.append({**entries[0], "top_logprobs": entries[:top]})
    return {"content": told, "refusal": None}


def _shares(key: str, named: str, labels: Sequence[str]) -> dict[str, float]:
    """Probability by first token: that of the label named is 0.4 to 1, the others share the rest."""
    dice = blake2b(key.encode(), digest_size=2).digest()
    rest = 0.6 * int.from_bytes(dice, "little") / 65536
    others = [label for label in labels if label != named]
    shares: dict[str, float] = {}
    for label in labels:
        found = _TOKEN.match(label)
        token = found.group() if found else label
        share = 1.0 - rest if label == named else rest / len(others)
        shares[token] = shares.get(token, 0.0) + share
    return shares


def _entry(token: str, share: float) -> dict[str, Any]:
    return {
        "token": token,
        "logprob": math.log(share) if share > 0 else -9999.0,
        "bytes": list(token.encode(errors="replace")),
    }
