"""Averages of the parameters over the steps, as a field of the state."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp

from elegy.errors import StepError
from elegy.integers import as_integer, positive_int
from elegy.module.levels import level_of
from elegy.module.precision import as_kept, wide_params
from elegy.pytree import Pytree, field, static_field
from elegy.types import Every, PyTree

Weights = Literal["trained", "averaged"] | Callable[[Any], PyTree]
"""The parameters to use: the trained ones, their average, or the result of a function of the state."""


@dataclasses.dataclass(frozen=True)
class _Averaging(abc.ABC):
    """The steps whose parameters an average includes.

    Args:
        start: the number of steps at the beginning that are not included.
        every: after those, include every `every`-th step: an integer or `Every(steps=...)`.
    """

    start: int = dataclasses.field(default=0, kw_only=True)
    every: int | Every = dataclasses.field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        """Checks and normalizes the numbers."""
        name, start, every = type(self).__name__, as_integer(self.start), self.every
        if start is None:
            raise TypeError(f"start of {name} must be a number of steps, not {self.start!r}.")
        if start < 0:
            raise ValueError(f"start of {name} must not be negative: {start}.")
        if isinstance(every, Every):
            if every.steps is None:
                raise ValueError(f"{name} counts steps, so every must be a number or Every(steps=...), not {every!r}.")
            every = int(every.steps)
        object.__setattr__(self, "start", start)
        object.__setattr__(self, "every", positive_int(f"every of {name}", every))

    @abc.abstractmethod
    def weight(self, count: jax.Array) -> jax.Array | float:
        """Returns the weight of the newest parameters in an average that includes `count` parameters."""

    def sum_of_weights(self, count: jax.Array) -> jax.Array | float:
        """Returns the sum of the weights of `count` parameters, by which the average is divided."""
        return 1.0


@dataclasses.dataclass(frozen=True)
class EMA(_Averaging):
    """An exponential moving average of the parameters, with the bias correction of `optax.ema`.

    After each included step, `average = decay * average + (1 - decay) * params`, starting from 0. After `n` such steps,
    the result is divided by `1 - decay ** n`. Before the first, the result is the trained parameters.

    Args:
        decay: a number between 0 and 1.
        start: the number of steps at the beginning that are not included.
        every: after those, include every `every`-th step: an integer or `Every(steps=...)`.

    Raises:
        TypeError: if a number of steps is not an integer.
        ValueError: if a number is out of its range, or `every` counts anything but steps.

    Example:
        >>> EMA(0.99, start=100)
        EMA(start=100, every=1, decay=0.99)
    """

    decay: float = 0.999

    def __post_init__(self) -> None:
        """Checks the numbers."""
        super().__post_init__()
        if isinstance(self.decay, bool) or not isinstance(self.decay, (int, float)) or not 0 < self.decay < 1:
            raise ValueError(f"decay of EMA must be a number between 0 and 1, not {self.decay!r}.")

    def weight(self, count: jax.Array) -> jax.Array | float:
        """Returns `1 - decay`."""
        return 1.0 - self.decay

    def sum_of_weights(self, count: jax.Array) -> jax.Array | float:
        """Returns `1 - decay ** count`."""
        # The difference of two float32 numbers near 1 would have few correct digits.
        return -jnp.expm1(count * math.log(self.decay))


@dataclasses.dataclass(frozen=True)
class SWA(_Averaging):
    """Stochastic weight averaging: the mean of the parameters of some steps (Izmailov et al., arXiv:1803.05407).

    Before the first of them, the result is the trained parameters.

    Args:
        start: the number of steps at the beginning that are not included.
        every: after those, include every `every`-th step: an integer or `Every(steps=...)`.

    Raises:
        TypeError: if a number of steps is not an integer.
        ValueError: if a number is out of its range, or `every` counts anything but steps.

    Example:
        >>> SWA(start=1000, every=100)
        SWA(start=1000, every=100)
    """

    def weight(self, count: jax.Array) -> jax.Array | float:
        """Returns `1 / count`."""
        return 1.0 / count


class Average(Pytree):
    """A running average of the parameters, a field of the state.

    Args:
        rule: an `EMA` or an `SWA`.
        value: the sum of weighted parameters, in float32 or wider; None before the first state.
        count: the number of included steps, `int32[]`.
        steps: the number of steps that have updated the parameters, `int32[]`.
    """

    rule: Any = static_field()
    value: PyTree = field(default=None)
    count: jax.Array | None = field(default=None)
    steps: jax.Array | None = field(default=None)

    def begin(self, params: PyTree) -> Self:
        """Returns the average before the first step.

        Args:
            params: the parameters.
        """
        wide = jax.tree.map(lambda leaf: jnp.promote_types(leaf.dtype, jnp.float32), params)
        value = jax.tree.map(jnp.zeros_like, params, wide)
        return self.replace(value=value, count=jnp.zeros((), jnp.int32), steps=jnp.zeros((), jnp.int32))

    def update(self, params: PyTree) -> Self:
        """Returns the average after a step.

        Args:
            params: the parameters after the step, in the optimizer's dtypes.
        """
        assert self.steps is not None and self.count is not None
        steps, rule = self.steps + 1, self.rule
        takes = (steps > rule.start) & ((steps - rule.start) % rule.every == 0)
        count = self.count + takes.astype(jnp.int32)
        weight = jnp.where(takes, rule.weight(jnp.maximum(count, 1).astype(float)), 0.0)

        def move(average: jax.Array, new: jax.Array) -> jax.Array:
            return average + weight.astype(jnp.finfo(average.dtype).dtype) * (new - average)

        return self.replace(value=jax.tree.map(move, self.value, params), count=count, steps=steps)

    def params(self, trained: PyTree) -> PyTree:
        """Returns the averaged parameters, or the trained ones if no step is included yet.

        Args:
            trained: the trained parameters, which determine the dtypes of the result.
        """
        taken = self.count
        assert taken is not None
        count = jnp.maximum(taken, 1).astype(float)
        averages = jax.tree.map(lambda leaf: leaf / self.rule.sum_of_weights(count), self.value)
        averages = as_kept(averages, trained)
        return jax.tree.map(lambda new, old: jnp.where(taken > 0, new, old), averages, trained)


def with_averaging(module: Any, rule: Any) -> Any:
    """Sets the averaging of a module. A module with a first state starts the average now.

    Args:
        module: a module.
        rule: an `EMA`, an `SWA`, or None.

    Raises:
        TypeError: if the rule is anything else.
    """
    if rule is not None and not isinstance(rule, _Averaging):
        raise TypeError(f"averaging must be an elegy.EMA, such as EMA(0.999), or an elegy.SWA, not {rule!r}.")
    if rule is None:
        return module if module.averaged_params is None else module.replace(averaged_params=None)
    if (
        module.averaged_params is not None
        and module.averaged_params.rule == rule
        and module.averaged_params.value is not None
    ):
        return module
    average = Average(rule)
    return module.replace(averaged_params=average if module.key is None else average.begin(wide_params(module)))


def rule_name(module: Any) -> str | None:
    """The rule of a module's average, as checkpoints and configurations name it; None without an average."""
    return None if module.averaged_params is None else repr(module.averaged_params.rule)


