"""Pearson correlation and explained variance."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from elegy.losses.reduction import safe_divide
from elegy.metrics.pair_moments import PairMoments


class PearsonCorrelation(PairMoments):
    """Pearson's correlation coefficient of targets and predictions, between -1 and 1.

    Args:
        num_outputs: the size of the last axis, if there are several outputs.
        multioutput: for several outputs, their mean (`"uniform_average"`), or all of them (`"raw_values"`).
        name: see `Metric`.
        dtype: the dtype of the state.

    Raises:
        ValueError: if `multioutput` is unknown, or there is no output.

    Example:
        >>> metric = PearsonCorrelation().update(target=jnp.array([1.0, 2.0, 3.0]), preds=jnp.array([5.0, 3.0, 1.0]))
        >>> metric.compute().item()
        -1.0
    """

    def compute(self) -> jax.Array:
        """Returns a scalar, or `(num_outputs,)` for `"raw_values"`; NaN if one of both is constant, as in SciPy."""
        first, second, together = self.spread.value
        return self.averaged(jnp.clip(together / (jnp.sqrt(first) * jnp.sqrt(second)), -1.0, 1.0))


class ExplainedVariance(PairMoments):
    """The fraction of the targets' variance that predictions explain: `1 - var(target - preds) / var(target)`.

    In contrast to `R2`, a constant error does not count.

    Args:
        num_outputs: the size of the last axis, if there are several outputs.
        multioutput: for several outputs, their mean (`"uniform_average"`), or all of them (`"raw_values"`).
        name: see `Metric`.
        dtype: the dtype of the state.

    Raises:
        ValueError: if `multioutput` is unknown, or there is no output.

    Example:
        >>> metric = ExplainedVariance().update(target=jnp.array([1.0, 2.0, 3.0]), preds=jnp.array([2.0, 3.0, 4.0]))
        >>> metric.compute().item()
        1.0
    """

    def pair(self, target: jax.Array, preds: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns target and error of each example."""
        return target, target - preds

    def compute(self) -> jax.Array:
        """Returns a scalar, or `(num_outputs,)` for `"raw_values"`.

        Constant targets give 1 for a constant error and 0 otherwise, as in scikit-learn.
        """
        first, second, _ = self.spread.value
        explained = 1.0 - safe_divide(second, first)
        return self.averaged(jnp.where(first == 0, jnp.where(second == 0, 1.0, 0.0), explained))
