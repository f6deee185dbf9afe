"""Pairs of token sequences of different lengths."""

from __future__ import annotations

import abc
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from elegy.losses.labels import widen_integers
from elegy.losses.reduction import safe_divide, total_weight, weighted_sum
from elegy.losses.sequences import left_packed
from elegy.losses.shapes import check_array
from elegy.metrics.metric import Metric
from elegy.metrics.sums import CompensatedSum
from elegy.pytree import field, static_field


class Sequences(NamedTuple):
    """Sequences whose tokens are at the beginning, `(..., T)`, and their lengths `(...)`, int32."""

    tokens: jax.Array
    lengths: jax.Array


class TokenMetric(Metric):
    """Base class of metrics that compare predicted token sequences with references.

    The sequences are integers, tokens of a vocabulary; text is tokenized before, on the host. They are compared in the
    compiled step, exactly.

    Args:
        ignore_index: a token that is not counted, often that of padding, in target and predictions.
        end_id: a token that ends a sequence: it and what follows are not counted.
        name: see `Metric`.
        dtype: the dtype of the state.
    """

    ignore_index: int | None = static_field(default=None, kw_only=True)
    end_id: int | None = static_field(default=None, kw_only=True)

    def sequences(
        self, target: ArrayLike, preds: ArrayLike, *, references: bool = False
    ) -> tuple[Sequences, Sequences]:
        """Returns target and predictions without the tokens that are not counted.

        Args:
            target: tokens `(B, S)`, or with `references` also `(B, R, S)`.
            preds: tokens `(B, T)`, or scores `(B, T, C)`, of which the highest is chosen.
            references: True to return targets `(B, R, S)`.

        Raises:
            TypeError: if the target is not an array of integers.
            ValueError: if the shapes do not fit.
        """
        what = type(self).__name__
        check_array(target, "target", what)
        check_array(preds, "preds", what)
        target, preds = jnp.asarray(target), jnp.asarray(preds)
        if jnp.issubdtype(preds.dtype, jnp.floating) and preds.ndim == 3:
            preds = jnp.argmax(preds, axis=-1)
        for name, array in (("target", target), ("preds", preds)):
            if not jnp.issubdtype(array.dtype, jnp.integer):
                raise TypeError(f"{what}: {name} must be token ids, which are integers, but it is {array.dtype}.")
        if references and target.ndim == 2:
            target = target[:, None]
        if target.ndim != 2 + references or preds.ndim != 2 or target.shape[0] != preds.shape[0]:
            raise ValueError(
                f"{what}: target has shape {target.shape} and preds {preds.shape}. Give references of shape "
                f"(batch, tokens){' or (batch, references, tokens)' if references else ''} and predictions of shape "
                "(batch, tokens), or scores of shape (batch, tokens, classes)."
            )
        return self._counted(target), self._counted(preds)

    def _counted(self, tokens: jax.Array) -> Sequences:
        tokens = widen_integers(tokens)
        counts = jnp.ones(tokens.shape, bool)
        if self.end_id is not None:
            counts = jnp.cumsum(tokens == self.end_id, axis=-1) == 0
        if self.ignore_index is not None:
            counts = counts & (tokens != self.ignore_index)
        return Sequences(*left_packed(tokens, counts))

    def weights(self, rows: int, sample_weight: ArrayLike | None, mask: ArrayLike | None) -> jax.Array:
        """Returns the weight of each sequence, `(rows,)`.

        Raises:
            ValueError: if there is not one weight for each sequence.
        """
        weight: Any = total_weight(sample_weight, mask, (rows,))
        return jnp.ones(rows) if weight is None else weight


class MeanOverSequences(TokenMetric):
    """Base class of metrics that are a quotient of two sums over sequences.

    Args:
        ignore_index: see `TokenMetric`.
        end_id: see `TokenMetric`.
        name: see `Metric`.
        dtype: the dtype of the state.
    """

    total: CompensatedSum = field(init=False)
    count: CompensatedSum = field(init=False)

    def __post_init__(self) -> None:
        """Sets the state to zero."""
        super().__post_init__()
        vars(self).update(total=CompensatedSum.zeros((), self.dtype), count=CompensatedSum.zeros((), self.dtype))

    @abc.abstractmethod
    def score(self, target: Sequences, preds: Sequences) -> jax.Array:
        """Returns what each sequence adds to the numerator, `(B,)`."""

    def size(self, target: Sequences) -> jax.Array:
        """Returns what each sequence adds to the denominator, `(B,)`: 1."""
        return jnp.ones(target.lengths.shape)

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
        return self.replace(
            total=self.total + weighted_sum(self.score(wanted, said).astype(self.dtype), weight),
            count=self.count + jnp.sum(weight * self.size(wanted)),
        )

    def compute(self) -> jax.Array:
        """Returns the quotient, a scalar; 0 without data."""
        return safe_divide(self.total.value, self.count.value)
