"""The functions of a member of a population: built again from its hyperparameters wherever a step is traced."""

from __future__ import annotations

from typing import Any

import jax

from elegy.module import managed
from elegy.names import listed
from elegy.pytree import Pytree, Static
from elegy.types import Batch, PyTree

STATIC_ADVICE = (
    "Within a population, hyperparameters are traced arrays: one compiled step computes all members, so they may scale "
    "or weight (learning rates, decays, dropout rates, weights of losses), but not choose shapes, layers or branches, "
    "nor become Python numbers by `float` or `int`. For a width or a number of layers, make one population for each "
    "value. A schedule that compares its peak in Python, as `optax.warmup_cosine_decay_schedule` does, is made with a "
    "peak of 1 and multiplied: `lambda step: rate * schedule(step)`."
)
"""What errors say of hyperparameters that cannot be traced."""


def init(module: Any, key: jax.Array, batch: Batch) -> Any:
    """Makes the first state of a member.

    Args:
        module: has a recipe, and the hyperparameters of the member, scalars by name, as its initial values.
        key: a typed key.
        batch: one batch, for its shapes and dtypes.
    """
    hyperparameters = module._initial
    try:
        state = managed.init(module._recipe.value(hyperparameters), key, batch)
    except (jax.errors.JAXTypeError, TypeError) as error:
        error.add_note(f"{STATIC_ADVICE} This population has {listed(hyperparameters)}.")
        raise
    return with_functions_of(module, state).replace(_hyperparameters=hyperparameters, _initial=None)


def for_outputs(state: Any, preds: PyTree) -> Any:
    """Returns a state whose losses and metrics, and those of its recipe, have the names of the outputs they receive.

    Args:
        state: a state with losses and metrics.
        preds: the outputs, as arrays or `jax.ShapeDtypeStruct`.
    """
    named = state.replace(losses_and_metrics=state.losses_and_metrics.for_outputs(preds))
    if state._recipe is None:
        return named
    build = state._recipe.value
    return named.replace(_recipe=Static(lambda hyperparameters: for_outputs(build(hyperparameters), preds)))


def bound(state: Any) -> Any:
    """Returns a state whose module, losses and optimizer are those of its hyperparameters; itself without a recipe."""
    if state._recipe is None:
        return state
    return with_functions_of(state._recipe.value(state._hyperparameters), state)


def unbound(after: Any, before: Any) -> Any:
    """Returns the result of a step on `bound(before)` with the functions of `before`, which refer to no trace."""
    if before._recipe is None:
        return after
    pending, books = after._logs.pending, before._logs.replace(pending=())
    rest = after.replace(_logs=after._logs.replace(pending=()))
    treedef: Any = jax.tree.structure(before.replace(_logs=books))
    leaves = jax.tree.leaves(rest)
    if len(leaves) != treedef.num_leaves:  # the step changed the structure, which is reported elsewhere
        return after
    state = jax.tree.unflatten(treedef, leaves)
    return state.replace(_logs=state._logs.replace(pending=pending))


def with_functions_of(donor: Any, tree: Any) -> Any:
    """Returns a tree with the static values of another one, wherever the two have the same classes.

    Args:
        donor: has the static values.
        tree: has the children.
    """
    if type(donor) is not type(tree):
        return tree
    if isinstance(tree, Pytree):
        static = tree._static_names
        children = [name for name in vars(tree) if name not in static]
        return tree.replace(
            **{name: getattr(donor, name) for name in static},
            **{name: with_functions_of(getattr(donor, name), getattr(tree, name)) for name in children},
        )
    if isinstance(tree, dict) and donor.keys() == tree.keys():
        return type(tree)({name: with_functions_of(donor[name], tree[name]) for name in tree})
    if type(tree) in (list, tuple) and len(donor) == len(tree):
        return type(tree)(map(with_functions_of, donor, tree))
    return tree
