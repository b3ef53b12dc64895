"""Numbers, money, durations, counts and long texts as people read them. Touches: nothing.

Values that are not known become `UNKNOWN`, so that a table needs no branch for them.
"""

from __future__ import annotations

from decimal import Decimal

from rich.cells import cell_len, set_cell_size

from batcher.live.terminal import in_line

__all__ = [
    "UNKNOWN",
    "compact",
    "counted",
    "cut",
    "decimal",
    "dollars",
    "duration",
    "money",
    "percent",
    "seconds",
    "shorten",
    "whole",
]

UNKNOWN = "—"


def counted(n: int, one: str, several: str = "") -> str:
    """A number with its noun, and a verb where there is one; `several` defaults to `one` and an s.

    >>> counted(1, "row"), counted(1200, "row"), counted(2, "row asks", "rows ask")
    ('1 row', '1,200 rows', '2 rows ask')
    """
    return f"1 {one}" if n == 1 else f"{n:,} {several or one + 's'}"


def whole(n: int | None) -> str:
    """A whole number with its thousands separated."""
    return UNKNOWN if n is None else f"{n:,}"


def decimal(number: float | None, digits: int = 2) -> str:
    """A number with so many digits behind the point."""
    return UNKNOWN if number is None else f"{number:.{digits}f}"


def percent(share: float | None) -> str:
    """A share from 0 to 1 in percent, with one digit behind the point."""
    return UNKNOWN if share is None else f"{100 * share:.1f} %"


def seconds(ms: int | None) -> str:
    """Milliseconds as seconds, without the unit."""
    return UNKNOWN if ms is None else f"{ms / 1000:.2f}"


def dollars(value: float | None) -> str:
    """Dollars of a JSON number, by its text: 0.1 means 0.1, not the binary fraction next to it."""
    return money(None if value is None else Decimal(str(value)))


def cut(text: str, most: int) -> str:
    """The first `most` characters of a text, and how long it is if that is not all.

    >>> cut("abc", 3), cut("abcd", 3)
    ('abc', 'abc … (4 characters)')
    """
    return text if len(text) <= most else f"{text[:most]} … ({len(text):,} characters)"


def shorten(text: str, width: int) -> str:
    r"""Text from outside, safe for a terminal and at most `width` columns wide, shortened in its middle.

    Pass it to Rich inside a `Text`, which interprets no markup.

    >>> shorten("deepseek-r1-distill-qwen-32b", 16), shorten("a\x1b[2Jb", 16)
    ('deepseek…wen-32b', 'a�[2Jb')
    """
    clean = in_line(text) or UNKNOWN
    if cell_len(clean) <= width:
        return clean
    tail = (width - 1) // 2
    return f"{set_cell_size(clean, width - 1 - tail)}…{set_cell_size(clean[::-1], tail)[::-1]}"


def compact(number: float) -> str:
    """A number in at most five characters.

    >>> [compact(n) for n in (0, 0.043, 7, 41.26, 950, 12_345, 999_960, 2e9)]
    ['0', '0.04', '7', '41.3', '950', '12.3k', '1M', '2G']
    """
    for unit in ("", "k", "M", "G", "T"):
        if number < 999.5 or unit == "T":
            break
        number /= 1000
    text = f"{number:.{2 if number < 0.995 else 1 if number < 99.95 else 0}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) + unit


def money(dollars: Decimal | None) -> str:
    """Dollars, with more digits for smaller amounts; a dash for None.

    >>> [money(d and Decimal(d)) for d in (None, "0", "0.00001", "0.0123", "12.345", "1234.5")]
    ['—', '$0', '<$0.0001', '$0.0123', '$12.34', '$1,234']
    """
    if dollars is None:
        return UNKNOWN
    if 0 < dollars < Decimal("0.0001"):
        return "<$0.0001"
    digits = 0 if dollars == 0 or dollars >= 1000 else 2 if dollars >= 1 else 4
    return f"${dollars:,.{digits}f}"


def duration(seconds: float) -> str:
    """A duration in its two largest units.

    >>> [duration(s) for s in (0.4, 59.9, 200, 7500, 300_000)]
    ['0s', '59s', '3m20s', '2h05m', '3d11h']
    """
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days}d{h:02}h"
    if hours:
        return f"{h}h{m:02}m"
    return f"{m}m{s:02}s" if minutes else f"{s}s"
