"""Terminals and pipes of every kind: how wide they are, and which characters they take."""

import os
import subprocess

import pytest

from batcher import __main__ as program
from tests.support.program import command, environment, write_jsonl


@pytest.mark.parametrize(
    ("told", "bound"),
    [
        ("0", None), ("-5", None), ("wide", None), ("", None),
        ("1", "40"), ("39", "40"), ("80", "80"), ("100000000", "1000"), ("²", None),
    ],
)  # fmt: skip
def test_a_width_that_no_table_fits_is_replaced(monkeypatch, told, bound):
    monkeypatch.setenv("COLUMNS", told)
    monkeypatch.setattr(os, "isatty", lambda _stream: False)
    program._bound_width()
    assert os.environ.get("COLUMNS") == bound


def test_a_stream_of_ascii_gets_escapes_for_other_characters(tmp_path):
    row = {"row": 0, "custom_id": "0", "model": "m", "status": "ok", "content": "naïve 💥"}
    write_jsonl(tmp_path / "out.jsonl", [row])
    ended = subprocess.run(
        command("show", "out.jsonl"),
        cwd=tmp_path,
        env=environment(PYTHONIOENCODING="ascii"),
        capture_output=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert rb"na\xefve \U0001f4a5" in ended.stdout
