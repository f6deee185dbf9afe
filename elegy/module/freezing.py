"""Frozen parameters: those that get no gradient, no update and no optimizer state."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from elegy.errors import StepError
from elegy.module.levels import level_of
from elegy.module.precision import wide_params
from elegy.patterns import few, matching, no_match, parameter_paths, select
from elegy.types import PyTree

_NOT_FOUND = "the parameters to freeze or unfreeze cannot be found:\n  "


class FreezeRule(NamedTuple):
    """Freezes or unfreezes the parameters that match a pattern; later rules take precedence.

    Args:
        pattern: a pattern of parameter paths.
        freezes: True to freeze, False to unfreeze.
    """

    pattern: str
    freezes: bool


def is_frozen(rules: Sequence[FreezeRule], path: str) -> bool:
    """True if the last rule that matches a path freezes it.

    Example:
        >>> rules = [FreezeRule("body/*", True), FreezeRule("body/last/*", False)]
        >>> is_frozen(rules, "body/first/w"), is_frozen(rules, "body/last/w"), is_frozen(rules, "head/w")
        (True, False, False)
    """
    return next((rule.freezes for rule in reversed(rules) if fnmatchcase(path, rule.pattern)), False)


def trained(module: Any, params: PyTree) -> PyTree:
    """Replaces the frozen parameters by `optax.MaskedNode()`, which has no leaves.

    Args:
        module: a state.
        params: a tree of the structure of its parameters.
    """
    rules = module._freezing
    return select(params, lambda path: not is_frozen(rules, path)) if rules else params


def frozen_paths(module: Any) -> list[str]:
    """Returns the paths of the frozen parameters of a state."""
    return [path for path in parameter_paths(module.get_params()) if is_frozen(module._freezing, path)]


def check(module: Any) -> None:
    """Checks that the rules of a state fit its parameters.

    Raises:
        ValueError: if a pattern matches no parameter, or all parameters are frozen.
    """
    if not module._freezing:
        return
    paths = parameter_paths(module.get_params())
    problems = [no_match(rule.pattern, paths) for rule in module._freezing if not matching(rule.pattern, paths)]
    if problems:
        raise ValueError(_NOT_FOUND + "\n  ".join(problems))
    if len(frozen_paths(module)) == len(paths):
        raise ValueError(f"all parameters are frozen, {few(paths)}: there is nothing to train.")


def check_level(module: Any) -> None:
    """Checks that the steps of a module can leave frozen parameters out.

    Raises:
        StepError: if the first state or the training step is made at the core level.
    """
    for phase in ("init", "train"):
        if level_of(type(module), phase) == "core":
            raise StepError(
                f"frozen parameters have no gradient and no optimizer state, but {type(module).__name__}.{phase}_step "
                "is a core-level step, which makes those itself. Leave them out there (`optax.partition`, "
                f"`jax.lax.stop_gradient`), or write `managed_{phase}_step`."
            )


def optimizer_params(module: Any) -> PyTree:
    """Returns the parameters for the optimizer: those that are not frozen, under a policy 16-bit ones in float32."""
    return trained(module, wide_params(module))


def with_frozen(module: Any, patterns: Sequence[str]) -> Any:
    """Returns a module whose frozen parameters are those that match patterns, and no others."""
    return _with_rules(module, tuple(FreezeRule(pattern, True) for pattern in dict.fromkeys(patterns)))


def with_more(module: Any, patterns: Sequence[str], freezes: bool) -> Any:
    """Returns a module in which parameters are frozen, or trained again.

    The optimizer of a module with a first state keeps its state for all parameters that are trained before and after.

    Args:
        module: a module. The patterns for one without a first state are checked when it is made.
        patterns: patterns of parameter paths.
        freezes: True to freeze what they match, False to train it.

    Raises:
        StepError: as `check_level`.
        ValueError: as `check`, and if the optimizer's state cannot be kept.
    """
    if module.key is not None:
        paths = parameter_paths(module.get_params())
        if problems := [no_match(pattern, paths) for pattern in patterns if not matching(pattern, paths)]:
            raise ValueError(_NOT_FOUND + "\n  ".join(problems))
    rules = [rule for rule in module._freezing if rule.pattern not in patterns]
    rules += [FreezeRule(pattern, freezes) for pattern in dict.fromkeys(patterns)]
    while rules and not rules[0].freezes:  # unfreezes nothing
        del rules[0]
    return _with_rules(module, tuple(rules))


def _with_rules(module: Any, rules: tuple[FreezeRule, ...]) -> Any:
    if rules:
        check_level(module)
    if rules == module._freezing:
        return module
    new = module.replace(_freezing=rules)
    if module.key is None:
        return new
    check(new)
    frozen = frozen_paths(new)
    new = new if frozen else new.replace(_freezing=())
    if frozen == frozen_paths(module) or new.optimizer is None or new.optimizer.state is None:
        return new
    return new.replace(optimizer=new.optimizer.moved_to(optimizer_params(new)))
