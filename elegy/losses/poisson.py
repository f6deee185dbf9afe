"""Negative log-likelihood of counts under a Poisson distribution."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from elegy.losses.loss import Loss
from elegy.losses.shapes import array_shape, match_real, mean_over_features
from elegy.pytree import static_field
from elegy.types import PyTree

_EPSILON = 1e-7


def poisson(target: ArrayLike, preds: ArrayLike, *, log_input: bool = False) -> jax.Array:
    """Computes `rate - target * log(rate)`, averaged over the last axis.

    This is the negative log-likelihood without `log(target!)`, which does not depend on the rate. As in Keras,
    `1e-7` is added to the rate in the logarithm.

    Args:
        target: counts, `(B, ..., D)`.
        preds: the rates, or their logarithms, of the same shape.
        log_input: True if `preds` are logarithms of rates.

    Returns:
        `(B, ...)`; for inputs `(B,)` one value for each example. At least float32.

    Raises:
        ValueError: if the shapes differ.
        TypeError: if an array is complex.

    Example:
        >>> poisson(jnp.array([[2.0, 0.0]]), jnp.array([[1.0, 3.0]])).round(3)
        Array([2.], dtype=float32)
    """
    target, preds = match_real(target, preds, "Poisson")
    if log_input:
        return mean_over_features(jnp.exp(preds) - target * preds)
    return mean_over_features(preds - target * jnp.log(preds + _EPSILON))


class Poisson(Loss):
    """Negative log-likelihood of counts under a Poisson distribution (see `poisson`).

    Args:
        log_input: True if `preds` are logarithms of rates, as an output layer without activation gives them.
        reduction: see `Loss`.
        weight: see `Loss`.
        name: see `Loss`.

    Example:
        >>> Poisson(log_input=True)(target=jnp.array([3.0]), preds=jnp.array([0.0])).item()
        1.0
    """

    log_input: bool = static_field(default=False, kw_only=True)

    def call(self, target: ArrayLike, preds: ArrayLike) -> jax.Array:
        """Computes the values of the examples.

        Args:
            target: counts, `(B, ..., D)`.
            preds: the same shape.

        Raises:
            ValueError: if the shapes differ.
        """
        return poisson(target, preds, log_input=self.log_input)

    def target_check(self, target: PyTree, preds: PyTree) -> None:
        """Checks that the targets are not negative.

        Args:
            target: ground truth, on the host.
            preds: predictions; not checked.

        Raises:
            ValueError: if a target is negative.
        """
        if array_shape(target) is not None and np.any(np.asarray(target) < 0):
            raise ValueError(f"Poisson: the targets are counts, but the smallest is {np.min(np.asarray(target))}.")
