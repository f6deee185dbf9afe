"""What a trainer shows of its state: the state itself, its counters, its strategy, a summary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from elegy.callbacks import History
from elegy.data.columns import Given
from elegy.html.notebook import Output, in_notebook
from elegy.html.page import details, embedded, table
from elegy.module import ElegyModule
from elegy.module.averaging import Weights
from elegy.module.freezing import frozen_paths, with_more
from elegy.patterns import as_patterns
from elegy.strategies import Strategy
from elegy.trainer.nonfinite import Policy
from elegy.trainer.one_fit import not_in_fit
from elegy.trainer.saving.configuration import configuration
from elegy.trainer.saving.run_record import parameters
from elegy.trainer.session import Session
from elegy.types import PyTree

if TYPE_CHECKING:  # where Python 3.11 lacks the default, which stands for the modules of other libraries
    from typing_extensions import TypeVar as TypeVarWithDefault

    M = TypeVarWithDefault("M", bound=ElegyModule, covariant=True, default=ElegyModule)
else:
    M = TypeVar("M", bound=ElegyModule, covariant=True)
"""The class of the state: that of the `ElegyModule` which the trainer was given."""


class StateMethods(Generic[M]):
    """Shows and moves the state; the base of `Trainer`."""

    _session: Session
    _module_name: str

    def __repr__(self) -> str:
        """The module, the strategy, and how far training is; nothing runs on a device."""
        session = self._session
        progress = f"step {session.step}, epoch {session.epoch}" if session.initialized else "not initialised"
        return f"<{type(self).__name__} of {self._module_name}, strategy {type(self.strategy).__name__}, {progress}>"

    def _repr_html_(self) -> str:
        """As `repr`, with the parameters and the curves of the last fit, for notebooks; nothing runs on a device."""
        found = parameters(self._session)
        shapes = [" x ".join(map(str, one["shape"])) for one in found]
        counts = [math.prod(one["shape"]) for one in found]
        rows = [[one["path"], one["dtype"], *size] for one, *size in zip(found, shapes, counts, strict=True)]
        total = f"{sum(counts):,} parameters" if rows else "no parameters yet"
        arrays = details(total, table(["path", "dtype", "shape", "count"], rows)) or f"<p>{total}</p>"
        curves = self.history._repr_html_() if self.history.epoch else ""
        return embedded(f"<p><b>{escape(repr(self)[1:-1])}</b></p>", arrays) + curves

    @property
    def state(self) -> M:
        """The state. It is immutable and stays valid; assign another one of the same kind to replace it."""
        return cast("M", self._session.state)

    @state.setter
    def state(self, state: ElegyModule) -> None:
        if not isinstance(state, ElegyModule):
            raise TypeError(f"the state must be an ElegyModule, not a {type(state).__name__}.")
        self._session.state = state

    @property
    def step(self) -> int:
        """The number of completed training steps."""
        return self._session.step

    @step.setter
    def step(self, step: int) -> None:
        self._session.step = step

    @property
    def epoch(self) -> int:
        """The number of completed epochs."""
        return self._session.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._session.epoch = epoch

    @property
    def stop_training(self) -> bool:
        """True if the run ends after the running step; a callback sets it."""
        return self._session.stop_training

    @stop_training.setter
    def stop_training(self, stop: bool) -> None:
        self._session.stop_training = stop

    @property
    def history(self) -> History:
        """The values of the last `fit`."""
        return self._session.history

    @property
    def interrupted(self) -> int | None:
        """The signal that ended the last `fit`, such as `signal.SIGTERM`, or None.

        Schedulers understand `sys.exit(128 + trainer.interrupted)`.
        """
        return self._session.interrupted

    @property
    def seed(self) -> int:
        """Where all randomness of the run comes from."""
        return self._session.seed

    @property
    def nonfinite(self) -> Policy:
        """What happens at a step whose loss or gradients are not finite."""
        return self._session.monitor.policy

    @property
    def skipped_steps(self) -> int:
        """How many steps were left out because they were not finite; 0 under `nonfinite="ignore"`.

        They count in `trainer.step`. Asking waits for the steps that still run.
        """
        return self._session.monitor.count().steps

    def configuration(self) -> dict[str, Any]:
        """Returns what the run is made of, as loggers record it: nested dicts of strings, numbers and lists.

        `trainer` has the module, losses, metrics and arguments of the trainer, `config` the values that were given to
        it under this name, `fit` the arguments of the running `fit`, `data` the sizes of its data, and `versions` those
        of libraries, the devices and the Git commit of the working directory.

        Example:
            >>> import optax, flax.linen as nn
            >>> import elegy as eg
            >>> trainer = eg.Trainer(nn.Dense(1), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1))
            >>> trainer.configuration()["trainer"]["losses"]
            ['mean_squared_error']
        """
        return configuration(self._session, self._module_name)

    @property
    def strategy(self) -> Strategy:
        """How steps run on devices."""
        return self._session.strategy

    def set_strategy(self, strategy: str | Strategy) -> None:
        """Moves the state to another strategy; its values do not change.

        Args:
            strategy: a name or a `Strategy`.

        Raises:
            ValueError, TypeError: if it is not a strategy, or does not fit the state; the trainer stays as it was.
            RuntimeError: if a callback calls it during `fit`.
        """
        self._session.set_strategy(strategy)

    def freeze(self, *patterns: str) -> None:
        """Freezes parameters from now on: they get no gradient, no update, no weight decay and no optimizer state.

        The optimizer's state for all other parameters stays, to the same bits. The losses, regularizers and averages
        include frozen parameters. Batch statistics are not parameters: a module updates them as before.

        Args:
            *patterns: patterns of parameter paths, such as `"backbone/*"`; `*` stands for any characters.

        Raises:
            RuntimeError: while `fit` runs.
            TypeError: if a pattern is not a string.
            ValueError: if a pattern matches no parameter, or no parameter is left to train; or if an array of the
                optimizer's state belongs to several parameters. The state stays as it was.
            StepError: if the module trains at the core level.

        Example:
            >>> import numpy as np, optax, flax.linen as nn
            >>> import elegy as eg
            >>> x = np.ones((8, 1), np.float32)
            >>> trainer = eg.Trainer(nn.Dense(1), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.1))
            >>> trainer.freeze("bias")
            >>> history = trainer.fit(x, 3 * x, verbose=0)
            >>> trainer.frozen, trainer.variables()["params"]["bias"].tolist()
            (['bias'], [0.0])
        """
        self._freeze("freeze", patterns, freezes=True)

    def unfreeze(self, *patterns: str) -> None:
        """Trains frozen parameters again, from now on.

        The optimizer begins anew for them: with `optax.adam`, their moments are 0. A group of optimizers of which all
        parameters were frozen begins as a whole, with its counter and its schedule; a counter that other parameters
        share goes on.

        Args:
            *patterns: patterns of parameter paths; `"*"` stands for all.

        Raises:
            RuntimeError, TypeError, ValueError, StepError: as `freeze`.
        """
        self._freeze("unfreeze", patterns, freezes=False)

    def _freeze(self, method: str, patterns: tuple[str, ...], freezes: bool) -> None:
        not_in_fit(self._session, method)
        patterns = as_patterns(patterns, method)
        if not patterns:
            raise ValueError(f"{method} was given no pattern. The pattern of all parameters is '*'.")
        self._session.state = with_more(self._session.state, patterns, freezes)

    @property
    def frozen(self) -> list[str]:
        """The paths of the frozen parameters; empty before the first state exists."""
        return frozen_paths(self._session.buffer.struct) if self._session.initialized else []

    def update_batch_stats(
        self,
        data: PyTree = None,
        *,
        inputs: PyTree = None,
        labels: str | Sequence[str] | None = None,
        sample_weight: str | Sequence[str] | None = None,
        batch_size: int | None = None,
        steps: int | None = None,
        weights: Weights | None = None,
    ) -> None:
        """Computes the batch statistics anew, with averaged parameters, as `torch.optim.swa_utils.update_bn`.

        Each statistic becomes the mean of what its layer computes from the batches, each batch with the same weight:
        the layer's momentum does not count. The module runs in training mode, so dropout is on. Parameters, optimizer,
        step and key stay. The statistics are no longer those of the trained parameters then, so use the same `weights`
        in `evaluate` and `predict`.

        Args:
            data: as for `predict`; batches are in the order of the data.
            inputs: as for `predict`.
            labels: as for `predict`.
            sample_weight: as for `predict`.
            batch_size: the rows of a batch. The variances are those within batches, so use the size of the training.
            steps: the largest number of batches.
            weights: as for `evaluate`; None for the average if the trainer has one, otherwise the trained parameters.

        Raises:
            RuntimeError: while `fit` runs, or with several processes.
            StepError: if there is no state yet, or the module does not implement `apply`.
            ValueError: if there are no batch statistics, or they are not running means with a momentum, as those of
                Equinox modules; the state does not change.
        """
        from elegy.trainer.batch_statistics import update_batch_stats

        given = Given.of("update_batch_stats", data, inputs, labels, sample_weight)
        update_batch_stats(self._session, given, batch_size, steps, weights)

    def summary(
        self,
        data: PyTree = None,
        *,
        inputs: PyTree = None,
        labels: str | Sequence[str] | None = None,
        sample_weight: str | Sequence[str] | None = None,
        depth: int = 2,
        return_repr: bool = False,
    ) -> str | None:
        """Prints a table of layers with their output shapes, parameters and bytes, without running them.

        Args:
            data: one batch as for `predict_on_batch`, of arrays or `jax.ShapeDtypeStruct`.
            inputs: as for `predict_on_batch`.
            labels: as for `predict_on_batch`.
            sample_weight: as for `predict_on_batch`.
            depth: how deep nested layers are listed.
            return_repr: whether to return the table instead of printing it; a notebook shows it as HTML.
        """
        from elegy.trainer.summary import summarize

        given = Given.of("summary", data, inputs, labels, sample_weight)
        text = summarize(self._session, given, depth=depth)
        if return_repr:
            return text
        if in_notebook():
            Output().show(text._repr_html_())
        else:
            print(text)
        return None


def session_of(trainer: StateMethods[Any]) -> Session:
    """Returns the session of a trainer, for the parts of this package that make trainers."""
    return trainer._session


def module_name(module: Any, state: Any) -> str:
    """What messages call a module: its class, within that of its adapter.

    Args:
        module: what was given.
        state: the `ElegyModule` that it became.

    Example:
        >>> import elegy as eg
        >>> module_name(print, eg.ElegyModule())
        'ElegyModule(builtin_function_or_method)'
    """
    adapter = type(state).__name__
    if type(module) is type(state) or isinstance(module, tuple):  # the class of a tuple, Haiku's too, says nothing
        return adapter
    return f"{adapter}({type(module).__name__})"
