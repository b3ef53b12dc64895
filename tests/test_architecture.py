"""The structure that STYLE promises: imports point down, and the promised names are there."""

import ast
from pathlib import Path

import pytest

import batcher

ROOT = Path(batcher.__file__).parent
STAGES = ("read", "send", "write", "report")
# From the bottom up; a module may import what stands in a line before its own.
FLOORS = (
    ("records",),
    ("errors",),
    ("endpoint", "labels", "objects", "terminal", "thoughts", "words"),
    ("job", "prices"),
    STAGES,
    ("plan",),
    ("lanes",),
    ("split",),
    ("engine",),
    ("watch", "finish", "history", "money", "batch", "output", "embedded"),
    ("cluster",),
    ("runner",),
    ("api",),
    ("ray",),
    ("cli",),
    ("__main__", "__init__"),
)
MODULES = sorted(path for path in ROOT.rglob("*.py") if "simulate" not in path.parts)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("batcher"):
            parts = (node.module or "").split(".")[1:]
            found |= {parts[0]} if parts else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("batcher.")}
    return found


def floor(name: str) -> int:
    return next(number for number, names in enumerate(FLOORS) if name in names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path):
    """A reader can start at the bottom and never has to look up."""
    here = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for name in imports(path) - {here}:
        if name == "simulate":
            assert here == "cli", f"{path} imports the simulated gateway"
        else:
            assert floor(name) < floor(here), f"{path} imports batcher.{name}"


def test_the_simulated_gateway_knows_nothing_of_the_sender():
    """Or a run against it would prove less than it seems to."""
    for path in (ROOT / "simulate").glob("*.py"):
        assert imports(path) <= {"simulate"}


def test_every_promised_name_is_there():
    """`__all__` is the whole promise to users of the package."""
    assert list(batcher.__all__) == sorted(batcher.__all__)
    for name in batcher.__all__:
        assert getattr(batcher, name) is not None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is(path: Path):
    """The listing and the first lines are the map of the program."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert text
    if path.name != "__init__.py":
        assert "Touches: " in " ".join(text.split())
