"""Counts the operations and the memory of a traced step before it runs, from the analyses of XLA."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from elegy.engine.fusing import work
from elegy.types import PyTree

if TYPE_CHECKING:
    from elegy.engine.program import Program

_CONTROL = jax.ShapeDtypeStruct((3,), jnp.int32)


def flops(program: Program) -> float:
    """Counts the floating-point operations of one step, over all devices and members of a population.

    XLA's analysis of the lowered step counts a multiply-add as two operations, and only the products of a convolution
    that the padding and the strides leave. It counts the body of a loop once, so the result is multiplied by what the
    lengths of loops add to the work of the traced step. Operations inside of custom calls (cuDNN's attention, Pallas
    kernels) are not known to XLA. Without an analysis of the backend, the work of the traced step is the result.

    Args:
        program: the traced step.
    """
    total, _ = work(program.closed)
    once, _ = work(program.closed, loops_once=True)
    analysis = lower(program).cost_analysis()
    counted = analysis.get("flops", 0.0) if isinstance(analysis, dict) else 0.0
    strategy = program.strategy
    if counted > 0 < once:
        return strategy.runs_of_lowered * counted * total / once
    return math.prod(size for _, size in strategy.axis_env) * strategy.members * total


def lower(program: Program) -> jax.stages.Lowered:
    """Lowers one step for the structures with which it was traced; nothing is computed, and no state is needed.

    Args:
        program: the traced step.
    """
    state = placed_leaves(program)
    changed = [state[i] for i in program.changed]
    place = program.strategy.placed_struct
    batch, mask = (place(given, "batch") for given in (program.batch, program.mask))
    donated, sums = changed[: program.donated], changed[program.donated :]
    kernel: Any = program.single()
    return kernel.lower(donated, sums, [state[i] for i in program.constant], batch, mask, _CONTROL)


def placed_leaves(program: Program) -> list[jax.ShapeDtypeStruct]:
    """Returns the leaves of the state as the compiled step takes them: placed, with raw arrays for random keys.

    Args:
        program: the traced step.
    """
    return [_raw(leaf) for leaf in jax.tree.leaves(program.strategy.placed_struct(program.state, "state"))]


def bytes_per_device(placed: PyTree) -> int:
    """Returns the bytes of a placed value on the device that holds most of it.

    Args:
        placed: the result of `Strategy.placed_struct`, or arrays.

    Example:
        >>> bytes_per_device({"w": jax.ShapeDtypeStruct((3, 4), jnp.float32)})
        48
    """
    return sum(_bytes(_raw(leaf)) for leaf in jax.tree.leaves(placed))


def _bytes(leaf: Any) -> int:
    shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
    return math.prod(shape) * leaf.dtype.itemsize


def _raw(leaf: Any) -> Any:
    if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)
