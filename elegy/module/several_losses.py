"""Several losses of one step, each differentiated with respect to its own part of the parameters."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from elegy.errors import StepError
from elegy.names import array_name, path_name
from elegy.patterns import combine, few, parameter_paths, select
from elegy.types import PyTree

Losses = jax.Array | dict[str, jax.Array]
"""The loss of a step, or several by the names of parts of the parameters."""


def total(losses: Losses) -> jax.Array:
    """Returns the sum of losses.

    Example:
        >>> total({"a": jnp.float32(1), "b": jnp.float32(2)}).item()
        3.0
    """
    return functools.reduce(operator.add, losses.values()) if isinstance(losses, dict) else losses


def log_each(state: Any, losses: dict[str, jax.Array]) -> Any:
    """Logs each of several losses as `<name>_loss`.

    Args:
        state: the module that the step returned.
        losses: the losses.

    Raises:
        StepError: if a term was added with `add_loss`, which belongs to none of the losses.
    """
    if added := [entry.name for entry in state._logs.pending if entry.adds and not entry.counted]:
        raise StepError(
            f"{type(state).__name__}.managed_train_step returned several losses, and added the term {added[0]!r} with "
            "`add_loss`, which belongs to none of them: add it to one of the losses."
        )
    for name, value in losses.items():
        state = state.log(f"{name}_loss", value)
    return state


def value_and_grads(
    objective: Callable[..., tuple[Losses, Any]], params: PyTree, probe: jax.Array, *args: Any
) -> tuple[tuple[Losses, Any], tuple[PyTree, jax.Array]]:
    """Computes `jax.value_and_grad(objective, (0, 1), has_aux=True)`, also for several losses.

    The objective is computed once. Each parameter gets the gradient of its own loss alone.

    Args:
        objective: a function of `params`, `probe` and `args` that returns `(losses, aux)`.
        params: the parameters that are trained.
        probe: a scalar.
        *args: other arguments.

    Returns:
        `((losses, aux), (grads, factor))`; `factor` is the derivative of the sum of the losses with respect to `probe`.

    Raises:
        TypeError: if a parameter is not a floating or complex array.
        StepError: if a loss has no parameters, or a parameter not exactly one loss.

    Example:
        >>> def losses(params, probe):
        ...     return {"a": params["a"] * params["b"], "b": params["b"] ** 2}, None
        >>> value_and_grads(losses, {"a": jnp.float32(2), "b": jnp.float32(3)}, jnp.zeros(()))[1][0]
        {'a': Array(3., dtype=float32), 'b': Array(6., dtype=float32)}
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise TypeError(
                f"the parameter {path_name(path)} is {array_name(leaf)}, and only floating and complex arrays have a "
                "gradient: keep it in a field of its own, or in `batch_stats`."
            )
    losses, pull, aux = jax.vjp(lambda params, probe: objective(params, probe, *args), params, probe, has_aux=True)
    if not isinstance(losses, dict):
        return (losses, aux), pull(jnp.ones_like(losses))
    owners, grads, factor = _owners(params, losses), params, jnp.zeros_like(probe)
    zeros = {name: jnp.zeros_like(loss) for name, loss in losses.items()}
    for name, loss in losses.items():
        own, part = pull(zeros | {name: jnp.ones_like(loss)})
        grads, factor = combine(_owned(own, owners, name), grads), factor + part
    return (losses, aux), (grads, factor)


def _owned(tree: PyTree, owners: dict[str, str], name: str) -> PyTree:
    return select(tree, lambda path: owners[path] == name)


def _owners(params: PyTree, names: Iterable[str]) -> dict[str, str]:
    """Returns the name of the loss of each parameter that is trained.

    Raises:
        StepError: if a loss has no parameters, or a parameter not exactly one loss.
    """
    names, paths = list(names), parameter_paths(params)
    trained = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    found = {path: [name for name in names if path == name or path.startswith(f"{name}/")] for path in paths}
    problems = [
        f"the loss {name!r} has no parameters" for name in names if not any(name in owners for owners in found.values())
    ]
    if missing := [path for path in trained if not found[path]]:
        problems.append(f"no loss has the parameters {few(missing)}")
    problems += [f"the losses {few(found[path])} have {path!r} in common" for path in paths if len(found[path]) > 1]
    if problems:
        raise StepError(
            "a step that returns several losses names each by the part of the parameters that it trains: the loss "
            f"'generator' trains the parameters 'generator/...'. Here {'; '.join(problems)}. The parameters are "
            f"{few(paths)}."
        )
    return {path: found[path][0] for path in trained}
