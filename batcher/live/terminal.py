"""Text on its way to a person: without what a terminal obeys. Touches: the terminal.

custom_ids, request IDs, errors, column names, model IDs and file names come from files, servers and
arguments, and may hold escape sequences. Every sentence goes through `say` or `safe`; a test holds that
nothing else prints. Pipes and logs get the same text as a terminal, since somebody will `cat` them.
Files keep every character, and so does JSON, where `escaped` writes these as escapes.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import unicodedata

__all__ = ["escaped", "in_line", "quoted", "safe", "say"]

# C0 but line feed and tab, DEL, C1, and what turns the direction of text or ends a line; and halves of
# surrogate pairs, which no stream takes.
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def safe(text: str) -> str:
    r"""The text with U+FFFD for each character that a terminal obeys; lines and tabs stay.

    >>> safe("a\x1b[2J\x9b1m\r\n\tb")
    'a�[2J�1m�\n\tb'
    """
    return _OBEYED.sub("\ufffd", text)


def in_line(text: str) -> str:
    r"""The same for a text from outside within a line of ours: it has no lines, and a known width.

    >>> in_line("a\nbatcher: b\u3000c")
    'a�batcher: b c'
    """
    return text if text.isprintable() else "".join(map(_printable, text))


def _printable(char: str) -> str:
    if char.isprintable():
        return char
    return " " if unicodedata.category(char) == "Zs" else "\ufffd"


def escaped(json: str) -> str:
    r"""JSON text with escapes for the same characters, so that no terminal obeys it and nothing is lost.

    >>> escaped('{"a":"\x9b"}')
    '{"a":"\\u009b"}'
    """
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", json)


def quoted(word: str) -> str:
    r"""A word as a shell takes it, written without such characters.

    >>> quoted("a b"), quoted("it's \x9b")
    ("'a b'", "$'it\\'s \\xc2\\x9b'")
    """
    if safe(word) == word:
        return shlex.quote(word)
    chars = (
        "".join(f"\\x{byte:02x}" for byte in os.fsencode(char))
        if _OBEYED.match(char)
        else f"\\{char}"
        if char in "\\'"
        else char
        for char in word
    )
    return f"$'{''.join(chars)}'"


def say(text: object, *, end: str = "\n", error: bool = False, flush: bool = False) -> None:
    """Prints a text on stdout; on stderr with `error`."""
    print(safe(str(text)), end=end, file=sys.stderr if error else sys.stdout, flush=flush)
