"""One optimizer for each group of parameters, by patterns of their paths."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import optax
from optax.transforms import PartitionState

from elegy.names import path_name
from elegy.optimizer import Optimizer, Transformation, update_with
from elegy.patterns import combine, few, matching, no_match, parameter_paths, select
from elegy.types import PyTree


def optimizer_groups(groups: Mapping[str, Transformation]) -> optax.GradientTransformationExtraArgs:
    """Combines transformations of groups of parameters, by patterns of their paths; the first match is used.

    The updates and the state are those of `optax.partition`. There are three differences: parameters may be left out by
    `optax.MaskedNode()`, and a group without parameters has no state; each group gets the extra arguments that its
    transformation accepts; and the parameters may be a tree that is callable, as an Equinox module is, which Optax
    would take for a function that returns labels.

    Args:
        groups: a gradient transformation for each pattern.

    Raises:
        TypeError: if a pattern is not a string, or a value is not a gradient transformation.
        ValueError: if there is no group. `init` raises it for patterns that match no parameter, patterns all of whose
            parameters match earlier ones, and parameters that no pattern matches; the message lists them.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"body": {"w": jnp.ones(2)}, "head": {"w": jnp.ones(2)}}
        >>> tx = optimizer_groups({"head/*": optax.sgd(1.0), "*": optax.sgd(0.5)})
        >>> updates, state = tx.update(params, tx.init(params), params)
        >>> updates["head"]["w"].tolist(), updates["body"]["w"].tolist()
        ([-1.0, -1.0], [-0.5, -0.5])
    """
    if not groups:
        raise ValueError("the dict of optimizers is empty: write a pattern and an optimizer for each group.")
    for pattern, tx in groups.items():
        if not isinstance(pattern, str) or not pattern:
            raise TypeError(
                "the keys of a dict of optimizers must be patterns of parameter paths, such as 'head/*', "
                f"not {pattern!r}."
            )
        if isinstance(tx, Optimizer):
            raise TypeError(f"the optimizer of {pattern!r} must be a transformation of Optax, not an Optimizer.")
        Optimizer(tx)  # raises for anything else
    groups = dict(groups)

    def parts(params: PyTree) -> dict[str, PyTree]:
        """Returns the parameters of each group that has any."""
        group_of = _groups_of(list(groups), parameter_paths(params))

        def part(pattern: str) -> PyTree:
            return select(params, lambda path: group_of[path] == pattern)

        return {pattern: own for pattern in groups if jax.tree.leaves(own := part(pattern))}

    def init(params: PyTree) -> Any:
        _check(list(groups), params)
        return PartitionState({p: optax.MaskedState(groups[p].init(part)) for p, part in parts(params).items()})

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, Any]:
        params_of = dict.fromkeys(groups) if params is None else parts(params)
        extra_of = {name: parts(extra[name]) for name in ("grad",) if name in extra}
        states: dict[Hashable, Any] = {}
        for pattern, part in parts(updates).items():
            own = extra | {name: trees[pattern] for name, trees in extra_of.items()}
            inner = state.inner_states[pattern].inner_state
            part, inner = update_with(groups[pattern], part, inner, params_of[pattern], own)
            updates, states[pattern] = combine(part, updates), optax.MaskedState(inner)
        return updates, PartitionState(states)

    return optax.GradientTransformationExtraArgs(init, update)


def _groups_of(patterns: Sequence[str], paths: Sequence[str]) -> dict[str, str]:
    """Returns the first pattern that matches each path, without paths that no pattern matches."""
    return {path: pattern for pattern in reversed(patterns) for path in matching(pattern, paths)}


def _check(patterns: Sequence[str], params: PyTree) -> None:
    paths = parameter_paths(params)
    group_of = _groups_of(patterns, paths)
    problems = []
    for pattern in patterns:
        found = matching(pattern, paths)
        earlier = list(dict.fromkeys(group_of[path] for path in found))
        if not found:
            problems.append(no_match(pattern, paths))
        elif pattern not in earlier:
            problems.append(
                f"the pattern {pattern!r} is never used: {few(found)} {'match' if len(found) > 1 else 'matches'} "
                f"{few(earlier)} before it"
            )
    trained = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    if missing := [path for path in trained if path not in group_of]:
        problems.append(f"no pattern matches {few(missing)}; the pattern '*' at the end takes all others")
    if problems:
        raise ValueError("the dict of optimizers does not fit the parameters:\n  " + "\n  ".join(problems))


def as_optimizer(optimizer: Optimizer | Transformation | Mapping[str, Transformation]) -> Optimizer:
    """Accepts an `Optimizer`, a transformation of Optax, or a dict of transformations by patterns of parameter paths.

    Example:
        >>> as_optimizer(optax.sgd(0.1)).state is None
        True
    """
    if isinstance(optimizer, Optimizer):
        return optimizer
    return Optimizer(optimizer_groups(optimizer) if isinstance(optimizer, Mapping) else optimizer)


__all__ = ["as_optimizer", "optimizer_groups"]
