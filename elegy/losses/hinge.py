"""Hinge losses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from elegy.losses.class_targets import check_class_indices, class_targets
from elegy.losses.labels import widen_integers
from elegy.losses.loss import Loss
from elegy.losses.numbers import at_least_float32, check_real
from elegy.losses.shapes import array_shape, check_array, match_real, mean_over_features
from elegy.types import PyTree


def hinge(target: ArrayLike, preds: ArrayLike) -> jax.Array:
    """Computes `max(0, 1 - target * preds)` for labels of -1 and 1, averaged over the last axis, by Optax.

    Args:
        target: -1 and 1, or 0 and 1, `(B, ..., D)`.
        preds: scores of the same shape; positive ones decide for 1.

    Returns:
        `(B, ...)`; for inputs `(B,)` one value for each example. At least float32.

    Raises:
        ValueError: if the shapes differ.
        TypeError: if an array is complex.

    Example:
        >>> hinge(jnp.array([1, 0]), jnp.array([0.3, -2.0]))
        Array([0.7, 0. ], dtype=float32)
    """
    target, preds = match_real(target, preds, "Hinge")
    return mean_over_features(optax.hinge_loss(preds, _signs(target)))


def squared_hinge(target: ArrayLike, preds: ArrayLike) -> jax.Array:
    """Computes the square of the hinge loss of each value, averaged over the last axis.

    Args:
        target: -1 and 1, or 0 and 1, `(B, ..., D)`.
        preds: scores of the same shape.

    Returns:
        `(B, ...)`; for inputs `(B,)` one value for each example. At least float32.

    Raises:
        ValueError: if the shapes differ.
        TypeError: if an array is complex.

    Example:
        >>> squared_hinge(jnp.array([1, 0]), jnp.array([-1.0, -2.0]))
        Array([4., 0.], dtype=float32)
    """
    target, preds = match_real(target, preds, "SquaredHinge")
    return mean_over_features(jnp.square(optax.hinge_loss(preds, _signs(target))))


def categorical_hinge(target: ArrayLike, preds: ArrayLike) -> jax.Array:
    """Computes `max(0, 1 + max(scores of the other classes) - score of the target)`.

    See Crammer and Singer, "On the algorithmic implementation of multiclass kernel-based vector machines", 2001. Keras
    also counts a score of 0 among the other classes.

    Args:
        target: class indices `(...)`, or one-hot `(..., C)`.
        preds: scores `(..., C)`.

    Returns:
        `(...)`, at least float32; NaN for a class index outside of `0..C-1`.

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if class indices are not integers, or an array is complex.

    Example:
        >>> categorical_hinge(jnp.array([0, 1]), jnp.array([[3.0, 1.0], [3.0, 1.0]]))
        Array([0., 3.], dtype=float32)
    """
    target, preds = jnp.asarray(target), jnp.asarray(preds)
    check_real("CategoricalHinge", target=target, preds=preds)
    target = class_targets(target, preds, "CategoricalHinge")
    preds = preds.astype(at_least_float32(preds.dtype))
    if target.ndim == preds.ndim:
        target = jnp.argmax(target, axis=-1)
    target = widen_integers(target)
    classes = preds.shape[-1]
    own = jnp.clip(target, 0, classes - 1)[..., None]
    score = jnp.take_along_axis(preds, own, axis=-1)[..., 0]
    # Optax selects the score by a product with one-hot labels, which is NaN if another score is -inf.
    is_own = jnp.arange(classes).reshape((1,) * target.ndim + (-1,)) == own
    values = jnp.max(jnp.where(is_own, preds, preds + 1), axis=-1) - score
    return jnp.where((target < 0) | (target >= classes), jnp.nan, values)


def _signs(target: jax.Array) -> jax.Array:
    return jnp.where(target > 0, 1.0, -1.0).astype(target.dtype)


class Hinge(Loss):
    """Hinge loss of binary decisions (see `hinge`).

    Args:
        reduction: see `Loss`.
        weight: see `Loss`.
        name: see `Loss`.

    Example:
        >>> Hinge()(target=jnp.array([1, -1]), preds=jnp.array([0.0, 0.0])).item()
        1.0
    """

    def call(self, target: ArrayLike, preds: ArrayLike) -> jax.Array:
        """Computes the values of the examples.

        Args:
            target: -1 and 1, or 0 and 1, `(B, ..., D)`.
            preds: the same shape.

        Raises:
            ValueError: if the shapes differ.
        """
        return hinge(target, preds)

    def target_check(self, target: PyTree, preds: PyTree) -> None:
        """Checks that the targets are -1, 0 or 1.

        Args:
            target: ground truth, on the host.
            preds: predictions; not checked.

        Raises:
            ValueError: if there are other values.
        """
        if array_shape(target) is None:
            return
        other = [v for v in np.unique(np.asarray(target)).tolist() if v not in (-1, 0, 1)]
        if other:
            raise ValueError(
                f"{type(self).__name__}: the targets are -1 and 1, or 0 and 1, but there are {other[:5]}. For classes "
                "use CategoricalHinge."
            )


class SquaredHinge(Hinge):
    """Squared hinge loss of binary decisions (see `squared_hinge`).

    Args:
        reduction: see `Loss`.
        weight: see `Loss`.
        name: see `Loss`.

    Example:
        >>> SquaredHinge()(target=jnp.array([1, -1]), preds=jnp.array([0.0, 1.0])).item()
        2.5
    """

    def call(self, target: ArrayLike, preds: ArrayLike) -> jax.Array:
        """Computes the values of the examples.

        Args:
            target: -1 and 1, or 0 and 1, `(B, ..., D)`.
            preds: the same shape.

        Raises:
            ValueError: if the shapes differ.
        """
        return squared_hinge(target, preds)


class CategoricalHinge(Loss):
    """Hinge loss of classes (see `categorical_hinge`).

    Args:
        reduction: see `Loss`.
        weight: see `Loss`.
        name: see `Loss`.

    Example:
        >>> CategoricalHinge()(target=jnp.array([0]), preds=jnp.array([[0.0, 0.5]])).item()
        1.5
    """

    def call(self, target: ArrayLike, preds: ArrayLike) -> jax.Array:
        """Computes the values of the examples.

        Args:
            target: class indices `(...)`, or one-hot `(..., C)`.
            preds: `(..., C)`.

        Raises:
            ValueError: if the shapes do not fit.
            TypeError: if class indices are not integers.
        """
        check_array(target, "target", "CategoricalHinge")
        check_array(preds, "preds", "CategoricalHinge")
        return categorical_hinge(target, preds)

    def target_check(self, target: PyTree, preds: PyTree) -> None:
        """Checks that class indices are in the range of the predictions.

        Args:
            target: ground truth, on the host.
            preds: predictions; only their shape is used.

        Raises:
            ValueError: if an index is out of range.
        """
        if array_shape(preds) and np.ndim(target) == np.ndim(preds) - 1:
            check_class_indices(target, np.shape(preds)[-1], "CategoricalHinge")
