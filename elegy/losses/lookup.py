"""Changes of the arguments of a loss or a metric: indexing into them, and renaming them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from elegy.flat import eval_shape
from elegy.losses.shapes import array_shape
from elegy.names import contents, listed, there_are


@dataclasses.dataclass(frozen=True)
class Indexing:
    """Replaces arguments by parts of them.

    Args:
        paths: names of arguments, each with the indices to apply one after the other.

    Example:
        >>> Indexing.of({"target": ("a", 0)}).apply({"target": {"a": [7]}}, "the loss 'mse'")
        {'target': 7}
    """

    paths: tuple[tuple[str, tuple[Any, ...]], ...]

    @classmethod
    def of(cls, kwargs: Mapping[str, Any]) -> Indexing:
        """Makes the change from the arguments of `index_into`."""
        return cls(tuple((k, tuple(v) if isinstance(v, (list, tuple)) else (v,)) for k, v in kwargs.items()))

    @property
    def needs(self) -> set[str]:
        """The names of the arguments that `apply` needs."""
        return {name for name, _ in self.paths}

    def indexed(self, inner: frozenset[str]) -> frozenset[str]:
        """Returns the names of indexed arguments, given those that the inner loss or metric indexes into."""
        return inner | self.needs

    def apply(self, kwargs: Mapping[str, Any], what: str) -> dict[str, Any]:
        """Returns the changed arguments.

        Args:
            kwargs: the arguments by name.
            what: the name of the loss or metric in messages.

        Raises:
            KeyError: if an argument is missing or has nothing at its path.
        """
        out = dict(kwargs)
        for name, path in self.paths:
            if out.get(name) is None:
                raise KeyError(f"{what} indexes into {name!r}, which is missing: {_there_are(kwargs)}.")
            for step in path:
                try:
                    out[name] = part_of(out[name], step)
                except (KeyError, IndexError, TypeError) as error:
                    within = f" of the path {path}" if len(path) > 1 else ""
                    there = contents(out[name])
                    raise KeyError(f"{what}: {name!r} has nothing at {step!r}{within}: {there}.") from error
        return out


@dataclasses.dataclass(frozen=True)
class Renaming:
    """Passes arguments under other names.

    Args:
        names: pairs of the expected and the given name of an argument.

    Example:
        >>> Renaming((("values", "loss"),)).apply({"loss": 1.0, "preds": 2.0}, "the metric 'mean'")
        {'preds': 2.0, 'values': 1.0}
    """

    names: tuple[tuple[str, str], ...]

    @property
    def needs(self) -> set[str]:
        """The names of the arguments that `apply` needs."""
        return {given for _, given in self.names}

    def indexed(self, inner: frozenset[str]) -> frozenset[str]:
        """Returns the names of indexed arguments, given those that the inner loss or metric indexes into."""
        renamed = dict(self.names)
        return frozenset(renamed.get(name, name) for name in inner)

    def apply(self, kwargs: Mapping[str, Any], what: str) -> dict[str, Any]:
        """Returns the changed arguments.

        Args:
            kwargs: the arguments by name.
            what: the name of the loss or metric in messages.

        Raises:
            KeyError: if an argument is missing.
        """
        missing = [given for _, given in self.names if kwargs.get(given) is None]
        if missing:
            verb = "is" if len(missing) == 1 else "are"
            raise KeyError(f"{what} takes {listed(missing)}, which {verb} missing: {_there_are(kwargs)}.")
        moved = self.needs
        out = {k: v for k, v in kwargs.items() if k not in moved}
        out.update((expected, kwargs[given]) for expected, given in self.names)
        return out


def lookup(value: Any, step: Any) -> Any:
    """Returns the part of a value at a key, an index or, in a named tuple, a field.

    Raises:
        KeyError, IndexError, TypeError: if the value has no such part.

    Example:
        >>> lookup({"a": 7}, "a")
        7
    """
    if isinstance(step, str) and step in getattr(value, "_fields", ()):
        return getattr(value, step)
    return value[step]


def part_of(value: Any, step: Any) -> Any:
    """Returns the part of a value as `lookup` does; of an object that is not a container, an attribute.

    A method is called without arguments: the mean of a distribution is an attribute in NumPyro, a method in Distrax.

    Raises:
        KeyError, IndexError, TypeError: if the value has no such part.

    Example:
        >>> part_of({"real": 7}, "real"), part_of(3, "real"), part_of(3, "conjugate")
        (7, 3, 3)
    """
    container = isinstance(value, (Mapping, list, tuple, str)) or array_shape(value) is not None
    if container or not isinstance(step, str):
        return lookup(value, step)
    if not hasattr(type(value), step) and step not in getattr(value, "__dict__", ()):
        return lookup(value, step)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(value)):
        return eval_shape(lambda value: part_of(value, step), value)
    part = getattr(value, step)
    return part() if callable(part) and hasattr(part, "__self__") else part


def _there_are(kwargs: Mapping[str, Any]) -> str:
    return there_are(name for name, value in kwargs.items() if value is not None)
