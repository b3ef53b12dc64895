"""File systems of our own, to fill or to cut off. All of it needs root."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["cut_power", "ext4", "fill", "image", "tmpfs"]

_SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN
_NO_LOG_FLUSH = 2  # What the file system's own log holds in memory is lost too, as in a power cut.
_PAGE = 4096


@contextmanager
def tmpfs(folder: Path, size: str, inodes: int = 0) -> Iterator[Path]:
    """A file system in memory; `inodes` 0 is no bound."""
    with _mounted(folder, "-t", "tmpfs", "-o", f"size={size},nr_inodes={inodes}", "none"):
        yield folder


def image(path: Path, megabytes: int) -> Path:
    """An empty ext4 in a file."""
    _need_root()
    with path.open("wb") as file:
        file.truncate(megabytes << 20)
    _tried("mkfs.ext4", "-q", "-F", path)
    return path


@contextmanager
def ext4(of: Path, folder: Path, options: str = "defaults") -> Iterator[Path]:
    """An image, mounted; what its log holds is replayed then."""
    with _mounted(folder, "-o", f"loop,{options}", of):
        yield folder


def cut_power(folder: Path) -> float:
    """Cuts a mounted ext4 off its disk; returns the time before, on the monotonic clock."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        before = time.monotonic()
        fcntl.ioctl(handle, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
    finally:
        os.close(handle)
    return before


def fill(folder: Path, leave: int) -> Path:
    """Fills a tmpfs but for `leave` bytes, rounded to pages; deleting the file makes room."""
    ballast = folder / "ballast"
    file = os.open(ballast, os.O_WRONLY | os.O_CREAT)
    try:
        for _ in range(100):
            held = os.fstat(file).st_size
            room = os.statvfs(folder).f_bavail * _PAGE
            try:
                os.posix_fallocate(file, 0, max(1, held + room - leave // _PAGE * _PAGE))
            except OSError:
                continue  # Somebody else took some of the room meanwhile.
            return ballast
    finally:
        os.close(file)
    raise AssertionError("the disk could not be filled")


@contextmanager
def _mounted(folder: Path, *words: str | Path) -> Iterator[None]:
    _need_root()
    folder.mkdir(exist_ok=True)
    _tried("mount", *words, folder)
    try:
        yield
    finally:
        for _ in range(50):
            done = subprocess.run(["umount", folder], capture_output=True, check=False)
            if not done.returncode:
                break
            time.sleep(0.1)
        else:
            subprocess.run(["umount", "-l", folder], check=False)


def _need_root() -> None:
    if os.geteuid():
        pytest.skip("needs root, to mount a file system")


def _tried(*words: str | Path) -> None:
    try:
        subprocess.run(words, capture_output=True, check=True)
    except FileNotFoundError:
        pytest.skip(f"needs {words[0]}")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"{words[0]} does not work here: {error.stderr.decode().strip()}")
