"""Penalties on the parameters, used like losses."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from elegy.losses.loss import Loss
from elegy.losses.numbers import at_least_float32, squared_magnitude
from elegy.losses.reduction import Reduction, reduce_terms
from elegy.pytree import static_field
from elegy.types import PyTree


class Regularizer(Loss):
    """Base class: a subclass implements `call(parameters)`, which returns a scalar.

    The value belongs to a step, not to an example: it counts once, not once for each replica, and its value over an
    epoch is the mean over the steps, weighted by their examples.

    Args:
        reduction: has no effect; every loss has this argument.
        weight: a factor of the value.
        name: the name in the logs; the class name in snake case by default.

    Example:
        >>> class Largest(Regularizer):
        ...     def call(self, parameters):
        ...         return jnp.max(jnp.abs(parameters["w"]))
        >>> Largest()(parameters={"w": jnp.array([1.0, -3.0])}).item()
        3.0
    """

    def __post_init__(self) -> None:
        """Normalizes the options; a penalty is one number, so there is nothing to reduce."""
        super().__post_init__()
        vars(self).update(reduction=Reduction.MEAN)

    def terms(self, **kwargs: Any) -> tuple[jax.Array, jax.Array | None]:
        """Computes the value times the number of examples, and that number.

        Args:
            **kwargs: `parameters`, and optionally `examples` or `mask` (`(B,)` bool); without them 1 example.

        Returns:
            float32 scalars `(numerator, denominator)`.

        Raises:
            ValueError: if `call` does not return a scalar.
        """
        value = self.values(**kwargs)
        if value.ndim:
            raise ValueError(f"the regularizer {self.name!r} must return a scalar, not an array of {value.shape}.")
        numerator, denominator = reduce_terms(
            value, Reduction.MEAN, mask=kwargs.get("mask"), examples=kwargs.get("examples")
        )
        return numerator * self.weight, denominator

    def maskable(self, batch_size: int, **kwargs: Any) -> bool:
        """Always True: a regularizer does not depend on the examples.

        Args:
            batch_size: the number of rows.
            **kwargs: the arguments.
        """
        return True


class L1L2(Regularizer):
    """The penalty `l1 * sum(|p|) + l2 * sum(|p| ** 2)` over all parameters, real or complex.

    Args:
        l1: the factor of the absolute values.
        l2: the factor of the squares.
        reduction: without effect.
        weight: a factor of both.
        name: the name in the logs.

    Example:
        >>> L1L2(l1=1.0, l2=0.5)(parameters={"w": jnp.array([1.0, -2.0])}).item()
        5.5
    """

    l1: float = static_field(default=0.0)
    l2: float = static_field(default=0.0)

    def call(self, parameters: PyTree) -> jax.Array:
        """Computes the penalty, in float32 or better; leaves that are not floating do not count.

        Args:
            parameters: any tree of arrays.
        """
        total = jnp.float32(0.0)
        for leaf in map(jnp.asarray, jax.tree.leaves(parameters)):
            if not jnp.issubdtype(leaf.dtype, jnp.inexact):
                continue
            leaf = leaf.astype(at_least_float32(leaf.dtype))
            if self.l1:
                total += self.l1 * jnp.sum(jnp.abs(leaf))
            if self.l2:
                total += self.l2 * jnp.sum(squared_magnitude(leaf))
        return total


class L1(L1L2):
    """The penalty `l * sum(|p|)` over all parameters.

    Args:
        l: the factor.
        reduction: without effect.
        weight: a further factor.
        name: the name in the logs.

    Example:
        >>> L1(0.5)(parameters={"w": jnp.array([1.0, -2.0])}).item()
        1.5
    """

    def __init__(
        self,
        l: float = 0.01,  # noqa: E741  # the name that jax_metrics gave it
        reduction: Reduction | str | None = None,
        weight: float | None = None,
        name: str | None = None,
    ):
        super().__init__(l1=l, reduction=reduction, weight=weight, name=name)  # type: ignore[arg-type]  # normalized


class L2(L1L2):
    """The penalty `l * sum(|p| ** 2)` over all parameters.

    Args:
        l: the factor.
        reduction: without effect.
        weight: a further factor.
        name: the name in the logs.

    Example:
        >>> L2(0.5)(parameters={"w": jnp.array([1.0, -2.0])}).item()
        2.5
    """

    def __init__(
        self,
        l: float = 0.01,  # noqa: E741  # the name that jax_metrics gave it
        reduction: Reduction | str | None = None,
        weight: float | None = None,
        name: str | None = None,
    ):
        super().__init__(l2=l, reduction=reduction, weight=weight, name=name)  # type: ignore[arg-type]  # normalized


__all__ = ["L1", "L1L2", "L2", "Regularizer"]
