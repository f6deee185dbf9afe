"""InfoNCE: each example against the other examples of its batch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from elegy.losses.embeddings import embeddings
from elegy.losses.loss import Loss
from elegy.losses.reduction import total_weight
from elegy.pytree import static_field


def info_nce(
    preds: tuple[ArrayLike, ArrayLike],
    *,
    temperature: float = 0.07,
    symmetric: bool = False,
    normalize: bool = True,
    counts: ArrayLike | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """Computes the cross-entropy of finding the key of each query among all keys of the batch.

    With similarities `s[i, j] = queries[i] @ keys[j] / temperature` the value of row `i` is
    `log(sum_j exp(s[i, j])) - s[i, i]`. See van den Oord, Li and Vinyals, "Representation learning with contrastive
    predictive coding", 2018 (https://arxiv.org/abs/1807.03748).

    Args:
        preds: a tuple `(queries, keys)` of arrays `(B, D)`; the positive of a query is the key of the same row.
        temperature: the divisor of the similarities.
        symmetric: True for the mean with the value of finding the query of each key, as in CLIP
            (https://arxiv.org/abs/2103.00020).
        normalize: True to divide embeddings by their Euclidean norm. With False, a module may apply a temperature that
            it learns.
        counts: `(B,)` bool, False for rows that are not negatives of others. None if all are.
        axis_name: a mapped axis whose devices have the other rows of the batch; their rows are negatives, too.

    Returns:
        `(B,)`, at least float32.

    Raises:
        TypeError: if `preds` is not a tuple.
        ValueError: if the shapes are not `(B, D)`.

    Example:
        >>> values = info_nce((jnp.eye(2), jnp.eye(2)), temperature=1.0)
        >>> values.shape, values[0].item()
        ((2,), 0.31326...)
    """
    queries, keys = embeddings(preds, ("queries", "keys"), "InfoNCE")
    if queries.ndim != 2:
        raise ValueError(f"InfoNCE: the embeddings have shape {queries.shape}, but must have shape (batch, features).")
    if normalize:
        queries, keys = _normalized(queries), _normalized(keys)
    own = jnp.arange(queries.shape[0])
    negatives = jnp.ones(own.shape, bool) if counts is None else jnp.asarray(counts)
    all_queries, all_keys = queries, keys
    if axis_name is not None:
        all_queries, all_keys, negatives = jax.lax.all_gather((queries, keys, negatives), axis_name, tiled=True)
        own = own + jax.lax.axis_index(axis_name) * own.size

    def values(these: jax.Array, others: jax.Array) -> jax.Array:
        similarity = jnp.matmul(these, others.T, precision="highest") / temperature
        compared = negatives[None] | (jnp.arange(negatives.size)[None] == own[:, None])
        similarity = jnp.where(compared, similarity, -jnp.inf)
        return optax.softmax_cross_entropy_with_integer_labels(similarity, own)

    found = values(queries, all_keys)
    return 0.5 * (found + values(keys, all_queries)) if symmetric else found


def _normalized(vectors: jax.Array) -> jax.Array:
    squared = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(squared, 1e-12))


class InfoNCE(Loss):
    """InfoNCE of embeddings (see `info_nce`): the other rows of the batch are the negatives. It takes no target.

    Rows of weight 0 and padding are not negatives. Under every strategy, the negatives are those of the whole batch:
    under `DataParallel`, whose devices have a part of the rows each, embeddings are gathered over its axis. With
    `accumulate`, they are those of the microbatch. The value depends on the batch size, in an evaluation, too.

    Args:
        temperature: the divisor of the similarities.
        symmetric: True for the mean over both directions, as in CLIP.
        normalize: True to divide embeddings by their Euclidean norm.
        axis_name: the axis over which embeddings are gathered where it is bound: the default is that of
            `DataParallel`. None compares only the rows of the device.
        reduction: see `Loss`.
        weight: see `Loss`.
        name: see `Loss`.

    Raises:
        ValueError: if the temperature is not positive.

    Example:
        >>> loss = InfoNCE(temperature=1.0)
        >>> loss(preds=(jnp.eye(2), jnp.eye(2))).item()
        0.31326...
    """

    temperature: float = static_field(default=0.07)
    symmetric: bool = static_field(default=False, kw_only=True)
    normalize: bool = static_field(default=True, kw_only=True)
    axis_name: str | None = static_field(default="device", kw_only=True)

    def __post_init__(self) -> None:
        """Checks the temperature."""
        super().__post_init__()
        if not self.temperature > 0:
            raise ValueError(f"InfoNCE: temperature={self.temperature!r} must be positive.")

    @property
    def rows_are_independent(self) -> bool:
        """False: each row is compared with the others."""
        return False

    def call(self, preds: tuple[ArrayLike, ArrayLike], counts: ArrayLike | None = None) -> jax.Array:
        """Computes the values of the examples.

        Args:
            preds: `(queries, keys)`, each `(B, D)`.
            counts: `(B,)` bool, False for rows that are not negatives of others.

        Raises:
            TypeError: if `preds` is not a tuple.
            ValueError: if the shapes are not `(B, D)`.
        """
        return info_nce(
            preds,
            temperature=self.temperature,
            symmetric=self.symmetric,
            normalize=self.normalize,
            counts=counts,
            axis_name=self.axis_name if _is_bound(self.axis_name) else None,
        )

    def values(self, **kwargs: Any) -> jax.Array:
        """Computes the values of the examples; rows of weight 0 are not negatives.

        Args:
            **kwargs: `preds`, and optionally `sample_weight` and `mask`, `(B,)`.
        """
        queries = embeddings(kwargs.get("preds"), ("queries", "keys"), "InfoNCE")[0]
        weight = total_weight(kwargs.get("sample_weight"), kwargs.get("mask"), queries.shape[:1])
        return self.call(kwargs["preds"], None if weight is None else weight != 0)


def _is_bound(axis_name: str | None) -> bool:
    if axis_name is None:
        return False
    try:
        jax.lax.axis_size(axis_name)
    except NameError:
        return False
    return True
