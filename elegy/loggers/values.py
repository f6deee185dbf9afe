"""Changes values to forms that loggers write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def drawn(figure: Any) -> np.ndarray:
    """Returns the image of a Matplotlib figure, `uint8[height, width, 4]`.

    Args:
        figure: the figure.

    Example:
        >>> from matplotlib.figure import Figure
        >>> drawn(Figure((2, 1), dpi=50)).shape
        (50, 100, 4)
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the values of nested dicts by path.

    Args:
        config: the dicts.
        prefix: the beginning of the paths.

    Example:
        >>> flat({"fit": {"epochs": 3}, "seed": 1})
        {'fit/epochs': 3, 'seed': 1}
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flat(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def counts(values: np.ndarray, bins: int = 64) -> dict[str, list[int] | list[float]]:
    """Returns the histogram of the finite values.

    Args:
        values: `float64[n]`.
        bins: the number of bins, of one width.

    Returns:
        `counts`, and `edges`, one more.

    Example:
        >>> counts(np.array([0.0, 1.0, 1.0, np.nan]), bins=2)
        {'counts': [1, 2], 'edges': [0.0, 0.5, 1.0]}
    """
    found, edges = np.histogram(values[np.isfinite(values)], bins=bins)
    return {"counts": found.tolist(), "edges": edges.tolist()}
