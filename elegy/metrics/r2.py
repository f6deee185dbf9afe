"""Coefficient of determination."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp

from elegy.losses.reduction import safe_divide
from elegy.metrics.pair_moments import PairMoments


class R2(PairMoments):
    """Coefficient of determination, `1 - sum((target - preds) ** 2) / sum((target - mean(target)) ** 2)`.

    The variance of the targets is merged by the method of Chan, Golub and LeVeque ("Updating formulae and a pairwise
    algorithm for computing sample variances", 1979), which stays accurate if the mean is much larger than the variance.

    Args:
        num_outputs: the size of the last axis, if there are several outputs.
        multioutput: for several outputs, their mean (`"uniform_average"`), their mean weighted by the targets' variance
            (`"variance_weighted"`), or all of them (`"raw_values"`).
        name: see `Metric`.
        dtype: the dtype of the state.

    Raises:
        ValueError: if `multioutput` is unknown, or there is no output.

    Example:
        >>> metric = R2().update(target=jnp.array([3.0, -0.5, 2.0, 7.0]), preds=jnp.array([2.5, 0.0, 2.0, 8.0]))
        >>> metric.compute().item()
        0.94860...
    """

    multioutputs: ClassVar[tuple[str, ...]] = ("uniform_average", "variance_weighted", "raw_values")

    def pair(self, target: jax.Array, preds: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns target and error of each example."""
        return target, target - preds

    def compute(self) -> jax.Array:
        """Returns a scalar, or `(num_outputs,)` for `"raw_values"`.

        Constant targets give 1 for perfect predictions and 0 otherwise, as in scikit-learn.
        """
        spread, errors, _ = self.spread.value
        residual = errors + self.weight.value[0] * jnp.square(self.mean.value[1])
        constant = spread == 0
        value = jnp.where(constant, jnp.where(residual == 0, 1.0, 0.0), 1.0 - safe_divide(residual, spread))
        if self.multioutput == "variance_weighted":
            weighted = safe_divide(jnp.sum(value * spread), jnp.sum(spread))
            return jnp.where(jnp.all(constant), jnp.mean(value), weighted)
        return self.averaged(value)
