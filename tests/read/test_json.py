"""JSON arrays, read an element at a time."""

import gzip
import json
import tracemalloc

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.read.files import expand, notes_of
from batcher.read.inputs import Inputs
from batcher.read.json_array import elements
from batcher.read.text import InvalidRecord

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('a"\\,[]{}é\n\u2028'),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(), inside, max_size=3),
    max_leaves=6,
)


def cut(content, size):
    return (content[at : at + size] for at in range(0, len(content), size))


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(VALUES, max_size=4),
    size=st.integers(1, 9),
    indent=st.none() | st.integers(0, 2),
    plain=st.booleans(),
)
def test_an_array_gives_its_elements_however_the_blocks_are_cut(values, size, indent, plain):
    """Brackets and quotes inside of texts are text."""
    content = json.dumps(values, indent=indent, ensure_ascii=plain).encode()
    assert [json.loads(of) for of in elements(cut(content, size), array=True)] == values
    objects = [{"v": value} for value in values]
    content = "\n".join(json.dumps(of, indent=indent) for of in objects).encode()
    assert [json.loads(of) for of in elements(cut(content, size), array=False)] == objects


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", []),
        (b"[]", []),
        (b" \n[\n]\n", []),
        (b'\xef\xbb\xbf[{"a":1}, ]', [b'{"a":1}']),
        (b'[{"a":1},{"a":bad},{"b":2}]', [b'{"a":1}', b'{"a":bad}', b'{"b":2}']),
        (b'[{"a":"x\n},{"b":2}]', [b'{"a":"x\n}', b'{"b":2}']),
        (b'[{"a":1}}, {"b":1}]', [b'{"a":1}}', b'{"b":1}']),
        (b'[{"a":1},{"a":2', [b'{"a":1}', "in the middle"]),
        (b'[{"a":1},', [b'{"a":1}', "before the array does"]),
        (b"[", ["before the array does"]),
        (b'[{"a":1}] {"b":2}', [b'{"a":1}', "behind the end of the array"]),
    ],
)
def test_a_damaged_element_costs_that_element_and_a_cut_is_said(content, found):
    """Rows that are missing must show in the output."""
    for size in (1, 3, 1000):
        told = list(elements(cut(content, size), array=True))
        assert len(told) == len(found)
        for one, want in zip(told, found, strict=True):
            assert want in str(one) if isinstance(one, InvalidRecord) else want == one


def test_an_array_takes_no_more_memory_than_an_element():
    """A million rows in one array are as many as in a million lines."""
    row = b'{"text":"' + b"x" * 1000 + b'"},'
    tracemalloc.start()
    count = sum(1 for _ in elements([b"[", *[row * 100] * 100], array=True))
    assert count == 10_001  # The last says that the array has no end.
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


ROWS = [{"id": 1, "text": "a\nb"}, {"id": 2, "text": "ü"}]
PACK = {"": bytes, ".gz": gzip.compress, ".zst": lambda c: pa.compress(c, "zstd", asbytes=True)}


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", json.dumps(ROWS), ""),
        ("a.json", json.dumps(ROWS, indent=2), ""),
        ("a.json", "\n".join(map(json.dumps, ROWS)), "is read as .jsonl"),
        ("a.json", "\n".join(json.dumps(row, indent=2) for row in ROWS), "no JSON array"),
        ("a.ndjson", "\n".join(map(json.dumps, ROWS)), ""),
    ],
    ids=["array", "indented", "lines", "objects", "ndjson"],
)
def test_json_is_read_in_the_shape_that_it_has(tmp_path, packed, name, content, said):
    """What people call JSON is an array, lines or objects."""
    path = tmp_path / f"{name}{packed}"
    path.write_bytes(PACK[packed](content.encode()))
    files = expand([str(path)])
    assert [row.columns for row in Inputs(files).rows()] == ROWS
    assert [row for _at, rows in Inputs(files).native() for row in rows] == ROWS
    assert [said in note for note in notes_of(files)] == [True] * bool(said)
    again = type(files[0]).of_pin(files[0].pin, tmp_path)
    assert [row.columns for row in Inputs([again]).rows()] == ROWS


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-8-sig"])
@pytest.mark.parametrize("end", ["json", "jsonl"])
def test_json_of_another_encoding_is_read(tmp_path, encoding, end):
    """PowerShell's > writes UTF-16."""
    path = tmp_path / f"a.{end}"
    text = json.dumps(ROWS, ensure_ascii=False)
    if end == "jsonl":
        text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    path.write_bytes(text.encode(encoding))
    files = expand([str(path)])
    assert [row.columns for row in Inputs(files).rows()] == ROWS
    assert len(notes_of(files)) == (encoding != "utf-8-sig")


def test_json_beside_data_in_a_folder_is_no_input(tmp_path):
    """Datasets bring files that tell about them."""
    (tmp_path / "dataset_infos.json").write_text('{"a": 1}')
    assert [file.kind for file in expand([str(tmp_path)])] == ["objects"]
    (tmp_path / "a.csv").write_text("a\n1\n")
    assert [file.kind for file in expand([str(tmp_path)])] == ["csv"]


def test_a_place_in_an_array_is_named_by_its_number(tmp_path):
    """As `jq '.[1]'` counts."""
    (tmp_path / "a.json").write_text('[{"a":1}, 7]')
    first, second = Inputs(expand([str(tmp_path / "a.json")])).rows()
    assert first.where.endswith("a.json item 0")
    assert second.error.endswith("a.json item 1: not a JSON object but a number")
