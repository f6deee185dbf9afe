"""Shows HTML in the output of a notebook's cell."""

from __future__ import annotations

import sys
from typing import Any


def in_notebook() -> bool:
    """True in the kernel of a notebook, which shows HTML, and bars although its streams are not terminals."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in shell.config


class Output:
    """A place in the output of the running cell, whose contents can be replaced. The notebook saves the last ones."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, html: str) -> None:
        """Shows HTML in place of what was shown before."""
        from IPython.display import HTML, display

        if self._handle is None:
            self._handle = display(HTML(html), display_id=True)
        else:
            self._handle.update(HTML(html))
