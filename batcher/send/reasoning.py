"""Finds the answer in a text that begins with a model's reasoning. Touches: nothing.

Servers without a reasoning parser leave the reasoning in `content`. The forms are those of the parsers
of vLLM, SGLang and llama.cpp: DeepSeek, Qwen, GLM, MiniMax, Nemotron and ERNIE write `<think>`, EXAONE and
Gemini `<thought>`, Seed `<seed:think>`, LongCat `<longcat_think>`, Magistral `[THINK]`, Kimi `◁think▷`,
OpenThinker `<|begin_of_thought|>`, Cohere `<|START_THINKING|>`, Apertus `<|inner_prefix|>`, gpt-oss the
channels of harmony, Gemma `<|channel>thought`, Granite a sentence. Prompts ask for `<thinking>`,
`<reasoning>` and `<scratchpad>`.
"""

from __future__ import annotations

import json
import re

__all__ = ["answer_in", "is_reasoning"]

_NAMES = (
    r"(?:[a-z]{1,12}[:_])?(?:think|thinking|thoughts?|reason|reasoning|reflection|scratchpad|analysis"
    r"|antthinking)"
)
# Each notation has a group for its beginning and one for its end. Nothing here can match in two ways, and
# repetitions are bounded, so that a search is linear in the text.
_NOTATIONS = (
    (rf"<{_NAMES}(?: [^<>]{{0,99}})?>", rf"</{_NAMES}>"),
    (r"(?-i:\[THINK\])", r"(?-i:\[/THINK\])"),
    ("◁think▷", "◁/think▷"),
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),
    (r"<\|start_thinking\|>", r"<\|end_thinking\|>"),
    (r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),
    (
        r"(?:<\|start\|>assistant)?<\|channel\|>(?:analysis|commentary)\b",
        r"<\|channel\|>final(?:\s?<\|constrain\|>\w{0,20})?(?:<\|message\|>)?",
    ),
    (r"<\|channel>thought\b", r"<channel\|>"),
    (r"here(?: is|'s) my thought process:", r"here(?: is|'s) my response:"),
)
_ANY = "|".join(f"({begin})|({end})" for begin, end in _NOTATIONS)
_MARK = re.compile(rf"(?=[<\[◁]|here)(?:{_ANY})", re.IGNORECASE)
_ENDS = [re.compile(end, re.IGNORECASE) for _begin, end in _NOTATIONS]
_MOST_CHARS = 1 << 20  # Of a text that may be nothing but reasoning.
_LONGEST = 150  # Characters of such a tag.
# What models put around the answer after their reasoning; and harmony's last token.
_AROUND = (
    ("<answer>", "</answer>"),
    ("<response>", "</response>"),
    ("<output>", "</output>"),
    ("<|begin_of_solution|>", "<|end_of_solution|>"),
    ("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ("", "<|return|>"),
    ("", "<|end|>"),
)
_QUOTES = "\"'`"
_BEGINNINGS = ("Here", "here", "anal", "[THI")
_FIRST, _LAST = frozenset("<[◁Hh"), frozenset(">]▷:")


def answer_in(text: str) -> str:
    """The text after the reasoning, without blanks around it; "" for none.

    Reasoning is enclosed in two tags, the first of which begins the text or a line. The first tag may be
    missing (the chat template wrote it), and so may the second (the answer never came). A text that
    mentions a tag in the middle of a line, in quotes or in JSON stays as it is.

    >>> answer_in('<think>A bug? No.</think> billing'), answer_in("No.</think>billing")
    ('billing', 'billing')
    >>> answer_in("<think>A bug?"), answer_in("Models write <think> first.")
    ('', 'Models write <think> first.')
    """
    text = text.strip()
    if "<" in text or "◁" in text or "[/" in text or text[:4] in _BEGINNINGS:
        return _unwrapped(_behind(text))
    return text


def is_reasoning(text: str) -> bool:
    """Whether a text is nothing but reasoning.

    >>> is_reasoning("<think>A bug?</think>"), is_reasoning("<b>billing</b>")
    (True, False)
    """
    text = text.strip()
    # The first and last character decide for most texts.
    if len(text) > _MOST_CHARS:
        return False
    if text[:1] in _FIRST and _MARK.match(text):
        return not _behind(text)
    return (
        text[-1:] in _LAST and bool(_MARK.search(text, len(text) - _LONGEST)) and not _behind(text)
    )


def _behind(text: str) -> str:
    # What is left of harmony when a server drops its special tokens.
    if text.startswith("analysis") and (at := text.rfind("assistantfinal")) > 0:
        return text[at + len("assistantfinal") :].strip()
    # The notation that is open and where it began; where the last one ended.
    inside = begun = after = 0
    outside: list[str] = []
    mentioned: set[int] = set()
    is_json: bool | None = None
    at = 0
    while (mark := (_ENDS[inside - 1] if inside else _MARK).search(text, at)) is not None:
        at = mark.end()
        if inside:
            outside.append(text[after:begun])
            inside, after = 0, at
            continue
        number = mark.lastindex or 0
        notation, ends = (number + 1) // 2, number % 2 == 0
        if not ends:
            if _begins(text, after, mark.start()):
                inside, begun = notation, mark.start()
            else:
                mentioned.add(notation)
        elif notation not in mentioned and not _is_quoted(text, mark):
            if is_json is None:
                is_json = _is_json(text[after:])
            if is_json:
                break
            # The first tag is missing, or this one was mentioned in the reasoning before.
            outside.clear()
            after = mark.end()
    if inside and text[after:begun].strip() == "":
        return "".join(outside).strip()
    return text[after:].strip() or "".join(outside).strip()


def _begins(text: str, after: int, at: int) -> bool:
    """Whether a place begins its line, or follows the last reasoning."""
    before = text[max(after, at - 100) : at].rstrip(" \t")
    return not before or before.endswith("\n")


def _is_quoted(text: str, mark: re.Match[str]) -> bool:
    before, behind = text[mark.start() - 1 : mark.start()], text[mark.end() : mark.end() + 1]
    return before != "" and before == behind and before in _QUOTES


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _unwrapped(text: str) -> str:
    for begin, end in _AROUND:
        if text.startswith(begin) and (not begin or end in text):
            inner = text[len(begin) :]
            at = inner.rfind(end) if begin else len(inner.removesuffix(end))
            text = inner[:at].strip() or text
    return text
