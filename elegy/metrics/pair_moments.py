"""Moments of targets and predictions that are merged without cancellation."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from elegy.losses.reduction import safe_divide, total_weight
from elegy.losses.shapes import match_real
from elegy.metrics.metric import Metric
from elegy.metrics.sums import CompensatedSum
from elegy.pytree import field, static_field

Multioutput = Literal["uniform_average", "variance_weighted", "raw_values"]


class PairMoments(Metric):
    """Base class: means, variances and covariance of two numbers for each example.

    They are merged by the method of Chan, Golub and LeVeque ("Updating formulae and a pairwise algorithm for computing
    sample variances", 1979). A subclass implements `compute`, and may change the numbers in `pair`.

    Args:
        num_outputs: the size of the last axis, if there are several outputs.
        multioutput: for several outputs, their mean (`"uniform_average"`), all of them (`"raw_values"`), or what
            else the subclass names in `multioutputs`.
        name: see `Metric`.
        dtype: the dtype of the state.

    Raises:
        ValueError: if `multioutput` is unknown, or there is no output.
    """

    num_outputs: int = static_field(default=1)
    multioutput: Multioutput = static_field(default="uniform_average")

    multioutputs: ClassVar[tuple[str, ...]] = ("uniform_average", "raw_values")

    weight: CompensatedSum = field(init=False)
    mean: CompensatedSum = field(init=False)
    spread: CompensatedSum = field(init=False)

    def __post_init__(self) -> None:
        """Checks the options and sets the state to zero."""
        super().__post_init__()
        what = type(self).__name__
        if self.num_outputs < 1:
            raise ValueError(f"{what}: num_outputs={self.num_outputs} must be 1 or more.")
        if self.multioutput not in self.multioutputs:
            known = " or ".join(map(repr, self.multioutputs))
            raise ValueError(f"{what}: multioutput={self.multioutput!r} is not known. Use {known}.")
        for name, count in (("weight", 1), ("mean", 2), ("spread", 3)):
            vars(self)[name] = CompensatedSum.zeros((count, self.num_outputs), self.dtype)

    def pair(self, target: jax.Array, preds: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the two numbers of each example: target and prediction."""
        return target, preds

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
        what = type(self).__name__
        target, preds = match_real(target, preds, what)
        outputs = target.shape[-1] if target.ndim > 1 else 1
        if outputs != self.num_outputs:
            raise ValueError(
                f"{what}: the last axis of {target.shape} has {outputs} outputs; pass num_outputs={outputs}."
            )
        weight = total_weight(sample_weight, mask, target.shape)
        weight = jnp.ones(target.shape) if weight is None else weight
        target, preds, weight = (jnp.reshape(x, (-1, self.num_outputs)) for x in (target, preds, weight))
        counts = weight != 0
        both = jnp.stack(self.pair(jnp.where(counts, target, 0.0), jnp.where(counts, preds, 0.0)))
        total = jnp.sum(weight, axis=0, keepdims=True)
        mean = safe_divide(jnp.sum(weight[None] * both, axis=1), total)
        # Without rounding, the sum of deviations is 0; subtracting it corrects the rounded mean.
        correction = safe_divide(jnp.sum(weight[None] * (both - mean[:, None]), axis=1), total)
        # Its digits below those of the mean are kept: `merge` subtracts means, which may be much larger.
        means = CompensatedSum.of(mean, self.dtype) + correction
        spread = jnp.sum(weight[None] * _products(both - means.value[:, None]), axis=1)
        sums = {"weight": CompensatedSum.of(total, self.dtype), "spread": CompensatedSum.of(spread, self.dtype)}
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
            spread=self.spread + other.spread + _products(difference) * (self.weight.value * part),
        )

    def averaged(self, values: jax.Array) -> jax.Array:
        """Returns the mean of the outputs' values `(num_outputs,)`, or all of them for `"raw_values"`."""
        return values if self.multioutput == "raw_values" else jnp.mean(values)


def _products(both: jax.Array) -> jax.Array:
    first, second = both
    return jnp.stack([first * first, second * second, first * second])
