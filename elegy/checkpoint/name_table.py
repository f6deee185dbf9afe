"""Matches the names, axes and dtypes of a file's arrays with the paths of a module's weights, both ways."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax.numpy as jnp
import numpy as np

from elegy.errors import CheckpointError
from elegy.names import array_name
from elegy.patterns import as_patterns, matching

Names = Mapping[str, str] | Callable[[str], str]
Axes = Mapping[str, Sequence[int]]

_MOST_PROBLEMS = 60


class NameTable:
    """A table from the names in a file to the paths of a module's weights.

    Args:
        names: pattern of names -> pattern of paths, of which the first match is used; or a function from a name to a
            path; None if they are equal. Each `*` stands for any characters, as few as possible, and those take the
            place of the `*` of the path; in names with dots, their dots become slashes.
        transpose: pattern of paths -> the order of axes for `numpy.transpose` of the file's array; the first match.
        ignore: patterns of names that have no place in the module.
        keep: patterns of paths that are not in the file.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if two patterns do not have the same number of `*`, or axes are not a permutation.

    Example:
        >>> table = NameTable({"layers.*.weight": "params/layers_*/kernel"}, {"*/kernel": (1, 0)})
        >>> table.place("layers.3.weight"), table.name("params/layers_3/kernel")
        ('params/layers_3/kernel', 'layers.3.weight')
    """

    def __init__(
        self,
        names: Names | None = None,
        transpose: Axes | None = None,
        ignore: str | Sequence[str] = (),
        keep: str | Sequence[str] = (),
    ):
        self.names = {} if names is None else names
        self.identity = names is None
        self.ignore, self.keep = as_patterns(ignore, "ignore"), as_patterns(keep, "keep")
        self.axes = {pattern: _permutation(pattern, axes) for pattern, axes in dict(transpose or {}).items()}
        if isinstance(self.names, Mapping):
            for old, new in self.names.items():
                if not (isinstance(old, str) and isinstance(new, str)):
                    raise TypeError(
                        f"names is a dict of patterns, such as {{'*.bias': '*/bias'}}, not {old!r}: {new!r}."
                    )
                if old.count("*") != new.count("*"):
                    raise ValueError(f"names: {old!r} and {new!r} must have the same number of `*`.")
        elif not callable(self.names):
            raise TypeError(f"names must be a dict of patterns or a function, not {names!r}.")

    def place(self, name: str) -> str | None:
        """Returns the path for a name, None if no pattern matches."""
        if self.identity:
            return name
        if not isinstance(self.names, Mapping):
            return self.names(name)
        rule = self._rule(name)
        return None if rule is None else _moved(name, rule, self.names[rule])

    def name(self, path: str) -> str | None:
        """Returns the name for a path, None if no pattern leads to it.

        Raises:
            TypeError: if `names` is a function.
        """
        if self.identity:
            return path
        if not isinstance(self.names, Mapping):
            raise TypeError("names is a function, which cannot be inverted: save with a dict of patterns.")
        for old, new in self.names.items():
            name = _moved(path, new, old)
            if name is not None and self.place(name) == path:
                return name
        return None

    def load(self, source: Mapping[str, Any], module: Mapping[str, Any], cast: bool) -> dict[str, Any]:
        """Returns the values for a module's weights, except those that it keeps.

        Args:
            source: name -> array.
            module: path -> array or `jax.ShapeDtypeStruct`.
            cast: True to convert floats to the module's dtype, and integers that stay equal.

        Raises:
            CheckpointError: listing everything that does not fit.
        """
        problems = self._unused(source, module)
        wanted = {path for path in module if not self.keeps(path)}
        origin: dict[str, str] = {}
        values = {}
        for name, array in source.items():
            if _any(self.ignore, name):
                continue
            path = self.place(name)
            about = f"{name}, {array_name(array)}"
            if path is None:
                problems.append(f"{about}: no pattern of `names` or `ignore` matches it")
            elif path not in module:
                problems.append(f"{about}: the module has no {path}")
            elif path in origin:
                problems.append(f"{about}: {path} is already given by {origin[path]}")
            elif path not in wanted:
                problems.append(f"{about}: {path} is in `keep`")
            else:
                origin[path] = name
                value, problem = self._fitted(path, array, module[path], cast)
                values[path] = value
                problems += [f"{name}: {problem}"] if problem else []
        for path in module:
            if path in wanted and path not in origin:
                problems.append(
                    f"{path}, {array_name(module[path])}: nothing in the source leads to it, nor does `keep`"
                )
        _raise("the weights do not fit the module", problems)
        return values

    def save(self, module: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Returns what `load` would load: name -> array.

        Args:
            module: path -> array.

        Raises:
            CheckpointError: listing the weights without a name, or with the same one.
            TypeError: if `names` is a function.
        """
        out: dict[str, np.ndarray] = {}
        problems = self._unused_paths(module)
        for path, array in module.items():
            if self.keeps(path):
                continue
            name, axes = self.name(path), self._axes_of(path)
            if name is None:
                problems.append(f"{path}, {array_name(array)}: no pattern of `names` leads to it, nor does `keep`")
            elif axes is not None and len(axes) != np.ndim(array):
                problems.append(f"{path}, {array_name(array)}: `transpose` has {len(axes)} axes for it")
            else:
                out[name] = np.asarray(array) if axes is None else np.transpose(array, np.argsort(axes))
        _raise("the weights cannot be saved", problems)
        return out

    def keeps(self, path: str) -> bool:
        """True if a path is not in the file."""
        return _any(self.keep, path)

    def _rule(self, name: str) -> str | None:
        return next((old for old in self.names if _regex(old).fullmatch(name)), None)  # type: ignore[union-attr]

    def _axes_of(self, path: str) -> tuple[int, ...] | None:
        return next((axes for pattern, axes in self.axes.items() if fnmatchcase(path, pattern)), None)

    def _fitted(self, path: str, array: Any, own: Any, cast: bool) -> tuple[Any, str | None]:
        """Returns the array in the axes and the dtype of the module, and what is wrong with it."""
        axes, about = self._axes_of(path), ""
        if axes is not None:
            if len(axes) != np.ndim(array):
                return array, f"`transpose` has {len(axes)} axes for {path}, and the array is {array_name(array)}"
            array = np.transpose(array, axes)
            about = " after `transpose`"
        if array.shape != own.shape:
            return array, f"{array_name(array)}{about} for {path}, which is {array_name(own)}"
        if array.dtype == own.dtype:
            return array, None
        if not cast:
            return array, f"{array.dtype} for {path}, which is {own.dtype}: `cast=True` converts it"
        with np.errstate(over="ignore"):
            new = np.asarray(array).astype(own.dtype)
        floats = all(jnp.issubdtype(dtype, jnp.floating) for dtype in (array.dtype, own.dtype))
        integers = all(jnp.issubdtype(dtype, jnp.integer) for dtype in (array.dtype, own.dtype))
        if floats and np.any(np.isfinite(array) & ~np.isfinite(new)):
            return array, f"{array.dtype} for {path} has values that are not finite in {own.dtype}"
        if floats or (integers and np.array_equal(new, array)):
            return new, None
        return array, f"{array.dtype} for {path} cannot be converted to {own.dtype}"

    def _unused(self, source: Mapping[str, Any], module: Mapping[str, Any]) -> list[str]:
        problems = [f"ignore: {pattern!r} matches no name" for pattern in self.ignore if not matching(pattern, source)]
        if isinstance(self.names, Mapping):
            used = {self._rule(name) for name in source if not _any(self.ignore, name)}
            for pattern in self.names:
                if pattern not in used:
                    hidden = any(_regex(pattern).fullmatch(name) for name in source)
                    why = (
                        "an earlier pattern, or `ignore`, matches all of its names" if hidden else "it matches no name"
                    )
                    problems.append(f"names: {pattern!r} is never used: {why}")
        return problems + self._unused_paths(module)

    def _unused_paths(self, module: Mapping[str, Any]) -> list[str]:
        problems = [f"keep: {pattern!r} matches no path" for pattern in self.keep if not matching(pattern, module)]
        first = {next((p for p in self.axes if fnmatchcase(path, p)), None) for path in module}
        problems += [f"transpose: {p!r} is the first match of no path" for p in self.axes if p not in first]
        return problems


