"""Every Python block of the documentation runs, page by page."""

from __future__ import annotations

from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from markdown_blocks import python_blocks, run_blocks

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(DOCS.glob("*.md"))


@pytest.fixture(autouse=True)
def empty_store():
    """What a page writes to `memory://` is not there for the tests that share its process."""
    yield
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_blocks(page)


def test_the_new_adapter_is_short():
    (adapter,) = (source for _, source in python_blocks(DOCS / "adapters.md") if "register_adapter" in source)
    assert "class WhitenModule(eg.ElegyModule)" in adapter
    assert len(adapter.splitlines()) < 60
