"""Object storage: `s3://` and `gs://` URLs, read in place, listed, and replaced whole. Touches: the network.

Credentials, region and endpoint are those of the environment, as for the storage's own tools (`AWS_*` and
`~/.aws`, `GOOGLE_APPLICATION_CREDENTIALS`). A URL holds none, since URLs are kept and shown. All input files are
opened through here, so that a URL goes wherever a path does.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from datetime import timedelta
from fnmatch import fnmatchcase
from functools import cache
from glob import has_magic
from typing import IO, Any

from batcher.errors import JobError, OutputError, RunStopped

__all__ = [
    "exists",
    "head",
    "here",
    "is_object",
    "matching",
    "opened",
    "parent",
    "put",
    "source",
    "stat",
    "why",
    "within",
]

_SCHEMES = ("s3://", "gs://")
_NOISE = re.compile(
    r" \(Request ID: \w+\)| error_info=\{.*?\}\}|\. Detail: \[.*|\[Errno \d+\] ", re.DOTALL
)
_BLOCK = 1 << 20
_OBJECT_BLOCK = 8 << 20  # Each is one request, which takes storage some 30 ms.
_RETRY_LIMIT = timedelta(seconds=60)  # Google's client would retry for a quarter of an hour.


def is_object(path: str) -> bool:
    """Whether a path is a URL of object storage.

    >>> is_object("s3://bucket/rows.jsonl"), is_object("rows.jsonl")
    (True, False)
    """
    return path.startswith(_SCHEMES)


def parent(path: str) -> str:
    """The folder of a file, by its URL or path.

    >>> parent("s3://bucket/a/rows.jsonl"), parent("/data/rows.jsonl")
    ('s3://bucket/a', '/data')
    """
    return path.rpartition("/")[0] if is_object(path) else os.path.dirname(path)


def here(path: str) -> str:
    """Where an output is written before it is uploaded: under its name in the working folder.

    The slash behind the name of a folder is removed.

    >>> here("s3://bucket/a/rows.jsonl"), here("/data/rows.jsonl"), here("labels/")
    ('rows.jsonl', '/data/rows.jsonl', 'labels')
    """
    path = path.rstrip("/") or path
    return path.rpartition("/")[2] if is_object(path) else path


def opened(path: str) -> IO[bytes]:
    """Opens a file or an object for reading and seeking.

    Raises:
        OSError: It is not there, or cannot be read. A failure later, while an object is read, raises
            RunStopped: the network failed, and the object is unchanged.
    """
    if not is_object(path):
        return open(path, "rb", buffering=_BLOCK)
    return io.BufferedReader(_Object(path), _OBJECT_BLOCK)


def head(path: str, size: int) -> bytes:
    """Reads the first bytes of a file or an object, and fetches no more.

    Raises:
        OSError: As for `opened`.
    """
    with _Object(path) if is_object(path) else open(path, "rb", buffering=0) as file:
        return file.read(size) or b""


def source(path: str) -> str | IO[bytes]:
    """What pyarrow reads Parquet from: the path, or the opened object."""
    return opened(path) if is_object(path) else path


def why(error: OSError) -> str:
    """The message of an error without the file's name, request IDs and a full stop."""
    if error.errno is not None and error.filename is not None:
        return error.strerror or str(error)
    return _NOISE.sub("", str(error)).rstrip(". ")


def stat(path: str) -> tuple[int, int] | None:
    """(bytes, time of the last change in ns) of an object; None where there is none.

    Raises:
        OSError: The network, the bucket or the permissions prevent the request.
    """
    from pyarrow.fs import FileType

    files, key = _storage(path)
    found = files.get_file_info(key)
    return (found.size, found.mtime_ns or 0) if found.type == FileType.File else None


def exists(path: str) -> bool:
    """Whether there is an object that `put` would replace.

    Raises:
        JobError: The bucket is not there, or cannot be reached.
    """
    from pyarrow.fs import FileType

    try:
        files, key = _storage(path)
        if files.get_file_info(key).type == FileType.File:
            return True
        bucket = key.partition("/")[0]
        if files.get_file_info(bucket).type == FileType.NotFound:
            raise JobError(f"{path}: there is no bucket {bucket}.")
    except OSError as error:
        raise JobError(f"{path}: the storage cannot be reached: {why(error)}.") from None
    return False


