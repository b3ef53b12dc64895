"""Finds labels in a text: as all of it, and as words in it. Touches: nothing.

An answer is compared with the labels in steps, and the first step that finds exactly one decides: the
exact spelling, Unicode NFC, lower case, case folding. Only then are marks around it (quotes, asterisks,
brackets, full stops) dropped, but none that a label has itself. So "A" and "A*", "US" and "us", "C" and
"C++" stay apart.

Words end where Unicode's text segmentation (UAX #29) ends them, with these differences:

- Colons end words (as CLDR has it), and so do full stops that are not between digits and underscores
  that are not between letters or digits.
- Chinese, Japanese, Thai, Lao, Khmer and Burmese have no spaces, and a dictionary is not at hand: each
  character counts as a word. Korean words may go on behind a label, as particles do.
- Hebrew and Arabic write articles and prepositions as parts of words: a label with one is not found.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache, lru_cache

__all__ = ["Labels", "plain", "without_marks"]

_PAIRS = {
    "(": ")", "[": "]", "{": "}", "<": ">", "“": "”", "„": "“", "‘": "’", "«": "»", "»": "«",
    "「": "」", "『": "』", "《": "》", "〈": "〉", "【": "】", "（": "）", "［": "］",
    **{mark: mark for mark in "\"'`*_~＂＇"},
}  # fmt: skip
_ENDS = frozenset(".,;:!?…。、，．；：！？؟،؛।॥")
_NOT_MARKS = frozenset("%&/\\@§¶†‡#-")
# Before a word these change its meaning: "!spam" is not spam, ".5" is not 5.
_NOT, _OF_NUMBERS = frozenset("!！¬"), frozenset(".,．，")
_SPARE = 64


class Labels:
    """Labels, all different.

    Args:
        labels: As people spell them; none for a job without labels.

    Attributes:
        names: The labels.
        longest: Characters of the longest one.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.names = tuple(labels)
        self._labels = frozenset(labels)
        self._held = frozenset(mark for label in labels for mark in _edges(label))
        self.longest = max(map(len, labels), default=0)
        # A text that is much longer is more than a label.
        self._most = 4 * self.longest + _SPARE
        self._by_form = [(form, _by(form, labels)) for form in (_composed, _lower, _folded)]
        spellings = self._by_form[-1][1]
        found = sorted(spellings, key=len, reverse=True)
        self._words = re.compile("|".join(map(re.escape, found)))
        self._by_length = found

    @property
    def spellings(self) -> tuple[dict[str, str], bool]:
        """(labels by their folded form, or by themselves where they differ in case; whether they do)."""
        folded = self._by_form[-1][1]
        if len(folded) < len(self.names):
            return {label: label for label in self.names}, True
        return {form: labels[0] for form, labels in folded.items()}, False

    def match(self, text: str) -> str | None:
        """The label that a whole text is; None for none, and where it may be several.

        >>> Labels(("A*", "A")).match("A*"), Labels(("Bug", "Café")).match("**bug**.")
        ('A*', 'Bug')
        """
        if text in self._labels:
            return text
        if len(text) > self._most and len(text := text.strip()) > self._most:
            return None
        for part in (text, without_marks(text, self._held)):
            words = " ".join(part.split())
            for form, found in self._by_form:
                labels = found.get(form(words))
                if labels is not None:
                    return labels[0] if len(labels) == 1 else None
        return None

    def mentions(self, text: str) -> set[str]:
        """Labels that a text contains as separate words; stops at two."""
        found: set[str] = set()
        folded = _folded(" ".join(text.split()))
        at = 0
        while (place := self._words.search(folded, at)) and len(found) < 2:
            at = place.start()
            word = self._word(folded, at) if _begins(folded, at) else None
            if word is None:
                at += 1
                continue
            at += len(word)
            labels = self._by_form[-1][1][word]
            if len(labels) > 1:  # They differ in case: those in this spelling, else all of them.
                written = [label for label in labels if label in text]
                labels = written or labels
            found.update(labels)
        return found

    def _word(self, folded: str, at: int) -> str | None:
        """The longest label that is a whole word at a place."""
        for word in self._by_length:
            if folded.startswith(word, at) and _ends(folded, at + len(word)):
                return word
        return None


def plain(text: str) -> str:
    r"""A form that all spellings of one label share, where the labels are not known.

    Marks are dropped in pairs around it, and at its end those that end a sentence.

    >>> plain(" **Billing**. "), plain("A*"), plain("「請求」"), plain("cafe\N{COMBINING ACUTE ACCENT}")
    ('billing', 'a*', '請求', 'café')
    """
    return _folded(" ".join(without_marks(text).split()))


def without_marks(text: str, held: frozenset[str] | None = None) -> str:
    """A text without the marks around it.

    Args:
        text: Of any length.
        held: Marks that stay, because a label has them; None where that is not known: then marks are
            dropped in pairs only, and at the end of a sentence.
    """
    begin, end = 0, len(text)
    while begin < end:
        first, last = text[begin], text[end - 1]
        if _is_blank(first):
            begin += 1
        elif _is_blank(last):
            end -= 1
        elif held is None:
            if end - begin > 1 and _PAIRS.get(first) == last:
                begin, end = begin + 1, end - 1
            elif last in _ENDS:
                end -= 1
            else:
                break
        elif dropped := _leading(text, begin, end, held):
            begin += dropped
        elif last not in held and _is_trailing(text, begin, end):
            end -= 1
        else:
            break
    return text[begin:end]


