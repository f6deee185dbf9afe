"""What a release needs; scripts/check_release.sh installs and tries one."""

from __future__ import annotations

import importlib.metadata
import tomllib
from pathlib import Path

import elegy as eg

ROOT = Path(__file__).parents[1]


def test_the_version_has_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in project["project"]
    assert project["tool"]["hatch"]["version"]["path"] == "elegy/__init__.py"
    assert importlib.metadata.version("elegy") == eg.__version__


def test_type_checkers_find_the_types():
    assert (Path(eg.__file__).parent / "py.typed").exists()


def test_pictures_of_the_pages_are_small():
    sizes = [path.stat().st_size for path in (ROOT / "docs" / "pictures").iterdir()]
    assert sizes
    assert max(sizes) <= 50_000
