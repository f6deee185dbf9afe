"""Where the values of a first state came from, without keeping them alive."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import jax

from elegy.types import PyTree


class Weak:
    """A weak reference; what cannot be referred to weakly, such as a number, is held.

    Args:
        value: the object; `None` stands for one that is gone.

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
        """The object, or `None` if nobody else holds it any more."""
        return self._get()

    def __reduce__(self) -> tuple:
        return Weak, ()  # in another process nobody else holds it


class Origin:
    """Remembers the values that a user gave to start from, and keeps none of them alive.

    The first state takes the values over. A later init needs them again, and finds them as long as the user has them.

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
        """The values.

        Args:
            who: the module's name, for the message.

        Raises:
            ValueError: if one of them is gone.
        """
        leaves = [leaf() for leaf in self._leaves]
        if any(leaf is None for leaf in leaves):
            raise self.gone(who)
        return jax.tree.unflatten(self._treedef, leaves)

    @staticmethod
    def gone(who: str) -> ValueError:
        """The error where values are needed that nobody holds any more."""
        return ValueError(
            f"the values that {who} started from belong to its first state, and nothing else holds them any more, so "
            "another first state cannot be made of them. Keep the variables (or the module that held them) to "
            "initialise again, or make a new Trainer."
        )
