"""`python -m batcher` and the console script. Touches: the process."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line and exits with its status."""
    try:
        from batcher.cli.app import main as run  # Light until a command is known.

        status = run()
    except KeyboardInterrupt:  # Before there was anything to stop.
        sys.stderr.write("batcher: interrupted.\n")
        status = 130
    sys.exit(status)


if __name__ == "__main__":
    main()
