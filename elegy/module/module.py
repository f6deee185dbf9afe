"""ElegyModule: every step method once, each with a default that delegates one level down."""

from __future__ import annotations

from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from elegy.metrics import LossesAndMetrics, Metric
from elegy.module import high_level, layers, managed
from elegy.module.context import StepContext
from elegy.module.levels import default_step
from elegy.module.logs import REDUCTIONS, Entry, LogBook, Reduce
from elegy.optimizer import Optimizer
from elegy.pytree import Pytree, field
from elegy.types import Batch, Logs, PyTree


class ElegyModule(Pytree):
    """All of the state of a training run, and the steps that move it.

    A module is an immutable pytree. Its steps are pure functions that return the new state, and they work
    alone: under `jax.jit`, `jax.grad` or a debugger, without any Trainer. Write as much of the step as you
    need:

    - high level: `init` and `apply`; losses, metrics, gradients and the optimizer come for free;
    - managed level: `managed_init_step`, `managed_train_step`, `managed_test_step`, `managed_pred_step`;
      gradients, the optimizer and the logs come for free;
    - core level: `init_step`, `train_step`, `test_step`, `pred_step`; called as they are.

    The levels mix: a class with its own `train_step` still predicts through `apply`.

    Args:
        key: the typed random key of the run; each step splits it.
        params: what the optimizer moves, a pytree of float or complex arrays.
        batch_stats: statistics that a step updates without gradients.
        optimizer: an `elegy.Optimizer`.
        losses_and_metrics: the losses and metrics of the high level.

    Example:
        >>> import jax, optax
        >>> import elegy as eg
        >>> class Linear(eg.ElegyModule):
        ...     def init(self, key, inputs):
        ...         return self.replace(params={"w": jnp.zeros((inputs.shape[-1],))})
        ...     def apply(self, key, inputs, training):
        ...         return inputs @ self.params["w"], self
        >>> x = jnp.ones((4, 2))
        >>> trainer = eg.Trainer(Linear(), loss=eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1))
        >>> history = trainer.fit(x, x.sum(1), epochs=20, batch_size=4, verbose=0)
        >>> history.history["loss"][-1] < 1e-3
        True
    """

    key: jax.Array | None = field(default=None, kw_only=True, repr=False)
    params: PyTree = field(default=None, kw_only=True)
    batch_stats: PyTree = field(default=None, kw_only=True)
    optimizer: Optimizer | None = field(default=None, kw_only=True, repr=False)
    losses_and_metrics: LossesAndMetrics | None = field(default=None, kw_only=True, repr=False)
    _logs: LogBook = field(default_factory=LogBook, kw_only=True, repr=False)
    _initial: PyTree = field(default=None, kw_only=True, repr=False)  # values that `init` starts from and takes away
    _step: StepContext | None = field(default=None, kw_only=True, repr=False)

    # Core level

    @default_step
    def init_step(self, key: jax.Array, batch: Batch) -> Self:
        """Makes the first state.

        Args:
            key: a typed key.
            batch: one batch, as `fit` was given it.

        Returns:
            The module with parameters, optimizer state and key.
        """
        return managed.init(self, key, batch)

    @default_step
    def train_step(self, batch: Batch, batch_idx: Any, epoch_idx: Any) -> tuple[Logs, Self]:
        """Trains on one batch.

        Args:
            batch: `inputs`, `(inputs, labels)` or `(inputs, labels, sample_weight)`.
            batch_idx: index of the batch in the epoch; a Python int where you override this method.
            epoch_idx: index of the epoch, likewise.

        Returns:
            `(logs, module)`: scalars by name, and the new state.
        """
        return managed.train(self, batch, batch_idx, epoch_idx)

    @default_step
    def test_step(self, batch: Batch, batch_idx: Any) -> tuple[Logs, Self]:
        """Evaluates one batch; arguments and result as in `train_step`."""
        return managed.test(self, batch, batch_idx)

    @default_step
    def pred_step(self, batch: Batch, batch_idx: Any) -> tuple[PyTree, Self]:
        """Predicts for one batch of inputs: `(outputs, module)`."""
        return managed.pred(self, batch, batch_idx)

    @default_step
    def reset_step(self) -> Self:
        """Starts an epoch: every metric field and every log accumulator goes back to zero."""
        fresh = {
            name: value.reset()
            for name in self.__dataclass_fields__  # type: ignore[attr-defined]  # set by dataclass()
            if isinstance(value := getattr(self, name), Metric)
        }
        return self.replace(_logs=self._logs.reset(), **fresh)

    # Managed level

    @default_step
    def managed_init_step(self, key: jax.Array, batch: Batch) -> Self:
        """Makes the parameters; the optimizer's state and the key are added by the driver."""
        return high_level.init(self, key, batch)

    @default_step
    def managed_train_step(
        self, key: jax.Array, batch: Batch, batch_idx: jax.Array, epoch_idx: jax.Array
    ) -> tuple[jax.Array, Self]:
        """Computes the loss of one batch; the driver differentiates it with respect to `get_params()`.

        Over several replicas, the scalar that each returns counts by its share of the batch's examples, and gradients
        are summed: a mean over the replica's examples becomes the mean over the batch, and a term of the parameters
        counts once.

        The default, also as `super().managed_train_step(...)` in a class with `init` and `apply`, computes the losses
        and metrics through `apply`. It returns the loss of the whole batch, the same on every replica, including the
        terms that `apply` added by `add_loss`. The gradient of any function of this loss is right. What you return in
        its place is logged as `loss`.

        Args:
            key: this step's key, one a replica.
            batch: the batch, or this replica's rows of it.
            batch_idx: index of the batch in the epoch, `int32[]`.
            epoch_idx: index of the epoch, `int32[]`.

        Returns:
            `(loss, module)`: a real scalar (a mean over the batch's examples); the module with what the step
            logged (`log`, `add_loss`) and changed (batch statistics, your own fields).

        Raises:
            StepError: from the default step, if the module has no loss.
        """
        return high_level.train_step(self, key, batch)

    @default_step
    def managed_test_step(self, key: jax.Array, batch: Batch, batch_idx: jax.Array) -> Self:
        """Evaluates one batch: returns the module with what the step logged.

        The default computes losses and metrics through `apply`; `super().managed_test_step(...)` does so in a class
        with `init` and `apply`.

        Raises:
            StepError: from the default step, if there is nothing to evaluate.
        """
        return high_level.test_step(self, key, batch)

    @default_step
    def managed_pred_step(self, key: jax.Array, batch: Batch, batch_idx: jax.Array) -> tuple[PyTree, Self]:
        """Predicts for one batch of inputs: `(outputs, module)`."""
        if not high_level.runs_apply(self):
            raise high_level.missing(self, "pred")
        return high_level.pred(self, key, batch)

    def get_params(self) -> PyTree:
        """What the optimizer moves: the field `params`. Override it together with `set_params`."""
        return self.params

    def set_params(self, params: PyTree) -> Self:
        """Returns the module with other parameters."""
        return self.replace(params=params)

    def get_batch_stats(self) -> PyTree:
        """What replicas average after a step: the field `batch_stats`."""
        return self.batch_stats

    def set_batch_stats(self, batch_stats: PyTree) -> Self:
        """Returns the module with other batch statistics."""
        return self.replace(batch_stats=batch_stats)

    def log(self, name: str, value: ArrayLike | Metric, *, reduce: Reduce = "mean") -> Self:
        """Reports a value of this step.

        Args:
            name: its name in the logs. For a metric, the field that holds it.
            value: a scalar, or a metric's `batch_updates(...)`, which is aggregated over devices and
                merged into the field `name`.
            reduce: how a scalar combines over the epoch: `"mean"` (weighted by examples), `"sum"`,
                `"min"`, `"max"` or `"last"`.

        Returns:
            The module with the value pending.

        Raises:
            ValueError: for an unknown `reduce`, a value that is not a scalar, or a metric without a field of its kind.
        """
        if isinstance(value, Metric):
            held = getattr(self, name, None)
            if name not in self.__dataclass_fields__ or not isinstance(held, Metric):  # type: ignore[attr-defined]
                fields = [f for f in self.__dataclass_fields__ if isinstance(getattr(self, f), Metric)]  # type: ignore[attr-defined]
                raise ValueError(
                    f"log({name!r}, ...) was given a metric, but {type(self).__name__} has no metric field {name!r} "
                    f"to merge it into. Declare `{name}: {type(value).__name__} = elegy.field(default_factory=...)`. "
                    f"Metric fields: {', '.join(fields) or 'none'}."
                )
            if type(value) is not type(held):
                raise ValueError(
                    f"log({name!r}, ...) was given a {type(value).__name__}, but the field {name!r} of "
                    f"{type(self).__name__} holds a {type(held).__name__}, and the two cannot be merged. Log "
                    f"`self.{name}.batch_updates(...)`."
                )
            return self.replace(_logs=self._logs.add(Entry(value, name, "metric")))
        if reduce not in REDUCTIONS:
            raise ValueError(f"log({name!r}, reduce={reduce!r}): reduce must be one of {', '.join(REDUCTIONS)}.")
        return self.replace(_logs=self._logs.add(Entry(_scalar(f"log({name!r}, ...)", value), name, "scalar", reduce)))

    def add_loss(self, name: str, value: ArrayLike) -> Self:
        """Adds a scalar to the loss of this step, and reports it under its own name.

        Args:
            name: its name in the logs.
            value: a scalar, for example an activation penalty.

        Raises:
            ValueError: if the value is not a scalar.
        """
        return self.replace(_logs=self._logs.add(Entry(_scalar(f"add_loss({name!r}, ...)", value), name, "loss")))

    # High level

    @default_step
    def init(self, key: jax.Array, inputs: PyTree) -> Self:
        """Makes parameters and other state from one batch of inputs.

        Args:
            key: a typed key.
            inputs: the inputs of one batch.
        """
        if high_level.runs_apply(self) and jax.tree.leaves(self.get_params()):
            return self
        raise high_level.missing(self, "init")

    @default_step
    def apply(self, key: jax.Array, inputs: PyTree, training: bool) -> tuple[PyTree, Self]:
        """Computes the outputs of a batch.

        Args:
            key: this step's key.
            inputs: the inputs of the batch.
            training: whether this is a training step.

        Returns:
            `(outputs, module)`: what losses and metrics receive as `preds`; the module with its new state.
        """
        raise high_level.missing(self, "pred")

    def summary_rows(self, inputs: PyTree) -> list[layers.Row]:
        """The rows of `Trainer.summary`; this default is one row for the whole module.

        Nothing is computed: shapes are found by tracing `init` and `apply`.

        Args:
            inputs: one batch of inputs, arrays or `jax.ShapeDtypeStruct`.
        """
        return layers.whole_module(self, inputs)


def _scalar(where: str, value: ArrayLike) -> jax.Array:
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: the value must be a scalar or a Metric, not a {type(value).__name__}.") from error
    if array.shape != ():
        raise ValueError(f"{where}: the value must be a scalar, but its shape is {array.shape}. Reduce it first.")
    return array
