"""Compensated sums, which stay accurate over millions of steps."""

from __future__ import annotations

from typing import Any, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from elegy.pytree import Pytree

T = TypeVar("T")


class CompensatedSum(Pytree):
    """A running sum, stored as the nearest float and the rounding error.

    A float32 sum stops growing when a summand is smaller than half of its last digit: counts stop at 16,777,216. The
    stored error makes it about twice as precise: counts are exact up to 2^48, and after 10^8 additions the error of
    other sums is below 1e-6 of the sum of the absolute values. Each addition computes its rounding error by the method
    of Knuth ("The Art of Computer Programming", vol. 2, 4.2.2, theorem B) and Dekker ("A floating-point technique for
    extending the available precision", 1971).

    As a field of a `Metric` it is merged and aggregated like an array.

    Args:
        parts: `(2, ...)`: the sum and its rest, in one array, because every array of a state costs time in each step.

    Example:
        >>> total = CompensatedSum.of(2.0**24)
        >>> for _ in range(3):
        ...     total = total + 1.0
        >>> int(total.value) + int(total.rest)
        16777219
        >>> int(jnp.float32(2.0**24) + 1.0 + 1.0 + 1.0)
        16777216
    """

    parts: jax.Array

    @classmethod
    def zeros(cls, shape: tuple[int, ...] = (), dtype: DTypeLike | None = jnp.float32) -> Self:
        """Returns the sum of no summands.

        Args:
            shape: the shape of the sum.
            dtype: float32 or float64; None leaves the choice to JAX.
        """
        # A copy from the host; `jnp.zeros` would compile a kernel for each shape when metrics are constructed.
        return cls(jnp.asarray(np.zeros((2, *shape), dtype), dtype))

    @classmethod
    def of(cls, value: ArrayLike, dtype: DTypeLike | None = jnp.float32) -> Self:
        """Returns the sum of one summand.

        Args:
            value: an array.
            dtype: float32 or float64; None leaves the choice to JAX.
        """
        value = jnp.asarray(value, dtype)
        return cls(lax.stack([value, lax.full_like(value, 0)]))

    @property
    def value(self) -> jax.Array:
        """The sum, rounded once."""
        return _parts(self.parts)[0]

    @property
    def rest(self) -> jax.Array:
        """The rounding error of `value`: the sum is `value + rest`."""
        return _parts(self.parts)[1]

    def __add__(self, other: Self | jax.Array | float) -> Self:
        """Returns the elementwise sum with an array or another sum."""
        if isinstance(other, CompensatedSum):
            return self.replace(parts=_add(self.parts, other.parts))
        parts = lax.expand_dims(jnp.asarray(other, self.parts.dtype), (0,))
        return self.replace(parts=_add(self.parts, parts))

    def scale(self, factor: ArrayLike) -> Self:
        """Returns the sum multiplied by a factor.

        Args:
            factor: a scalar or an array of the shape of the sum.
        """
        return type(self).of(factor * self.value, self.parts.dtype) + factor * self.rest

    def aggregate(self) -> Self:
        """Adds the sums that are stacked on a leading axis: `parts` is `(n, 2, ...)`."""
        parts = self.parts
        while (count := parts.shape[0]) > 1:
            half = count // 2
            # Pairwise: the number of operations is logarithmic in the number of devices.
            added = jax.vmap(_add)(parts[:half], parts[half : 2 * half])
            parts = jnp.concatenate([added, parts[2 * half :]])
        return self.replace(parts=parts[0])


def add_trees(ours: T, theirs: T) -> T:
    """Adds the states of two metrics, leaf by leaf.

    Args:
        ours: a tree of arrays and `CompensatedSum`s.
        theirs: a tree of the same structure.

    Example:
        >>> added = add_trees({"a": CompensatedSum.of(1.0), "b": 2}, {"a": CompensatedSum.of(3.0), "b": 4})
        >>> added["a"].value.item(), int(added["b"])
        (4.0, 6)
    """
    return jax.tree.map(lambda a, b: a + b if _is_sum(a) else jnp.add(a, b), ours, theirs, is_leaf=_is_sum)


