"""Plain functions as losses."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from elegy.losses.arguments import call_with_named, names_argument
from elegy.losses.loss import Loss
from elegy.losses.pairing import check_pairs
from elegy.names import array_name, name_of, type_name
from elegy.pytree import Static, static_field


class _Function(Static[Callable[..., Any]]):
    """A function, with cached results of `check_pairs` by the shapes of target and predictions."""

    __slots__ = ("pairs",)

    def __init__(self, value: Callable[..., Any]):
        super().__init__(value)
        self.pairs: dict[Any, Any] = {}


class FunctionLoss(Loss):
    """Wraps a plain function, for example one of Optax, as a loss.

    The function receives only the arguments that it names; with exactly two required parameters of unknown names it is
    called as `function(target, preds)`. It returns `(B, ...)`, with at least one value for each example, or a scalar,
    the value of the whole batch. A function with a parameter `sample_weight` must return weighted values.

    Args:
        function: the function.
        reduction: see `Loss`.
        weight: see `Loss`.
        name: see `Loss`; the name of the function by default.

    Raises:
        TypeError: at a call, if a required argument is missing, or the result is not an array of floating numbers.
        ValueError: at a call, if the function compares every example with every other (see `values`).

    Example:
        >>> import optax
        >>> loss = FunctionLoss(optax.squared_error)
        >>> loss.name, loss(target=jnp.zeros(2), preds=jnp.array([1.0, 3.0])).item()
        ('squared_error', 5.0)
    """

    function: Any = static_field()  # the function, in a wrapper once constructed

    def __post_init__(self) -> None:
        """Wraps the function and names the loss after it."""
        function = self.function
        if not isinstance(function, _Function):
            function = _Function(function.value if isinstance(function, Static) else function)
        vars(self).update(function=function, name=self.name or name_of(function.value))
        super().__post_init__()

    @property
    def applies_weight(self) -> bool:
        """True if the function takes `sample_weight`."""
        return names_argument(self.function.value, "sample_weight")

    @property
    def rows_are_independent(self) -> bool:
        """False, because the function may compute anything."""
        return False

    @property
    def _called(self) -> Callable[..., Any]:
        return self.function.value

    def call(self, **kwargs: Any) -> jax.Array:
        """Calls the function with the arguments that it names."""
        return call_with_named(self.function.value, kwargs, f"the function {self.name!r}")

    def values(self, **kwargs: Any) -> jax.Array:
        """Returns the function's output as an array.

        Raises:
            TypeError: if a required argument is not available, or the result is not an array of floating numbers.
            ValueError: if the function broadcasts `(B,)` and `(B, 1)` to a result of shape `(B, B)`.

        Warns:
            UserWarning: if the function broadcasts them and reduces the result.
        """
        check_pairs(self.call, kwargs, f"the function {self.name!r}", self.function.pairs)
        try:
            output = self.call(**kwargs)
        except Exception as error:
            names = (name for name in ("target", "preds") if kwargs.get(name) is not None)
            given = ", ".join(f"{name} {jax.tree.map(array_name, kwargs[name])}" for name in names)
            error.add_note(f"Raised in the function {self.name!r}, a loss or a metric, which received {given}.")
            raise
        values = None
        if not isinstance(output, (tuple, list, dict)) and output is not None:
            with contextlib.suppress(TypeError):
                values = jnp.asarray(output)
        if values is None:
            raise TypeError(
                f"the function {self.name!r} returned {type_name(output)}. A loss or metric function returns one "
                "array: a value for each example, or a scalar. Use a list or a dict of functions for several."
            )
        self.check_dtype(values)
        return values

    def check_dtype(self, values: jax.Array) -> None:
        """Checks that the values may have a gradient.

        Raises:
            TypeError: if they are integers or truth values.
        """
        if not jnp.issubdtype(values.dtype, jnp.inexact):
            raise TypeError(
                f"the function {self.name!r} returned {array_name(values)}, and only floating numbers have a "
                "gradient: nothing would be trained. Compute the loss in floating point, or pass the function under "
                "`metrics`."
            )


def as_loss(thing: Any, name: str | None = None) -> Loss:
    """Converts a loss or a plain function to a `Loss`.

    Args:
        thing: a `Loss` or a function.
        name: a name for the logs, used for functions only.

    Raises:
        TypeError: if `thing` is anything else; the message says what to write instead.

    Example:
        >>> as_loss(lambda target, preds: preds - target, name="difference").name
        'difference'
    """
    if isinstance(thing, Loss):
        return thing
    if isinstance(thing, type):
        hint = f"That is the class; write {thing.__name__}(...)." if issubclass(thing, Loss) else ""
        raise TypeError(f"{thing.__name__} cannot be used as a loss: expected a Loss or a function. {hint}")
    if hasattr(thing, "batch_updates"):
        raise TypeError(f"{type(thing).__name__} is a metric, not a loss: pass it under `metrics`.")
    if not callable(thing):
        raise TypeError(
            f"{thing!r} cannot be used as a loss: expected a Loss, a function f(target, preds), a regularizer, "
            "or a list or dict of them."
        )
    return FunctionLoss(thing, name=name)
