"""The page on migrating names every public name of 0.8.6, and what it says about each is true."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

import elegy as eg

ROOT = Path(__file__).parents[1]
# Read from the 0.8.6 wheel and the treex and treeo that it re-exported: `__all__` where there is one, else what the
# module defines.
OLD_NAMES = (ROOT / "tests" / "public_names_0_8_6.txt").read_text(encoding="utf-8").split()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "migrating.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| `elegy.")
]


def names(cell: str) -> list[str]:
    return re.findall(r"`(elegy[\w.]*)`", cell)


SAID = {name: now for old, now, _ in ROWS for name in names(old)}


def exists(name: str) -> bool:
    """Whether a dotted name can be reached from the package, fields of a module and of a trainer included."""
    parts = name.split(".")
    found: Any = eg
    for i, part in enumerate(parts[1:], start=2):
        if found in (eg.Trainer, eg.Model):
            found = eg.Trainer((lambda key, x: {}, lambda params, x: x))
        if hasattr(found, part):
            found = getattr(found, part)
        elif part in getattr(found, "__dataclass_fields__", {}):
            return True
        else:
            try:
                found = importlib.import_module(".".join(parts[:i]))
            except ImportError:
                return False
    return True


def test_every_old_name_is_on_the_page_once():
    listed = [name for old, _, _ in ROWS for name in names(old)]
    assert sorted(listed) == sorted(OLD_NAMES)


@pytest.mark.parametrize("name", OLD_NAMES)
def test_what_the_page_says_is_true(name):
    now = SAID[name]
    if now == "kept":
        assert exists(name)
    elif now == "gone":
        assert not exists(name)
    else:
        assert names(now), f"{name}: {now!r} is neither kept, nor gone, nor a name"
        assert all(map(exists, names(now)))
