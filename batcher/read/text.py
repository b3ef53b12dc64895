"""The bytes of a text file as UTF-8, whatever packs and encodes them. Touches: files, the network.

Everything that reads text begins here, so that compression and encodings are the same for all formats.
"""

from __future__ import annotations

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from batcher.errors import JobError
from batcher.read import object_store

__all__ = [
    "BOM",
    "Damaged",
    "blocks",
    "check_packing",
    "encoding_of",
    "is_packed",
    "look",
    "opened",
    "readable",
]

BOM = b"\xef\xbb\xbf"
_BLOCK = 1 << 20
_PACKED = (".gz", ".zst")
# pyarrow reports a broken zstd stream as an OSError without a number, or as a ValueError.
_BROKEN = (EOFError, zlib.error, OSError, ValueError)
_MAGIC = {
    b"\x1f\x8b": "gzip data",
    b"\x28\xb5\x2f\xfd": "zstd data",
    b"PK\x03\x04": "a ZIP archive or an Excel workbook",
    b"PAR1": "Parquet",
}
_ENDS = {"gzip data": ".gz", "zstd data": ".zst", "Parquet": ".parquet"}
_MARKS = (
    codecs.BOM_UTF32_LE,
    codecs.BOM_UTF32_BE,
    codecs.BOM_UTF16_LE,
    codecs.BOM_UTF16_BE,
)
_HIGH = re.compile(rb"[\x80-\xff]+")
_UNDEFINED = frozenset(b"\x81\x8d\x8f\x90\x9d")  # No letters in Windows-1252.
_CANDIDATES = ("gb18030", "shift_jis", "big5", "euc_kr", "cp1251")
_BROKEN_CHAR = "batcher.broken"
# A surrogate stands for what the encoding does not have, so that the row that holds it can be found.
codecs.register_error(_BROKEN_CHAR, lambda error: ("\udc80", getattr(error, "end", 0)))


class Damaged(ValueError):
    """The file ends in the middle of its compressed stream, or a record is not what its format says."""


def is_packed(path: str) -> bool:
    """Whether the name says that the content is compressed."""
    return path.endswith(_PACKED)


def blocks(path: str, encoding: str = "") -> Iterator[bytes]:
    """The whole file in pieces of some size, unpacked, as UTF-8.

    Args:
        path: The file.
        encoding: Of its text; "" for UTF-8, whose bytes come as they are, wrong ones included. What
            another encoding does not have comes as bytes that are no UTF-8.

    Raises:
        Damaged: The compressed stream is cut or broken; all that stands before that was yielded.
    """
    found = _unpacked(path) if is_packed(path) else _plain(path)
    if not encoding:
        yield from found
        return
    decoder = codecs.getincrementaldecoder(encoding)(_BROKEN_CHAR)
    for block in found:
        yield decoder.decode(block).encode("utf-8", "surrogatepass")
    yield decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")


@contextmanager
def opened(path: str, encoding: str = "") -> Iterator[io.TextIOWrapper]:
    """The same as text with the line ends that it has; a byte that is no UTF-8 is half a surrogate pair."""
    plain = not encoding and not is_packed(path)
    content: IO[bytes]
    content = (
        object_store.opened(path) if plain else io.BufferedReader(_Stream(path, encoding), _BLOCK)
    )
    with io.TextIOWrapper(content, "utf-8-sig", errors="surrogateescape", newline="") as file:
        yield file


class _Stream(io.RawIOBase):
    """`blocks` as a file."""

    def __init__(self, path: str, encoding: str) -> None:
        self._blocks = blocks(path, encoding)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._rest = memoryview(block)
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def _plain(path: str) -> Iterator[bytes]:
    with object_store.opened(path) as file:
        while block := file.read(_BLOCK):
            yield block


def _unpacked(path: str) -> Iterator[bytes]:
    done = 0
    damage: Exception | None = None
    with _open(path) as file:
        try:
            while block := file.read(_BLOCK):
                done += len(block)
                yield block
        except _BROKEN as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            damage = error
    if damage is None:
        return
    # A block that meets the cut is lost with all that stands before it: read again, in bytes.
    yield _to_the_cut(path, done)
    raise Damaged(f"the compressed file is cut or broken here ({damage})")


def _to_the_cut(path: str, start: int) -> bytes:
    found = bytearray()
    with _open(path) as file, suppress(*_BROKEN):
        while start > 0:
            start -= len(file.read(min(start, _BLOCK)))
        while byte := file.read(1):
            found += byte
    return bytes(found)


@contextmanager
def _open(path: str) -> Iterator[Any]:
    with object_store.opened(path) as packed:
        if path.endswith(".gz"):
            with gzip.open(packed, "rb") as file:
                yield file
            return
        import pyarrow as pa  # Takes its time to import.

        with pa.input_stream(packed, compression="zstd") as file:
            yield file


