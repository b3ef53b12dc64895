"""Nothing from a file, a server or an argument is obeyed by a terminal: C0, C1, changes of direction."""

import ast
import json
import re
import shlex
import subprocess
from decimal import Decimal
from pathlib import Path

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

import batcher
from batcher.live.log import Log
from batcher.live.summary import Summary
from batcher.live.table import table
from batcher.live.terminal import escaped, in_line, quoted, safe
from batcher.money.prices import Price
from batcher.records import Outcome, Result
from tests.support import echo, program
from tests.support.program import write_jsonl

EVIL = "e\x1b]0;owned\x07\x9b31m\x90q\x9c\x7f\x08\r\u202ex\u2066y\u2028"
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def clean(*texts):
    for text in texts:
        assert not OBEYED.search(text.decode() if isinstance(text, bytes) else text)
    return True


@given(st.text())
def test_a_text_keeps_all_but_what_a_terminal_obeys(text):
    assert clean(safe(text), in_line(text))
    assert [
        a for a, b in zip(text, safe(text), strict=True) if a != b and not OBEYED.match(a)
    ] == [char for char in text if "\ud800" <= char <= "\udfff"]
    assert "\n" not in in_line(text)


@given(st.text())
def test_json_loses_nothing_to_its_escapes(text):
    made = escaped(json.dumps({text: text}, ensure_ascii=False))
    assert clean(made)
    assert json.loads(made) == {text: text}


@pytest.mark.parametrize("word", ["plain", "it's $HOME", EVIL, "\x1b'\\\x9b!`", "a\nb"])
def test_a_shell_takes_a_quoted_word_as_it_was(word):
    assert clean(quoted(word))
    told = subprocess.run(
        ["bash", "-c", f"printf %s {quoted(word)}"], capture_output=True, check=True
    )
    assert told.stdout.decode() == word
    assert quoted("a b") == shlex.quote("a b")


def test_only_one_module_prints():
    """Or the next sentence goes past it."""
    root = Path(batcher.__file__).parent
    found = {
        path.relative_to(root)
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    }
    assert found == {Path("live/terminal.py")}


def test_tables_and_logs_are_clean():
    """Model IDs, what was said of failures, where prices come from, tiers, reasons."""
    summary = Summary(lambda: 0.0, [EVIL])
    for status, reason in ((Outcome.OK, EVIL), (Outcome.BAD_REQUEST, None)):
        summary.add(
            Result(
                row=0, model=EVIL, sample=0, key="k", status=status, custom_id=EVIL, error=EVIL, finish_reason=reason,
                prompt_tokens=1, completion_tokens=1, cost_usd=0.1,
            )
        )  # fmt: skip
    of = summary.models[EVIL]
    of.bill.price = Price(Decimal(1), Decimal(1), source=EVIL)
    of.bill.told = Decimal(5)
    of.bill.priced = Decimal(1)
    of.bill.unpriced = {f"@{EVIL}": 2}
    summary.budget = EVIL
    from rich.console import Console

    console = Console(width=100, color_system=None)
    with console.capture() as shown:
        console.print(table(summary, 100))
    assert "owned" in shown.get()
    assert clean(shown.get())
    lines = []
    Log("debug", lines.append).say(EVIL)
    assert clean(*lines)
    assert json.loads(lines[0])["message"] == EVIL


def test_no_command_shows_an_escape_sequence(tmp_path):
    """A gateway that sends them, an input and arguments that hold them; on pipes as on terminals."""

    async def answer(request):
        if "models" in request.path:
            return web.json_response({"data": [{"id": EVIL}]})
        number = json.loads(await request.read())["messages"][0]["content"]
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        choice = {"message": {"content": EVIL}, "finish_reason": "stop"}
        error = {"error": {"message": EVIL, "type": EVIL, "code": EVIL}}
        fine = {"choices": [choice], "usage": usage, "id": EVIL, "model": EVIL}
        return web.json_response(
            error if number == "1" else fine, status=400 if number == "1" else 200
        )

    rows = [{"custom_id": f"{EVIL}{n}", "q": f"{n}", EVIL: EVIL} for n in range(3)]
    write_jsonl(tmp_path / "in.jsonl", rows)
    (tmp_path / "a\x1b[31m.jsonl").write_text("{")
    commands = [
        ("run", "in.jsonl", "-o", "o.jsonl", "-m", EVIL, "--prompt", "{{ q }}", "--labels", f"{EVIL},b", "--keep-raw"),
        ("run", "in.jsonl", "-o", "o.jsonl", "-m", EVIL, "--prompt", "{{ q }}{{ " + EVIL + " }}"),
        ("explain", "o.jsonl", "0"), ("explain", "o.jsonl", f"{EVIL}1"), ("status", "o.jsonl"), ("show", "o.jsonl"),
        ("models",), ("models", EVIL), ("explain", "o.jsonl", EVIL), ("compare", "o.jsonl", "o.jsonl"),
        ("convert", "in.jsonl", "-o", EVIL, "-m", "m"), ("run", "a\x1b[31m.jsonl", "-o", "p.jsonl", "-m", "m"),
        ("run", EVIL, "-o", "o.jsonl", "-m", "m"), ("run", "in.jsonl", f"--{EVIL}"), (EVIL,), ("show", EVIL),
        ("run", "in.jsonl", "-o", "-", "-m", "m", "--param", EVIL), ("report", "o.jsonl", "--gold", EVIL),
    ]  # fmt: skip
    told = 0
    with echo.running(answer, "/v1/{any:.*}") as up:
        for words in commands:
            ended = program.batcher(*words, cwd=tmp_path, url=up.url)
            assert ended.stdout + ended.stderr
            assert clean(ended.stdout, ended.stderr), words
            told += b"owned" in ended.stdout + ended.stderr
    assert told > 12
    assert json.loads((tmp_path / "o.jsonl").read_text().split("\n")[0])[EVIL] == EVIL
