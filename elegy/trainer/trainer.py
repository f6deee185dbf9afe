"""The Trainer: a plain Python object that holds one immutable state and drives its steps."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import jax

from elegy.adapters.resolve import resolve
from elegy.callbacks import Callback, CallbackList, History
from elegy.checkpoint import store
from elegy.data import ArraySource, as_source, split, unpack
from elegy.data.sources import as_validation_source
from elegy.engine.compilation import enable_compilation_cache
from elegy.engine.executor import Executor
from elegy.engine.state_buffer import StateBuffer
from elegy.integers import positive_int, positive_int_or_none
from elegy.metrics import LossesAndMetrics
from elegy.module import ElegyModule
from elegy.optimizer import as_optimizer
from elegy.strategies import Strategy, resolve_strategy
from elegy.trainer import checks, loops, persistence, progress, rollback
from elegy.trainer.execution import ExecutionPlan, PhaseRequest, fuse_with, plan_phases
from elegy.trainer.files import Files
from elegy.trainer.first_state import planned_state
from elegy.trainer.nonfinite import NonFiniteMonitor, Policy, check_level
from elegy.trainer.on_batch import OnBatch
from elegy.trainer.pending import PendingLoads
from elegy.trainer.report import Report, module_name
from elegy.trainer.run import Before, FitConfig, Run
from elegy.types import Batch, PyTree


class Trainer(OnBatch, Files, Report):
    """Trains, evaluates and predicts with any JAX module.

    Args:
        module: an `ElegyModule`, or what an adapter accepts: a Flax linen or NNX module, an Equinox module, a
            Haiku transformed function, or an `(init, apply)` pair of functions.
        loss: a loss, a function `f(target, preds)`, or a list or dict of them.
        metrics: likewise.
        optimizer: an Optax gradient transformation.
        seed: where all randomness of the run comes from: parameters, steps, the order of examples.
        strategy: how steps run on devices: a name or a `Strategy`.
        callbacks: callbacks of every `fit`, `evaluate` and `predict`.
        variables: parameters and other variables to start from, in the module library's own form.
        nonfinite: what happens at a step whose loss or gradients are not finite. `"skip"` leaves the step out and
            counts it in `skipped_steps`; `"raise"` ends the run soon after, with a finite state;
            `"rollback"` goes back to the last checkpoint and on with another order of the data.
        compilation_cache: a directory where compiled steps are kept for later processes, which then start sooner.

    Attributes:
        interrupted: the signal that ended the last `fit`, such as `signal.SIGTERM`, or `None`. Schedulers understand
            `sys.exit(128 + trainer.interrupted)`.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: for an unknown strategy.

    Example:
        >>> import numpy as np, optax, flax.linen as nn
        >>> import elegy as eg
        >>> x = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
        >>> trainer = eg.Trainer(nn.Dense(1), loss=eg.losses.MeanSquaredError(), optimizer=optax.adam(0.1))
        >>> history = trainer.fit(x, 3 * x + 1, epochs=60, verbose=0)
        >>> trainer.evaluate(x, 3 * x + 1, verbose=0)["loss"] < 1e-2
        True
    """

    def __init__(
        self,
        module: Any,
        loss: Any = None,
        metrics: Any = None,
        optimizer: Any = None,
        *,
        seed: int = 42,
        strategy: str | Strategy = "jit",
        callbacks: Sequence[Callback] = (),
        variables: Any = None,
        nonfinite: Policy = "ignore",
        compilation_cache: str | os.PathLike[str] | None = None,
    ):
        if compilation_cache is not None:
            enable_compilation_cache(compilation_cache)
        state = resolve(module, variables)
        if loss is not None or metrics is not None:
            state = state.replace(losses_and_metrics=LossesAndMetrics(losses=loss, metrics=metrics))
        self._module_name = module_name(module, state)
        self.seed = checks.seed(seed)
        self.callbacks = tuple(CallbackList(callbacks))
        self.history = History()
        self.step = 0
        self.epoch = 0
        self.stop_training = False
        self.interrupted: int | None = None
        self._monitor = NonFiniteMonitor(nonfinite)
        self._executor = Executor(resolve_strategy(strategy), self._monitor.guards)
        if optimizer is not None:
            state = state.replace(optimizer=as_optimizer(optimizer))
        self._initialized = state.key is not None
        if self._initialized and state.optimizer is not None and state.optimizer.state is None:
            state = state.replace(optimizer=state.optimizer.init(state.get_params()))
        self._buffer = StateBuffer(self._executor.strategy, state)
        self._pending = PendingLoads()
        self._run: Run | None = None
        self._record: dict[str, Any] | None = None
        self._input_tree: Any = None  # the tree of the inputs last trained or evaluated with

    @property
    def state(self) -> ElegyModule:
        """The state. It is immutable and stays valid; assign another one of the same kind to replace it."""
        return self._buffer.get()

    @state.setter
    def state(self, state: ElegyModule) -> None:
        if not isinstance(state, ElegyModule):
            raise TypeError(f"the state must be an ElegyModule, not a {type(state).__name__}.")
        self._buffer.set(state)
        self._initialized = self._initialized or state.key is not None

    @property
    def strategy(self) -> Strategy:
        """How steps run on devices."""
        return self._executor.strategy

    def set_strategy(self, strategy: str | Strategy) -> None:
        """Moves the state to another strategy; its values do not change.

        Args:
            strategy: a name or a `Strategy`.

        Raises:
            ValueError, TypeError: if it is not a strategy, or does not fit the state; the trainer stays as it was.
            RuntimeError: when a callback calls it during `fit`.
        """
        if self._run is not None:
            raise RuntimeError("the strategy cannot change while fit runs: call set_strategy before or after it.")
        executor = Executor(resolve_strategy(strategy), self._monitor.guards)
        self._buffer = self._buffer.moved(executor.strategy, place=self._initialized)
        self._executor = executor

    # training

    def fit(
        self,
        inputs: Any,
        labels: PyTree = None,
        *,
        sample_weight: PyTree = None,
        class_weight: Mapping[int, float] | None = None,
        batch_size: int | None = None,
        epochs: int = 1,
        steps_per_epoch: int | None = None,
        max_steps: int | None = None,
        max_time: float | None = None,
        initial_epoch: int = 0,
        shuffle: bool = True,
        drop_remaining: bool = False,
        validation_data: Any = None,
        validation_split: float = 0.0,
        validation_batch_size: int | None = None,
        validation_steps: int | None = None,
        validation_freq: int = 1,
        callbacks: Sequence[Callback] | None = None,
        verbose: Literal[0, 1, 2] = 1,
        steps_per_execution: int | Literal["auto"] = "auto",
        resume: str | os.PathLike[str] | None = None,
        check_inputs: bool = False,
    ) -> History:
        """Trains for a number of epochs; a second call trains that many more.

        Args:
            inputs: a tree of arrays of shape `(examples, ...)`, or an iterable of batches.
            labels: a tree of arrays of shape `(examples, ...)`.
            sample_weight: `float[examples]`, the weight of each example.
            class_weight: weights by class, multiplied into the sample weights.
            batch_size: examples a step, over all devices; 32 where none is given.
            epochs: how many epochs to train.
            steps_per_epoch: how many batches make an epoch; all of the data by default. Of an iterable the next epoch
                takes the batches that follow.
            max_steps: the most steps of this call.
            max_time: the most seconds of this call.
            initial_epoch: with a value above 0, training starts at this epoch index and ends at `epochs`.
            shuffle: whether arrays are shuffled each epoch, by a permutation of `(seed, epoch)`.
            drop_remaining: whether a short last batch is left out.
            validation_data: `(inputs, labels[, sample_weight])`, or an iterable of batches.
            validation_split: the fraction of the arrays, from their end, that is kept for validation.
            validation_batch_size: examples a validation step; `batch_size` where none is given.
            validation_steps: how many validation batches to see.
            validation_freq: validate every so many epochs.
            callbacks: callbacks of this call, after the trainer's own.
            verbose: 0 is silent; 1 shows bars in a terminal or a notebook, and a line an epoch; 2 shows lines only.
            steps_per_execution: how many steps run in one execution; `"auto"` decides by the step's work.
            resume: a checkpoint, or a directory of them, from which to go on at the very next step; `"auto"` is
                the newest intact checkpoint of the run's `ModelCheckpoint`, or a fresh start. `epochs`,
                `max_steps` and `max_time` then count from the beginning of the run.
            check_inputs: whether to look for NaN and infinity in the data first.

        Returns:
            The `History` of this call, which is `trainer.history` too.

        Raises:
            ValueError, TypeError: for bad data or arguments; the message says which.
            RuntimeError: when a callback calls it during `fit`.
            StepError: when a step returns the wrong thing.
            Exception: what a callback raises, of its own type, with a note that names the callback and the hook.
            CheckpointError: when the checkpoint is damaged, or of another run.
        """
        checks.not_in_fit(self, "fit")
        source = as_source(inputs, labels, sample_weight, class_weight=class_weight, epoch=self.epoch)
        validation = None if validation_data is None else as_validation_source(validation_data)
        if validation_split != 0.0:
            if validation is not None:
                raise ValueError("validation_data and validation_split were both given: use one of them.")
            source, validation = split(source, validation_split)
        if check_inputs:
            checks.finite(source, validation)
        epochs = positive_int("epochs", epochs)
        initial_epoch = checks.initial_epoch(initial_epoch, epochs)
        config = FitConfig(
            epochs=epochs,
            max_steps=positive_int_or_none("max_steps", max_steps),
            max_time=checks.seconds("max_time", max_time),
            shuffle=shuffle,
            validation_freq=positive_int("validation_freq", validation_freq),
        )
        history = History()
        listeners = CallbackList((*progress.bars(verbose), *self.callbacks, *checks.listed(callbacks), history))
        fuse = fuse_with(listeners, asked := checks.fusing(steps_per_execution), "train")
        rollback.check(self.nonfinite, listeners, source, shuffle)
        with checks.one_fit(self), contextlib.ExitStack() as reading, Before(self) as before:
            found = reading.enter_context(persistence.resumed_from(resume, listeners))
            saved = None if found is None else store.read_metadata(found)
            if saved is not None and saved["run"] is not None and fuse == "auto":
                fuse = saved["run"]["steps_per_execution"]
            requests = [
                PhaseRequest.of(
                    self._buffer,
                    "train",
                    source,
                    what="fit",
                    batch_size=batch_size,
                    limit=positive_int_or_none("steps_per_epoch", steps_per_epoch),
                    fuse=fuse,
                    callbacks=listeners,
                    drop_remaining=drop_remaining,
                    finite=check_inputs,
                )
            ]
            size, limit = checks.validation(validation, validation_batch_size, validation_steps)
            if validation is not None:
                if size is None and isinstance(validation, ArraySource):
                    size = requests[0].loader.batch_size
                requests.append(
                    PhaseRequest.of(
                        self._buffer,
                        "test",
                        validation,
                        what="validation",
                        batch_size=size,
                        limit=limit,
                        fuse=asked,
                        finite=check_inputs,
                    )
                )
            training, *validations = self._prepare(*requests)
            self.stop_training, self.history = False, history
            if initial_epoch:
                self.epoch = initial_epoch
            else:  # known only now: a restored state that was waiting for its module brings its epoch with it
                config = dataclasses.replace(config, epochs=self.epoch + epochs)
            run = self._run = Run(self, config, training, validations[0] if validations else None, listeners, before)
            if found is not None and saved is not None:
                persistence.resume(run, found, saved, epochs if not initial_epoch else None)
            reading.close()
            try:
                loops.fit(run)
            finally:
                self._run = None  # first: callbacks that are asked for their state may fail
                self._record = persistence.last_record(run)
        return history

    def evaluate(
        self,
        inputs: Any,
        labels: PyTree = None,
        *,
        sample_weight: PyTree = None,
        batch_size: int | None = None,
        steps: int | None = None,
        callbacks: Sequence[Callback] | None = None,
        verbose: Literal[0, 1, 2] = 1,
    ) -> dict[str, float]:
        """Computes losses and metrics over all of the data; the state stays as it is.

        Args:
            inputs: as for `fit`.
            labels: as for `fit`.
            sample_weight: as for `fit`.
            batch_size: examples a step; the result does not depend on it.
            steps: how many batches to see at most.
            callbacks: callbacks of this call.
            verbose: as for `fit`.

        Returns:
            Values by name.
        """
        listeners = CallbackList((*progress.bars(verbose), *self.callbacks, *checks.listed(callbacks)))
        source = as_source(inputs, labels, sample_weight, what="evaluate")
        limit, fuse = positive_int_or_none("steps", steps), fuse_with(listeners, "auto", "test")
        request = PhaseRequest.of(
            self._buffer, "test", source, what="evaluate", batch_size=batch_size, limit=limit, fuse=fuse
        )
        (plan,) = self._prepare(request, once=True)
        return dict(loops.evaluate(self, plan, listeners))

    def predict(
        self,
        inputs: Any,
        *,
        batch_size: int | None = None,
        steps: int | None = None,
        callbacks: Sequence[Callback] | None = None,
        verbose: Literal[0, 1, 2] = 0,
    ) -> PyTree:
        """Computes the outputs for all of the data; the state stays as it is.

        Args:
            inputs: a tree of arrays of shape `(examples, ...)`, or an iterable of batches whose inputs count.
            batch_size: examples a step; the result does not depend on it.
            steps: how many batches to see at most.
            callbacks: callbacks of this call.
            verbose: as for `fit`.

        Returns:
            The outputs as NumPy arrays, rows in the order of the data.

        Raises:
            ValueError: when the outputs of batches cannot be joined; `predict_iter` yields them one by one.
        """
        return loops.predict_all(self, *self._predictor(inputs, batch_size, steps, callbacks, verbose))

    def predict_iter(
        self,
        inputs: Any,
        *,
        batch_size: int | None = None,
        steps: int | None = None,
        callbacks: Sequence[Callback] | None = None,
        verbose: Literal[0, 1, 2] = 0,
    ) -> Iterator[PyTree]:
        """Yields the outputs of one batch after another, as NumPy arrays. Arguments as for `predict`."""
        return loops.predict(self, *self._predictor(inputs, batch_size, steps, callbacks, verbose))

    def _predictor(
        self, inputs: Any, batch_size: Any, steps: Any, callbacks: Any, verbose: Any
    ) -> tuple[ExecutionPlan, CallbackList]:
        listeners = CallbackList((*progress.bars(verbose), *self.callbacks, *checks.listed(callbacks)))
        source = as_source(inputs, what="predict", known=self._input_tree)
        limit, fuse = positive_int_or_none("steps", steps), fuse_with(listeners, "auto", "predict")
        request = PhaseRequest.of(
            self._buffer, "pred", source, what="predict", batch_size=batch_size, limit=limit, fuse=fuse
        )
        (plan,) = self._prepare(request, once=True)
        return plan, listeners

    def _prepare(self, *requests: PhaseRequest, once: bool = False) -> list[ExecutionPlan]:
        """Checks and traces phases before anything is compiled, then makes the first state if there is none."""
        for request in requests:
            self._executor.takes_batches[request.phase] = request.loader.plan is None
            checks.can_run(self._buffer, request.phase)
            if request.phase == "train":
                check_level(self.nonfinite, self._buffer)
        first = requests[0].loader.first_batch()
        buffer = self._planned(first)
        plans = plan_phases(self._executor, buffer, requests, once=once)
        self._adopt(buffer)
        if requests[0].phase != "pred":
            self._input_tree = jax.tree.structure(unpack(first)[0])
        return plans

    def _planned(self, batch: Batch) -> StateBuffer:
        """The state; where there is none yet, one that is made when it is needed."""
        return planned_state(self._executor, self._buffer, self._initialized, self.seed, batch)

    def _adopt(self, buffer: StateBuffer) -> None:
        """Makes a buffer the trainer's own; its state is made now if it was only planned."""
        buffer.materialise()
        with Before(self):
            pending, self._buffer, self._initialized, self._pending = self._pending, buffer, True, PendingLoads()
            pending.run()
