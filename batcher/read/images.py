"""Pictures that a row names in its column `image_path`, to parts of a message. Touches: files, the network (reads).

A picture goes inside the request, as base64, and is read when the request is made. Rows may come from
anybody: what lies outside of the folder is not opened, and what its first bytes do not show to be a
picture is not sent. Links in the folder are followed: rows cannot make them.
"""

from __future__ import annotations

import os
import posixpath
import stat
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

from batcher.read import object_store
from batcher.records import Row

__all__ = ["COLUMN", "MOST_BYTES", "Digest", "NoPicture", "image_bytes", "parts"]

COLUMN = "image_path"
MOST_BYTES = 20 << 20
_ADDRESSES = ("https://", "http://", "data:image/")
_COUNTED_BYTES = 4000  # Of a picture, as text of its tokens: about a thousand of them.


class NoPicture(ValueError):
    """What a row names is no picture that can be sent; the text says why."""


def parts(value: object, folder: str) -> list[dict[str, Any]]:
    """The parts of a message that show what a row's `image_path` names.

    Args:
        value: A path, an address (http, https, data), a list of these, or None.
        folder: Where relative paths begin, and which none may leave; a path or an address.

    Raises:
        NoPicture: It is outside, cannot be read, is larger than 20 MB, or is no PNG, JPEG, GIF or WebP.
    """
    return [
        {"type": "image_url", "image_url": {"url": _address(name, folder)}}
        for name in _names(value)
    ]


def image_bytes(messages: Sequence[Mapping[str, Any]]) -> int:
    """Bytes of pictures and other media in messages beyond those that their tokens are counted for.

    Negative where addresses stand for pictures.
    """
    found = 0
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and part.get("type", "text") != "text":
                sizes = [len(text) for text in _texts(part.get(str(part["type"])))]
                found += max(sizes, default=0) - _COUNTED_BYTES
    return found


class Digest:
    """What the pictures of some rows are known by, without reading them: name, size, times, inode.

    Of those in object storage only the name: to ask for each would take as long as to read it.
    """

    def __init__(self) -> None:
        self._sum = blake2b(digest_size=16)
        self._any = False

    def add(self, row: Row) -> None:
        """Takes a row in; rows go in in order."""
        value = None if row.columns is None else row.columns.get(COLUMN)
        if value is None:
            return
        try:
            names = list(_names(value))
        except NoPicture:
            return
        for name in names:
            self._any = True
            try:
                of = os.stat(_located(name, row.folder))
                facts = f"{of.st_size} {of.st_mtime_ns} {of.st_ctime_ns} {of.st_ino}"
            except (OSError, ValueError):  # A NoPicture is one.
                facts = ""
            told = f"{row.position} {name}\0{facts}\0"
            self._sum.update(told.encode("utf-8", "surrogatepass"))

    def __str__(self) -> str:
        """In hex; "" when no row named a picture."""
        return self._sum.hexdigest() if self._any else ""


def _names(value: object) -> Iterator[str]:
    for name in value if isinstance(value, list) else [value]:
        if isinstance(name, str) and name:
            yield name
        elif name not in (None, ""):
            raise NoPicture(f'"{COLUMN}" must be a path or a list of paths, not {name!r:.100}')


def _address(name: str, folder: str) -> str:
    if name.lower().startswith(_ADDRESSES):
        return name
    path = _located(name, folder)
    try:
        # To open a pipe would wait for who fills it.
        if not object_store.is_object(path) and not stat.S_ISREG(os.stat(path).st_mode):
            raise NoPicture(f"{path}: it is no file")
        with object_store.opened(path) as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, NoPicture):
            raise
        why = object_store.why(error) if isinstance(error, OSError) else error
        raise NoPicture(f"{path}: the picture cannot be read: {why}") from None
    if len(content) > MOST_BYTES:
        raise NoPicture(f"{path}: the picture is larger than {MOST_BYTES >> 20} MB")
    kind = _kind(content)
    if kind is None:
        raise NoPicture(f"{path}: it is no PNG, JPEG, GIF or WebP")
    return f"data:image/{kind};base64,{b64encode(content).decode()}"


def _located(name: str, folder: str) -> str:
    """Where a picture is; raises NoPicture when that is outside of the folder."""
    if object_store.is_object(folder):
        whole = name if object_store.is_object(name) else f"{folder}/{name}"
        scheme, key = whole[:5], posixpath.normpath(whole[5:])
        path, root = f"{scheme}{key}", folder.rstrip("/")
        inside = path.startswith(f"{root}/") and not name.startswith("/")
    else:
        path = os.path.normpath(os.path.join(folder, name))
        root, found = os.path.abspath(folder), os.path.abspath(path)
        inside = f"{found}/".startswith(root.rstrip("/") + "/")
    if not inside:
        raise NoPicture(
            f"{name}: it is outside of the folder {root}; --images names the one that pictures are in"
        )
    return path


def _kind(content: bytes) -> str | None:
    """By the first bytes; names of files say other things often enough."""
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if content.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if content.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return "webp"
    return None


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (inside for inside in value.values() if isinstance(inside, str))
