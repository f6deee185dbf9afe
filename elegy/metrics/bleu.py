"""BLEU of token sequences."""

from __future__ import annotations

from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from elegy.losses.reduction import safe_divide
from elegy.metrics.sums import CompensatedSum
from elegy.metrics.token_metric import Sequences, TokenMetric
from elegy.pytree import field, static_field


class BLEU(TokenMetric):
    """BLEU over all data: `min(1, exp(1 - r / c))` times the geometric mean of the precisions of n-grams.

    The precision of order `n` is the number of predicted n-grams that occur in a reference, each at most as often as
    there, divided by the number of predicted n-grams, both summed over all sequences. `c` and `r` are the sums of the
    lengths of predictions and of the references whose length is closest (the shorter one of two). See Papineni et al.,
    "BLEU: a method for automatic evaluation of machine translation", 2002. It is computed in the compiled step from
    tables of `(B, T, T)` and `(B, R, T, S)` booleans.

    Args:
        max_order: the longest n-grams, 4 by default.
        smooth: True to add 1 to both numbers for orders above 1 (Lin and Och, "ORANGE", 2004), so that the value for a
            few sequences is not 0.
        ignore_index: a token that is not counted, often that of padding. References without tokens are not counted.
        end_id: a token that ends a sequence.
        name: see `Metric`.
        dtype: the dtype of the state.

    Raises:
        ValueError: if `max_order` is less than 1.

    Example:
        >>> metric = BLEU(max_order=2)
        >>> metric.update(target=jnp.array([[1, 2, 3, 4, 5]]), preds=jnp.array([[1, 2, 3, 9, 5]])).compute().item()
        0.63245...
    """

    max_order: int = static_field(default=4)
    smooth: bool = static_field(default=False, kw_only=True)

    matches: CompensatedSum = field(init=False)
    possible: CompensatedSum = field(init=False)
    lengths: CompensatedSum = field(init=False)

    def __post_init__(self) -> None:
        """Checks the options and sets the state to zero."""
        super().__post_init__()
        if self.max_order < 1:
            raise ValueError(f"BLEU: max_order={self.max_order} must be 1 or more.")
        for name, count in (("matches", self.max_order), ("possible", self.max_order), ("lengths", 2)):
            vars(self)[name] = CompensatedSum.zeros((count,), self.dtype)

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
            target: tokens `(B, S)`, or several references `(B, R, S)`.
            preds: tokens `(B, T)`, or scores `(B, T, C)`.
            sample_weight: a scalar or `(B,)`.
            mask: `(B,)` bool, False for padding.
            **_: ignored.

        Raises:
            TypeError: if the tokens are not integers.
            ValueError: if the shapes do not fit.
        """
        wanted, said = self.sequences(target, preds, references=True)
        weight = self.weights(said.tokens.shape[0], sample_weight, mask)[:, None]
        matches = clipped_matches(wanted, said, self.max_order)
        possible = jnp.maximum(said.lengths[:, None] - jnp.arange(self.max_order)[None], 0)
        lengths = jnp.stack([said.lengths, _closest(wanted.lengths, said.lengths)], axis=1)
        added = {"matches": matches, "possible": possible, "lengths": lengths}
        return self.replace(
            **{k: getattr(self, k) + jnp.sum(weight * v.astype(self.dtype), axis=0) for k, v in added.items()}
        )

    def compute(self) -> jax.Array:
        """Returns the score, a scalar in [0, 1]; 0 if an order has no match, as without data."""
        extra = jnp.where(jnp.arange(self.max_order) > 0, float(self.smooth), 0.0)
        precision = safe_divide(self.matches.value + extra, self.possible.value + extra)
        mean = jnp.exp(jnp.mean(jnp.log(jnp.where(precision > 0, precision, 1.0))))
        said, wanted = self.lengths.value
        short = jnp.exp(jnp.minimum(1.0 - safe_divide(wanted, said), 0.0))
        return jnp.where(jnp.all(precision > 0), short * mean, 0.0)


def _closest(references: jax.Array, length: jax.Array) -> jax.Array:
    """The length `(B,)` of the references `(B, R)` that is closest to that of the prediction."""
    far = jnp.iinfo(jnp.int32).max // 4
    # Twice the distance, plus 1 for a longer one.
    longer = references > length[:, None]
    distance = 2 * jnp.abs(references - length[:, None]) + longer.astype(references.dtype)
    choice = jnp.argmin(jnp.where(references > 0, distance, far), axis=1)
    return jnp.take_along_axis(references, choice[:, None], axis=1)[:, 0]


def clipped_matches(target: Sequences, preds: Sequences, max_order: int) -> jax.Array:
    """Counts the predicted n-grams that occur in a reference, each at most as often as there: `(B, max_order)`.

    Args:
        target: references `(B, R, S)`.
        preds: `(B, T)`.
        max_order: the longest n-grams.

    Example:
        >>> target = Sequences(jnp.array([[[1, 2, 2]]]), jnp.array([[3]]))
        >>> clipped_matches(target, Sequences(jnp.array([[2, 2, 2]]), jnp.array([3])), 2).tolist()
        [[2, 1]]
    """
    same = preds.tokens[:, :, None] == preds.tokens[:, None, :]  # (B, T, T)
    shared = preds.tokens[:, None, :, None] == target.tokens[:, :, None, :]  # (B, R, T, S)
    own, others, found = same, shared, []
    for n in range(1, max_order + 1):
        if n > 1:
            own = own[:, :-1, :-1] & same[:, n - 1 :, n - 1 :]
            others = others[..., :-1, :-1] & shared[..., n - 1 :, n - 1 :]
        starts = jnp.arange(own.shape[-1])
        earlier = jnp.sum(own & (starts[None] < starts[:, None])[None], axis=-1)
        fits = jnp.arange(others.shape[-1])[None, None] + n <= target.lengths[..., None]
        often = jnp.max(jnp.sum(others & fits[:, :, None, :], axis=-1), axis=1)
        counted = (starts[None] + n <= preds.lengths[:, None]) & (earlier < often)
        found.append(jnp.sum(counted, axis=-1))
    return jnp.stack(found, axis=-1)
