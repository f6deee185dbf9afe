"""The Trainer: a plain Python object that holds one immutable state and drives its steps."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from elegy.adapters.resolve import resolve
from elegy.callbacks import Callback, CallbackList, History
from elegy.data.columns import Given
from elegy.data.reading import PREFETCH
from elegy.data.sources import source_of
from elegy.engine.compilation import enable_compilation_cache
from elegy.keywords import ATTRIBUTES_OF_TRAINER, OF_TRAINER, explain_attributes, explain_keywords
from elegy.metrics import LossesAndMetrics
from elegy.metrics.named import LossTree, MetricTree
from elegy.module.averaging import EMA, SWA, Weights, with_averaging
from elegy.module.freezing import optimizer_params, with_frozen
from elegy.module.precision import Precision, as_precision, with_precision
from elegy.optimizer import Optimizer, Transformation
from elegy.optimizer_groups import as_optimizer
from elegy.patterns import as_patterns
from elegy.runs.folder import RunFolder
from elegy.runs.place import run_dir_path
from elegy.strategies import Strategy, resolve_strategy
from elegy.trainer import checks, loop
from elegy.trainer import fit as fit_module
from elegy.trainer.batch_methods import BatchMethods
from elegy.trainer.config import FitConfig
from elegy.trainer.diagnosis.methods import DiagnosisMethods
from elegy.trainer.evaluation.outputs import join
from elegy.trainer.evaluation.passes import plan_pass
from elegy.trainer.evaluation.predictions import predictions, trees
from elegy.trainer.listeners import Listeners
from elegy.trainer.microbatches import MicrobatchSchedule
from elegy.trainer.nonfinite import NonFiniteMonitor, Policy
from elegy.trainer.one_fit import not_in_fit
from elegy.trainer.saving.configuration import checked_config
from elegy.trainer.saving.methods import FileMethods
from elegy.trainer.session import Session
from elegy.trainer.state_methods import M, StateMethods, module_name
from elegy.types import Every, Hyperparameters, PyTree


class Trainer(StateMethods[M], BatchMethods, FileMethods, DiagnosisMethods):
    """Trains, evaluates and predicts with any JAX module.

    Args:
        module: an `ElegyModule`, or what an adapter accepts: a Flax linen or NNX module, an Equinox module, a
            Haiku transformed function, or an `(init, apply)` pair of functions.
        loss: a loss, a function `f(target, preds)`, or a list or dict of them.
        metrics: likewise.
        optimizer: an Optax gradient transformation; or a dict of them by patterns of parameter paths, such as
            `{"head/*": optax.adam(1e-3), "*": optax.adam(1e-4)}`, of which the first match is used.
        seed: where all randomness of the run comes from: parameters, steps, the order of examples.
        strategy: how steps run on devices: a name or a `Strategy`.
        callbacks: callbacks of every `fit`, `evaluate` and `predict`.
        variables: parameters and other variables to start from, in the module library's own form.
        nonfinite: what happens at a step whose loss or gradients are not finite. `"ignore"` only warns where such a
            loss is read; `"skip"` leaves the step out and counts it in `skipped_steps`; `"raise"` ends the run soon
            after, with a finite state; `"rollback"` goes back to the last checkpoint and on with another order of the
            data.
        compilation_cache: a directory where compiled steps are kept for later processes, which then start sooner.
        accumulate: into how many microbatches a training step cuts its batch, or a function of the number of completed
            steps. The result is the whole batch's; the activations take the memory of one microbatch.
        precision: the dtypes in which parameters are kept and the module computes: `"float32"` (nothing is cast),
            `"mixed_bfloat16"`, `"bfloat16"`, `"mixed_float16"`, a policy as `jmp` writes it, or a `Precision`.
        averaging: an `EMA` or `SWA` of the parameters, kept in the state beside them; `weights="averaged"` uses it.
        freeze: a pattern of the paths of parameters, or several, such as `"backbone/*"`. Those parameters are not
            trained: they get no gradient, no update, no weight decay and no optimizer state.
        config: JSON values by name that the program was run with, such as `{"width": 64}`, for checkpoints and loggers.
        run_dir: the folder of the run, such as `"runs/first"`, or `"auto"` for `runs/` and the name of the module's
            class: checkpoints, logs, configuration, versions and console output of `fit`. If something is in it
            already, `first_1`, `first_2`, ... follow. See "Runs" in the documentation.

    Attributes:
        interrupted: the signal that ended the last `fit`, such as `signal.SIGTERM`, or `None`. Schedulers understand
            `sys.exit(128 + trainer.interrupted)`.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: for an unknown strategy or precision, `accumulate` below 1, or patterns that do not fit the
            parameters; the first call with a batch raises the last, unless the module has a state.
        StepError: for `freeze` with a module that trains at the core level.

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
        module: M | Any,
        loss: LossTree | None = None,
        metrics: MetricTree | None = None,
        optimizer: Optimizer | Transformation | Mapping[str, Transformation] | None = None,
        *,
        seed: int = 42,
        strategy: str | Strategy = "jit",
        callbacks: Sequence[Callback] = (),
        variables: PyTree = None,
        nonfinite: Policy = "ignore",
        compilation_cache: str | os.PathLike[str] | None = None,
        accumulate: int | Callable[[int], int] = 1,
        precision: str | Precision = "float32",
        averaging: EMA | SWA | None = None,
        freeze: str | Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
        run_dir: str | os.PathLike[str] | None = None,
    ):
        if compilation_cache is not None:
            enable_compilation_cache(compilation_cache)
        state = resolve(module, variables)
        if loss is not None or metrics is not None:
            state = state.replace(losses_and_metrics=LossesAndMetrics(losses=loss, metrics=metrics))
        self._module_name = module_name(module, state)
        seed = checks.seed(seed)
        values = checked_config(config)
        folder = run_dir_path(run_dir, self._module_name)
        self.callbacks = tuple(CallbackList(callbacks))
        monitor = NonFiniteMonitor(nonfinite)
        strategy = resolve_strategy(strategy)
        if optimizer is not None:
            state = state.replace(optimizer=as_optimizer(optimizer))
        state = with_averaging(with_precision(state, as_precision(precision)), averaging)
        state = with_frozen(state, as_patterns(freeze, "freeze"))
        if state.key is not None and state.optimizer is not None and state.optimizer.state is None:
            state = state.replace(optimizer=state.optimizer.init(optimizer_params(state)))
        run_folder = None if folder is None else RunFolder(folder)
        microbatches = MicrobatchSchedule(accumulate)
        self._session = Session(state, strategy, monitor, seed, microbatches, values, run_folder)

    def fit(
        self,
        data: PyTree = None,
        labels: PyTree = None,
        *,
        inputs: PyTree = None,
        sample_weight: PyTree = None,
        class_weight: Mapping[int, float] | None = None,
        batch_size: int | None = None,
        epochs: int | None = None,
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
        validation_freq: int | Every = 1,
        validation_weights: Weights = "trained",
        callbacks: Sequence[Callback] | None = None,
        verbose: Literal[0, 1, 2] = 1,
        steps_per_execution: int | Literal["auto"] = "auto",
        resume: str | os.PathLike[str] | None = None,
        hyperparameters: Hyperparameters | None = None,
        check_inputs: bool = False,
        fast_dev_run: bool | int = False,
        limit_train: int | float | None = None,
        limit_validation: int | float | None = None,
        overfit_batches: int | None = None,
        sanity_check: int = 0,
        prefetch: int = PREFETCH,
    ) -> History:
        """Trains for a number of epochs; a second call trains that many more.

        Args:
            data: the inputs, a tree of arrays of shape `(examples, ...)`; an iterable of batches; or a dict, table or
                data set that has the labels, too.
            labels: a tree of arrays of shape `(examples, ...)`; or the name, or names, of the keys or columns that
                are the labels.
            inputs: the names of the keys or columns that are the inputs; by default all that are not labels or
                weights. If the first argument is missing, the data itself: `fit(inputs=x, labels=y)`.
            sample_weight: `float[examples]`, the weight of each example; or the name of a key or column.
            class_weight: weights by class, multiplied into the sample weights.
            batch_size: the number of examples in a step, over all devices; None for 32.
            epochs: how many epochs to train; None for 1, or, with `max_steps` or `max_time`, for as many as they allow.
                An iterator has one.
            steps_per_epoch: how many batches make an epoch; all of the data by default. Of an iterable the next epoch
                takes the batches that follow.
            max_steps: the most steps of this call.
            max_time: the most seconds of this call.
            initial_epoch: with a value above 0, training starts at this epoch index and ends at `epochs`.
            shuffle: whether arrays are shuffled each epoch, by a permutation of `(seed, epoch)`.
            drop_remaining: whether a short last batch is left out.
            validation_data: `(inputs, labels[, sample_weight])`, an iterable of batches, or a dict of names and such
                data sets or `elegy.Evaluation`s, whose logs begin with `val_<name>_`. Names in `labels`, `inputs` and
                `sample_weight` apply to its dicts and tables, too.
            validation_split: the fraction of the arrays, from their end, that is kept for validation.
            validation_batch_size: the number of examples in a validation step; None for `batch_size`.
            validation_steps: how many validation batches to see.
            validation_freq: validate every so many epochs, or at an interval, such as `Every(steps=500)`, which may end
                inside of epochs.
            validation_weights: which parameters to validate; as `weights` of `evaluate`.
            callbacks: callbacks of this call, after the trainer's own.
            verbose: 0 is silent; 1 shows bars in a terminal or a notebook, and a line an epoch; 2 shows lines only.
            steps_per_execution: how many steps run in one execution; `"auto"` decides by the step's work.
            resume: a checkpoint, or a directory of them, from which to go on at the very next step; `"auto"` is
                the newest intact checkpoint of the run's `ModelCheckpoint`, or a fresh start. A run folder of
                the trainer's `run_dir` is continued; `"auto"` is the newest one in which no trainer trains. `epochs`,
                `max_steps` and `max_time` then count from the beginning of the run.
            hyperparameters: as for `restore`, of a run that resumes: `"new"` goes on with those of this trainer.
            check_inputs: whether to look for NaN and infinity in the data first.
            fast_dev_run: a number of batches, or True for one: trains an epoch of so many and validates on so many,
                without callbacks that write files, limits of the run and `resume`. The steps count.
            limit_train: the largest number of batches of an epoch, or a float: a fraction of its batches. As with
                `steps_per_epoch`, the next epoch takes the batches of an iterable that follow.
            limit_validation: the same for a validation.
            overfit_batches: trains each epoch on the same first batches, so many, unshuffled. A validation, if there is
                one, is of these batches, too.
            sanity_check: the number of validation steps before training, which raise the errors of the validation.
            prefetch: how many batches of an iterable a thread reads ahead; 0 reads each when its step needs it.

        Returns:
            The `History` of this call, which is `trainer.history` too.

        Raises:
            ValueError, TypeError: for bad data or arguments; the message says which.
            RuntimeError: if a callback calls it during `fit`.
            StepError: if a step returns the wrong thing.
            Exception: what a callback raises, of its own type, with a note that names the callback and the hook.
            CheckpointError: if the checkpoint is damaged, or of another run.
        """
        session = self._session
        not_in_fit(session, "fit")
        config = FitConfig.checked(
            batch_size=batch_size,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            max_steps=max_steps,
            max_time=max_time,
            initial_epoch=initial_epoch,
            shuffle=shuffle,
            drop_remaining=drop_remaining,
            validation_batch_size=validation_batch_size,
            validation_steps=validation_steps,
            validation_freq=validation_freq,
            validation_weights=validation_weights,
            steps_per_execution=steps_per_execution,
            resume=resume,
            hyperparameters=hyperparameters,
            check_inputs=check_inputs,
            fast_dev_run=fast_dev_run,
            limit_train=limit_train,
            limit_validation=limit_validation,
            overfit_batches=overfit_batches,
            sanity_check=sanity_check,
            prefetch=prefetch,
        )
        source, evaluations = fit_module.sources(
            session,
            config,
            Given.of("fit", data, inputs, labels, sample_weight),
            class_weight,
            validation_data,
            validation_split,
        )
        history = History()
        listeners = Listeners(self, session, callbacks, verbose, history, config.fast_dev_run > 0)
        fit_module.fit(session, config, source, evaluations, listeners, history)
        return history

    def evaluate(
        self,
        data: PyTree = None,
        labels: PyTree = None,
        *,
        inputs: PyTree = None,
        sample_weight: PyTree = None,
        batch_size: int | None = None,
        steps: int | None = None,
        callbacks: Sequence[Callback] | None = None,
        verbose: Literal[0, 1, 2] = 1,
        weights: Weights = "trained",
        prefetch: int = PREFETCH,
    ) -> dict[str, float]:
        """Computes losses and metrics over all of the data; the state stays as it is.

        Args:
            data: as for `fit`.
            labels: as for `fit`.
            inputs: as for `fit`.
            sample_weight: as for `fit`.
            batch_size: examples a step; the result does not depend on it.
            steps: how many batches to see at most.
            callbacks: callbacks of this call.
            verbose: as for `fit`.
            weights: which parameters to use: `"trained"`; `"averaged"`, where the trainer keeps an average; or a
                function of the state that returns parameters. The state stays as it is.
            prefetch: as for `fit`.

        Returns:
            Values by name.

        Raises:
            ValueError: if there is no average, or a function returns something else.
        """
        given = Given.of("evaluate", data, inputs, labels, sample_weight)
        source = source_of(given, what="evaluate", batch_size=batch_size)
        with source.reading(checks.prefetch(prefetch)):
            listeners = Listeners(self, self._session, callbacks, verbose)
            plan = plan_pass(self._session, "test", source, listeners, batch_size, steps, weights)
            return dict(loop.evaluate(self._session, plan, listeners, weights=weights))

    def predict(
        self,
        data: PyTree = None,
        *,
        inputs: PyTree = None,
        labels: str | Sequence[str] | None = None,
        sample_weight: str | Sequence[str] | None = None,
        batch_size: int | None = None,
        steps: int | None = None,
        callbacks: Sequence[Callback] | None = None,
        verbose: Literal[0, 1, 2] = 0,
        weights: Weights = "trained",
        prefetch: int = PREFETCH,
    ) -> PyTree:
        """Computes the outputs for all of the data; the state stays as it is.

        Args:
            data: a tree of arrays of shape `(examples, ...)`; an iterable of batches whose inputs count; or a dict,
                table or data set.
            inputs: the names of the keys or columns that are the inputs. If the first argument is missing, the data.
            labels: the names of labels in the data, which are left out; they may be missing.
            sample_weight: the name of weights in the data, which are left out; it may be missing.
            batch_size: examples a step; the result does not depend on it.
            steps: how many batches to see at most.
            callbacks: callbacks of this call.
            verbose: as for `fit`.
            weights: as for `evaluate`.
            prefetch: as for `fit`.

        Returns:
            The outputs as NumPy arrays, rows in the order of the data.

        Raises:
            ValueError: if outputs of several batches cannot be joined, because they do not have the rows of the
                examples; `predict_iter` yields them one by one.
        """
        given = Given.of("predict", data, inputs, labels, sample_weight)
        listeners = Listeners(self, self._session, callbacks, verbose)
        return join(predictions(self._session, given, listeners, batch_size, steps, weights, prefetch))

    def predict_iter(
        self,
        data: PyTree = None,
        *,
        inputs: PyTree = None,
        labels: str | Sequence[str] | None = None,
        sample_weight: str | Sequence[str] | None = None,
        batch_size: int | None = None,
        steps: int | None = None,
        callbacks: Sequence[Callback] | None = None,
        verbose: Literal[0, 1, 2] = 0,
        weights: Weights = "trained",
        prefetch: int = PREFETCH,
    ) -> Iterator[PyTree]:
        """Yields the outputs of one batch after another, as NumPy arrays. Arguments as for `predict`."""
        given = Given.of("predict", data, inputs, labels, sample_weight)
        listeners = Listeners(self, self._session, callbacks, verbose)
        return trees(predictions(self._session, given, listeners, batch_size, steps, weights, prefetch))

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what is compiled, placed on devices, or under way."""
        return {**self.__dict__, "_session": copy.copy(self._session)}


explain_keywords(Trainer, "__init__", "fit", "evaluate", "predict", theirs=OF_TRAINER)
explain_attributes(Trainer, ATTRIBUTES_OF_TRAINER)
