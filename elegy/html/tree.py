"""Trees as HTML for notebooks."""

from __future__ import annotations

import contextvars
import importlib.util
import warnings
from html import escape
from typing import Any

_rendering = contextvars.ContextVar("elegy_rendering", default=False)


def tree_html(tree: Any) -> str | None:
    """Returns a tree as HTML: that of Treescope if it is installed, otherwise its text.

    Args:
        tree: the tree. Treescope also asks the trees inside of it, which get None: it shows them itself.

    Example:
        >>> tree_html({"a": 1}) is None
        False
    """
    if _rendering.get():
        return None
    if importlib.util.find_spec("treescope") is None:
        return f"<pre>{escape(repr(tree))}</pre>"
    token = _rendering.set(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Treescope touches numpy.char, which is deprecated
            import treescope

            return treescope.render_to_html(tree)
    finally:
        _rendering.reset(token)
