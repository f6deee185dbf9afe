"""Frechet distance of two sets of feature vectors."""

from __future__ import annotations

from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from elegy.losses.reduction import safe_divide, total_weight
from elegy.losses.shapes import match_real
from elegy.metrics.metric import Metric
from elegy.metrics.sums import CompensatedSum
from elegy.names import array_name
from elegy.pytree import field, static_field

_EXACT = jax.lax.Precision.HIGHEST  # a GPU multiplies float32 matrices with 10 bits by default


class FrechetDistance(Metric):
    """Frechet distance of Gaussians fitted to the features of real and of generated examples.

    `|m1 - m2|^2 + trace(C1 + C2 - 2 (C1 C2)^(1/2))` with the means and the unbiased covariances of both; with features
    of the Inception network this is the FID of Heusel et al. (2017). The features are given: `preds` and `target` are
    outputs of any network. Means and covariances are merged exactly over batches and devices. The state has `4 D^2`
    floats. The square root is computed in the dtype of the state; use `jax_enable_x64` to compare values in all digits.

    Args:
        num_features: the number of features, `D`.
        name: see `Metric`.
        dtype: the dtype of the state.

    Raises:
        ValueError: if `num_features` is not positive.

    Example:
        >>> x = jax.random.normal(jax.random.key(0), (100, 2))
        >>> metric = FrechetDistance(num_features=2).update(target=x, preds=x + jnp.array([3.0, 4.0]))
        >>> metric.compute().round(2).item()
        25.0
    """

    num_features: int = static_field()

    weight: CompensatedSum = field(init=False)
    mean: CompensatedSum = field(init=False)
    spread: CompensatedSum = field(init=False)

    def __post_init__(self) -> None:
        """Checks the option and sets the state to zero."""
        super().__post_init__()
        size = self.num_features
        if size < 1:
            raise ValueError(f"FrechetDistance: num_features={size} must be 1 or more.")
        for name, shape in (("weight", ()), ("mean", (2, size)), ("spread", (2, size, size))):
            vars(self)[name] = CompensatedSum.zeros(shape, self.dtype)

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
            target: features of real examples, `(B, num_features)`.
            preds: features of generated examples, of the same shape.
            sample_weight: a scalar or `(B,)`.
            mask: `(B,)` bool, False for padding.
            **_: ignored.

        Raises:
            ValueError: if the shapes do not fit.
        """
        target, preds = match_real(target, preds, "FrechetDistance")
        if target.ndim != 2 or target.shape[1] != self.num_features:
            raise ValueError(
                f"FrechetDistance: the features are {array_name(target)}, not of shape (examples, "
                f"num_features={self.num_features})."
            )
        weight = total_weight(sample_weight, mask, target.shape[:1])
        weight = jnp.ones(target.shape[:1], self.dtype) if weight is None else weight
        weight = weight[None, :, None]
        both = jnp.where(weight != 0, jnp.stack([target, preds]).astype(self.dtype), 0.0)
        total = jnp.sum(weight)
        mean = safe_divide(jnp.sum(weight * both, axis=1), total)
        deviations = both - mean[:, None]
        spread = jnp.einsum("tbi,tbj->tij", weight * deviations, deviations, precision=_EXACT)
        batch = {"weight": total, "mean": mean, "spread": spread}
        return self.merge(self.replace(**{name: CompensatedSum.of(x, self.dtype) for name, x in batch.items()}))

    def merge(self, other: Self) -> Self:
        """Returns the metric of both metrics' data.

        Args:
            other: a metric of the same structure.
        """
        weight = self.weight + other.weight
        part = safe_divide(other.weight.value, weight.value)
        difference = (other.mean.value - self.mean.value) + (other.mean.rest - self.mean.rest)
        products = jnp.einsum("ti,tj->tij", difference, difference)
        return self.replace(
            weight=weight,
            mean=self.mean + difference * part,
            spread=self.spread + other.spread + products * (self.weight.value * part),
        )

    def compute(self) -> jax.Array:
        """Returns the distance, a scalar; NaN for less than two examples."""
        first, second = self.spread.value / (self.weight.value - 1)
        root = _root(first)
        product = jnp.matmul(jnp.matmul(root, second, precision=_EXACT), root, precision=_EXACT)
        # The eigenvalues of C1 C2 are those of the symmetric C1^(1/2) C2 C1^(1/2), which has real ones.
        shared = jnp.sum(jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(product), 0.0)))
        apart = jnp.sum(jnp.square(self.mean.value[0] - self.mean.value[1]))
        distance = apart + jnp.trace(first) + jnp.trace(second) - 2 * shared
        return jnp.where(self.weight.value > 1, jnp.maximum(distance, 0.0), jnp.nan)


def _root(matrix: jax.Array) -> jax.Array:
    values, vectors = jnp.linalg.eigh(matrix)
    return jnp.matmul(vectors * jnp.sqrt(jnp.maximum(values, 0.0))[None], vectors.T, precision=_EXACT)
