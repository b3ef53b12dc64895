r"""The lines of the journal: how they are made, found, checked and read. Touches: files (reads).

A line is a JSON object whose last two fields are the ID of the run that wrote it and a CRC-32 of all bytes
before that field:

    {"row":0,"model":"m",…,"run":"0123456789ab","z":"9e7db128"}

A line that fails the check counts for nothing and is left where it is.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Self

import msgspec

from batcher.records import Result
from batcher.write import folder as folders
from batcher.write.names import JOURNAL_FILE, journal_file

__all__ = ["LineReader", "decode", "is_sound", "line_of", "run_of", "scan", "segments", "sound_lines"]  # fmt: skip

decode = msgspec.json.Decoder(Result).decode
"""The Result that a line holds; raises `msgspec.DecodeError`."""
_CHECK = b',"z":"'
_CHECK_BYTES = len(_CHECK) + 8 + 2
_RUN = b',"run":"'
_RUN_DIGITS = 12
_KEY = b'"key":"'
_MOST_OPEN = 256  # A journal may have more segments than a process may have open files.


def line_of(encoded: bytes, run: str = "") -> bytes:
    r"""A line, with its newline, of an encoded JSON object.

    >>> line_of(b'{"row":1}', "0123456789ab")
    b'{"row":1,"run":"0123456789ab","z":"9e7db128"}\n'
    """
    body = b'%b,"run":"%b"' % (encoded[:-1], run.encode()) if run else encoded[:-1]
    return b'%b,"z":"%08x"}\n' % (body, zlib.crc32(body))


def run_of(line: bytes) -> str:
    """ID of the run that wrote a line, without its newline; "" when it names none.

    >>> run_of(line_of(b'{"row":1}', "0123456789ab")[:-1])
    '0123456789ab'
    """
    end = len(line) - _CHECK_BYTES - 1
    begin = end - _RUN_DIGITS
    named = line[begin - len(_RUN) : begin] == _RUN and line[end : end + 1] == b'"'
    return line[begin:end].decode("ascii", "replace") if named and begin > 0 else ""


def is_sound(line: bytes) -> bool:
    """Whether a line, without its newline, passes its check.

    >>> is_sound(line_of(b'{"row":1}')[:-1]), is_sound(b'{"row":1}')
    (True, False)
    """
    at = len(line) - _CHECK_BYTES
    return (
        at > 0
        and line[at : at + len(_CHECK)] == _CHECK
        and line[-2:] == b'"}'
        and line[at + len(_CHECK) : -2] == b"%08x" % zlib.crc32(memoryview(line)[:at])
    )


def segments(folder: Path) -> list[tuple[int, Path]]:
    """(number, path) of every segment of the journal, in order.

    Raises:
        OSError: The folder cannot be read.
    """
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    named = [(JOURNAL_FILE.fullmatch(name), folder / name) for name in names]
    return sorted((int(match[1]), path) for match, path in named if match)


def scan(path: Path) -> Iterator[tuple[int, bytes]]:
    """(offset, line without its newline) of every line of a segment, sound or not."""
    offset = 0
    with path.open("rb", buffering=1 << 20) as file:
        for line in file:
            yield offset, line.rstrip(b"\n")
            offset += len(line)


def sound_lines(folder: Path, numbers: Container[int] | None = None) -> Iterator[bytes]:
    """Every sound line of the journal, oldest first.

    Args:
        folder: The run folder.
        numbers: Of the segments to read; None for all.
    """
    for number, path in segments(folder):
        if numbers is None or number in numbers:
            for _offset, line in scan(path):
                if is_sound(line):
                    yield line


class LineReader:
    """Reads lines by their place; a context manager that keeps segments open.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the segments."""
        while self._files:
            os.close(self._files.popitem()[1])

    def line(self, segment: int, offset: int, length: int, key: bytes = b"") -> bytes | None:
        """A line without its newline; None where it is gone or not what it was.

        Args:
            segment: The segment's number.
            offset: Of the line in the segment.
            length: Of the line, without its newline.
            key: First hex digits of the key of the request that it must answer.

        Raises:
            OSError: The disk fails.
        """
        file = self._files.get(segment)
        if file is None:
            try:
                file = self._open(segment)
            except FileNotFoundError:
                return None
        line = os.pread(file, length, offset)
        if not is_sound(line):
            return None
        # Quotes in a JSON string are escaped, so the first match is the field.
        begin = line.find(_KEY) + len(_KEY)
        return line if line.startswith(key, begin) else None

    def result(self, segment: int, offset: int, length: int, key: bytes = b"") -> Result | None:
        """The same, as a Result."""
        line = self.line(segment, offset, length, key)
        return None if line is None else decode(line)

    def _open(self, segment: int) -> int:
        if len(self._files) >= _MOST_OPEN:
            os.close(self._files.pop(next(iter(self._files))))
        with folders.descriptor(self._folder) as folder:
            file = os.open(journal_file(segment), os.O_RDONLY | folders.FILE, dir_fd=folder)
        self._files[segment] = file
        return file