def _leading(text: str, begin: int, end: int, held: frozenset[str]) -> int:
    """How many characters at the beginning are a mark; "- ", "## " and "* " begin lines of Markdown."""
    first = text[begin]
    if first in held:
        return 0
    if first in "#-–—+•":
        at = begin
        while at < end and text[at] == first:
            at += 1
        return at - begin if at < end and _is_blank(text[at]) else 0
    if first in _NOT or (first in _OF_NUMBERS and text[begin + 1 : begin + 2].isdigit()):
        return 0
    return int(_is_mark(first))


def _edges(label: str) -> str:
    """The characters of a label before its first and after its last letter or digit."""
    words = [at for at, char in enumerate(label) if char.isalnum()]
    return label[: words[0]] + label[words[-1] + 1 :] if words else label


def _is_trailing(text: str, begin: int, end: int) -> bool:
    """Whether the last character is a mark; a dash is one after a blank only ("A-" is a grade)."""
    last = text[end - 1]
    return _is_mark(last) or (last in "-–—" and end - begin > 1 and _is_blank(text[end - 2]))


@lru_cache(maxsize=1024)
def _is_mark(char: str) -> bool:
    if char in _NOT_MARKS or unicodedata.category(char) == "Pd":
        return False
    return unicodedata.category(char).startswith("P") or char in "`<>~"


@lru_cache(maxsize=1024)
def _is_blank(char: str) -> bool:
    """Whether a character is blank, or has no width."""
    return char.isspace() or unicodedata.category(char) == "Cf"


@lru_cache(maxsize=4096)
def _kind(char: str) -> str:
    """The class of a character for the ends of words."""
    category = unicodedata.category(char)
    if category[0] == "M" or char in "\u200c\u200d" or "\U0001f3fb" <= char <= "\U0001f3ff":
        return "extend"
    if category == "Nd":
        return "digit"
    if category[0] != "L" and category != "Nl":
        return "none"
    code = ord(char)
    return next((kind for first, last, kind in _SCRIPTS if first <= code <= last), "letter")


_SCRIPTS = (
    (0x0E00, 0x0EFF, "alone"),  # Thai, Lao
    (0x1000, 0x109F, "alone"),  # Burmese
    (0x1100, 0x11FF, "hangul"),
    (0x1780, 0x17FF, "alone"),  # Khmer
    (0x2E80, 0x2FDF, "alone"),  # Han
    (0x3005, 0x3007, "alone"),
    (0x3041, 0x309F, "alone"),  # Hiragana
    (0x30A0, 0x30FF, "katakana"),
    (0x3130, 0x318F, "hangul"),
    (0x31F0, 0x31FF, "katakana"),
    (0x3400, 0x9FFF, "alone"),
    (0xA960, 0xA97F, "hangul"),
    (0xAC00, 0xD7FF, "hangul"),
    (0xF900, 0xFAFF, "alone"),
    (0xFF66, 0xFF9F, "katakana"),
    (0x20000, 0x3FFFF, "alone"),
)
_JOINED = frozenset({"letter", "digit", "hangul"})


def _begins(text: str, at: int) -> bool:
    """Whether a word can begin at a place."""
    return at == 0 or not _joined(text, at)


def _ends(text: str, at: int) -> bool:
    """Whether a word can end before a place."""
    return at >= len(text) or _kind(text[at]) == "hangul" or not _joined(text, at)


def _joined(text: str, at: int) -> bool:
    """Whether the characters before and after a place belong to one word."""
    after = _kind(text[at])
    if after == "extend":
        return True
    if text[at - 1] == "\u200d" and after == "none":  # Emoji of several.
        return True
    before = _base(text, at - 1)
    if before in _JOINED and after in _JOINED:
        return True
    if before == after == "katakana":
        return True
    if after == "none":
        return before in _JOINED and _within(text, at, before)
    return after in _JOINED and at > 1 and _within(text, at - 1, _base(text, at - 2))


def _within(text: str, at: int, before: str) -> bool:
    """Whether a mark is inside a word or a number: "don't", "1.5", "bug_report"."""
    mark = text[at]
    after = _kind(text[at + 1]) if at + 1 < len(text) else "none"
    if mark == "_":
        return before in _JOINED and after in _JOINED
    if mark in "'’":
        return before == after == "letter"
    return mark in ".," and before == after == "digit"


def _base(text: str, at: int) -> str:
    """The class of the character that the marks at a place belong to."""
    least = max(0, at - _RUN)
    while at > least and _kind(text[at]) == "extend":
        at -= 1
    return _kind(text[at])


def _composed(text: str) -> str:
    if text.isascii():
        return text
    # Models add and drop what chooses between the styles of an emoji.
    return unicodedata.normalize("NFC", _safe(text).replace("\ufe0e", "").replace("\ufe0f", ""))


def _lower(text: str) -> str:
    return _composed(text).lower()


def _folded(text: str) -> str:
    """A form that texts share which differ in case only (Unicode, D145), composed again."""
    if text.isascii():
        return text.lower()
    decomposed = unicodedata.normalize("NFD", _composed(text)).casefold()
    return unicodedata.normalize("NFC", decomposed)


_RUN = 30


def _safe(text: str) -> str:
    """A text without runs of more than 30 combining marks (Unicode's stream-safe form has no more).

    Normalizing takes time by the square of such a run: 80,000 of them took 28 s.
    """
    return text if len(text) <= _SPARE else _runs().sub(r"\1", text)


@cache
def _runs() -> re.Pattern[str]:
    marks = "".join(
        char for char in map(chr, range(0x300, 0x1E950)) if unicodedata.combining(char)
    )
    return re.compile(rf"([{marks}]{{{_RUN}}})[{marks}]+")


def _by(form: Callable[[str], str], labels: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for label in labels:
        found.setdefault(form(" ".join(label.split())), []).append(label)
    return found
