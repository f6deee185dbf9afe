"""Draws the values of a history: with matplotlib, and for notebooks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from elegy.html.chart import Line, chart
from elegy.html.page import embedded, grid
from elegy.lazy import require

if TYPE_CHECKING:
    from elegy.callbacks.history import History

_COLUMNS = 3


def curves_of(history: History) -> dict[str, dict[str, tuple[list[int], list[float]]]]:
    """Groups the values of a history: `{"loss": {"train": (steps, values), "val": (steps, values)}}`.

    The values of an evaluation are at the steps at which it ran. A value that a callback added to an evaluation under a
    name of its own is drawn with those of the epochs.
    """
    found: dict[str, dict[str, dict[int, float]]] = {}
    sets = {"val_" if key == "val" else f"val_{key}_": records for key, records in history.evaluations.items()}
    evaluated = {name for prefix, records in sets.items() for one in records for name in one if name.startswith(prefix)}
    for name, values in history.history.items():
        if name not in evaluated and len(values) == len(history.step):
            found.setdefault(name, {})["train"] = dict(zip(history.step, values, strict=True))
    for prefix, records in sets.items():
        for record in records:
            for name in [name for name in record if name not in ("epoch", "step", "examples")]:
                line = prefix.removesuffix("_") if name.startswith(prefix) else "train"
                points = found.setdefault(name.removeprefix(prefix), {}).setdefault(line, {})
                points[int(record["step"])] = record[name]
    return {group: {line: _series(points) for line, points in lines.items()} for group, lines in found.items()}


def _series(points: Mapping[int, float]) -> tuple[list[int], list[float]]:
    """The points of a line in the order of their steps."""
    steps = sorted(points)
    return steps, [points[step] for step in steps]


def plot_history(history: History, names: Sequence[str], axes: Any) -> Any:
    """Draws; see `History.plot`."""
    groups = curves_of(history)
    known = {(name if line == "train" else f"{line}_{name}"): name for name, lines in groups.items() for line in lines}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{unknown[0]!r} is not logged. Logged are: {', '.join(known) or 'nothing'}.")
    chosen = list(dict.fromkeys(known[name] for name in names)) or [n for n in groups if not n.startswith("seconds_")]
    if not chosen:
        raise ValueError("the history is empty: there is nothing to draw before an epoch has ended.")
    if axes is None:
        pyplot = require("matplotlib.pyplot", "History.plot")
        columns = min(len(chosen), _COLUMNS)
        rows = math.ceil(len(chosen) / columns)
        figure, grid = pyplot.subplots(rows, columns, squeeze=False, figsize=(4.5 * columns, 3.2 * rows))
        axes = list(grid.flat)
        for unused in axes[len(chosen) :]:
            unused.remove()
        axes = axes[: len(chosen)]
        figure.set_layout_engine("constrained")
    axes = list(np.ravel(axes))
    if len(axes) != len(chosen):
        raise ValueError(f"there are {len(axes)} axes for {len(chosen)} groups of values: {', '.join(chosen)}.")
    for ax, group in zip(axes, chosen, strict=True):
        for line, (steps, values) in groups[group].items():
            ax.plot(steps, values, label=line, marker="." if len(values) < 30 else None)
        ax.set(title=group, xlabel="step")
        ax.legend()
    return axes


def history_html(history: History) -> str:
    """Returns the curves of a history as HTML; its text before an epoch has ended."""
    groups = {name: lines for name, lines in curves_of(history).items() if not name.startswith("seconds_")}
    if not groups:
        return f"<pre>{escape(repr(history))}</pre>"
    return embedded(grid(charts_of(groups)))


def charts_of(groups: Mapping[str, Mapping[str, tuple[list[int], list[float]]]]) -> list[str]:
    """Returns a chart as HTML for each group of `curves_of`."""
    return [chart(name, [Line(line, *points) for line, points in lines.items()]) for name, lines in groups.items()]
