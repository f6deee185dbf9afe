"""Errors of keyword arguments that a method does not have: they name the nearest one, or the place of the argument."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from elegy.suggestions import near

_RATE = "the learning rate is an argument of the optimizer, `Trainer(..., optimizer=optax.adam(1e-3))`"
_OF_THE_OPTIMIZER = dict.fromkeys(("lr", "learning_rate"), _RATE)


def explain_keywords(cls: type, *names: str) -> None:
    """Replaces the error of Python for an unknown keyword in methods of a class; type checkers see the methods.

    Args:
        cls: the class.
        *names: the names of the methods, `"__init__"` among them.

    Example:
        >>> class Robot:
        ...     def __init__(self, speed): ...
        ...     def walk(self, steps): ...
        >>> explain_keywords(Robot, "__init__", "walk")
        >>> Robot(1).walk(step=3)
        Traceback (most recent call last):
        ...
        TypeError: walk() got an unexpected keyword argument 'step'. Did you mean 'steps'?
        >>> Robot(steps=3)
        Traceback (most recent call last):
        ...
        TypeError: Robot() got an unexpected keyword argument 'steps': it is an argument of `walk`.
    """
    methods = {name: getattr(cls, name) for name in names}
    parameters = {
        cls.__name__ if name == "__init__" else name: [*inspect.signature(method).parameters][1:]
        for name, method in methods.items()
    }
    for own, (name, method) in zip(parameters, methods.items(), strict=True):
        setattr(cls, name, _explaining(own, method, parameters))


def _explaining(own: str, method: Callable[..., Any], parameters: Mapping[str, list[str]]) -> Callable[..., Any]:
    known = frozenset(parameters[own])

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not known.issuperset(kwargs):
            raise TypeError(_message(own, next(name for name in kwargs if name not in known), parameters))
        return method(*args, **kwargs)

    return call


def _message(own: str, name: str, parameters: Mapping[str, list[str]]) -> str:
    text = f"{own}() got an unexpected keyword argument {name!r}"
    if name in _OF_THE_OPTIMIZER:
        return f"{text}: {_OF_THE_OPTIMIZER[name]}."
    if places := [f"`{place}`" for place, others in parameters.items() if name in others]:
        return f"{text}: it is an argument of {' and '.join(places)}."
    if similar := near(name, parameters[own]):
        return f"{text}. Did you mean {' or '.join(map(repr, similar))}?"
    for place, others in parameters.items():
        if similar := near(name, others, 1):
            return f"{text}. Did you mean {similar[0]!r} of `{place}`?"
    return f"{text}. There are: {', '.join(parameters[own])}."
