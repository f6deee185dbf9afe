"""Ends a run that no longer improves."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from elegy.callbacks.callback import Callback
from elegy.callbacks.event import Event
from elegy.callbacks.monitor import Mode, Monitor
from elegy.callers import stacklevel_of_caller
from elegy.integers import as_integer
from elegy.keywords import OF_EARLY_STOPPING, explain_keywords


class EarlyStopping(Callback):
    """Stops training when a monitored value has stopped improving.

    A `val_` name is compared after each of its evaluations, inside of epochs too (`validation_freq=Every(steps=500)`),
    other names after each epoch. NaN never counts as an improvement. A run that is resumed after it was stopped ends at
    once, unless `patience` is larger now.

    Args:
        monitor: the log's name.
        min_delta: how much better a value must be to count.
        patience: how many evaluations in a row (epochs, for other names) may pass without an improvement before
            training stops.
        mode: `"min"`, `"max"`, or `"auto"`, which decides by the name (see `Monitor`).
        baseline: a value to beat; values that do not beat it use up patience. The run stops at a value that does not
            improve.
        restore_best_weights: True to end the run with the state of the best value: for a `val_` name the state that
            was validated, otherwise the state at the epoch's end. All fields are restored, so that `evaluate` returns
            `best` again, except counters and random keys: `trainer.step`, `trainer.epoch`, the keys and Optax's
            `count` fields keep their last values. The best state needs device memory of its own, and space in
            checkpoints of later steps, so that a resumed run ends with it, too. A run that a signal or an exception
            ends keeps its last state, so that it can be resumed.
        start_from_epoch: the number of epochs at the beginning of the run that are not compared.
        verbose: 1 to print why training stopped and which epoch was restored. With 0, `fit` says why it stopped where
            it prints epochs.

    Attributes:
        best: the best value so far, or None.
        best_epoch: the index of the epoch with the best value.
        best_step: the number of completed steps at the best value.
        wait: evaluations, or epochs, since the last improvement.
        stopped_epoch: the index of the epoch after which training was stopped, or None.

    Raises:
        TypeError: if the name is not a string, or the patience not an integer.
        ValueError: if the mode is unknown or the patience negative; at the beginning of a run without validation
            if a `val_` name is monitored; at the end of the first epoch if the monitored name is not logged (the
            message lists the names that are).

    Warns:
        UserWarning: if a run over an iterable without a length ends before a first epoch does, so that nothing was
            compared.

    Example:
        >>> EarlyStopping(monitor="val_accuracy", patience=3, restore_best_weights=True)
        EarlyStopping(monitor='val_accuracy', mode='max', patience=3)
    """

    reads_logs = True
    # The batch hook reads the state during validation, which does not change it.
    batch_hooks_read = "logs"

    def __init__(
        self,
        monitor: str = "val_loss",
        min_delta: float = 0,
        patience: int = 0,
        mode: Mode = "auto",
        baseline: float | None = None,
        restore_best_weights: bool = False,
        start_from_epoch: int = 0,
        verbose: int = 0,
    ):
        if as_integer(patience) is None:
            raise TypeError(f"patience={patience!r}: it must be an integer, a number of evaluations or epochs.")
        if patience < 0:
            raise ValueError(f"patience={patience}: it must not be negative.")
        self.monitor = Monitor(monitor, mode, min_delta)
        self.patience = patience
        self.baseline = baseline
        self.restore_best_weights = restore_best_weights
        self.start_from_epoch = start_from_epoch
        self.verbose = verbose
        self._trainer: Any = None  # while a run is under way
        self._reset(first_epoch=0)

    def __repr__(self) -> str:
        return f"EarlyStopping(monitor={self.monitor.name!r}, mode={self.monitor.mode!r}, patience={self.patience})"

    def _reset(self, first_epoch: int) -> None:
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.best_step: int | None = None
        self.stopped_epoch: int | None = None
        self.wait = 0
        self._first_epoch = first_epoch
        self._best_step: int | None = None  # the state of this step is the best
        self._best_state: Any = None
        self._evaluation: str | None = None  # the prefix of the validation that has the monitored log
        self._watches: list[bool] = []  # for each evaluation that runs, the outer one first, if it is that one
        self._validated: Any = None  # the state of the last validation, until the epoch ends

    def on_train_begin(self, event: Event) -> None:
        """Forgets the last run."""
        self.monitor.check(event)
        self._reset(event.epoch)
        self._trainer, self._evaluation = event.trainer, self.monitor.evaluation(event)

    def listens(self, hook: str) -> bool:
        """True for test hooks only if the validated state may have to be restored."""
        evaluated = self.monitor.name.startswith("val_")
        needed = {"on_test": evaluated and self.restore_best_weights, "on_eval": evaluated}
        return super().listens(hook) and needed.get(hook[:7], True)

    def selected_batches(self, step: int, examples: int, sizes: Sequence[int]) -> Iterable[int]:
        """The first batch of a validation."""
        return (0,) if self._trainer is not None and self._validated is None else ()

    def on_test_begin(self, event: Event) -> None:
        """Forgets the state of the last validation with the monitored log."""
        self._watches.append(event.evaluation == self._evaluation)
        if self._watches[-1]:
            self._validated = None

    def on_test_end(self, event: Event) -> None:
        """Returns to the validation in which this one ran."""
        if self._watches:
            self._watches.pop()

    def on_test_batch_end(self, event: Event) -> None:
        """Stores the validated state: a callback may have assigned it for the validation only."""
        if self._trainer is not None and self._watches and self._watches[-1] and self._validated is None:
            self._validated = event.trainer.state

    def on_evaluation_end(self, event: Event) -> None:
        """Compares the value of an evaluation inside of the epoch, as `on_epoch_end`."""
        if self.monitor.evaluated(event):
            self._compare(event)

    def on_epoch_end(self, event: Event) -> None:
        """Compares the value with the best, and stops when patience is used up."""
        self._compare(event)

    def _compare(self, event: Event) -> None:
        value, validated = self.monitor.value(event), self._validated
        self._validated = None
        if value is None or event.epoch < self._first_epoch + self.start_from_epoch:
            return
        self.wait += 1
        if self.monitor.better(value, self.best):
            self.best, self.best_epoch, self.best_step = value, event.epoch, event.step
            self._best_step = event.step
            if self.restore_best_weights:
                self._best_state = event.trainer.state if validated is None else validated
            if self.baseline is None or self.monitor.better(value, self.baseline):
                self.wait = 0
            return
        # A first value, which is NaN here, cannot be worse than one before it.
        is_first = self.best is None and self.wait == 1 and event.epoch == self._first_epoch
        if self.wait >= self.patience and not is_first:
            self.stopped_epoch = event.epoch
            event.trainer.stop_training = True
            if self.verbose:
                print(f"EarlyStopping: {self.reason()}")

    def on_train_end(self, event: Event) -> None:
        """Restores the best state, if asked to."""
        self._warn_of_no_comparison(event)
        self._trainer = self._validated = None
        if event.ended in ("interrupted", "failed"):
            if self._best_state is not None and _same(self._best_state, event.trainer.state):
                # A resumed run finds it in the last state.
                self._best_state = None
            return  # a later save has the best state, too
        best, self._best_state = self._best_state, None
        if not self.restore_best_weights or self.best is None:
            return
        current = event.trainer.state
        if best is current or (best is None and self._best_step == event.step):
            return
        if best is None:
            warnings.warn(
                f"EarlyStopping cannot restore {self._best()}: the run was resumed after it from a checkpoint that was "
                "saved without `restore_best_weights`.",
                stacklevel=stacklevel_of_caller(),
            )
            return
        event.trainer.state = going_on(without_logs(best), without_logs(current)).replace(_logs=current._logs)
        self._best_step = event.step
        if self.verbose:
            print(f"EarlyStopping: restored {self._best()}")

    def _warn_of_no_comparison(self, event: Event) -> None:
        """Warns if the run reached its limit in a first epoch of unknown length; of validations, `fit` warns."""
        within = event.steps is None and event.trainer.epoch == self._first_epoch
        if event.ended != "finished" or not within or event.trainer.stop_training or self._evaluation is not None:
            return
        warnings.warn(
            f"EarlyStopping compared nothing: {self.monitor.name!r} is compared at the end of an epoch, and the run "
            "reached max_steps or max_time before its iterable ended. Pass `steps_per_epoch` to fit, or monitor a "
            "`val_` name with `validation_freq=Every(steps=...)`.",
            stacklevel=stacklevel_of_caller(),
        )

    def reason(self) -> str:
        """Why training stopped, such as `val_loss has not improved since epoch 8 (val_loss 0.4471)`."""
        return f"{self.monitor.name} has not improved since {self._best()}"

    def _best(self) -> str:
        if self.best is None or self.best_epoch is None:
            return "the beginning"
        return f"epoch {self.best_epoch + 1} ({self.monitor.name} {self.best:.6g})"

    def state_dict(self) -> dict[str, Any]:
        """Returns the best value and the patience used; `kept_states` returns the best state."""
        return {
            "best": self.best,
            "best_epoch": self.best_epoch,
            "best_value_step": self.best_step,
            "best_step": self._best_step,
            "stopped_epoch": self.stopped_epoch,
            "wait": self.wait,
            "first_epoch": self._first_epoch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues the counts of the resumed run, and stops it at once if patience is used up."""
        still = state["stopped_epoch"] is not None and state["wait"] >= self.patience
        self._best_step = state["best_step"]
        known = not self.restore_best_weights or self._best_state is not None
        if not known and self._trainer is not None and self._best_step == self._trainer.step:
            self._best_state = self._trainer.state
        self.best, self.best_epoch, self.best_step = state["best"], state["best_epoch"], state.get("best_value_step")
        self.stopped_epoch, self.wait = state["stopped_epoch"] if still else None, state["wait"]
        self._first_epoch = state["first_epoch"]
        if still and self._trainer is not None:
            self._trainer.stop_training = True

    def kept_states(self) -> dict[str, Any]:
        """Returns the best state and the one that was validated, unless they are the last one."""
        states = {"best": self._best_state, "validated": self._validated}
        kept = {name: state for name, state in states.items() if state is not None}
        if kept and (trainer := self._trainer) is not None:
            last = trainer.state
            kept = {name: state for name, state in kept.items() if not _same(state, last)}
        return {name: without_logs(state) for name, state in kept.items()}

    def load_kept_states(self, states: dict[str, Any]) -> None:
        """Restores the best state, and the one that was validated."""
        self._best_state = states.get("best") if self.restore_best_weights else None
        self._validated = states.get("validated")


def _same(state: Any, last: Any) -> bool:
    """True if two states have the same arrays. At the best step, a callback may have replaced those of the last one."""
    one, other = (jax.tree.leaves(without_logs(each)) for each in (state, last))
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def without_logs(state: Any) -> Any:
    """Returns a state without the sums of its logs."""
    return state.replace(_logs=type(state._logs)())


def going_on(best: Any, current: Any) -> Any:
    """Returns the best state with the keys and the optimizer's counters of the current one.

    With the old keys, further training would draw the same random numbers again; with the old counters, schedules
    would lag behind the steps.
    """

    def choose(path: Any, old: Any, new: Any) -> Any:
        is_key = isinstance(old, jax.Array) and jnp.issubdtype(old.dtype, jax.dtypes.prng_key)
        return new if is_key or getattr(path[-1], "name", None) in ("count", "rng_key") else old

    optimizer = jax.tree_util.tree_map_with_path(choose, best.optimizer, current.optimizer)
    return best.replace(key=current.key, optimizer=optimizer)


explain_keywords(EarlyStopping, "__init__", theirs=OF_EARLY_STOPPING)
