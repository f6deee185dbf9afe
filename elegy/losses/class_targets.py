"""Checks targets of classes: indices or distributions that fit the predictions."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elegy.losses.shapes import array_shape
from elegy.types import PyTree


def class_targets(target: jax.Array, preds: jax.Array, what: str) -> jax.Array:
    """Returns class indices `(...)` or distributions `(..., C)` for scores `(..., C)`.

    Args:
        target: class indices `(...)` or `(..., 1)`, or distributions `(..., C)`.
        preds: scores `(..., C)`.
        what: the name of the caller in messages.

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if class indices are not integers.

    Example:
        >>> class_targets(jnp.array([[1], [0]]), jnp.zeros((2, 3)), "CrossEntropy")
        Array([1, 0], dtype=int32)
    """
    # With one class, softmax is always 1.
    if preds.ndim == 0 or preds.shape[-1] == 1 or target.ndim not in (preds.ndim, preds.ndim - 1):
        raise class_shape_error(target, preds, what)
    if target.ndim == preds.ndim and target.shape[-1] == 1 and preds.shape[-1] > 1:
        target = target[..., 0]
    expected = preds.shape if target.ndim == preds.ndim else preds.shape[:-1]
    if target.shape != expected:
        raise class_shape_error(target, preds, what)
    if target.ndim < preds.ndim and not jnp.issubdtype(target.dtype, jnp.integer):
        raise TypeError(
            f"{what}: a target of shape {target.shape} with preds of shape {preds.shape} is read as class "
            f"indices, which are integers, but it is {target.dtype}. Cast it to an integer type, give one distribution "
            "for each example, or use MeanSquaredError for regression."
        )
    return target


def class_shape_error(target: Any, preds: Any, what: str) -> ValueError:
    """Returns the error for targets and scores whose shapes do not fit.

    Args:
        target: ground truth.
        preds: predictions.
        what: the name of the caller in messages.
    """
    return ValueError(
        f"{what}: target has shape {jnp.shape(target)} and preds {jnp.shape(preds)}. For preds of shape "
        "(..., classes) give class indices of shape (...), or distributions of shape (..., classes). For one binary "
        f"output use {'Hinge' if what == 'CategoricalHinge' else f'{what}(binary=True)'}."
    )


def check_class_indices(target: PyTree, classes: int, what: str, ignore_index: int | None = None) -> None:
    """Checks on the host that class indices are in range.

    Args:
        target: class indices.
        classes: the number of classes.
        what: the name of the caller in messages.
        ignore_index: an index that is allowed in addition.

    Raises:
        ValueError: if an index is out of range.

    Example:
        >>> check_class_indices(np.array([0, 3]), 2, "CrossEntropy")
        Traceback (most recent call last):
        ValueError: CrossEntropy: the target contains 3, but the last axis of preds has 2 classes: the indices must ...
    """
    if array_shape(target) is None:
        return
    target = np.asarray(target)
    if ignore_index is not None:
        target = target[target != ignore_index]
    shown = values_outside(target, 0, classes - 1)
    if shown:
        advice = "Use more outputs, or shift the labels."
        if target.min() < 0:
            advice = "Shift the labels, or, if a negative one marks what has no label, give that a sample weight of 0."
        raise ValueError(
            f"{what}: the target contains {shown}, but the last axis of preds has {classes} classes: "
            f"the indices must be in 0..{classes - 1}. {advice}"
        )


def values_outside(target: np.ndarray, low: int, high: int) -> str:
    """Lists some values below `low` or above `high`; empty if there are none.

    Example:
        >>> values_outside(np.array([-1, 0, 1, 7]), 0, 1)
        '-1, 7'
    """
    if not target.size or (target.min() >= low and target.max() <= high):  # without a copy of valid labels
        return ""
    outside = np.unique(target[(target < low) | (target > high)])
    return ", ".join(map(str, outside[:5])) + (", ..." if outside.size > 5 else "")
