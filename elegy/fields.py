"""The fields of a Pytree: children, or parts of the structure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypedDict, Unpack

_STATIC = "elegy_static"


class FieldOptions(TypedDict, total=False):
    """The options of `dataclasses.field`, by which an editor completes and checks those of a field."""

    default: Any
    default_factory: Callable[[], Any]
    init: bool
    repr: bool
    hash: bool | None
    compare: bool
    kw_only: bool


def field(*, static: bool = False, metadata: dict[str, Any] | None = None, **kwargs: Unpack[FieldOptions]) -> Any:
    """Declares a field whose value is a child of the pytree.

    Args:
        static: True to make the value part of the tree's structure instead (see `static_field`).
        metadata: as for `dataclasses.field`.
        **kwargs: `default`, `default_factory`, `kw_only`, ... of `dataclasses.field`.

    Example:
        >>> import jax
        >>> from elegy.pytree import Pytree
        >>> class Counter(Pytree):
        ...     count: int = field(default=0)
        >>> jax.tree.leaves(Counter(3))
        [3]
    """
    return dataclasses.field(metadata={**(metadata or {}), _STATIC: static}, **kwargs)


def static_field(*, metadata: dict[str, Any] | None = None, **kwargs: Unpack[FieldOptions]) -> Any:
    """Declares a field that belongs to the tree's structure, not to its leaves.

    Its value must be hashable and contain no array: JAX compares it to decide if it must compile again.

    Args:
        metadata: as for `field`.
        **kwargs: as for `field`.

    Example:
        >>> import jax
        >>> from elegy.pytree import Pytree
        >>> class Layer(Pytree):
        ...     weight: float
        ...     name: str = static_field(default="layer")
        >>> jax.tree.leaves(Layer(1.0))
        [1.0]
    """
    return field(static=True, metadata=metadata, **kwargs)


def is_static(declared: dataclasses.Field) -> bool:
    """True if a field belongs to the structure of its tree.

    Example:
        >>> is_static(static_field()), is_static(field())
        (True, False)
    """
    return declared.metadata.get(_STATIC, False)