def check_packing(path: str) -> None:
    """Whether a text file is packed as its name says.

    Raises:
        JobError: It is not; the message names what it is.
    """
    head = object_store.head(path, 4)
    found = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "")
    end = next((end for end in _PACKED if path.endswith(end)), "")
    if end and head and _ENDS.get(found) != end:
        # A zstd file may begin with a frame that is skipped.
        if end == ".zst" and head[1:] == b"\x2a\x4d\x18":
            return
        what = f"it is {found}" if found else "its content is not compressed"
        raise JobError(f"{path}: its name ends in {end}, but {what}; rename it.")
    if found and not end:
        mend = f"rename it to end in {_ENDS[found]}" if found in _ENDS else "save it as CSV"
        raise JobError(f"{path}: it is {found}; {mend}.")


def look(path: str, size: int) -> bytes:
    """Some of the first bytes, unpacked but as they are encoded: `size` at most, all of them of a plain file."""
    head = object_store.head(path, size)
    if path.endswith(".gz"):
        with suppress(zlib.error):
            return zlib.decompressobj(wbits=31).decompress(head, size)
        return b""
    if not path.endswith(".zst"):
        return head
    import pyarrow as pa

    found = bytearray()
    with suppress(*_BROKEN), pa.input_stream(pa.BufferReader(head), compression="zstd") as file:
        while len(found) < size and (block := file.read(4096)):
            found += block
    return bytes(found[:size])


def readable(path: str, head: bytes, encoding: str) -> str:
    """The encoding that was asked for, once the beginning of the file can be text in it.

    UTF-16 and UTF-32 without a mark get the order of bytes that their NULs show.

    Raises:
        JobError: It cannot.
    """
    if encoding.startswith(("utf-16", "utf-32")):
        if head and 0 not in head:  # Its commas and line ends alone would have some.
            raise JobError(f"{path}: it is not {encoding}; leave --encoding out, or give another.")
        if encoding in ("utf-16", "utf-32") and not head.startswith(_MARKS):
            return f"{encoding}-{'be' if head.startswith(bytes(1)) else 'le'}"
        return encoding
    if head.count(0) * 4 > len(head):
        raise JobError(f"{path}: it looks like UTF-16; give --encoding utf-16, or leave it out.")
    if not encoding:
        return encoding
    text = codecs.getincrementaldecoder(encoding)(_BROKEN_CHAR).decode(head)
    broken = text.count("\udc80")
    if broken * 2 > sum(letter > "\x7f" for letter in text):
        raise JobError(f"{path}: it is not {encoding}; leave --encoding out, or give another.")
    return encoding


def encoding_of(path: str, head: bytes, *, whole: bool) -> str:
    """What encoding a file has, by its beginning; "" for UTF-8.

    A mark at the start and the pattern of NULs tell UTF-16. Single letters above 127 among ASCII tell
    Windows-1252, or Latin-1 where a byte is none of that. A few wrong bytes in a text with letters of UTF-8
    do not make it another encoding: these rows are unreadable.

    Args:
        path: For the message.
        head: The first bytes.
        whole: Whether that is all of the file, so that no letter is cut at its end.

    Raises:
        JobError: It is text in some other encoding, which cannot be told from its relatives.
    """
    if head.startswith(_MARKS[:2]):
        return "utf-32"
    if head.startswith(_MARKS):
        return "utf-16"
    start = head[:4096]
    even, odd = start[::2].count(0), start[1::2].count(0)
    if (even + odd) * 4 > len(start) and len(start) >= 4:
        return "utf-16-le" if odd > even else "utf-16-be"
    try:
        codecs.getincrementaldecoder("utf-8")("strict").decode(head, final=whole)
    except UnicodeDecodeError:
        pass
    else:
        return ""
    text = head.decode("utf-8", "surrogateescape")
    wrong = sum("\udc80" <= letter <= "\udcff" for letter in text)
    right = sum(letter > "\x7f" for letter in text) - wrong
    if right > wrong:
        return ""
    runs = [len(run) for run in _HIGH.findall(head)]
    if sum(n for n in runs if n > 2) * 4 > sum(runs):
        able = ", ".join(name for name in _CANDIDATES if _decodes(head, name, whole=whole))
        raise JobError(
            f"{path}: its text is not UTF-8, and which encoding it has cannot be told; give --encoding"
            f"{f' (possible by its bytes: {able})' if able else ''}."
        )
    return "iso8859-1" if any(byte in _UNDEFINED for byte in head) else "cp1252"


def _decodes(head: bytes, encoding: str, *, whole: bool) -> bool:
    try:
        codecs.getincrementaldecoder(encoding)("strict").decode(head, final=whole)
    except UnicodeDecodeError:
        return False
    return True
