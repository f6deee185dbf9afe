"""ROUGE-L: the longest common subsequence of token sequences."""

from __future__ import annotations

from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from elegy.losses.reduction import safe_divide, weighted_sum
from elegy.metrics.sums import CompensatedSum
from elegy.metrics.token_metric import Sequences, TokenMetric
from elegy.pytree import field


class RougeL(TokenMetric):
    """The mean over sequences of the F score of the longest common subsequence with the reference.

    With its length `l` the score is the harmonic mean of `l / len(preds)` and `l / len(target)`, which is
    `2 l / (len(preds) + len(target))`; 0 for two empty sequences. See Lin, "ROUGE: a package for automatic evaluation
    of summaries", 2004. It is computed in the compiled step in `T` steps of vectors of the length `S`.

    Args:
        ignore_index: a token that is not counted, often that of padding.
        end_id: a token that ends a sequence.
        name: see `Metric`.
        dtype: the dtype of the state.

    Example:
        >>> metric = RougeL(ignore_index=0)
        >>> metric.update(target=jnp.array([[5, 6, 7, 8]]), preds=jnp.array([[5, 7, 8, 9]])).compute().item()
        0.75
    """

    total: CompensatedSum = field(init=False)
    count: CompensatedSum = field(init=False)

    def __post_init__(self) -> None:
        """Sets the state to zero."""
        super().__post_init__()
        vars(self).update(total=CompensatedSum.zeros((), self.dtype), count=CompensatedSum.zeros((), self.dtype))

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
            target: tokens `(B, S)`.
            preds: tokens `(B, T)`, or scores `(B, T, C)`.
            sample_weight: a scalar or `(B,)`.
            mask: `(B,)` bool, False for padding.
            **_: ignored.

        Raises:
            TypeError: if the tokens are not integers.
            ValueError: if the shapes do not fit.
        """
        wanted, said = self.sequences(target, preds)
        weight = self.weights(wanted.tokens.shape[0], sample_weight, mask)
        lengths = (wanted.lengths + said.lengths).astype(self.dtype)
        score = safe_divide(2.0 * common_lengths(wanted, said), lengths)
        return self.replace(total=self.total + weighted_sum(score, weight), count=self.count + jnp.sum(weight))

    def compute(self) -> jax.Array:
        """Returns the mean score, a scalar in [0, 1]; 0 without data."""
        return safe_divide(self.total.value, self.count.value)


def common_lengths(target: Sequences, preds: Sequences) -> jax.Array:
    """Computes the length of the longest common subsequence of each pair, `(B,)`, int32.

    Args:
        target: `(B, S)`.
        preds: `(B, T)`.

    Example:
        >>> one, other = (Sequences(jnp.array([t]), jnp.array([len(t)])) for t in ([1, 2, 3], [2, 9, 3, 1]))
        >>> common_lengths(one, other).tolist()
        [2]
    """
    rows, width = target.tokens.shape
    inside = jnp.arange(width) < target.lengths[:, None]

    def step(before: jax.Array, given: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        index, token = given
        equal = (token[:, None] == target.tokens) & inside & (index < preds.lengths[:, None])
        longer = jnp.maximum(before[:, 1:], before[:, :-1] + equal.astype(jnp.int32))
        return jnp.concatenate([before[:, :1], jax.lax.cummax(longer, axis=1)], axis=1), None

    start = jnp.zeros((rows, width + 1), jnp.int32)
    steps = jnp.arange(preds.tokens.shape[1], dtype=jnp.int32)
    return jax.lax.scan(step, start, (steps, preds.tokens.T))[0][:, -1]
