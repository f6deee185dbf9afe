"""Converts class weights to sample weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from elegy.data.batch import unpack
from elegy.data.examples import ExampleRows
from elegy.data.sparse import SparseRows
from elegy.names import type_name
from elegy.types import Array, Batch


def check_class_weight(class_weight: Any) -> dict[int, float]:
    """Checks a mapping of classes to weights.

    Raises:
        TypeError: if the argument is not a mapping of integers to numbers.
        ValueError: if a weight is negative or not finite.

    Example:
        >>> check_class_weight({0: 1, 1: 2.5})
        {0: 1.0, 1: 2.5}
    """
    if not isinstance(class_weight, Mapping):
        raise TypeError(
            f"class_weight is {type_name(class_weight)}, but must be a dict of class indices to weights, such "
            "as {0: 1.0, 1: 5.0}."
        )
    checked = {}
    for key, value in class_weight.items():
        if isinstance(value, Mapping):
            raise TypeError(
                f"class_weight has a dict under the key {key!r}, but it is one dict of class indices to weights, for "
                "one array of labels. For several outputs, give sample weights: "
                f"sample_weight={{{key!r}: weights_of_classes[labels]}}."
            )
        if isinstance(key, bool) or not isinstance(key, (int, np.integer)):
            raise TypeError(f"class_weight has the key {key!r}, but its keys must be class indices (integers).")
        try:
            weight = float(value)
        except (TypeError, ValueError) as error:
            raise TypeError(f"class_weight[{key}] is {value!r}, but must be a number.") from error
        if not math.isfinite(weight) or weight < 0:
            raise ValueError(f"class_weight[{key}] is {weight}, but must be finite and not negative.")
        checked[int(key)] = weight
    return checked


def balanced_class_weight(labels: ArrayLike, *, beta: float | None = None) -> dict[int, float]:
    """Returns weights for `fit(class_weight=...)` that give rare classes more weight.

    Args:
        labels: class indices, integers of any shape.
        beta: None for weights `examples / (classes * count)`, with which all classes have the same sum of weights. A
            number from 0 to below 1 for `(1 - beta) / (1 - beta ** count)` of Cui et al. ("Class-Balanced Loss Based on
            Effective Number of Samples", 2019), scaled to a sum of the number of classes: 0 gives equal weights.

    Returns:
        A weight for each class that occurs.

    Raises:
        TypeError: if the labels are not integers.
        ValueError: if there are no labels, or `beta` is out of range.

    Example:
        >>> balanced_class_weight([0, 0, 0, 1])
        {0: 0.666..., 1: 2.0}
    """
    labels = np.asarray(labels)
    if labels.size == 0:
        raise ValueError("balanced_class_weight: there are no labels.")
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"balanced_class_weight: the labels are {labels.dtype}, but must be class indices (integers).")
    if beta is not None and not 0 <= beta < 1:
        raise ValueError(f"balanced_class_weight: beta={beta} must be at least 0 and below 1.")
    classes, counts = np.unique(labels, return_counts=True)
    if beta is None:
        weights = labels.size / (len(classes) * counts)
    else:
        # 1 - beta ** count, without the loss of digits for beta near 1.
        effective = -np.expm1(counts * np.log(beta)) if beta else np.ones(len(classes))
        weights = len(classes) / effective / np.sum(1 / effective)
    return {int(label): float(weight) for label, weight in zip(classes, weights, strict=True)}


def weigh_classes(batch: Batch, class_weight: Mapping[int, float], where: str = "") -> Batch:
    """Multiplies the weight of each example's class into the sample weights of a batch.

    Args:
        batch: a batch with labels: whole numbers of shape (rows,) or (rows, 1), or one-hot rows of shape
            (rows, classes).
        class_weight: weights by class; a missing class has the weight 1.
        where: a prefix for error messages.

    Returns:
        `(inputs, labels, sample_weight)`; the weights are float32 if the batch had no weights, or integers.

    Raises:
        TypeError: if the labels are sparse.
        ValueError: if the batch has no labels, labels that do not name a class for each example, or one-hot labels
            of fewer classes than there are weights for.

    Example:
        >>> weigh_classes(("x", np.array([0, 1, 1])), {1: 3.0})
        ('x', array([0, 1, 1]), array([1., 3., 3.], dtype=float32))
    """
    inputs, labels, sample_weight = unpack(batch)
    leaves = jax.tree.leaves(labels)
    if not leaves:
        raise ValueError(
            f"{where}class_weight needs labels, but the batch has only inputs. Give (inputs, labels), or leave "
            "class_weight out."
        )
    if len(leaves) > 1:
        raise ValueError(
            f"{where}class_weight needs one array of labels, but there are {len(leaves)}. Give sample_weight instead."
        )
    if isinstance(leaves[0], ExampleRows):
        raise TypeError(
            f"{where}class_weight needs labels in memory, but they are read example by example: return a weight from "
            "the data set, `(inputs, labels, sample_weight)`."
        )
    if isinstance(leaves[0], SparseRows):
        raise TypeError(f"{where}class_weight needs dense labels, but they are sparse: give `labels.toarray()`.")
    array = np.asarray(leaves[0])
    classes = _classes(array, where)
    if array.ndim == 2 and array.shape[1] > 1 and max(class_weight, default=0) >= array.shape[1]:
        raise ValueError(
            f"{where}class_weight has the key {max(class_weight)}, but the one-hot labels of shape {array.shape} have "
            f"{array.shape[1]} classes: the keys must be in 0..{array.shape[1] - 1}."
        )
    weights = np.ones(classes.shape, np.float32)
    for key, weight in class_weight.items():
        weights[classes == key] = weight
    if sample_weight is None:
        return inputs, labels, weights
    return inputs, labels, jax.tree.map(lambda given: _multiply(given, weights), sample_weight)


def weigh_all(batch: Batch, class_weight: Mapping[int, float]) -> Batch:
    """As `weigh_classes`, for all of the data. Also checks that an example has each negative class.

    Raises:
        ValueError: as `weigh_classes`, and if no example has a negative class.

    Example:
        >>> weigh_all(("x", np.array([-1, 1])), {-1: 3.0})[2]
        array([3., 1.], dtype=float32)
    """
    weighed = weigh_classes(batch, class_weight)
    (labels,) = jax.tree.leaves(unpack(batch)[1])
    absent = [key for key in class_weight if key < 0 and not (np.asarray(labels) == key).any()]
    if absent:
        raise ValueError(
            f"class_weight has the key {absent[0]}, but no label is {absent[0]}: class indices count from 0."
        )
    return weighed


def _multiply(given: Array, weights: np.ndarray) -> Array:
    if not jnp.issubdtype(given.dtype, np.floating):
        given = given.astype(np.float32)
    return given * weights.reshape(weights.shape + (1,) * (given.ndim - 1)).astype(given.dtype)


def _classes(labels: np.ndarray, where: str) -> np.ndarray:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 1:
        if not jnp.issubdtype(labels.dtype, np.floating) or np.array_equal(labels, np.trunc(labels)):
            return labels
    elif labels.ndim == 2 and np.isin(labels, (0, 1)).all() and (np.sum(labels, axis=1) == 1).all():
        return np.argmax(labels, axis=1)
    raise ValueError(
        f"{where}class_weight needs labels with one class for each example: integers of shape (rows,), or one-hot "
        f"rows of shape (rows, classes). These have the shape {labels.shape} and the dtype {labels.dtype}"
        f"{', and are not one-hot' if labels.ndim == 2 else ''}. Give sample_weight instead."
    )
