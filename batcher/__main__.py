"""`python -m batcher` and the console script. Touches: the process."""

from __future__ import annotations

import io
import os
import sys


def _open_all() -> None:
    """Where a stream was closed (<&-), its number would become that of a socket or of the journal."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # Takes the lowest number that is free.
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def _allow_all_texts() -> None:
    """Where stdout takes only some characters (ASCII), the others are written as escapes."""
    if isinstance(sys.stdout, io.TextIOWrapper) and "utf" not in sys.stdout.encoding.lower():
        sys.stdout.reconfigure(errors="backslashreplace")


_WIDTHS = range(40, 1001)
"""Columns that tables and help are laid out for; far below, rich raises or does not end."""


def _bound_width() -> None:
    """Sets COLUMNS to the nearest usable width where it, or a terminal, is too narrow or too wide."""
    told = os.environ.pop("COLUMNS", "")
    width = int(told) if told.isdecimal() else 0
    for stream in (1, 2):
        if not width and os.isatty(stream):
            width = os.get_terminal_size(stream).columns
    bound = min(max(width, _WIDTHS[0]), _WIDTHS[-1])
    if width and (told or bound != width):
        os.environ["COLUMNS"] = str(bound)


def main() -> None:
    """Runs the command line and exits with its status."""
    _open_all()
    _allow_all_texts()
    _bound_width()
    try:
        from batcher.cli.app import main as run  # Light until a command is known.

        status = run()
    except KeyboardInterrupt:  # Before there was anything to stop.
        sys.stderr.write("batcher: interrupted.\n")
        status = 130
    sys.exit(status)


if __name__ == "__main__":
    main()
