"""ElegyModule: declares every step method, with a default that delegates to the level below."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from elegy.metrics import LossesAndMetrics, Metric
from elegy.module import high_level, layers, managed
from elegy.module.averaging import Average
from elegy.module.context import StepContext
from elegy.module.freezing import FreezeRule
from elegy.module.levels import default_step
from elegy.module.logs import REDUCTIONS, Entry, LogBook, Reduce
from elegy.module.precision import LossScale, Precision
from elegy.optimizer import Optimizer
from elegy.pytree import Pytree, Static, field, static_field
from elegy.types import Batch, Logs, PyTree


class ElegyModule(Pytree):
    """The state of a training run, and the steps that update it.

    A module is an immutable pytree. Its steps are pure functions that return the new state. They also work without a
    Trainer: under `jax.jit`, `jax.grad` or a debugger. Implement one of three levels:

    - high level: `init` and `apply`; Elegy adds losses, metrics, gradients and the optimizer;
    - managed level: `managed_init_step`, `managed_train_step`, `managed_test_step`, `managed_pred_step`; Elegy adds
      gradients, the optimizer and the logs;
    - core level: `init_step`, `train_step`, `test_step`, `pred_step`; Elegy only calls them.

    The level may differ by phase: a class with its own `train_step` still predicts with `apply`.

    Args:
        key: the typed random key of the run, which each step updates.
        params: the parameters that the optimizer updates, a pytree of float or complex arrays.
        batch_stats: statistics that a step updates without gradients.
        optimizer: an `elegy.Optimizer`.
        losses_and_metrics: the losses and metrics of the high level.
        averaged_params: the average of the parameters, if the trainer has `averaging`.
        dynamic_loss_scale: the factor of the loss, if the module computes in float16.

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
    averaged_params: Average | None = field(default=None, kw_only=True, repr=False)
    dynamic_loss_scale: LossScale | None = field(default=None, kw_only=True, repr=False)
    _precision: Precision | None = static_field(default=None, kw_only=True, repr=False)
    _freezing: tuple[FreezeRule, ...] = static_field(default=(), kw_only=True, repr=False)
    _logs: LogBook = field(default_factory=LogBook, kw_only=True, repr=False)
    _initial: PyTree = field(default=None, kw_only=True, repr=False)  # initial values, which `init` uses and removes
    _hyperparameters: PyTree = field(default=None, kw_only=True, repr=False)  # of a member of a population
    _kept: PyTree = field(default=None, kw_only=True, repr=False)  # in checkpoints: the states that callbacks keep
    _recipe: Static[Callable[..., Any]] | None = static_field(default=None, kw_only=True, repr=False)
    _step: StepContext | None = field(default=None, kw_only=True, repr=False)

    # Core level

    @default_step
    def init_step(self, key: jax.Array, batch: Batch) -> Self:
        """Makes the first state.

        Args:
            key: a typed key.
            batch: one batch of the data of `fit`.

        Returns:
            The module with parameters, optimizer state and key.
        """
        return managed.init(self, key, batch)

    @default_step
    def train_step(self, batch: Batch, batch_idx: Any, epoch_idx: Any) -> tuple[Logs, Self]:
        """Trains on one batch.

        Args:
            batch: `inputs`, `(inputs, labels)` or `(inputs, labels, sample_weight)`.
            batch_idx: index of the batch in the epoch; a Python int if you override this method.
            epoch_idx: index of the epoch, likewise.

        Returns:
            `(logs, module)`: scalars by name, and the new state.
        """
        out = managed.train(self, batch, batch_idx, epoch_idx)
        return out.logs, out.module

    @default_step
    def test_step(self, batch: Batch, batch_idx: Any) -> tuple[Logs, Self]:
        """Evaluates one batch; arguments and result as in `train_step`."""
        out = managed.test(self, batch, batch_idx)
        return out.logs, out.module

    @default_step
    def pred_step(self, batch: Batch, batch_idx: Any) -> tuple[PyTree, Self]:
        """Predicts for one batch of inputs: `(outputs, module)`."""
        return managed.pred(self, batch, batch_idx)

    @default_step
    def reset_step(self) -> Self:
        """Resets all metric fields and log accumulators at the beginning of an epoch."""
        fresh = {
            name: value.reset()
            for name in self.__dataclass_fields__  # type: ignore[attr-defined]  # set by dataclass()
            if isinstance(value := getattr(self, name), Metric)
        }
        return self.replace(_logs=self._logs.reset(), **fresh)

    # Managed level

    @default_step
    def managed_init_step(self, key: jax.Array, batch: Batch) -> Self:
        """Makes the parameters; the driver adds the optimizer's state and the key."""
        return high_level.init(self, key, batch)

    @default_step
    def managed_train_step(
        self, key: jax.Array, batch: Batch, batch_idx: jax.Array, epoch_idx: jax.Array
    ) -> tuple[Any, Self]:
        """Computes the loss of one batch; the driver differentiates it with respect to `get_params()`.

        With several replicas, the driver weights the scalar of each replica by its fraction of the batch's examples,
        and sums gradients: a mean over the replica's examples becomes the mean over the batch, and a penalty on the
        parameters counts once.

        The default, also as `super().managed_train_step(...)` in a class with `init` and `apply`, computes the losses
        and metrics with `apply`. It returns the loss of the whole batch, equal on every replica, including the terms
        that `apply` added with `add_loss`. The gradient of any function of this loss is that of the whole batch. The
        loss that you return is logged as `loss`.

        Args:
            key: this step's key, different on each replica.
            batch: the batch, or this replica's rows of it.
            batch_idx: index of the batch in the epoch, `int32[]`.
            epoch_idx: index of the epoch, `int32[]`.

        A step may return several losses, a dict by the names of parts of the parameters: `"generator"` is the loss of
        the parameters `generator/...`. Each parameter gets the gradient of its own loss alone. The losses are logged as
        `<name>_loss`, and their sum as `loss`. Optimizers that ask for the loss, such as line searches, raise an error.

        Returns:
            `(loss, module)`: a real scalar (a mean over the batch's examples), or a dict of them; the module with new
            logs (`log`, `add_loss`), batch statistics and fields of your own.

        Raises:
            StepError: from the default step, if the module has no loss.
        """
        return high_level.train_step(self, key, batch)

    @default_step
    def managed_test_step(self, key: jax.Array, batch: Batch, batch_idx: jax.Array) -> Self:
        """Evaluates one batch, and returns the module with new logs.

        The default computes losses and metrics with `apply`; `super().managed_test_step(...)` does the same in a class
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
        """Returns the parameters that the optimizer updates: the field `params`. Override `set_params`, too."""
        return self.params

    def set_params(self, params: PyTree) -> Self:
        """Returns the module with other parameters."""
        return self.replace(params=params)

    def get_batch_stats(self) -> PyTree:
        """Returns the statistics that replicas average after a step: the field `batch_stats`."""
        return self.batch_stats

    def set_batch_stats(self, batch_stats: PyTree) -> Self:
        """Returns the module with other batch statistics."""
        return self.replace(batch_stats=batch_stats)

    def split_given(self) -> tuple[Self, PyTree]:
        """Splits off weights that the module was given and no step changes, such as the base weights of a `LoRA`.

        A checkpoint holds their digest (SHA-256) in place of their values. Whoever restores it makes the module with
        the same weights. Override `with_given`, too.

        Returns:
            `(module, weights)`: the module without the weights, such as with `None` in their place, and a tree of the
            weights. By default the module itself and `None`: a checkpoint holds everything.
        """
        return self, None

    def with_given(self, weights: PyTree) -> Self:
        """Returns the module with the weights that `split_given` has split off."""
        return self

    def log(self, name: str, value: ArrayLike | Metric, *, reduce: Reduce = "mean") -> Self:
        """Reports a value of this step.

        Args:
            name: the name in the logs; for a metric, the name of its field.
            value: a scalar, or a metric's `batch_updates(...)`, which is aggregated over devices and merged into the
                field `name`.
            reduce: how a scalar combines over the epoch: `"mean"` (weighted by examples), `"sum"`,
                `"min"`, `"max"` or `"last"`.

        Returns:
            The module with the value pending.

        Raises:
            ValueError: if `reduce` is unknown, a value is not a scalar, or a metric has no field of its class.
        """
        if isinstance(value, Metric):
            metric = getattr(self, name, None)
            if name not in self.__dataclass_fields__ or not isinstance(metric, Metric):  # type: ignore[attr-defined]
                fields = [f for f in self.__dataclass_fields__ if isinstance(getattr(self, f), Metric)]  # type: ignore[attr-defined]
                raise ValueError(
                    f"log({name!r}, ...) was given a metric, but {type(self).__name__} has no metric field {name!r} "
                    f"to merge it into. Declare `{name}: {type(value).__name__} = elegy.field(default_factory=...)`. "
                    f"Metric fields: {', '.join(fields) or 'none'}."
                )
            if type(value) is not type(metric):
                raise ValueError(
                    f"log({name!r}, ...) was given a {type(value).__name__}, but the field {name!r} of "
                    f"{type(self).__name__} is a {type(metric).__name__}, and the two cannot be merged. Log "
                    f"`self.{name}.batch_updates(...)`."
                )
            return self.replace(_logs=self._logs.add(Entry(value, name, "metric")))
        if reduce not in REDUCTIONS:
            raise ValueError(f"log({name!r}, reduce={reduce!r}): reduce must be one of {', '.join(REDUCTIONS)}.")
        return self.replace(_logs=self._logs.add(Entry(_scalar(f"log({name!r}, ...)", value), name, "scalar", reduce)))

    def compute_loss(
        self, *, preds: PyTree, target: PyTree = None, sample_weight: PyTree = None, **arguments: Any
    ) -> tuple[jax.Array, Self]:
        """Computes the losses and metrics of the trainer in a managed step of your own.

        Numerators and denominators of the losses are summed over replicas, microbatches and the batches of an epoch
        before dividing, so that the mean over tokens, or over examples with weights, is that of the whole batch under
        every strategy and with `accumulate`. Return the module that you got from here.

        Args:
            preds: the outputs, for losses and metrics.
            target: the labels.
            sample_weight: weights of shape `(B,)`, or of each value of a loss, such as `(B, T)`; a mask of bools, too.
            **arguments: other arguments of losses and metrics by name, such as `inputs`.

        Returns:
            `(loss, module)`: the loss of the whole batch, equal on every replica; its gradient, and that of any
            function of it, is that of the whole batch. The module with the losses and metrics as pending logs.

        Raises:
            StepError: if the module has no loss.

        Example:
            >>> import jax, optax
            >>> import elegy as eg
            >>> class Tagger(eg.ElegyModule):
            ...     def managed_init_step(self, key, batch):
            ...         return self.replace(params=jnp.zeros((4, 3)))
            ...     def managed_train_step(self, key, batch, batch_idx, epoch_idx):
            ...         x, labels, mask = batch
            ...         return self.compute_loss(preds=x @ self.params, target=labels, sample_weight=mask)
            >>> x, labels = jnp.ones((6, 5, 4)), jnp.ones((6, 5), int)
            >>> mask = jnp.arange(5) < jnp.arange(6)[:, None]
            >>> module = Tagger()
            >>> trainer = eg.Trainer(module, loss=eg.losses.CrossEntropy(), optimizer=optax.sgd(0.1), accumulate=3)
            >>> history = trainer.fit(x, labels, sample_weight=mask, batch_size=6, verbose=0)
            >>> f"{history.history['loss'][0]:.4f}"  # log(3): the mean over the tokens
            '1.0986'
        """
        return high_level.compute_loss(self, preds, target, sample_weight, arguments)

    def add_loss(self, name: str, value: ArrayLike) -> Self:
        """Adds a scalar to the loss of this step, and logs it under its own name.

        Args:
            name: the name in the logs.
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
            training: True in a training step.

        Returns:
            `(outputs, module)`: the `preds` of losses and metrics; the module with its new state.
        """
        raise high_level.missing(self, "pred")

    def summary_rows(self, inputs: PyTree) -> list[layers.Row]:
        """Returns the rows of `Trainer.summary`; by default one row for the whole module.

        `init` and `apply` are traced, not run.

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
