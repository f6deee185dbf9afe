"""Rules: which dimensions of which parameters lie along which axes of a mesh."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import jax
from jax.sharding import Mesh, PartitionSpec

from elegy.names import path_name
from elegy.types import PyTree

Rules: TypeAlias = tuple[tuple[str, PartitionSpec], ...]
"""Patterns and the placement of what they match; the first that matches counts."""

_FOLLOWERS = "optimizer/"
"""Leaves under this path stand beside a parameter, and not all have its shape: no rule must fit them."""

_NO_PARAMETERS = (_FOLLOWERS, "losses_and_metrics/", "_logs/")


def as_rules(rules: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> Rules:
    """Turns what a user wrote into rules.

    Args:
        rules: patterns, and for each dimension an axis name, a tuple of axis names, or `None`.

    Raises:
        TypeError: if they are no pairs, a pattern is no string, or a placement is neither a tuple nor a
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
    """The mesh axes that a placement names.

    Example:
        >>> axes_of(PartitionSpec(None, ("data", "model")))
        ['data', 'model']
    """
    return [axis for entry in spec if entry is not None for axis in (entry if isinstance(entry, tuple) else (entry,))]


def check_axes(rules: Rules, mesh: Mesh) -> None:
    """Checks that the axes of the rules exist, each once in a rule.

    Raises:
        ValueError: naming the rule.
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
    """The placement of a leaf of the state by the first rule that matches its path, or a tail of its path.

    Args:
        rules: the rules.
        path: the leaf's path in the state, such as `params/Dense_0/kernel`.
        shape: its shape.
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
        ValueError: naming the rule that matches none, and the parameters that there are.
    """
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    paths = [path for path in paths if path != "key" and not path.startswith(_NO_PARAMETERS)]
    for pattern, _ in rules:
        if not any(_matches(pattern, path) for path in paths):
            close = difflib.get_close_matches(pattern.strip("*/"), paths, n=1, cutoff=0.3)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            known = ", ".join(paths[:20]) + (", ..." if len(paths) > 20 else "")
            raise ValueError(f"the rule {pattern!r} matches no parameter.{hint} The state has: {known or 'none'}.")


def parts(spec_entry: Any, mesh: Mesh) -> int:
    """Into how many parts one entry of a placement cuts its dimension."""
    names = () if spec_entry is None else spec_entry if isinstance(spec_entry, tuple) else (spec_entry,)
    return math.prod(mesh.shape[name] for name in names)


def _matches(pattern: str, path: str) -> bool:
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"*/{pattern}")


def _misfit(spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh) -> str | None:
    if len(spec) > len(shape):
        return f"it has {len(shape)} dimensions, and the rule speaks of {len(spec)}."
    for dimension, entry in enumerate(spec):
        count = parts(entry, mesh)
        if shape[dimension] % count:
            return f"dimension {dimension} of size {shape[dimension]} cannot be cut into {count} equal parts."
    return None
