"""`batcher completion`: what a shell needs to complete commands and options. Touches: stdout."""

from __future__ import annotations

from typing import Literal

from batcher.live.terminal import say

__all__ = ["completion"]


def completion(shell: Literal["bash", "zsh", "fish"] = "bash", /) -> int:
    """Print the script by which a shell completes batcher's commands and options.

    For bash put this into ~/.bashrc: eval "$(batcher completion bash)"

    Args:
        shell: bash (default), zsh or fish.
    """
    from batcher.cli.app import app  # Which knows this command itself.

    script = app.generate_completion(prog_name="batcher", shell=shell)
    # Else bash completes no names of files any more.
    say(script.replace("\ncomplete -F ", "\ncomplete -o default -F "))
    return 0
