"""Step values: values that a training step computes only if a callback requests them by name."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from elegy.names import path_name
from elegy.optimizer import Optimizer, current_hyperparameters, group_of
from elegy.types import PyTree

_NORMS = ("grad_norm", "update_norm", "param_norm")

OWN_LOGS = "logs"
"""The name that requests the step's own logs, as if the step were the only one of its epoch."""

STEP_VALUES = (OWN_LOGS, "learning_rate", *_NORMS, *(f"{name}/*" for name in _NORMS))
"""All names that a callback may declare in `step_values`."""


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """The options of a trainer's training steps.

    Args:
        guard: True to keep the old state after a step that is not finite; the logs contain the check.
        accumulate: the number of microbatches of a step.
        values: names of `STEP_VALUES` that the step computes, too.
    """

    guard: bool = False
    accumulate: int = 1
    values: tuple[str, ...] = ()


PLAIN = StepOptions()
"""The options of a step outside of a trainer."""


def step_values(
    names: tuple[str, ...], grads: PyTree, before: PyTree, after: PyTree, optimizer: Optimizer
) -> dict[str, jax.Array]:
    """Computes the requested values, scalars by name.

    Norms are Euclidean, `float32[]` (`float64[]` in float64). A name that ends in `/*` gives one norm for each array of
    trained parameters, as `grad_norm/dense/kernel`. The learning rate is the one that this step used, from
    `optax.inject_hyperparams`; if an optimizer has several, each has its path in the name.

    Args:
        names: names of `STEP_VALUES`.
        grads: the gradients of the whole batch.
        before: the parameters before the step.
        after: the parameters after the step.
        optimizer: the optimizer after the step.

    Raises:
        ValueError: if the learning rate is requested, but the optimizer's state has none.

    Example:
        >>> one = {"w": jnp.ones(4)}
        >>> values = step_values(("grad_norm", "param_norm/*"), one, one, one, Optimizer(optax.sgd(1.0)).init(one))
        >>> {name: float(value) for name, value in values.items()}
        {'grad_norm': 2.0, 'param_norm/w': 2.0}
    """
    trees = {"grad_norm": lambda: grads, "param_norm": lambda: after}
    trees["update_norm"] = lambda: jax.tree.map(jnp.subtract, after, before)
    values: dict[str, jax.Array] = {}
    for name in names:
        norm, _, each = name.partition("/")
        if name == "learning_rate":
            values |= _learning_rates(optimizer)
        elif norm in trees and each:
            leaves = jax.tree_util.tree_leaves_with_path(trees[norm]())
            values |= {f"{norm}/{path_name(path)}": _norm(leaf) for path, leaf in leaves}
        elif norm in trees:
            values[norm] = _norm(trees[norm]())
    return values


def _norm(tree: PyTree) -> jax.Array:
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), tree)
    return optax.tree.norm(wide)


def _learning_rates(optimizer: Optimizer) -> dict[str, jax.Array]:
    found = {
        path: leaf
        for path, leaf in current_hyperparameters(optimizer).items()
        if path.rpartition("/")[2] == "learning_rate"
    }
    if not found:
        raise ValueError(
            "a callback requests the learning rate, but the optimizer's state does not have it. Write "
            "`optax.inject_hyperparams(optax.adam)(learning_rate=...)`, with a number or a schedule, or give the "
            "schedule to the callback, `LearningRateMonitor(schedule)`."
        )
    groups = [group_of(path) for path in found]
    if None not in groups and len(set(groups)) == len(groups):
        return {f"learning_rate/{group}": leaf for group, leaf in zip(groups, found.values(), strict=True)}
    if len(found) == 1:
        return {"learning_rate": next(iter(found.values()))}
    return {f"learning_rate/{_place(path)}": leaf for path, leaf in found.items()}


def _place(path: str) -> str:
    """Returns the parts of a path that differ between optimizers.

    Example:
        >>> _place("state/1/inner_states/head/inner_state/hyperparams/learning_rate")
        '1/head'
    """
    parts = [part for part in path.split("/") if part not in _COMMON]
    return "/".join(parts) or "0"


_COMMON = ("state", "inner_states", "inner_state", "hyperparams", "learning_rate")
