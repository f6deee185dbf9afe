"""Describes the leaves of saved trees, and compares them with the leaves of a target tree."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from elegy.errors import CheckpointError
from elegy.names import array_name, path_name
from elegy.types import PyTree

Kind = Literal["jax", "numpy", "numpy_scalar", "key", "python"]

_STORABLE = frozenset(("bool", "int2", "int4", "int8", "int16", "int32", "int64"))
_STORABLE |= {"uint8", "uint16", "uint32", "uint64", "float16", "bfloat16", "float32", "float64"}
_STORABLE |= {"complex64", "complex128", "float4_e2m1fn", "float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz"}
_STORABLE |= {"float8_e8m0fnu"}
_PYTHON = {"bool": bool, "int": int, "float": float, "complex": complex, "str": str}
_ARRAY_KINDS = ("jax", "numpy", "numpy_scalar")


@dataclasses.dataclass(frozen=True)
class Leaf:
    """The description of one leaf: an array, a typed key, or a Python scalar.

    Args:
        kind: the kind of value.
        shape: the shape of the array or of the array of keys; empty for a Python scalar.
        dtype: the name of the dtype, or of the Python type.
        impl: the generator of a typed key, as `jax.random.wrap_key_data` takes it.
        value: the `repr` of a Python scalar, from which it can be restored exactly.
    """

    kind: Kind
    shape: tuple[int, ...]
    dtype: str
    impl: str | None = None
    value: str | None = None

    @property
    def stored(self) -> bool:
        """True if the value is stored as an array. Python scalars and empty arrays are not."""
        return self.kind != "python" and 0 not in self.shape

    def to_json(self) -> dict[str, Any]:
        """Returns the description for the manifest."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Leaf:
        """Reads the result of `to_json`.

        Raises:
            ValueError: if the kind, type or dtype is unknown.
            TypeError: if there are unknown fields.
        """
        leaf = cls(**{**fields, "shape": tuple(map(int, fields["shape"]))})
        known = {"python": _PYTHON, "key": (leaf.dtype,)}.get(leaf.kind, _STORABLE)
        if leaf.kind not in (*_ARRAY_KINDS, "key", "python") or leaf.dtype not in known:
            raise ValueError(f"unknown leaf: {dict(fields)}")
        return leaf

    def python_value(self) -> Any:
        """Returns the Python scalar with the repr `value`."""
        text = self.value or ""
        if self.dtype == "bool":
            return text == "True"
        return text if self.dtype == "str" else _PYTHON[self.dtype](text)

    def __str__(self) -> str:
        if self.kind == "python":
            return f"Python {self.dtype}"
        what = "random key" if self.kind == "key" else "array"
        return f"{what} {array_name(self)}"


def describe(value: Any) -> Leaf:
    """Describes one leaf: a JAX or NumPy array or scalar, a `jax.ShapeDtypeStruct`, or a Python scalar.

    Raises:
        TypeError: if values of this type or dtype cannot be stored.

    Example:
        >>> print(describe(np.zeros((2, 3), np.float32)))
        array float32[2,3]
    """
    if isinstance(value, (jax.Array, jax.ShapeDtypeStruct)):
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            return Leaf("key", value.shape, str(value.dtype), _impl(value))
        return Leaf("jax", value.shape, _storable(value.dtype))
    if type(value) in (np.ndarray, np.memmap) or isinstance(value, np.generic):
        kind: Kind = "numpy_scalar" if isinstance(value, np.generic) else "numpy"
        return Leaf(kind, value.shape, _storable(value.dtype))
    name = type(value).__name__
    if _PYTHON.get(name) is type(value):
        return Leaf("python", (), name, value=value if isinstance(value, str) else repr(value))
    raise TypeError(f"a {type(value).__module__}.{type(value).__qualname__} is not an array, a key or a Python scalar")


def mismatch(saved: Leaf, target: Leaf) -> str | None:
    """Returns the difference of a saved leaf and a target leaf in kind, shape or dtype, or None if there is none.

    A JAX array may replace a NumPy array, and the reverse.

    Example:
        >>> mismatch(describe(np.zeros(2, np.int32)), describe(np.zeros(3, np.int32)))
        'array int32[2] in the file, array int32[3] in the target'
    """
    same_kind = saved.kind == target.kind or (saved.kind in _ARRAY_KINDS and target.kind in _ARRAY_KINDS)
    if same_kind and saved.shape == target.shape and saved.dtype == target.dtype:
        return None
    return f"{saved} in the file, {target} in the target"


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves of a tree by path, in the tree's order.

    If two paths would be equal (`{"a/b": 1, "a": {"b": 2}}`), slashes inside of keys are written as `%2F` throughout
    the tree.

    Raises:
        CheckpointError: if two leaves still have the same path.

    Example:
        >>> named_leaves({"a": [1, 2], "b": None})
        {'a/0': 1, 'a/1': 2}
        >>> named_leaves({"a/b": 1, "a": {"b": 2}})
        {'a/b': 2, 'a%2Fb': 1}
    """
    found = jax.tree_util.tree_leaves_with_path(tree)
    named = {path_name(path): leaf for path, leaf in found}
    if len(named) < len(found):
        named = {"/".join(map(_escaped, path)): leaf for path, leaf in found}
    if len(named) < len(found):
        counts = Counter("/".join(map(_escaped, path)) for path, _ in found)
        shared = ", ".join(sorted(name for name, count in counts.items() if count > 1))
        raise CheckpointError(f"several leaves of the tree share the path {shared}. Rename the keys that lead to them.")
    return named


def _escaped(key: Any) -> str:
    text = jax.tree_util.keystr((key,), simple=True)
    return text.replace("%", "%25").replace("/", "%2F")


@functools.cache
def _storable(dtype: Any) -> str:
    if dtype.name not in _STORABLE or not dtype.isnative:
        raise TypeError(f"arrays of dtype {dtype!r} cannot be stored")
    return dtype.name


def _impl(key: Any) -> str | None:
    if isinstance(key, jax.ShapeDtypeStruct):
        return None
    impl = jax.random.key_impl(key)
    if not isinstance(impl, str):
        raise TypeError(f"a random key of the unregistered generator {impl!r} cannot be stored")
    return impl
