"""Decides if the members of a population run their training steps in one batched step, or one after another."""

from __future__ import annotations

import math
from typing import Any

import jax

from elegy.engine.fusing import work
from elegy.types import PyTree

_WORK = 1.5e6
"""Floating-point operations of one member's step for each matrix of parameters, from which its own matrix products fill
a core of a CPU."""

_WIDTH = 48
"""The width of matrices from which their products gain nothing from being joined with those of other members."""


def members_in_turn(closed: Any, params: PyTree, platform: str) -> bool:
    """True if the training steps of members are faster one after another, each over all batches of an execution.

    Batched steps share the cost of starting operations, which small steps consist of. In larger ones, a CPU loses more
    than that: XLA transposes weights and gradients to join or to batch the members' products. Narrow layers still gain,
    because products with a batch that all members share become one wide product. Convolutions are batched, because XLA
    runs them many times slower inside of a loop.

    Args:
        closed: the traced step of one member.
        params: the structure of the parameters of one member.
        platform: the platform that will run it, such as `"cpu"`.
    """
    matrices = sum(len(leaf.shape) > 1 for leaf in jax.tree.leaves(params))
    if platform != "cpu" or mean_width(params) < _WIDTH:
        return False
    flops, convolves = work(closed)
    return not convolves and flops >= _WORK * matrices


def mean_width(params: PyTree) -> float:
    """Returns the mean width of the matrices among parameters, weighted by their elements.

    The width of a matrix is the smaller of its dimensions; an array with more of them counts as the matrix with the
    largest width that joining neighbouring dimensions can make.

    Args:
        params: arrays or `jax.ShapeDtypeStruct`.

    Example:
        >>> mean_width([jax.ShapeDtypeStruct(shape, float) for shape in ((64, 32), (32, 8, 8), (32,))])
        32.0
    """
    shapes = [leaf.shape for leaf in jax.tree.leaves(params) if len(leaf.shape) > 1]
    total = sum(map(math.prod, shapes))
    return sum(math.prod(shape) * _width(shape) for shape in shapes) / total if total else 0.0


def _width(shape: tuple[int, ...]) -> int:
    return max(min(math.prod(shape[:cut]), math.prod(shape[cut:])) for cut in range(1, len(shape)))
