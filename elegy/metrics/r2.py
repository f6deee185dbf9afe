"""Coefficient of determination."""

from __future__ import annotations

from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from elegy.losses.reduction import safe_divide, total_weight
from elegy.losses.shapes import match_real
from elegy.metrics.metric import Metric
from elegy.metrics.sums import CompensatedSum
from elegy.pytree import field, static_field


class R2(Metric):
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

    num_outputs: int = static_field(default=1)
    multioutput: Literal["uniform_average", "variance_weighted", "raw_values"] = static_field(default="uniform_average")

    weight: CompensatedSum = field(init=False)
    mean: CompensatedSum = field(init=False)
    spread: CompensatedSum = field(init=False)
    residual: CompensatedSum = field(init=False)

    def __post_init__(self) -> None:
        """Checks the options and sets the state to zero."""
        super().__post_init__()
        if self.num_outputs < 1:
            raise ValueError(f"R2: num_outputs={self.num_outputs} must be 1 or more.")
        if self.multioutput not in ("uniform_average", "variance_weighted", "raw_values"):
            raise ValueError(
                f"R2: multioutput={self.multioutput!r} is not known. Use 'uniform_average', 'variance_weighted' or "
                "'raw_values'."
            )
        for name in ("weight", "mean", "spread", "residual"):
            vars(self)[name] = CompensatedSum.zeros((self.num_outputs,), self.dtype)

    def update(
        self,
        target: ArrayLike,
        preds: ArrayLike,
        sample_weight: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        **_: Any,
    ) -> Self:
        """Returns the metric with a batch added.

        Args:
            target: `(B, ...)`, or `(B, ..., num_outputs)` for several outputs.
            preds: the same shape.
            sample_weight: a scalar, `(B,)` or finer.
            mask: `(B,)` bool, False for padding.
            **_: ignored.

        Raises:
            ValueError: if the shapes do not fit.
        """
        target, preds = match_real(target, preds, "R2")
        outputs = target.shape[-1] if target.ndim > 1 else 1
        if outputs != self.num_outputs:
            raise ValueError(f"R2: the last axis of {target.shape} has {outputs} outputs; pass num_outputs={outputs}.")
        weight = total_weight(sample_weight, mask, target.shape)
        weight = jnp.ones(target.shape) if weight is None else weight
        target, preds, weight = (jnp.reshape(x, (-1, self.num_outputs)) for x in (target, preds, weight))
        counts = weight != 0
        target, preds = jnp.where(counts, target, 0.0), jnp.where(counts, preds, 0.0)
        total = jnp.sum(weight, axis=0)
        mean = safe_divide(jnp.sum(weight * target, axis=0), total)
        # Without rounding, the sum of deviations is 0; subtracting it corrects the rounded mean.
        correction = safe_divide(jnp.sum(weight * (target - mean), axis=0), total)
        # Its digits below those of the mean are kept: `merge` subtracts means, which may be much larger.
        means = CompensatedSum.of(mean, self.dtype) + correction
        added = {
            "weight": total,
            "spread": jnp.sum(weight * jnp.square(target - means.value), axis=0),
            "residual": jnp.sum(weight * jnp.square(target - preds), axis=0),
        }
        sums = {name: CompensatedSum.of(x, self.dtype) for name, x in added.items()}
        return self.merge(self.replace(mean=means, **sums))

    def merge(self, other: Self) -> Self:
        """Returns the metric of both metrics' data.

        Args:
            other: a metric of the same structure.
        """
        weight = self.weight + other.weight
        part = safe_divide(other.weight.value, weight.value)
        difference = (other.mean.value - self.mean.value) + (other.mean.rest - self.mean.rest)
        mean = self.mean + difference * part  # of no data and a mean, the sum would lose the mean's last digits
        return self.replace(
            weight=weight,
            mean=self.mean.replace(parts=jnp.where(self.weight.value == 0, other.mean.parts, mean.parts)),
            spread=self.spread + other.spread + jnp.square(difference) * (self.weight.value * part),
            residual=self.residual + other.residual,
        )

    def compute(self) -> jax.Array:
        """Returns a scalar, or `(num_outputs,)` for `"raw_values"`.

        Constant targets give 1 for perfect predictions and 0 otherwise, as in scikit-learn.
        """
        spread, residual = self.spread.value, self.residual.value
        constant = spread == 0
        value = jnp.where(constant, jnp.where(residual == 0, 1.0, 0.0), 1.0 - safe_divide(residual, spread))
        if self.multioutput == "raw_values":
            return value
        if self.multioutput == "variance_weighted":
            weighted = safe_divide(jnp.sum(value * spread), jnp.sum(spread))
            return jnp.where(jnp.all(constant), jnp.mean(value), weighted)
        return jnp.mean(value)
