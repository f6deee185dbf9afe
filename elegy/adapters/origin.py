"""Weak references to the initial values of a state, so that they can be freed."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import jax

from elegy.types import PyTree


class Weak:
    """A weak reference; a strong one to objects without weak references, such as numbers.

    Args:
        value: the object; `None` for one that no longer exists.

    Example:
        >>> Weak(3)()
        3
    """

    def __init__(self, value: Any = None):
        self._get: Callable[[], Any]
        try:
            self._get = weakref.ref(value)
        except TypeError:
            self._get = lambda: value

    def __call__(self) -> Any:
        """Returns the object, or `None` if it no longer exists."""
        return self._get()

    def __reduce__(self) -> tuple:
        return Weak, ()  # the object does not exist in another process


class Origin:
    """Refers to the user's initial values without keeping them alive.

    The first state takes the values over. A later init needs them again, and finds them if the user has kept them.

    Args:
        tree: the values.

    Example:
        >>> import numpy as np
        >>> given = {"w": np.ones(2)}
        >>> origin = Origin(given)
        >>> origin.recall("Net")["w"] is given["w"]
        True
        >>> del given
        >>> origin.recall("Net")
        Traceback (most recent call last):
        ...
        ValueError: the values that Net started from ...
    """

    def __init__(self, tree: PyTree):
        leaves, self._treedef = jax.tree.flatten(tree)
        self._leaves = [Weak(leaf) for leaf in leaves]

    def recall(self, who: str) -> PyTree:
        """Returns the values.

        Args:
            who: the module's name, for the message.

        Raises:
            ValueError: if one of them no longer exists.
        """
        leaves = [leaf() for leaf in self._leaves]
        if any(leaf is None for leaf in leaves):
            raise self.gone(who)
        return jax.tree.unflatten(self._treedef, leaves)

    @staticmethod
    def gone(who: str) -> ValueError:
        """Returns the error for values that no longer exist."""
        return ValueError(
            f"the values that {who} started from belong to its first state and no longer exist elsewhere, so another "
            "first state cannot be made from them. Keep the variables (or the module that has them) to initialise "
            "again, or make a new Trainer."
        )
