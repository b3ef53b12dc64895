"""`python -m batcher` and the console script. Touches: the process."""

from __future__ import annotations

import io
import os
import sys


def _open_all() -> None:
    """Opens closed standard streams (<&-): else a socket or the journal would get their numbers."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # Gets the lowest free number.
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def _allow_all_texts() -> None:
    """Writes characters that the encoding of stdout lacks as escapes."""
    if isinstance(sys.stdout, io.TextIOWrapper) and "utf" not in sys.stdout.encoding.lower():
        sys.stdout.reconfigure(errors="backslashreplace")


_WIDTHS = range(40, 1001)
"""Widths that tables and help are made for; far below, rich raises or does not end."""


def _bound_width() -> None:
    """Sets COLUMNS to the nearest usable width where it, or a terminal, is too narrow or too wide."""
    columns = os.environ.pop("COLUMNS", "")
    width = int(columns) if columns.isdecimal() else 0
    for stream in (1, 2):
        if not width and os.isatty(stream):
            width = os.get_terminal_size(stream).columns
    bound = min(max(width, _WIDTHS[0]), _WIDTHS[-1])
    if width and (columns or bound != width):
        os.environ["COLUMNS"] = str(bound)


def main() -> None:
    """Runs the command line and exits with its status."""
    _open_all()
    _allow_all_texts()
    _bound_width()
    try:
        from batcher.cli.app import main as run  # Imports little until a command is known.

        status = run()
    except KeyboardInterrupt:  # Before a command handles signals.
        sys.stderr.write("batcher: interrupted.\n")
        status = 130
    sys.exit(status)


if __name__ == "__main__":
    main()
