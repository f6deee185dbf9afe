"""The finite check: tests a step's loss and gradients for NaN and infinity, on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from elegy.losses.numbers import at_least_float32
from elegy.module.logs import LogBook
from elegy.pytree import Pytree, field
from elegy.types import PyTree

T = TypeVar("T")


class FiniteCheck(Pytree):
    """The result of the finite check of one step.

    Args:
        bad: `bool[1 + leaves]`, True if not finite: first the loss or any gradient, then each leaf of the gradients.
        loss: the step's loss, a scalar: float32, or float64 for a loss in float64.
    """

    bad: jax.Array = field()
    loss: jax.Array = field()

    @property
    def finite(self) -> jax.Array:
        """True if the loss and all gradients are finite, `bool[]`."""
        return ~self.bad[0]


def check_finite(loss: jax.Array, grads: PyTree) -> FiniteCheck:
    """Checks a loss and its gradients for NaN and infinity.

    Args:
        loss: the loss of the whole batch, a scalar.
        grads: the gradients of the whole batch.

    Example:
        >>> check = check_finite(jnp.float32(1), {"a": jnp.ones(2), "b": jnp.array([1, jnp.nan])})
        >>> check.bad.tolist()
        [True, False, True]
    """
    leaves = [~jnp.isfinite(_zero(leaf)) for leaf in jax.tree.leaves(grads)]
    some = jnp.any(jnp.stack([~jnp.isfinite(loss), *leaves]))
    return FiniteCheck(jnp.stack([some, *leaves]), loss.astype(at_least_float32(loss.dtype)))


def _zero(leaf: jax.Array) -> jax.Array:
    """Returns 0 if all elements of an array are finite, otherwise NaN."""
    if jnp.iscomplexobj(leaf):
        return _zero(leaf.real) + _zero(leaf.imag)
    # A sum propagates NaN. XLA's `max` does not, neither in large arrays on a CPU nor between devices; `all` over
    # booleans takes a CPU twice as long.
    return jnp.sum(leaf * 0)


def keep(check: FiniteCheck | None, after: Any, before: Any) -> Any:
    """Selects the new values if a step is finite, and the old ones otherwise.

    Args:
        check: the check of the step; None if it was not checked, which selects the new values.
        after: a tree of the values after the step.
        before: the same tree before it.
    """
    # A step that changes the structure, a shape or a dtype of the state is reported by the caller.
    if check is None or outline(after) != outline(before):
        return after
    return jax.tree.map(lambda new, old: new if new is old else jnp.where(check.finite, new, old), after, before)


def run_if_finite(check: FiniteCheck | None, update: Callable[[], T], before: T) -> T:
    """Runs an update, or keeps the old values if a step is not finite.

    Args:
        check: the check of the step; None if it was not checked, which always runs the update.
        update: computes the new values.
        before: the old values, of the same structure, shapes and dtypes.
    """
    if check is None or outline(jax.eval_shape(update)) != outline(before):
        return update()

    def choose() -> T:
        return keep(check, update(), before)

    def branch() -> T:
        return jax.lax.cond(check.finite, update, lambda: before)

    # On a CPU a branch updates the parameters in place, as without a check; `keep` needs buffers for the new values and
    # takes five times as long. On a GPU the host would wait for the device at each branch.
    return jax.lax.platform_dependent(cpu=branch, default=choose)


def keep_state(check: FiniteCheck | None, after: Any, before: Any) -> Any:
    """As `keep`, for the state of a step, whose new key and pending logs are always selected."""
    kept = keep(check, after.replace(_logs=LogBook()), before.replace(_logs=LogBook()))
    return kept.replace(_logs=after._logs, key=after.key)


def outline(tree: PyTree) -> tuple[Any, list[Any]]:
    """The structure of a tree, and the shapes and dtypes of its leaves; to be compared with another's."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]
