"""The options of a function: its parameters whose values a command line and a file can express."""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import functools
import inspect
import operator
import os
import pathlib
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

from elegy.cli.errors import CliError
from elegy.lazy import require

JSON: Any = None | bool | int | float | str | list | dict
"""The type of a parameter that has none."""

REQUIRED: Any = inspect.Parameter.empty
"""The default value of an option that must be given."""

_PATHS: Any = os.PathLike  # of which isinstance and issubclass look for __fspath__
_CONTAINERS: tuple[Any, ...] = (list, tuple, set, frozenset, dict)
_ABSTRACT: dict[Any, Any] = {
    collections.abc.Sequence: list,
    collections.abc.Iterable: list,
    collections.abc.Collection: list,
    collections.abc.Mapping: dict,
}


@dataclasses.dataclass(frozen=True)
class Option:
    """An option, such as `--build.width`.

    Args:
        name: its name, with the name of its group.
        type: the type that its values are checked against.
        default: its value if it is not given.
        help: its description.
    """

    name: str
    type: Any
    default: Any = REQUIRED
    help: str = ""


def options_of(
    function: Callable[..., Any], group: str, *, skip: Collection[str] = (), known: Mapping[str, Any] | None = None
) -> list[Option]:
    """Returns the options of a function.

    A parameter whose type has no values that a file could hold, such as a function, is left out and keeps its default.

    Args:
        function: a function, a class, or a method, whose parameter `self` is left out.
        group: the group of the options.
        skip: parameters to leave out.
        known: the types of parameters by name, which replace those of the signature.

    Raises:
        CliError: if such a parameter has no default, or the types of the function cannot be read.

    Example:
        >>> def build(width: int = 64):
        ...     '''Builds the model.
        ...
        ...     Args:
        ...         width: the units of a layer.
        ...     '''
        >>> options_of(build, "build")
        [Option(name='build.width', type=<class 'int'>, default=64, help='the units of a layer.')]
    """
    try:
        typed: Any = function
        typed = typed.__init__ if isinstance(function, type) else typed
        hints = typing.get_type_hints(typed, include_extras=True)
    except Exception as error:
        raise CliError(f"the types of the parameters of {_name(function)} cannot be read: {error}") from error
    texts = _descriptions(function)
    found = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name in skip or name == "self" or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        hint = (known or {}).get(name, hints.get(name, _type_of_default(parameter.default)))
        kind = plain_type(hint)
        if kind is not None and parameter.kind is not parameter.POSITIONAL_ONLY:
            found.append(Option(f"{group}.{name}", kind, parameter.default, texts.get(name, "")))
        elif parameter.default is REQUIRED:
            raise CliError(
                f"the parameter {name!r} of {_name(function)} has the type {hint!r}, of which a command line has no "
                "values. Options are numbers, strings, booleans, None, paths, enums, literals, lists, dicts, and "
                "dataclasses of them: take a name (`Literal['relu', 'gelu']`), or give the parameter a default value."
            )
    return found


def plain_type(hint: Any) -> Any:
    """Returns the part of a type whose values a file can hold, which is all of `int | None`; None if there is none.

    Example:
        >>> plain_type(int | Callable[[int], int]), plain_type(Callable), plain_type(typing.Sequence[float])
        (<class 'int'>, None, list[float])
    """
    if hint is Any or hint is object:
        return JSON
    if hint is None:
        return type(None)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return plain_type(arguments[0])
    if origin is Literal:
        return hint
    if origin in (typing.Union, types.UnionType):
        kept = [kind for one in arguments if (kind := plain_type(one)) is not None]
        if str in kept:  # a path is a string, too
            kept = [kind for kind in kept if kind is not pathlib.Path]
        return functools.reduce(operator.or_, kept) if set(kept) - {type(None)} else None
    if origin is not None:
        container: Any = _ABSTRACT.get(origin, origin)
        if container in _CONTAINERS:
            inner = [one if one is Ellipsis else plain_type(one) for one in arguments]
            return None if None in inner else container[tuple(inner)]
        return pathlib.Path if isinstance(container, type) and issubclass(container, _PATHS) else None
    return _plain_class(_ABSTRACT.get(hint, hint)) if isinstance(hint, type) else None


def _plain_class(hint: type) -> Any:
    if hint in (bool, int, float, str, type(None), *_CONTAINERS) or issubclass(hint, enum.Enum):
        return hint
    if issubclass(hint, _PATHS):
        return pathlib.Path
    if dataclasses.is_dataclass(hint):
        fields = typing.get_type_hints(hint)
        made = [fields[field.name] for field in dataclasses.fields(hint) if field.init]
        return hint if made and all(plain_type(one) == one for one in made) else None
    return None


def dataclasses_in(kind: Any) -> list[Any]:
    """Returns the dataclasses of a type: itself, or those of a union."""
    if dataclasses.is_dataclass(kind):
        return [kind]
    return [one for one in typing.get_args(kind) if dataclasses.is_dataclass(one)]


def key_names(option: Option) -> tuple[list[str], list[str]]:
    """Returns the keys that an option accepts: its own name with those of the fields of a dataclass, and prefixes.

    Keys that begin with a prefix are those of a dict.

    Example:
        >>> from elegy.types import Every
        >>> key_names(Option("fit.freq", int | Every))
        (['fit.freq', 'fit.freq.steps', 'fit.freq.epochs', 'fit.freq.examples', 'fit.freq.seconds'], [])
        >>> key_names(Option("build.sizes", dict[str, int]))
        (['build.sizes'], ['build.sizes.'])
    """
    found = key_types(option)
    parts = {name: (kind, *typing.get_args(kind)) for name, kind in found.items()}
    dicts = [name for name, kinds in parts.items() if any((typing.get_origin(one) or one) is dict for one in kinds)]
    return list(found), [f"{name}." for name in dicts]


def key_types(option: Option) -> dict[str, Any]:
    """Returns the keys that an option accepts, without those of dicts, and their types.

    Example:
        >>> from elegy.types import Every
        >>> list(key_types(Option("fit.freq", int | Every)).items())[1]
        ('fit.freq.steps', int | None)
    """
    found = {option.name: option.type}
    for made in dataclasses_in(option.type):
        hints = typing.get_type_hints(made)
        for field in dataclasses.fields(made):
            if field.init:
                found |= key_types(Option(f"{option.name}.{field.name}", hints[field.name]))
    return found


def type_text(kind: Any) -> str:
    """Returns the values of a type in words.

    Example:
        >>> type_text(int | None), type_text(Literal["adam", "sgd"] | list[float])
        ('int or null', "'adam' or 'sgd' or list[float]")
    """
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(type_text(one) for one in typing.get_args(kind))
    if typing.get_origin(kind) is Literal:
        return " or ".join(map(repr, typing.get_args(kind)))
    if kind is type(None):
        return "null"
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return " or ".join(one.name for one in kind)
    return kind.__name__ if type(kind) is type else str(kind)


def _type_of_default(default: Any) -> Any:
    if isinstance(default, (bool, int, float, str)):
        return type(default)
    return JSON if default is REQUIRED or plain_type(type(default)) is not None else type(default)


def _name(function: Any) -> str:
    return f"{getattr(function, '__qualname__', function)}()"


def _descriptions(function: Callable[..., Any]) -> dict[str, str]:
    """The descriptions of the parameters in the docstring, by name."""
    text = inspect.getdoc(function)
    if not text:
        return {}
    parse = require("docstring_parser", "the command line").parse
    return {one.arg_name: " ".join((one.description or "").split()) for one in parse(text).params}
