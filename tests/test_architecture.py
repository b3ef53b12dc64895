"""The structure that STYLE promises: imports point down, and the promised names are there."""

import ast
import re
from pathlib import Path

import pytest

import batcher

ROOT = Path(batcher.__file__).parent
# How files of a run folder are named, opened and replaced: a reader keeps copies of its input there.
RUN_FOLDER = ("write.atomic", "write.folder", "write.names")
# From the bottom up: a module may import from the lines above its own folder, and from its own folder.
LEVELS = (
    "records",
    "errors",
    "run folder",
    "read",
    "write",
    "job",
    "limits",
    "money",
    "send",
    "live",
    "plan",
    "evaluate",
    "batches",
    "runtime",
    "cluster",
    "api",
    "ray",
    "cli",
    "__main__",
    "__init__",
)
MODULES = sorted(path for path in ROOT.rglob("*.py") if "simulate" not in path.parts)


def imports(path: Path) -> set[str]:
    """The levels that a module imports from."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("batcher"):
            for alias in node.names:
                found.add(level(f"{node.module}.{alias.name}".removeprefix("batcher.")))
        elif isinstance(node, ast.Import):
            found |= {level(a.name[8:]) for a in node.names if a.name.startswith("batcher.")}
    return found


def level(name: str) -> str:
    """The level of a module, or of a name in it."""
    return "run folder" if name.startswith(RUN_FOLDER) else name.partition(".")[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path):
    """A reader can start at the bottom and never has to look up."""
    here = level(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for name in imports(path) - {here}:
        if name == "simulate":
            assert here == "cli", f"{path} imports the simulated gateway"
        else:
            assert LEVELS.index(name) < LEVELS.index(here), f"{path} imports batcher.{name}"


def modules_imported(path: Path) -> set[Path]:
    """The files of the package that a module imports, at its top or in a function; not for types alone."""
    found = set()
    nodes: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            nodes += ast.iter_child_nodes(node)
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            file = ROOT.parent.joinpath(*name.split(".")).with_suffix(".py")
            if name.startswith("batcher.") and file.is_file():
                found.add(file)
    return found


def test_no_two_modules_import_each_other():
    """An import inside a function hides a circle from Python, not from the reader."""
    imported = {path: modules_imported(path) for path in ROOT.rglob("*.py")}
    assert not [
        (str(path.relative_to(ROOT)), str(other.relative_to(ROOT)))
        for path, others in imported.items()
        for other in others
        if path < other and path in imported[other]
    ]


def test_the_root_holds_only_entry_points_and_shared_words():
    """Everything else stands in the folder of its stage."""
    names = {path.stem for path in ROOT.glob("*.py")}
    assert names == {"__init__", "__main__", "api", "errors", "ray", "records"}


def test_the_simulated_gateway_knows_nothing_of_the_sender():
    """Or a run against it would prove less than it seems to."""
    for path in (ROOT / "simulate").glob("*.py"):
        assert imports(path) <= {"simulate"}


def test_one_module_renames_files():
    """What a crash may leave is thought through in one place."""
    renaming = re.compile(r"os\.(rename|replace)\b|\.rename\(")
    found = [path.name for path in ROOT.rglob("*.py") if renaming.search(path.read_text("utf-8"))]
    assert found == ["atomic.py"]


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
