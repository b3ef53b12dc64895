"""The index of a segment that is torn, damaged or not JSON."""

from batcher.records import Outcome, Result
from batcher.write import sidecar
from batcher.write.journal import Journal


def written(folder, rows=6):
    journal = Journal(folder)
    for row in range(rows):
        journal.put(Result(row=row, model="m", sample=0, key=f"{row:032x}", status=Outcome.OK,
                           custom_id=str(row), content="a\u2028b\x00"))  # fmt: skip
    journal.close()
    return folder / "journal-000001.jsonl"


def test_a_tail_torn_at_any_byte_costs_that_line_alone(tmp_path):
    """A power cut may end the file anywhere."""
    path = written(tmp_path)
    content = path.read_bytes()
    starts = [0] + [i + 1 for i, byte in enumerate(content) if byte == 10]
    for end in range(starts[-3], len(content)):
        path.write_bytes(content[:end])
        found = sidecar.load(path, 1)
        # The checksum does not cover the newline: a line without it is whole.
        whole = sum(start <= end + 1 for start in starts[1:])
        assert found.entries["row"].tolist() == list(range(whole))


def test_a_sidecar_that_is_missing_or_damaged_is_written_again(tmp_path):
    """It is made from the segment."""
    path = written(tmp_path)
    index = path.with_suffix(".idx")
    good = sidecar.load(path, 1).entries.tolist()
    for content in (None, b"", b"garbage", index.read_bytes()[:-1] + b"!"):
        index.unlink(missing_ok=True) if content is None else index.write_bytes(content)
        assert sidecar.load(path, 1).entries.tolist() == good


def test_json_without_a_checksum_is_no_line(tmp_path):
    """Only a line with a right checksum counts."""
    path = written(tmp_path)
    path.write_bytes(b'7\nnull\n{"row":1}\n' + path.read_bytes())
    found = sidecar.load(path, 1)
    assert (len(found.entries), found.bad) == (6, 3)
