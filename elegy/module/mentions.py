"""Finds out from the code of a user's class whether its methods refer to a name, without running them."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Collection, Iterator
from typing import Any

_LIBRARIES = frozenset(("jax", "jaxlib", "numpy", "optax", "flax", "haiku", "equinox", "elegy"))


def may_mention(cls: type, names: Collection[str], base: type) -> bool:
    """True if a method of a class, or a function that it calls, may refer to one of the names.

    Functions are found by their names in the module of the caller, in modules that it imports, and in closures. Names
    are those of attributes, global variables and strings: another attribute of the same name counts, too.

    Args:
        cls: a subclass of `base`.
        names: the names to look for.
        base: the class whose own methods do not count.

    Returns:
        True also if the code of a method is not known.

    Example:
        >>> class Base: ...
        >>> class Uses(Base):
        ...     def step(self): return self.loss
        >>> class Ignores(Base):
        ...     def step(self): return 0.0
        >>> may_mention(Uses, {"loss"}, Base), may_mention(Ignores, {"loss"}, Base)
        (True, False)
    """
    fields = getattr(cls, "__dataclass_fields__", {})
    todo: list[types.FunctionType] = []
    for owner in cls.__mro__:
        if owner in base.__mro__:
            continue
        for name, value in vars(owner).items():
            if (name.startswith("__") and name.endswith("__")) or name in fields or isinstance(value, type):
                continue
            found = _functions(value)
            if not found and callable(value):
                return True
            todo += found
    seen = set[types.FunctionType]()
    while todo:
        function = todo.pop()
        if function in seen:
            continue
        seen.add(function)
        words = {word for code in _codes(function.__code__) for word in (*code.co_names, *code.co_consts)}
        if not words.isdisjoint(names):
            return True
        todo += (one for one in _called(function, words) if _root(one.__module__) not in _LIBRARIES)
    return False


def _functions(value: Any) -> list[types.FunctionType]:
    """The functions of Python behind a function, a method, a property, or what a decorator made of them."""
    value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    value = value.func if isinstance(value, functools.partial) else value
    return [one for one in (value, inspect.unwrap(value)) if isinstance(one, types.FunctionType)]


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _called(function: types.FunctionType, words: set[Any]) -> Iterator[types.FunctionType]:
    """The functions that a function may call, by the names in its code."""
    named = [function.__globals__[word] for word in words if word in function.__globals__]
    for cell in function.__closure__ or ():
        try:
            named.append(cell.cell_contents)
        except ValueError:  # not assigned yet
            continue
    for value in named:
        if isinstance(value, types.ModuleType):
            if _root(value.__name__) not in _LIBRARIES:
                inside = vars(value)
                yield from (one for word in words if word in inside for one in _functions(inside[word]))
        elif callable(value) and not isinstance(value, type):
            yield from _functions(value)


def _root(name: str | None) -> str:
    return (name or "").partition(".")[0]