def _permutation(pattern: Any, axes: Any) -> tuple[int, ...]:
    try:
        order = tuple(int(axis) for axis in axes)
    except (TypeError, ValueError):
        order = (-1,)
    if not isinstance(pattern, str) or sorted(order) != list(range(len(order))):
        raise ValueError(f"transpose[{pattern!r}] must be an order of axes, such as (1, 0), not {axes!r}.")
    return order


def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile("(.+?)".join(map(re.escape, pattern.split("*"))))


def _moved(text: str, old: str, new: str) -> str | None:
    """Puts what the `*` of one pattern stand for into another, between names with dots and paths with slashes."""
    match = _regex(old).fullmatch(text)
    if match is None:
        return None
    found: Iterable[str] = match.groups()
    if "/" not in old and "/" in new:
        found = [part.replace(".", "/") for part in found]
    elif "/" in old and "/" not in new:
        found = [part.replace("/", ".") for part in found]
    first, *rest = new.split("*")
    return first + "".join(part + after for part, after in zip(found, rest, strict=True))


def _any(patterns: Sequence[str], name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _raise(what: str, problems: list[str]) -> None:
    if problems:
        shown = problems[:_MOST_PROBLEMS]
        more = [f"and {len(problems) - len(shown)} more"] if len(problems) > len(shown) else []
        raise CheckpointError(f"{what}:\n  " + "\n  ".join([*shown, *more]))
