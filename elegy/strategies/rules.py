"""Rules that map dimensions of parameters to axes of a mesh."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TypeAlias

import jax
from jax.sharding import Mesh, PartitionSpec

from elegy.names import path_name
from elegy.types import PyTree

Axes: TypeAlias = str | tuple[str, ...] | None
"""The mesh axes along which one dimension is divided."""

Placement: TypeAlias = PartitionSpec | tuple[Axes, ...] | list[Axes]
"""The axes for each dimension of an array."""

Rules: TypeAlias = tuple[tuple[str, PartitionSpec], ...]
"""Patterns of paths with placements; the first match is used."""

_FOLLOWERS = "optimizer/"
"""Leaves under this path belong to parameters but may have other shapes, so a rule need not fit them."""

_NO_PARAMETERS = (_FOLLOWERS, "losses_and_metrics/", "_logs/")


def as_rules(rules: Mapping[str, Placement] | Iterable[tuple[str, Placement]]) -> Rules:
    """Converts a user's rules.

    Args:
        rules: patterns, and for each dimension an axis name, a tuple of axis names, or `None`.

    Raises:
        TypeError: if the rules are not pairs, a pattern is not a string, or a placement is neither a tuple nor a
            `PartitionSpec`.

    Example:
        >>> as_rules({"*/kernel": (None, "model")})
        (('*/kernel', P(None, 'model')),)
    """
    items = rules.items() if isinstance(rules, Mapping) else rules
    out = []
    for item in items:
        if not isinstance(item, (tuple, list)) or len(item) != 2 or not isinstance(item[0], str):
            raise TypeError(
                f"rules must be a dict or pairs of a pattern and a placement, such as {{'*/kernel': (None, 'model')}}, "
                f"but one is {item!r}."
            )
        pattern, spec = item
        if isinstance(spec, str) or not isinstance(spec, (tuple, list, PartitionSpec)):
            raise TypeError(
                f"the rule {pattern!r}: {spec!r} must give a tuple with an axis name or None for each dimension, for "
                "example (None, 'model')."
            )
        out.append((pattern, PartitionSpec(*spec)))
    return tuple(out)


def axes_of(spec: PartitionSpec) -> list[str]:
    """Returns the mesh axes in a placement.

    Example:
        >>> axes_of(PartitionSpec(None, ("data", "model")))
        ['data', 'model']
    """
    return [axis for entry in spec if entry is not None for axis in (entry if isinstance(entry, tuple) else (entry,))]


def check_axes(rules: Rules, mesh: Mesh) -> None:
    """Checks that the axes of each rule exist, and that none occurs twice.

    Raises:
        ValueError: if this is not so; the message names the rule.
    """
    for pattern, spec in rules:
        named = axes_of(spec)
        for axis in named:
            if axis not in mesh.axis_names:
                raise ValueError(
                    f"the rule {pattern!r} names the mesh axis {axis!r}, which does not exist. "
                    f"The mesh has the axes {', '.join(map(repr, mesh.axis_names))}."
                )
            if named.count(axis) > 1:
                raise ValueError(f"the rule {pattern!r} names the mesh axis {axis!r} twice.")


def spec_for(rules: Rules, path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Returns the placement of a leaf by the first rule that matches its path or the end of its path.

    Args:
        rules: the rules.
        path: the leaf's path in the state, such as `params/Dense_0/kernel`.
        shape: the leaf's shape.
        mesh: the mesh.

    Raises:
        ValueError: if the rule does not fit the shape.
    """
    for pattern, spec in rules:
        if _matches(pattern, path):
            problem = _misfit(spec, shape, mesh)
            if problem is None:
                return spec
            if path.startswith(_FOLLOWERS):
                return PartitionSpec()
            raise ValueError(f"the rule {pattern!r}: {tuple(spec)} does not fit {path} of shape {shape}: {problem}")
    return PartitionSpec()


def check_used(rules: Rules, state: PyTree) -> None:
    """Checks that every rule matches a parameter.

    Raises:
        ValueError: if a rule matches no parameter; the message names the rule and lists the parameters.
    """
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    paths = [path for path in paths if path != "key" and not path.startswith(_NO_PARAMETERS)]
    for pattern, _ in rules:
        if not any(_matches(pattern, path) for path in paths):
            close = difflib.get_close_matches(pattern.strip("*/"), paths, n=1, cutoff=0.3)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            known = ", ".join(paths[:20]) + (", ..." if len(paths) > 20 else "")
            raise ValueError(f"the rule {pattern!r} matches no parameter.{hint} The state has: {known or 'none'}.")


def parts(spec_entry: Axes, mesh: Mesh) -> int:
    """Returns the number of parts into which one entry of a placement divides its dimension."""
    names = () if spec_entry is None else spec_entry if isinstance(spec_entry, tuple) else (spec_entry,)
    return math.prod(mesh.shape[name] for name in names)


def _matches(pattern: str, path: str) -> bool:
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"*/{pattern}")


def _misfit(spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh) -> str | None:
    if len(spec) > len(shape):
        return f"it has {len(shape)} dimensions, but the rule has {len(spec)}."
    for dimension, entry in enumerate(spec):
        count = parts(entry, mesh)
        if shape[dimension] % count:
            return f"dimension {dimension} of size {shape[dimension]} cannot be cut into {count} equal parts."
    return None
