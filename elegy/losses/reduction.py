"""Reduces the values of examples to a numerator and a denominator."""

from __future__ import annotations

import enum
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from elegy.losses.numbers import at_least_float32, check_real, number_where, whole_sum


class Reduction(enum.Enum):
    """How to reduce the values `l` of a loss or a metric, with weights `w`, to one number.

    - `MEAN` (the default): `sum(w * l) / sum(w)`, with `w` broadcast to the shape of `l`.
    - `SUM_OVER_BATCH_SIZE`: `sum(w * l)` divided by the number of values that belong to real examples.
    - `SUM`: `sum(w * l)`.
    - `NONE`: no reduction, `w * l`; for losses that are called by hand.

    `weighted_mean`, `sum_over_batch_size`, `sum` and `none` are other names of the same members.

    Raises:
        ValueError: if a string is not the name of a reduction; the message lists the names.

    Example:
        >>> Reduction("sum") is Reduction.SUM, Reduction("weighted_mean") is Reduction.MEAN
        (True, True)
    """

    MEAN = "mean"
    SUM_OVER_BATCH_SIZE = "sum_over_batch_size"
    SUM = "sum"
    NONE = "none"
    weighted_mean = MEAN
    sum_over_batch_size = SUM_OVER_BATCH_SIZE
    sum = SUM
    none = NONE

    @classmethod
    def _missing_(cls, value: object) -> Reduction:
        if value == "weighted_mean":
            return cls.MEAN
        names = ", ".join(repr(member.value) for member in cls)
        raise ValueError(f"{value!r} is not a reduction. Use a member of elegy.losses.Reduction, or one of {names}.")


def safe_divide(numerator: ArrayLike, denominator: ArrayLike) -> jax.Array:
    """`numerator / denominator`, and 0 where the denominator is 0; differentiable there too.

    Example:
        >>> safe_divide(1.0, 0.0).item()
        0.0
    """
    numerator, denominator = jnp.asarray(numerator), jnp.asarray(denominator)
    empty = lax.eq(denominator, np.zeros((), denominator.dtype))
    divisor = number_where(empty, 1, denominator)
    alike = numerator.shape == divisor.shape and numerator.dtype == divisor.dtype
    alike = alike and jnp.issubdtype(numerator.dtype, jnp.inexact)
    return number_where(empty, 0, lax.div(numerator, divisor) if alike else numerator / divisor)


def align_weight(weight: ArrayLike, shape: tuple[int, ...], what: str) -> jax.Array:
    """Adds trailing axes to a weight, so that it broadcasts with values of this shape: `(B,)` with `(B, T)`.

    Args:
        weight: a scalar, or an array with the leading axes of the values.
        shape: the shape of the values.
        what: the name of the weight in messages.

    Returns:
        The weight as an array with `len(shape)` axes (or none).

    Raises:
        ValueError: if the shapes do not fit.

    Example:
        >>> align_weight(jnp.ones(3), (3, 2), "sample_weight").shape
        (3, 1)
    """
    weight = jnp.asarray(weight)
    if weight.ndim == 0:
        return weight
    given = weight.shape
    while weight.ndim > len(shape) and weight.shape[-1] == 1:
        weight = weight[..., 0]
    if weight.ndim <= len(shape):
        weight = weight.reshape(weight.shape + (1,) * (len(shape) - weight.ndim))
        if all(w in (1, s) for w, s in zip(weight.shape, shape, strict=True)):
            return weight
    raise ValueError(
        f"{what} has shape {given}, the values have shape {tuple(shape)}: they do not fit. {what} must be a scalar "
        "or have one weight for each example, as (batch,), or one for each value."
    )


def total_weight(sample_weight: ArrayLike | None, mask: ArrayLike | None, shape: tuple[int, ...]) -> jax.Array | None:
    """Returns the weight of each value, `sample_weight` times the mask, or None if all weights are 1.

    Example:
        >>> total_weight(None, jnp.array([True, False]), (2,))
        Array([1., 0.], dtype=float32)
    """
    if sample_weight is None and mask is None:
        return None
    weight = jnp.ones((), float)
    if sample_weight is not None:
        weight = align_weight(sample_weight, shape, "sample_weight")
        weight = weight.astype(at_least_float32(weight.dtype))
    if mask is not None:
        weight = jnp.where(align_weight(mask, shape, "mask"), weight, 0.0)
    return jnp.broadcast_to(weight, shape)


def weighted_sum(values: jax.Array, weight: jax.Array | None) -> jax.Array:
    """Returns `sum(weight * values)`; values of weight 0 are ignored even if they are NaN or infinite.

    Example:
        >>> weighted_sum(jnp.array([1.0, jnp.nan]), jnp.array([2.0, 0.0])).item()
        2.0
    """
    if weight is None:
        return whole_sum(values)
    return jnp.sum(jnp.where(weight != 0, values * weight, 0.0))


def sum_of_weights(weight: jax.Array | None, shape: tuple[int, ...]) -> jax.Array:
    """Returns the sum of the weights of values of this shape; their number if `weight` is None.

    Example:
        >>> sum_of_weights(None, (2, 3)).item(), sum_of_weights(jnp.array([0.5, 1.0]), (2,)).item()
        (6.0, 1.5)
    """
    return jnp.asarray(math.prod(shape), float) if weight is None else jnp.sum(weight)


def reduce_terms(
    values: jax.Array,
    reduction: Reduction,
    *,
    sample_weight: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    examples: ArrayLike | None = None,
    weighted: bool = False,
) -> tuple[jax.Array, jax.Array | None]:
    """Reduces values to a numerator and a denominator, which are summed separately over batches.

    Args:
        values: `(B, ...)`, or a scalar, the value of `examples` examples together.
        reduction: the kind of reduction, not `NONE`.
        sample_weight: scalar, `(B,)` or finer.
        mask: `(B,)` bool, False for padding; None if all examples are real.
        examples: the number of real examples; only for scalars. The default is the mask's count, or 1.
        weighted: True if the values were multiplied by the weights already.

    Returns:
        Two scalars, float32 or wider; the denominator is None for `SUM`.

    Raises:
        TypeError: if the values are complex.

    Example:
        >>> values, weight = jnp.array([1.0, 3.0]), jnp.array([1.0, 3.0])
        >>> [x.item() for x in reduce_terms(values, Reduction.MEAN, sample_weight=weight)]
        [10.0, 4.0]
    """
    values = jnp.asarray(values)
    check_real("a loss or metric", values=values)
    values = values.astype(at_least_float32(values.dtype))
    if values.ndim == 0:
        if reduction is Reduction.SUM:
            return values, None
        count = _count_examples(mask, examples)
        return jnp.where(count > 0, values * count, 0.0), count

    weight = total_weight(sample_weight, mask, values.shape)
    if weight is not None and weighted:
        numerator = jnp.sum(jnp.where(weight != 0, values, 0.0))
    else:
        numerator = weighted_sum(values, weight)
    if reduction is Reduction.SUM:
        return numerator, None
    if reduction is Reduction.SUM_OVER_BATCH_SIZE:
        weight = total_weight(None, mask, values.shape)
    return numerator, sum_of_weights(weight, values.shape)


def _count_examples(mask: ArrayLike | None, examples: Any) -> jax.Array:
    if examples is not None:
        return jnp.asarray(examples, float)
    return jnp.asarray(1.0, float) if mask is None else jnp.sum(mask, dtype=float)
