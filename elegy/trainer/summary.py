"""The table that `Trainer.summary` prints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax

from elegy.data.columns import Given
from elegy.html.page import embedded, table
from elegy.module.layers import Row
from elegy.names import array_name, path_name
from elegy.trainer.one_batch import inputs_of
from elegy.trainer.session import Session
from elegy.trainer.tables import bytes_text, draw
from elegy.types import PyTree


class Summary(str):
    """The table of a summary as text; notebooks show it as HTML.

    Attributes:
        html: the table as HTML.
    """

    html: str

    def _repr_html_(self) -> str:
        return self.html


def summarize(session: Session, given: Given, *, depth: int = 2) -> Summary:
    """Describes the layers of a trainer's module; nothing is computed, and no state is made.

    Args:
        session: the session of the trainer.
        given: the arguments of `Trainer.summary`.
        depth: how deep nested layers are listed; what lies deeper counts for the layer above it.

    Returns:
        A table as text, which notebooks show as HTML: for each layer its path, class, outputs, its own parameters and
        its other state.

    Raises:
        ValueError: if `depth` is negative.
    """
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 0:
        raise ValueError(f"depth must be a whole number of at least 0, not {depth!r}.")
    # The state's structure is enough: handing out the state itself would cost the next step a copy.
    module = session.buffer.struct if session.initialized else session.buffer.get()
    inputs = inputs_of("summary", given, structs=True)
    return render(merge_below(module.summary_rows(inputs), depth))


def merge_below(rows: list[Row], depth: int) -> list[Row]:
    """Moves the variables of layers below `depth` into their ancestors.

    Example:
        >>> one = jax.ShapeDtypeStruct((3,), "float32")
        >>> merge_below([Row((), "Net"), Row(("a",), "Block", None, {"w": one})], 0)[0].params
        [None, {'w': ShapeDtypeStruct(shape=(3,), dtype=float32)}]
    """
    merged = {row.path: row for row in rows}
    for row in rows:
        # The layers around this one, outermost first; containers such as lists are part of a path but no layers.
        chain = [row.path[:n] for n in range(len(row.path) + 1) if row.path[:n] in merged]
        if len(chain) - 1 <= depth:
            continue
        top, below = merged[chain[depth]], merged.pop(row.path)
        params, state = [top.params, below.params], [top.state, below.state]
        merged[top.path] = Row(top.path, top.type_name, top.outputs, params, state)
    return list(merged.values())


def render(rows: list[Row]) -> Summary:
    """Draws the table of rows and their total."""
    total_params = _size([row.params for row in rows])
    total_state = _size([row.state for row in rows])
    columns = ("Layer", "Type", "Outputs", "Parameters", "Other state")
    cells = [
        ("/".join(row.path) or path_name(()), row.type_name, show(row.outputs), _size(row.params), _size(row.state))
        for row in rows
    ]
    footer = ("Total", "", "", total_params or "0", total_state or "0")
    text = Summary(draw(columns, cells, footer, right=2))
    text.html = embedded(table(columns, [*cells, footer]))
    return text


def show(outputs: Any) -> str:
    """Writes an outline of outputs.

    Example:
        >>> show({"x": jax.ShapeDtypeStruct((2, 3), "float32"), "d": "Normal"}), show(None)
        ('{x: float32[2,3], d: Normal}', '')
    """
    if outputs is None:
        return ""
    if isinstance(outputs, jax.ShapeDtypeStruct):
        return array_name(outputs)
    if isinstance(outputs, Mapping):
        return "{" + ", ".join(f"{name}: {show(item)}" for name, item in outputs.items()) + "}"
    if isinstance(outputs, list):
        return "(" + ", ".join(show(item) or "None" for item in outputs) + ")"
    return str(outputs)


def _size(tree: PyTree) -> str:
    leaves = jax.tree.leaves(tree)
    if not leaves:
        return ""
    count = sum(math.prod(leaf.shape) for leaf in leaves)
    return f"{count:,} ({bytes_text(sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves))})"
