"""`python -m batcher` and the console script. Touches: the process."""

from __future__ import annotations

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


def main() -> None:
    """Runs the command line and exits with its status."""
    _open_all()
    try:
        from batcher.cli.app import main as run  # Light until a command is known.

        status = run()
    except KeyboardInterrupt:  # Before there was anything to stop.
        sys.stderr.write("batcher: interrupted.\n")
        status = 130
    sys.exit(status)


if __name__ == "__main__":
    main()
