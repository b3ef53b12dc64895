"""Secrets are shown nowhere: not in help, not in signatures, not in the command that goes on."""

import os
import subprocess
import sys

from batcher.cli.config import of_options

KEY = "sk-planted-0123456789abcdef"
WALK = """
import importlib, inspect, pkgutil, pydoc, sys
import batcher
from batcher import Job

shown = [repr(Job.of(output="o.jsonl", base_url="https://h.example/v1", api_key_env="MY_KEY").endpoint())]
modules = ["batcher", *(m.name for m in pkgutil.walk_packages(batcher.__path__, "batcher.") if "__main__" not in m.name)]
for name in modules:
    module = importlib.import_module(name)
    for of in [module, *(getattr(module, n) for n in dir(module))]:
        shown += [repr(of), str(inspect.getdoc(of))]
        for inside in [of, *vars(of).values()] if inspect.isclass(of) else [of]:
            inside = inspect.unwrap(getattr(inside, "__func__", inside))
            if callable(inside) or isinstance(inside, property):
                try:
                    shown.append(str(inspect.signature(inside)))
                except (TypeError, ValueError):
                    pass
shown += [pydoc.render_doc(of) for of in (batcher, Job, batcher.run, batcher.stream)]
assert len(modules) > 100 and len(shown) > 5_000, (len(modules), len(shown))
sys.stdout.write("\\n".join(shown))
"""


def test_nothing_public_shows_the_environment():
    """Of every module: what `help` and `inspect` print of it, with keys in the environment."""
    keys = dict.fromkeys(("AIHUBMIX_API_KEY", "OPENAI_API_KEY", "MY_KEY"), KEY)
    walked = subprocess.run(
        [sys.executable, "-c", WALK], env={**os.environ, **keys}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert walked.returncode == 0, walked.stderr
    assert KEY not in walked.stdout + walked.stderr
    assert "environment" in walked.stdout


def test_only_options_are_shown_again_with_the_command_that_goes_on():
    """And none of a variable that holds a secret, whatever its name."""
    environment = {
        "BATCHER_API_KEY": KEY, "BATCHER_SYSTEM": "Be brief.", "BATCHER_CONFIG": "job.toml",
        "BATCHER_TOKEN": KEY, "BATCHER_USER": KEY, "AIHUBMIX_API_KEY": KEY, "BATCHER_PROMPT": KEY,
    }  # fmt: skip
    assert of_options(environment, {"BATCHER_PROMPT"}) == {
        "BATCHER_CONFIG": "job.toml",
        "BATCHER_SYSTEM": "Be brief.",
    }
