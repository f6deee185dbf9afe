"""ROUGE-L: the longest common subsequence of token sequences."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from elegy.losses.reduction import safe_divide
from elegy.metrics.token_metric import MeanOverSequences, Sequences


class RougeL(MeanOverSequences):
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

    def score(self, target: Sequences, preds: Sequences) -> jax.Array:
        """Returns the F score of each pair, in [0, 1]."""
        lengths = (target.lengths + preds.lengths).astype(self.dtype)
        return safe_divide(2.0 * common_lengths(target, preds).astype(self.dtype), lengths)


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
    inside = jnp.arange(width)[None] < target.lengths[:, None]

    def step(before: jax.Array, given: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        index, token = given
        equal = (token[:, None] == target.tokens) & inside & (index < preds.lengths[:, None])
        longer = jnp.maximum(before[:, 1:], before[:, :-1] + equal.astype(jnp.int32))
        return jnp.concatenate([before[:, :1], jax.lax.cummax(longer, axis=1)], axis=1), None

    start = jnp.zeros((rows, width + 1), jnp.int32)
    steps = jnp.arange(preds.tokens.shape[1], dtype=jnp.int32)
    return jax.lax.scan(step, start, (steps, preds.tokens.T))[0][:, -1]
