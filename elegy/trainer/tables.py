"""Tables of text for reports."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any, Literal

WIDTH = 120
"""The number of characters in a line of a table."""


def draw(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    footer: Sequence[str] | None = None,
    *,
    right: int = 1,
) -> str:
    """Draws a table.

    Args:
        columns: the names of the columns.
        rows: the cells of each row.
        footer: the cells of the last row, below a line; None to leave it out.
        right: how many of the last columns are aligned at their right.

    Example:
        >>> print(draw(["name", "size"], [["a", "1 B"], ["b", "12 B"]], ["sum", "13 B"]).rstrip())
        ┌──────┬──────┐
        │ name │ size │
        ├──────┼──────┤
        │ a    │  1 B │
        │ b    │ 12 B │
        ├──────┼──────┤
        │ sum  │ 13 B │
        └──────┴──────┘
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SQUARE, show_footer=footer is not None)
    for i, name in enumerate(columns):
        justify: Literal["left", "right"] = "right" if i >= len(columns) - right else "left"
        table.add_column(name, footer="" if footer is None else footer[i], justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*map(_plain, row))
    out = io.StringIO()
    Console(
        file=out,
        width=WIDTH,
        color_system=None,
        force_terminal=False,
        force_jupyter=False,  # a notebook would show the table, and nothing would be in the file
        legacy_windows=False,
    ).print(table)
    return out.getvalue()


def bytes_text(count: float) -> str:
    """Writes a number of bytes with its unit.

    Example:
        >>> bytes_text(12), bytes_text(1500), bytes_text(2.5e9)
        ('12 B', '1.5 KB', '2.5 GB')
    """
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("KB", "MB"):
        count /= 1000
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} GB"


def _plain(text: str) -> Any:
    from rich.text import Text

    return Text(text)  # brackets in a shape are not markup
