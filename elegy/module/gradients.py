"""The arguments of an optimizer: conjugated gradients, and the loss as a function of the parameters."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from elegy.callers import stacklevel_of_caller
from elegy.module.levels import level_of
from elegy.strategies.strategy import Strategy
from elegy.types import PyTree


class WatchedGradient:
    """An objective that notes, while it is differentiated, if its losses have a derivative.

    A derivative that is zero whatever the values are is known to JAX when it traces: that of integers, comparisons,
    `argmax` and `stop_gradient`. A derivative that happens to be zero is not noted.

    Args:
        objective: a function of the parameters and others, whose result is `(loss or losses, others)`.

    Example:
        >>> loss = WatchedGradient(lambda w: (jnp.sum(w > 0).astype(float), None))
        >>> grads, _ = jax.grad(loss, has_aux=True)(jnp.ones(3))
        >>> loss.differentiable
        False
    """

    def __init__(self, objective: Callable[..., tuple[Any, Any]]):
        self._objective = objective
        # A list of its own: a traced step keeps the rule below, which must not refer to the objective's tracers.
        self._seen: list[bool] = []

    @property
    def differentiable(self) -> bool:
        """True if a loss has a derivative."""
        return True in self._seen

    def __call__(self, *args: Any) -> tuple[Any, Any]:
        """Calls the objective."""
        losses, others = self._objective(*args)
        return jax.tree.map(self._watched, losses), others

    def _watched(self, loss: jax.Array) -> jax.Array:
        seen = self._seen

        @jax.custom_jvp
        def same(loss: jax.Array) -> jax.Array:
            return loss

        def derivative(primals: tuple[jax.Array], tangents: tuple[Any]) -> tuple[jax.Array, Any]:
            seen.append(not isinstance(tangents[0], jax.custom_derivatives.SymbolicZero))
            return primals[0], tangents[0]

        same.defjvp(derivative, symbolic_zeros=True)
        return same(loss)

    def check(self, cls: type, params: PyTree) -> None:
        """Warns if the module trains at the high level, and no loss has a derivative.

        Args:
            cls: the class of the module.
            params: the parameters that are trained.
        """
        if not self.differentiable and level_of(cls, "train") == "high" and jax.tree.leaves(params):
            warnings.warn(
                f"nothing is trained: the loss of {cls.__name__} has no gradient with respect to the parameters. It "
                "does not depend on them, or only by integers, comparisons, `argmax` or `stop_gradient`, whose "
                "derivative is zero. Train with a loss such as `elegy.losses.CrossEntropy()`, and pass a count of "
                "errors as a metric.",
                stacklevel=stacklevel_of_caller(),
            )


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
