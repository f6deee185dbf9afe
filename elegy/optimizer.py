"""An Optax optimizer together with its state, as one immutable pytree."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Self

import optax

from elegy.pytree import Pytree, Static, field, static_field
from elegy.types import PyTree


class Optimizer(Pytree):
    """Holds a gradient transformation and its state.

    Args:
        tx: an `optax.GradientTransformation` (several are chained with `optax.chain`).
        state: the transformation's state, `None` before `init`.

    Raises:
        TypeError: when `tx` has no `init` and `update`.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"w": jnp.ones(2)}
        >>> optimizer = Optimizer(optax.sgd(0.1)).init(params)
        >>> params, optimizer = optimizer.update({"w": jnp.ones(2)}, params)
        >>> params["w"]
        Array([0.9, 0.9], dtype=float32)
    """

    state: PyTree = field(default=None)
    _tx: Static[optax.GradientTransformation] = static_field(default=None, repr=False)

    def __init__(self, tx: optax.GradientTransformation, state: PyTree = None):
        if not callable(getattr(tx, "init", None)) or not callable(getattr(tx, "update", None)):
            raise TypeError(
                f"the optimizer must be an optax.GradientTransformation such as optax.adam(1e-3), not {tx!r}."
            )
        self._tx = Static(tx)
        self.state = state

    @property
    def tx(self) -> optax.GradientTransformation:
        """The gradient transformation."""
        return self._tx.value

    def init(self, params: PyTree) -> Self:
        """Returns the optimizer with a fresh state for `params` (a pytree of float arrays)."""
        return self.replace(state=self.tx.init(params))

    def update(self, grads: PyTree, params: PyTree, **extra: Any) -> tuple[PyTree, Self]:
        """Takes one step.

        Args:
            grads: gradients, of the structure and shapes of `params`.
            params: the parameters; their dtypes are kept.
            **extra: what a `GradientTransformationExtraArgs` asks for (`value`, ...); what it does not take is left
                out. A training step passes `value`, the loss of the whole batch, `grad`, and `value_fn`, that loss as
                a function of the parameters.

        Returns:
            `(new_params, new_optimizer)`.

        Raises:
            RuntimeError: before `init`.
        """
        if self.state is None:
            raise RuntimeError("the optimizer has no state yet: call `optimizer = optimizer.init(params)` first.")
        # MultiSteps hands extra arguments on, but is no GradientTransformationExtraArgs.
        tx = self.tx if isinstance(self.tx, optax.MultiSteps) else optax.with_extra_args_support(self.tx)
        updates, state = tx.update(grads, self.state, params, **_accepted(tx.update, extra))
        return optax.apply_updates(params, updates), self.replace(state=state)


def _accepted(update: Callable[..., Any], extra: dict[str, Any]) -> dict[str, Any]:
    """Those of the extra arguments that a function takes: not every `GradientTransformationExtraArgs` takes any."""
    parameters = inspect.signature(update).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return extra
    return {name: value for name, value in extra.items() if name in parameters}


def as_optimizer(optimizer: Any) -> Optimizer:
    """Accepts an `Optimizer` or an Optax transformation.

    Example:
        >>> as_optimizer(optax.sgd(0.1)).state is None
        True
    """
    return optimizer if isinstance(optimizer, Optimizer) else Optimizer(optimizer)


__all__ = ["Optimizer", "as_optimizer"]