def within(path: str) -> list[str]:
    """The URLs of all objects in a folder and in the folders in it, sorted.

    Raises:
        OSError: It cannot be listed.
    """
    return list(_listed(path.rstrip("/"), recursive=True))


def matching(pattern: str) -> list[str]:
    """The URLs of the objects that a glob matches, sorted; `**` matches any number of folders.

    Raises:
        JobError: The bucket is part of the pattern.
        OSError: The folder cannot be listed.
    """
    wanted = pattern.split("/")
    fixed = next(n for n, part in enumerate(wanted) if has_magic(part))
    if fixed < 3:
        raise JobError(f"{pattern}: a pattern cannot match buckets; name the bucket.")
    inside = _listed("/".join(wanted[:fixed]), recursive=fixed < len(wanted) - 1 or "**" in wanted)
    return [url for url in inside if _fits(url.split("/")[fixed:], wanted[fixed:])]


def put(local: str, path: str) -> None:
    """Uploads a file; an old object stays until the new one is complete.

    Raises:
        OutputError: The upload failed.
    """
    from pyarrow.fs import LocalFileSystem, copy_files

    try:
        files, key = _storage(path)
        copy_files(os.path.abspath(local), key, LocalFileSystem(), files)
        size, there = os.stat(local).st_size, stat(path)
        if there is None or there[0] != size:
            raise OSError(f"{0 if there is None else there[0]:,} of {size:,} bytes arrived")
    except OSError as error:
        raise OutputError(
            f"{path}: the upload failed: {why(error)}. All rows are in {local}; fix that and run the same command "
            "again: nothing is sent twice."
        ) from None


class _Object(io.RawIOBase):
    """An object as a Python file.

    Each read is a request of its own: rows are read for as long as the run takes, and no connection
    stays open for that long.
    """

    def __init__(self, path: str) -> None:
        files, key = _storage(path)
        self._path, self._file = path, files.open_input_file(key)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return int(self._file.tell())

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def readinto(self, buffer: Any) -> int:
        try:
            return int(self._file.readinto(buffer))
        except OSError as error:
            raise RunStopped(
                f"{self._path}: it cannot be read any further: {why(error)}."
            ) from None

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _listed(folder: str, *, recursive: bool) -> Iterator[str]:
    from pyarrow.fs import FileSelector, FileType

    files, key = _storage(folder)
    scheme = folder[: len(_SCHEMES[0])]
    inside = files.get_file_info(FileSelector(key, allow_not_found=True, recursive=recursive))
    yield from sorted(f"{scheme}{info.path}" for info in inside if info.type == FileType.File)


def _fits(parts: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        hidden = next((n for n, part in enumerate(parts) if part.startswith(".")), len(parts))
        return any(_fits(parts[n:], pattern[1:]) for n in range(hidden + 1))
    if not parts or (parts[0].startswith(".") and not pattern[0].startswith(".")):
        return False
    return fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def _storage(path: str) -> tuple[Any, str]:
    """The storage of a URL, and the key of the object (bucket/name)."""
    scheme, key = path[: len(_SCHEMES[0])], path[len(_SCHEMES[0]) :]
    bucket = key.partition("/")[0]
    if not bucket or "@" in bucket:
        what = (
            "give credentials in the environment, not in a URL" if bucket else "it names no bucket"
        )
        raise JobError(f"{path}: {what}.")
    return _client(scheme, bucket), key.rstrip("/")


@cache
def _client(scheme: str, bucket: str) -> Any:
    from pyarrow import fs  # Slow to import.

    if scheme == "gs://":
        # An emulator takes no credentials, and looking for some could fail.
        anonymous = "CLOUD_STORAGE_EMULATOR_ENDPOINT" in os.environ
        return fs.GcsFileSystem(anonymous=anonymous, retry_time_limit=_RETRY_LIMIT)
    return fs.FileSystem.from_uri(f"{scheme}{bucket}")[0]  # Looks up the bucket's region.
