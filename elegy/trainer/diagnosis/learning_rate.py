"""The learning-rate range test: training with a rate that grows from step to step, on a copy of the state."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from elegy.data import ArraySource
from elegy.data.columns import Given
from elegy.data.plan import DEFAULT_BATCH_SIZE
from elegy.data.sources import source_of
from elegy.flat import make_jaxpr
from elegy.integers import positive_int_or_none
from elegy.lazy import require
from elegy.module.freezing import optimizer_params
from elegy.module.step_values import OWN_LOGS
from elegy.optimizer import LookaheadPair, Optimizer, hyperparameters, with_hyperparameters
from elegy.trainer.one_batch import check_trains, chunk_of, copied_state, own_executor, training_program
from elegy.trainer.session import Session
from elegy.types import Batch, PyTree

DIVERGED = 3.0
"""The test ends when the loss is above the lowest one before by so many times the magnitude of the first."""

_WINDOW = 4
"""The smoothed loss of a step is the mean of this many steps before it (a tenth of long tests), itself, and as many
after it.
"""

_SHOWN = 6
"""The steps that `repr` shows."""

_SCALE = "state/1/hyperparams/step_size"


@dataclasses.dataclass(frozen=True, repr=False)
class LearningRateTest:
    """The result of a learning-rate range test.

    Args:
        suggestion: the rate at which the loss falls fastest, by lines fitted to the losses of nearby steps; None if it
            does not fall.
        rates: the learning rate of each step.
        losses: the loss of each step's batch, before the step.
        smoothed: the means of the losses of nearby steps.

    Example:
        >>> test = LearningRateTest.of(np.geomspace(1e-3, 1, 31), 1 / (1 + np.exp(np.arange(31) - 15.0)))
        >>> round(test.suggestion, 4)
        0.0316
        >>> test
        LearningRateTest: the suggested learning rate is 0.0316, where the loss falls fastest.
        31 steps; the smoothed loss is lowest, 3.06e-07, at 1.
          learning rate  smoothed loss
                  0.001              1
                0.00398          0.999
                 0.0158          0.812
                 0.0631          0.188
                  0.251        0.00118
                      1       3.06e-07
    """

    suggestion: float | None
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]

    @classmethod
    def of(cls, rates: Any, losses: Any) -> LearningRateTest:
        """Makes the result from the rates and the losses of the steps.

        Args:
            rates: a learning rate for each step, evenly spaced in the logarithm.
            losses: finite losses.
        """
        losses = np.asarray(losses, float)
        count = len(losses)
        near = min(max(_WINDOW, count // 10), (count - 1) // 2)
        reach = [min(near, i, count - 1 - i) for i in range(count)]
        smoothed = np.array([losses[i - far : i + far + 1].mean() for i, far in enumerate(reach)])
        suggestion = None
        if near > 0:
            # Only steps with a whole window: at the ends, the losses of one or two batches would decide.
            end = int(np.argmin(smoothed[near : count - near])) + 1
            offsets = np.arange(-near, near + 1)
            falls = np.convolve(losses, offsets, "valid")[:end]  # minus the slopes of fitted lines, but for a factor
            if np.max(falls) > 0:
                suggestion = float(rates[near + int(np.argmax(falls))])
        return cls(suggestion, *(tuple(map(float, values)) for values in (rates[:count], losses, smoothed)))

    def __repr__(self) -> str:
        """Returns the suggestion, the lowest smoothed loss, and a few steps of the curve."""
        if self.suggestion is None:
            first = "LearningRateTest: no learning rate is suggested, because the loss does not fall."
        else:
            first = (
                f"LearningRateTest: the suggested learning rate is {self.suggestion:.3g}, where the loss falls fastest."
            )
        lowest = int(np.argmin(self.smoothed))
        count = len(self.rates)
        second = (
            f"{count} steps; the smoothed loss is lowest, {self.smoothed[lowest]:.3g}, at {self.rates[lowest]:.3g}."
        )
        shown = np.unique(np.linspace(0, count - 1, _SHOWN).astype(int))
        rows = [f"  {self.rates[k]:>13.3g}  {self.smoothed[k]:>13.3g}" for k in shown]
        return "\n".join([first, second, "  learning rate  smoothed loss", *rows])

    def plot(self, ax: Any = None) -> Any:
        """Draws the losses over the rates with matplotlib.

        Args:
            ax: the axes to draw on; None for new ones.

        Returns:
            The axes.

        Raises:
            ImportError: if matplotlib is not installed.
        """
        if ax is None:
            ax = require("matplotlib.pyplot", "the plot of a learning-rate test").subplots()[1]
        ax.plot(self.rates, self.losses, alpha=0.4, label="loss")
        ax.plot(self.rates, self.smoothed, label="smoothed loss")
        if self.suggestion is not None:
            ax.axvline(self.suggestion, linestyle="--", color="gray", label=f"suggestion: {self.suggestion:.2g}")
        ax.set(xscale="log", xlabel="learning rate", ylabel="loss")
        ax.legend()
        return ax


def find_learning_rate(
    session: Session,
    given: Given,
    batch_size: int | None,
    lowest: float,
    highest: float,
    steps: int,
    learning_rate: float | None,
) -> LearningRateTest:
    """Runs the test; see `Trainer.find_learning_rate`."""
    for name, value in (("lowest", lowest), ("highest", highest), ("learning_rate", learning_rate)):
        if value is not None and not (isinstance(value, (int, float)) and 0 < value < math.inf):
            raise ValueError(f"find_learning_rate({name}={value!r}): a learning rate is a positive number.")
    if not lowest < highest or steps < 2:
        raise ValueError(
            f"find_learning_rate(lowest={lowest}, highest={highest}, steps={steps}): the rate grows from the lowest to "
            "the highest in at least 2 steps."
        )
    source = source_of(given, what="find_learning_rate")
    if not isinstance(source, ArraySource):
        raise TypeError(
            "find_learning_rate takes arrays: reading an iterable would change the order in which fit reads it. Give "
            "some of its batches, joined: `x, y = next(iter(loader))`."
        )
    batch_size = min(positive_int_or_none("batch_size", batch_size) or DEFAULT_BATCH_SIZE, source.size)
    rates = np.geomspace(lowest, highest, steps)
    check_trains(session, "find_learning_rate")
    losses: list[float] = []
    batches = _batches(session, source, batch_size)
    first = next(batches)
    executor = own_executor(session, (OWN_LOGS,))
    with copied_state(session, "find_learning_rate", first) as buffer:
        state, with_rate = _adjustable(buffer.get(), learning_rate)
        buffer.set(state)
        training_program(session, executor, buffer, first)  # a faulty step raises its error before the first one runs
        executor.reset(buffer, "train")
        for rate, batch in zip(rates, itertools.chain([first], batches), strict=False):
            buffer.set(with_rate(buffer.get(), float(rate)))
            out = executor.run("train", buffer, chunk_of(session, batch), session.epoch)
            loss = float(out.step_values(0)["loss"])
            if not math.isfinite(loss) or (losses and loss - min(losses) > DIVERGED * abs(losses[0])):
                break
            losses.append(loss)
    if not losses:
        raise ValueError(
            "find_learning_rate: the loss of the first batch is not finite, whatever the learning rate. "
            "`trainer.check(inputs, labels)` looks for the reason."
        )
    return LearningRateTest.of(rates, losses)


def _batches(session: Session, source: ArraySource, size: int) -> Iterator[Batch]:
    """Full batches of permuted rows, without end."""
    for epoch in itertools.count(session.epoch):
        order = source.order(session.seed, epoch)
        for start in range(0, source.size - size + 1, size):
            yield source.take(order[start : start + size])


def _adjustable(state: Any, learning_rate: float | None) -> tuple[Any, Callable[[Any, float], Any]]:
    """Returns a state whose learning rate can be set, and a function that sets it.

    Args:
        state: the state.
        learning_rate: that of an optimizer whose state has none.

    Raises:
        ValueError: if the learning rate is not known, or both known and given.
    """
    optimizer: Optimizer = state.optimizer
    kept = {p: leaf for p, leaf in hyperparameters(optimizer).items() if p.rpartition("/")[2] == "learning_rate"}
    if kept:
        if learning_rate is not None:
            raise ValueError(
                f"find_learning_rate(learning_rate={learning_rate}): the optimizer's state has its learning rate "
                f"({', '.join(kept)}), which the test sets: leave the argument out."
            )
        largest = max(float(leaf) for leaf in kept.values())
        parts = {path: float(leaf) / largest for path, leaf in kept.items()}
    else:
        base = _rate_of(optimizer, optimizer_params(state)) if learning_rate is None else learning_rate
        if isinstance(optimizer.state, LookaheadPair):
            raise ValueError(
                "find_learning_rate cannot scale the updates of optax.lookahead, which are pairs. Test the optimizer "
                "inside of it, or write `optax.lookahead(optax.inject_hyperparams(optax.adam)(learning_rate=1e-3), "
                "...)`, whose rate the test sets."
            )
        if base is None:
            raise ValueError(
                "find_learning_rate does not find the learning rate of the optimizer. Write "
                "`optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)`, or pass the rate with which the optimizer "
                "was built (of a schedule, the highest; of several groups, the rate of one), "
                "`find_learning_rate(..., learning_rate=1e-3)`, and the test scales the updates of all parameters."
            )
        state = state.replace(optimizer=_scaled(optimizer))
        parts = {_SCALE: 1 / base}

    def with_rate(state: Any, rate: float) -> Any:
        now = hyperparameters(state.optimizer)
        values = {path: jnp.asarray(rate * part, now[path].dtype) for path, part in parts.items()}
        return state.replace(optimizer=with_hyperparameters(state.optimizer, values))

    return state, with_rate


def _scaled(optimizer: Optimizer) -> Optimizer:
    """The optimizer with its updates multiplied by the hyperparameter `_SCALE`."""
    tx = optimizer.tx.gradient_transformation() if isinstance(optimizer.tx, optax.MultiSteps) else optimizer.tx
    scale = optax.inject_hyperparams(optax.scale)(step_size=1.0)
    return Optimizer(optax.chain(tx, scale), (optimizer.state, scale.init(())))


def _rate_of(optimizer: Optimizer, params: PyTree) -> float | None:
    """Returns the positive constant whose negative is the last factor of every update; None if there is none.

    Optimizers of Optax multiply their updates by the negative learning rate at last.
    """
    if isinstance(optimizer.tx, optax.MultiSteps):
        return None

    def updates(grads: PyTree, state: PyTree, params: PyTree) -> PyTree:
        return optimizer.tx.update(grads, state, params)[0]

    try:
        closed, _ = make_jaxpr(updates, params, optimizer.state, params)
        made_by = {variable: equation for equation in closed.jaxpr.eqns for variable in equation.outvars}
        factors = {_factor(made_by[variable]) for variable in closed.jaxpr.outvars}
    except Exception:  # a transformation that needs more arguments, or an equation of another kind
        return None
    rate = -factors.pop() if len(factors) == 1 else 0.0
    return rate if rate > 0 and rate != 1.0 else None  # -1 is the sign of a rate elsewhere


def _factor(equation: Any) -> float:
    """Returns the constant by which an equation multiplies its argument.

    Raises:
        ValueError: if it does something else.
    """
    constant = [getattr(variable, "val", None) for variable in equation.invars]
    if len(constant) != 2 or sum(value is not None for value in constant) != 1:
        raise ValueError("not a product with a constant")

    def apply(value: float) -> float:
        given = [jnp.float32(value if c is None else c) for c in constant]
        return float(equation.primitive.bind(*given, **equation.params))

    if apply(0.0) != 0 or apply(2.0) != 2 * apply(1.0):
        raise ValueError("not a product with a constant")
    return apply(1.0)
