"""Runs the label checks of losses and metrics on the labels with a weight other than 0."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from elegy.losses.arguments import names_argument
from elegy.losses.lookup import Indexing, Renaming
from elegy.losses.shapes import array_shape
from elegy.types import PyTree

_COMPUTES = ("call", "values", "terms", "update")
"""The methods that compute the values of a loss or a metric."""


def check_target(thing: Any, target: PyTree, preds: PyTree, sample_weight: ArrayLike | None = None) -> None:
    """Runs the `target_check` of a loss or a metric, unless a subclass has changed what it computes.

    A user's subclass of a built-in class may compute something else, for example from labels that count from 1. Then
    the check of the built-in class does not apply, but a check of the subclass does.

    Args:
        thing: a loss or a metric. A collection or a wrapper, whose `target_check` names `sample_weight`, receives it.
        target: ground truth, on the host.
        preds: predictions, on the host.
        sample_weight: `(B,)` or finer. Values of weight 0 are not checked.

    Example:
        >>> from elegy.losses import CrossEntropy
        >>> check_target(CrossEntropy(), np.array([1, 2]), np.zeros((2, 2)), np.array([1.0, 0.0]))
        >>> check_target(CrossEntropy(), np.array([1, 2]), np.zeros((2, 2)))
        Traceback (most recent call last):
        ValueError: CrossEntropy: the target contains 2, but the last axis of preds has 2 classes...
    """
    cls = type(thing)
    computes = [getattr(cls, name) for name in _COMPUTES if hasattr(cls, name)]
    if _is_built_in(cls.target_check) and not all(map(_is_built_in, computes)):
        return
    if names_argument(thing.target_check, "sample_weight"):
        thing.target_check(target, preds, sample_weight=sample_weight)
        return
    if sample_weight is not None and np.ndim(sample_weight) > 0:
        counts = np.asarray(sample_weight) != 0
        if not counts.any():
            return
        if not counts.all():
            target, preds = jax.tree.map(lambda leaf: _without(leaf, counts), (target, preds))
    thing.target_check(target, preds)


def check_inner(inner: Any, change: Indexing | Renaming, given: Mapping[str, Any], what: str) -> None:
    """Runs the `target_check` of the loss or metric inside of a wrapper, if all arguments that it needs are given.

    Args:
        inner: the loss or metric.
        change: the change of its arguments.
        given: `target`, `preds` and `sample_weight`, on the host; None for those that are not available.
        what: the name of the wrapper in messages.
    """
    if change.needs <= {name for name, value in given.items() if value is not None}:
        changed = change.apply(given, what)
        check_target(inner, changed.get("target"), changed.get("preds"), changed.get("sample_weight"))


def _is_built_in(method: Callable[..., Any]) -> bool:
    return getattr(method, "__module__", "").partition(".")[0] == __name__.partition(".")[0]


def _without(leaf: Any, counts: np.ndarray) -> Any:
    """Replaces values of weight 0 by other values of the array, which keeps its shape."""
    if not array_shape(leaf) or not isinstance(leaf, (np.ndarray, jax.Array)):
        return leaf
    while counts.ndim > 1 and counts.shape[-1] == 1:
        counts = counts[..., 0]
    if leaf.shape[: counts.ndim] != counts.shape:
        counts = np.any(counts, axis=tuple(range(1, counts.ndim)), keepdims=False)  # finer than this array: by row
    if leaf.shape[: counts.ndim] != counts.shape:
        return leaf
    leaf = np.array(leaf)
    leaf[~counts] = leaf[np.unravel_index(np.argmax(counts), counts.shape)]
    return leaf
