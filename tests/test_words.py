"""What is meant by the words behind some flags."""

import pytest

from batcher.errors import JobError
from batcher.job.job import Job
from batcher.job.values import text_of


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_mark_that_editors_write_is_no_part_of_a_prompt(tmp_path, encoding):
    """Notepad marks UTF-8, and PowerShell writes UTF-16."""
    (tmp_path / "p.txt").write_text("Größe: {{ text }}\n", encoding=encoding)
    assert text_of("--prompt", f"@{tmp_path / 'p.txt'}") == "Größe: {{ text }}\n"
    (tmp_path / "s.json").write_text('{"type": "object"}', encoding=encoding)
    assert Job(output="o.jsonl", schema=str(tmp_path / "s.json")).expected[0] == {"type": "object"}


@pytest.mark.parametrize(
    ("flag", "word"),
    [("encoding", "rot13"), ("encoding", "utf-9"), ("encoding", ""), ("delimiter", ";;"),
     ("delimiter", '"'), ("delimiter", ""), ("delimiter", "\n")],
)  # fmt: skip
def test_an_encoding_or_a_delimiter_that_there_is_not_is_refused(flag, word):
    """Before a file is opened."""
    with pytest.raises(JobError, match=f"--{flag}"):
        Job(output="o.jsonl", **{flag: word})
