"""Images that a row names in its column `image_path`, as parts of a message. Touches: files, the network (reads).

An image goes into the request as base64, and is read when the request is made. Rows may come from anybody: a
file outside of the folder is not opened, and a file that does not begin like an image is not sent. Links in
the folder are followed: rows cannot make them.
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

__all__ = ["COLUMN", "MAX_BYTES", "Digest", "InvalidImage", "image_bytes", "parts"]

COLUMN = "image_path"
MAX_BYTES = 20 << 20
_URLS = ("https://", "http://", "data:image/")
_COUNTED_BYTES = 4000  # An image takes about a thousand tokens, as much as 4,000 bytes of text.


class InvalidImage(ValueError):
    """A row names an image that cannot be sent; the message says why."""


def parts(value: object, folder: str) -> list[dict[str, Any]]:
    """Makes the parts of a message that show what a row's `image_path` names.

    Args:
        value: A path, a URL (http, https, data), a list of these, or None.
        folder: Where relative paths begin, and which no path may leave; a path or a URL.

    Raises:
        InvalidImage: It is outside, cannot be read, is larger than 20 MB, or is no PNG, JPEG, GIF or WebP.
    """
    return [
        {"type": "image_url", "image_url": {"url": _url(name, folder)}} for name in _names(value)
    ]


def image_bytes(messages: Sequence[Mapping[str, Any]]) -> int:
    """Bytes of images and other media in messages, beyond those that their tokens are counted by.

    Negative where a message holds URLs of images.
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
    """Identifies the images of some rows without reading them: by name, size, times and inode.

    An image in object storage is identified by its name alone: asking for more takes as long as reading it.
    """

    def __init__(self) -> None:
        self._sum = blake2b(digest_size=16)
        self._any = False

    def add(self, row: Row) -> None:
        """Adds a row; the order of the rows counts."""
        value = None if row.columns is None else row.columns.get(COLUMN)
        if value is None:
            return
        try:
            names = list(_names(value))
        except InvalidImage:
            return
        for name in names:
            self._any = True
            try:
                stat = os.stat(_located(name, row.folder))
                facts = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
            except (OSError, ValueError):  # An InvalidImage is a ValueError.
                facts = ""
            line = f"{row.position} {name}\0{facts}\0"
            self._sum.update(line.encode("utf-8", "surrogatepass"))

    def __str__(self) -> str:
        """The digest in hex; "" when no row named an image."""
        return self._sum.hexdigest() if self._any else ""


def _names(value: object) -> Iterator[str]:
    for name in value if isinstance(value, list) else [value]:
        if isinstance(name, str) and name:
            yield name
        elif name not in (None, ""):
            raise InvalidImage(f'"{COLUMN}" must be a path or a list of paths, not {name!r:.100}')


def _url(name: str, folder: str) -> str:
    if name.lower().startswith(_URLS):
        return name
    path = _located(name, folder)
    try:
        # Opening a pipe would wait for its writer.
        if not object_store.is_object(path) and not stat.S_ISREG(os.stat(path).st_mode):
            raise InvalidImage(f"{path}: it is no file")
        with object_store.opened(path) as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, InvalidImage):
            raise
        why = object_store.why(error) if isinstance(error, OSError) else error
        raise InvalidImage(f"{path}: the image cannot be read: {why}") from None
    if len(content) > MAX_BYTES:
        raise InvalidImage(f"{path}: the image is larger than {MAX_BYTES >> 20} MB")
    kind = _kind(content)
    if kind is None:
        raise InvalidImage(f"{path}: it is no PNG, JPEG, GIF or WebP")
    return f"data:image/{kind};base64,{b64encode(content).decode()}"


def _located(name: str, folder: str) -> str:
    """Resolves the path of an image; raises InvalidImage when it is outside of the folder."""
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
        raise InvalidImage(
            f"{name}: it is outside of the folder {root}; name the folder of the images with --images"
        )
    return path


def _kind(content: bytes) -> str | None:
    """The kind of an image by its first bytes; file names are often wrong."""
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
