"""The dtypes in which losses and metrics are computed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike


def at_least_float32(*dtypes: DTypeLike) -> np.dtype:
    """Returns the common floating or complex dtype of the dtypes, float32 or wider.

    Integers and booleans become JAX's default float: float32, or float64 with `jax_enable_x64`.

    Example:
        >>> at_least_float32(jnp.bfloat16, jnp.int8).name, at_least_float32(jnp.complex64).name
        ('float32', 'complex64')
    """
    inexact = [dtype if jnp.issubdtype(dtype, jnp.inexact) else default_float() for dtype in dtypes]
    return jnp.dtype(jnp.result_type(*inexact, jnp.float32))


def default_float() -> np.dtype:
    """Returns JAX's default float: float32, or float64 with `jax_enable_x64`.

    Example:
        >>> default_float().name
        'float32'
    """
    return jnp.dtype(jnp.result_type(float))


def number_where(condition: jax.Array, number: float, otherwise: jax.Array) -> jax.Array:
    """Returns an array with a number where a condition holds, as `jnp.where`.

    `jnp.where` is a jitted function. To trace, differentiate and lower it in a step takes some ten times as long as the
    primitive.

    Args:
        condition: a boolean array, which broadcasts to the shape of `otherwise`.
        number: a number that the dtype of `otherwise` can represent.
        otherwise: the other values.

    Example:
        >>> number_where(jnp.array([True, False]), 7.0, jnp.ones(2))
        Array([7., 1.], dtype=float32)
    """
    if jax.config.jax_debug_nans:  # to which an array of NaN is an error, even if none of it is chosen
        return jnp.where(condition, number, otherwise)
    return jax.lax.select(jnp.broadcast_to(condition, otherwise.shape), jax.lax.full_like(otherwise, number), otherwise)


def whole_sum(values: jax.Array) -> jax.Array:
    """Returns `jnp.sum(values)` of floats, in one primitive (see `number_where`).

    Args:
        values: an array of float32 or float64.

    Example:
        >>> whole_sum(jnp.ones((2, 3)))
        Array(6., dtype=float32)
    """
    return jax.lax.reduce_sum(values, tuple(range(values.ndim)))


def log_softmax_of(target: jax.Array, logits: jax.Array) -> jax.Array:
    """Returns `log_softmax(logits)`, but 0 where a class of target 0 has the logit -inf.

    A product of target and log-probability is then 0, as its limit, and not 0 times -inf, which is NaN. A logit of -inf
    excludes a class, for example an action that is not allowed.

    Args:
        target: distributions `(..., C)`.
        logits: the same shape.

    Example:
        >>> log_softmax_of(jnp.array([1.0, 0.0]), jnp.array([3.0, -jnp.inf]))
        Array([0., 0.], dtype=float32)
    """
    return jnp.where((target == 0) & jnp.isneginf(logits), 0.0, jax.nn.log_softmax(logits))


def check_real(what: str, **arrays: jax.Array) -> None:
    """Checks that arrays are not complex.

    Args:
        what: the name of the caller in messages.
        **arrays: the arrays by name.

    Raises:
        TypeError: if an array is complex.

    Example:
        >>> check_real("Accuracy", preds=jnp.zeros(2, jnp.complex64))
        Traceback (most recent call last):
        TypeError: Accuracy is defined for real numbers, but preds is complex64...
    """
    for name, array in arrays.items():
        if jnp.issubdtype(array.dtype, jnp.complexfloating):
            raise TypeError(
                f"{what} is defined for real numbers, but {name} is {array.dtype}. Take the real part or the absolute "
                "value first. The losses MeanSquaredError, MeanAbsoluteError, MeanAbsolutePercentageError and Huber "
                "take complex numbers: they measure the distance |preds - target|."
            )


def squared_magnitude(array: jax.Array) -> jax.Array:
    """`|x| ** 2`, real; differentiable at 0, where `|x|` is not.

    Example:
        >>> squared_magnitude(jnp.array([3.0 + 4.0j, -2.0])).tolist()
        [25.0, 4.0]
    """
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        return jnp.square(array.real) + jnp.square(array.imag)
    return jnp.square(array)


class TracedWeight:
    """A traced weight of a loss, as that of a member of a population: equal only to itself.

    A static field refuses arrays, because they would become constants of compiled steps. The loss of a member is built
    wherever its step is traced.

    Args:
        value: a scalar tracer.
    """

    def __init__(self, value: jax.Array):
        self.value = value

    def __rmul__(self, other: ArrayLike) -> jax.Array:
        """Weights a value."""
        return jnp.multiply(other, self.value)


def as_weight(weight: Any) -> float | TracedWeight:
    """Returns a weight as a float, or as a `TracedWeight` while it is traced.

    Raises:
        TypeError: if it is not one number.
    """
    if isinstance(weight, TracedWeight):
        return weight
    if isinstance(weight, Tracer):
        return TracedWeight(weight)
    try:
        return float(weight)
    except (TypeError, ValueError):
        raise TypeError(
            f"the weight of a loss is one number, not {weight!r}. Weights of classes are "
            "`fit(class_weight={0: 1.0, 1: 2.0})`, those of examples `fit(sample_weight=...)`."
        ) from None
