"""The manual names modules and tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "batcher" / "docs").glob("*.md"))
FOLDERS = sorted(path.name for path in (ROOT / "batcher").iterdir() if path.is_dir())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_modules_that_a_page_names_exist(page: Path):
    """A page that sends a reader to a file that is not there is worse than none."""
    folders = "|".join(name for name in FOLDERS if not name.startswith("_"))
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(rf"(?<![\w/])((?:{folders})/[a-z_]+)\b(?:\.py)?", text))
    assert named
    missing = [name for name in named if not (ROOT / "batcher" / f"{name}.py").exists()]
    tests = re.findall(r"tests/[\w/]+\.py", text)
    assert not missing + [name for name in tests if not (ROOT / name).exists()]
