"""The commands and what they share: one sentence for an error, a number for how it ended.

Touches: the terminal.
"""

from __future__ import annotations

import os
import sys
from typing import Literal

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter

from batcher.cli.clean import clean
from batcher.cli.compare import compare
from batcher.cli.config import with_settings
from batcher.cli.convert import convert
from batcher.cli.explain import explain
from batcher.cli.export import export
from batcher.cli.models import models
from batcher.cli.report import report
from batcher.cli.run import check, run
from batcher.cli.show import show
from batcher.cli.simulate import simulate
from batcher.cli.status import status
from batcher.errors import BatcherError
from batcher.live.terminal import say

__all__ = ["app", "main"]


def _version() -> str:
    from importlib.metadata import version  # Takes its time to import.

    return version("batcher")


app = App(
    name="batcher",
    help="Rows of a file × model IDs → answered rows in a file.",
    help_format="plaintext",  # Markdown brings a parser that takes as long as all else.
    version=_version,
    suppress_keyboard_interrupt=False,  # It ends with 130 and without a word.
    # "[default: ()]" tells nobody anything; the texts name the defaults that matter.
    default_parameter=Parameter(show_default=False),
)


def completion(shell: Literal["bash", "zsh", "fish"] = "bash", /) -> int:
    """Print the script by which a shell completes batcher's commands and options.

    For bash put this into ~/.bashrc: eval "$(batcher completion bash)"

    Args:
        shell: bash (default), zsh or fish.
    """
    script = app.generate_completion(prog_name="batcher", shell=shell)
    # Without "-o default", bash no longer completes file names.
    say(script.replace("\ncomplete -F ", "\ncomplete -o default -F "))
    return 0


for command in (
    run,
    check,
    status,
    export,
    show,
    report,
    compare,
    explain,
    models,
    convert,
    clean,
    simulate,
    completion,
):
    app.command(command, help_format="markdown")


def main() -> int:
    """Runs the command that the arguments name; returns the exit status."""
    try:
        words = with_settings(_after_dashes(sys.argv[1:]))
        ended = app(words, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        say(f"batcher: {_sentence(error)}", error=True)
        return 2
    except BatcherError as error:
        say(f"batcher: {error}", error=True)
        return error.exit_status
    except BrokenPipeError:
        # Whoever read our output has enough; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        say(f"batcher: {where}{error.strerror or error}.", error=True)
        return 1
    except KeyboardInterrupt:
        say("batcher: interrupted.", error=True)
        return 130
    return ended if isinstance(ended, int) else 0


def _after_dashes(words: list[str]) -> list[str]:
    """The words with `./` before each that is no option, as it stands behind `--`, and looks like one."""
    at = words.index("--") + 1 if "--" in words else len(words)
    files = [f"./{word}" if len(word) > 1 and word[0] == "-" else word for word in words[at:]]
    return words[:at] + files


def _sentence(error: CycloptsError) -> str:
    if isinstance(error.__cause__, BatcherError):
        return str(error.__cause__)
    command = " ".join(("batcher", *(error.command_chain or ())))
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        return f"{error.argument.name} is missing. See {command} --help."
    text = " ".join(str(error).split())
    return f"{text} See {command} --help."