def sum_leading_axis(tree: T) -> T:
    """Adds the states of several replicas, whose leaves are stacked on a leading axis.

    Args:
        tree: a tree of arrays `(n, ...)` and `CompensatedSum`s of them.

    Example:
        >>> sum_leading_axis({"b": jnp.array([1, 2, 3])})["b"].item()
        6
    """

    def total(node: Any) -> Any:
        return node.aggregate() if _is_sum(node) else jnp.sum(node, axis=0, dtype=node.dtype)

    return jax.tree.map(total, tree, is_leaf=_is_sum)


def _is_sum(node: Any) -> bool:
    return isinstance(node, CompensatedSum)


@jax.jit
def _add(ours: jax.Array, theirs: jax.Array) -> jax.Array:
    """Adds `(2, ...)` to `(2, ...)`, or to `(1, ...)` without a stored error.

    In primitives, because every step has several of them: `jnp` takes twice as long to trace.
    """
    if ours.shape[1:] != theirs.shape[1:] or ours.dtype != theirs.dtype:
        shape = jnp.broadcast_shapes(ours.shape[1:], theirs.shape[1:])
        dtype = jnp.promote_types(ours.dtype, theirs.dtype)
        ours, theirs = (_spread(parts, shape).astype(dtype) for parts in (ours, theirs))
    a, rest = lax.unstack(ours)
    b, *errors = lax.unstack(theirs)
    rest = lax.add(rest, errors[0]) if errors else rest
    zero = lax.full_like(a, 0)
    total = lax.add(a, b)
    of_b = lax.sub(total, a)
    error = lax.add(lax.sub(a, lax.sub(total, of_b)), lax.sub(b, of_b))
    finite = lax.is_finite(total)  # the error of an infinite sum would be infinity minus infinity, NaN
    rest = lax.select(finite, lax.add(rest, error), zero)
    value = lax.add(total, rest)
    return lax.stack([value, lax.select(finite, lax.sub(rest, lax.sub(value, total)), zero)])


def _spread(parts: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Broadcasts every part to a shape."""
    return jnp.stack([jnp.broadcast_to(part, shape) for part in parts])


def _parts(parts: Any) -> Any:
    """The sum and its rest; in one primitive, where they are indexed in two for each."""
    return lax.unstack(parts) if isinstance(parts, jax.Array) else parts


def binned_sums(index: jax.Array, weight: jax.Array, bins: int) -> jax.Array:
    """Sums weights by bin, without the rounding errors of a sequential sum.

    A scatter adds the rows of a bin one after the other. So each weight is split into its leading digits, of which
    thousands can be added without rounding, and the rest. The rows of a large batch are distributed over several copies
    of the bins, which are then added pairwise.

    Args:
        index: integers `(n,)`; indices outside of `0..bins - 1` are ignored.
        weight: `(n,)`, floating.
        bins: the number of bins.

    Returns:
        `(bins,)`.

    Example:
        >>> binned_sums(jnp.array([1, 1, -1, 7]), jnp.ones(4), 2)
        Array([0., 2.], dtype=float32)
    """
    digits = jnp.finfo(weight.dtype)
    leading = jax.lax.reduce_precision(weight, digits.nexp, digits.nmant // 2)
    rows = jnp.stack([leading, weight - leading], axis=-1)
    index = jnp.where(index < 0, bins, index)  # a negative index would count from the end
    copies = max(1, min(index.size // _ROWS, index.size // bins))
    turn = jnp.arange(index.size) % copies
    sums = jnp.zeros((copies, bins, 2), weight.dtype).at[turn, index].add(rows, mode="drop").sum(axis=0)
    return sums[:, 0] + sums[:, 1]


_ROWS = 4096
"""Rows for which sums are exact: leading digits have 12 bits, so a sum of this many has 24, as float32 has."""
