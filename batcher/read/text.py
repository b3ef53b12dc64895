"""The bytes of a text file as UTF-8, however it is compressed and encoded. Touches: files, the network.

All formats of text read through here, so that compression and encodings are the same for each.
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
    "SAMPLE_BYTES",
    "InvalidRecord",
    "blocks",
    "check_packing",
    "encoding_of",
    "head",
    "is_packed",
    "may_be_utf16",
    "opened",
]

BOM = b"\xef\xbb\xbf"
SAMPLE_BYTES = 1 << 20
"""How much of a file decides its encoding."""
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
_SUFFIXES = {"gzip data": ".gz", "zstd data": ".zst", "Parquet": ".parquet"}
_UTF32_BOMS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_BOMS = (*_UTF32_BOMS, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_HIGH = re.compile(rb"[\x80-\xff]+")
_NOT_CP1252 = frozenset(b"\x81\x8d\x8f\x90\x9d")
_CANDIDATES = ("gb18030", "shift_jis", "big5", "euc_kr", "cp1251")
_REPLACE = "batcher.replace"
# A lone surrogate replaces a byte that the encoding does not have, so that its row can be found.
codecs.register_error(_REPLACE, lambda error: ("\udc80", getattr(error, "end", 0)))


class InvalidRecord(ValueError):
    """A record is not what its format says, or the file ends inside of its compressed stream."""


def is_packed(path: str) -> bool:
    """Whether the name says that the content is compressed."""
    return path.endswith(_PACKED)


def blocks(path: str, encoding: str = "") -> Iterator[bytes]:
    """Yields the whole file, decompressed, as UTF-8, in blocks of about 1 MB.

    Args:
        path: The file.
        encoding: Encoding of its text. "" for UTF-8, whose bytes are passed through, invalid ones too.
            Bytes that another encoding does not have become bytes that are invalid UTF-8.

    Raises:
        InvalidRecord: The compressed stream is cut or broken; all before that was yielded.
    """
    content = _unpacked(path) if is_packed(path) else _plain(path)
    if not encoding:
        yield from content
        return
    decoder = codecs.getincrementaldecoder(encoding)(_REPLACE)
    for block in content:
        yield decoder.decode(block).encode("utf-8", "surrogatepass")
    yield decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")


@contextmanager
def opened(path: str, encoding: str = "") -> Iterator[io.TextIOWrapper]:
    """Opens the file as text with the line ends that it has; invalid bytes become lone surrogates."""
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
    with _decompressed(path) as file:
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
    # A block that reaches the cut is lost as a whole: read it again, byte by byte.
    yield _up_to_cut(path, done)
    raise InvalidRecord(f"the compressed file is cut or broken here ({damage})")


def _up_to_cut(path: str, start: int) -> bytes:
    found = bytearray()
    with _decompressed(path) as file, suppress(*_BROKEN):
        while start > 0:
            start -= len(file.read(min(start, _BLOCK)))
        while byte := file.read(1):
            found += byte
    return bytes(found)


@contextmanager
def _decompressed(path: str) -> Iterator[Any]:
    with object_store.opened(path) as packed:
        if path.endswith(".gz"):
            with gzip.open(packed, "rb") as file:
                yield file
            return
        import pyarrow as pa  # Slow to import.

        with pa.input_stream(packed, compression="zstd") as file:
            yield file


def check_packing(path: str) -> None:
    """Checks that a text file is compressed as its name says.

    Raises:
        JobError: It is not; the message names what it is.
    """
    start = object_store.head(path, 4)
    found = next((name for magic, name in _MAGIC.items() if start.startswith(magic)), "")
    suffix = next((suffix for suffix in _PACKED if path.endswith(suffix)), "")
    if suffix and start and _SUFFIXES.get(found) != suffix:
        # A zstd file may begin with a skippable frame.
        if suffix == ".zst" and start[1:] == b"\x2a\x4d\x18":
            return
        what = f"it is {found}" if found else "its content is not compressed"
        raise JobError(f"{path}: its name ends in {suffix}, but {what}; rename it.")
    if found and not suffix:
        fix = f"rename it to end in {_SUFFIXES[found]}" if found in _SUFFIXES else "save it as CSV"
        raise JobError(f"{path}: it is {found}; {fix}.")


def head(path: str, size: int) -> bytes:
    """Reads the first bytes, decompressed but not decoded; `size` at most, all of a plain file."""
    start = object_store.head(path, size)
    if path.endswith(".gz"):
        with suppress(zlib.error):
            return zlib.decompressobj(wbits=31).decompress(start, size)
        return b""
    if not path.endswith(".zst"):
        return start
    import pyarrow as pa

    found = bytearray()
    with suppress(*_BROKEN), pa.input_stream(pa.BufferReader(start), compression="zstd") as file:
        while len(found) < size and (block := file.read(4096)):
            found += block
    return bytes(found[:size])


def may_be_utf16(start: bytes) -> bool:
    """Whether the first bytes look like UTF-16 or UTF-32, which cannot be split into lines or items."""
    return start.startswith((b"\xff", b"\xfe")) or 0 in start[:4096]


def encoding_of(path: str, start: bytes, given: str | None) -> tuple[str, list[str]]:
    """Finds the encoding of a file by its first `SAMPLE_BYTES`.

    Args:
        path: The file.
        start: Its first bytes.
        given: The encoding that the user gives, "" for UTF-8; None to detect it.

    Returns:
        The encoding, "" for UTF-8, and notes for the user.

    Raises:
        JobError: It is not the encoding that was given, or cannot be told from similar ones.
    """
    if given is not None:
        return _confirmed(path, start, given), []
    whole = len(start) < SAMPLE_BYTES and not is_packed(path)
    found = _detected(path, start, whole=whole)
    return found, [f"read as {found}; give --encoding if that is wrong"] if found else []


def _confirmed(path: str, start: bytes, encoding: str) -> str:
    """The given encoding, once the file can be text in it; with the byte order where no BOM tells it."""
    wrong = JobError(f"{path}: it is not {encoding}; leave --encoding out, or give another.")
    if encoding.startswith(("utf-16", "utf-32")):
        if start and 0 not in start:  # Its commas and line ends alone would have some.
            raise wrong
        if encoding in ("utf-16", "utf-32") and not start.startswith(_BOMS):
            return f"{encoding}-{'be' if start.startswith(bytes(1)) else 'le'}"
        return encoding
    if start.count(0) * 4 > len(start):
        raise JobError(f"{path}: it looks like UTF-16; give --encoding utf-16, or leave it out.")
    if encoding:
        text = codecs.getincrementaldecoder(encoding)(_REPLACE).decode(start)
        if text.count("\udc80") * 2 > sum(letter > "\x7f" for letter in text):
            raise wrong
    return encoding


def _detected(path: str, start: bytes, *, whole: bool) -> str:
    """Detects the encoding.

    A BOM or the pattern of NULs shows UTF-16. Single bytes above 127 among ASCII show Windows-1252, or
    Latin-1 where a byte is not in it. A few invalid bytes among letters of UTF-8 do not make it another
    encoding: those rows are unreadable. `whole` says that no letter is cut at the end.
    """
    if start.startswith(_UTF32_BOMS):
        return "utf-32"
    if start.startswith(_BOMS):
        return "utf-16"
    first = start[:4096]
    even, odd = first[::2].count(0), first[1::2].count(0)
    if (even + odd) * 4 > len(first) and len(first) >= 4:
        return "utf-16-le" if odd > even else "utf-16-be"
    if _decodes(start, "utf-8", whole=whole):
        return ""
    text = start.decode("utf-8", "surrogateescape")
    wrong = sum("\udc80" <= letter <= "\udcff" for letter in text)
    right = sum(letter > "\x7f" for letter in text) - wrong
    if right > wrong:
        return ""
    runs = [len(run) for run in _HIGH.findall(start)]
    if sum(n for n in runs if n > 2) * 4 > sum(runs):
        possible = ", ".join(name for name in _CANDIDATES if _decodes(start, name, whole=whole))
        raise JobError(
            f"{path}: its text is not UTF-8, and its encoding cannot be detected; give --encoding"
            f"{f' (its bytes fit: {possible})' if possible else ''}."
        )
    return "iso8859-1" if any(byte in _NOT_CP1252 for byte in start) else "cp1252"


def _decodes(start: bytes, encoding: str, *, whole: bool) -> bool:
    try:
        codecs.getincrementaldecoder(encoding)("strict").decode(start, final=whole)
    except UnicodeDecodeError:
        return False
    return True
