"""The Python blocks of a page, as a reader would run them: one after another, in one namespace."""

from __future__ import annotations

import re
from pathlib import Path

_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def python_blocks(page: Path) -> list[tuple[int, str]]:
    """The line number and the source of each block."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, match.start(1)) + 1, match.group(1)) for match in _BLOCK.finditer(text)]


def run_blocks(page: Path) -> dict[str, object]:
    """Runs the blocks of a page; a traceback names the line of the page."""
    namespace: dict[str, object] = {"__name__": page.stem}
    for line, source in python_blocks(page):
        exec(compile("\n" * (line - 1) + source, str(page), "exec", dont_inherit=True), namespace)
    return namespace
