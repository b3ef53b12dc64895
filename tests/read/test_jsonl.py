"""JSONL as people have it: compressed, cut, with odd bytes."""

import gzip
import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.read import json_text, jsonl
from batcher.read.text import InvalidRecord

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(), inside, max_size=3),
    max_leaves=5,
)  # fmt: skip
PACK = {
    "plain.jsonl": bytes,
    "packed.jsonl.gz": gzip.compress,
    "packed.jsonl.zst": lambda content: pa.compress(content, "zstd", asbytes=True),
}
PACKED = [name for name in PACK if name != "plain.jsonl"]


def read(path):
    """The lines, and whether the file was damaged behind them."""
    lines = []
    try:
        for line in jsonl.lines(str(path)):
            lines.append(line)  # noqa: PERF402  (what came before the damage is wanted)
    except InvalidRecord:
        return lines, True
    return lines, False


@pytest.mark.parametrize("name", PACK)
@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.dictionaries(st.text(), VALUES, max_size=3), max_size=4))
def test_what_was_written_is_what_is_read(tmp_path_factory, name, rows):
    """U+2028, NUL and 30-digit numbers are in real data, packed or not."""
    path = tmp_path_factory.mktemp("rows") / name
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(PACK[name](text.encode()))
    assert [json_text.decode(line) for line in jsonl.lines(str(path))] == rows


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"{}", [b"{}"]),
        (b"{}\n", [b"{}"]),
        (b"1\r\n2\r\n", [b"1", b"2"]),
        (b"\n\n1\n", [b"", b"", b"1"]),
        (b"1\r2\n", [b"1\r2"]),
        ("1\u20282\x0b3\u00854\n".encode(), ["1\u20282\x0b3\u00854".encode()]),
        (b"\xef\xbb\xbf1\n\xef\xbb\xbf2\n", [b"1", b"\xef\xbb\xbf2"]),
    ],
)
def test_a_line_ends_at_a_newline_alone(tmp_path, content, lines):
    """Else the line numbers of errors are not those of `sed -n`."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    assert list(jsonl.lines(str(path))) == lines


@pytest.mark.parametrize("name", PACKED)
def test_a_packed_file_cut_anywhere_is_never_taken_for_a_whole_one(tmp_path, name):
    """A broken download must not look like a short file."""
    whole = [b'{"n":%d}' % n for n in range(40)]
    packed = PACK[name](b"\n".join(whole) + b"\n")
    path = tmp_path / name
    for end in range(1, len(packed)):
        path.write_bytes(packed[:end])
        lines, damaged = read(path)
        assert damaged
        assert lines == whole[: len(lines)]


@pytest.mark.parametrize("name", PACKED)
def test_the_lines_before_the_cut_are_read(tmp_path, name):
    """One missing byte at the end costs its block (zstd: 128 kB), not the rows before it."""
    whole = [b'{"n":%d}' % n for n in range(200_000)]
    path = tmp_path / name
    path.write_bytes(PACK[name](b"\n".join(whole) + b"\n")[:-1])
    lines, damaged = read(path)
    assert damaged
    assert len(lines) >= 0.9 * len(whole)
    assert lines == whole[: len(lines)]


@pytest.mark.parametrize("name", PACKED)
def test_two_packed_files_behind_one_another_are_one(tmp_path, name):
    """`cat a.gz b.gz` is how people join them."""
    path = tmp_path / name
    path.write_bytes(PACK[name](b"1\n2\n") + PACK[name](b"3\n"))
    assert read(path) == ([b"1", b"2", b"3"], False)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"null", "not a JSON object but null"),
        (b"7", "not a JSON object but a number"),
        (b"true", "not a JSON object but a truth value"),
        (b'["a"]', "not a JSON object but a list"),
        (b'"a"', "not a JSON object but a text"),
        (b'{"a": 1', "not JSON (Expecting ',' delimiter: line 1 column 8 (char 7))"),
        (b'{"a": 1} {}', "not JSON (Extra data: line 1 column 10 (char 9))"),
        (b'{"a": "\xe9"}', "not UTF-8 (byte 8 of the line)"),
        (b'{"a": NaN}', "not JSON ("),
        (b'{"a": "\\ud800"}', "not Unicode (half"),
    ],
    ids=lambda value: value[:12] if isinstance(value, bytes) else "",
)
def test_a_line_that_is_no_object_says_what_it_is(line, reason):
    """The reason stands in the output row, for a person to act on."""
    with pytest.raises(InvalidRecord) as damaged:
        json_text.decode(line)
    assert str(damaged.value).startswith(reason)


@pytest.mark.parametrize(
    ("line", "columns", "error", "note"),
    [
        (b'{"a":NaN,"b":"NaN","c":1.50}', {"a": None, "b": "NaN", "c": 1.5}, "", "NaN is read"),
        (b'{"a":[Infinity,-Infinity,1]}', {"a": [None, None, 1]}, "", "Infinity is read"),
        (b'{"a":NaN,"b":-Infinity}', {"a": None, "b": None}, "", "NaN, Infinity is read"),
        (b'{"a":1e400,"b":1E-400}', {"a": None, "b": 0}, "", "a number beyond 1.8e308"),
        (b'{"a":"\xe9","b":1}', {"a": None, "b": 1}, "not UTF-8", ""),
        (b'{"a":"\\ud83d","b":{"c":2}}', {"a": None, "b": {"c": 2}}, "not Unicode", ""),
        (b'{"a":"\\ud83d","b":NaN}', {"a": None, "b": None}, "not Unicode", ""),
        (b'{"a":1', None, "not JSON", ""),
        (b'{"a":NaNa}', None, "not JSON", ""),
        (b'[NaN]', None, "not a JSON object", ""),
    ],
)  # fmt: skip
def test_of_a_line_that_is_no_json_what_can_be_read_is_kept(line, columns, error, note):
    """Python's own json writes NaN; one bad text is no reason to lose the row's name."""
    made, why, noted = json_text.repair(line)
    assert (None if made is None else json_text.decode(made)) == columns
    assert why.startswith(error)
    assert bool(why) == bool(error)
    assert noted.startswith(note)
    assert bool(noted) == bool(note)


def test_numbers_of_a_line_with_nan_keep_their_digits():
    """12345678901234567890123 is an ID, and 1.10 a price."""
    line = b'{"a":NaN,"id":12345678901234567890123,"p":1.10}'
    assert json_text.repair(line)[0] == line.replace(b"NaN", b"null")


@pytest.mark.parametrize(
    "deep", [b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 900 + b"1" + b"}" * 900]
)
@pytest.mark.parametrize("line", [b'{"x": "[[", "deep": %b, "y": [1]}', b'{"deep": %b}'])
def test_a_value_that_is_nested_too_deeply_is_the_text_of_its_json(line, deep):
    """Python's stack would end in it, wherever it is read; and nothing of it may be lost."""
    whole = json_text.decode(line % b"null")
    assert json_text.decode(line % deep) == {**whole, "deep": deep.decode()}


@pytest.mark.parametrize(
    "line",
    [
        b'{"a": ' + b"[" * 300,
        b'{"a": "' + b'\\"[' * 100_000,
        b'{"\xff": ' + b"[" * 300 + b"]" * 300 + b"}",
    ],
    ids=["cut", "a text", "not UTF-8"],
)
def test_a_deep_line_that_is_broken_is_damaged(line):
    """In a time that grows with its length."""
    with pytest.raises(InvalidRecord):
        json_text.decode(line)
