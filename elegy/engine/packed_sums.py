"""Sums of a state as one array, because each array that a compiled step takes or returns costs about a microsecond."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from elegy.strategies import Strategy


class PackedSums:
    """Joins arrays of one dtype to a vector, and cuts the vector into these arrays again.

    Args:
        structs: the shapes and dtypes of the arrays.

    Attributes:
        pack: a compiled `joined`.
        unpack: a compiled `cut`.

    Example:
        >>> sums = [jnp.array([1.0, 2.0]), jnp.array([[3.0], [4.0]])]
        >>> packed = PackedSums(sums)
        >>> packed.pack(sums)
        Array([1., 2., 3., 4.], dtype=float32)
        >>> [one.shape for one in packed.unpack(packed.pack(sums))]
        [(2,), (2, 1)]
    """

    def __init__(self, structs: Sequence[Any]):
        self._shapes = [struct.shape for struct in structs]
        self._stops = list(itertools.accumulate(math.prod(shape) for shape in self._shapes))
        self.pack, self.unpack = jax.jit(self.joined), jax.jit(self.cut)

    @classmethod
    def of(cls, structs: Sequence[Any], strategy: Strategy) -> PackedSums | None:
        """Returns None where packing does not pay: for arrays of several devices or dtypes, and for less than two.

        Args:
            structs: the shapes and dtypes of the arrays.
            strategy: where they are.
        """
        dtypes = {struct.dtype for struct in structs}
        return cls(structs) if strategy.one_device and len(dtypes) == 1 < len(structs) else None

    def joined(self, sums: Sequence[jax.Array]) -> jax.Array:
        """Joins arrays, traced or not."""
        return jnp.concatenate([one.ravel() for one in sums])

    def cut(self, packed: jax.Array) -> list[jax.Array]:
        """Cuts a vector into the arrays, traced or not."""
        return [
            packed[stop - math.prod(shape) : stop].reshape(shape)
            for shape, stop in zip(self._shapes, self._stops, strict=True)
        ]
