"""Edit distance and error rate of token sequences."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from elegy.metrics.token_metric import MeanOverSequences, Sequences


class EditDistance(MeanOverSequences):
    """The mean over sequences of the number of insertions, deletions and substitutions that give the reference.

    This is the distance of Levenshtein, computed in the compiled step in `T` steps of vectors of the length `S`.

    Args:
        ignore_index: a token that is not counted, often that of padding.
        end_id: a token that ends a sequence.
        name: see `Metric`.
        dtype: the dtype of the state.

    Example:
        >>> metric = EditDistance(ignore_index=0)
        >>> metric.update(target=jnp.array([[5, 6, 7]]), preds=jnp.array([[5, 7, 0]])).compute().item()
        1.0
    """

    def score(self, target: Sequences, preds: Sequences) -> jax.Array:
        """Returns the distance of each pair."""
        return edit_distances(target, preds)


class WordErrorRate(EditDistance):
    """The sum of the edit distances of all sequences, divided by the sum of the lengths of the references.

    The tokens are words for the word error rate, and characters for the character error rate.

    Args:
        ignore_index: a token that is not counted, often that of padding.
        end_id: a token that ends a sequence.
        name: see `Metric`.
        dtype: the dtype of the state.

    Example:
        >>> metric = WordErrorRate(ignore_index=0)
        >>> metric.update(target=jnp.array([[5, 6, 7, 8]]), preds=jnp.array([[5, 7, 8, 0]])).compute().item()
        0.25
    """

    def size(self, target: Sequences) -> jax.Array:
        """Returns what each sequence adds to the denominator: its length."""
        return target.lengths.astype(self.dtype)


def edit_distances(target: Sequences, preds: Sequences) -> jax.Array:
    """Computes the edit distance of each pair of sequences, `(B,)`, int32.

    Args:
        target: `(B, S)`.
        preds: `(B, T)`.

    Example:
        >>> one, other = (Sequences(jnp.array([t]), jnp.array([len(t)])) for t in ([1, 2, 3], [2, 3, 4, 5]))
        >>> edit_distances(one, other).tolist()
        [3]
    """
    rows, width = target.tokens.shape
    place = jnp.arange(width + 1, dtype=jnp.int32)[None]

    def step(before: jax.Array, given: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        index, token = given
        differs = (token[:, None] != target.tokens).astype(jnp.int32)
        after = jnp.minimum(before[:, 1:] + 1, before[:, :-1] + differs)
        after = jnp.concatenate([before[:, :1] + 1, after], axis=1)
        # Insertions: the smallest of `after[j - k] + k` for all k.
        after = jax.lax.cummin(after - place, axis=1) + place
        return jnp.where(index < preds.lengths[:, None], after, before), None

    start = jnp.broadcast_to(place, (rows, width + 1))
    steps = jnp.arange(preds.tokens.shape[1], dtype=jnp.int32)
    table = jax.lax.scan(step, start, (steps, preds.tokens.T))[0]
    return jnp.take_along_axis(table, target.lengths[:, None], axis=1)[:, 0]


WER = WordErrorRate
