"""Binds the inputs of a batch, the mode and a key to the parameters of a third-party function."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

from elegy.callers import stacklevel_of_caller
from elegy.types import PyTree

FLAGS: Mapping[str, bool] = {
    "training": True,
    "train": True,
    "is_training": True,
    "is_train": True,
    "deterministic": False,
    "use_running_average": False,
    "inference": False,
}
"""The parameter names for the mode, with their values in training."""

_LIKE_A_FLAG = re.compile("train|infer|eval|determin")

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def call_arguments(
    function: Callable[..., Any],
    inputs: PyTree,
    training: bool,
    *,
    skip: int = 0,
    extra: Mapping[str, Any] | None = None,
    hide: Collection[str] = (),
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Binds inputs to the parameters of a function.

    A dict whose keys are all names of parameters becomes keyword arguments; a plain tuple becomes positional arguments
    if the function takes that many; anything else is one argument. The mode (`FLAGS`) and the values in `extra` are
    passed only if the signature names them.

    Args:
        function: a function or a bound method.
        inputs: the inputs of a batch.
        training: True in a training step.
        skip: the number of leading parameters for which the caller has arguments.
        extra: other values by parameter name, such as a key.
        hide: names of parameters that keep their defaults.

    Returns:
        `(args, kwargs)`, to be passed after the skipped parameters.

    Warns:
        UserWarning: if a parameter seems to be the mode, but its name is not in `FLAGS`.

    Example:
        >>> def call(x, y, train, *, key=None): ...
        >>> call_arguments(call, (1, 2), True)
        ((1, 2), {'train': True})
        >>> call_arguments(call, {"x": 1, "y": 2}, False, extra={"key": 7})
        ((), {'x': 1, 'y': 2, 'train': False, 'key': 7})
    """
    parameters = _parameters(function)[skip:]
    extra = extra or {}
    kwargs: dict[str, Any] = {}
    names: list[inspect.Parameter] = []  # the parameters for inputs
    for parameter in parameters:
        if parameter.name in hide:
            continue
        if parameter.name in extra:
            kwargs[parameter.name] = extra[parameter.name]
        elif parameter.name in FLAGS:
            kwargs[parameter.name] = FLAGS[parameter.name] == training
        else:
            names.append(parameter)
            _check_no_flag(parameter, inputs)
    keyword = {p.name for p in names if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    positional = [p for p in names if p.kind in _POSITIONAL]
    catches_args = any(p.kind == p.VAR_POSITIONAL for p in names)
    catches_kwargs = any(p.kind == p.VAR_KEYWORD for p in names)
    if isinstance(inputs, Mapping) and inputs and all(isinstance(key, str) for key in inputs):
        only_keywords = catches_kwargs and not positional and not catches_args
        if set(inputs) <= keyword or only_keywords:
            return (), {**inputs, **kwargs}
    if type(inputs) is tuple and _takes(len(inputs), positional, catches_args):
        return _in_order(inputs, parameters, names, kwargs)
    return _in_order((inputs,), parameters, names, kwargs)


def takes(function: Callable[..., Any], name: str, *, required: bool = False) -> bool:
    """True if a function has a parameter of this name (with `required`, one without a default).

    Example:
        >>> takes(lambda x, state=None: x, "state"), takes(lambda x, state=None: x, "state", required=True)
        (True, False)
    """
    return any(
        p.name == name
        and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        and not (required and p.default is not p.empty)
        for p in _parameters(function)
    )


def takes_inputs(function: Callable[..., Any], skip: int) -> bool:
    """True if a function has further parameters after its first `skip` ones.

    Example:
        >>> takes_inputs(lambda key: 0, 1), takes_inputs(lambda key, x: 0, 1)
        (False, True)
    """
    return len(_parameters(function)) > skip


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except ValueError:  # a builtin without a signature
        return [inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL)]


def _check_no_flag(parameter: inspect.Parameter, inputs: PyTree) -> None:
    given = isinstance(inputs, Mapping) and parameter.name in inputs
    if isinstance(parameter.default, bool) and _LIKE_A_FLAG.search(parameter.name) and not given:
        warnings.warn(
            f"the parameter {parameter.name}={parameter.default} keeps its default in training and outside of it. If "
            f"it is the mode, rename it to one of {', '.join(FLAGS)}.",
            stacklevel=stacklevel_of_caller(),
        )


def _takes(count: int, positional: list[inspect.Parameter], catches_args: bool) -> bool:
    if catches_args:
        return True
    required = sum(p.default is p.empty for p in positional)
    return len(positional) > 1 and required <= count <= len(positional)


def _in_order(
    values: tuple[Any, ...],
    parameters: list[inspect.Parameter],
    names: list[inspect.Parameter],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Passes values by position up to the first parameter without a value, then by name."""
    gap = next((i for i, p in enumerate(parameters) if p not in names), len(parameters))
    free = sum(p.kind in _POSITIONAL for p in parameters[:gap])
    later = [p.name for p in names[free:] if p.kind in _POSITIONAL]
    if len(values) <= free or not later:
        return values, kwargs
    return values[:free], {**dict(zip(later, values[free:], strict=False)), **kwargs}
