"""Rows of an output, as a person reads them."""

import pytest

from tests.support.program import batcher, write_jsonl

ROWS = [
    {"id": n, "prompt": f"What is {n} + 1?", "note": "x" * 700 if n == 3 else None}
    for n in range(20)
]


@pytest.fixture(scope="module", params=["out.jsonl", "out.parquet"])
def output(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("show")
    write_jsonl(folder / "in.jsonl", [*ROWS, {"nothing": "to ask"}])
    words = ("run", "in.jsonl", "-o", request.param, "-m", "sim-large", "--simulate", "--quiet")
    assert batcher(*words, cwd=folder).returncode == 3
    return folder / request.param


def test_each_row_shows_what_was_asked_and_answered(output):
    """Input, answer, and why there is none; long texts are cut."""
    told = batcher("show", output.name, cwd=output.parent)
    assert told.returncode == 0
    text = told.stdout.decode()
    assert text.count("· sim-large ·") == 21
    assert "What is 7 + 1?" in text
    assert any(line.split() == ["→", "8"] for line in text.splitlines())
    assert "(700 characters)" in " ".join(text.split())
    assert "row 20 · sim-large · unreadable" in text
    assert "nothing to send" in text


def test_only_rows_of_a_status_or_a_sample_of_them(output):
    """The same sample each time."""
    bad = batcher("show", output.name, "--status", "unreadable", cwd=output.parent).stdout.decode()
    assert bad.count("· sim-large ·") == 1
    drawn = [
        batcher("show", output.name, "--sample", "5", cwd=output.parent).stdout for _ in range(2)
    ]
    assert drawn[0].count("· sim-large ·".encode()) == 5
    assert drawn[0] == drawn[1]
    none = batcher("show", output.name, "--status", "timeout", cwd=output.parent)
    assert none.returncode == 2
    assert b"no rows of status timeout" in none.stderr


def test_an_answer_moves_no_cursor(tmp_path):
    """What a model says is text, whatever a terminal would make of it."""
    write_jsonl(
        tmp_path / "out.jsonl",
        [
            {
                "q\x1b[2J": "a\x07",
                "row": 0,
                "model": "m",
                "status": "ok",
                "content": "\x1b[31mred\nline",
            }
        ],
    )
    told = batcher("show", "out.jsonl", cwd=tmp_path).stdout.decode()
    assert "\x1b" not in told
    assert "\x07" not in told
    assert told.splitlines()[-2].strip() == "line"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.jsonl", None, "no such output"),
        ("bad.jsonl", "nothing\n", "bad.jsonl:1: "),
        ("bad.parquet", "nothing", "bad.parquet: it cannot be read as Parquet"),
        ("empty.jsonl", "", "no rows"),
    ],
)
def test_what_cannot_be_shown_is_said(tmp_path, name, content, said):
    """In one sentence."""
    if content is not None:
        (tmp_path / name).write_text(content)
    ended = batcher("show", name, cwd=tmp_path)
    assert ended.returncode == 2
    assert said in ended.stderr.decode()


def test_what_is_no_output_is_not_shown(tmp_path):
    write_jsonl(tmp_path / "in.jsonl", [{"text": "a"}])
    ended = batcher("show", "in.jsonl", cwd=tmp_path)
    assert ended.returncode == 2
    assert b"in.jsonl: it is no output of batcher" in ended.stderr
