"""The arguments of an optimizer: conjugated gradients, and the loss as a function of the parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from elegy.strategies.strategy import Strategy
from elegy.types import PyTree


def conjugate(grads: PyTree) -> PyTree:
    """Conjugates the complex leaves of gradients from `jax.grad`, so that an optimizer can subtract them.

    For a real function of a complex `z = x + iy`, `jax.grad` returns `df/dx - i df/dy`; the direction of steepest
    ascent is `df/dx + i df/dy`.

    Args:
        grads: gradients, a tree of arrays.

    Example:
        >>> conjugate([jnp.complex64(1 - 2j), jnp.float32(3)])
        [Array(1.+2.j, dtype=complex64), Array(3., dtype=float32)]
    """
    return jax.tree.map(lambda leaf: jnp.conj(leaf) if jnp.iscomplexobj(leaf) else leaf, grads)


def objective_dtype(params: PyTree) -> Any:
    """Returns the dtype of the loss for the optimizer: float64 if the parameters are float64, otherwise float32.

    Optimizers that store the loss in their state use the parameters' dtype. With `jax_enable_x64`, the sums of losses
    are float64 in any case.

    Args:
        params: the parameters.

    Example:
        >>> objective_dtype({"w": jnp.zeros(2, jnp.bfloat16), "z": jnp.zeros(2, jnp.complex64)}).name
        'float32'
    """
    dtypes = [jnp.asarray(leaf).dtype for leaf in jax.tree.leaves(params)]
    floating = [jnp.finfo(dtype).dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.inexact)]
    return jnp.dtype(jnp.result_type(jnp.float32, *floating))


def optimizer_arguments(objective: Callable[[PyTree], jax.Array], strategy: Strategy) -> dict[str, Callable[..., Any]]:
    """Makes the functions that some Optax transformations take as extra arguments of their `update`.

    Args:
        objective: this replica's part of the loss as a function of the parameters.
        strategy: how replicas combine.

    Returns:
        `value_fn` (line searches) and `obj_fn` (`optax.contrib.sophia`): the loss of the whole batch, differentiable in
        any mode with JAX's conventions; `grad_fn` (`optax.contrib.sam` in opaque mode): its conjugated gradients, as a
        function of the parameters and the index of an inner step.
    """

    @jax.custom_jvp
    def value(params: PyTree) -> jax.Array:
        return strategy.sum(objective(params))

    @value.defjvp
    def value_jvp(primals: tuple[PyTree], tangents: tuple[PyTree]) -> tuple[jax.Array, jax.Array]:
        # The transpose of a sum over replicas would sum again, so the tangent is a product with the summed gradient.
        out, grads = strategy.sum(jax.value_and_grad(objective)(*primals))
        products = jax.tree.map(lambda grad, tangent: jnp.real(jnp.sum(grad * tangent)), grads, tangents[0])
        return out, sum(jax.tree.leaves(products), jnp.zeros((), out.dtype)).astype(out.dtype)

    def value_fn(params: PyTree, grad_fn: Any = None, obj_fn: Any = None) -> jax.Array:
        # Optax's line searches raise for extra arguments that `value_fn` does not name.
        return value(params)

    def grad_fn(params: PyTree, step: Any = None) -> PyTree:
        return conjugate(strategy.sum(jax.grad(objective)(params)))

    return {"value_fn": value_fn, "grad_fn": grad_fn, "obj_fn": value_fn}