def check_level(cls: type, module: Any) -> None:
    """Checks that the training steps of a module support averaging.

    Args:
        cls: the class of the module.
        module: a state, its structure, or the module that will make it.

    Raises:
        StepError: if training is at the core level, whose step updates the parameters itself.
    """
    if module.averaged_params is not None and level_of(cls, "train") == "core":
        raise StepError(
            f"averaging uses the parameters after the optimizer, but {cls.__name__}.train_step updates them itself. "
            "Keep the average there (`optax.ema`), or write `managed_train_step`."
        )


def check_weights(module: Any, weights: Any, name: str = "weights") -> None:
    """Checks the argument `weights` of a call.

    Args:
        module: a state, or its structure, or the module that will make it.
        weights: the argument.
        name: the argument's name.

    Raises:
        ValueError: if `weights` is not `"trained"`, `"averaged"` or a function, or there is no average.
    """
    if weights == "averaged" and module.averaged_params is None:
        raise ValueError(
            f"{name}='averaged', but the state has no average: pass one to the trainer, "
            "`Trainer(..., averaging=elegy.EMA(0.999))`."
        )
    if weights not in ("trained", "averaged") and not callable(weights):
        raise ValueError(
            f"{name} must be 'trained', 'averaged', or a function of the state that returns parameters, "
            f"not {weights!r}."
        )


def with_weights(state: Any, weights: Weights) -> Any:
    """Returns the state with other parameters.

    Args:
        state: a state.
        weights: `"trained"`, `"averaged"`, or a function of the state that returns parameters.

    Raises:
        ValueError: if a function returns parameters of another structure, or as `check_weights`.
    """
    check_weights(state, weights)
    if weights == "trained":
        return state
    trained = state.get_params()
    given = state.averaged_params.params(trained) if weights == "averaged" else weights(state)  # type: ignore[operator]
    found, wanted = (
        (jax.tree.structure(tree), [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (given, trained)
    )
    if found != wanted:
        raise ValueError(
            "the function given as weights must return parameters of the structure and the shapes of "
            f"`state.get_params()`, but it returned {found[0]} where {wanted[0]} is expected."
        )
    return state.set_params(as_kept(jax.tree.map(jnp.asarray, given), trained))
